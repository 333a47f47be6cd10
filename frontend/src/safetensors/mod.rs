//! Reader of safetensors files and of directories of them.
//!
//! Files are mapped. The header goes through our own checks first (no repeated names, no gaps, no surprises in types and sizes),
//! then through the `safetensors` library. Names in an index never become paths: they must be plain names of files that lie in the
//! directory.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

mod error;
mod header;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use half::{bf16, f16};
use marquetry_ir::DType;
use serde_json::Value;

pub use error::StError;
pub use header::TensorInfo;

use crate::bytes::Bytes;
use crate::gguf::quoted;
use crate::json;

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
const MAX_INDEX: usize = 32 << 20;
const MAX_SHARDS: usize = 4096;

/// An open safetensors file, or all shards of a model.
#[derive(Debug)]
pub struct Safetensors {
    shards: Vec<Bytes>,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
    warnings: Vec<StError>,
}

impl Safetensors {
    /// Opens a file, or a directory with `model.safetensors` or with shards and their index.
    ///
    /// # Errors
    /// With the path, if there are no weights, they cannot be read, or they are malformed.
    pub fn open(path: impl AsRef<Path>) -> Result<Safetensors, StError> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Safetensors::assemble(vec![shard(path)?]);
        }
        if path.join(SINGLE).is_file() {
            return Safetensors::assemble(vec![shard(&path.join(SINGLE))?]);
        }
        if path.join(INDEX).is_file() {
            return sharded(path).map_err(|e| match e {
                e @ StError::InFile { .. } => e,
                source => StError::InFile { path: path.to_owned(), source: Box::new(source) },
            });
        }
        Err(StError::InFile { path: path.to_owned(), source: Box::new(nothing(path)) })
    }

    /// Checks a whole file that is in memory.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn parse(bytes: impl Into<Vec<u8>>) -> Result<Safetensors, StError> {
        let bytes = Bytes::Owned(bytes.into());
        let tensors = header::header(&bytes)?;
        Safetensors::assemble(vec![(bytes, tensors)])
    }

    fn assemble(files: Vec<(Bytes, Vec<TensorInfo>)>) -> Result<Safetensors, StError> {
        let mut out =
            Safetensors { shards: Vec::new(), tensors: Vec::new(), index: HashMap::new(), warnings: Vec::new() };
        for (bytes, tensors) in files {
            for mut tensor in tensors {
                tensor.shard = out.shards.len();
                if out.index.insert(tensor.name.clone(), out.tensors.len()).is_some() {
                    return Err(StError::Index { what: format!("tensor `{}` is in two shards", tensor.name) });
                }
                out.tensors.push(tensor);
            }
            out.shards.push(bytes);
        }
        Ok(out)
    }

    /// The files.
    pub(crate) fn files(&self) -> &[Bytes] {
        &self.shards
    }

    /// The tensors, by shard and in the order of their data.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(*self.index.get(name)?)
    }

    /// The bytes of a tensor of this file, little-endian and not necessarily aligned. Empty for a description from elsewhere.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        self.shards.get(tensor.shard).and_then(|shard| shard.get(tensor.bytes.clone())).unwrap_or(&[])
    }

    /// What is odd but does no harm, such as a wrong `total_size` in an index.
    pub fn warnings(&self) -> &[StError] {
        &self.warnings
    }

    /// Reads all floats and reports each tensor that has NaN or infinity among them.
    pub fn non_finite(&self) -> Vec<StError> {
        let check = |tensor: &TensorInfo| {
            let data = self.data(tensor);
            let (count, first) = match tensor.dtype {
                DType::F32 => bad_floats(data.as_chunks().0, |b| f32::from_le_bytes(b).is_finite()),
                DType::F16 => bad_floats(data.as_chunks().0, |b| f16::from_le_bytes(b).is_finite()),
                DType::BF16 => bad_floats(data.as_chunks().0, |b| bf16::from_le_bytes(b).is_finite()),
                _ => (0, None),
            };
            first.map(|first| StError::NonFinite { name: tensor.name.clone(), count, first })
        };
        self.tensors.iter().filter_map(check).collect()
    }
}

fn bad_floats<const N: usize>(floats: &[[u8; N]], finite: impl Fn([u8; N]) -> bool) -> (usize, Option<usize>) {
    let mut bad = floats.iter().enumerate().filter(|(_, b)| !finite(**b)).map(|(i, _)| i);
    let first = bad.next();
    (usize::from(first.is_some()) + bad.count(), first)
}

fn shard(path: &Path) -> Result<(Bytes, Vec<TensorInfo>), StError> {
    let in_file = |source: StError| StError::InFile { path: path.to_owned(), source: Box::new(source) };
    let bytes = Bytes::open(path).map_err(|e| in_file(e.into()))?;
    let tensors = header::header(&bytes).map_err(in_file)?;
    Ok((bytes, tensors))
}

/// The error for a directory without safetensors.
fn nothing(dir: &Path) -> StError {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    let pickle = |n: &String| [".bin", ".pt", ".pth"].iter().any(|e| n.ends_with(e)) && !n.starts_with('.');
    match names.into_iter().find(pickle) {
        Some(name) => StError::Pickle { name },
        None => {
            let what = format!("there is no {SINGLE}, no {INDEX} and no .gguf file");
            StError::Io(std::io::Error::new(std::io::ErrorKind::NotFound, what))
        }
    }
}

/// Why a shard's name must not be opened.
fn bad_shard(dir: &Path, name: &str) -> Option<&'static str> {
    let plain =
        !name.is_empty() && name.len() <= 255 && !name.contains(['/', '\\', ':', '\0']) && !name.starts_with('.');
    if !plain || name.chars().any(char::is_control) {
        return Some("leads elsewhere");
    }
    if !name.ends_with(".safetensors") {
        return Some("does not end in .safetensors");
    }
    let path = dir.join(name);
    if !std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink()) {
        return None;
    }
    // Download caches keep files in `blobs` and link to them from `snapshots/REVISION`; other links are refused.
    let target = path.canonicalize().ok();
    let blobs = dir.join("../../blobs").canonicalize().ok();
    match (target.as_deref().and_then(Path::parent), blobs.as_deref()) {
        (Some(parent), Some(blobs)) if parent == blobs => None,
        _ => Some("is a link that leads elsewhere"),
    }
}

fn sharded(dir: &Path) -> Result<Safetensors, StError> {
    let bad = |what: String| StError::Index { what };
    let text = Bytes::open(&dir.join(INDEX))?;
    let value = json::parse(&text, MAX_INDEX).map_err(|e| bad(e.to_string()))?;
    let map = value.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| bad("`weight_map` must be an object".to_owned()))?;
    let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, name) in map {
        let name = name.as_str().ok_or_else(|| bad(format!("`{}` must name a shard", quoted(tensor.as_bytes()))))?;
        names.entry(name).or_default().push(tensor);
    }
    if names.is_empty() || names.len() > MAX_SHARDS {
        return Err(bad(format!("it names {} shards, 1 to {MAX_SHARDS} are accepted", names.len())));
    }
    let mut files = Vec::new();
    for (name, tensors) in &names {
        if let Some(why) = bad_shard(dir, name) {
            return Err(StError::ShardName { name: quoted(name.as_bytes()), why });
        }
        let (bytes, found) = shard(&dir.join(name))?;
        let in_shard: std::collections::HashSet<&str> = found.iter().map(|t| t.name.as_str()).collect();
        if let Some(missing) = tensors.iter().find(|t| !in_shard.contains(**t)) {
            return Err(bad(format!("tensor `{}` is not in `{name}`", quoted(missing.as_bytes()))));
        }
        files.push((bytes, found));
    }
    let mut out = Safetensors::assemble(files)?;
    if let Some(stray) = out.tensors.iter().find(|t| !map.contains_key(&t.name)) {
        out.warnings.push(bad(format!("tensor `{}` is in a shard, but not in the index", stray.name)));
    }
    let total: usize = out.tensors.iter().map(|t| t.bytes.len()).sum();
    if let Some(claimed) = value.get("metadata").and_then(|m| m.get("total_size")).and_then(Value::as_f64) {
        #[allow(clippy::cast_precision_loss, reason = "only compared")]
        if claimed != total as f64 {
            out.warnings.push(bad(format!("`total_size` is {claimed}, the shards hold {total} bytes")));
        }
    }
    Ok(out)
}

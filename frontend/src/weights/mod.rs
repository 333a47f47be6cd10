//! The weights of a model under Hugging Face names, from GGUF or safetensors.
//!
//! [`Weights::open`] takes a `.gguf` file, a `.safetensors` file or a directory. Values are those of the file: quantized blocks stay
//! quantized. Where a converter changed a tensor, its [`TensorView`] says how to change it back.

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

mod identity;
mod names;
mod stored;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use marquetry_ir::{DType, Elem};

use crate::config::{ConfigError, ModelConfig};
use crate::gguf::formats::{FORMATS, Format, Rule};
use crate::gguf::{Gguf, GgufError, TensorInfo};
use crate::safetensors::{Safetensors, StError};
use crate::suggest;

#[cfg(test)]
pub(crate) use names::canonical;
pub use stored::{Rows, Stored};

/// What is wrong with a model's weights. [`WeightError::code`] is stable; messages may change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are the values that each message prints")]
pub enum WeightError {
    /// The GGUF file is malformed.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The safetensors file or directory is malformed.
    #[error(transparent)]
    Safetensors(#[from] StError),
    /// The GGUF file's configuration is malformed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A tensor is not there.
    #[error("`{name}` missing{also}{nearest}; fetch the model again, or check that the configuration belongs to it")]
    Missing { name: String, also: String, nearest: String },
    /// A tensor has another shape.
    #[error("`{name}` has {found:?}, expected {expected:?}; check that the configuration belongs to these weights")]
    Shape { name: String, found: Vec<usize>, expected: Vec<usize> },
    /// The output layer is not there although it is not tied.
    #[error("`lm_head.weight` missing{also}; set `tie_word_embeddings` to true if the model shares its embedding")]
    Head { also: String },
    /// A tensor that the model does not use.
    #[error("`{name}` is not used by this model{nearest}; check that the configuration belongs to these weights")]
    Unexpected { name: String, nearest: String },
    /// Two tensors with one meaning.
    #[error("`{first}` and `{second}` are both `{name}`; remove one of them")]
    Ambiguous { name: String, first: String, second: String },
    /// A tensor that its transform does not fit.
    #[error("`{name}`: {what}; convert the model again")]
    Transform { name: String, what: String },
}

impl WeightError {
    /// The stable code of the error, such as `CFG020`.
    pub fn code(&self) -> &'static str {
        use WeightError as E;
        match self {
            E::Gguf(e) => e.code(),
            E::Safetensors(e) => e.code(),
            E::Config(e) => e.code(),
            E::Missing { .. } => "CFG020",
            E::Shape { .. } => "CFG021",
            E::Head { .. } => "CFG022",
            E::Unexpected { .. } => "CFG023",
            E::Ambiguous { .. } => "CFG024",
            E::Transform { .. } => "CFG025",
        }
    }
}

/// How a tensor of a file becomes the tensor of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// It is the tensor.
    None,
    /// Rows of each head alternate between the head's halves (rotation of neighbours); they belong one half after the other.
    ///
    /// With `d` rows per head, row `a * d / 2 + j` of a head is the file's row `2 * j + a`, for `a` in 0..2. Whole rows move, so it
    /// applies to quantized rows too.
    UnpermuteRows {
        /// Heads that the rows are divided into.
        heads: usize,
    },
    /// One was added to each element.
    SubtractOne,
}

/// A tensor of a file.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    /// Element type.
    pub elem: Elem,
    /// Sizes, row major: `[out, in]` for a matrix.
    pub shape: Vec<usize>,
    /// Bytes as in the file, before `transform`. Not necessarily aligned.
    pub bytes: &'a [u8],
    /// What must be done to them.
    pub transform: Transform,
    /// Sizes of `bytes`.
    stored_shape: Vec<usize>,
    stored: Option<&'a Stored>,
}

impl<'a> TensorView<'a> {
    /// The bytes after the transform; borrowed where there is none. The element type stays the same.
    pub fn data(&self) -> Cow<'a, [u8]> {
        let bytes = self.transformed();
        match self.stored {
            Some(s) => s.data(bytes, &self.stored_shape),
            None => bytes,
        }
    }

    /// Does [`TensorView::data`] borrow the bytes as they are?
    pub fn is_plain(&self) -> bool {
        self.transform == Transform::None && self.stored.is_none()
    }

    fn transformed(&self) -> Cow<'a, [u8]> {
        match (self.transform, self.elem) {
            (Transform::None, _) => Cow::Borrowed(self.bytes),
            (Transform::UnpermuteRows { heads }, _) => match unpermute(self.bytes, &self.stored_shape, heads) {
                Some(rows) => Cow::Owned(rows),
                None => Cow::Borrowed(self.bytes),
            },
            (Transform::SubtractOne, Elem::Scalar(dtype)) => Cow::Owned(subtract_one(self.bytes, dtype)),
            (Transform::SubtractOne, _) => Cow::Borrowed(self.bytes),
        }
    }
}

/// `None` if rows do not divide into halves of heads, which [`Weights::open`] refuses.
fn unpermute(bytes: &[u8], shape: &[usize], heads: usize) -> Option<Vec<u8>> {
    let rows = *shape.first()?;
    let row = bytes.len().checked_div(rows)?;
    let half = rows.checked_div(heads.checked_mul(2)?)?;
    if row == 0 || half == 0 || row * rows != bytes.len() || half * 2 * heads != rows {
        return None;
    }
    let mut out = Vec::with_capacity(bytes.len());
    for head in bytes.chunks_exact(2 * half * row) {
        for a in 0..2 {
            out.extend(head.chunks_exact(row).skip(a).step_by(2).flatten());
        }
    }
    Some(out)
}

fn subtract_one(bytes: &[u8], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => bytes.as_chunks().0.iter().flat_map(|b| (f32::from_le_bytes(*b) - 1.0).to_le_bytes()).collect(),
        DType::F16 => {
            let less = |b: [u8; 2]| f16::from_f32(f16::from_le_bytes(b).to_f32() - 1.0).to_le_bytes();
            bytes.as_chunks().0.iter().flat_map(|b| less(*b)).collect()
        }
        DType::BF16 => {
            let less = |b: [u8; 2]| bf16::from_f32(bf16::from_le_bytes(b).to_f32() - 1.0).to_le_bytes();
            bytes.as_chunks().0.iter().flat_map(|b| less(*b)).collect()
        }
        _ => bytes.to_vec(),
    }
}

/// Blocks of quantized numbers lie along rows, and can not be exchanged with columns.
fn turnable(stored: &Stored, elem: Elem) -> Result<(), String> {
    match elem.scalar() {
        None if stored.transposed => Err(format!("{elem} can not be transposed")),
        _ => Ok(()),
    }
}

/// What is wrong with a tensor for what the converter is known to do to it.
fn misfit(tensor: &TensorInfo, transform: Transform) -> Option<String> {
    let rows = tensor.shape.first().copied().unwrap_or(0);
    match transform {
        Transform::UnpermuteRows { heads } if heads == 0 || rows % (2 * heads) != 0 => {
            Some(format!("its {rows} rows do not divide into {heads} heads of even size"))
        }
        Transform::SubtractOne if !tensor.elem.scalar().is_some_and(DType::is_float) => {
            Some(format!("a norm must have floats, it has {}", tensor.elem))
        }
        _ => None,
    }
}

/// The file or files that weights come from.
#[derive(Debug)]
pub enum WeightSource {
    /// A GGUF model.
    Gguf(Gguf),
    /// Safetensors files.
    Safetensors(Safetensors),
}

/// Where a tensor lies: its place in the source's list, and what of it.
#[derive(Clone, Debug)]
struct Located {
    /// Name in Hugging Face spelling, with its prefix.
    shown: String,
    place: usize,
    /// Which of how many equal parts on the first axis.
    slice: Option<(usize, usize)>,
    transform: Transform,
    /// What else the converter did: [`Rule::Turned`], [`Rule::Joined`] or [`Rule::Flattened`].
    rule: Option<Rule>,
    /// How the model says that it is stored.
    stored: Option<Stored>,
}

impl Located {
    fn plain(name: &str, place: usize) -> Located {
        Located { shown: name.to_owned(), place, slice: None, transform: Transform::None, rule: None, stored: None }
    }

    /// How it lies in this file, if published files have it as `stored` says.
    fn here(&self, mut stored: Stored) -> Stored {
        match self.rule {
            Some(Rule::Turned) => stored.transposed = !stored.transposed,
            Some(Rule::Joined) => stored.rows = stored.rows.map(|r| r.joined()),
            _ => {}
        }
        stored
    }
}

/// An open model's weights.
#[derive(Debug)]
pub struct Weights {
    source: WeightSource,
    /// The table of a GGUF file, for messages.
    format: Option<&'static Format>,
    names: BTreeMap<String, Located>,
    ignored: Vec<String>,
}

/// Tensors that a model asked for, found and of the right shapes.
#[derive(Debug)]
pub struct Bound<'a> {
    /// In the order of the request.
    pub tensors: Vec<(String, TensorView<'a>)>,
}

impl Weights {
    /// Opens a `.gguf` file, a `.safetensors` file, or a directory with either.
    ///
    /// # Errors
    /// If the file is malformed, or two of its tensors have one meaning.
    pub fn open(path: impl AsRef<Path>) -> Result<Weights, WeightError> {
        let path = path.as_ref();
        let is_gguf = |p: &Path| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        if is_gguf(path) && !path.is_dir() {
            return Weights::from_gguf(Gguf::open(path)?);
        }
        match Safetensors::open(path) {
            Ok(file) => Weights::from_safetensors(file),
            Err(error) => {
                // A directory with GGUF files and nothing else: the first one (which leads to its parts), if it is alone.
                let entries = std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
                let mut files: Vec<_> = entries.filter(|p| is_gguf(p)).collect();
                files.sort();
                let first_part = |p: &Path| p.to_string_lossy().contains("-00001-of-");
                match files.first() {
                    Some(file) if error.code() == "ST024" && (files.len() == 1 || first_part(file)) => {
                        Weights::from_gguf(Gguf::open(file)?)
                    }
                    _ => Err(error.into()),
                }
            }
        }
    }

    /// Weights of an open GGUF file.
    ///
    /// # Errors
    /// If its configuration is malformed, or a tensor does not fit what the converter is known to do.
    pub fn from_gguf(file: Gguf) -> Result<Weights, WeightError> {
        let config = ModelConfig::from_gguf(&file)?;
        let number = |key: &str| {
            let value = config.values.get(key).and_then(serde_json::Value::as_u64);
            value.and_then(|v| usize::try_from(v).ok())
        };
        let heads = number("num_attention_heads").unwrap_or(0);
        let kv_heads = number("num_key_value_heads").unwrap_or(heads);
        let format = FORMATS.iter().find(|f| f.model == config.arch);
        let mut out = Weights::empty(WeightSource::Gguf(file), format);
        let WeightSource::Gguf(file) = &out.source else { return Ok(out) };
        let (mut names, mut ignored) = (BTreeMap::new(), Vec::new());
        for (place, tensor) in file.tensors().iter().enumerate() {
            if names::ignorable(&tensor.name) {
                ignored.push(tensor.name.clone());
                continue;
            }
            let rule = format.and_then(|f| f.rule(&tensor.name));
            let transform = match rule {
                Some(Rule::QueryRows) => Transform::UnpermuteRows { heads },
                Some(Rule::KeyRows) => Transform::UnpermuteRows { heads: kv_heads },
                Some(Rule::OneAdded) => Transform::SubtractOne,
                _ => Transform::None,
            };
            if let Some(what) = misfit(tensor, transform) {
                return Err(WeightError::Transform { name: tensor.name.clone(), what });
            }
            let first = tensor.shape.first().copied().unwrap_or(0);
            let meanings = format.map_or(vec![], |f| f.meanings(&tensor.name, first));
            for m in &meanings {
                let turned = Stored { transposed: true, ..Stored::default() };
                let stored = (rule == Some(Rule::Turned)).then_some(turned);
                let located = Located { slice: m.slice, transform, rule, stored, ..Located::plain(&m.name, place) };
                if let Some(other) = names.insert(names::canonical(&m.name), located) {
                    let first = file.tensors().get(other.place).map_or(String::new(), |t| t.name.clone());
                    let (name, second) = (m.name.clone(), tensor.name.clone());
                    return Err(WeightError::Ambiguous { name, first, second });
                }
            }
            if meanings.is_empty() {
                names.insert(tensor.name.clone(), Located::plain(&tensor.name, place));
            }
        }
        (out.names, out.ignored) = (names, ignored);
        Ok(out)
    }

    /// Weights of open safetensors files.
    ///
    /// # Errors
    /// If two tensors have one meaning.
    pub fn from_safetensors(file: Safetensors) -> Result<Weights, WeightError> {
        let (mut names, mut ignored) = (BTreeMap::new(), Vec::new());
        for (place, tensor) in file.tensors().iter().enumerate() {
            if names::ignorable(&tensor.name) {
                ignored.push(tensor.name.clone());
                continue;
            }
            let name = names::canonical(&tensor.name);
            if let Some(other) = names.insert(name.clone(), Located::plain(&tensor.name, place)) {
                let first = file.tensors().get(other.place).map_or(String::new(), |t| t.name.clone());
                return Err(WeightError::Ambiguous { name, first, second: tensor.name.clone() });
            }
        }
        let mut out = Weights::empty(WeightSource::Safetensors(file), None);
        (out.names, out.ignored) = (names, ignored);
        Ok(out)
    }

    fn empty(source: WeightSource, format: Option<&'static Format>) -> Weights {
        Weights { source, format, names: BTreeMap::new(), ignored: Vec::new() }
    }

    /// The file or files.
    pub fn source(&self) -> &WeightSource {
        &self.source
    }

    /// Names without what text models never read, in the order of the part after their prefix.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.values().map(|l| l.shown.as_str())
    }

    /// Names, as in the file, of tensors that text models never read, such as vision towers.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// A tensor by its Hugging Face name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let located = self.names.get(names::canonical(name).as_str())?;
        let (elem, shape, bytes) = match &self.source {
            WeightSource::Gguf(file) => {
                let t = file.tensors().get(located.place)?;
                (t.elem, &t.shape, file.data(t))
            }
            WeightSource::Safetensors(file) => {
                let t = file.tensors().get(located.place)?;
                (Elem::from(t.dtype), &t.shape, file.data(t))
            }
        };
        let (stored_shape, bytes) = match located.slice {
            Some((i, n)) => {
                let size = bytes.len().checked_div(n)?;
                (shape.get(1..)?.to_vec(), bytes.get(i * size..(i + 1) * size)?)
            }
            None if located.rule == Some(Rule::Flattened) && shape.len() == 1 => {
                ([&[1], shape.as_slice()].concat(), bytes)
            }
            None => (shape.clone(), bytes),
        };
        let stored = located.stored.as_ref();
        let shape = stored.map_or(stored_shape.clone(), |s| s.shape(&stored_shape).unwrap_or_default());
        Some(TensorView { elem, shape, bytes, transform: located.transform, stored_shape, stored })
    }

    /// Makes parameters known that are stored in another arrangement: each takes its part of a tensor of the file, whose own
    /// name goes. A parameter that the file has under its own name is left alone.
    ///
    /// # Errors
    /// Every part that does not fit its tensor. A tensor that is not there is left to [`Weights::bind`].
    pub fn declare(&mut self, params: &[(String, Stored)]) -> Result<(), Vec<WeightError>> {
        let mut errors = Vec::new();
        let mut taken = std::collections::BTreeSet::new();
        for (param, stored) in params {
            let (name, source) = (names::canonical(param), names::canonical(&stored.name(param)));
            if self.names.contains_key(&name) && name != source {
                continue;
            }
            let Some((view, located)) = self.get(&source).zip(self.names.get(&source)) else { continue };
            let here = located.here(stored.clone());
            if let Err(what) = here.shape(&view.stored_shape).and_then(|_| turnable(&here, view.elem)) {
                errors.push(WeightError::Transform { name: stored.name(param), what });
                continue;
            }
            let located = Located { shown: param.clone(), stored: Some(here), ..located.clone() };
            if name != source {
                taken.insert(source);
            }
            self.names.insert(name, located);
        }
        taken.iter().for_each(|name| drop(self.names.remove(name)));
        for name in self.names.keys() {
            let Some(view) = self.get(name) else { continue };
            if let Some(Err(what)) = view.stored.map(|s| turnable(s, view.elem)) {
                errors.push(WeightError::Transform { name: name.clone(), what });
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// ` (in the file: NAME)`, for GGUF.
    fn also(&self, name: &str) -> String {
        let gguf = self.format.and_then(|f| f.gguf_name(name));
        gguf.map_or(String::new(), |gguf| format!(" (`{gguf}` in the file)"))
    }

    /// Finds the tensors of a model: names and shapes in, views out.
    ///
    /// A tied model may carry a `lm_head.weight` all the same; it is left alone.
    ///
    /// # Errors
    /// All tensors that are missing or misshapen, and all that the model does not use.
    pub fn bind(&self, expected: &[(String, Vec<usize>)]) -> Result<Bound<'_>, Vec<WeightError>> {
        let (mut tensors, mut errors) = (Vec::new(), Vec::new());
        let wanted: std::collections::HashSet<String> =
            expected.iter().map(|(name, _)| names::canonical(name)).collect();
        let mut unused: Vec<&str> = self.names().filter(|n| !wanted.contains(&names::canonical(n))).collect();
        unused.retain(|name| *name != "lm_head.weight" && !names::is_buffer(name));
        for (name, shape) in expected {
            match self.get(name) {
                Some(view) if view.shape == *shape => tensors.push((name.clone(), view)),
                Some(view) => errors.push(WeightError::Shape {
                    name: format!("{name}{}", self.also(name)),
                    found: view.shape,
                    expected: shape.clone(),
                }),
                None if name == "lm_head.weight" => errors.push(WeightError::Head { also: self.also(name) }),
                None => {
                    // Comparing every missing name with every stray one is quadratic; a few suffice to see the pattern.
                    let few = errors.len() < 16;
                    let nearest = suggest::nearest_text(name, unused.iter().copied().take(if few { 512 } else { 0 }));
                    errors.push(WeightError::Missing { name: name.clone(), also: self.also(name), nearest });
                }
            }
        }
        for name in unused {
            let few = errors.len() < 16;
            let nearest =
                suggest::nearest_text(name, expected.iter().map(|(n, _)| n.as_str()).take(if few { 512 } else { 0 }));
            errors.push(WeightError::Unexpected { name: name.to_owned(), nearest });
        }
        if errors.is_empty() { Ok(Bound { tensors }) } else { Err(errors) }
    }
}

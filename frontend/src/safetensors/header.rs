//! The header of one safetensors file, read more strictly than the library does.
//!
//! It is parsed straight into its final form: no general JSON value is built, so memory is bounded by the header's size.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;

use marquetry_ir::DType;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::StError;
use crate::gguf::quoted;

pub(super) const MAX_HEADER: usize = 100 << 20;
const MAX_TENSORS: usize = 1_000_000;
const MAX_NAME: usize = 1024;
const MAX_DIMS: usize = 8;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name in the file.
    pub name: String,
    /// Sizes, row major.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: DType,
    /// Which shard holds the data, from 0.
    pub shard: usize,
    /// Byte range of the data in that file.
    pub bytes: Range<usize>,
}

/// A refusal on its way through serde, which only carries text.
struct Refusal(Option<StError>);

impl Refusal {
    fn set<E: de::Error>(&mut self, error: StError) -> E {
        self.0 = Some(error);
        E::custom("refused")
    }
}

struct HeaderSeed<'a> {
    refusal: &'a mut Refusal,
    data: usize,
    file_len: usize,
}

/// Offsets are checked against the file later; here they are only integers.
#[derive(Default)]
struct Entry {
    dtype: Option<String>,
    shape: Option<Vec<u64>>,
    offsets: Option<Vec<u64>>,
}

struct EntrySeed<'a> {
    refusal: &'a mut Refusal,
    name: &'a str,
}

struct IntsSeed<'a> {
    refusal: &'a mut Refusal,
    name: &'a str,
}

/// Integers from 0, at most eight of them.
impl<'de> DeserializeSeed<'de> for IntsSeed<'_> {
    type Value = Vec<u64>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Vec<u64>, D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for IntsSeed<'_> {
    type Value = Vec<u64>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of integers")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
        let mut out = Vec::new();
        while let Some(number) = seq.next_element::<serde_json::Number>()? {
            let shape = |what: String| StError::Shape { name: self.name.to_owned(), what };
            match number.as_u64() {
                Some(_) if out.len() == MAX_DIMS => {
                    return Err(self.refusal.set(shape(format!("at most {MAX_DIMS} of them"))));
                }
                Some(n) => out.push(n),
                None => return Err(self.refusal.set(shape(format!("one is {number}")))),
            }
        }
        Ok(out)
    }
}

impl<'de> DeserializeSeed<'de> for EntrySeed<'_> {
    type Value = Entry;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Entry, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntrySeed<'_> {
    type Value = Entry;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tensor description")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let mut entry = Entry::default();
        while let Some(key) = map.next_key::<String>()? {
            let ints = IntsSeed { refusal: &mut *self.refusal, name: self.name };
            match key.as_str() {
                "dtype" if entry.dtype.is_none() => entry.dtype = Some(map.next_value()?),
                "shape" if entry.shape.is_none() => entry.shape = Some(map.next_value_seed(ints)?),
                "data_offsets" if entry.offsets.is_none() => entry.offsets = Some(map.next_value_seed(ints)?),
                _ => {
                    let what =
                        format!("tensor `{}`: unknown or repeated field `{}`", self.name, quoted(key.as_bytes()));
                    return Err(self.refusal.set(StError::Field { what }));
                }
            }
        }
        Ok(entry)
    }
}

fn dtype(name: &str) -> Option<DType> {
    Some(match name {
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        "I64" => DType::I64,
        "I32" => DType::I32,
        "U32" => DType::U32,
        "I16" => DType::I16,
        "I8" => DType::I8,
        "U8" => DType::U8,
        "BOOL" => DType::Bool,
        _ => return None,
    })
}

fn bad_name(name: &str) -> Option<String> {
    let shown = quoted(name.as_bytes());
    match name {
        "" => Some("a tensor has an empty name".to_owned()),
        n if n.len() > MAX_NAME => Some(format!("a tensor name has {} bytes, at most {MAX_NAME}", n.len())),
        n if n.chars().any(char::is_control) => Some(format!("tensor name `{shown}` has control characters")),
        n if n.contains("../") || n.starts_with('/') => Some(format!("tensor name `{shown}` looks like a path")),
        _ => None,
    }
}

impl HeaderSeed<'_> {
    fn tensor(&self, name: String, entry: Entry) -> Result<TensorInfo, StError> {
        let missing = |field: &str| StError::Field { what: format!("tensor `{name}` has no `{field}`") };
        let type_name = entry.dtype.ok_or_else(|| missing("dtype"))?;
        let shape = entry.shape.ok_or_else(|| missing("shape"))?;
        let offsets = entry.offsets.ok_or_else(|| missing("data_offsets"))?;
        let Some(dtype) = dtype(&type_name) else {
            return Err(StError::Dtype { name, dtype: quoted(type_name.as_bytes()) });
        };
        let [begin, end] = offsets[..] else {
            return Err(StError::Shape { name, what: format!("`data_offsets` has {} of them, not 2", offsets.len()) });
        };
        let len = self.file_len - self.data;
        let place = |offset: u64| usize::try_from(offset).ok().filter(|o| *o <= len).map(|o| o + self.data);
        let (Some(start), Some(stop), Some(bytes)) = (place(begin), place(end), end.checked_sub(begin)) else {
            return Err(StError::Offsets { name, begin, end, len });
        };
        let size = u64::try_from(dtype.size()).unwrap_or(u64::MAX);
        if shape.iter().try_fold(size, |n, d| n.checked_mul(*d)) != Some(bytes) {
            return Err(StError::Size { name, shape, dtype: type_name, bytes });
        }
        let sizes: Option<Vec<usize>> = shape.iter().map(|d| usize::try_from(*d).ok()).collect();
        let Some(shape) = sizes else { return Err(StError::Size { name, shape, dtype: type_name, bytes }) };
        Ok(TensorInfo { name, shape, dtype, shard: 0, bytes: start..stop })
    }
}

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = Vec<TensorInfo>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Vec<TensorInfo>, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = Vec<TensorInfo>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensor descriptions")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<TensorInfo>, A::Error> {
        let mut out: Vec<TensorInfo> = Vec::new();
        let mut seen: HashSet<String> = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(self.refusal.set(StError::Duplicate { name: quoted(name.as_bytes()) }));
            }
            if name == "__metadata__" {
                if map.next_value::<HashMap<String, String>>().is_err() {
                    let what = "`__metadata__` must be an object of strings".to_owned();
                    return Err(self.refusal.set(StError::Field { what }));
                }
                continue;
            }
            if let Some(what) = bad_name(&name) {
                return Err(self.refusal.set(StError::Field { what }));
            }
            if out.len() == MAX_TENSORS {
                return Err(self.refusal.set(StError::Count { limit: MAX_TENSORS }));
            }
            let entry = map.next_value_seed(EntrySeed { refusal: &mut *self.refusal, name: &name })?;
            match self.tensor(name, entry) {
                Ok(tensor) => out.push(tensor),
                Err(error) => return Err(self.refusal.set(error)),
            }
        }
        Ok(out)
    }
}

/// Reads and checks the header of a whole file. Tensors come in the order of their data.
pub(super) fn header(file: &[u8]) -> Result<Vec<TensorInfo>, StError> {
    if file.starts_with(b"version https://git-lfs") {
        return Err(StError::LfsPointer);
    }
    let Some((length, rest)) = file.split_first_chunk::<8>() else { return Err(StError::Short { len: file.len() }) };
    let claimed = u64::from_le_bytes(*length);
    let length = usize::try_from(claimed).ok().filter(|n| *n <= MAX_HEADER);
    let Some(text) = length.and_then(|n| rest.get(..n)) else {
        return Err(StError::HeaderLength { claimed, limit: MAX_HEADER, len: file.len() });
    };
    let text = match std::str::from_utf8(text) {
        Ok(text) if text.starts_with('{') => text,
        Ok(_) => return Err(StError::Header { what: "it must start with `{`".to_owned(), at: 0 }),
        Err(e) => return Err(StError::Header { what: "it is not UTF-8".to_owned(), at: e.valid_up_to() }),
    };
    let mut refusal = Refusal(None);
    let data = 8 + text.len();
    let seed = HeaderSeed { refusal: &mut refusal, data, file_len: file.len() };
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed = seed.deserialize(&mut json).and_then(|tensors| json.end().map(|()| tensors));
    let mut tensors = parsed.map_err(|e| {
        let line_start = text.split_inclusive('\n').take(e.line().saturating_sub(1)).map(str::len).sum::<usize>();
        let at = line_start + e.column().saturating_sub(1);
        refusal.0.take().unwrap_or_else(|| StError::Header { what: crate::json::message(&e), at })
    })?;
    tensors.sort_by_key(|t| (t.bytes.start, t.bytes.end));
    let mut at = data;
    for tensor in &tensors {
        if tensor.bytes.start != at {
            let kind =
                if tensor.bytes.start < at { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(StError::Layout { at, what: format!("`{}` {kind}", tensor.name) });
        }
        at = tensor.bytes.end;
    }
    if at != file.len() {
        return Err(StError::Layout { at, what: format!("{} bytes follow the last tensor", file.len() - at) });
    }
    // A second opinion, so that we never accept what other programs refuse.
    match safetensors::SafeTensors::read_metadata(file) {
        Ok(_) => Ok(tensors),
        Err(e) => Err(StError::Library { what: e.to_string() }),
    }
}

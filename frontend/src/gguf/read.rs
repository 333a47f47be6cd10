//! The header of one GGUF file: a bounded cursor, metadata entries, tensor descriptions.
//!
//! Every length is checked against the bytes that are left before anything is reserved, and every sum and product is checked.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use marquetry_ir::{DType, Elem, GgufType};

use super::error::{GgufError, quoted};
use super::value::{Kind, Value};

const MAX_STRING: usize = 16 << 20;
const MAX_NAME: usize = 1024;
const MAX_TENSORS: usize = 1_000_000;
const MAX_DIMS: u32 = 8;
const MAX_NESTING: u32 = 4;
const MAX_ALIGNMENT: usize = 1 << 20;
/// No tensor, nor all of them together, may exceed this many bytes.
const MAX_DATA: u64 = 1 << 48;
const HEADER: &str = "a GGUF header is 24 bytes";

/// Where a metadata value lies.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub kind: Kind,
    /// Element type and length of arrays.
    pub array: Option<(Kind, usize)>,
    pub bytes: Range<usize>,
    /// Offset of the key.
    key_at: usize,
}

impl Slot {
    pub fn value<'a>(&self, file: &'a [u8]) -> Option<Value<'a>> {
        Value::decode(self.kind, self.array, file.get(self.bytes.clone())?)
    }
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name in the file.
    pub name: String,
    /// Sizes, row major: `[out, in]` for a matrix. The last axis is the contiguous one.
    pub shape: Vec<usize>,
    /// Element type.
    pub elem: Elem,
    /// Which part of a split model holds the data, from 0.
    pub part: usize,
    /// Byte range of the data in that part.
    pub bytes: Range<usize>,
}

/// The header of one file, checked.
#[derive(Debug)]
pub(super) struct Header {
    pub meta: BTreeMap<String, Slot>,
    pub tensors: Vec<TensorInfo>,
}

struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.file.len().saturating_sub(self.at)
    }

    fn take(&mut self, n: usize, needs: &'static str) -> Result<&'a [u8], GgufError> {
        let end = self.at.checked_add(n);
        let taken = end.and_then(|end| self.file.get(self.at..end));
        let taken = taken.ok_or(GgufError::Truncated { at: self.file.len(), needs })?;
        self.at += n;
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self, needs: &'static str) -> Result<[u8; N], GgufError> {
        let bytes = self.take(N, needs)?;
        bytes.first_chunk().copied().ok_or(GgufError::Truncated { at: self.file.len(), needs })
    }

    fn u32(&mut self, needs: &'static str) -> Result<u32, GgufError> {
        self.fixed(needs).map(u32::from_le_bytes)
    }

    fn u64(&mut self, needs: &'static str) -> Result<u64, GgufError> {
        self.fixed(needs).map(u64::from_le_bytes)
    }

    /// A length, then that many bytes.
    fn string(&mut self) -> Result<&'a [u8], GgufError> {
        let at = self.at;
        let len = self.u64("a string length is 8 bytes")?;
        let left = self.left();
        match usize::try_from(len) {
            Ok(n) if n <= left && n <= MAX_STRING => self.take(n, "a string"),
            _ => Err(GgufError::StringLength { len, at, left }),
        }
    }
}

/// Names are kept, so they must be short, printable and UTF-8.
fn name(bytes: &[u8]) -> Result<&str, String> {
    if bytes.is_empty() {
        return Err("it is empty".to_owned());
    }
    if bytes.len() > MAX_NAME {
        return Err(format!("it has {} bytes", bytes.len()));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| format!("\"{}\" is not UTF-8", quoted(bytes)))?;
    if text.chars().any(char::is_control) {
        return Err(format!("\"{}\" has control characters", quoted(bytes)));
    }
    Ok(text)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}

/// Checks magic and version; returns the claimed numbers of tensors and metadata entries.
fn preamble(cursor: &mut Cursor<'_>) -> Result<(u64, u64), GgufError> {
    let file = cursor.file;
    if file.is_empty() {
        return Err(GgufError::Empty);
    }
    if let Some(start) = file.get(..4).filter(|start| *start != b"GGUF") {
        let hint = match file {
            f if f.get(8) == Some(&b'{') => ": this looks like safetensors; rename it or pass --format safetensors",
            f if f.starts_with(b"version https://git-lfs") => {
                ": this is a Git-LFS pointer, not the weights; fetch it with `git lfs pull`"
            }
            f if f.starts_with(b"PK") => ": this looks like a zip archive; unpack or convert it first",
            f if f.starts_with(b"<") => ": this looks like a web page; download the file itself",
            _ => "; give a file that ends in .gguf and starts with GGUF",
        };
        return Err(GgufError::Magic { start: hex(start), hint });
    }
    cursor.take(4, HEADER)?;
    let version = cursor.u32(HEADER)?;
    if (1..=3).contains(&version.swap_bytes()) {
        return Err(GgufError::BigEndian);
    }
    if !(2..=3).contains(&version) {
        return Err(GgufError::Version { version });
    }
    Ok((cursor.u64(HEADER)?, cursor.u64(HEADER)?))
}

/// Reads the header of a whole file, which is part `part` of a model.
pub(super) fn header(file: &[u8], part: usize) -> Result<Header, GgufError> {
    let mut cursor = Cursor { file, at: 0 };
    let (tensors, entries) = preamble(&mut cursor)?;
    // A tensor takes at least its name's length, n_dims, type and offset; an entry a key, a type and a value.
    let room = (cursor.left() / 24).min(MAX_TENSORS);
    let n_tensors = usize::try_from(tensors).ok().filter(|n| *n <= room);
    let n_tensors = n_tensors.ok_or(GgufError::TensorCount { claimed: tensors, room })?;
    let room = cursor.left() / 14;
    let n_entries = usize::try_from(entries).ok().filter(|n| *n <= room);
    let n_entries = n_entries.ok_or(GgufError::EntryCount { claimed: entries, room })?;

    let mut meta = BTreeMap::new();
    for _ in 0..n_entries {
        let (key, slot) = entry(&mut cursor)?;
        let second = slot.key_at;
        if let Some(first) = meta.get(&key).map(|s: &Slot| s.key_at) {
            return Err(GgufError::DuplicateKey { key, first, second });
        }
        meta.insert(key, slot);
    }
    let alignment = alignment(&meta, file)?;
    let tensors = tensors_of(&mut cursor, n_tensors, alignment, part)?;
    Ok(Header { meta, tensors })
}

fn entry(cursor: &mut Cursor<'_>) -> Result<(String, Slot), GgufError> {
    let key_at = cursor.at;
    let key = cursor.string()?;
    let key = name(key).map_err(|why| GgufError::Key { at: key_at, why })?.to_owned();
    let at = cursor.at;
    let tag = cursor.u32("a value type is 4 bytes")?;
    let kind = Kind::from_tag(tag).ok_or_else(|| GgufError::ValueType { key: key.clone(), tag, at })?;
    let start = cursor.at;
    match kind {
        Kind::Array => {
            let (kind, len, start) = array(cursor, &key, 1)?;
            Ok((key, Slot { kind: Kind::Array, array: Some((kind, len)), bytes: start..cursor.at, key_at }))
        }
        Kind::String => {
            cursor.string()?;
            Ok((key, Slot { kind, array: None, bytes: start..cursor.at, key_at }))
        }
        _ => {
            cursor.take(kind.min_bytes(), "a metadata value")?;
            Ok((key, Slot { kind, array: None, bytes: start..cursor.at, key_at }))
        }
    }
}

/// Walks over an array; returns its element type, its length and where its elements start.
fn array(cursor: &mut Cursor<'_>, key: &str, depth: u32) -> Result<(Kind, usize, usize), GgufError> {
    let at = cursor.at;
    if depth > MAX_NESTING {
        return Err(GgufError::Nesting { key: key.to_owned(), at });
    }
    let tag = cursor.u32("an array's element type is 4 bytes")?;
    let kind = Kind::from_tag(tag).ok_or_else(|| GgufError::ValueType { key: key.to_owned(), tag, at })?;
    let claimed = cursor.u64("an array's length is 8 bytes")?;
    let left = cursor.left();
    let fits = |n: &usize| n.checked_mul(kind.min_bytes()).is_some_and(|bytes| bytes <= left);
    let len = usize::try_from(claimed).ok().filter(fits);
    let len = len.ok_or_else(|| GgufError::ArrayLength { key: key.to_owned(), len: claimed, at, left })?;
    let start = cursor.at;
    match kind {
        Kind::String => (0..len).try_for_each(|_| cursor.string().map(drop))?,
        Kind::Array => (0..len).try_for_each(|_| array(cursor, key, depth + 1).map(drop))?,
        _ => drop(cursor.take(len * kind.min_bytes(), "an array")?),
    }
    Ok((kind, len, start))
}

fn alignment(meta: &BTreeMap<String, Slot>, file: &[u8]) -> Result<usize, GgufError> {
    let Some(slot) = meta.get("general.alignment") else { return Ok(32) };
    let value = slot.value(file);
    let found = value.and_then(Value::as_u64).and_then(|v| usize::try_from(v).ok());
    match found {
        Some(a) if slot.kind == Kind::U32 && a.is_power_of_two() && a <= MAX_ALIGNMENT => Ok(a),
        _ => {
            let value = value.map_or(String::new(), |v| format!(" {v}"));
            Err(GgufError::Alignment { found: format!("{}{value}", slot.kind) })
        }
    }
}

/// A tensor description before its offset is placed.
struct Described {
    name: String,
    shape: Vec<usize>,
    elem: Elem,
    size: u64,
    offset: u64,
}

fn tensors_of(cursor: &mut Cursor<'_>, n: usize, alignment: usize, part: usize) -> Result<Vec<TensorInfo>, GgufError> {
    let mut described = Vec::new();
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut total = 0u64;
    for _ in 0..n {
        let at = cursor.at;
        let tensor = describe(cursor)?;
        if let Some(first) = seen.insert(tensor.name.clone(), at) {
            let why = format!("`{}` appears twice (first at {first})", tensor.name);
            return Err(GgufError::TensorName { at, why });
        }
        let sum = total.checked_add(tensor.size).filter(|sum| *sum <= MAX_DATA);
        total = sum.ok_or_else(|| GgufError::Size {
            name: tensor.name.clone(),
            what: format!("with the tensors before it there are {total} + {} bytes", tensor.size),
        })?;
        described.push(tensor);
    }
    let file_len = cursor.file.len();
    let data = cursor.at.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    let place = |t: Described| place(t, data, alignment, file_len, part);
    let tensors = described.into_iter().map(place).collect::<Result<Vec<_>, _>>()?;
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|t| t.bytes.start);
    for (first, second) in order.iter().zip(order.iter().skip(1)) {
        if second.bytes.start < first.bytes.end {
            let (first, at) = (first.name.clone(), second.bytes.start);
            return Err(GgufError::Overlap { first, second: second.name.clone(), at });
        }
    }
    Ok(tensors)
}

fn describe(cursor: &mut Cursor<'_>) -> Result<Described, GgufError> {
    const NEEDS: &str = "a tensor description needs a name, sizes, a type and an offset";
    let at = cursor.at;
    let name = name(cursor.string()?).map_err(|why| GgufError::TensorName { at, why })?.to_owned();
    let at = cursor.at;
    let n_dims = cursor.u32(NEEDS)?;
    if n_dims > MAX_DIMS {
        return Err(GgufError::Dimensions { name, dims: n_dims, at });
    }
    let dims = (0..n_dims).map(|_| cursor.u64(NEEDS)).collect::<Result<Vec<_>, _>>()?;
    let at = cursor.at;
    let elem = elem_of(cursor.u32(NEEDS)?).map_err(|what| GgufError::TensorType { name: name.clone(), what, at })?;
    let offset = cursor.u64(NEEDS)?;
    if dims.contains(&0) {
        return Err(GgufError::EmptyTensor { name, dims });
    }
    let (block_len, block_bytes, format) = match elem {
        Elem::Gguf(t) => (t.block_len(), t.block_bytes(), t.name()),
        Elem::Scalar(d) => (1, d.size(), d.name()),
        Elem::Packed(_) | Elem::Rows8(_) | Elem::Act8 => (1, 0, "a packed type"),
    };
    let first = dims.first().copied().unwrap_or(1);
    let (len, bytes) = (to_u64(block_len), to_u64(block_bytes));
    let size = dims.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).and_then(|n| (n / len).checked_mul(bytes));
    let size = size.filter(|size| *size <= MAX_DATA);
    let size =
        size.ok_or_else(|| GgufError::Size { name: name.clone(), what: format!("dimensions {dims:?} of {format}") })?;
    if !first.is_multiple_of(len) {
        return Err(GgufError::Block { name, len: first, block: block_len, format });
    }
    let shape = dims.iter().rev().map(|d| usize::try_from(*d)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| GgufError::Size { name: name.clone(), what: format!("dimensions {dims:?}") })?;
    Ok(Described { name, shape, elem, size, offset })
}

fn place(t: Described, data: usize, alignment: usize, file_len: usize, part: usize) -> Result<TensorInfo, GgufError> {
    if !t.offset.is_multiple_of(to_u64(alignment)) {
        return Err(GgufError::Unaligned { name: t.name, offset: t.offset, alignment });
    }
    let start = to_u64(data).checked_add(t.offset);
    let end = start.and_then(|start| start.checked_add(t.size)).unwrap_or(u64::MAX);
    match (start.map(usize::try_from), usize::try_from(end)) {
        (Some(Ok(start)), Ok(end)) if end <= file_len => {
            Ok(TensorInfo { name: t.name, shape: t.shape, elem: t.elem, part, bytes: start..end })
        }
        _ => Err(GgufError::DataEnd { name: t.name, end, len: file_len }),
    }
}

fn to_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn elem_of(tag: u32) -> Result<Elem, String> {
    let scalar = match tag {
        0 => Some(DType::F32),
        1 => Some(DType::F16),
        24 => Some(DType::I8),
        25 => Some(DType::I16),
        26 => Some(DType::I32),
        27 => Some(DType::I64),
        30 => Some(DType::BF16),
        _ => None,
    };
    let block = GgufType::ALL.into_iter().find(|t| t.tag() == tag);
    if let Some(elem) = scalar.map(Elem::Scalar).or(block.map(Elem::Gguf)) {
        return Ok(elem);
    }
    let name = match tag {
        9 => "q8_1",
        15 => "q8_k",
        16 => "iq2_xxs",
        17 => "iq2_xs",
        18 => "iq3_xxs",
        19 => "iq1_s",
        20 => "iq4_nl",
        21 => "iq3_s",
        22 => "iq2_s",
        23 => "iq4_xs",
        28 => "f64",
        29 => "iq1_m",
        34 => "tq1_0",
        35 => "tq2_0",
        39 => "mxfp4",
        _ => return Err(format!("unknown tensor type {tag}")),
    };
    Err(format!("tensor type {name} ({tag}) is not supported"))
}

//! Metadata values of a GGUF file, decoded on demand from the file's bytes.

use std::fmt;

/// Type of a metadata value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it all")]
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    /// The type with a numeric tag.
    pub(crate) fn from_tag(tag: u32) -> Option<Kind> {
        const ALL: [Kind; 13] = [
            Kind::U8,
            Kind::I8,
            Kind::U16,
            Kind::I16,
            Kind::U32,
            Kind::I32,
            Kind::F32,
            Kind::Bool,
            Kind::String,
            Kind::Array,
            Kind::U64,
            Kind::I64,
            Kind::F64,
        ];
        ALL.get(usize::try_from(tag).ok()?).copied()
    }

    /// Bytes of a value, or the least number for strings (a length) and arrays (a type and a length).
    pub(crate) fn min_bytes(self) -> usize {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::U64 | Kind::I64 | Kind::F64 | Kind::String => 8,
            Kind::Array => 12,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::U8 => "uint8",
            Kind::I8 => "int8",
            Kind::U16 => "uint16",
            Kind::I16 => "int16",
            Kind::U32 => "uint32",
            Kind::I32 => "int32",
            Kind::F32 => "float32",
            Kind::Bool => "bool",
            Kind::String => "string",
            Kind::Array => "array",
            Kind::U64 => "uint64",
            Kind::I64 => "int64",
            Kind::F64 => "float64",
        })
    }
}

/// A metadata value that borrows from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// `float32`, widened, or `float64`.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text, not yet checked for UTF-8.
    String(&'a [u8]),
    /// A list.
    Array(Array<'a>),
}

/// A metadata list that borrows from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    /// Element type.
    pub kind: Kind,
    /// Number of elements.
    pub len: usize,
    pub(crate) bytes: &'a [u8],
}

/// The value of type `kind` at the front of `bytes`, and the bytes after it. `None` if there are too few bytes, or for arrays.
fn split_value(kind: Kind, bytes: &[u8]) -> Option<(Value<'_>, &[u8])> {
    fn fixed<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
        bytes.split_first_chunk::<N>().map(|(head, rest)| (*head, rest))
    }
    Some(match kind {
        Kind::U8 => fixed(bytes).map(|(b, r)| (Value::Unsigned(u8::from_le_bytes(b).into()), r))?,
        Kind::U16 => fixed(bytes).map(|(b, r)| (Value::Unsigned(u16::from_le_bytes(b).into()), r))?,
        Kind::U32 => fixed(bytes).map(|(b, r)| (Value::Unsigned(u32::from_le_bytes(b).into()), r))?,
        Kind::U64 => fixed(bytes).map(|(b, r)| (Value::Unsigned(u64::from_le_bytes(b)), r))?,
        Kind::I8 => fixed(bytes).map(|(b, r)| (Value::Signed(i8::from_le_bytes(b).into()), r))?,
        Kind::I16 => fixed(bytes).map(|(b, r)| (Value::Signed(i16::from_le_bytes(b).into()), r))?,
        Kind::I32 => fixed(bytes).map(|(b, r)| (Value::Signed(i32::from_le_bytes(b).into()), r))?,
        Kind::I64 => fixed(bytes).map(|(b, r)| (Value::Signed(i64::from_le_bytes(b)), r))?,
        Kind::F32 => fixed(bytes).map(|(b, r)| (Value::Float(f32::from_le_bytes(b).into()), r))?,
        Kind::F64 => fixed(bytes).map(|(b, r)| (Value::Float(f64::from_le_bytes(b)), r))?,
        Kind::Bool => fixed::<1>(bytes).map(|(b, r)| (Value::Bool(b != [0]), r))?,
        Kind::String => {
            let (len, rest) = fixed(bytes)?;
            let len = usize::try_from(u64::from_le_bytes(len)).ok()?;
            rest.split_at_checked(len).map(|(text, rest)| (Value::String(text), rest))?
        }
        Kind::Array => return None,
    })
}

impl<'a> Value<'a> {
    /// Decodes a value whose bytes were checked by the reader.
    pub(crate) fn decode(kind: Kind, array: Option<(Kind, usize)>, bytes: &'a [u8]) -> Option<Value<'a>> {
        match array {
            Some((kind, len)) => Some(Value::Array(Array { kind, len, bytes })),
            None => split_value(kind, bytes).map(|(value, _)| value),
        }
    }

    /// The value as a non-negative integer of any width.
    pub fn as_u64(self) -> Option<u64> {
        match self {
            Value::Unsigned(v) => Some(v),
            Value::Signed(v) => u64::try_from(v).ok(),
            _ => None,
        }
    }

    /// The value as a float; integers are not converted.
    pub fn as_f64(self) -> Option<f64> {
        match self {
            Value::Float(v) => Some(v),
            _ => None,
        }
    }

    /// The value as text, if it is UTF-8.
    pub fn as_str(self) -> Option<&'a str> {
        match self {
            Value::String(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The value as a list.
    pub fn as_array(self) -> Option<Array<'a>> {
        match self {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }
}

impl fmt::Display for Value<'_> {
    /// One line: text is quoted and cut at 80 characters, lists show their type and length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Unsigned(v) => write!(f, "{v}"),
            Value::Signed(v) => write!(f, "{v}"),
            Value::Float(v) => write!(f, "{v:?}"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::String(v) => write!(f, "\"{}\"", super::error::quoted(v)),
            Value::Array(a) => write!(f, "{}[{}]", a.kind, a.len),
        }
    }
}

impl<'a> Array<'a> {
    /// The elements in order. Lists of lists yield nothing.
    pub fn iter(self) -> impl Iterator<Item = Value<'a>> {
        let mut rest = self.bytes;
        (0..self.len).map_while(move |_| {
            let (value, after) = split_value(self.kind, rest)?;
            rest = after;
            Some(value)
        })
    }
}

//! Reader of GGUF files, versions 2 and 3, that trusts nothing in them.
//!
//! Files are mapped, not read: opening a model costs its header. Nothing in a file becomes an allocation size, a path or an
//! index before it is checked; a file that passes [`Gguf::open`] has tensors that lie inside it, aligned and apart.

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
pub(crate) mod formats;
mod read;
mod split;
mod value;

use std::collections::HashMap;
use std::path::Path;

pub use error::GgufError;
pub(crate) use error::quoted;
pub use read::TensorInfo;
pub use value::{Array, Kind, Value};

use crate::bytes::Bytes;
use read::Header;

/// An open GGUF model: one file, or all parts of a split one.
#[derive(Debug)]
pub struct Gguf {
    parts: Vec<Bytes>,
    header: Header,
    index: HashMap<String, usize>,
}

impl Gguf {
    /// Opens and checks a file. If it is a part of a split model (`NAME-00001-of-00003.gguf`), all parts are opened.
    ///
    /// # Errors
    /// With the file's path, if it cannot be read, is malformed, or a part is missing.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf, GgufError> {
        let path = path.as_ref();
        let first = read_part(path, 0)?;
        split::open(path, first)
    }

    /// Checks a whole file that is in memory.
    ///
    /// # Errors
    /// If it is malformed, or a part of a split model.
    pub fn parse(bytes: impl Into<Vec<u8>>) -> Result<Gguf, GgufError> {
        let bytes = Bytes::Owned(bytes.into());
        let header = read::header(&bytes, 0)?;
        let gguf = Gguf::assemble(vec![bytes], header);
        match gguf.unsigned("split.count")? {
            Some(count) if count > 1 => {
                let count = u32::try_from(count).unwrap_or(u32::MAX);
                Err(GgufError::PartMissing { part: 2, count, beside: 1, name: "another file".to_owned() })
            }
            _ => Ok(gguf),
        }
    }

    fn assemble(parts: Vec<Bytes>, header: Header) -> Gguf {
        let index = header.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Gguf { parts, header, index }
    }

    /// Metadata keys in alphabetical order. A split model has those of its first part.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.header.meta.keys().map(String::as_str)
    }

    /// The metadata value of a key.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        self.header.meta.get(key)?.value(self.parts.first()?)
    }

    /// How a value is described where another type was expected.
    pub(crate) fn found(&self, key: &str) -> String {
        match (self.header.meta.get(key), self.value(key)) {
            (Some(slot), Some(Value::Array(array))) => format!("{} of {}", slot.kind, array.kind),
            (Some(slot), Some(value)) => format!("{} {value}", slot.kind),
            _ => "absent".to_owned(),
        }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        get: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match get(value) {
            Some(value) => Ok(Some(value)),
            None => Err(GgufError::Type { key: key.to_owned(), expected, found: self.found(key) }),
        }
    }

    /// A non-negative integer of any width; `None` if the key is absent.
    ///
    /// # Errors
    /// If the value has another type or is negative.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "a non-negative integer", Value::as_u64)
    }

    /// A float of any width; `None` if the key is absent.
    ///
    /// # Errors
    /// If the value has another type.
    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.typed(key, "a float", Value::as_f64)
    }

    /// A truth value; `None` if the key is absent.
    ///
    /// # Errors
    /// If the value has another type.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a bool", |v| match v {
            Value::Bool(b) => Some(b),
            _ => None,
        })
    }

    /// Text; `None` if the key is absent.
    ///
    /// # Errors
    /// If the value has another type or is not UTF-8.
    pub fn str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        if let Some(Value::String(bytes)) = self.value(key)
            && std::str::from_utf8(bytes).is_err()
        {
            let at = self.header.meta.get(key).map_or(0, |slot| slot.bytes.start);
            return Err(GgufError::Text { key: key.to_owned(), at });
        }
        self.typed(key, "a string", Value::as_str)
    }

    /// A list; `None` if the key is absent.
    ///
    /// # Errors
    /// If the value has another type.
    pub fn array(&self, key: &str) -> Result<Option<Array<'_>>, GgufError> {
        self.typed(key, "an array", Value::as_array)
    }

    /// The files.
    pub(crate) fn files(&self) -> &[Bytes] {
        &self.parts
    }

    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.header.tensors
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensors.get(*self.index.get(name)?)
    }

    /// The bytes of a tensor of this file. Empty for a description that does not stem from it.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        self.parts.get(tensor.part).and_then(|part| part.get(tensor.bytes.clone())).unwrap_or(&[])
    }
}

/// Maps a file and reads its header; errors name the file.
fn read_part(path: &Path, part: usize) -> Result<(Bytes, Header), GgufError> {
    let in_file = |source: GgufError| GgufError::InFile { path: path.to_owned(), source: Box::new(source) };
    let bytes = Bytes::open(path).map_err(|e| in_file(e.into()))?;
    let header = read::header(&bytes, part).map_err(in_file)?;
    Ok((bytes, header))
}

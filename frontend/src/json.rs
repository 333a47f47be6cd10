//! JSON from files: limited in size and depth, without repeated keys.

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

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Objects and lists may be nested this deep.
pub(crate) const MAX_DEPTH: usize = 64;

/// Why a JSON text was refused.
#[derive(Debug, PartialEq)]
pub(crate) enum JsonError {
    Empty,
    TooLarge { len: usize, limit: usize },
    ByteOrderMark,
    TooDeep { at: usize },
    Duplicate { line: usize, column: usize, key: String },
    Syntax { line: usize, column: usize, what: String },
}

const TWICE: &str = "a key appears twice: ";

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JsonError::Empty => f.write_str("it is empty"),
            JsonError::TooLarge { len, limit } => write!(f, "it has {len} bytes, the limit is {limit}"),
            JsonError::ByteOrderMark => {
                f.write_str("it starts with a byte order mark (1:1); save it as UTF-8 without one")
            }
            JsonError::TooDeep { at } => write!(f, "nested deeper than {MAX_DEPTH} at byte {at}"),
            JsonError::Duplicate { line, column, key } => write!(f, "{line}:{column}: key `{key}` appears twice"),
            JsonError::Syntax { line, column, what } => write!(f, "{line}:{column}: {what}"),
        }
    }
}

/// A value in which no object has a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Strict, D::Error> {
        d.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(Strict(v)) = seq.next_element()? {
            out.push(v);
        }
        Ok(Value::Array(out))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if out.contains_key(&key) {
                let key: String = key.chars().take(80).flat_map(char::escape_debug).collect();
                return Err(de::Error::custom(format!("{TWICE}{key}")));
            }
            let Strict(v) = map.next_value()?;
            out.insert(key, v);
        }
        Ok(Value::Object(out))
    }
}

/// Where nesting passes the limit, if it does. Brackets in strings do not count.
fn too_deep(text: &[u8]) -> Option<usize> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for (at, &byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Some(at);
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// The message of a serde_json error without its position.
pub(crate) fn message(e: &serde_json::Error) -> String {
    let what = e.to_string();
    what.rsplit_once(" at line ").map_or(what.as_str(), |(what, _)| what).to_owned()
}

/// Parses a text of at most `limit` bytes.
pub(crate) fn parse(text: &[u8], limit: usize) -> Result<Value, JsonError> {
    if text.len() > limit {
        return Err(JsonError::TooLarge { len: text.len(), limit });
    }
    if text.starts_with(b"\xEF\xBB\xBF") {
        return Err(JsonError::ByteOrderMark);
    }
    if text.iter().all(u8::is_ascii_whitespace) {
        return Err(JsonError::Empty);
    }
    if let Some(at) = too_deep(text) {
        return Err(JsonError::TooDeep { at });
    }
    match serde_json::from_slice::<Strict>(text) {
        Ok(Strict(value)) => Ok(value),
        Err(e) => {
            let (line, column, what) = (e.line(), e.column(), message(&e));
            Err(match what.strip_prefix(TWICE) {
                Some(key) => JsonError::Duplicate { line, column, key: key.to_owned() },
                None => JsonError::Syntax { line, column, what },
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_strict() {
        assert_eq!(parse(br#"{"a":[1,2.5,"x",null,true]}"#, 99).unwrap()["a"][1], 2.5);
        assert_eq!(parse(b"{}", 1), Err(JsonError::TooLarge { len: 2, limit: 1 }));
        assert_eq!(parse(b" \n", 9), Err(JsonError::Empty));
        assert_eq!(parse(b"\xEF\xBB\xBF{}", 9), Err(JsonError::ByteOrderMark));
        assert_eq!(parse("[".repeat(65).as_bytes(), 99), Err(JsonError::TooDeep { at: 64 }));
        assert_eq!(parse(br#"{"a":1,"a":2}"#, 99).unwrap_err().to_string(), "1:10: key `a` appears twice");
        assert!(parse(br#"{"a":"[[[[\"[[[["}"#, 99).is_ok());
        assert!(parse(b"{} x", 99).is_err());
    }
}

//! `tokenizer.json`, through the `tokenizers` library, behind our own check.
//!
//! The library panics on some malformed files, and on one kind it even builds invalid strings. So the file is parsed and checked
//! here first, and what the library does runs under `catch_unwind`.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fancy_regex::RegexBuilder;
use serde_json::{Map, Value};
use tokenizers::Tokenizer as Library;

use super::TokenizerError as E;
use crate::gguf::quoted;
use crate::json::{self, JsonError};
use crate::suggest;

const MAX_FILE: usize = 128 << 20;
const MAX_ID: u64 = 1 << 24;
const MAX_PATTERN: usize = 16 << 10;

/// A loaded `tokenizer.json`.
pub(super) struct JsonTokenizer {
    /// Finds special tokens in texts.
    parsing: Library,
    /// Takes them for plain text.
    plain: Library,
}

impl std::fmt::Debug for JsonTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JsonTokenizer({} tokens)", self.vocab_size())
    }
}

impl JsonTokenizer {
    pub fn parse(text: &[u8]) -> Result<JsonTokenizer, E> {
        let value = json::parse(text, MAX_FILE).map_err(|e| match e {
            JsonError::TooDeep { .. } => E::Depth { what: e.to_string() },
            JsonError::Duplicate { key, .. } => E::Ids { what: format!("`{key}` appears twice") },
            e => E::Json { what: e.to_string() },
        })?;
        check(&value)?;
        drop(value);
        let load = || -> Result<JsonTokenizer, tokenizers::Error> {
            let mut parsing = Library::from_bytes(text)?;
            parsing.with_truncation(None)?;
            parsing.with_padding(None);
            let mut plain = parsing.clone();
            plain.set_encode_special_tokens(true);
            Ok(JsonTokenizer { parsing, plain })
        };
        match catch_unwind(AssertUnwindSafe(load)) {
            Ok(Ok(tokenizer)) => Ok(tokenizer),
            Ok(Err(e)) => Err(E::Library { what: quoted(e.to_string().as_bytes()) }),
            Err(_) => Err(E::Library { what: "it panicked".to_owned() }),
        }
    }

    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        let library = if parse_special { &self.parsing } else { &self.plain };
        let encode = || library.encode_fast(text, add_special).map(|e| e.get_ids().to_vec());
        catch_unwind(AssertUnwindSafe(encode)).ok().and_then(Result::ok).unwrap_or_default()
    }

    pub fn decode(&self, ids: &[u32], control: bool) -> String {
        let decode = || self.parsing.decode(ids, !control);
        catch_unwind(AssertUnwindSafe(decode)).ok().and_then(Result::ok).unwrap_or_default()
    }

    pub fn vocab_size(&self) -> usize {
        let added = self.parsing.get_added_tokens_decoder().keys().copied().max();
        let added = added.and_then(|id| usize::try_from(id).ok()).map_or(0, |id| id + 1);
        self.parsing.get_vocab_size(true).max(added)
    }

    pub fn id(&self, text: &str) -> Option<u32> {
        self.parsing.token_to_id(text)
    }

    pub fn text(&self, id: u32) -> Option<String> {
        self.parsing.id_to_token(id)
    }
}

/// Refuses what the library would choke on.
fn check(root: &Value) -> Result<(), E> {
    let model = root.get("model").and_then(Value::as_object);
    let model = model.ok_or_else(|| E::Json { what: "`model` must be an object".to_owned() })?;
    const KNOWN: [&str; 4] = ["BPE", "Unigram", "WordLevel", "WordPiece"];
    let name = match model.get("type") {
        // Old files leave the type of BPE models out.
        None if model.contains_key("merges") => "BPE",
        other => other.and_then(Value::as_str).unwrap_or("(none)"),
    };
    if !KNOWN.contains(&name) {
        return Err(E::Model { name: quoted(name.as_bytes()), nearest: suggest::nearest_text(name, KNOWN) });
    }
    let mut ids = Ids::default();
    let empty = Map::new();
    let vocab = model.get("vocab");
    match (name, vocab) {
        ("Unigram", Some(Value::Array(pieces))) => {
            for (id, piece) in pieces.iter().enumerate() {
                let text = piece.get(0).and_then(Value::as_str).filter(|_| piece.get(1).is_some_and(Value::is_number));
                let text =
                    text.ok_or_else(|| E::Ids { what: format!("vocabulary entry {id} is not [text, score]") })?;
                ids.by_text.insert(text, u64::try_from(id).unwrap_or(u64::MAX));
            }
            let unk = model.get("unk_id").filter(|v| !v.is_null());
            if unk.is_some_and(|v| !v.as_u64().is_some_and(|id| usize::try_from(id).is_ok_and(|id| id < pieces.len())))
            {
                return Err(E::Ids { what: "`unk_id` is not in the vocabulary".to_owned() });
            }
        }
        ("Unigram", _) => return Err(E::Ids { what: "`vocab` must be a list".to_owned() }),
        (_, Some(Value::Object(vocab))) => vocab.iter().try_for_each(|(text, id)| ids.add(text, id))?,
        (_, _) => return Err(E::Ids { what: "`vocab` must be an object".to_owned() }),
    }
    if name == "BPE" {
        let vocab = vocab.and_then(Value::as_object).unwrap_or(&empty);
        let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or_default();
        let merges = model.get("merges").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        merges.iter().enumerate().try_for_each(|(index, merge)| check_merge(index, merge, prefix, vocab))?;
    }
    let added = root.get("added_tokens").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for (index, token) in added.iter().enumerate() {
        ids.add_special(index, token)?;
    }
    ids.check_gaps()?;
    ["normalizer", "pre_tokenizer", "decoder", "post_processor"]
        .iter()
        .filter_map(|part| root.get(*part))
        .try_for_each(check_patterns)
}

/// Ids seen so far.
#[derive(Default)]
struct Ids<'a> {
    by_text: HashMap<&'a str, u64>,
    by_id: HashMap<u64, &'a str>,
}

impl<'a> Ids<'a> {
    fn number(text: &str, id: &Value) -> Result<u64, E> {
        let number = id.as_u64().filter(|id| *id < MAX_ID);
        number.ok_or_else(|| E::Ids {
            what: format!("`{}` has id {}", quoted(text.as_bytes()), quoted(id.to_string().as_bytes())),
        })
    }

    fn add(&mut self, text: &'a str, id: &Value) -> Result<(), E> {
        let id = Self::number(text, id)?;
        self.by_text.insert(text, id);
        match self.by_id.insert(id, text) {
            Some(other) if other != text => {
                let (a, b) = (quoted(other.as_bytes()), quoted(text.as_bytes()));
                Err(E::Ids { what: format!("`{a}` and `{b}` both have id {id}") })
            }
            _ => Ok(()),
        }
    }

    fn add_special(&mut self, index: usize, token: &'a Value) -> Result<(), E> {
        let text = token.get("content").and_then(Value::as_str).filter(|t| !t.is_empty());
        let text = text.ok_or_else(|| E::Added { index, what: "its content is empty".to_owned() })?;
        let id = token.get("id").unwrap_or(&Value::Null);
        let number = Self::number(text, id)?;
        match self.by_text.get(text) {
            Some(other) if *other != number => {
                let what = format!("`{}` has id {number}, in the vocabulary it has {other}", quoted(text.as_bytes()));
                Err(E::Added { index, what })
            }
            Some(_) => Ok(()),
            None => self.add(text, id),
        }
    }

    fn check_gaps(&self) -> Result<(), E> {
        let count = u64::try_from(self.by_text.len()).unwrap_or(u64::MAX);
        match self.by_id.keys().copied().max() {
            Some(max) if max > 2 * count + 4096 => {
                Err(E::Ids { what: format!("the largest is {max}, there are only {count} tokens") })
            }
            _ => Ok(()),
        }
    }
}

fn check_merge(index: usize, merge: &Value, prefix: &str, vocab: &Map<String, Value>) -> Result<(), E> {
    let shown = |l: &str, r: &str| quoted(format!("{l} {r}").as_bytes());
    let refuse = |merge: String, why: String| Err(E::Merge { index, merge, why });
    let (left, right) = match merge {
        Value::String(text) => match text.split_once(' ') {
            Some((l, r)) if !r.contains(' ') => (l, r),
            _ => return refuse(quoted(text.as_bytes()), "is not two pieces with a space between".to_owned()),
        },
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(l), Value::String(r)] => (l.as_str(), r.as_str()),
            _ => return refuse(quoted(merge.to_string().as_bytes()), "is not a pair of strings".to_owned()),
        },
        other => return refuse(quoted(other.to_string().as_bytes()), "is not a pair of strings".to_owned()),
    };
    let Some(rest) = right.get(prefix.len()..) else {
        return Err(E::Prefix { index, merge: shown(left, right), prefix: quoted(prefix.as_bytes()) });
    };
    let whole = format!("{left}{rest}");
    for (what, text) in [("has", left), ("has", right), ("makes", whole.as_str())] {
        if !vocab.contains_key(text) {
            let why = format!("{what} `{}`, not in vocabulary", quoted(text.as_bytes()));
            return refuse(shown(left, right), why);
        }
    }
    Ok(())
}

/// Compiles every pattern of a part and tries it on texts that make bad patterns slow.
fn check_patterns(part: &Value) -> Result<(), E> {
    match part {
        Value::Array(items) => items.iter().try_for_each(check_patterns),
        Value::Object(items) => items.iter().try_for_each(|(key, value)| match (key.as_str(), value) {
            ("Regex", Value::String(pattern)) => check_pattern(pattern),
            _ => check_patterns(value),
        }),
        _ => Ok(()),
    }
}

fn check_pattern(pattern: &str) -> Result<(), E> {
    let refuse = |what: String| E::Pattern { pattern: quoted(pattern.as_bytes()), what };
    if pattern.len() > MAX_PATTERN {
        return Err(refuse(format!("it has {} bytes, at most {MAX_PATTERN}", pattern.len())));
    }
    let regex = RegexBuilder::new(pattern).backtrack_limit(200_000).build().map_err(|e| refuse(e.to_string()))?;
    for probe in ["a", "aA", " ", "0", "\n", "-", "\u{301}", "\u{4e2d}"] {
        let text = probe.repeat(64) + "!\u{1F600}";
        if let Some(e) = regex.find_iter(&text).find_map(Result::err) {
            return Err(refuse(format!("too slow on {:?} repeated: {e}", probe)));
        }
    }
    Ok(())
}

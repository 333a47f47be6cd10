//! Tokenizers: text to token ids and back.
//!
//! [`Tokenizer::open`] takes a GGUF file with its vocabulary, a `tokenizer.json`, or a directory with either. GGUF vocabularies are
//! read by our own code and give the ids of llama.cpp; `tokenizer.json` goes through the `tokenizers` library.
//!
//! Text of users must be encoded with `parse_special` off: then nothing in it can become a control token.

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
mod json;
mod merge;
mod model;
mod pre;
mod stream;
mod vocab;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

pub use error::TokenizerError;
pub use stream::DecodeStream;

use crate::bytes::Bytes;
use crate::gguf::Gguf;
use json::JsonTokenizer;
use model::GgufTokenizer;

const MAX_SETTINGS: usize = 16 << 20;

#[derive(Debug)]
enum Kind {
    Gguf(Box<GgufTokenizer>),
    Json(Box<JsonTokenizer>),
}

/// A tokenizer of either kind.
#[derive(Debug)]
pub struct Tokenizer {
    kind: Kind,
    bos: Option<u32>,
    eos: Option<u32>,
    ends: BTreeSet<u32>,
    chat_template: Option<String>,
}

impl Tokenizer {
    /// Opens a `.gguf` file, a `tokenizer.json`, or a directory with one of them.
    ///
    /// # Errors
    /// If there is no tokenizer, or it is malformed.
    pub fn open(path: impl AsRef<Path>) -> Result<Tokenizer, TokenizerError> {
        let path = path.as_ref();
        let is_gguf = |p: &Path| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        if is_gguf(path) && !path.is_dir() {
            return Tokenizer::from_gguf(&Gguf::open(path)?);
        }
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        if !file.is_file() {
            let mut files: Vec<_> = std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path()).collect();
            files.retain(|p| is_gguf(p));
            files.sort();
            return match files.first() {
                Some(first) => Tokenizer::from_gguf(&Gguf::open(first)?),
                None => Err(TokenizerError::Absent { looked: format!("{}, *.gguf beside it", file.display()) }),
            };
        }
        let in_file = |source| TokenizerError::InFile { path: file.clone(), source: Box::new(source) };
        let bytes = Bytes::open(&file).map_err(|e| in_file(TokenizerError::Json { what: e.to_string() }))?;
        let mut out = Tokenizer::from_json(&bytes).map_err(in_file)?;
        if let Some(dir) = file.parent() {
            out.read_settings(dir);
        }
        Ok(out)
    }

    /// The tokenizer of an open GGUF file.
    ///
    /// # Errors
    /// If its vocabulary is missing, malformed or of an unknown kind.
    pub fn from_gguf(file: &Gguf) -> Result<Tokenizer, TokenizerError> {
        let tokenizer = GgufTokenizer::read(file)?;
        let vocab = &tokenizer.vocab;
        Ok(Tokenizer {
            bos: vocab.bos,
            eos: vocab.eos,
            ends: vocab.ends.clone(),
            chat_template: file.str("tokenizer.chat_template")?.map(str::to_owned),
            kind: Kind::Gguf(Box::new(tokenizer)),
        })
    }

    /// A tokenizer from the text of a `tokenizer.json`. Which tokens begin and end a text is not said there.
    ///
    /// # Errors
    /// If it is malformed, or the library refuses it.
    pub fn from_json(text: &[u8]) -> Result<Tokenizer, TokenizerError> {
        let kind = Kind::Json(Box::new(JsonTokenizer::parse(text)?));
        let mut out = Tokenizer { kind, bos: None, eos: None, ends: BTreeSet::new(), chat_template: None };
        let ends = vocab::END_OF_GENERATION.iter().filter_map(|text| out.token_id(text)).collect();
        out.ends = ends;
        Ok(out)
    }

    /// Reads what lies beside a `tokenizer.json`: special tokens, more tokens that end a text, the chat template. Files that are
    /// missing or malformed are passed over; nothing depends on them.
    fn read_settings(&mut self, dir: &Path) {
        let read = |name: &str| Bytes::open(&dir.join(name)).ok();
        let json = |name: &str| crate::json::parse(&read(name)?, MAX_SETTINGS).ok();
        if let Some(settings) = json("tokenizer_config.json") {
            let token = |key: &str| {
                let value = settings.get(key)?;
                self.token_id(value.as_str().or_else(|| value.get("content")?.as_str())?)
            };
            let (bos, eos) = (token("bos_token"), token("eos_token"));
            (self.bos, self.eos) = (bos, eos);
            let template = settings.get("chat_template").and_then(Value::as_str);
            self.chat_template = template.map(str::to_owned);
        }
        for name in ["generation_config.json", "config.json"] {
            let Some(value) = json(name).and_then(|v| v.get("eos_token_id").cloned()) else { continue };
            let ids = match value {
                Value::Array(ids) => ids,
                one => vec![one],
            };
            let size = self.vocab_size();
            let ids = ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok());
            self.ends.extend(ids.filter(|id| usize::try_from(*id).is_ok_and(|id| id < size)));
        }
        self.ends.extend(self.eos);
        if let Some(template) = read("chat_template.jinja") {
            self.chat_template = std::str::from_utf8(&template).ok().map(str::to_owned).or(self.chat_template.take());
        }
    }

    /// Token ids of a text.
    ///
    /// `add_special` adds what the model wants at the start and the end, such as BOS. `parse_special` makes the texts of control
    /// tokens (`<|im_end|>`) those tokens; leave it off for text that is not yours.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        match &self.kind {
            Kind::Gguf(t) => t.encode(text, add_special, parse_special),
            Kind::Json(t) => t.encode(text, add_special, parse_special),
        }
    }

    /// The text of tokens, without control tokens. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_with(ids, false)
    }

    /// The text of tokens, with control tokens as their texts.
    pub fn decode_with_special(&self, ids: &[u32]) -> String {
        self.decode_with(ids, true)
    }

    fn decode_with(&self, ids: &[u32], control: bool) -> String {
        match &self.kind {
            Kind::Gguf(t) => {
                let pieces: Vec<u8> = ids.iter().flat_map(|id| t.piece(*id, control).into_owned()).collect();
                let pieces = if t.space_prefix { pieces.strip_prefix(b" ").unwrap_or(&pieces) } else { &pieces };
                String::from_utf8_lossy(pieces).into_owned()
            }
            Kind::Json(t) => t.decode(ids, control),
        }
    }

    /// A decoder that takes one token at a time.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }

    /// Number of token ids: all are below it.
    pub fn vocab_size(&self) -> usize {
        match &self.kind {
            Kind::Gguf(t) => t.vocab.texts.len(),
            Kind::Json(t) => t.vocab_size(),
        }
    }

    /// The token whose text in the vocabulary is exactly this.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        match &self.kind {
            Kind::Gguf(t) => t.vocab.texts.id(text),
            Kind::Json(t) => t.id(text),
        }
    }

    /// A token's text in the vocabulary, with its marks for spaces and bytes.
    pub fn token_text(&self, id: u32) -> Option<String> {
        match &self.kind {
            Kind::Gguf(t) => t.vocab.text(id).map(str::to_owned),
            Kind::Json(t) => t.text(id),
        }
    }

    /// The token that starts a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// All tokens after which generation stops, such as the ends of texts and of turns.
    pub fn eog(&self) -> &BTreeSet<u32> {
        &self.ends
    }

    /// The chat template that came with the tokenizer.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }
}

//! The vocabulary of a GGUF file, checked, and the search for special tokens in a text.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;

use hashbrown::DefaultHashBuilder;
use hashbrown::hash_table::{Entry, HashTable};

use crate::gguf::{Array, Gguf, GgufError, Kind, Value, quoted};

const MAX_VOCAB: usize = 1 << 22;

/// What a token is, by `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    /// Steers the model; found in a text only if the caller allows it.
    Control,
    /// A text of its own that is always found first.
    User,
    Byte(u8),
}

/// Texts that end a turn, a text or a file whenever they are tokens of their own, as llama.cpp has them.
pub(super) const END_OF_GENERATION: [&str; 24] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<turn|>",
    "</s>",
    "<|fim_pad|>",
    "<fim-pad>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// The texts of tokens, one after the other, with a table that finds them.
#[derive(Debug)]
pub(super) struct Texts {
    all: String,
    /// Where each text ends.
    ends: Vec<usize>,
    /// The last token of each text.
    ids: HashTable<u32>,
    /// Seeded at random, so that no file can make texts collide.
    hasher: DefaultHashBuilder,
}

impl Texts {
    /// `None` if a text is none.
    fn new<'a>(len: usize, texts: impl Iterator<Item = Option<&'a str>>) -> Option<Texts> {
        let hasher = DefaultHashBuilder::default();
        let mut new = Texts { all: String::new(), ends: Vec::with_capacity(len), ids: HashTable::new(), hasher };
        for text in texts {
            new.all.push_str(text?);
            new.ends.push(new.all.len());
        }
        let Texts { all, ends, hasher, .. } = &new;
        let at = |id: &u32| Texts::at(all, ends, *id).unwrap_or_default();
        let mut ids = HashTable::with_capacity(ends.len());
        for id in (0..ends.len()).filter_map(|id| u32::try_from(id).ok()) {
            let text = at(&id);
            let same = ids.entry(hasher.hash_one(text), |other| at(other) == text, |other| hasher.hash_one(at(other)));
            match same {
                Entry::Occupied(mut e) => *e.get_mut() = id,
                Entry::Vacant(e) => drop(e.insert(id)),
            }
        }
        new.ids = ids;
        Some(new)
    }

    fn at<'a>(all: &'a str, ends: &[usize], id: u32) -> Option<&'a str> {
        let id = usize::try_from(id).ok()?;
        let start = if id == 0 { 0 } else { *ends.get(id - 1)? };
        all.get(start..*ends.get(id)?)
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn get(&self, id: u32) -> Option<&str> {
        Texts::at(&self.all, &self.ends, id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|id| self.get(u32::try_from(id).ok()?))
    }

    /// The last token of a text.
    pub fn id(&self, text: &str) -> Option<u32> {
        self.ids.find(self.hasher.hash_one(text), |id| self.get(*id) == Some(text)).copied()
    }
}

/// A checked vocabulary.
#[derive(Debug)]
pub(super) struct Vocab {
    pub texts: Texts,
    pub kinds: Vec<TokenKind>,
    /// Empty if the file has none.
    pub scores: Vec<f32>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    pub ends: BTreeSet<u32>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_space_prefix: Option<bool>,
    specials: Specials,
}

/// `0xZZ` of `<0xZZ>`.
fn byte_token(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let good = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    good.then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

fn list<'a>(file: &'a Gguf, key: &'static str, kind: Kind, tokens: usize) -> Result<Option<Array<'a>>, GgufError> {
    let wrong = || GgufError::VocabType { key, expected: kind, found: file.found(key) };
    match file.value(key) {
        None => Ok(None),
        Some(Value::Array(array)) if array.kind == kind => match array.len {
            len if len == tokens => Ok(Some(array)),
            len => Err(GgufError::VocabLength { key, tokens, len }),
        },
        Some(_) => Err(wrong()),
    }
}

impl Vocab {
    pub fn read(file: &Gguf) -> Result<Vocab, GgufError> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        let tokens = file.array(TOKENS)?.ok_or_else(|| GgufError::Missing { key: TOKENS.to_owned() })?;
        if tokens.kind != Kind::String {
            return Err(GgufError::VocabType { key: TOKENS, expected: Kind::String, found: file.found(TOKENS) });
        }
        if tokens.len == 0 || tokens.len > MAX_VOCAB {
            let found = format!("{} of them", tokens.len);
            return Err(GgufError::Type { key: TOKENS.to_owned(), expected: "1 to 4194304 tokens", found });
        }
        let scores = list(file, "tokenizer.ggml.scores", Kind::F32, tokens.len)?;
        let kinds = list(file, "tokenizer.ggml.token_type", Kind::I32, tokens.len)?;
        let texts = Texts::new(tokens.len, tokens.iter().map(|v| v.as_str()));
        let texts = texts.ok_or_else(|| GgufError::Text { key: TOKENS.to_owned(), at: 0 })?;
        let tags: Vec<u64> = match kinds {
            Some(kinds) => kinds.iter().map(|v| v.as_u64().unwrap_or(0)).collect(),
            None => vec![1; texts.len()],
        };
        let mut kinds = Vec::with_capacity(texts.len());
        for (id, (text, tag)) in texts.iter().zip(tags).enumerate() {
            kinds.push(match tag {
                2 => TokenKind::Unknown,
                3 => TokenKind::Control,
                4 => TokenKind::User,
                6 => match byte_token(text) {
                    Some(byte) => TokenKind::Byte(byte),
                    None => return Err(GgufError::ByteToken { text: quoted(text.as_bytes()), id }),
                },
                _ => TokenKind::Normal,
            });
        }
        let scores = match scores {
            Some(scores) => scores.iter().map(float).collect(),
            None => Vec::new(),
        };
        let special = |name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let Some(id) = file.unsigned(&key)? else { return Ok(None) };
            match u32::try_from(id).ok().filter(|id| usize::try_from(*id).is_ok_and(|id| id < texts.len())) {
                Some(id) => Ok(Some(id)),
                None => Err(GgufError::SpecialToken { key, id, len: texts.len() }),
            }
        };
        for other in ["padding", "seperator", "separator", "mask", "cls", "fim_pre", "fim_suf", "fim_mid"] {
            special(other)?;
        }
        let (bos, eos) = (special("bos")?, special("eos")?);
        let mut ends: BTreeSet<u32> = [eos, special("eot")?, special("eom")?].into_iter().flatten().collect();
        for text in END_OF_GENERATION {
            if let Some(id) = texts.id(text) {
                ends.insert(id);
                // Some files mark them as plain text.
                if let Some(kind) = usize::try_from(id).ok().and_then(|id| kinds.get_mut(id)) {
                    *kind = TokenKind::Control;
                }
            }
        }
        let unknown = (0u32..).zip(&kinds).find(|(_, kind)| **kind == TokenKind::Unknown).map(|(id, _)| id);
        let specials = Specials::new(&texts, &kinds);
        Ok(Vocab {
            bos,
            eos,
            unknown: special("unknown")?.or(unknown),
            ends,
            add_bos: file.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: file.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: file.bool("tokenizer.ggml.add_space_prefix")?,
            texts,
            kinds,
            scores,
            specials,
        })
    }

    pub fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id)
    }

    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(usize::try_from(id).ok()?).copied()
    }

    /// Cuts special tokens out of a text: user-defined ones always, control tokens if `control`.
    pub fn fragments<'t>(&self, text: &'t str, control: bool) -> Vec<Fragment<'t>> {
        let mut out = Vec::new();
        if !text.is_empty() {
            out.push(Fragment::Text(text));
        }
        for special in self.specials.candidates(text) {
            let Some((text, kind)) = self.text(special).zip(self.kind(special)) else { continue };
            if kind != TokenKind::User && !control {
                continue;
            }
            if out.iter().any(|f| matches!(f, Fragment::Text(t) if t.contains(text))) {
                let mut cut = Vec::with_capacity(out.len() + 2);
                for fragment in out {
                    fragment.cut(text, special, &mut cut);
                }
                out = cut;
            }
        }
        out
    }
}

fn float(value: Value<'_>) -> f32 {
    #[allow(clippy::cast_possible_truncation, reason = "it was widened from f32")]
    value.as_f64().map_or(0.0, |v| v as f32)
}

/// A part of a text: plain, or a special token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

impl<'t> Fragment<'t> {
    fn cut(self, special: &str, id: u32, out: &mut Vec<Fragment<'t>>) {
        let Fragment::Text(text) = self else { return out.push(self) };
        for (i, piece) in text.split(special).enumerate() {
            if i > 0 {
                out.push(Fragment::Token(id));
            }
            if !piece.is_empty() {
                out.push(Fragment::Text(piece));
            }
        }
    }
}

/// Special tokens, to be looked for from the longest to the shortest, indexed by how they start.
#[derive(Debug)]
struct Specials {
    /// First bytes (four, or all of a shorter text), to places in `order`.
    starts: HashMap<Box<[u8]>, Vec<usize>>,
    order: Vec<u32>,
}

impl Specials {
    fn new(texts: &Texts, kinds: &[TokenKind]) -> Specials {
        let special = |k: &TokenKind| matches!(k, TokenKind::Control | TokenKind::User | TokenKind::Unknown);
        let mut all: Vec<(u32, &str)> = Vec::new();
        for ((id, text), kind) in (0u32..).zip(texts.iter()).zip(kinds) {
            if special(kind) && !text.is_empty() {
                all.push((id, text));
            }
        }
        all.sort_by_key(|(_, text)| std::cmp::Reverse(text.len()));
        let mut starts: HashMap<Box<[u8]>, Vec<usize>> = HashMap::new();
        for (place, (_, text)) in all.iter().enumerate() {
            let bytes = text.as_bytes();
            starts.entry(bytes.get(..4).unwrap_or(bytes).into()).or_default().push(place);
        }
        Specials { starts, order: all.into_iter().map(|(id, _)| id).collect() }
    }

    /// Those that might occur in a text, the longest first.
    fn candidates(&self, text: &str) -> Vec<u32> {
        let mut places: BTreeSet<usize> = BTreeSet::new();
        let bytes = text.as_bytes();
        for at in 0..bytes.len() {
            for n in 1..=4 {
                let Some(start) = bytes.get(at..at + n) else { break };
                if let Some(found) = self.starts.get(start) {
                    places.extend(found);
                }
            }
        }
        places.into_iter().filter_map(|place| self.order.get(place).copied()).collect()
    }
}

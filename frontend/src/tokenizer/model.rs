//! The two kinds of GGUF vocabularies: byte-level BPE (`gpt2`) and SentencePiece BPE by score (`llama`).
//!
//! Ids are those of llama.cpp, with one exception on purpose: control tokens never arise from merging plain text.

use std::borrow::Cow;

use hashbrown::HashMap;

use super::merge::{Symbol, merge};
use super::pre::PreTokenizer;
use super::vocab::{Fragment, TokenKind, Vocab};
use crate::gguf::{Gguf, GgufError, Kind, quoted};
use crate::suggest;

/// The mark that stands for a space in SentencePiece vocabularies.
const SPACE: &str = "\u{2581}";

/// A tokenizer from a GGUF vocabulary.
#[derive(Debug)]
pub(super) struct GgufTokenizer {
    pub vocab: Vocab,
    model: Model,
    pub add_bos: bool,
    pub add_eos: bool,
    /// Is a space put before text at the start and after special tokens?
    pub space_prefix: bool,
}

#[derive(Debug)]
enum Model {
    /// Byte-level BPE.
    Bytes(Box<Bpe>),
    /// SentencePiece: the id of each byte's token.
    Pieces(Box<[Option<u32>; 256]>),
}

#[derive(Debug)]
struct Bpe {
    pre: PreTokenizer,
    /// Pair of piece ids to rank and id of the whole. Ids past the vocabulary are pieces that are no tokens.
    merges: HashMap<(u32, u32), (u32, u32)>,
    /// Piece id of each byte, and its character's token.
    bytes: Box<[u32; 256]>,
}

/// The character that stands for a byte in byte-level vocabularies.
fn byte_char(byte: u8) -> char {
    match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        0..=b' ' => char::from_u32(0x100 + u32::from(byte)).unwrap_or(' '),
        0x7F..=0xA0 => char::from_u32(0x100 + 33 + u32::from(byte - 0x7F)).unwrap_or(' '),
        0xAD => '\u{143}',
    }
}

/// The byte that a character stands for.
fn char_byte(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// Gives each piece of text an id: its token's, or a new one past the vocabulary.
struct Pieces<'a> {
    vocab: &'a Vocab,
    extra: HashMap<String, u32>,
}

impl Pieces<'_> {
    fn id(&mut self, text: &str) -> u32 {
        if let Some(id) = self.vocab.texts.id(text) {
            return id;
        }
        let next = u32::try_from(self.vocab.texts.len() + self.extra.len()).unwrap_or(u32::MAX);
        *self.extra.entry(text.to_owned()).or_insert(next)
    }
}

impl Bpe {
    fn read(file: &Gguf, vocab: &Vocab, pre: PreTokenizer) -> Result<Bpe, GgufError> {
        const MERGES: &str = "tokenizer.ggml.merges";
        let list = file.array(MERGES)?.ok_or_else(|| GgufError::Missing { key: MERGES.to_owned() })?;
        if list.kind != Kind::String {
            return Err(GgufError::VocabType { key: MERGES, expected: Kind::String, found: file.found(MERGES) });
        }
        let mut pieces = Pieces { vocab, extra: HashMap::new() };
        let mut merges = HashMap::with_capacity(list.len);
        for (index, merge) in list.iter().enumerate() {
            let text = merge.as_str().unwrap_or_default();
            // The first character may itself be a space.
            let cut = text.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
            let Some((left, right)) =
                cut.and_then(|at| text.split_at_checked(at)).map(|(l, r)| (l, r.trim_start_matches(' ')))
            else {
                let text = quoted(text.as_bytes());
                return Err(GgufError::Merge { index, text, why: "is not two pieces with a space between" });
            };
            let whole = pieces.id(&format!("{left}{right}"));
            let rank = u32::try_from(index).unwrap_or(u32::MAX);
            merges.entry((pieces.id(left), pieces.id(right))).or_insert((rank, whole));
        }
        let mut bytes = Box::new([0; 256]);
        for (byte, id) in (0..=u8::MAX).zip(bytes.iter_mut()) {
            *id = pieces.id(byte_char(byte).encode_utf8(&mut [0; 4]));
        }
        Ok(Bpe { pre, merges, bytes })
    }

    fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        for word in self.pre.split(text) {
            if self.pre.whole_words {
                let coded: String = word.bytes().map(byte_char).collect();
                if let Some(id) = vocab.texts.id(&coded) {
                    out.push(id);
                    continue;
                }
            }
            let byte_id = |byte: u8| self.bytes.get(usize::from(byte)).copied().unwrap_or(u32::MAX);
            let symbols = word.bytes().enumerate().map(|(i, b)| Symbol { start: i, end: i + 1, id: byte_id(b) });
            let joined = merge(symbols, |a, b| self.merges.get(&(a.id, b.id)).copied());
            // A piece that is no token has no place in the output, as in the reference.
            out.extend(joined.into_iter().map(|s| s.id).filter(|id| vocab.text(*id).is_some()));
        }
    }
}

impl GgufTokenizer {
    pub fn read(file: &Gguf) -> Result<GgufTokenizer, GgufError> {
        const MODEL: &str = "tokenizer.ggml.model";
        let name = file.str(MODEL)?.ok_or_else(|| GgufError::Missing { key: MODEL.to_owned() })?;
        let vocab = Vocab::read(file)?;
        let (model, bos, space) = match name {
            "gpt2" => {
                let pre = PreTokenizer::new(file.str("tokenizer.ggml.pre")?.unwrap_or("default"))?;
                let bos = pre.add_bos;
                (Model::Bytes(Box::new(Bpe::read(file, &vocab, pre)?)), bos, false)
            }
            "llama" => {
                if vocab.scores.is_empty() {
                    return Err(GgufError::Missing { key: "tokenizer.ggml.scores".to_owned() });
                }
                let mut bytes = Box::new([None; 256]);
                for (byte, id) in (0..=u8::MAX).zip(bytes.iter_mut()) {
                    *id = vocab.texts.id(&format!("<0x{byte:02X}>"));
                }
                (Model::Pieces(bytes), true, true)
            }
            _ => {
                let nearest = suggest::nearest_text(name, ["gpt2", "llama"]);
                let name = quoted(name.as_bytes());
                return Err(GgufError::PreTokenizer { what: "tokenizer model", name, nearest });
            }
        };
        Ok(GgufTokenizer {
            add_bos: vocab.add_bos.unwrap_or(bos),
            add_eos: vocab.add_eos.unwrap_or(false),
            space_prefix: vocab.add_space_prefix.unwrap_or(space),
            vocab,
            model,
        })
    }

    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        let mut out = Vec::new();
        if add_special && self.add_bos {
            out.extend(self.vocab.bos);
        }
        let mut after_special = true;
        for fragment in self.vocab.fragments(text, parse_special) {
            match fragment {
                Fragment::Token(id) => out.push(id),
                Fragment::Text(text) => match &self.model {
                    Model::Bytes(bpe) => bpe.encode(&self.vocab, text, &mut out),
                    Model::Pieces(bytes) => {
                        let prefix = if self.space_prefix && after_special { SPACE } else { "" };
                        self.encode_pieces(bytes, &(prefix.to_owned() + &text.replace(' ', SPACE)), &mut out);
                    }
                },
            }
            after_special = matches!(fragment, Fragment::Token(_));
        }
        if add_special && self.add_eos {
            out.extend(self.vocab.eos);
        }
        out
    }

    /// The token of a piece of plain text.
    fn plain(&self, text: &str) -> Option<u32> {
        let id = self.vocab.texts.id(text)?;
        (!matches!(self.vocab.kind(id), Some(TokenKind::Control | TokenKind::Unknown))).then_some(id)
    }

    fn encode_pieces(&self, bytes: &[Option<u32>; 256], text: &str, out: &mut Vec<u32>) {
        let symbols = text.char_indices().map(|(at, c)| Symbol { start: at, end: at + c.len_utf8(), id: u32::MAX });
        let joined = merge(symbols, |a, b| {
            let id = self.plain(text.get(a.start..b.end)?)?;
            let score = usize::try_from(id).ok().and_then(|id| self.vocab.scores.get(id))?;
            Some((descending(*score), id))
        });
        for symbol in joined {
            let piece = text.get(symbol.start..symbol.end).unwrap_or_default();
            match self.plain(piece) {
                Some(id) => out.push(id),
                None => {
                    let byte = |b: u8| bytes.get(usize::from(b)).copied().flatten().or(self.vocab.unknown);
                    out.extend(piece.bytes().filter_map(byte));
                }
            }
        }
    }

    /// The bytes of a token in a text; control tokens are nothing unless `control`.
    pub fn piece(&self, id: u32, control: bool) -> Cow<'_, [u8]> {
        let Some((text, kind)) = self.vocab.text(id).zip(self.vocab.kind(id)) else { return Cow::Borrowed(&[]) };
        match (kind, &self.model) {
            (TokenKind::Control | TokenKind::Unknown, _) if !control => Cow::Borrowed(&[]),
            (TokenKind::Control | TokenKind::Unknown | TokenKind::User, _) => Cow::Borrowed(text.as_bytes()),
            (TokenKind::Byte(byte), _) => Cow::Owned(vec![byte]),
            (TokenKind::Normal, Model::Pieces(_)) if text.contains(SPACE) => {
                Cow::Owned(text.replace(SPACE, " ").into())
            }
            (TokenKind::Normal, Model::Pieces(_)) => Cow::Borrowed(text.as_bytes()),
            (TokenKind::Normal, Model::Bytes(_)) => match text.chars().map(char_byte).collect() {
                Some(bytes) => Cow::Owned(bytes),
                None => Cow::Borrowed(text.as_bytes()),
            },
        }
    }
}

/// A number that is the smaller the larger the score.
fn descending(score: f32) -> u32 {
    // Both zeros are one score.
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 1 { bits } else { !bits & 0x7FFF_FFFF }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_characters_are_one_to_one() {
        for byte in 0..=255 {
            assert_eq!(char_byte(byte_char(byte)), Some(byte), "{byte}");
        }
        assert_eq!((byte_char(b' '), byte_char(b'\n')), ('\u{120}', '\u{10a}'));
        assert_eq!(char_byte('\u{144}'), None);
    }

    #[test]
    fn scores_descend() {
        let scores = [f32::MAX, 1.5, 1.0, 1e-30, 0.0, -1e-30, -1.0, -1000.0, f32::MIN];
        assert!(scores.iter().zip(&scores[1..]).all(|(a, b)| descending(*a) < descending(*b)));
        assert_eq!(descending(0.0), descending(-0.0));
    }
}

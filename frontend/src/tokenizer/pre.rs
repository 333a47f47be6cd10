//! Pre-tokenizers by their GGUF names: patterns that cut text into words, one after the other.
//!
//! Each pattern cuts every piece that the pattern before it left; what it does not match stays together as a piece.

use fancy_regex::{Regex, RegexBuilder};

use crate::gguf::GgufError;
use crate::suggest;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// One row per name.
struct Row {
    name: &'static str,
    patterns: &'static [&'static str],
    /// Is a word that is a token kept whole, whatever the merges say?
    whole_words: bool,
    /// Does a text start with BOS unless the file says otherwise?
    add_bos: bool,
}

const fn row(name: &'static str, patterns: &'static [&'static str]) -> Row {
    Row { name, patterns, whole_words: false, add_bos: false }
}

const fn llama3(name: &'static str) -> Row {
    Row { name, patterns: &[LLAMA3], whole_words: true, add_bos: true }
}

const TABLE: [Row; 17] = [
    row("default", &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    row("gpt-2", &[GPT2]),
    row("phi-2", &[GPT2]),
    row("olmo", &[GPT2]),
    row("mpt", &[GPT2]),
    row("smollm", &[r"\p{N}", GPT2]),
    row("starcoder", &[r"\p{N}", GPT2]),
    row("refact", &[r"\p{N}", GPT2]),
    row("command-r", &[r"\p{N}", GPT2]),
    row("codeshell", &[r"\p{N}", GPT2]),
    row("qwen2", &[QWEN2]),
    row("deepseek-r1-qwen", &[QWEN2]),
    row("stablelm2", &[QWEN2]),
    llama3("llama-bpe"),
    llama3("llama3"),
    llama3("llama-v3"),
    llama3("falcon3"),
];

/// A compiled pre-tokenizer.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    patterns: Vec<Regex>,
    pub whole_words: bool,
    pub add_bos: bool,
}

impl PreTokenizer {
    pub fn new(name: &str) -> Result<PreTokenizer, GgufError> {
        let unknown = || GgufError::PreTokenizer {
            what: "pre-tokenizer",
            name: crate::gguf::quoted(name.as_bytes()),
            nearest: suggest::nearest_text(name, TABLE.iter().map(|row| row.name)),
        };
        let row = TABLE.iter().find(|row| row.name == name).ok_or_else(unknown)?;
        // These patterns take linear time; the limit would only cut long runs of spaces short.
        let compile = |p: &&str| RegexBuilder::new(p).backtrack_limit(usize::MAX).build().ok();
        let patterns = row.patterns.iter().map(compile).collect::<Option<Vec<Regex>>>().ok_or_else(unknown)?;
        Ok(PreTokenizer { patterns, whole_words: row.whole_words, add_bos: row.add_bos })
    }

    /// Cuts a text into words; joined they are the text.
    pub fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = vec![text];
        for pattern in &self.patterns {
            let mut next = Vec::with_capacity(pieces.len());
            for piece in pieces {
                let mut rest = 0;
                for found in pattern.find_iter(piece).map_while(Result::ok).filter(|m| !m.as_str().is_empty()) {
                    next.extend(piece.get(rest..found.start()).filter(|gap| !gap.is_empty()));
                    next.push(found.as_str());
                    rest = found.end();
                }
                next.extend(piece.get(rest..).filter(|gap| !gap.is_empty()));
            }
            pieces = next;
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_as_declared() {
        let split = |name: &str, text: &'static str| PreTokenizer::new(name).unwrap().split(text);
        assert_eq!(split("gpt-2", "I've  12 a\n"), ["I", "'ve", " ", " 12", " a", "\n"]);
        assert_eq!(split("smollm", "x 123"), ["x", " ", "1", "2", "3"]);
        assert_eq!(split("llama-bpe", "1234 'S\n\n x"), ["123", "4", " '", "S", "\n\n", " x"]);
        assert_eq!(split("default", "a=b"), ["a", "=", "b"]);
        let error = PreTokenizer::new("smolm").unwrap_err();
        assert_eq!(error.code(), "GGUF034");
        assert!(error.to_string().starts_with("unknown pre-tokenizer `smolm`; nearest: smollm"), "{error}");
    }

    #[test]
    fn every_pattern_compiles_and_long_runs_are_linear() {
        let spaces = " ".repeat(1 << 20) + "x";
        for row in &TABLE {
            let pre = PreTokenizer::new(row.name).unwrap();
            assert_eq!(pre.split(&spaces).concat(), spaces);
        }
    }
}

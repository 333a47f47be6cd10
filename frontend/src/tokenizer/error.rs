//! What can be wrong with a tokenizer.

use std::path::PathBuf;

use crate::gguf::GgufError;

/// Why a tokenizer was refused. [`TokenizerError::code`] is stable; messages may change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are the values that each message prints")]
pub enum TokenizerError {
    /// An error with the file it occurred in.
    #[error("{}: {source}", path.display())]
    InFile { path: PathBuf, source: Box<TokenizerError> },
    /// The GGUF file or its vocabulary is malformed.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// There is no tokenizer.
    #[error("no tokenizer: looked for {looked}; give --tokenizer")]
    Absent { looked: String },
    /// Not there, or not JSON.
    #[error("tokenizer.json cannot be read: {what}; fetch it again")]
    Json { what: String },
    /// A merge whose parts or result are not tokens.
    #[error("merge #{index} `{merge}` {why}; fetch tokenizer.json again")]
    Merge { index: usize, merge: String, why: String },
    /// A subword prefix that does not fit a merge.
    #[error(
        "merge #{index} `{merge}`: `continuing_subword_prefix` `{prefix}` cannot be cut off its right half; fetch tokenizer.json again"
    )]
    Prefix { index: usize, merge: String, prefix: String },
    /// Bad or repeated ids.
    #[error("token ids: {what}; ids must be distinct integers below 2^24 without large gaps")]
    Ids { what: String },
    /// A pattern that does not compile, is too long or takes too long.
    #[error("pattern `{pattern}`: {what}; fetch tokenizer.json again")]
    Pattern { pattern: String, what: String },
    /// Nested too deep.
    #[error("tokenizer.json: {what}; no tokenizer nests so deep, fetch it again")]
    Depth { what: String },
    /// An unknown kind of model.
    #[error("model type `{name}` is not supported{nearest}; known: BPE, Unigram, WordLevel, WordPiece")]
    Model { name: String, nearest: String },
    /// A bad added token.
    #[error("added token #{index}: {what}; fetch tokenizer.json again")]
    Added { index: usize, what: String },
    /// The library refused what we accepted.
    #[error("refused by the tokenizers library: {what}; fetch tokenizer.json again")]
    Library { what: String },
}

impl TokenizerError {
    /// The stable code of the error, such as `TOK010`.
    pub fn code(&self) -> &'static str {
        use TokenizerError as E;
        match self {
            E::InFile { source, .. } => source.code(),
            E::Gguf(e) => e.code(),
            E::Absent { .. } => "TOK001",
            E::Json { .. } => "TOK003",
            E::Merge { .. } => "TOK010",
            E::Prefix { .. } => "TOK011",
            E::Ids { .. } => "TOK012",
            E::Pattern { .. } => "TOK013",
            E::Depth { .. } => "TOK014",
            E::Model { .. } => "TOK015",
            E::Added { .. } => "TOK016",
            E::Library { .. } => "TOK017",
        }
    }
}

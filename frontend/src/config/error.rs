//! What can be wrong with a model's configuration.

use std::path::PathBuf;

use crate::gguf::GgufError;

/// One problem of a configuration. [`ConfigError::code`] is stable; messages may change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are the values that each message prints")]
pub enum ConfigError {
    /// An error with the file it occurred in.
    #[error("{}: {source}", path.display())]
    InFile { path: PathBuf, source: Box<ConfigError> },
    /// The GGUF file is malformed.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// An architecture that we do not know.
    #[error("architecture `{arch}` is not supported{nearest}; supported: {known}")]
    Architecture { arch: String, nearest: String, known: String },
    /// Not there, or not JSON.
    #[error("config.json cannot be read: {what}; fetch it again from where the weights come from")]
    Json { what: String },
    /// A value of the wrong type or out of range.
    #[error("`{key}` must be {expected}, is {found}; correct it in the configuration")]
    Range { key: String, expected: String, found: String },
    /// JSON nested too deep.
    #[error("config.json: {what}; no configuration nests so deep, fetch it again")]
    Depth { what: String },
    /// A key that we do not know and that may change results.
    #[error(
        "`{key}` is not a known setting of {arch}{nearest}; if it does not change results, remove it or give --accept-setting {key}"
    )]
    UnknownKey { key: String, arch: String, nearest: String },
    /// A setting that we do not support.
    #[error("`{key}` = {found} is not supported ({expected} is); use a model without it")]
    Unsupported { key: String, expected: String, found: String },
    /// A required key is absent.
    #[error("`{key}` is missing; add it to the configuration")]
    Missing { key: String },
    /// A bad number of layers.
    #[error("layers must be 1-4096: `num_hidden_layers` is {found}; correct it in the configuration")]
    Layers { found: String },
    /// Heads that are zero, too many, or do not divide.
    #[error("{what}; correct the numbers of heads in the configuration")]
    Heads { what: String },
    /// A head size that rotary embeddings cannot use.
    #[error("`head_dim` must be even for rotary embeddings, is {found}; correct it in the configuration")]
    HeadDim { found: usize },
    /// A bad or unknown rope scaling.
    #[error("rope scaling: {what}; supported types: default, linear, dynamic, llama3, yarn, longrope")]
    RopeScaling { what: String },
    /// A special token outside the vocabulary.
    #[error("`{key}` is {id}, `vocab_size` is {vocab}; correct it in the configuration")]
    SpecialToken { key: String, id: usize, vocab: usize },
}

impl ConfigError {
    /// The stable code of the error, such as `CFG003`.
    pub fn code(&self) -> &'static str {
        use ConfigError as E;
        match self {
            E::InFile { source, .. } => source.code(),
            E::Gguf(e) => e.code(),
            E::Architecture { .. } => "CFG001",
            E::Json { .. } => "CFG002",
            E::Range { .. } => "CFG003",
            E::Depth { .. } => "CFG004",
            E::UnknownKey { .. } => "CFG005",
            E::Unsupported { .. } => "CFG006",
            E::Missing { .. } => "CFG008",
            E::Layers { .. } => "CFG010",
            E::Heads { .. } => "CFG011",
            E::HeadDim { .. } => "CFG012",
            E::RopeScaling { .. } => "CFG013",
            E::SpecialToken { .. } => "CFG033",
        }
    }
}

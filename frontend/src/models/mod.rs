//! The model zoo: each architecture is ordinary user code on the public API, one file each.

mod gemma3;
mod llama;

pub use gemma3::Gemma3;
pub use llama::Llama;

use marquetry_ir::graph::Module as IrModule;

use crate::config::{ConfigError, Gemma3Config, LlamaConfig, ModelConfig};
use crate::{Diagnostics, Limits, Step, trace};

/// Why an architecture could not be traced.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The configuration does not describe a model we know; every problem found.
    #[error("{}", .0.iter().map(|e| format!("{}: {e}", e.code())).collect::<Vec<_>>().join("\n"))]
    Config(Vec<ConfigError>),
    /// The model code is inconsistent for this configuration.
    #[error("{0}")]
    Trace(Diagnostics),
}

/// What a text model needs beside its graph.
#[derive(Clone, Debug)]
pub struct TextModel {
    /// The traced step.
    pub module: IrModule,
    /// Vocabulary size.
    pub vocab: usize,
    /// Most positions the model was made for.
    pub context: usize,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
}

type TraceFn = fn(&ModelConfig, Limits) -> Result<TextModel, ModelError>;

/// Architectures by the name that [`ModelConfig::arch`] gives, with the function that traces each.
pub const REGISTRY: &[(&str, TraceFn)] = &[("llama", trace_llama), ("gemma3", trace_gemma3)];

/// Traces the model that a configuration describes.
///
/// # Errors
/// An unknown architecture, bad configuration values (all of them), or mistakes in model code.
pub fn trace_model(config: &ModelConfig, limits: Limits) -> Result<TextModel, ModelError> {
    match REGISTRY.iter().find(|(name, _)| *name == config.arch) {
        Some((_, f)) => f(config, limits),
        None => {
            let known = REGISTRY.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            Err(ModelError::Config(vec![ConfigError::Architecture {
                arch: config.arch.clone(),
                nearest: String::new(),
                known,
            }]))
        }
    }
}

fn trace_llama(config: &ModelConfig, limits: Limits) -> Result<TextModel, ModelError> {
    let c = LlamaConfig::from_config(config).map_err(ModelError::Config)?;
    let model = Llama::new(&c);
    let module = trace("llama", &model, |cx| {
        let kv = cx.kv_cache(&Step::declare(cx, limits), c.num_hidden_layers, c.num_key_value_heads, c.head_dim);
        cx.output("logits", model.forward(&kv));
    })
    .map_err(ModelError::Trace)?;
    Ok(TextModel { module, vocab: c.vocab_size, context: c.max_position_embeddings, eos: c.eos_token_ids })
}

fn trace_gemma3(config: &ModelConfig, limits: Limits) -> Result<TextModel, ModelError> {
    let c = Gemma3Config::from_config(config).map_err(ModelError::Config)?;
    let model = Gemma3::new(&c);
    let module = trace("gemma3", &model, |cx| {
        let kv = cx.kv_cache(&Step::declare(cx, limits), c.num_hidden_layers, c.num_key_value_heads, c.head_dim);
        cx.output("logits", model.forward(&kv));
    })
    .map_err(ModelError::Trace)?;
    Ok(TextModel { module, vocab: c.vocab_size, context: c.max_position_embeddings, eos: c.eos_token_ids })
}

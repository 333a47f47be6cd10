//! The model zoo: each architecture is ordinary user code on the public API, one file each.

mod baichuan;
mod chatglm;
mod cohere;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_bigcode;
mod gpt_neox;
mod internlm;
mod internlm2;
mod llama;
mod minicpm;
mod mistral;
mod mixtral;
mod orion;
mod phi;
mod phi3;
mod qwen;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod stable_lm;
mod starcoder2;

pub use baichuan::Baichuan;
pub use chatglm::ChatGlm;
pub use cohere::Cohere;
pub use gemma::Gemma;
pub use gemma2::Gemma2;
pub use gemma3::Gemma3;
pub use gpt_bigcode::GptBigCode;
pub use gpt_neox::GptNeoX;
pub use gpt2::Gpt2;
pub use internlm::InternLm;
pub use internlm2::InternLm2;
pub use llama::Llama;
pub use minicpm::MiniCpm;
pub use mistral::Mistral;
pub use mixtral::Mixtral;
pub use orion::Orion;
pub use phi::Phi;
pub use phi3::Phi3;
pub use qwen::Qwen;
pub use qwen2::Qwen2;
pub use qwen2_moe::Qwen2Moe;
pub use qwen3::Qwen3;
pub use stable_lm::StableLm;
pub use starcoder2::StarCoder2;

use marquetry_ir::graph::Module as IrModule;

use crate::config::{Common, ConfigError, Keys, ModelConfig};
use crate::nn::Heads;
use crate::weights::Stored;
use crate::{Diagnostics, KvCache, Limits, Module, Step, Tensor, trace};

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
    /// Parameters that files store in another arrangement.
    pub stored: Vec<(String, Stored)>,
    /// Vocabulary size.
    pub vocab: usize,
    /// Most positions the model was made for.
    pub context: usize,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
}

/// A model that continues text.
pub trait CausalLm: Module + Sized {
    /// Makes the model that settings describe, and gives its sizes. Problems stay in `keys`; what is made then is not used.
    fn from_keys(keys: &mut Keys<'_>) -> (Self, Common);

    /// Logits `[r, vocab]` of the rows asked for.
    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t>;
}

type TraceFn = fn(&ModelConfig, Limits) -> Result<TextModel, ModelError>;

/// An architecture that we can run.
pub struct Architecture {
    /// Our name.
    pub name: &'static str,
    /// The `model_type` of published configurations, and the architecture that GGUF files name.
    pub types: &'static [&'static str],
    /// Class names in `architectures`, for configurations without a known type.
    pub classes: &'static [&'static str],
    /// What sets it apart, in a few words.
    pub features: &'static str,
    trace: TraceFn,
}

macro_rules! architectures {
    ($($name:literal $model:ty: $types:expr, $classes:expr, $features:literal;)*) => {
        /// Every architecture.
        pub static ARCHITECTURES: &[Architecture] = &[$(Architecture {
            name: $name,
            types: &$types,
            classes: &$classes,
            features: $features,
            trace: trace_causal::<$model>,
        }),*];
    };
}

architectures! {
    "llama" llama::Llama: ["llama"], ["LlamaForCausalLM"], "the base: RMS norms, rotation, SwiGLU, grouped heads";
    "mistral" mistral::Mistral: ["mistral"], ["MistralForCausalLM"], "sliding window";
    "mixtral" mixtral::Mixtral: ["mixtral"], ["MixtralForCausalLM"], "mixture of experts";
    "gemma" gemma::Gemma: ["gemma"], ["GemmaForCausalLM"], "norms with 1 + w, GeGLU, scaled embedding";
    "gemma2" gemma2::Gemma2: ["gemma2"], ["Gemma2ForCausalLM"], "norms around branches, soft caps, windows by layer";
    "gemma3" gemma3::Gemma3: ["gemma3_text", "gemma3"], ["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
        "norms on queries and keys, two rotation bases, windows by layer";
    "gpt2" gpt2::Gpt2: ["gpt2"], ["GPT2LMHeadModel"], "learned positions, layer norms, transposed weights";
    "gpt_bigcode" gpt_bigcode::GptBigCode: ["gpt_bigcode"], ["GPTBigCodeForCausalLM"], "one key head, learned positions";
    "gpt_neox" gpt_neox::GptNeoX: ["gpt_neox", "gptneox"], ["GPTNeoXForCausalLM"], "partial rotation, parallel branches";
    "baichuan" baichuan::Baichuan: ["baichuan"], ["BaichuanForCausalLM", "BaiChuanForCausalLM"],
        "ALiBi (13B), normalised output rows (2)";
    "internlm" internlm::InternLm: ["internlm"], ["InternLMForCausalLM"], "attention biases";
    "internlm2" internlm2::InternLm2: ["internlm2"], ["InternLM2ForCausalLM"], "projections joined by group";
    "orion" orion::Orion: ["orion"], ["OrionForCausalLM"], "layer norms";
    "phi" phi::Phi: ["phi", "phi2"], ["PhiForCausalLM"], "parallel branches, partial rotation, biases";
    "phi3" phi3::Phi3: ["phi3"], ["Phi3ForCausalLM"], "long rotation factors, window, joined projections";
    "qwen" qwen::Qwen: ["qwen"], ["QWenLMHeadModel"], "growing rotation base, logarithmic scaling";
    "qwen2" qwen2::Qwen2: ["qwen2"], ["Qwen2ForCausalLM"], "biases on queries, keys and values, windows by layer";
    "qwen2_moe" qwen2_moe::Qwen2Moe: ["qwen2_moe", "qwen2moe"], ["Qwen2MoeForCausalLM"], "experts beside a shared one";
    "qwen3" qwen3::Qwen3: ["qwen3"], ["Qwen3ForCausalLM"], "norms on queries and keys";
    "minicpm" minicpm::MiniCpm: ["minicpm"], ["MiniCPMForCausalLM"], "scaled embedding, branches and logits; experts";
    "cohere" cohere::Cohere: ["cohere", "command-r"], ["CohereForCausalLM"], "parallel branches, rotation of neighbours";
    "chatglm" chatglm::ChatGlm: ["chatglm", "chatglm2", "chatglm3"],
        ["ChatGLMModel", "ChatGLMForConditionalGeneration", "ChatGLMForCausalLM"], "half rotation of neighbours";
    "stablelm" stable_lm::StableLm: ["stablelm", "stablelm_epoch", "stable_lm"],
        ["StableLmForCausalLM", "StableLMEpochForCausalLM"], "layer norms, partial rotation, parallel branches";
    "starcoder2" starcoder2::StarCoder2: ["starcoder2"], ["Starcoder2ForCausalLM"], "layer norms, biases, window";
}

/// Traces the model that a configuration describes.
///
/// # Errors
/// An unknown architecture, bad configuration values (all of them), or mistakes in model code.
pub fn trace_model(config: &ModelConfig, limits: Limits) -> Result<TextModel, ModelError> {
    match ARCHITECTURES.iter().find(|a| a.name == config.arch) {
        Some(a) => (a.trace)(config, limits),
        None => {
            let known = ARCHITECTURES.iter().map(|a| a.name).collect::<Vec<_>>().join(", ");
            Err(ModelError::Config(vec![ConfigError::Architecture {
                arch: config.arch.clone(),
                nearest: String::new(),
                known,
            }]))
        }
    }
}

/// Traces a model of any type, also of the user's own.
///
/// # Errors
/// Bad configuration values (all of them), or mistakes in model code.
pub fn trace_causal<M: CausalLm>(config: &ModelConfig, limits: Limits) -> Result<TextModel, ModelError> {
    let mut keys = Keys::new(config);
    let (model, c) = M::from_keys(&mut keys);
    let eos = keys.tokens_once("eos_token_id", c.vocab_size);
    keys.harmless(&["bos_token_id"]);
    keys.finish().map_err(ModelError::Config)?;
    let module = trace(&config.arch, &model, |cx| {
        let kv = cx.kv_cache(&Step::declare(cx, limits), c.num_hidden_layers, c.num_key_value_heads, c.head_dim);
        cx.output("logits", model.forward(&kv));
    })
    .map_err(ModelError::Trace)?;
    let mut stored = vec![];
    model.visit("", &mut |path, p| stored.extend(p.how_stored().map(|s| (path.to_owned(), s.clone()))));
    Ok(TextModel { module, stored, vocab: c.vocab_size, context: c.max_position_embeddings, eos })
}

/// The heads of the common settings.
fn heads(c: &Common) -> Heads {
    Heads { query: c.num_attention_heads, kv: c.num_key_value_heads, dim: c.head_dim }
}

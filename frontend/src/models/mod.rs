//! The model zoo: each architecture is ordinary user code on the public API, one file each.

mod baichuan;
mod bert;
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
mod rwkv;
mod stable_lm;
mod starcoder2;

pub use baichuan::Baichuan;
pub use bert::Bert;
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
pub use rwkv::Rwkv;
pub use stable_lm::StableLm;
pub use starcoder2::StarCoder2;

use marquetry_ir::graph::Module as IrModule;

use crate::config::{Common, ConfigError, Keys, ModelConfig};
use crate::gguf::formats::FORMATS;
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
    /// What the step computes; `logits` alone for models that continue text.
    pub outputs: Vec<Output>,
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

/// A model that turns text into vectors.
pub trait Encoder: Module + Sized {
    /// As [`CausalLm::from_keys`].
    fn from_keys(keys: &mut Keys<'_>) -> (Self, Common);

    /// Named outputs `[r, width]` for the rows asked for.
    fn outputs<'t>(&self, kv: &KvCache<'t>) -> Vec<(&'static str, Tensor<'t>)>;
}

/// An output of the traced step: f32 `[r, width]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Numbers per row.
    pub width: usize,
}

impl TextModel {
    /// Does it give vectors instead of continuing text?
    pub fn is_encoder(&self) -> bool {
        self.outputs.first().is_none_or(|o| o.name != "logits")
    }
}

impl Architecture {
    /// What GGUF files call it, by the table of formats.
    pub fn gguf(&self) -> impl Iterator<Item = &'static str> {
        FORMATS.iter().filter(|f| f.model == self.name).map(|f| f.gguf)
    }
}

type TraceFn = fn(&ModelConfig, Limits) -> Result<TextModel, ModelError>;

/// An architecture that we can run.
pub struct Architecture {
    /// Our name.
    pub name: &'static str,
    /// The `model_type` of published configurations.
    pub types: &'static [&'static str],
    /// Class names in `architectures`, for configurations without a known type.
    pub classes: &'static [&'static str],
    /// What sets it apart, in a few words.
    pub features: &'static str,
    trace: TraceFn,
}

macro_rules! architectures {
    ($($name:literal $trace:ident $model:ty: $types:expr, $classes:expr, $features:literal;)*) => {
        /// Every architecture.
        pub static ARCHITECTURES: &[Architecture] = &[$(Architecture {
            name: $name,
            types: &$types,
            classes: &$classes,
            features: $features,
            trace: $trace::<$model>,
        }),*];
    };
}

architectures! {
    "llama" trace_causal llama::Llama: ["llama"], ["LlamaForCausalLM"], "the base: RMS norms, rotation, SwiGLU, grouped heads";
    "mistral" trace_causal mistral::Mistral: ["mistral"], ["MistralForCausalLM"], "sliding window";
    "mixtral" trace_causal mixtral::Mixtral: ["mixtral"], ["MixtralForCausalLM"], "mixture of experts";
    "gemma" trace_causal gemma::Gemma: ["gemma"], ["GemmaForCausalLM"], "norms with 1 + w, GeGLU, scaled embedding";
    "gemma2" trace_causal gemma2::Gemma2: ["gemma2"], ["Gemma2ForCausalLM"], "norms around branches, soft caps, windows by layer";
    "gemma3" trace_causal gemma3::Gemma3: ["gemma3_text", "gemma3"], ["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
        "norms on queries and keys, two rotation bases, windows by layer";
    "gpt2" trace_causal gpt2::Gpt2: ["gpt2"], ["GPT2LMHeadModel"], "learned positions, layer norms, transposed weights";
    "gpt_bigcode" trace_causal gpt_bigcode::GptBigCode: ["gpt_bigcode"], ["GPTBigCodeForCausalLM"], "one key head, learned positions";
    "gpt_neox" trace_causal gpt_neox::GptNeoX: ["gpt_neox"], ["GPTNeoXForCausalLM"], "partial rotation, parallel branches";
    "baichuan" trace_causal baichuan::Baichuan: ["baichuan"], ["BaichuanForCausalLM", "BaiChuanForCausalLM"],
        "ALiBi (13B), normalised output rows (2)";
    "internlm" trace_causal internlm::InternLm: ["internlm"], ["InternLMForCausalLM"], "attention biases";
    "internlm2" trace_causal internlm2::InternLm2: ["internlm2"], ["InternLM2ForCausalLM"], "projections joined by group";
    "orion" trace_causal orion::Orion: ["orion"], ["OrionForCausalLM"], "layer norms";
    "phi" trace_causal phi::Phi: ["phi", "phi-msft", "mixformer-sequential"],
        ["PhiForCausalLM", "MixFormerSequentialForCausalLM"], "parallel branches, partial rotation, biases";
    "phi3" trace_causal phi3::Phi3: ["phi3"], ["Phi3ForCausalLM"], "long rotation factors, window, joined projections";
    "qwen" trace_causal qwen::Qwen: ["qwen"], ["QWenLMHeadModel"], "growing rotation base, logarithmic scaling";
    "qwen2" trace_causal qwen2::Qwen2: ["qwen2"], ["Qwen2ForCausalLM"], "biases on queries, keys and values, windows by layer";
    "qwen2_moe" trace_causal qwen2_moe::Qwen2Moe: ["qwen2_moe"], ["Qwen2MoeForCausalLM"], "experts beside a shared one";
    "qwen3" trace_causal qwen3::Qwen3: ["qwen3"], ["Qwen3ForCausalLM"], "norms on queries and keys";
    "minicpm" trace_causal minicpm::MiniCpm: ["minicpm"], ["MiniCPMForCausalLM"], "scaled embedding, branches and logits; experts";
    "cohere" trace_causal cohere::Cohere: ["cohere"], ["CohereForCausalLM"], "parallel branches, rotation of neighbours";
    "chatglm" trace_causal chatglm::ChatGlm: ["chatglm", "chatglm2", "chatglm3"],
        ["ChatGLMModel", "ChatGLMForConditionalGeneration", "ChatGLMForCausalLM"], "half rotation of neighbours";
    "stablelm" trace_causal stable_lm::StableLm: ["stablelm", "stablelm_epoch", "stable_lm"],
        ["StableLmForCausalLM", "StableLMEpochForCausalLM"], "layer norms, partial rotation, parallel branches";
    "bert" trace_encoder bert::Bert: ["bert"], ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"],
        "an encoder: vectors instead of text";
    "rwkv5" trace_causal rwkv::Rwkv<5>: ["rwkv5"], ["Rwkv5ForCausalLM"], "a recurrence; its kernel is given as loop IR";
    "rwkv6" trace_causal rwkv::Rwkv<6>: ["rwkv6"], ["Rwkv6ForCausalLM"], "a recurrence whose decay depends on the tokens";
    "starcoder2" trace_causal starcoder2::StarCoder2: ["starcoder2"], ["Starcoder2ForCausalLM"], "layer norms, biases, window";
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
    trace_with(config, limits, M::from_keys, |model, kv| vec![("logits", model.forward(kv))])
}

/// Traces an encoder of any type, also of the user's own.
///
/// # Errors
/// As [`trace_causal`].
pub fn trace_encoder<M: Encoder>(config: &ModelConfig, limits: Limits) -> Result<TextModel, ModelError> {
    let longest = limits.tokens;
    let mut model = trace_with(config, limits, M::from_keys, M::outputs)?;
    // A sequence must fit into one step.
    model.context = model.context.min(longest);
    Ok(model)
}

fn trace_with<M: Module>(
    config: &ModelConfig,
    limits: Limits,
    from_keys: impl Fn(&mut Keys<'_>) -> (M, Common),
    outputs: impl for<'t> Fn(&M, &KvCache<'t>) -> Vec<(&'static str, Tensor<'t>)>,
) -> Result<TextModel, ModelError> {
    let mut keys = Keys::new(config);
    let (model, c) = from_keys(&mut keys);
    let eos = keys.tokens_once("eos_token_id", c.vocab_size);
    keys.harmless(&["bos_token_id"]);
    keys.finish().map_err(ModelError::Config)?;
    let mut shapes = vec![];
    let module = trace(&config.arch, &model, |cx| {
        let kv = cx.kv_cache(&Step::declare(cx, limits), c.num_hidden_layers, c.num_key_value_heads, c.head_dim);
        for (name, t) in outputs(&model, &kv) {
            let width = t.shape().last().and_then(crate::Dim::as_const).and_then(|d| usize::try_from(d).ok());
            shapes.push(Output { name: name.to_owned(), width: width.unwrap_or(0) });
            cx.output(name, t);
        }
    })
    .map_err(ModelError::Trace)?;
    let mut stored = vec![];
    model.visit("", &mut |path, p| stored.extend(p.how_stored().map(|s| (path.to_owned(), s.clone()))));
    Ok(TextModel { module, stored, outputs: shapes, vocab: c.vocab_size, context: c.max_position_embeddings, eos })
}

/// The heads of the common settings.
fn heads(c: &Common) -> Heads {
    Heads { query: c.num_attention_heads, kv: c.num_key_value_heads, dim: c.head_dim }
}

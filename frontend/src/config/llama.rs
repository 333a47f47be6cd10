//! Settings of llama models.

use super::keys::{Common, Defaults, Keys};
use super::{ConfigError, ModelConfig, RopeScaling};

/// A llama model: RMS norms before each block, rotary attention over the whole head, SwiGLU.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Size of a head; even.
    pub head_dim: usize,
    /// Added to the mean square in norms.
    pub rms_norm_eps: f64,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Longest context, in tokens.
    pub max_position_embeddings: usize,
    /// Is the output layer the embedding?
    pub tie_word_embeddings: bool,
    /// Do q, k, v and o have biases?
    pub attention_bias: bool,
    /// Do gate, up and down have biases?
    pub mlp_bias: bool,
    /// Token that starts a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

impl LlamaConfig {
    /// Checks the settings of a llama model.
    ///
    /// # Errors
    /// All problems, in the order of reading.
    pub fn from_config(config: &ModelConfig) -> Result<LlamaConfig, Vec<ConfigError>> {
        let mut keys = Keys::new(config);
        let (out, _) = LlamaConfig::read(&mut keys);
        keys.finish().map(|()| out)
    }

    /// Reads the settings, and the sizes that all models have; problems stay in `keys`.
    pub(crate) fn read(keys: &mut Keys<'_>) -> (LlamaConfig, Common) {
        let defaults = Defaults { max_position_embeddings: Some(2048), ..Defaults::default() };
        let common = keys.common(&defaults);
        let Common {
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings,
            vocab_size,
        } = common;
        keys.one_of("hidden_act", &["silu", "swish"]);
        let (rope_theta, rope_scaling) = keys.rope(None, 10_000.0, head_dim);
        let out = LlamaConfig {
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: keys.float("rms_norm_eps", 1e-30..=1.0, 1e-6),
            vocab_size,
            rope_theta,
            rope_scaling,
            max_position_embeddings,
            tie_word_embeddings: keys.bool("tie_word_embeddings", false),
            attention_bias: keys.bool("attention_bias", false),
            mlp_bias: keys.bool("mlp_bias", false),
            bos_token_id: keys.tokens("bos_token_id", vocab_size).first().copied(),
            eos_token_ids: keys.tokens("eos_token_id", vocab_size),
        };
        (out, common)
    }
}

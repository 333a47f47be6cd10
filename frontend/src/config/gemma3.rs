//! Settings of gemma3 text models.

use serde_json::Value;

use super::keys::{Common, Defaults, Keys};
use super::{ConfigError, ModelConfig, RopeScaling};

/// A gemma3 text model: norms around each block with factor 1 + w, norms on queries and keys, GeGLU, layers with a sliding window
/// between layers that see everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemma3Config {
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
    /// Scores are divided by the square root of this.
    pub query_pre_attn_scalar: f64,
    /// Base of the rotary frequencies of layers with full attention.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies of layers with full attention.
    pub rope_scaling: RopeScaling,
    /// Base of the rotary frequencies of layers with a window, which are never stretched.
    pub rope_local_base_freq: f64,
    /// Tokens that a layer with a window sees, itself included.
    pub sliding_window: usize,
    /// One entry per layer: does it see everything?
    pub full_attention: Vec<bool>,
    /// Longest context, in tokens.
    pub max_position_embeddings: usize,
    /// Is the output layer the embedding?
    pub tie_word_embeddings: bool,
    /// Do q, k, v and o have biases?
    pub attention_bias: bool,
    /// Token that starts a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

impl Gemma3Config {
    /// Checks the settings of a gemma3 text model.
    ///
    /// # Errors
    /// All problems, in the order of reading.
    pub fn from_config(config: &ModelConfig) -> Result<Gemma3Config, Vec<ConfigError>> {
        let mut keys = Keys::new(config);
        let (out, _) = Gemma3Config::read(&mut keys);
        keys.finish().map(|()| out)
    }

    /// Reads the settings, and the sizes that all models have; problems stay in `keys`.
    pub(crate) fn read(keys: &mut Keys<'_>) -> (Gemma3Config, Common) {
        // Published configurations leave these out where they have the values of the architecture's first model.
        let defaults = Defaults {
            intermediate_size: None,
            num_attention_heads: Some(8),
            num_key_value_heads: Some(4),
            head_dim: Some(256),
            max_position_embeddings: Some(131_072),
            vocab_size: Some(262_208),
        };
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
        keys.one_of("hidden_activation", &["gelu_pytorch_tanh", "gelu_new"]);
        keys.one_of("hidden_act", &["gelu_pytorch_tanh", "gelu_new"]);
        let (rope_theta, rope_scaling) = keys.rope(Some("full_attention"), 1e6, head_dim);
        let mut rope_local_base_freq = keys.float("rope_local_base_freq", 1e-3..=1e15, 10_000.0);
        if let Some(local) = keys.get("rope_parameters").and_then(|r| r.get("sliding_attention")) {
            if let Some(theta) = local.get("rope_theta").and_then(Value::as_f64).filter(|t| (1e-3..=1e15).contains(t)) {
                rope_local_base_freq = theta;
            }
            if local.get("rope_type").is_some_and(|t| t != "default") {
                let what = "layers with a window must have type default".to_owned();
                keys.errors.push(ConfigError::RopeScaling { what });
            }
        }
        let pattern = keys.int_or_null("sliding_window_pattern", 1..=4096);
        let pattern = pattern.or(keys.int_or_null("_sliding_window_pattern", 1..=4096)).unwrap_or(6);
        let full_attention = keys.full_attention(num_hidden_layers, |i| (i + 1).is_multiple_of(pattern));
        let out = Gemma3Config {
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: keys.float("rms_norm_eps", 1e-30..=1.0, 1e-6),
            vocab_size,
            query_pre_attn_scalar: keys.float("query_pre_attn_scalar", 1e-3..=1e9, 256.0),
            rope_theta,
            rope_scaling,
            rope_local_base_freq,
            sliding_window: keys.int_or_null("sliding_window", 1..=1 << 24).unwrap_or(4096),
            full_attention,
            max_position_embeddings,
            tie_word_embeddings: keys.bool("tie_word_embeddings", true),
            attention_bias: keys.bool("attention_bias", false),
            bos_token_id: keys.tokens("bos_token_id", vocab_size).first().copied(),
            eos_token_ids: keys.tokens("eos_token_id", vocab_size),
        };
        (out, common)
    }
}

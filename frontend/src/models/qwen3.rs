//! Qwen 3 (Yang et al., arXiv 2505.09388): Llama with normalised queries and keys.

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Decoder, GatedMlp, Norm, PreNorm, RmsNorm, Rope};
use crate::{KvCache, Module, Tensor};

/// The model.
#[derive(Module)]
pub struct Qwen3 {
    #[module(flatten)]
    decoder: Decoder<PreNorm<RmsNorm, GatedMlp>, RmsNorm>,
}

impl CausalLm for Qwen3 {
    fn from_keys(keys: &mut Keys<'_>) -> (Qwen3, Common) {
        let defaults = Defaults { max_position_embeddings: Some(32_768), head_dim: Some(128), ..Defaults::default() };
        let c = keys.common(&defaults);
        keys.one_of("hidden_act", &["silu"]);
        let eps = keys.float("rms_norm_eps", 1e-30..=1.0, 1e-6);
        let bias = keys.bool("attention_bias", false);
        let windows = keys.windows_above(c.num_hidden_layers);
        let (theta, scaling) = keys.rope(None, 10_000.0, c.head_dim);
        let norm = || RmsNorm::new(c.hidden_size, eps);
        let block = |i: usize| {
            let attention = Attention::new(c.hidden_size, heads(&c)).with_bias(bias, bias).with_window(windows[i]);
            let attention = attention.with_norms(|_| Norm::Rms(RmsNorm::new(c.head_dim, eps)));
            let attention = attention.with_rope(Rope::new(c.head_dim, theta, &scaling));
            PreNorm::new(norm, attention, GatedMlp::new(c.hidden_size, c.intermediate_size, Act::Silu))
        };
        let tied = keys.bool("tie_word_embeddings", false);
        (Qwen3 { decoder: Decoder::new(&c, tied, norm(), block) }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.decoder.forward(kv)
    }
}

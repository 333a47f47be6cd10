//! Qwen 1.5, 2 and 2.5 (Yang et al., arXiv 2407.10671): Llama with biases on queries, keys and values.

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Decoder, GatedMlp, PreNorm, RmsNorm, Rope};
use crate::{KvCache, Module, Tensor};

/// The model.
#[derive(Module)]
pub struct Qwen2 {
    #[module(flatten)]
    decoder: Decoder<PreNorm<RmsNorm, GatedMlp>, RmsNorm>,
}

/// The attention of each layer, also of Qwen2-MoE.
pub(super) fn attention(keys: &mut Keys<'_>, c: &Common) -> impl Fn(usize) -> Attention + use<> {
    let (theta, scaling) = keys.rope(None, 10_000.0, c.head_dim);
    let windows = keys.windows_above(c.num_hidden_layers);
    let (hidden, heads, dim) = (c.hidden_size, heads(c), c.head_dim);
    let bias = keys.bool("qkv_bias", true);
    move |i| {
        let rope = Rope::new(dim, theta, &scaling);
        Attention::new(hidden, heads).with_bias(bias, false).with_rope(rope).with_window(windows[i])
    }
}

impl CausalLm for Qwen2 {
    fn from_keys(keys: &mut Keys<'_>) -> (Qwen2, Common) {
        let c = keys.common(&Defaults { max_position_embeddings: Some(32_768), ..Defaults::default() });
        keys.one_of("hidden_act", &["silu"]);
        let eps = keys.float("rms_norm_eps", 1e-30..=1.0, 1e-6);
        let attention = attention(keys, &c);
        let norm = || RmsNorm::new(c.hidden_size, eps);
        let mlp = || GatedMlp::new(c.hidden_size, c.intermediate_size, Act::Silu);
        let tied = keys.bool("tie_word_embeddings", false);
        (Qwen2 { decoder: Decoder::new(&c, tied, norm(), |i| PreNorm::new(norm, attention(i), mlp())) }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.decoder.forward(kv)
    }
}

//! Phi 3, 3.5 and 4 (Abdin et al., arXiv 2404.14219): Llama with joined projections, long rotation factors, a window.

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Decoder, GatedMlp, PreNorm, QkvRows, RmsNorm, Rope};
use crate::{KvCache, Module, Tensor};

/// The model.
#[derive(Module)]
pub struct Phi3 {
    #[module(flatten)]
    decoder: Decoder<PreNorm<RmsNorm, GatedMlp>, RmsNorm>,
}

impl CausalLm for Phi3 {
    fn from_keys(keys: &mut Keys<'_>) -> (Phi3, Common) {
        let c = keys.common(&Defaults { max_position_embeddings: Some(4096), ..Defaults::default() });
        keys.one_of("hidden_act", &["silu"]);
        keys.harmless(&["embd_pdrop", "resid_pdrop"]);
        let eps = keys.float("rms_norm_eps", 1e-30..=1.0, 1e-5);
        let window = keys.int_or_null("sliding_window", 1..=1 << 24).unwrap_or(0);
        let rotary = keys.rotary_dim(c.head_dim, 1.0);
        let (theta, scaling) = keys.rope(None, 10_000.0, rotary);
        let bias = keys.bool("attention_bias", false);
        let norm = || RmsNorm::new(c.hidden_size, eps);
        let block = |_| {
            let attention = Attention::new(c.hidden_size, heads(&c)).with_bias(bias, bias);
            let attention = attention.fused("qkv_proj", QkvRows::Joined).with_window(window);
            let mlp = GatedMlp::new(c.hidden_size, c.intermediate_size, Act::Silu).fused("gate_up_proj", "down_proj");
            PreNorm::new(norm, attention.with_rope(Rope::new(rotary, theta, &scaling)), mlp)
        };
        let tied = keys.bool("tie_word_embeddings", false);
        (Phi3 { decoder: Decoder::new(&c, tied, norm(), block) }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.decoder.forward(kv)
    }
}

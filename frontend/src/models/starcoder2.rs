//! StarCoder 2 (Lozhkov et al., arXiv 2402.19173): layer norms, a window, an ungated feed-forward network.

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Decoder, LayerNorm, Mlp, PreNorm, Rope};
use crate::{KvCache, Module, Tensor};

/// The model.
#[derive(Module)]
pub struct StarCoder2 {
    #[module(flatten)]
    decoder: Decoder<PreNorm<LayerNorm, Mlp>, LayerNorm>,
}

impl CausalLm for StarCoder2 {
    fn from_keys(keys: &mut Keys<'_>) -> (StarCoder2, Common) {
        let c = keys.common(&Defaults { max_position_embeddings: Some(4096), ..Defaults::default() });
        let act = keys.act("hidden_act", Act::GeluTanh);
        keys.one_of("norm_type", &["layer_norm"]);
        keys.one_of("mlp_type", &["default"]);
        keys.harmless(&["embedding_dropout", "residual_dropout"]);
        let eps = keys.float("norm_epsilon", 1e-30..=1.0, 1e-5);
        let bias = keys.bool("use_bias", true);
        let window = keys.int_or_null("sliding_window", 1..=1 << 24).unwrap_or(0);
        let (theta, scaling) = keys.rope(None, 10_000.0, c.head_dim);
        let norm = || LayerNorm::new(c.hidden_size, eps);
        let block = |_| {
            let attention = Attention::new(c.hidden_size, heads(&c)).with_bias(bias, bias).with_window(window);
            let mlp = Mlp::new(c.hidden_size, c.intermediate_size, act, ["c_fc", "c_proj"]).with_bias(bias);
            PreNorm::new(norm, attention.with_rope(Rope::new(c.head_dim, theta, &scaling)), mlp)
        };
        let tied = keys.bool("tie_word_embeddings", true);
        (StarCoder2 { decoder: Decoder::new(&c, tied, norm(), block) }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.decoder.forward(kv)
    }
}

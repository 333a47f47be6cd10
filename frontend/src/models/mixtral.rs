//! Mixtral: Mistral with a mixture of experts (Jiang et al., arXiv 2401.04088).

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Attention, Block, Decoder, Experts, RmsNorm, Rope};
use crate::{KvCache, Module, Tensor};

/// One layer.
#[derive(Module)]
pub struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    block_sparse_moe: Experts,
}

impl Block for Layer {
    fn call<'t>(&self, x: Tensor<'t>, kv: &KvCache<'t>, layer: usize) -> Tensor<'t> {
        let h = x + self.self_attn.call(self.input_layernorm.call(x), kv, layer);
        h + self.block_sparse_moe.call(self.post_attention_layernorm.call(h))
    }
}

/// The model.
#[derive(Module)]
pub struct Mixtral {
    #[module(flatten)]
    decoder: Decoder<Layer, RmsNorm>,
}

impl CausalLm for Mixtral {
    fn from_keys(keys: &mut Keys<'_>) -> (Mixtral, Common) {
        let c = keys.common(&Defaults::default());
        keys.one_of("hidden_act", &["silu"]);
        keys.harmless(&["output_router_logits", "router_aux_loss_coef", "router_jitter_noise"]);
        let eps = keys.float("rms_norm_eps", 1e-30..=1.0, 1e-5);
        let window = keys.int_or_null("sliding_window", 1..=1 << 24).unwrap_or(0);
        let (theta, scaling) = keys.rope(None, 1e6, c.head_dim);
        let experts = keys.experts("num_local_experts", 8, 2);
        let norm = || RmsNorm::new(c.hidden_size, eps);
        let block = |_| {
            let attention = Attention::new(c.hidden_size, heads(&c));
            Layer {
                input_layernorm: norm(),
                self_attn: attention.with_rope(Rope::new(c.head_dim, theta, &scaling)).with_window(window),
                post_attention_layernorm: norm(),
                block_sparse_moe: Experts::new(c.hidden_size, c.intermediate_size, experts, true, ["w1", "w3", "w2"]),
            }
        };
        let tied = keys.bool("tie_word_embeddings", false);
        (Mixtral { decoder: Decoder::new(&c, tied, norm(), block) }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.decoder.forward(kv)
    }
}

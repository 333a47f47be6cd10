//! Phi 1, 1.5 and 2 (Li et al., arXiv 2309.05463): parallel branches after one layer norm, partial rotation, biases everywhere.

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Embedding, LayerNorm, Linear, Mlp, Norm, QkvRows, Rope};
use crate::{KvCache, Module, Tensor};

/// One layer.
#[derive(Module)]
struct Layer {
    input_layernorm: LayerNorm,
    self_attn: Attention,
    mlp: Mlp,
}

#[derive(Module)]
struct Body {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    final_layernorm: LayerNorm,
}

/// The model.
#[derive(Module)]
pub struct Phi {
    model: Body,
    lm_head: Linear,
}

impl CausalLm for Phi {
    fn from_keys(keys: &mut Keys<'_>) -> (Phi, Common) {
        let c = keys.common(&Defaults { max_position_embeddings: Some(2048), ..Defaults::default() });
        let act = keys.act("hidden_act", Act::GeluTanh);
        let eps = keys.float("layer_norm_eps", 1e-30..=1.0, 1e-5);
        let rotary = keys.rotary_dim(c.head_dim, 0.5);
        let (theta, scaling) = keys.rope(None, 10_000.0, rotary);
        let norms = keys.bool("qk_layernorm", false);
        keys.harmless(&["embd_pdrop", "resid_pdrop"]);
        keys.fixed("tie_word_embeddings", false);
        let h = c.hidden_size;
        let layer = |_| {
            let attention = Attention::new(h, heads(&c)).with_bias(true, true).output_stored_as("dense");
            // Early files join the projections.
            let attention = attention.fused("Wqkv", QkvRows::Joined);
            let attention = attention.with_rope(Rope::new(rotary, theta, &scaling));
            Layer {
                input_layernorm: LayerNorm::new(h, eps),
                self_attn: match norms {
                    true => attention
                        .with_norms(|_| Norm::Layer(LayerNorm::new(c.head_dim, eps)))
                        .norms_stored_as("layernorm"),
                    false => attention,
                },
                mlp: Mlp::new(h, c.intermediate_size, act, ["fc1", "fc2"]),
            }
        };
        let body = Body {
            embed_tokens: Embedding::new(c.vocab_size, h),
            layers: (0..c.num_hidden_layers).map(layer).collect(),
            final_layernorm: LayerNorm::new(h, eps),
        };
        (Phi { model: body, lm_head: Linear::new(h, c.vocab_size).with_bias(true) }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        let step = kv.step();
        let mut x = self.model.embed_tokens.call(step.tokens);
        for (i, layer) in self.model.layers.iter().enumerate() {
            let h = layer.input_layernorm.call(x);
            x = layer.self_attn.call(h, kv, i) + layer.mlp.call(h) + x;
        }
        self.lm_head.call(self.model.final_layernorm.call(x).rows(step.rows))
    }
}

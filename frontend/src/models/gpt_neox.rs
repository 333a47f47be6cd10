//! GPT-NeoX: Pythia, Dolly, RedPajama and others (Black et al., arXiv 2204.06745). Partial rotation, parallel branches.

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Embedding, LayerNorm, Linear, Mlp, QkvRows, Rope};
use crate::{KvCache, Module, Tensor};

/// One layer.
#[derive(Module)]
struct Layer {
    input_layernorm: LayerNorm,
    attention: Attention,
    post_attention_layernorm: LayerNorm,
    mlp: Mlp,
}

#[derive(Module)]
struct Body {
    embed_in: Embedding,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
}

/// The model.
#[derive(Module)]
pub struct GptNeoX {
    gpt_neox: Body,
    embed_out: Linear,
    #[module(skip)]
    parallel: bool,
}

impl CausalLm for GptNeoX {
    fn from_keys(keys: &mut Keys<'_>) -> (GptNeoX, Common) {
        keys.rename(&[("rotary_emb_base", "rope_theta"), ("rotary_pct", "partial_rotary_factor")]);
        let c = keys.common(&Defaults { max_position_embeddings: Some(2048), ..Defaults::default() });
        let act = keys.act("hidden_act", Act::Gelu);
        let eps = keys.float("layer_norm_eps", 1e-30..=1.0, 1e-5);
        let rotary = keys.rotary_dim(c.head_dim, 0.25);
        let (theta, scaling) = keys.rope(None, 10_000.0, rotary);
        let bias = keys.bool("attention_bias", true);
        let parallel = keys.bool("use_parallel_residual", true);
        keys.harmless(&["classifier_dropout"]);
        keys.fixed("tie_word_embeddings", false);
        let h = c.hidden_size;
        let layer = |_| {
            let attention = Attention::new(h, heads(&c)).with_bias(bias, bias);
            let attention = attention.fused("query_key_value", QkvRows::ByGroup).output_stored_as("dense");
            Layer {
                input_layernorm: LayerNorm::new(h, eps),
                attention: attention.with_rope(Rope::new(rotary, theta, &scaling)),
                post_attention_layernorm: LayerNorm::new(h, eps),
                mlp: Mlp::new(h, c.intermediate_size, act, ["dense_h_to_4h", "dense_4h_to_h"]),
            }
        };
        let body = Body {
            embed_in: Embedding::new(c.vocab_size, h),
            layers: (0..c.num_hidden_layers).map(layer).collect(),
            final_layer_norm: LayerNorm::new(h, eps),
        };
        (GptNeoX { gpt_neox: body, embed_out: Linear::new(h, c.vocab_size), parallel }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        let step = kv.step();
        let mut x = self.gpt_neox.embed_in.call(step.tokens);
        for (i, layer) in self.gpt_neox.layers.iter().enumerate() {
            let h = x + layer.attention.call(layer.input_layernorm.call(x), kv, i);
            let seen = if self.parallel { x } else { h };
            x = h + layer.mlp.call(layer.post_attention_layernorm.call(seen));
        }
        self.embed_out.call(self.gpt_neox.final_layer_norm.call(x).rows(step.rows))
    }
}

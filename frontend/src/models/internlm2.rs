//! InternLM 2 (Cai et al., arXiv 2403.17297): Llama under other names, with queries, keys and values joined by group.

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Block, Decoder, GatedMlp, QkvRows, RmsNorm, Rope};
use crate::{KvCache, Module, Tensor};

/// One layer.
#[derive(Module)]
pub struct Layer {
    attention_norm: RmsNorm,
    attention: Attention,
    ffn_norm: RmsNorm,
    feed_forward: GatedMlp,
}

impl Block for Layer {
    fn call<'t>(&self, x: Tensor<'t>, kv: &KvCache<'t>, layer: usize) -> Tensor<'t> {
        let h = x + self.attention.call(self.attention_norm.call(x), kv, layer);
        h + self.feed_forward.call(self.ffn_norm.call(h))
    }
}

/// The model.
#[derive(Module)]
pub struct InternLm2 {
    #[module(flatten)]
    decoder: Decoder<Layer, RmsNorm>,
}

impl CausalLm for InternLm2 {
    fn from_keys(keys: &mut Keys<'_>) -> (InternLm2, Common) {
        let c = keys.common(&Defaults { max_position_embeddings: Some(2048), ..Defaults::default() });
        keys.one_of("hidden_act", &["silu"]);
        keys.harmless(&["attn_implementation"]);
        let eps = keys.float("rms_norm_eps", 1e-30..=1.0, 1e-6);
        let bias = keys.bool("bias", true);
        let (theta, scaling) = keys.rope(None, 10_000.0, c.head_dim);
        let norm = || RmsNorm::new(c.hidden_size, eps);
        let block = |_| {
            let attention = Attention::new(c.hidden_size, heads(&c)).with_bias(bias, bias);
            let attention = attention.fused("wqkv", QkvRows::ByGroup).output_stored_as("wo");
            Layer {
                attention_norm: norm(),
                attention: attention.with_rope(Rope::new(c.head_dim, theta, &scaling)),
                ffn_norm: norm(),
                feed_forward: GatedMlp::new(c.hidden_size, c.intermediate_size, Act::Silu)
                    .stored_as(["w1", "w3", "w2"]),
            }
        };
        let tied = keys.bool("tie_word_embeddings", false);
        (InternLm2 { decoder: Decoder::new(&c, tied, norm(), block).stored_as("tok_embeddings", "output") }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.decoder.forward(kv)
    }
}

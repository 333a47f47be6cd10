//! Command-R and Aya: parallel branches after one layer norm without bias, rotation of neighbours, scaled logits.

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Block, Decoder, GatedMlp, LayerNorm, Norm, Rope};
use crate::{KvCache, Module, Tensor};

/// One layer.
#[derive(Module)]
pub struct Layer {
    input_layernorm: LayerNorm,
    self_attn: Attention,
    mlp: GatedMlp,
}

impl Block for Layer {
    fn call<'t>(&self, x: Tensor<'t>, kv: &KvCache<'t>, layer: usize) -> Tensor<'t> {
        let h = self.input_layernorm.call(x);
        x + self.self_attn.call(h, kv, layer) + self.mlp.call(h)
    }
}

/// The model.
#[derive(Module)]
pub struct Cohere {
    #[module(flatten)]
    decoder: Decoder<Layer, LayerNorm>,
    #[module(skip)]
    logit_scale: f32,
}

impl CausalLm for Cohere {
    fn from_keys(keys: &mut Keys<'_>) -> (Cohere, Common) {
        let c = keys.common(&Defaults { max_position_embeddings: Some(8192), ..Defaults::default() });
        keys.one_of("hidden_act", &["silu"]);
        keys.harmless(&["model_max_length"]);
        let eps = keys.float("layer_norm_eps", 1e-30..=1.0, 1e-5);
        let (theta, scaling) = keys.rope(None, 10_000.0, c.head_dim);
        let bias = keys.bool("attention_bias", false);
        let norms = keys.bool("use_qk_norm", false);
        let logit_scale = keys.float("logit_scale", 1e-9..=1e9, 0.0625) as f32;
        let norm = || LayerNorm::new(c.hidden_size, eps).with_bias(false);
        let block = |_| {
            let attention = Attention::new(c.hidden_size, heads(&c)).with_bias(bias, bias);
            let attention = attention.with_rope(Rope::new(c.head_dim, theta, &scaling).interleaved());
            let per_head = |heads| Norm::Layer(LayerNorm::per_head(heads, c.head_dim, eps));
            Layer {
                input_layernorm: norm(),
                self_attn: if norms { attention.with_norms(per_head) } else { attention },
                mlp: GatedMlp::new(c.hidden_size, c.intermediate_size, Act::Silu),
            }
        };
        let tied = keys.bool("tie_word_embeddings", true);
        (Cohere { decoder: Decoder::new(&c, tied, norm(), block), logit_scale }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.decoder.forward(kv) * self.logit_scale
    }
}

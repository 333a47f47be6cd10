//! StableLM 2 and 3B (Bellagente et al., arXiv 2402.17834): layer norms, partial rotation; the 12B has parallel branches and norms
//! on each query and key head.

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Block, Decoder, GatedMlp, LayerNorm, Norm, Rope};
use crate::{KvCache, Module, Tensor};

/// One layer.
#[derive(Module)]
pub struct Layer {
    input_layernorm: LayerNorm,
    self_attn: Attention,
    /// Absent where branches are parallel.
    post_attention_layernorm: Option<LayerNorm>,
    mlp: GatedMlp,
}

impl Block for Layer {
    fn call<'t>(&self, x: Tensor<'t>, kv: &KvCache<'t>, layer: usize) -> Tensor<'t> {
        let normed = self.input_layernorm.call(x);
        let h = x + self.self_attn.call(normed, kv, layer);
        h + self.mlp.call(self.post_attention_layernorm.as_ref().map_or(normed, |n| n.call(h)))
    }
}

/// The model.
#[derive(Module)]
pub struct StableLm {
    #[module(flatten)]
    decoder: Decoder<Layer, LayerNorm>,
}

impl CausalLm for StableLm {
    fn from_keys(keys: &mut Keys<'_>) -> (StableLm, Common) {
        keys.rename(&[("rope_pct", "partial_rotary_factor"), ("norm_eps", "layer_norm_eps")]);
        let c = keys.common(&Defaults { max_position_embeddings: Some(4096), ..Defaults::default() });
        keys.one_of("hidden_act", &["silu"]);
        let eps = keys.float("layer_norm_eps", 1e-30..=1.0, 1e-5);
        let rotary = keys.rotary_dim(c.head_dim, 0.25);
        let (theta, scaling) = keys.rope(None, 10_000.0, rotary);
        let bias = keys.bool("use_qkv_bias", false);
        let norms = keys.bool("qk_layernorm", false);
        let parallel = keys.bool("use_parallel_residual", false);
        keys.harmless(&["rotary_scaling_factor"]);
        let norm = || LayerNorm::new(c.hidden_size, eps);
        let block = |_| {
            let attention = Attention::new(c.hidden_size, heads(&c)).with_bias(bias, false);
            let attention = attention.with_rope(Rope::new(rotary, theta, &scaling));
            let separate = |heads| Norm::Layer(LayerNorm::separate_heads(heads, c.head_dim, eps));
            Layer {
                input_layernorm: norm(),
                self_attn: match norms {
                    true => attention.with_norms(separate).norms_stored_as("layernorm"),
                    false => attention,
                },
                post_attention_layernorm: (!parallel).then(norm),
                mlp: GatedMlp::new(c.hidden_size, c.intermediate_size, Act::Silu),
            }
        };
        let tied = keys.bool("tie_word_embeddings", false);
        (StableLm { decoder: Decoder::new(&c, tied, norm(), block) }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.decoder.forward(kv)
    }
}

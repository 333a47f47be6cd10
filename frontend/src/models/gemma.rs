//! Gemma: norms with factor 1 + w, GeGLU, a scaled embedding that is also the output projection (Gemma Team, arXiv 2403.08295).

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Decoder, GatedMlp, PreNorm, RmsNorm, Rope};
use crate::{KvCache, Module, Tensor};

/// The model.
#[derive(Module)]
pub struct Gemma {
    #[module(flatten)]
    decoder: Decoder<PreNorm<RmsNorm, GatedMlp>, RmsNorm>,
    #[module(skip)]
    embed_scale: f32,
}

impl CausalLm for Gemma {
    fn from_keys(keys: &mut Keys<'_>) -> (Gemma, Common) {
        let c = keys.common(&Defaults { head_dim: Some(256), ..Defaults::default() });
        // Early checkpoints name the exact function in `hidden_act`, and were trained with the other.
        keys.one_of("hidden_activation", &["gelu_pytorch_tanh"]);
        keys.one_of("hidden_act", &["gelu", "gelu_pytorch_tanh"]);
        let eps = keys.float("rms_norm_eps", 1e-30..=1.0, 1e-6);
        let (theta, scaling) = keys.rope(None, 10_000.0, c.head_dim);
        let bias = keys.bool("attention_bias", false);
        let norm = || RmsNorm::new(c.hidden_size, eps).with_offset(1.0);
        let block = |_| {
            let attention = Attention::new(c.hidden_size, heads(&c)).with_bias(bias, bias);
            let attention = attention.with_rope(Rope::new(c.head_dim, theta, &scaling));
            PreNorm::new(norm, attention, GatedMlp::new(c.hidden_size, c.intermediate_size, Act::GeluTanh))
        };
        let tied = keys.bool("tie_word_embeddings", true);
        let embed_scale = (c.hidden_size as f32).sqrt();
        (Gemma { decoder: Decoder::new(&c, tied, norm(), block), embed_scale }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        let x = self.decoder.embed(kv) * self.embed_scale;
        self.decoder.logits(self.decoder.layers(x, kv))
    }
}

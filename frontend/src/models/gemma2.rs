//! Gemma 2: norms before and after each branch, capped scores and logits, a window on every other layer
//! (Gemma Team, arXiv 2408.00118).

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Block, Decoder, GatedMlp, RmsNorm, Rope};
use crate::{KvCache, Module, Tensor};

/// One layer.
#[derive(Module)]
pub struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: GatedMlp,
    post_feedforward_layernorm: RmsNorm,
}

impl Block for Layer {
    fn call<'t>(&self, x: Tensor<'t>, kv: &KvCache<'t>, layer: usize) -> Tensor<'t> {
        let attention = self.self_attn.call(self.input_layernorm.call(x), kv, layer);
        let h = x + self.post_attention_layernorm.call(attention);
        h + self.post_feedforward_layernorm.call(self.mlp.call(self.pre_feedforward_layernorm.call(h)))
    }
}

/// The model.
#[derive(Module)]
pub struct Gemma2 {
    #[module(flatten)]
    decoder: Decoder<Layer, RmsNorm>,
    #[module(skip)]
    embed_scale: f32,
    #[module(skip)]
    softcap: f32,
}

impl CausalLm for Gemma2 {
    fn from_keys(keys: &mut Keys<'_>) -> (Gemma2, Common) {
        let c = keys.common(&Defaults { head_dim: Some(256), ..Defaults::default() });
        keys.one_of("hidden_activation", &["gelu_pytorch_tanh"]);
        keys.one_of("hidden_act", &["gelu_pytorch_tanh"]);
        let eps = keys.float("rms_norm_eps", 1e-30..=1.0, 1e-6);
        let (theta, scaling) = keys.rope(None, 10_000.0, c.head_dim);
        let bias = keys.bool("attention_bias", false);
        let scale = keys.float("query_pre_attn_scalar", 1e-3..=1e9, 256.0);
        let score_cap = keys.cap("attn_logit_softcapping", 50.0);
        let softcap = keys.cap("final_logit_softcapping", 30.0);
        let window = keys.int_or_null("sliding_window", 1..=1 << 24).unwrap_or(4096);
        let full = keys.full_attention(c.num_hidden_layers, |i| i % 2 == 1);
        let h = c.hidden_size;
        let norm = || RmsNorm::new(h, eps).with_offset(1.0);
        let block = |i: usize| {
            let attention = Attention::new(h, heads(&c)).with_bias(bias, bias);
            let attention = attention.with_rope(Rope::new(c.head_dim, theta, &scaling));
            let attention = attention.with_scale((scale as f32).sqrt().recip()).with_softcap(score_cap);
            Layer {
                input_layernorm: norm(),
                self_attn: attention.with_window(if full[i] { 0 } else { window }),
                post_attention_layernorm: norm(),
                pre_feedforward_layernorm: norm(),
                mlp: GatedMlp::new(h, c.intermediate_size, Act::GeluTanh),
                post_feedforward_layernorm: norm(),
            }
        };
        let tied = keys.bool("tie_word_embeddings", true);
        let decoder = Decoder::new(&c, tied, norm(), block);
        (Gemma2 { decoder, embed_scale: (h as f32).sqrt(), softcap }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        let x = self.decoder.embed(kv) * self.embed_scale;
        let logits = self.decoder.logits(self.decoder.layers(x, kv));
        if self.softcap > 0.0 { logits.softcap(self.softcap) } else { logits }
    }
}

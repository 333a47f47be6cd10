//! Qwen 1 (Bai et al., arXiv 2309.16609): Llama under other names. Beyond the training length the rotation base grows and queries
//! are scaled by the logarithm of their position.

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys, RopeScaling};
use crate::nn::{Act, Attention, Embedding, GatedMlp, Linear, QkvRows, RmsNorm, Rope};
use crate::{KvCache, Module, Tensor, dims};

/// One layer.
#[derive(Module)]
struct Layer {
    ln_1: RmsNorm,
    attn: Attention,
    ln_2: RmsNorm,
    mlp: GatedMlp,
}

#[derive(Module)]
struct Transformer {
    wte: Embedding,
    h: Vec<Layer>,
    ln_f: RmsNorm,
}

/// The model.
#[derive(Module)]
pub struct Qwen {
    transformer: Transformer,
    lm_head: Linear,
    /// Training length beyond which queries are scaled.
    #[module(skip)]
    log_scaled: Option<usize>,
}

impl CausalLm for Qwen {
    fn from_keys(keys: &mut Keys<'_>) -> (Qwen, Common) {
        keys.rename(&[("kv_channels", "head_dim"), ("rotary_emb_base", "rope_theta")]);
        let c = keys.common(&Defaults { max_position_embeddings: Some(8192), ..Defaults::default() });
        let eps = keys.float("layer_norm_epsilon", 1e-30..=1.0, 1e-6);
        let theta = keys.float("rope_theta", 1e-3..=1e15, 10_000.0);
        let length = keys.int_or_null("seq_length", 2..=1 << 24).unwrap_or(c.max_position_embeddings.max(2));
        let rope = match keys.bool("use_dynamic_ntk", false) {
            true => Rope::ntk_by_length(c.head_dim, theta, length, c.max_position_embeddings),
            false => Rope::new(c.head_dim, theta, &RopeScaling::Default),
        };
        let log_scaled = keys.bool("use_logn_attn", false).then_some(length);
        keys.harmless(&[
            "attn_dropout_prob",
            "emb_dropout_prob",
            "bf16",
            "fp16",
            "fp32",
            "onnx_safe",
            "use_flash_attn",
        ]);
        keys.harmless(&["use_cache_quantization", "use_cache_kernel", "softmax_in_fp32"]);
        keys.fixed("no_bias", true);
        keys.fixed("rotary_pct", 1.0);
        keys.fixed("scale_attn_weights", true);
        keys.fixed("tie_word_embeddings", false);
        let h = c.hidden_size;
        let layer = |_| {
            let attention = Attention::new(h, heads(&c)).with_bias(true, false).with_rope(rope.clone());
            Layer {
                ln_1: RmsNorm::new(h, eps),
                attn: attention.fused("c_attn", QkvRows::Joined).output_stored_as("c_proj"),
                ln_2: RmsNorm::new(h, eps),
                // The setting counts both factors.
                mlp: GatedMlp::new(h, c.intermediate_size / 2, Act::Silu).stored_as(["w2", "w1", "c_proj"]),
            }
        };
        let transformer = Transformer {
            wte: Embedding::new(c.vocab_size, h),
            h: (0..c.num_hidden_layers).map(layer).collect(),
            ln_f: RmsNorm::new(h, eps),
        };
        (Qwen { transformer, lm_head: Linear::new(h, c.vocab_size), log_scaled }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        let step = kv.step();
        let factor = self.log_scaled.map(|length| {
            let count = kv.pos().to_f32() + 1.0;
            let n = count.shape().first().cloned().unwrap_or_default();
            (count.ln() * (length as f32).ln().recip()).max(1.0).reshape(dims![n, 1, 1])
        });
        let mut x = self.transformer.wte.call(step.tokens);
        for (i, layer) in self.transformer.h.iter().enumerate() {
            let normed = layer.ln_1.call(x);
            let q = layer.attn.query(normed, kv);
            let q = factor.map_or(q, |f| q * f);
            x = x + layer.attn.attend(q, normed, kv, i);
            x = x + layer.mlp.call(layer.ln_2.call(x));
        }
        self.lm_head.call(self.transformer.ln_f.call(x).rows(step.rows))
    }
}

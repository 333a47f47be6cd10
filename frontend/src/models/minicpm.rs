//! MiniCPM (Hu et al., arXiv 2404.06395): Llama with scaled embedding, branches and logits; dense, or a mixture of experts.

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Decoder, Experts, GatedMlp, Layer, PreNorm, RmsNorm, Rope};
use crate::{KvCache, Module, Tensor};

/// The feed-forward part of a layer.
#[derive(Module)]
pub enum FeedForward {
    /// One network.
    Dense(Box<GatedMlp>),
    /// A mixture.
    Sparse(Box<Experts>),
}

impl Layer for FeedForward {
    fn call<'t>(&self, x: Tensor<'t>) -> Tensor<'t> {
        match self {
            FeedForward::Dense(mlp) => mlp.call(x),
            FeedForward::Sparse(experts) => experts.call(x),
        }
    }
}

/// The model.
#[derive(Module)]
pub struct MiniCpm {
    #[module(flatten)]
    decoder: Decoder<PreNorm<RmsNorm, FeedForward>, RmsNorm>,
    #[module(skip)]
    embed_scale: f32,
    #[module(skip)]
    logit_scale: f32,
}

impl CausalLm for MiniCpm {
    fn from_keys(keys: &mut Keys<'_>) -> (MiniCpm, Common) {
        let c = keys.common(&Defaults { max_position_embeddings: Some(2048), ..Defaults::default() });
        keys.one_of("hidden_act", &["silu"]);
        let eps = keys.float("rms_norm_eps", 1e-30..=1.0, 1e-6);
        let (theta, scaling) = keys.rope(None, 10_000.0, c.head_dim);
        let bias = keys.bool("attention_bias", false);
        let experts = keys.has("num_experts").then(|| keys.experts("num_experts", 8, 2));
        let embed_scale = keys.float("scale_emb", 1e-9..=1e9, 1.0) as f32;
        let depth = keys.float("scale_depth", 1e-9..=1e9, 1.0) / (c.num_hidden_layers as f64).sqrt();
        let base = keys.int_or_null("dim_model_base", 1..=1 << 20).unwrap_or(1);
        // GGUF files give what is made of the two.
        let depth = keys.float("residual_scale", 1e-9..=1e9, depth);
        let divisor = keys.float("logit_divisor", 1e-9..=1e9, c.hidden_size as f64 / base as f64);
        let h = c.hidden_size;
        let norm = || RmsNorm::new(h, eps);
        let feed_forward = || match experts {
            None => FeedForward::Dense(GatedMlp::new(h, c.intermediate_size, Act::Silu).into()),
            Some(e) => FeedForward::Sparse(Experts::new(h, c.intermediate_size, e, true, ["w1", "w3", "w2"]).into()),
        };
        let block = |_| {
            let attention = Attention::new(h, heads(&c)).with_bias(bias, bias);
            let attention = attention.with_rope(Rope::new(c.head_dim, theta, &scaling));
            PreNorm::new(norm, attention, feed_forward()).with_branch_scale(depth as f32)
        };
        let tied = keys.bool("tie_word_embeddings", true);
        let decoder = Decoder::new(&c, tied, norm(), block);
        (MiniCpm { decoder, embed_scale, logit_scale: divisor.recip() as f32 }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        let x = self.decoder.embed(kv) * self.embed_scale;
        self.decoder.logits(self.decoder.layers(x, kv) * self.logit_scale)
    }
}

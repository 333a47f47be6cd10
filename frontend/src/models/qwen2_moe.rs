//! Qwen2-MoE: Qwen2 with a mixture of experts beside one that every token passes.

use super::{CausalLm, qwen2};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Decoder, Experts, GatedMlp, Layer, Linear, PreNorm, RmsNorm};
use crate::{KvCache, Module, Tensor};

/// The feed-forward part of a layer.
#[derive(Module)]
pub enum FeedForward {
    /// One network.
    Dense(Box<GatedMlp>),
    /// A mixture.
    Sparse(Box<Sparse>),
}

/// A mixture, and a network with its own gate.
#[derive(Module)]
pub struct Sparse {
    #[module(flatten)]
    experts: Experts,
    shared_expert: GatedMlp,
    shared_expert_gate: Linear,
}

impl Layer for FeedForward {
    fn call<'t>(&self, x: Tensor<'t>) -> Tensor<'t> {
        match self {
            FeedForward::Dense(mlp) => mlp.call(x),
            FeedForward::Sparse(s) => {
                s.experts.call(x) + s.shared_expert.call(x) * s.shared_expert_gate.call(x).sigmoid()
            }
        }
    }
}

/// The model.
#[derive(Module)]
pub struct Qwen2Moe {
    #[module(flatten)]
    decoder: Decoder<PreNorm<RmsNorm, FeedForward>, RmsNorm>,
}

impl CausalLm for Qwen2Moe {
    fn from_keys(keys: &mut Keys<'_>) -> (Qwen2Moe, Common) {
        let c = keys.common(&Defaults { max_position_embeddings: Some(32_768), ..Defaults::default() });
        keys.one_of("hidden_act", &["silu"]);
        keys.harmless(&["output_router_logits", "router_aux_loss_coef"]);
        let eps = keys.float("rms_norm_eps", 1e-30..=1.0, 1e-6);
        let attention = qwen2::attention(keys, &c);
        let experts = keys.experts("num_experts", 60, 4);
        let normalise = keys.bool("norm_topk_prob", false);
        let inner = keys.int_or_null("moe_intermediate_size", 1..=1 << 24).unwrap_or(1408);
        let shared = keys.int_or_null("shared_expert_intermediate_size", 1..=1 << 24).unwrap_or(5632);
        let every = keys.int_or_null("decoder_sparse_step", 1..=4096).unwrap_or(1);
        let dense = keys.integers("mlp_only_layers");
        let h = c.hidden_size;
        let names = ["gate_proj", "up_proj", "down_proj"];
        let feed_forward = |i: usize| match dense.contains(&i) || !(i + 1).is_multiple_of(every) {
            true => FeedForward::Dense(GatedMlp::new(h, c.intermediate_size, Act::Silu).into()),
            false => FeedForward::Sparse(Box::new(Sparse {
                experts: Experts::new(h, inner, experts, normalise, names),
                shared_expert: GatedMlp::new(h, shared, Act::Silu),
                shared_expert_gate: Linear::new(h, 1),
            })),
        };
        let norm = || RmsNorm::new(h, eps);
        let tied = keys.bool("tie_word_embeddings", false);
        let block = |i| PreNorm::new(norm, attention(i), feed_forward(i));
        (Qwen2Moe { decoder: Decoder::new(&c, tied, norm(), block) }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.decoder.forward(kv)
    }
}

//! Orion: Llama with layer norms (OrionStarAI, arXiv 2401.12246).

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Decoder, GatedMlp, LayerNorm, PreNorm, Rope};
use crate::{KvCache, Module, Tensor};

/// The model.
#[derive(Module)]
pub struct Orion {
    #[module(flatten)]
    decoder: Decoder<PreNorm<LayerNorm, GatedMlp>, LayerNorm>,
}

impl CausalLm for Orion {
    fn from_keys(keys: &mut Keys<'_>) -> (Orion, Common) {
        let c = keys.common(&Defaults { max_position_embeddings: Some(4096), ..Defaults::default() });
        keys.one_of("hidden_act", &["silu"]);
        keys.harmless(&["max_sequence_length"]);
        let eps = keys.float("rms_norm_eps", 1e-30..=1.0, 1e-5);
        let bias = keys.bool("attention_bias", false);
        let (theta, scaling) = keys.rope(None, 10_000.0, c.head_dim);
        let norm = || LayerNorm::new(c.hidden_size, eps);
        let block = |_| {
            let attention = Attention::new(c.hidden_size, heads(&c)).with_bias(bias, bias);
            let attention = attention.with_rope(Rope::new(c.head_dim, theta, &scaling));
            PreNorm::new(norm, attention, GatedMlp::new(c.hidden_size, c.intermediate_size, Act::Silu))
        };
        let tied = keys.bool("tie_word_embeddings", false);
        (Orion { decoder: Decoder::new(&c, tied, norm(), block) }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.decoder.forward(kv)
    }
}

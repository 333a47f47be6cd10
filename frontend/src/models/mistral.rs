//! Mistral: Llama with a sliding window (Jiang et al., arXiv 2310.06825).

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Decoder, GatedMlp, PreNorm, RmsNorm, Rope};
use crate::{KvCache, Module, Tensor};

/// The model.
#[derive(Module)]
pub struct Mistral {
    #[module(flatten)]
    decoder: Decoder<PreNorm<RmsNorm, GatedMlp>, RmsNorm>,
}

impl CausalLm for Mistral {
    fn from_keys(keys: &mut Keys<'_>) -> (Mistral, Common) {
        let c = keys.common(&Defaults::default());
        keys.one_of("hidden_act", &["silu"]);
        let eps = keys.float("rms_norm_eps", 1e-30..=1.0, 1e-6);
        let window = keys.int_or_null("sliding_window", 1..=1 << 24).unwrap_or(0);
        let (theta, scaling) = keys.rope(None, 10_000.0, c.head_dim);
        let norm = || RmsNorm::new(c.hidden_size, eps);
        let block = |_| {
            let attention = Attention::new(c.hidden_size, heads(&c));
            let attention = attention.with_rope(Rope::new(c.head_dim, theta, &scaling)).with_window(window);
            PreNorm::new(norm, attention, GatedMlp::new(c.hidden_size, c.intermediate_size, Act::Silu))
        };
        let tied = keys.bool("tie_word_embeddings", false);
        (Mistral { decoder: Decoder::new(&c, tied, norm(), block) }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.decoder.forward(kv)
    }
}

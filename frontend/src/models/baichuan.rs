//! Baichuan 1 and 2 (Yang et al., arXiv 2309.10305). The 13B models have slopes instead of rotation; Baichuan 2 divides each row of
//! the output projection by its length.

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Decoder, GatedMlp, PreNorm, QkvRows, RmsNorm, Rope};
use crate::{KvCache, Module, Tensor, dims};

/// Vocabulary of the first generation. Its 13B model shares the class name of the second generation.
const FIRST_VOCAB: usize = 64_000;

/// The model.
#[derive(Module)]
pub struct Baichuan {
    #[module(flatten)]
    decoder: Decoder<PreNorm<RmsNorm, GatedMlp>, RmsNorm>,
    #[module(skip)]
    normalise_head: bool,
}

impl CausalLm for Baichuan {
    fn from_keys(keys: &mut Keys<'_>) -> (Baichuan, Common) {
        // Only the 13B models say `model_max_length`; in GGUF files, their layers tell them.
        let sloped = !keys.has("max_position_embeddings") || keys.bool("alibi", false);
        keys.rename(&[("model_max_length", "max_position_embeddings")]);
        let c = keys.common(&Defaults { max_position_embeddings: Some(4096), ..Defaults::default() });
        keys.one_of("hidden_act", &["silu"]);
        keys.harmless(&["gradient_checkpointing", "z_loss_weight"]);
        let eps = keys.float("rms_norm_eps", 1e-30..=1.0, 1e-6);
        let (theta, scaling) = keys.rope(None, 10_000.0, c.head_dim);
        let norm = || RmsNorm::new(c.hidden_size, eps);
        let block = |_| {
            let attention = Attention::new(c.hidden_size, heads(&c)).fused("W_pack", QkvRows::Joined);
            let attention = match sloped {
                true => attention.with_alibi(),
                false => attention.with_rope(Rope::new(c.head_dim, theta, &scaling)),
            };
            PreNorm::new(norm, attention, GatedMlp::new(c.hidden_size, c.intermediate_size, Act::Silu))
        };
        let tied = keys.bool("tie_word_embeddings", false);
        let second = keys.is_class("BaichuanForCausalLM") && c.vocab_size != FIRST_VOCAB;
        let normalise_head = keys.bool("norm_head", second);
        (Baichuan { decoder: Decoder::new(&c, tied, norm(), block), normalise_head }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        let logits = self.decoder.forward(kv);
        if !self.normalise_head {
            return logits;
        }
        let w = logits.param(self.decoder.head());
        let lengths = (w * w).sum().max(1e-24).rsqrt();
        logits * lengths.reshape(dims![1, self.decoder.head().shape()[0]])
    }
}

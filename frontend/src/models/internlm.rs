//! InternLM 1: Llama with biases in attention.

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys, RopeScaling};
use crate::nn::{Act, Attention, Decoder, GatedMlp, PreNorm, RmsNorm, Rope};
use crate::{KvCache, Module, Tensor};

/// The model.
#[derive(Module)]
pub struct InternLm {
    #[module(flatten)]
    decoder: Decoder<PreNorm<RmsNorm, GatedMlp>, RmsNorm>,
}

impl CausalLm for InternLm {
    fn from_keys(keys: &mut Keys<'_>) -> (InternLm, Common) {
        let c = keys.common(&Defaults { max_position_embeddings: Some(2048), ..Defaults::default() });
        keys.one_of("hidden_act", &["silu"]);
        let eps = keys.float("rms_norm_eps", 1e-30..=1.0, 1e-6);
        let bias = keys.bool("bias", true);
        let (base, kind, factor) = keys.rotary();
        let scaling = match kind {
            "dynamic" => RopeScaling::Dynamic { factor, original_max_position_embeddings: c.max_position_embeddings },
            _ => RopeScaling::Default,
        };
        let norm = || RmsNorm::new(c.hidden_size, eps);
        let block = |_| {
            let attention = Attention::new(c.hidden_size, heads(&c)).with_bias(bias, bias);
            let attention = attention.with_rope(Rope::new(c.head_dim, base, &scaling));
            PreNorm::new(norm, attention, GatedMlp::new(c.hidden_size, c.intermediate_size, Act::Silu))
        };
        let tied = keys.bool("tie_word_embeddings", false);
        (InternLm { decoder: Decoder::new(&c, tied, norm(), block) }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.decoder.forward(kv)
    }
}

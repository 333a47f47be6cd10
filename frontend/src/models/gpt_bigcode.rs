//! GPT-BigCode: SantaCoder and StarCoder (Li et al., arXiv 2305.06161). GPT-2 with one key head, weights stored plainly.

use super::gpt2::{Layer, NAMES, Transformer};
use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, LayerNorm, Mlp, QkvRows};
use crate::{KvCache, Module, Tensor};

/// The model.
#[derive(Module)]
pub struct GptBigCode {
    transformer: Transformer,
}

impl CausalLm for GptBigCode {
    fn from_keys(keys: &mut Keys<'_>) -> (GptBigCode, Common) {
        keys.rename(&NAMES);
        let hidden = keys.int_or_null("hidden_size", 1..=1 << 20).unwrap_or(768);
        let one_key_head = keys.bool("multi_query", true);
        let defaults = Defaults {
            intermediate_size: Some(4 * hidden),
            max_position_embeddings: Some(1024),
            num_key_value_heads: one_key_head.then_some(1),
            ..Defaults::default()
        };
        let c = keys.common(&defaults);
        let act = keys.act("hidden_act", Act::GeluTanh);
        let eps = keys.float("layer_norm_eps", 1e-30..=1.0, 1e-5);
        keys.harmless(&["_n_ctx", "attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_softmax_in_fp32"]);
        keys.harmless(&[
            "scale_attention_softmax_in_fp32",
            "inference_runner",
            "max_batch_size",
            "max_sequence_length",
        ]);
        keys.harmless(&["pad_key_length", "pre_allocate_kv_cache", "validate_runner_input", "summary_activation"]);
        keys.harmless(&["summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"]);
        keys.fixed("tie_word_embeddings", true);
        keys.fixed("scale_attn_weights", true);
        let layer = |_| {
            let attention = Attention::new(c.hidden_size, heads(&c)).with_bias(true, true);
            Layer {
                ln_1: LayerNorm::new(c.hidden_size, eps),
                attn: attention.fused("c_attn", QkvRows::ByGroup).output_stored_as("c_proj"),
                ln_2: LayerNorm::new(c.hidden_size, eps),
                mlp: Mlp::new(c.hidden_size, c.intermediate_size, act, ["c_fc", "c_proj"]),
            }
        };
        (GptBigCode { transformer: Transformer::new(&c, eps, layer) }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.transformer.forward(kv)
    }
}

//! GPT-2 (Radford et al., 2019): learned positions, layer norms, biases everywhere, weights stored transposed.

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Embedding, LayerNorm, Mlp, QkvRows};
use crate::{KvCache, Module, Tensor};

/// Settings under the names that other architectures give them.
pub(super) const NAMES: [(&str, &str); 8] = [
    ("n_embd", "hidden_size"),
    ("n_head", "num_attention_heads"),
    ("n_layer", "num_hidden_layers"),
    ("n_inner", "intermediate_size"),
    ("n_positions", "max_position_embeddings"),
    ("activation_function", "hidden_act"),
    ("layer_norm_epsilon", "layer_norm_eps"),
    ("n_ctx", "_n_ctx"),
];

/// One layer.
#[derive(Module)]
pub(super) struct Layer {
    pub ln_1: LayerNorm,
    pub attn: Attention,
    pub ln_2: LayerNorm,
    pub mlp: Mlp,
}

/// The model; GPT-BigCode has the same body.
#[derive(Module)]
pub(super) struct Transformer {
    pub wte: Embedding,
    pub wpe: Embedding,
    pub h: Vec<Layer>,
    pub ln_f: LayerNorm,
}

impl Transformer {
    pub fn new(c: &Common, eps: f64, layer: impl Fn(usize) -> Layer) -> Transformer {
        Transformer {
            wte: Embedding::new(c.vocab_size, c.hidden_size),
            wpe: Embedding::new(c.max_position_embeddings, c.hidden_size),
            h: (0..c.num_hidden_layers).map(layer).collect(),
            ln_f: LayerNorm::new(c.hidden_size, eps),
        }
    }

    pub fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        let mut x = self.wte.call(kv.step().tokens) + self.wpe.call(kv.pos());
        for (i, layer) in self.h.iter().enumerate() {
            x = x + layer.attn.call(layer.ln_1.call(x), kv, i);
            x = x + layer.mlp.call(layer.ln_2.call(x));
        }
        self.ln_f.call(x).rows(kv.step().rows).linear(&self.wte.weight)
    }
}

/// The model.
#[derive(Module)]
pub struct Gpt2 {
    transformer: Transformer,
}

impl CausalLm for Gpt2 {
    fn from_keys(keys: &mut Keys<'_>) -> (Gpt2, Common) {
        keys.rename(&NAMES);
        let hidden = keys.int_or_null("hidden_size", 1..=1 << 20).unwrap_or(768);
        let defaults = Defaults {
            intermediate_size: Some(4 * hidden),
            max_position_embeddings: Some(1024),
            ..Defaults::default()
        };
        let c = keys.common(&defaults);
        let act = keys.act("hidden_act", Act::GeluTanh);
        let eps = keys.float("layer_norm_eps", 1e-30..=1.0, 1e-5);
        keys.harmless(&["_n_ctx", "attn_pdrop", "embd_pdrop", "resid_pdrop", "reorder_and_upcast_attn"]);
        keys.harmless(&["summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type"]);
        keys.harmless(&["summary_use_proj"]);
        keys.fixed("tie_word_embeddings", true);
        let by_layer = keys.bool("scale_attn_by_inverse_layer_idx", false);
        let scaled = keys.bool("scale_attn_weights", true);
        let layer = |i: usize| {
            let scale = if scaled { (c.head_dim as f32).sqrt().recip() } else { 1.0 };
            let scale = if by_layer { scale / (i + 1) as f32 } else { scale };
            let attention = Attention::new(c.hidden_size, heads(&c)).with_bias(true, true).with_scale(scale);
            Layer {
                ln_1: LayerNorm::new(c.hidden_size, eps),
                attn: attention.fused("c_attn", QkvRows::Joined).output_stored_as("c_proj").transposed(),
                ln_2: LayerNorm::new(c.hidden_size, eps),
                mlp: Mlp::new(c.hidden_size, c.intermediate_size, act, ["c_fc", "c_proj"]).transposed(),
            }
        };
        (Gpt2 { transformer: Transformer::new(&c, eps, layer) }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.transformer.forward(kv)
    }
}

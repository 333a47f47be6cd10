//! Phi 1, 1.5 and 2 (Li et al., arXiv 2309.05463): parallel branches after one layer norm, partial rotation, biases everywhere.
//! Checkpoints of before they came to transformers have other names.

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Embedding, LayerNorm, Linear, Mlp, Norm, QkvRows, Rope};
use crate::{KvCache, Module, Tensor};

/// One layer.
#[derive(Module)]
struct Layer {
    input_layernorm: LayerNorm,
    self_attn: Attention,
    mlp: Mlp,
}

#[derive(Module)]
struct Body {
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    final_layernorm: LayerNorm,
}

/// The model.
#[derive(Module)]
pub struct Phi {
    model: Body,
    lm_head: Linear,
}

/// What early checkpoints call settings.
const SETTINGS: [(&str, &str); 8] = [
    ("n_embd", "hidden_size"),
    ("n_head", "num_attention_heads"),
    ("n_head_kv", "num_key_value_heads"),
    ("n_layer", "num_hidden_layers"),
    ("n_inner", "intermediate_size"),
    ("n_positions", "max_position_embeddings"),
    ("activation_function", "hidden_act"),
    ("layer_norm_epsilon", "layer_norm_eps"),
];

/// How a checkpoint names its tensors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    Present,
    /// `phi-msft`: embedding, layers and head by name.
    Named,
    /// `mixformer-sequential`: all of them by number.
    Numbered,
}

impl Names {
    /// Where a part of a layer is stored whose parameters lie `depth` modules below it.
    fn layer(self, i: usize, depth: usize, present: &str, early: &str) -> String {
        let (mut up, number) = ("../".repeat(depth), i + 1);
        match self {
            Names::Present => return present.to_owned(),
            Names::Named => up += &format!("../../h.{i}"),
            Names::Numbered => up += &format!("../{number}"),
        }
        format!("{up}.{early}")
    }

    /// Where embedding, last norm and head are stored.
    fn ends(self, layers: usize) -> [String; 3] {
        match self {
            Names::Present => ["embed_tokens", "final_layernorm", "lm_head"].map(str::to_owned),
            Names::Named => ["embd.wte", "../lm_head.ln", "lm_head.linear"].map(str::to_owned),
            Names::Numbered => {
                let last = |part: &str| format!("layers.{}.{part}", layers + 1);
                ["layers.0.wte".to_owned(), last("ln"), last("linear")]
            }
        }
    }
}

impl CausalLm for Phi {
    fn from_keys(keys: &mut Keys<'_>) -> (Phi, Common) {
        let names = match keys.get("model_type").and_then(|t| t.as_str()) {
            Some("phi-msft") => Names::Named,
            Some("mixformer-sequential") => Names::Numbered,
            _ => Names::Present,
        };
        keys.rename(&SETTINGS);
        keys.harmless(&["architecture", "attn_pdrop", "flash_attn", "flash_rotary", "fused_dense", "phyagi_version"]);
        let inner = keys.int_or_null("hidden_size", 1..=1 << 20).map(|h| 4 * h).filter(|_| names != Names::Present);
        let defaults =
            Defaults { intermediate_size: inner, max_position_embeddings: Some(2048), ..Defaults::default() };
        let c = keys.common(&defaults);
        let act = keys.act("hidden_act", Act::GeluTanh);
        let eps = keys.float("layer_norm_eps", 1e-30..=1.0, 1e-5);
        let rotary = keys.rotary_dim(c.head_dim, 0.5);
        let (theta, scaling) = keys.rope(None, 10_000.0, rotary);
        let norms = keys.bool("qk_layernorm", false);
        keys.harmless(&["embd_pdrop", "resid_pdrop"]);
        keys.fixed("tie_word_embeddings", false);
        let h = c.hidden_size;
        let layer = |i: usize| {
            let attention = Attention::new(h, heads(&c)).with_bias(true, true);
            // Early checkpoints join the projections.
            let attention = attention.fused(&names.layer(i, 1, "Wqkv", "mixer.Wqkv"), QkvRows::Joined);
            let attention = attention.output_stored_as(&names.layer(i, 1, "dense", "mixer.out_proj"));
            let attention = attention.with_rope(Rope::new(rotary, theta, &scaling));
            let fc = |name: &str| names.layer(i, 1, name, &format!("mlp.{name}"));
            Layer {
                input_layernorm: LayerNorm::new(h, eps).stored_as(&names.layer(i, 0, "input_layernorm", "ln")),
                self_attn: match norms {
                    true => attention
                        .with_norms(|_| Norm::Layer(LayerNorm::new(c.head_dim, eps)))
                        .norms_stored_as("layernorm"),
                    false => attention,
                },
                mlp: Mlp::new(h, c.intermediate_size, act, [&fc("fc1"), &fc("fc2")]),
            }
        };
        let [embedding, norm, head] = names.ends(c.num_hidden_layers);
        let body = Body {
            embed_tokens: Embedding::new(c.vocab_size, h).stored_as(&embedding),
            layers: (0..c.num_hidden_layers).map(layer).collect(),
            final_layernorm: LayerNorm::new(h, eps).stored_as(&norm),
        };
        (Phi { model: body, lm_head: Linear::new(h, c.vocab_size).with_bias(true).stored_as(&head) }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        let step = kv.step();
        let mut x = self.model.embed_tokens.call(step.tokens);
        for (i, layer) in self.model.layers.iter().enumerate() {
            let h = layer.input_layernorm.call(x);
            x = layer.self_attn.call(h, kv, i) + layer.mlp.call(h) + x;
        }
        self.lm_head.call(self.model.final_layernorm.call(x).rows(step.rows))
    }
}

//! Template: a language model on Marquetry.
//!
//! Change what you like: parts are plain structs, the step is plain Rust. A mistake in a shape is reported with your line.

use marquetry::frontend::config::{Common, Defaults, Keys};
use marquetry::frontend::models::CausalLm;
use marquetry::frontend::nn::{Act, Attention, Block, Decoder, GatedMlp, Heads, RmsNorm, Rope};
use marquetry::frontend::{KvCache, Module, Tensor};

/// One layer. Names of fields are names of tensors in the checkpoint; `#[module(name = "..")]` gives another.
#[derive(Module)]
pub struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: GatedMlp,
}

impl Block for Layer {
    fn call<'t>(&self, x: Tensor<'t>, kv: &KvCache<'t>, layer: usize) -> Tensor<'t> {
        let h = x + self.self_attn.call(self.input_layernorm.call(x), kv, layer);
        h + self.mlp.call(self.post_attention_layernorm.call(h))
    }
}

/// The model.
#[derive(Module)]
pub struct Template {
    #[module(flatten)]
    decoder: Decoder<Layer, RmsNorm>,
}

impl CausalLm for Template {
    /// Reads `config.json`. A setting that nobody reads is an error: it might change results.
    fn from_keys(keys: &mut Keys<'_>) -> (Template, Common) {
        let c = keys.common(&Defaults { max_position_embeddings: Some(2048), ..Defaults::default() });
        let eps = keys.float("rms_norm_eps", 1e-30..=1.0, 1e-6);
        let act = keys.act("hidden_act", Act::Silu);
        let (theta, scaling) = keys.rope(None, 10_000.0, c.head_dim);
        let heads = Heads { query: c.num_attention_heads, kv: c.num_key_value_heads, dim: c.head_dim };
        let norm = || RmsNorm::new(c.hidden_size, eps);
        let layer = |_| Layer {
            input_layernorm: norm(),
            self_attn: Attention::new(c.hidden_size, heads).with_rope(Rope::new(c.head_dim, theta, &scaling)),
            post_attention_layernorm: norm(),
            mlp: GatedMlp::new(c.hidden_size, c.intermediate_size, act),
        };
        let tied = keys.bool("tie_word_embeddings", true);
        (Template { decoder: Decoder::new(&c, tied, norm(), layer) }, c)
    }

    /// Logits of the rows asked for. Prefill, decoding and batches are this same function at other sizes.
    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.decoder.forward(kv)
    }
}

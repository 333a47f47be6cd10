//! ChatGLM 2 and 3, GLM-4 (GLM Team, arXiv 2406.12793): joined projections, rotation of neighbours in half of each head.

use super::{CausalLm, heads};
use crate::config::{Common, Defaults, Keys, RopeScaling};
use crate::nn::{Act, Attention, Embedding, GatedMlp, Linear, QkvRows, RmsNorm, Rope};
use crate::{KvCache, Module, Tensor};

const NAMES: [(&str, &str); 7] = [
    ("num_layers", "num_hidden_layers"),
    ("ffn_hidden_size", "intermediate_size"),
    ("kv_channels", "head_dim"),
    ("padded_vocab_size", "vocab_size"),
    ("seq_length", "max_position_embeddings"),
    ("layernorm_epsilon", "rms_norm_eps"),
    ("multi_query_group_num", "num_key_value_heads"),
];

/// One layer.
#[derive(Module)]
struct Layer {
    input_layernorm: RmsNorm,
    self_attention: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: GatedMlp,
}

#[derive(Module)]
struct Embeddings {
    word_embeddings: Embedding,
}

#[derive(Module)]
struct Encoder {
    layers: Vec<Layer>,
    final_layernorm: RmsNorm,
}

#[derive(Module)]
struct Transformer {
    embedding: Embeddings,
    encoder: Encoder,
    output_layer: Linear,
}

/// The model.
#[derive(Module)]
pub struct ChatGlm {
    transformer: Transformer,
}

impl CausalLm for ChatGlm {
    fn from_keys(keys: &mut Keys<'_>) -> (ChatGlm, Common) {
        // Without the switch every query head has its own key head, whatever the number says.
        keys.fixed("multi_query_attention", true);
        keys.rename(&NAMES);
        let c = keys.common(&Defaults { max_position_embeddings: Some(2048), ..Defaults::default() });
        let eps = keys.float("rms_norm_eps", 1e-30..=1.0, 1e-5);
        let qkv_bias = keys.bool("add_qkv_bias", false);
        let bias = keys.bool("add_bias_linear", false);
        let theta = 10_000.0 * keys.float("rope_ratio", 1e-6..=1e9, 1.0);
        let theta = keys.float("rope_theta", 1e-3..=1e15, theta);
        for (key, only) in [
            ("rmsnorm", true),
            ("post_layer_norm", true),
            ("original_rope", true),
            ("apply_residual_connection_post_layernorm", false),
            ("tie_word_embeddings", false),
        ] {
            keys.fixed(key, only);
        }
        keys.harmless(&["apply_query_key_layer_scaling", "attention_softmax_in_fp32", "bias_dropout_fusion"]);
        keys.harmless(&["fp32_residual_connection", "classifier_dropout", "pre_seq_len", "prefix_projection"]);
        keys.harmless(&["quantization_bit", "interleaved_qkv"]);
        let h = c.hidden_size;
        let layer = |_| {
            let attention = Attention::new(h, heads(&c)).with_bias(qkv_bias || bias, bias);
            let attention = attention.fused("query_key_value", QkvRows::Joined).output_stored_as("dense");
            let mlp = GatedMlp::new(h, c.intermediate_size, Act::Silu).with_bias(bias);
            Layer {
                input_layernorm: RmsNorm::new(h, eps),
                self_attention: attention
                    .with_rope(Rope::new(c.head_dim / 2, theta, &RopeScaling::Default).interleaved()),
                post_attention_layernorm: RmsNorm::new(h, eps),
                mlp: mlp.fused("dense_h_to_4h", "dense_4h_to_h"),
            }
        };
        let encoder =
            Encoder { layers: (0..c.num_hidden_layers).map(layer).collect(), final_layernorm: RmsNorm::new(h, eps) };
        let embedding = Embeddings { word_embeddings: Embedding::new(c.vocab_size, h) };
        let output_layer = Linear::new(h, c.vocab_size);
        (ChatGlm { transformer: Transformer { embedding, encoder, output_layer } }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        let (step, t) = (kv.step(), &self.transformer);
        let mut x = t.embedding.word_embeddings.call(step.tokens);
        for (i, layer) in t.encoder.layers.iter().enumerate() {
            x = x + layer.self_attention.call(layer.input_layernorm.call(x), kv, i);
            x = x + layer.mlp.call(layer.post_attention_layernorm.call(x));
        }
        t.output_layer.call(t.encoder.final_layernorm.call(x).rows(step.rows))
    }
}

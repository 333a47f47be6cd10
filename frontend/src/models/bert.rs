//! BERT (Devlin et al., arXiv 1810.04805): an encoder. Every token sees its whole sequence; norms come after each branch.

use super::{Encoder, heads};
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Act, Attention, Embedding, LayerNorm, Linear};
use crate::{DType, KvCache, Module, Tensor};

#[derive(Module)]
struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    #[module(name = "LayerNorm")]
    norm: LayerNorm,
}

/// The end of a branch: a projection, the sum with what went in, a norm.
#[derive(Module)]
struct Output {
    dense: Linear,
    #[module(name = "LayerNorm")]
    norm: LayerNorm,
}

#[derive(Module)]
struct SelfAttention {
    #[module(name = "self")]
    heads: Attention,
    output: AttentionOutput,
}

/// The projection out of the heads belongs to the attention; files keep it here.
#[derive(Module)]
struct AttentionOutput {
    #[module(name = "LayerNorm")]
    norm: LayerNorm,
}

#[derive(Module)]
struct Intermediate {
    dense: Linear,
}

/// One layer.
#[derive(Module)]
struct Layer {
    attention: SelfAttention,
    intermediate: Intermediate,
    output: Output,
}

#[derive(Module)]
struct Stack {
    layer: Vec<Layer>,
}

#[derive(Module)]
struct Pooler {
    dense: Linear,
}

/// The model.
#[derive(Module)]
pub struct Bert {
    embeddings: Embeddings,
    encoder: Stack,
    pooler: Option<Pooler>,
    #[module(skip)]
    act: Act,
}

impl Encoder for Bert {
    fn from_keys(keys: &mut Keys<'_>) -> (Bert, Common) {
        let c = keys.common(&Defaults { max_position_embeddings: Some(512), ..Defaults::default() });
        let act = keys.act("hidden_act", Act::Gelu);
        let eps = keys.float("layer_norm_eps", 1e-30..=1.0, 1e-12);
        let types = keys.int_or_null("type_vocab_size", 1..=1 << 16).unwrap_or(2);
        keys.one_of("position_embedding_type", &["absolute"]);
        keys.harmless(&["attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout"]);
        keys.harmless(&["gradient_checkpointing", "tie_word_embeddings"]);
        let h = c.hidden_size;
        let dense = |i, o| Linear::new(i, o).with_bias(true);
        let norm = || LayerNorm::new(h, eps);
        let layer = |_| {
            let attention = Attention::new(h, heads(&c)).with_bias(true, true).bidirectional();
            let attention = attention.inputs_stored_as(["query", "key", "value"]).output_stored_as("../output.dense");
            Layer {
                attention: SelfAttention { heads: attention, output: AttentionOutput { norm: norm() } },
                intermediate: Intermediate { dense: dense(h, c.intermediate_size) },
                output: Output { dense: dense(c.intermediate_size, h), norm: norm() },
            }
        };
        let embeddings = Embeddings {
            word_embeddings: Embedding::new(c.vocab_size, h),
            position_embeddings: Embedding::new(c.max_position_embeddings, h),
            token_type_embeddings: Embedding::new(types, h),
            norm: norm(),
        };
        let encoder = Stack { layer: (0..c.num_hidden_layers).map(layer).collect() };
        let pooler = keys.bool("add_pooling_layer", true).then(|| Pooler { dense: dense(h, h) });
        (Bert { embeddings, encoder, pooler, act }, c)
    }

    /// `last_hidden_state` and, if there is a pooler, `pooler_output`, both `[r, hidden]`; the latter is meant for the first token
    /// of a sequence.
    fn outputs<'t>(&self, kv: &KvCache<'t>) -> Vec<(&'static str, Tensor<'t>)> {
        let (step, e) = (kv.step(), &self.embeddings);
        let types = step.per_token("token_types", DType::I32);
        let words = e.word_embeddings.call(step.tokens) + e.token_type_embeddings.call(types);
        let mut x = e.norm.call(words + e.position_embeddings.call(step.pos));
        for (i, layer) in self.encoder.layer.iter().enumerate() {
            let attention = layer.attention.heads.call(x, kv, i);
            x = layer.attention.output.norm.call(attention + x);
            let inner = self.act.call(layer.intermediate.dense.call(x));
            x = layer.output.norm.call(layer.output.dense.call(inner) + x);
        }
        let x = x.rows(step.rows);
        let pooled = self.pooler.as_ref().map(|p| ("pooler_output", p.dense.call(x).tanh()));
        [("last_hidden_state", x)].into_iter().chain(pooled).collect()
    }
}

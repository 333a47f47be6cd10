//! The frame of a decoder: embedding, layers, norm, output projection.

use super::{Attention, Embedding, Experts, GatedMlp, LayerNorm, Linear, Mlp, Norm, RmsNorm};
use crate::config::Common;
use crate::{KvCache, Module, Tensor};

/// A part that changes each token by itself: `[n, dim]` to `[n, dim]`.
pub trait Layer: Module {
    /// Same shape.
    fn call<'t>(&self, x: Tensor<'t>) -> Tensor<'t>;
}

/// A layer of a decoder, which tokens look back through.
pub trait Block: Module {
    /// `[n, hidden]` to `[n, hidden]`; `layer` counts from 0.
    fn call<'t>(&self, x: Tensor<'t>, kv: &KvCache<'t>, layer: usize) -> Tensor<'t>;
}

macro_rules! layers {
    ($($ty:ident),*) => {$(
        impl Layer for $ty {
            fn call<'t>(&self, x: Tensor<'t>) -> Tensor<'t> {
                $ty::call(self, x)
            }
        }
    )*};
}
layers!(RmsNorm, LayerNorm, Norm, GatedMlp, Mlp, Experts);

/// Attention, then a feed-forward network, each over a normalised copy and added to the residual stream; under the names that
/// most models share.
#[derive(Debug, Module)]
pub struct PreNorm<N: Layer, M: Layer> {
    input_layernorm: N,
    self_attn: Attention,
    post_attention_layernorm: N,
    mlp: M,
    #[module(skip)]
    branch_scale: f32,
}

impl<N: Layer, M: Layer> PreNorm<N, M> {
    /// From its parts.
    pub fn new(norm: impl Fn() -> N, self_attn: Attention, mlp: M) -> PreNorm<N, M> {
        let (input_layernorm, post_attention_layernorm) = (norm(), norm());
        PreNorm { input_layernorm, self_attn, post_attention_layernorm, mlp, branch_scale: 1.0 }
    }

    /// Both branches are multiplied by a number before they are added.
    pub fn with_branch_scale(mut self, scale: f32) -> PreNorm<N, M> {
        self.branch_scale = scale;
        self
    }
}

impl<N: Layer, M: Layer> Block for PreNorm<N, M> {
    fn call<'t>(&self, x: Tensor<'t>, kv: &KvCache<'t>, layer: usize) -> Tensor<'t> {
        let scaled = |t: Tensor<'t>| if self.branch_scale == 1.0 { t } else { t * self.branch_scale };
        let h = x + scaled(self.self_attn.call(self.input_layernorm.call(x), kv, layer));
        h + scaled(self.mlp.call(self.post_attention_layernorm.call(h)))
    }
}

/// Everything below the output projection.
#[derive(Debug, Module)]
pub struct Body<B: Block, N: Layer> {
    embed_tokens: Embedding,
    layers: Vec<B>,
    norm: N,
}

/// Embedding, layers, norm, and an output projection that may be the embedding; under the names that most models share.
#[derive(Debug, Module)]
pub struct Decoder<B: Block, N: Layer> {
    model: Body<B, N>,
    lm_head: Option<Linear>,
}

impl<B: Block, N: Layer> Decoder<B, N> {
    /// `block` makes each layer; `tied` makes the embedding the output projection.
    pub fn new(c: &Common, tied: bool, norm: N, block: impl Fn(usize) -> B) -> Decoder<B, N> {
        let embed_tokens = Embedding::new(c.vocab_size, c.hidden_size);
        let body = Body { embed_tokens, layers: (0..c.num_hidden_layers).map(block).collect(), norm };
        Decoder { model: body, lm_head: (!tied).then(|| Linear::new(c.hidden_size, c.vocab_size)) }
    }

    /// What files call the embedding and the output projection.
    pub fn stored_as(mut self, embedding: &str, head: &str) -> Decoder<B, N> {
        self.model.embed_tokens = self.model.embed_tokens.stored_as(embedding);
        self.lm_head = self.lm_head.map(|l| l.stored_as(head));
        self
    }

    /// The output projection's weight, `[vocab, hidden]`.
    pub fn head(&self) -> &crate::Param {
        self.lm_head.as_ref().map_or(&self.model.embed_tokens.weight, Linear::weight)
    }

    /// Embeddings of the step's tokens, `[n, hidden]`.
    pub fn embed<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.model.embed_tokens.call(kv.step().tokens)
    }

    /// The layers and the last norm, for the rows asked for: `[n, hidden]` to `[r, hidden]`.
    pub fn layers<'t>(&self, mut x: Tensor<'t>, kv: &KvCache<'t>) -> Tensor<'t> {
        for (i, block) in self.model.layers.iter().enumerate() {
            x = block.call(x, kv, i);
        }
        self.model.norm.call(x).rows(kv.step().rows)
    }

    /// `[r, hidden]` to `[r, vocab]`.
    pub fn logits<'t>(&self, x: Tensor<'t>) -> Tensor<'t> {
        x.linear(self.head())
    }

    /// Logits `[r, vocab]` of the rows asked for.
    pub fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.logits(self.layers(self.embed(kv), kv))
    }
}

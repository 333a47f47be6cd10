//! Llama: Llama 1 to 3, SmolLM, TinyLlama and others with the same body (Touvron et al., arXiv 2302.13971).

use super::CausalLm;
use crate::config::{Common, Keys, LlamaConfig};
use crate::nn::{Embedding, Linear, RmsNorm, Rope};
use crate::{Attend, KvCache, Module, Tensor};

/// Grouped-query attention.
#[derive(Module)]
pub struct Attention {
    #[module(name = "q_proj")]
    q: Linear,
    #[module(name = "k_proj")]
    k: Linear,
    #[module(name = "v_proj")]
    v: Linear,
    #[module(name = "o_proj")]
    o: Linear,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    kv_heads: usize,
    #[module(skip)]
    head_dim: usize,
    #[module(skip)]
    rope: Rope,
}

impl Attention {
    fn new(c: &LlamaConfig) -> Attention {
        let (h, q, kv) = (c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let bias = c.attention_bias;
        Attention {
            q: Linear::new(h, q).with_bias(bias),
            k: Linear::new(h, kv).with_bias(bias),
            v: Linear::new(h, kv).with_bias(bias),
            o: Linear::new(q, h).with_bias(bias),
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            rope: Rope::new(c.head_dim, c.rope_theta, &c.rope_scaling),
        }
    }

    fn forward<'t>(&self, x: Tensor<'t>, kv: &KvCache<'t>, layer: usize) -> Tensor<'t> {
        let q = self.rope.call(self.q.call(x).split_heads(self.heads, self.head_dim), kv);
        let k = self.rope.call(self.k.call(x).split_heads(self.kv_heads, self.head_dim), kv);
        let v = self.v.call(x).split_heads(self.kv_heads, self.head_dim);
        let how = Attend { scale: (self.head_dim as f32).sqrt().recip(), window: 0, softcap: 0.0 };
        self.o.call(q.attend(&kv.update(layer, k, v), how).merge_heads())
    }
}

/// Gated feed-forward network.
#[derive(Module)]
pub struct Mlp {
    #[module(name = "gate_proj")]
    gate: Linear,
    #[module(name = "up_proj")]
    up: Linear,
    #[module(name = "down_proj")]
    down: Linear,
}

impl Mlp {
    fn new(c: &LlamaConfig) -> Mlp {
        let (h, f) = (c.hidden_size, c.intermediate_size);
        let layer = |i, o| Linear::new(i, o).with_bias(c.mlp_bias);
        Mlp { gate: layer(h, f), up: layer(h, f), down: layer(f, h) }
    }

    fn forward<'t>(&self, x: Tensor<'t>) -> Tensor<'t> {
        self.down.call(self.gate.call(x).silu() * self.up.call(x))
    }
}

/// One layer.
#[derive(Module)]
pub struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl Block {
    fn new(c: &LlamaConfig) -> Block {
        let norm = || RmsNorm::new(c.hidden_size, c.rms_norm_eps);
        Block {
            input_layernorm: norm(),
            self_attn: Attention::new(c),
            post_attention_layernorm: norm(),
            mlp: Mlp::new(c),
        }
    }

    fn forward<'t>(&self, x: Tensor<'t>, kv: &KvCache<'t>, layer: usize) -> Tensor<'t> {
        let h = x + self.self_attn.forward(self.input_layernorm.call(x), kv, layer);
        h + self.mlp.forward(self.post_attention_layernorm.call(h))
    }
}

/// Everything below the output projection.
#[derive(Module)]
pub struct Body {
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
}

/// The model.
#[derive(Module)]
pub struct Llama {
    model: Body,
    lm_head: Option<Linear>,
}

impl Llama {
    /// From a configuration.
    pub fn new(c: &LlamaConfig) -> Llama {
        let body = Body {
            embed_tokens: Embedding::new(c.vocab_size, c.hidden_size),
            layers: (0..c.num_hidden_layers).map(|_| Block::new(c)).collect(),
            norm: RmsNorm::new(c.hidden_size, c.rms_norm_eps),
        };
        let head = (!c.tie_word_embeddings).then(|| Linear::new(c.hidden_size, c.vocab_size));
        Llama { model: body, lm_head: head }
    }
}

impl CausalLm for Llama {
    fn from_keys(keys: &mut Keys<'_>) -> (Llama, Common) {
        let (c, common) = LlamaConfig::read(keys);
        (Llama::new(&c), common)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        let step = kv.step();
        let mut x = self.model.embed_tokens.call(step.tokens);
        for (i, block) in self.model.layers.iter().enumerate() {
            x = block.forward(x, kv, i);
        }
        let x = self.model.norm.call(x).rows(step.rows);
        match &self.lm_head {
            Some(head) => head.call(x),
            None => x.linear(&self.model.embed_tokens.weight),
        }
    }
}

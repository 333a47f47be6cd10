//! Gemma 3, text part (Gemma Team, arXiv 2503.19786): sliding-window and global layers, norms before and after each branch.

use super::CausalLm;
use crate::config::{Common, Gemma3Config, Keys, RopeScaling};
use crate::nn::{Embedding, Linear, RmsNorm, Rope};
use crate::{Attend, KvCache, Module, Tensor};

fn norm(dim: usize, c: &Gemma3Config) -> RmsNorm {
    RmsNorm::new(dim, c.rms_norm_eps).with_offset(1.0)
}

/// Grouped-query attention with normalised queries and keys.
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
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    #[module(skip)]
    heads: usize,
    #[module(skip)]
    kv_heads: usize,
    #[module(skip)]
    head_dim: usize,
    #[module(skip)]
    how: Attend,
    #[module(skip)]
    rope: Rope,
}

impl Attention {
    fn new(c: &Gemma3Config, layer: usize) -> Attention {
        let (h, q, kv) = (c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let full = c.full_attention.get(layer).copied().unwrap_or(true);
        let (theta, scaling, window) = match full {
            true => (c.rope_theta, c.rope_scaling.clone(), 0),
            false => (c.rope_local_base_freq, RopeScaling::Default, c.sliding_window),
        };
        let project = |i, o| Linear::new(i, o).with_bias(c.attention_bias);
        Attention {
            q: project(h, q),
            k: project(h, kv),
            v: project(h, kv),
            o: project(q, h),
            q_norm: norm(c.head_dim, c),
            k_norm: norm(c.head_dim, c),
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            how: Attend { scale: (c.query_pre_attn_scalar as f32).sqrt().recip(), window, softcap: 0.0 },
            rope: Rope::new(c.head_dim, theta, &scaling),
        }
    }

    fn forward<'t>(&self, x: Tensor<'t>, kv: &KvCache<'t>, layer: usize) -> Tensor<'t> {
        let q = self.q_norm.call(self.q.call(x).split_heads(self.heads, self.head_dim));
        let k = self.k_norm.call(self.k.call(x).split_heads(self.kv_heads, self.head_dim));
        let v = self.v.call(x).split_heads(self.kv_heads, self.head_dim);
        let cached = kv.update(layer, self.rope.call(k, kv), v);
        self.o.call(self.rope.call(q, kv).attend(&cached, self.how).merge_heads())
    }
}

/// Gated feed-forward network with gelu.
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
    fn new(c: &Gemma3Config) -> Mlp {
        let (h, f) = (c.hidden_size, c.intermediate_size);
        Mlp { gate: Linear::new(h, f), up: Linear::new(h, f), down: Linear::new(f, h) }
    }

    fn forward<'t>(&self, x: Tensor<'t>) -> Tensor<'t> {
        self.down.call(self.gate.call(x).gelu_tanh() * self.up.call(x))
    }
}

/// One layer.
#[derive(Module)]
pub struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: Mlp,
    post_feedforward_layernorm: RmsNorm,
}

impl Block {
    fn new(c: &Gemma3Config, layer: usize) -> Block {
        let h = c.hidden_size;
        Block {
            input_layernorm: norm(h, c),
            self_attn: Attention::new(c, layer),
            post_attention_layernorm: norm(h, c),
            pre_feedforward_layernorm: norm(h, c),
            mlp: Mlp::new(c),
            post_feedforward_layernorm: norm(h, c),
        }
    }

    fn forward<'t>(&self, x: Tensor<'t>, kv: &KvCache<'t>, layer: usize) -> Tensor<'t> {
        let attention = self.self_attn.forward(self.input_layernorm.call(x), kv, layer);
        let h = x + self.post_attention_layernorm.call(attention);
        h + self.post_feedforward_layernorm.call(self.mlp.forward(self.pre_feedforward_layernorm.call(h)))
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
pub struct Gemma3 {
    model: Body,
    lm_head: Option<Linear>,
    #[module(skip)]
    embed_scale: f32,
}

impl Gemma3 {
    /// From a configuration.
    pub fn new(c: &Gemma3Config) -> Gemma3 {
        let body = Body {
            embed_tokens: Embedding::new(c.vocab_size, c.hidden_size),
            layers: (0..c.num_hidden_layers).map(|i| Block::new(c, i)).collect(),
            norm: norm(c.hidden_size, c),
        };
        let head = (!c.tie_word_embeddings).then(|| Linear::new(c.hidden_size, c.vocab_size));
        Gemma3 { model: body, lm_head: head, embed_scale: (c.hidden_size as f32).sqrt() }
    }
}

impl CausalLm for Gemma3 {
    fn from_keys(keys: &mut Keys<'_>) -> (Gemma3, Common) {
        let (c, common) = Gemma3Config::read(keys);
        (Gemma3::new(&c), common)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        let step = kv.step();
        let mut x = self.model.embed_tokens.call(step.tokens) * self.embed_scale;
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

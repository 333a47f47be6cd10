//! Self-attention over the cache.

use super::{Linear, Norm, Rope};
use crate::weights::Rows;
use crate::{Attend, KvCache, Module, Param, Tensor, join};

/// Numbers of heads, and features of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key and value heads; divides `query`.
    pub kv: usize,
    /// Features.
    pub dim: usize,
}

/// How the rows of a joined query, key and value projection are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvRows {
    /// All queries, all keys, all values.
    Joined,
    /// For each key head: the queries that read it, the key, the value.
    ByGroup,
}

/// Grouped-query attention (Ainslie et al., arXiv 2305.13245) with the variations that models have.
#[derive(Debug)]
pub struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    /// What the names of the norms end in.
    norm_name: &'static str,
    heads: Heads,
    rope: Option<Rope>,
    how: Attend,
    slopes: Vec<f32>,
    bidirectional: bool,
}

impl Module for Attention {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Param)) {
        for (name, l) in
            [("q_proj", &self.q_proj), ("k_proj", &self.k_proj), ("v_proj", &self.v_proj), ("o_proj", &self.o_proj)]
        {
            l.visit(&join(path, name), f);
        }
        self.q_norm.visit(&join(path, &format!("q_{}", self.norm_name)), f);
        self.k_norm.visit(&join(path, &format!("k_{}", self.norm_name)), f);
    }
}

impl Attention {
    /// Over `hidden` features, with scores divided by the square root of the head size; without biases, rotation or window.
    pub fn new(hidden: usize, heads: Heads) -> Attention {
        let (q, kv) = (heads.query * heads.dim, heads.kv * heads.dim);
        Attention {
            q_proj: Linear::new(hidden, q),
            k_proj: Linear::new(hidden, kv),
            v_proj: Linear::new(hidden, kv),
            o_proj: Linear::new(q, hidden),
            q_norm: None,
            k_norm: None,
            norm_name: "norm",
            heads,
            rope: None,
            how: Attend { scale: (heads.dim as f32).sqrt().recip(), window: 0, softcap: 0.0 },
            slopes: vec![],
            bidirectional: false,
        }
    }

    fn inputs(mut self, f: impl Fn(Linear, usize) -> Linear) -> Attention {
        (self.q_proj, self.k_proj, self.v_proj) = (f(self.q_proj, 0), f(self.k_proj, 1), f(self.v_proj, 2));
        self
    }

    /// Biases on the projections into heads, and on the one out of them.
    pub fn with_bias(self, qkv: bool, out: bool) -> Attention {
        let mut all = self.inputs(|l, _| l.with_bias(qkv));
        all.o_proj = all.o_proj.with_bias(out);
        all
    }

    /// Rotates queries and keys.
    pub fn with_rope(mut self, rope: Rope) -> Attention {
        self.rope = Some(rope);
        self
    }

    /// Normalises queries and keys before rotation; `norm` is given their number of heads.
    pub fn with_norms(mut self, norm: impl Fn(usize) -> Norm) -> Attention {
        (self.q_norm, self.k_norm) = (Some(norm(self.heads.query)), Some(norm(self.heads.kv)));
        self
    }

    /// Files call the norms `q_` and `k_` this.
    pub fn norms_stored_as(mut self, name: &'static str) -> Attention {
        self.norm_name = name;
        self
    }

    /// A token sees this many positions up to its own; 0 is all.
    pub fn with_window(mut self, window: usize) -> Attention {
        self.how.window = window;
        self
    }

    /// Factor on the scores.
    pub fn with_scale(mut self, scale: f32) -> Attention {
        self.how.scale = scale;
        self
    }

    /// Caps the scores to `±softcap`; 0 is off.
    pub fn with_softcap(mut self, softcap: f32) -> Attention {
        self.how.softcap = softcap;
        self
    }

    /// Adds ALiBi to the scores (Press et al., arXiv 2108.12409): slopes are powers of `2^(-8 / n)` for the largest power of two
    /// `n` of heads; the others take every second power of the series of `2n`.
    pub fn with_alibi(mut self) -> Attention {
        let n = (self.heads.query + 1).next_power_of_two() / 2;
        let slope = |k: usize, n: usize| (-8.0 * (k + 1) as f64 / n as f64).exp2() as f32;
        let more = (0..self.heads.query - n).map(|k| slope(2 * k, 2 * n));
        self.slopes = (0..n).map(|k| slope(k, n)).chain(more).collect();
        self
    }

    /// Every token sees the whole sequence.
    pub fn bidirectional(mut self) -> Attention {
        self.bidirectional = true;
        self
    }

    /// Files store queries, keys and values as rows of one `tensor`.
    pub fn fused(self, tensor: &str, order: QkvRows) -> Attention {
        let Heads { query, kv, dim } = self.heads;
        let (blocks, group) = match order {
            QkvRows::Joined => (1, [query, kv, kv]),
            QkvRows::ByGroup => (kv, [query / kv.max(1), 1, 1]),
        };
        let block = group.iter().sum::<usize>() * dim;
        let start = |i: usize| group.iter().take(i).sum::<usize>() * dim;
        self.inputs(|l, i| l.part_of(tensor, Rows::each(blocks, block, start(i), group[i] * dim)))
    }

    /// What files call the projections of queries, keys and values.
    pub fn inputs_stored_as(self, names: [&str; 3]) -> Attention {
        self.inputs(|l, i| l.stored_as(names[i]))
    }

    /// What files call the projection out of the heads.
    pub fn output_stored_as(mut self, name: &str) -> Attention {
        self.o_proj = self.o_proj.stored_as(name);
        self
    }

    /// Files store the weights as `[inputs, outputs]`.
    pub fn transposed(self) -> Attention {
        let mut all = self.inputs(|l, _| l.transposed());
        all.o_proj = all.o_proj.transposed();
        all
    }

    /// `[n, hidden]` to `[n, hidden]`, through the cache of a layer.
    #[track_caller]
    pub fn call<'t>(&self, x: Tensor<'t>, kv: &KvCache<'t>, layer: usize) -> Tensor<'t> {
        let q = self.query(x, kv);
        self.attend(q, x, kv, layer)
    }

    /// The queries `[n, heads, dim]`, normalised and rotated.
    #[track_caller]
    pub fn query<'t>(&self, x: Tensor<'t>, kv: &KvCache<'t>) -> Tensor<'t> {
        let q = self.q_proj.call(x).split_heads(self.heads.query, self.heads.dim);
        self.place(q, &self.q_norm, kv)
    }

    /// The rest of [`Attention::call`], for queries that were made from `x` and perhaps changed.
    #[track_caller]
    pub fn attend<'t>(&self, q: Tensor<'t>, x: Tensor<'t>, kv: &KvCache<'t>, layer: usize) -> Tensor<'t> {
        let Heads { kv: heads, dim, .. } = self.heads;
        let k = self.place(self.k_proj.call(x).split_heads(heads, dim), &self.k_norm, kv);
        let v = self.v_proj.call(x).split_heads(heads, dim);
        let mut cached = kv.update(layer, k, v);
        if self.bidirectional {
            cached = cached.bidirectional();
        }
        let y = match self.slopes.is_empty() {
            true => q.attend(&cached, self.how),
            false => q.attend_sloped(&cached, self.how, &self.slopes),
        };
        self.o_proj.call(y.merge_heads())
    }

    fn place<'t>(&self, x: Tensor<'t>, norm: &Option<Norm>, kv: &KvCache<'t>) -> Tensor<'t> {
        let x = norm.as_ref().map_or(x, |n| n.call(x));
        self.rope.as_ref().map_or(x, |r| r.call(x, kv))
    }
}

//! RWKV 5 and 6 (Peng et al., arXiv 2404.05892): a recurrence instead of attention. Each token is mixed with the one before it, and
//! each head keeps a matrix that decays, to which every token adds the product of its key and value.
//!
//! Both recurrences are operators of this file's own, given as loop IR. `time_*` parameters keep their published names.

use super::CausalLm;
use crate::config::{Common, Defaults, Keys};
use crate::nn::{Embedding, LayerNorm, Linear};
use crate::weights::Stored;
use crate::{KvCache, Module, Param, Recurrent, Tensor, dims};

/// The token before each one in its sequence; zeros before the first.
fn shift_kernel(width: usize) -> String {
    format!(
        "kernel @shift{width}(%last: f32[q, {width}] inout, %x: f32[n, {width}] in, %row: i32[n] in, %pos: i32[n] in,
           %before: f32[n, {width}] out) {{
          parallel d.0 in 0..{width} {{
            for t.1 in 0..n {{
              let s.2 = cast.i64(%row[t.1])
              store %before[t.1, d.0] = select(%pos[t.1] == 0:i32, 0.0, %last[s.2, d.0])
              store %last[s.2, d.0] = %x[t.1, d.0]
            }}
          }}
        }}"
    )
}

/// For each head: `y = r (diag(u) kᵀv + S)`, then `S = kᵀv + diag(w) S`.
fn wkv_kernel(heads: usize, dim: usize) -> String {
    format!(
        "kernel @wkv{heads}x{dim}(%state: f32[q, {heads}, {dim}, {dim}] inout, %r: f32[n, {heads}, {dim}] in,
           %k: f32[n, {heads}, {dim}] in, %v: f32[n, {heads}, {dim}] in, %w: f32[n, {heads}, {dim}] in, %u: f32[{heads}, {dim}] in,
           %row: i32[n] in, %pos: i32[n] in, %y: f32[n, {heads}, {dim}] out) {{
          local %sum: f32[{dim}]
          parallel h.0 in 0..{heads} {{
            for t.1 in 0..n {{
              let s.2 = cast.i64(%row[t.1])
              for j.3 in 0..{dim} {{
                store %sum[j.3] = 0.0
              }}
              for i.4 in 0..{dim} {{
                let r.5 = %r[t.1, h.0, i.4]
                let k.6 = %k[t.1, h.0, i.4]
                let w.7 = %w[t.1, h.0, i.4]
                let u.8 = %u[h.0, i.4]
                for j.9 in 0..{dim} {{
                  let a.10 = k.6 * %v[t.1, h.0, j.9]
                  let old.11 = select(%pos[t.1] == 0:i32, 0.0, %state[s.2, h.0, i.4, j.9])
                  store %sum[j.9] = %sum[j.9] + r.5 * (u.8 * a.10 + old.11)
                  store %state[s.2, h.0, i.4, j.9] = a.10 + w.7 * old.11
                }}
              }}
              for j.12 in 0..{dim} {{
                store %y[t.1, h.0, j.12] = %sum[j.12]
              }}
            }}
          }}
        }}"
    )
}

/// A factor per feature, stored `[1, 1, width]`.
#[derive(Debug, Module)]
struct Factor {
    #[module(name = "")]
    value: Param,
}

impl Factor {
    fn new(width: usize) -> Factor {
        Factor { value: Param::new(&[1, 1, width]) }
    }

    /// As `[1, width]`.
    fn get<'t>(&self, x: Tensor<'t>) -> Tensor<'t> {
        x.param(&self.value).reshape(dims![1, self.value.shape()[2]])
    }

    /// `x` and the token before it in these proportions.
    fn mix<'t>(&self, x: Tensor<'t>, before: Tensor<'t>) -> Tensor<'t> {
        before + (x - before) * self.get(x)
    }
}

/// Proportions of version 5, fixed.
#[derive(Debug, Module)]
struct Mix5 {
    time_mix_receptance: Factor,
    time_mix_key: Factor,
    time_mix_value: Factor,
    time_mix_gate: Factor,
    /// `[heads, dim]`; the decay is `exp(-exp(..))`.
    time_decay: Param,
}

/// Proportions and decay of version 6, which depend on the tokens.
#[derive(Debug, Module)]
struct Mix6 {
    time_maa_x: Factor,
    time_maa_w: Factor,
    time_maa_k: Factor,
    time_maa_v: Factor,
    time_maa_r: Factor,
    time_maa_g: Factor,
    /// `[5 · rank, hidden]`, stored transposed.
    time_maa_w1: Param,
    /// `[5, rank, hidden]`
    time_maa_w2: Param,
    time_decay: Factor,
    /// `[rank, hidden]`, stored transposed.
    time_decay_w1: Param,
    /// `[hidden, rank]`, stored transposed.
    time_decay_w2: Param,
}

#[derive(Debug, Module)]
enum Mix {
    Five(Box<Mix5>),
    Six(Box<Mix6>),
}

/// What the heads are made of: `[n, hidden]` each, and the decay `[n, heads, dim]`.
struct Mixed<'t> {
    receptance: Tensor<'t>,
    key: Tensor<'t>,
    value: Tensor<'t>,
    gate: Tensor<'t>,
    decay: Tensor<'t>,
}

impl Mix {
    fn new(version: u8, hidden: usize, heads: usize) -> Mix {
        let factor = || Factor::new(hidden);
        let transposed =
            |o: usize, i: usize| Param::new(&[o, i]).stored(Stored { transposed: true, ..Stored::default() });
        // Ranks of the published models.
        let (rank, decay) = if hidden >= 4096 { (64, 128) } else { (32, 64) };
        match version {
            5 => Mix::Five(Box::new(Mix5 {
                time_mix_receptance: factor(),
                time_mix_key: factor(),
                time_mix_value: factor(),
                time_mix_gate: factor(),
                time_decay: Param::new(&[heads, hidden / heads]),
            })),
            _ => Mix::Six(Box::new(Mix6 {
                time_maa_x: factor(),
                time_maa_w: factor(),
                time_maa_k: factor(),
                time_maa_v: factor(),
                time_maa_r: factor(),
                time_maa_g: factor(),
                time_maa_w1: transposed(5 * rank, hidden),
                time_maa_w2: Param::new(&[5, rank, hidden]),
                time_decay: factor(),
                time_decay_w1: transposed(decay, hidden),
                time_decay_w2: transposed(hidden, decay),
            })),
        }
    }

    fn call<'t>(&self, x: Tensor<'t>, before: Tensor<'t>, heads: usize) -> Mixed<'t> {
        let [n, hidden] = [0, 1].map(|i| x.shape().get(i).cloned().unwrap_or_default());
        match self {
            Mix::Five(m) => {
                let shape = m.time_decay.shape();
                let decay = (-x.param(&m.time_decay).exp()).exp().reshape(dims![1, shape[0], shape[1]]);
                Mixed {
                    receptance: m.time_mix_receptance.mix(x, before),
                    key: m.time_mix_key.mix(x, before),
                    value: m.time_mix_value.mix(x, before),
                    gate: m.time_mix_gate.mix(x, before),
                    decay: decay.broadcast(dims![n, shape[0], shape[1]]),
                }
            }
            Mix::Six(m) => {
                let change = before - x;
                let rank = m.time_maa_w2.shape()[1];
                let low = (x + change * m.time_maa_x.get(x)).linear(&m.time_maa_w1).tanh();
                let w2 = x.param(&m.time_maa_w2).permute(&[0, 2, 1]).reshape(dims![1, 5, hidden, rank]);
                let all = (low.reshape(dims![n, 5, 1, rank]) * w2).sum().reshape(dims![n, 5, hidden]);
                let mixed =
                    |i: usize, f: &Factor| x + change * (all.slice(1, i, 1).reshape(dims![n, hidden]) + f.get(x));
                let decay = mixed(0, &m.time_maa_w).linear(&m.time_decay_w1).tanh().linear(&m.time_decay_w2);
                let decay = (-(decay + m.time_decay.get(x)).exp()).exp();
                Mixed {
                    receptance: mixed(3, &m.time_maa_r),
                    key: mixed(1, &m.time_maa_k),
                    value: mixed(2, &m.time_maa_v),
                    gate: mixed(4, &m.time_maa_g),
                    decay: decay.split_heads(heads, m.time_decay.value.shape()[2] / heads),
                }
            }
        }
    }
}

/// The recurrence in place of attention.
#[derive(Debug, Module)]
struct TimeMix {
    #[module(flatten)]
    mix: Mix,
    /// `[heads, dim]`: weight of a token's own product.
    time_faaaa: Param,
    receptance: Linear,
    key: Linear,
    value: Linear,
    gate: Linear,
    output: Linear,
    ln_x: GroupNorm,
}

/// Normalises each head, with a gain and a bias per feature.
#[derive(Debug, Module)]
struct GroupNorm {
    weight: Param,
    bias: Param,
    #[module(skip)]
    eps: f32,
}

impl TimeMix {
    fn call<'t>(&self, x: Tensor<'t>, states: &States<'t>, kv: &KvCache<'t>, layer: usize) -> Tensor<'t> {
        let [heads, dim] = [0, 1].map(|i| self.time_faaaa.shape()[i]);
        let m = self.mix.call(x, states.before(&states.att_x, x, kv, layer), heads);
        let split = |t: Tensor<'t>| t.split_heads(heads, dim);
        let (r, k, v) = (self.receptance.call(m.receptance), self.key.call(m.key), self.value.call(m.value));
        let u = x.param(&self.time_faaaa);
        let operands = [split(r), split(k), split(v), m.decay, u, states.att_kv.row(), kv.pos()];
        let y = states.att_kv.update(layer, &wkv_kernel(heads, dim), &operands);
        let y = y.first().copied().unwrap_or(x).layer_norm(self.ln_x.eps).merge_heads();
        let y = y.gain(&self.ln_x.weight).bias(&self.ln_x.bias);
        self.output.call(y * self.gate.call(m.gate).silu())
    }
}

/// The feed-forward network.
#[derive(Debug, Module)]
struct ChannelMix {
    #[module(flatten)]
    mix: ChannelFactors,
    key: Linear,
    receptance: Linear,
    value: Linear,
}

#[derive(Debug, Module)]
enum ChannelFactors {
    Five(ChannelFactors5),
    Six(ChannelFactors6),
}

#[derive(Debug, Module)]
struct ChannelFactors5 {
    time_mix_key: Factor,
    time_mix_receptance: Factor,
}

#[derive(Debug, Module)]
struct ChannelFactors6 {
    time_maa_k: Factor,
    time_maa_r: Factor,
}

impl ChannelMix {
    fn call<'t>(&self, x: Tensor<'t>, before: Tensor<'t>) -> Tensor<'t> {
        let (k, r) = match &self.mix {
            ChannelFactors::Five(f) => (f.time_mix_key.mix(x, before), f.time_mix_receptance.mix(x, before)),
            ChannelFactors::Six(f) => {
                let change = before - x;
                (x + change * f.time_maa_k.get(x), x + change * f.time_maa_r.get(x))
            }
        };
        let k = self.key.call(k).relu();
        self.receptance.call(r).sigmoid() * self.value.call(k * k)
    }
}

/// One layer.
#[derive(Debug, Module)]
struct Block {
    /// Of the first layer only.
    pre_ln: Option<LayerNorm>,
    ln1: LayerNorm,
    attention: TimeMix,
    ln2: LayerNorm,
    feed_forward: ChannelMix,
}

/// What the layers remember: the last normalised inputs of both parts, and the heads' matrices.
struct States<'t> {
    att_x: Recurrent<'t>,
    ffn_x: Recurrent<'t>,
    att_kv: Recurrent<'t>,
}

impl<'t> States<'t> {
    fn before(&self, state: &Recurrent<'t>, x: Tensor<'t>, kv: &KvCache<'t>, layer: usize) -> Tensor<'t> {
        let width = x.shape().get(1).and_then(crate::Dim::as_const).unwrap_or(0);
        let kernel = shift_kernel(usize::try_from(width).unwrap_or(0));
        state.update(layer, &kernel, &[x, state.row(), kv.pos()]).first().copied().unwrap_or(x)
    }
}

#[derive(Debug, Module)]
struct Body {
    embeddings: Embedding,
    blocks: Vec<Block>,
    ln_out: LayerNorm,
}

/// The model, of version 5 or 6.
#[derive(Debug, Module)]
pub struct Rwkv<const VERSION: u8> {
    rwkv: Body,
    head: Linear,
    #[module(skip)]
    sizes: (usize, usize),
    /// The residual stream is halved after so many layers, again and again; 0 is never.
    #[module(skip)]
    halve_every: usize,
}

impl<const VERSION: u8> CausalLm for Rwkv<VERSION> {
    fn from_keys(keys: &mut Keys<'_>) -> (Self, Common) {
        let h = keys.need_int("hidden_size", 1..=1 << 20);
        let dim = keys.int_or_null("head_size", 1..=4096).unwrap_or(64);
        let defaults = Defaults {
            intermediate_size: Some((7 * h / 2 / 32 * 32).max(1)),
            num_attention_heads: Some((h / dim).max(1)),
            // A recurrence has no end; this bounds bookkeeping only.
            max_position_embeddings: Some(1 << 20),
            head_dim: Some(dim),
            ..Defaults::default()
        };
        let mut c = keys.common(&defaults);
        // Published configurations of version 6 give the head size under the name of their number.
        (c.num_attention_heads, c.num_key_value_heads, c.head_dim) = ((h / dim).max(1), (h / dim).max(1), dim);
        let (heads, f) = (c.num_attention_heads, c.intermediate_size);
        let eps = keys.float("layer_norm_epsilon", 1e-30..=1.0, 1e-5);
        let divisor = keys.float("head_size_divisor", 1e-3..=1e6, 8.0);
        keys.fixed("attention_hidden_size", h);
        keys.fixed("tie_word_embeddings", false);
        // Halves numbers of 16-bit arithmetic, without effect on f32.
        keys.harmless(&["rescale_every", "model_version"]);
        // GGUF files hold projections into the stream that were halved with it.
        let halve_every = keys.int_or_null("halve_every", 0..=4096).unwrap_or(0);
        let factor = || Factor::new(h);
        let block = |i: usize| Block {
            pre_ln: (i == 0).then(|| LayerNorm::new(h, eps)),
            ln1: LayerNorm::new(h, eps),
            attention: TimeMix {
                mix: Mix::new(VERSION, h, heads),
                time_faaaa: Param::new(&[heads, dim]),
                receptance: Linear::new(h, h),
                key: Linear::new(h, h),
                value: Linear::new(h, h),
                gate: Linear::new(h, h),
                output: Linear::new(h, h),
                ln_x: GroupNorm {
                    weight: Param::new(&[h]),
                    bias: Param::new(&[h]),
                    eps: (1e-5 * divisor * divisor) as f32,
                },
            },
            ln2: LayerNorm::new(h, eps),
            feed_forward: ChannelMix {
                mix: match VERSION {
                    5 => {
                        ChannelFactors::Five(ChannelFactors5 { time_mix_key: factor(), time_mix_receptance: factor() })
                    }
                    _ => ChannelFactors::Six(ChannelFactors6 { time_maa_k: factor(), time_maa_r: factor() }),
                },
                key: Linear::new(h, f),
                receptance: Linear::new(h, h),
                value: Linear::new(f, h),
            },
        };
        let rwkv = Body {
            embeddings: Embedding::new(c.vocab_size, h),
            blocks: (0..c.num_hidden_layers).map(block).collect(),
            ln_out: LayerNorm::new(h, eps),
        };
        (Rwkv { rwkv, head: Linear::new(h, c.vocab_size), sizes: (heads, dim), halve_every }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        let (step, layers) = (kv.step(), self.rwkv.blocks.len());
        let (heads, dim) = self.sizes;
        let states = States {
            att_x: step.recurrent("att_x", layers, &[heads * dim]),
            ffn_x: step.recurrent("ffn_x", layers, &[heads * dim]),
            att_kv: step.recurrent("att_kv", layers, &[heads, dim, dim]),
        };
        let mut x = self.rwkv.embeddings.call(step.tokens);
        for (i, b) in self.rwkv.blocks.iter().enumerate() {
            x = b.pre_ln.as_ref().map_or(x, |n| n.call(x));
            x = x + b.attention.call(b.ln1.call(x), &states, kv, i);
            let normed = b.ln2.call(x);
            x = x + b.feed_forward.call(normed, states.before(&states.ffn_x, normed, kv, i));
            if self.halve_every > 0 && (i + 1).is_multiple_of(self.halve_every) {
                x = x * 0.5;
            }
        }
        self.head.call(self.rwkv.ln_out.call(x).rows(step.rows))
    }
}

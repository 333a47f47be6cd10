//! Rotary position embedding (Su et al., arXiv 2104.09864) and its stretchings.

use std::f64::consts::PI;

use crate::config::RopeScaling;
use crate::{KvCache, Tensor, dims};

/// Rotary position embedding with its frequencies.
#[derive(Debug, Clone)]
pub struct Rope {
    frequencies: Frequencies,
    /// Factor on cosines and sines.
    scale: f32,
    interleaved: bool,
}

#[derive(Debug, Clone)]
enum Frequencies {
    /// The same for all.
    Fixed(Vec<f32>),
    /// Row `i` for sequences longer than `above[i - 1]`.
    ByLength { above: Vec<f32>, rows: Vec<Vec<f32>> },
    /// A base that grows with the sequence: `ln base = ln theta + power · ln(max(1, factor · len / original - factor + 1))`.
    Dynamic { exponents: Vec<f32>, ln_theta: f32, power: f32, factor: f32, original: f32 },
}

fn plain(dim: usize, theta: f64) -> impl Iterator<Item = f64> {
    (0..dim / 2).map(move |i| theta.powf(-2.0 * i as f64 / dim as f64))
}

/// Frequencies between stretched and kept ones, by how often they turn within the original context
/// (Peng et al., arXiv 2309.00071).
fn yarn(dim: usize, theta: f64, factor: f64, original: usize, (fast, slow): (f64, f64)) -> Vec<f32> {
    let turns = |t: f64| dim as f64 * (original as f64 / (t * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let low = turns(fast).floor().max(0.0);
    let high = turns(slow).ceil().min(dim as f64 - 1.0);
    let high = if high == low { high + 0.001 } else { high };
    let ramp = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
    plain(dim, theta).enumerate().map(|(i, f)| (f / factor * ramp(i) + f * (1.0 - ramp(i))) as f32).collect()
}

impl Rope {
    /// Base `theta` over the first `dim` features of a head, with a scaling variant.
    pub fn new(dim: usize, theta: f64, scaling: &RopeScaling) -> Rope {
        let base = plain(dim, theta);
        let divided = |by: &[f64]| plain(dim, theta).zip(by).map(|(f, d)| (f / d) as f32).collect::<Vec<_>>();
        let mut scale = 1.0;
        let frequencies = match scaling {
            RopeScaling::Default => Frequencies::Fixed(base.map(|f| f as f32).collect()),
            RopeScaling::Linear { factor } => Frequencies::Fixed(base.map(|f| (f / factor) as f32).collect()),
            RopeScaling::Factors { factors } => Frequencies::Fixed(divided(factors)),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let stretch = |f: f64| {
                    let turns = *original_max_position_embeddings as f64 * f / (2.0 * PI);
                    let smooth = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    ((1.0 - smooth) * f / factor + smooth * f) as f32
                };
                Frequencies::Fixed(base.map(stretch).collect())
            }
            RopeScaling::Yarn { factor, original_max_position_embeddings, beta_fast, beta_slow, attention_factor } => {
                scale = *attention_factor as f32;
                let turns = (*beta_fast, *beta_slow);
                Frequencies::Fixed(yarn(dim, theta, *factor, *original_max_position_embeddings, turns))
            }
            RopeScaling::LongRope { short_factor, long_factor, original_max_position_embeddings, attention_factor } => {
                scale = *attention_factor as f32;
                let rows = vec![divided(short_factor), divided(long_factor)];
                Frequencies::ByLength { above: vec![*original_max_position_embeddings as f32], rows }
            }
            RopeScaling::Dynamic { factor, original_max_position_embeddings } => Frequencies::Dynamic {
                exponents: (0..dim / 2).map(|i| (-2.0 * i as f64 / dim as f64) as f32).collect(),
                ln_theta: theta.ln() as f32,
                power: (dim as f64 / (dim as f64 - 2.0)) as f32,
                factor: *factor as f32,
                original: *original_max_position_embeddings as f32,
            },
        };
        Rope { frequencies, scale, interleaved: false }
    }

    /// The base is multiplied by `(2^k - 1)^(dim / (dim - 2))` for sequences of more than `2^(k - 2) · length` tokens, k ≥ 2, as in
    /// Qwen.
    pub fn ntk_by_length(dim: usize, theta: f64, length: usize, longest: usize) -> Rope {
        let (mut above, mut rows) = (vec![], vec![plain(dim, theta).map(|f| f as f32).collect()]);
        let mut limit = length.max(1);
        while limit < longest && rows.len() < 16 {
            let alpha = (2u64 << rows.len()) as f64 - 1.0;
            above.push(limit as f32);
            rows.push(plain(dim, theta * alpha.powf(dim as f64 / (dim as f64 - 2.0))).map(|f| f as f32).collect());
            limit *= 2;
        }
        Rope { frequencies: Frequencies::ByLength { above, rows }, scale: 1.0, interleaved: false }
    }

    /// Pairs are neighbours, `(2i, 2i + 1)`, instead of `(i, i + dim / 2)`.
    pub fn interleaved(mut self) -> Rope {
        self.interleaved = true;
        self
    }

    /// `[n, heads, dim]` at the positions of the step.
    #[track_caller]
    pub fn call<'t>(&self, x: Tensor<'t>, kv: &KvCache<'t>) -> Tensor<'t> {
        let pos = kv.pos();
        let column = |t: Tensor<'t>| t.reshape([t.shape(), dims![1]].concat());
        let frequencies = match &self.frequencies {
            Frequencies::Fixed(inv_freq) => return x.rope(pos, inv_freq, self.scale, self.interleaved),
            Frequencies::ByLength { above, rows } => {
                let span = kv.step().span().to_f32();
                let passed = above.iter().map(|limit| span.above(*limit));
                let row = passed.reduce(|a, b| a + b).unwrap_or_else(|| span.above(f32::INFINITY)).to_i32();
                let width = rows.first().map_or(0, Vec::len);
                x.table(&rows.concat()).reshape(dims![rows.len(), width]).rows(row)
            }
            Frequencies::Dynamic { exponents, ln_theta, power, factor, original } => {
                let grown = kv.step().span().to_f32() * (factor / original) - (factor - 1.0);
                let ln_base = grown.max(1.0).ln() * *power + *ln_theta;
                let exponents = x.table(exponents).reshape(dims![1, exponents.len()]);
                (column(ln_base) * exponents).exp()
            }
        };
        let angle = column(pos.to_f32()) * frequencies;
        let (mut c, mut s) = (angle.cos(), angle.sin());
        if self.scale != 1.0 {
            (c, s) = (c * self.scale, s * self.scale);
        }
        x.rope_apply(c.concat(&[s], 1), self.interleaved)
    }
}

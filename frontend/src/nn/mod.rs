//! Building blocks of models, all in public methods of [`Tensor`].

use crate::config::RopeScaling;
use crate::{Module, Param, Tensor};

/// `y = x Wᵀ + b`
#[derive(Debug, Module)]
pub struct Linear {
    weight: Param,
    bias: Option<Param>,
}

impl Linear {
    /// From `inputs` to `outputs` features.
    pub fn new(inputs: usize, outputs: usize) -> Linear {
        Linear { weight: Param::new(&[outputs, inputs]), bias: None }
    }

    /// Adds a bias when `yes`.
    pub fn with_bias(mut self, yes: bool) -> Linear {
        self.bias = yes.then(|| Param::new(&self.weight.shape()[..1]));
        self
    }

    /// `[.., inputs]` to `[.., outputs]`.
    #[track_caller]
    pub fn call<'t>(&self, x: Tensor<'t>) -> Tensor<'t> {
        let y = x.linear(&self.weight);
        match &self.bias {
            Some(b) => y.bias(b),
            None => y,
        }
    }
}

/// A table of vectors.
#[derive(Debug, Module)]
pub struct Embedding {
    /// `[vocab, dim]`; tie an output projection by using it there.
    pub weight: Param,
}

impl Embedding {
    /// `vocab` vectors of `dim` features.
    pub fn new(vocab: usize, dim: usize) -> Embedding {
        Embedding { weight: Param::new(&[vocab, dim]) }
    }

    /// i32 `[n]` to `[n, dim]`.
    #[track_caller]
    pub fn call<'t>(&self, ids: Tensor<'t>) -> Tensor<'t> {
        ids.embed(&self.weight)
    }
}

/// Root mean square normalisation of the last axis.
#[derive(Debug, Module)]
pub struct RmsNorm {
    weight: Param,
    #[module(skip)]
    eps: f32,
    #[module(skip)]
    offset: f32,
}

impl RmsNorm {
    /// Over `dim` features.
    pub fn new(dim: usize, eps: f64) -> RmsNorm {
        RmsNorm { weight: Param::new(&[dim]), eps: eps as f32, offset: 0.0 }
    }

    /// The gain is `offset + weight`, as in Gemma.
    pub fn with_offset(mut self, offset: f32) -> RmsNorm {
        self.offset = offset;
        self
    }

    /// Same shape.
    #[track_caller]
    pub fn call<'t>(&self, x: Tensor<'t>) -> Tensor<'t> {
        let w = x.param(&self.weight);
        x.rms_norm(if self.offset == 0.0 { w } else { w + self.offset }, self.eps)
    }
}

/// Rotary position embedding with its frequencies.
#[derive(Debug, Clone)]
pub struct Rope {
    inv_freq: Vec<f32>,
    scale: f32,
}

impl Rope {
    /// Base `theta` over the first `dim` features of a head, with a scaling variant.
    pub fn new(dim: usize, theta: f64, scaling: &RopeScaling) -> Rope {
        let base = (0..dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim as f64));
        let inv_freq = match scaling {
            RopeScaling::Default => base.map(|f| f as f32).collect(),
            RopeScaling::Linear { factor } => base.map(|f| (f / factor) as f32).collect(),
            RopeScaling::Factors { factors } => base.zip(factors).map(|(f, d)| (f / d) as f32).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => base
                .map(|f| {
                    let turns = *original_max_position_embeddings as f64 * f / (2.0 * std::f64::consts::PI);
                    let smooth = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    ((1.0 - smooth) * f / factor + smooth * f) as f32
                })
                .collect(),
        };
        Rope { inv_freq, scale: 1.0 }
    }

    /// `[n, heads, dim]` at positions i32 `[n]`.
    #[track_caller]
    pub fn call<'t>(&self, x: Tensor<'t>, pos: Tensor<'t>) -> Tensor<'t> {
        x.rope(pos, &self.inv_freq, self.scale, false)
    }
}

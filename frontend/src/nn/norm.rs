//! Normalisations of the last axis.

use crate::weights::Stored;
use crate::{Module, Param, Tensor, dims};

/// Root mean square normalisation of the last axis (Zhang and Sennrich, arXiv 1910.07467).
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

/// Normalisation of the last axis to mean 0 and variance 1 (Ba et al., arXiv 1607.06450).
#[derive(Debug, Module)]
pub struct LayerNorm {
    #[module(flatten)]
    gain: Gain,
    bias: Option<Param>,
    #[module(skip)]
    eps: f32,
}

#[derive(Debug, Module)]
enum Gain {
    One(Whole),
    Separate(Heads),
}

#[derive(Debug, Module)]
struct Whole {
    weight: Param,
}

#[derive(Debug, Module)]
struct Heads {
    norms: Vec<Whole>,
}

impl LayerNorm {
    /// Over `dim` features.
    pub fn new(dim: usize, eps: f64) -> LayerNorm {
        let gain = Gain::One(Whole { weight: Param::new(&[dim]) });
        LayerNorm { gain, bias: Some(Param::new(&[dim])), eps: eps as f32 }
    }

    /// Over `dim` features of each head, with its own gain and no bias.
    pub fn per_head(heads: usize, dim: usize, eps: f64) -> LayerNorm {
        let gain = Gain::One(Whole { weight: Param::new(&[heads, dim]) });
        LayerNorm { gain, bias: None, eps: eps as f32 }
    }

    /// As [`LayerNorm::per_head`], with the gains stored one by one.
    pub fn separate_heads(heads: usize, dim: usize, eps: f64) -> LayerNorm {
        let norms = (0..heads).map(|_| Whole { weight: Param::new(&[dim]) }).collect();
        LayerNorm { gain: Gain::Separate(Heads { norms }), bias: None, eps: eps as f32 }
    }

    /// Files call it `tensor`, in place of the last component of its path. Gains that are stored one by one keep their names.
    pub fn stored_as(mut self, tensor: &str) -> LayerNorm {
        let stored = Stored { tensor: Some(tensor.to_owned()), ..Stored::default() };
        self.bias = self.bias.map(|b| b.stored(stored.clone()));
        self.gain = match self.gain {
            Gain::One(Whole { weight }) => Gain::One(Whole { weight: weight.stored(stored) }),
            separate => separate,
        };
        self
    }

    /// Keeps the bias only when `yes`.
    pub fn with_bias(mut self, yes: bool) -> LayerNorm {
        self.bias = self.bias.filter(|_| yes);
        self
    }

    /// Same shape.
    #[track_caller]
    pub fn call<'t>(&self, x: Tensor<'t>) -> Tensor<'t> {
        let y = x.layer_norm(self.eps);
        let y = match &self.gain {
            Gain::One(g) => y.gain(&g.weight),
            Gain::Separate(g) => {
                let row = |w: &Whole| y.param(&w.weight).reshape(dims![1, 1, w.weight.shape()[0]]);
                match g.norms.split_first() {
                    Some((first, rest)) => y * row(first).concat(&rest.iter().map(row).collect::<Vec<_>>(), 1),
                    None => y,
                }
            }
        };
        match &self.bias {
            Some(b) => y.bias(b),
            None => y,
        }
    }
}

/// Either kind, where a part serves models of both.
#[derive(Debug, Module)]
pub enum Norm {
    /// Root mean square.
    Rms(RmsNorm),
    /// Mean and variance.
    Layer(LayerNorm),
}

impl Norm {
    /// Same shape.
    #[track_caller]
    pub fn call<'t>(&self, x: Tensor<'t>) -> Tensor<'t> {
        match self {
            Norm::Rms(n) => n.call(x),
            Norm::Layer(n) => n.call(x),
        }
    }
}

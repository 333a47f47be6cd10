//! Building blocks of models, all in public methods of [`Tensor`].

mod attention;
mod decoder;
mod feed_forward;
mod norm;
mod rope;

pub use attention::{Attention, Heads, QkvRows};
pub use decoder::{Block, Body, Decoder, Layer, PreNorm};
pub use feed_forward::{Act, Experts, GatedMlp, Mlp};
pub use norm::{LayerNorm, Norm, RmsNorm};
pub use rope::Rope;

use crate::weights::{Rows, Stored};
use crate::{Module, Param, Tensor};

/// `y = x Wᵀ + b`
#[derive(Debug, Module)]
pub struct Linear {
    weight: Param,
    bias: Option<Param>,
    #[module(skip)]
    stored: Stored,
}

impl Linear {
    /// From `inputs` to `outputs` features.
    pub fn new(inputs: usize, outputs: usize) -> Linear {
        Linear { weight: Param::new(&[outputs, inputs]), bias: None, stored: Stored::default() }
    }

    /// Adds a bias when `yes`.
    pub fn with_bias(mut self, yes: bool) -> Linear {
        self.bias = yes.then(|| Param::new(&self.weight.shape()[..1]));
        self.declare()
    }

    /// Files call it `tensor`, in place of the last component of its path.
    pub fn stored_as(mut self, tensor: &str) -> Linear {
        self.stored.tensor = Some(tensor.to_owned());
        self.declare()
    }

    /// Files store it as rows of a sibling called `tensor`.
    pub fn part_of(mut self, tensor: &str, rows: Rows) -> Linear {
        self.stored.rows = Some(rows);
        self.stored_as(tensor)
    }

    /// Files store the weight as `[inputs, outputs]`.
    pub fn transposed(mut self) -> Linear {
        self.stored.transposed = true;
        self.declare()
    }

    fn declare(mut self) -> Linear {
        if self.stored != Stored::default() {
            self.weight = self.weight.stored(self.stored.clone());
            self.bias = self.bias.map(|b| b.stored(self.stored.clone()));
        }
        self
    }

    /// The weight, `[outputs, inputs]`.
    pub fn weight(&self) -> &Param {
        &self.weight
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

    /// Files call it `tensor`, in place of the last component of its path.
    pub fn stored_as(mut self, tensor: &str) -> Embedding {
        self.weight = self.weight.stored(Stored { tensor: Some(tensor.to_owned()), ..Stored::default() });
        self
    }

    /// i32 `[n]` to `[n, dim]`.
    #[track_caller]
    pub fn call<'t>(&self, ids: Tensor<'t>) -> Tensor<'t> {
        ids.embed(&self.weight)
    }
}

//! The tensor handle and its operations.

use std::ops::{Add, Div, Mul, Neg, Sub};
use std::panic::Location;

use marquetry_ir::graph::{Attr, Op, Ty, Value};
use marquetry_ir::{DType, Dim};

use super::{Cached, Tracer};
use crate::module::Param;

/// A traced tensor. Copying it is free.
#[derive(Clone, Copy)]
pub struct Tensor<'t> {
    cx: &'t Tracer,
    value: Option<Value>,
}

/// How attention scores are formed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attend {
    /// Factor on the scores.
    pub scale: f32,
    /// A token sees this many positions up to its own; 0 is all.
    pub window: usize,
    /// Scores are capped to `±softcap` by tanh; 0 is off.
    pub softcap: f32,
}

impl<'t> Tensor<'t> {
    pub(super) fn new(cx: &'t Tracer, value: Option<Value>) -> Tensor<'t> {
        Tensor { cx, value }
    }

    pub(super) fn value(self) -> Option<Value> {
        self.value
    }

    pub(super) fn tracer(self) -> &'t Tracer {
        self.cx
    }

    /// Extents of the axes; empty for a poisoned tensor.
    pub fn shape(self) -> Vec<Dim> {
        let func = self.cx.func.borrow();
        let ty = self.value.map(|v| func.ty(v));
        ty.and_then(Ty::as_tensor).map(|t| t.shape.clone()).unwrap_or_default()
    }

    #[track_caller]
    fn op(self, op: Op, others: &[Tensor<'t>], attrs: Vec<Attr>) -> Tensor<'t> {
        let mut operands = vec![self.value];
        operands.extend(others.iter().map(|t| t.value));
        Tensor::new(self.cx, self.cx.emit(Location::caller(), op, &operands, attrs))
    }

    #[track_caller]
    fn scalar(self, v: f32) -> Tensor<'t> {
        let attrs = vec![Attr::float(v), Attr::Shape(vec![]), Attr::DType(DType::F32)];
        Tensor::new(self.cx, self.cx.emit(Location::caller(), Op::Const, &[], attrs))
    }

    /// `[.., k]` times a weight `[o, k]`: `[.., o]`.
    #[track_caller]
    pub fn linear(self, w: &Param) -> Tensor<'t> {
        let w = self.cx.param(w);
        self.op(Op::Linear, &[w], vec![])
    }

    /// Adds a vector to the last axis.
    #[track_caller]
    pub fn bias(self, b: &Param) -> Tensor<'t> {
        let b = self.cx.param(b).broadcastable(self.shape().len());
        self.op(Op::Add, &[b], vec![])
    }

    /// A vector with leading axes of extent 1 up to `rank`.
    #[track_caller]
    fn broadcastable(self, rank: usize) -> Tensor<'t> {
        let mut shape = vec![Dim::from(1); rank.saturating_sub(1)];
        shape.extend(self.shape());
        self.reshape(shape)
    }

    /// The tensor of a parameter.
    #[track_caller]
    pub fn param(self, p: &Param) -> Tensor<'t> {
        self.cx.param(p)
    }

    /// Rows of `self` chosen by i32 `ids`.
    #[track_caller]
    pub fn rows(self, ids: Tensor<'t>) -> Tensor<'t> {
        self.op(Op::Gather, &[ids], vec![])
    }

    /// Rows of a table parameter, chosen by `self` (i32).
    #[track_caller]
    pub fn embed(self, table: &Param) -> Tensor<'t> {
        self.cx.param(table).rows(self)
    }

    /// The same elements under another shape.
    #[track_caller]
    pub fn reshape(self, shape: Vec<Dim>) -> Tensor<'t> {
        self.op(Op::Reshape, &[], vec![Attr::Shape(shape)])
    }

    /// `[n, heads · dim]` as `[n, heads, dim]`.
    #[track_caller]
    pub fn split_heads(self, heads: usize, dim: usize) -> Tensor<'t> {
        let n = self.shape().first().cloned().unwrap_or_default();
        self.reshape(vec![n, heads.into(), dim.into()])
    }

    /// `[n, heads, dim]` as `[n, heads · dim]`.
    #[track_caller]
    pub fn merge_heads(self) -> Tensor<'t> {
        match self.shape().as_slice() {
            [n, heads, dim] => self.reshape(vec![n.clone(), heads.clone() * dim.clone()]),
            _ => self.reshape(vec![]),
        }
    }

    /// Axis `i` of the result is axis `axes[i]` of `self`.
    #[track_caller]
    pub fn permute(self, axes: &[usize]) -> Tensor<'t> {
        self.op(Op::Permute, &[], vec![Attr::Ints(axes.iter().map(|&a| a as i64).collect())])
    }

    /// `len` elements from `start` along `axis`.
    #[track_caller]
    pub fn slice(self, axis: usize, start: usize, len: usize) -> Tensor<'t> {
        self.op(Op::Slice, &[], [axis, start, len].map(|v| Attr::Int(v as i64)).to_vec())
    }

    /// Joins with others along `axis`.
    #[track_caller]
    pub fn concat(self, others: &[Tensor<'t>], axis: usize) -> Tensor<'t> {
        self.op(Op::Concat, others, vec![Attr::Int(axis as i64)])
    }

    /// `x / sqrt(mean(x²) + eps) * gain` along the last axis.
    #[track_caller]
    pub fn rms_norm(self, gain: Tensor<'t>, eps: f32) -> Tensor<'t> {
        self.op(Op::RmsNorm, &[gain], vec![Attr::float(eps)])
    }

    /// Rotary embedding of `[n, heads, dim]` at positions `pos`: pairs `(i, i + r/2)` of the first `r = 2 · len(inv_freq)`
    /// features turn by `pos · inv_freq[i]`; cosines and sines are multiplied by `scale`.
    #[track_caller]
    pub fn rope(self, pos: Tensor<'t>, inv_freq: &[f32], scale: f32) -> Tensor<'t> {
        let attrs = vec![Attr::floats(inv_freq), Attr::float(scale), Attr::Bool(false)];
        self.op(Op::Rope, &[pos], attrs)
    }

    /// Attention of queries `[n, heads, dim]` over a layer's cache.
    #[track_caller]
    pub fn attend(self, cached: &Cached<'t>, how: Attend) -> Tensor<'t> {
        let s = &cached.step;
        let operands = [self.value, cached.state, s.pos.value, s.seq.value, s.pages.value];
        let attrs = vec![
            Attr::float(how.scale),
            Attr::Int(how.window as i64),
            Attr::float(how.softcap),
            Attr::Int(s.page as i64),
        ];
        Tensor::new(self.cx, self.cx.emit(Location::caller(), Op::Attend, &operands, attrs))
    }

    /// Exponentials along the last axis over their sum.
    #[track_caller]
    pub fn softmax(self) -> Tensor<'t> {
        self.op(Op::Softmax, &[], vec![])
    }

    /// `x · sigmoid(x)`
    #[track_caller]
    pub fn silu(self) -> Tensor<'t> {
        self.op(Op::Silu, &[], vec![])
    }

    /// Gaussian error linear unit by tanh.
    #[track_caller]
    pub fn gelu_tanh(self) -> Tensor<'t> {
        self.op(Op::Gelu, &[], vec![Attr::Bool(true)])
    }

    /// Gaussian error linear unit, exact.
    #[track_caller]
    pub fn gelu(self) -> Tensor<'t> {
        self.op(Op::Gelu, &[], vec![Attr::Bool(false)])
    }

    /// `tanh(x / cap) · cap`
    #[track_caller]
    pub fn softcap(self, cap: f32) -> Tensor<'t> {
        self.op(Op::Softcap, &[], vec![Attr::float(cap)])
    }

    /// Hyperbolic tangent.
    #[track_caller]
    pub fn tanh(self) -> Tensor<'t> {
        self.op(Op::Tanh, &[], vec![])
    }

    /// `e^x`
    #[track_caller]
    pub fn exp(self) -> Tensor<'t> {
        self.op(Op::Exp, &[], vec![])
    }
}

macro_rules! operator {
    ($($trait:ident $method:ident $op:ident),*) => {$(
        impl<'t> $trait for Tensor<'t> {
            type Output = Tensor<'t>;
            #[track_caller]
            fn $method(self, o: Tensor<'t>) -> Tensor<'t> {
                self.op(Op::$op, &[o], vec![])
            }
        }
        impl<'t> $trait<f32> for Tensor<'t> {
            type Output = Tensor<'t>;
            #[track_caller]
            fn $method(self, o: f32) -> Tensor<'t> {
                let o = self.scalar(o);
                self.op(Op::$op, &[o], vec![])
            }
        }
    )*};
}
operator!(Add add Add, Sub sub Sub, Mul mul Mul, Div div Div);

impl<'t> Neg for Tensor<'t> {
    type Output = Tensor<'t>;
    #[track_caller]
    fn neg(self) -> Tensor<'t> {
        self.op(Op::Neg, &[], vec![])
    }
}

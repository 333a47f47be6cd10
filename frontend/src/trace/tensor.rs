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

    /// Adds a parameter to the last axes.
    #[track_caller]
    pub fn bias(self, b: &Param) -> Tensor<'t> {
        let b = self.cx.param(b).broadcastable(self.shape().len());
        self.op(Op::Add, &[b], vec![])
    }

    /// Multiplies the last axes by a parameter of their shape.
    #[track_caller]
    pub fn gain(self, g: &Param) -> Tensor<'t> {
        let g = self.cx.param(g).broadcastable(self.shape().len());
        self.op(Op::Mul, &[g], vec![])
    }

    /// With leading axes of extent 1 up to `rank`.
    #[track_caller]
    fn broadcastable(self, rank: usize) -> Tensor<'t> {
        let mut shape = vec![Dim::from(1); rank.saturating_sub(self.shape().len())];
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

    /// Repeats axes of extent 1 to the given shape.
    #[track_caller]
    pub fn broadcast(self, shape: Vec<Dim>) -> Tensor<'t> {
        self.op(Op::Broadcast, &[], vec![Attr::Shape(shape)])
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

    /// `(x - mean(x)) / sqrt(var(x) + eps)` along the last axis.
    #[track_caller]
    pub fn layer_norm(self, eps: f32) -> Tensor<'t> {
        self.op(Op::LayerNorm, &[], vec![Attr::float(eps)])
    }

    /// Rotary embedding of `[n, heads, dim]` at positions `pos`: pairs of the first `r = 2 · len(inv_freq)` features turn by
    /// `pos · inv_freq[i]`; cosines and sines are multiplied by `scale`. Pair `i` is `(i, i + r/2)`, or `(2i, 2i + 1)` when
    /// interleaved.
    #[track_caller]
    pub fn rope(self, pos: Tensor<'t>, inv_freq: &[f32], scale: f32, interleaved: bool) -> Tensor<'t> {
        let attrs = vec![Attr::floats(inv_freq), Attr::float(scale), Attr::Bool(interleaved)];
        self.op(Op::Rope, &[pos], attrs)
    }

    /// As [`Tensor::rope`], with cosines and sines `[n, r]` side by side in `table`.
    #[track_caller]
    pub fn rope_apply(self, table: Tensor<'t>, interleaved: bool) -> Tensor<'t> {
        self.op(Op::RopeApply, &[table], vec![Attr::Bool(interleaved)])
    }

    /// Attention of queries `[n, heads, dim]` over a layer's cache.
    #[track_caller]
    pub fn attend(self, cached: &Cached<'t>, how: Attend) -> Tensor<'t> {
        self.attention(cached, how, &[])
    }

    /// As [`Tensor::attend`], with `slopes[h] · (j - pos)` added to the score of position `j` for query head `h`
    /// (ALiBi, Press et al., arXiv 2108.12409).
    #[track_caller]
    pub fn attend_sloped(self, cached: &Cached<'t>, how: Attend, slopes: &[f32]) -> Tensor<'t> {
        self.attention(cached, how, slopes)
    }

    #[track_caller]
    fn attention(self, cached: &Cached<'t>, how: Attend, slopes: &[f32]) -> Tensor<'t> {
        let s = &cached.step;
        let operands = [self.value, cached.state, cached.last.value, s.seq.value, s.pages.value];
        let mut attrs = vec![
            Attr::float(how.scale),
            Attr::Int(how.window as i64),
            Attr::float(how.softcap),
            Attr::Int(s.page as i64),
        ];
        let mut op = Op::Attend;
        if !slopes.is_empty() {
            attrs.push(Attr::floats(slopes));
            op = Op::AttendSloped;
        }
        Tensor::new(self.cx, self.cx.emit(Location::caller(), op, &operands, attrs))
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

    /// `1 / (1 + e^-x)`
    #[track_caller]
    pub fn sigmoid(self) -> Tensor<'t> {
        let one = self.scalar(1.0);
        one / ((-self).exp() + one)
    }

    /// `max(x, 0)`
    #[track_caller]
    pub fn relu(self) -> Tensor<'t> {
        self.max(0.0)
    }

    /// The larger of each element and a number.
    #[track_caller]
    pub fn max(self, floor: f32) -> Tensor<'t> {
        let floor = self.scalar(floor);
        self.op(Op::Max, &[floor], vec![])
    }

    /// Natural logarithm.
    #[track_caller]
    pub fn ln(self) -> Tensor<'t> {
        self.op(Op::Log, &[], vec![])
    }

    /// `1 / sqrt(x)`
    #[track_caller]
    pub fn rsqrt(self) -> Tensor<'t> {
        self.op(Op::Rsqrt, &[], vec![])
    }

    /// Cosine of radians.
    #[track_caller]
    pub fn cos(self) -> Tensor<'t> {
        self.op(Op::Cos, &[], vec![])
    }

    /// Sine of radians.
    #[track_caller]
    pub fn sin(self) -> Tensor<'t> {
        self.op(Op::Sin, &[], vec![])
    }

    /// Sum along the last axis, which stays with extent 1.
    #[track_caller]
    pub fn sum(self) -> Tensor<'t> {
        self.op(Op::ReduceSum, &[], vec![])
    }

    /// Integers as f32.
    #[track_caller]
    pub fn to_f32(self) -> Tensor<'t> {
        self.op(Op::Cast, &[], vec![Attr::DType(DType::F32)])
    }

    /// Floats as i32, towards zero.
    #[track_caller]
    pub fn to_i32(self) -> Tensor<'t> {
        self.op(Op::Cast, &[], vec![Attr::DType(DType::I32)])
    }

    /// 1 where an element is larger than a number, 0 elsewhere.
    #[track_caller]
    pub fn above(self, threshold: f32) -> Tensor<'t> {
        let (threshold, yes, no) = (self.scalar(threshold), self.scalar(1.0), self.scalar(0.0));
        threshold.op(Op::Lt, &[self], vec![]).op(Op::Select, &[yes, no], vec![])
    }

    /// A vector of constants.
    #[track_caller]
    pub fn table(self, values: &[f32]) -> Tensor<'t> {
        Tensor::new(self.cx, self.cx.emit(Location::caller(), Op::Table, &[], vec![Attr::floats(values)]))
    }

    /// Indices i32 `[.., k]` of the largest elements along the last axis, largest first.
    #[track_caller]
    pub fn top_k(self, k: usize) -> Tensor<'t> {
        self.op(Op::TopK, &[], vec![Attr::Int(k as i64)])
    }

    /// The elements of the last axis at `ids`, i32 `[.., k]`.
    #[track_caller]
    pub fn pick(self, ids: Tensor<'t>) -> Tensor<'t> {
        self.op(Op::Pick, &[ids], vec![])
    }

    /// `[n, 1, i]` or `[n, k, i]` times one of several weights `[o, i]` per row, as `ids` `[n, k]` choose: `[n, k, o]`.
    #[track_caller]
    pub fn expert_linear(self, weights: &[&Param], ids: Tensor<'t>) -> Tensor<'t> {
        let parts: Vec<Tensor<'t>> = weights.iter().map(|w| self.cx.param(w)).collect();
        let all = match parts.split_first() {
            Some((first, rest)) => first.op(Op::ConcatRows, rest, vec![Attr::Int(0)]),
            None => Tensor::new(self.cx, None),
        };
        self.op(Op::ExpertLinear, &[all, ids], vec![Attr::Int(weights.len() as i64)])
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

//! Expansions of high-level operators into smaller ones: their definition for the interpreter, the rules and the lowering.

mod attend;

pub use attend::{Mask, Scale, Spelling, Weights, attend, attend_spelled};

use super::build::Built;
use super::{Attr, Builder, Op, Ty, TypeError, Value, infer};
use crate::{DType, Dim};

/// Adds the expansion of an operator applied to operands and gives its result.
pub type Expand = fn(&mut Builder<'_>, &[Value], &[Attr]) -> Built;

/// `x / (1 + e^-x)`
pub fn silu(b: &mut Builder<'_>, x: &[Value], _: &[Attr]) -> Built {
    let n = b.un(Op::Neg, x[0])?;
    let e = b.un(Op::Exp, n)?;
    let d = b.with(Op::Add, e, 1.0)?;
    b.bin(Op::Div, x[0], d)
}

/// `x/2 (1 + erf(x/√2))`, or `x/2 (1 + tanh(√(2/π)(x + 0.044715 x³)))`
pub fn gelu(b: &mut Builder<'_>, x: &[Value], a: &[Attr]) -> Built {
    let x = x[0];
    let inner = if a[0].as_bool() {
        let x2 = b.bin(Op::Mul, x, x)?;
        let x3 = b.bin(Op::Mul, x2, x)?;
        let c = b.with(Op::Mul, x3, 0.044715)?;
        let s = b.bin(Op::Add, x, c)?;
        let s = b.with(Op::Mul, s, 0.797_884_6)?;
        b.un(Op::Tanh, s)?
    } else {
        let s = b.with(Op::Mul, x, std::f32::consts::FRAC_1_SQRT_2)?;
        b.un(Op::Erf, s)?
    };
    let one = b.with(Op::Add, inner, 1.0)?;
    let half = b.with(Op::Mul, x, 0.5)?;
    b.bin(Op::Mul, half, one)
}

/// `silu(g) * u`
pub fn swiglu(b: &mut Builder<'_>, x: &[Value], _: &[Attr]) -> Built {
    let g = b.un(Op::Silu, x[0])?;
    b.bin(Op::Mul, g, x[1])
}

/// `gelu(g) * u`
pub fn geglu(b: &mut Builder<'_>, x: &[Value], a: &[Attr]) -> Built {
    let g = b.emit(Op::Gelu, &x[..1], a.to_vec())?;
    b.bin(Op::Mul, g, x[1])
}

/// `tanh(x / cap) * cap`
pub fn softcap(b: &mut Builder<'_>, x: &[Value], a: &[Attr]) -> Built {
    let d = b.with(Op::Div, x[0], a[0].as_f32())?;
    let t = b.un(Op::Tanh, d)?;
    b.with(Op::Mul, t, a[0].as_f32())
}

fn last(b: &Builder<'_>, x: Value) -> Result<f32, TypeError> {
    let shape = b.shape(x);
    let k = shape.last().and_then(Dim::as_const);
    k.map(|k| k as f32)
        .ok_or_else(|| TypeError { code: "E0216", message: "the last axis must have a constant extent".into() })
}

/// The product, its columns split into gate and up, and their gated product.
pub fn glu_linear(b: &mut Builder<'_>, x: &[Value], a: &[Attr]) -> Built {
    let elem = |i: usize| b.func.ty(x[i]).as_tensor().map(|t| t.elem);
    let narrow = elem(0).zip(elem(1)).is_some_and(|(x, w)| infer::is_narrow(x, w));
    let y = b.emit(if narrow { Op::QLinear } else { Op::Linear }, x, vec![])?;
    let mut shape = b.shape(y);
    let axis = shape.len();
    let blocks = shape.pop().and_then(|d| d.div_exact(16)).unwrap_or_default();
    let mut split = shape.clone();
    split.extend([blocks.clone(), 2.into(), 8.into()]);
    let y = b.reshape(y, split)?;
    let (g, u) = (b.slice(y, axis, 0, 1)?, b.slice(y, axis, 1, 1)?);
    let z = match a[0].as_int() {
        0 => b.bin(Op::SwiGlu, g, u)?,
        kind => b.emit(Op::GeGlu, &[g, u], vec![Attr::Bool(kind == 2)])?,
    };
    shape.push(blocks * 8.into());
    b.reshape(z, shape)
}

/// `x * rsqrt(sum(x²)/k + eps) * w`
pub fn rms_norm(b: &mut Builder<'_>, x: &[Value], a: &[Attr]) -> Built {
    let k = last(b, x[0])?;
    let sq = b.bin(Op::Mul, x[0], x[0])?;
    let sum = b.un(Op::ReduceSum, sq)?;
    let mean = b.with(Op::Mul, sum, 1.0 / k)?;
    let eps = b.with(Op::Add, mean, a[0].as_f32())?;
    let r = b.un(Op::Rsqrt, eps)?;
    let n = b.bin(Op::Mul, x[0], r)?;
    let mut shape = vec![Dim::from(1); b.shape(x[0]).len()];
    if let (Some(d), Some(k)) = (shape.last_mut(), b.shape(x[1]).pop()) {
        *d = k;
    }
    let w = b.reshape(x[1], shape)?;
    b.bin(Op::Mul, n, w)
}

/// `d * rsqrt(sum(d²)/k + eps)`, where `d = x - sum(x)/k`
pub fn layer_norm(b: &mut Builder<'_>, x: &[Value], a: &[Attr]) -> Built {
    let k = last(b, x[0])?;
    let sum = b.un(Op::ReduceSum, x[0])?;
    let mean = b.with(Op::Mul, sum, 1.0 / k)?;
    let d = b.bin(Op::Sub, x[0], mean)?;
    let sq = b.bin(Op::Mul, d, d)?;
    let sum = b.un(Op::ReduceSum, sq)?;
    let var = b.with(Op::Mul, sum, 1.0 / k)?;
    let eps = b.with(Op::Add, var, a[0].as_f32())?;
    let r = b.un(Op::Rsqrt, eps)?;
    b.bin(Op::Mul, d, r)
}

fn iota(b: &mut Builder<'_>, axis: usize, shape: Vec<Dim>, dtype: DType) -> Built {
    b.emit(Op::Iota, &[], vec![Attr::Int(axis as i64), Attr::Shape(shape), Attr::DType(dtype)])
}

/// `a == b`, of one type.
fn equal(b: &mut Builder<'_>, x: Value, y: Value) -> Built {
    let (le, ge) = (b.bin(Op::Le, x, y)?, b.bin(Op::Le, y, x)?);
    b.bin(Op::And, le, ge)
}

/// The rank of each element is the number of those before it; the answer is the index whose rank is `j`.
pub fn top_k(b: &mut Builder<'_>, x: &[Value], a: &[Attr]) -> Built {
    let (k, n) = (a[0].as_int(), Dim::from(last(b, x[0])? as i64));
    let lead = b.shape(x[0])[..b.shape(x[0]).len() - 1].to_vec();
    let ones = vec![Dim::from(1); lead.len()];
    let with = |tail: [Dim; 2], lead: &[Dim]| [lead, &tail].concat();
    let one = Dim::from(1);
    let (this, other) = (
        b.reshape(x[0], with([n.clone(), one.clone()], &lead))?,
        b.reshape(x[0], with([one.clone(), n.clone()], &lead))?,
    );
    let axis = lead.len();
    let i = iota(b, axis, with([n.clone(), one.clone()], &ones), DType::I32)?;
    let j = iota(b, axis + 1, with([one.clone(), n.clone()], &ones), DType::I32)?;
    let larger = b.bin(Op::Lt, this, other)?;
    let (same, earlier) = (equal(b, this, other)?, b.bin(Op::Lt, j, i)?);
    let (yes, no) = (b.scalar(1.0)?, b.scalar(0.0)?);
    let earlier = b.bin(Op::And, same, earlier)?;
    let tie = b.emit(Op::Select, &[earlier, yes, no], vec![])?;
    let before = b.emit(Op::Select, &[larger, yes, tie], vec![])?;
    let rank = b.un(Op::ReduceSum, before)?;
    let rank = b.reshape(rank, with([one.clone(), n.clone()], &lead))?;
    let place = iota(b, axis, with([k.into(), one], &ones), DType::F32)?;
    let here = equal(b, rank, place)?;
    let index = iota(b, axis + 1, with([1.into(), n], &ones), DType::F32)?;
    let found = b.emit(Op::Select, &[here, index, no], vec![])?;
    let found = b.un(Op::ReduceSum, found)?;
    let found = b.reshape(found, [lead, vec![k.into()]].concat())?;
    b.emit(Op::Cast, &[found], vec![Attr::DType(DType::I32)])
}

/// The sum over the axis of the elements whose index is wanted.
pub fn pick(b: &mut Builder<'_>, x: &[Value], _: &[Attr]) -> Built {
    let n = Dim::from(last(b, x[0])? as i64);
    let shape = b.shape(x[1]);
    let Some((k, lead)) = shape.split_last() else {
        return Err(TypeError { code: "E0204", message: "ids must have at least one axis".into() });
    };
    let one = Dim::from(1);
    let values = b.reshape(x[0], [lead, &[one.clone(), n.clone()]].concat())?;
    let ids = b.reshape(x[1], [lead, &[k.clone(), one.clone()]].concat())?;
    let index = iota(b, lead.len() + 1, [&vec![one.clone(); lead.len() + 1][..], &[n]].concat(), DType::I32)?;
    let here = equal(b, ids, index)?;
    let zero = b.scalar(0.0)?;
    let found = b.emit(Op::Select, &[here, values, zero], vec![])?;
    let found = b.un(Op::ReduceSum, found)?;
    b.reshape(found, shape)
}

/// Rows of the chosen matrices times `x`.
pub fn expert_linear(b: &mut Builder<'_>, x: &[Value], a: &[Attr]) -> Built {
    let (w, ids) = (b.shape(x[1]), b.shape(x[2]));
    let rows = w[0].div_exact(a[0].as_int()).unwrap_or_default();
    let count = rows.as_const().unwrap_or(0);
    let one = Dim::from(1);
    let wide = vec![ids[0].clone(), ids[1].clone(), one.clone()];
    let first = b.reshape(x[2], wide)?;
    let size = b.emit(Op::Const, &[], vec![Attr::float(count as f32), Attr::Shape(vec![]), Attr::DType(DType::I32)])?;
    let first = b.bin(Op::Mul, first, size)?;
    let within = iota(b, 2, vec![one.clone(), one.clone(), rows.clone()], DType::I32)?;
    let row = b.bin(Op::Add, first, within)?;
    let w = b.bin(Op::Gather, x[1], row)?;
    let shape = b.shape(x[0]);
    let v = b.reshape(x[0], vec![shape[0].clone(), shape[1].clone(), one, shape[2].clone()])?;
    let products = b.bin(Op::Mul, v, w)?;
    let sum = b.un(Op::ReduceSum, products)?;
    b.reshape(sum, vec![ids[0].clone(), ids[1].clone(), rows])
}

/// `e^(x - max) / sum(e^(x - max))`
pub fn softmax(b: &mut Builder<'_>, x: &[Value], _: &[Attr]) -> Built {
    let m = b.un(Op::ReduceMax, x[0])?;
    let d = b.bin(Op::Sub, x[0], m)?;
    let e = b.un(Op::Exp, d)?;
    let s = b.un(Op::ReduceSum, e)?;
    b.bin(Op::Div, e, s)
}

/// Sums of pieces by `e^(max - largest max)`, over the sum of their weights.
pub fn attend_merge(b: &mut Builder<'_>, x: &[Value], _: &[Attr]) -> Built {
    let width = b.shape(x[0])[3].as_const().unwrap_or(0) as usize;
    let dim = width.saturating_sub(2);
    let mut by_part = |start: usize, len: usize| {
        let piece = b.slice(x[0], 3, start, len)?;
        b.emit(Op::Permute, &[piece], vec![Attr::Ints(vec![0, 1, 3, 2])])
    };
    let (sums, max, total) = (by_part(0, dim)?, by_part(dim, 1)?, by_part(dim + 1, 1)?);
    let top = b.un(Op::ReduceMax, max)?;
    let less = b.bin(Op::Sub, max, top)?;
    let weight = b.un(Op::Exp, less)?;
    let mut add = |of: Value| {
        let of = b.bin(Op::Mul, of, weight)?;
        b.un(Op::ReduceSum, of)
    };
    let (sums, total) = (add(sums)?, add(total)?);
    let y = b.bin(Op::Div, sums, total)?;
    let shape = b.shape(y)[..3].to_vec();
    b.reshape(y, shape)
}

/// `rope_apply(x, rope_table(pos))`
pub fn rope(b: &mut Builder<'_>, x: &[Value], a: &[Attr]) -> Built {
    let table = b.emit(Op::RopeTable, &x[1..], a[..2].to_vec())?;
    b.emit(Op::RopeApply, &[x[0], table], vec![a[2].clone()])
}

/// Cosines and sines of `pos * inv_freq`, side by side.
pub fn rope_table(b: &mut Builder<'_>, x: &[Value], a: &[Attr]) -> Built {
    let n = b.shape(x[0])[0].clone();
    let r = a[0].as_floats().len();
    let freq = b.emit(Op::Table, &[], vec![a[0].clone()])?;
    let freq = b.reshape(freq, vec![1.into(), r.into()])?;
    let pos = b.emit(Op::Cast, x, vec![Attr::DType(DType::F32)])?;
    let pos = b.reshape(pos, vec![n, 1.into()])?;
    let angle = b.bin(Op::Mul, pos, freq)?;
    let mut halves = [b.un(Op::Cos, angle)?, b.un(Op::Sin, angle)?];
    if a[1].as_f32() != 1.0 {
        for h in &mut halves {
            *h = b.with(Op::Mul, *h, a[1].as_f32())?;
        }
    }
    b.concat(&halves, 1)
}

/// Rotation of feature pairs: `(i, i + r/2)`, or `(2i, 2i + 1)` when interleaved.
pub fn rope_apply(b: &mut Builder<'_>, x: &[Value], a: &[Attr]) -> Built {
    let (shape, n) = (b.shape(x[0]), b.shape(x[1])[0].clone());
    let r = last(b, x[1])? as usize;
    let dim = last(b, x[0])? as usize;
    let half = r / 2;
    let mut cs = [b.slice(x[1], 1, 0, half)?, b.slice(x[1], 1, half, half)?];
    let interleaved = a[0].as_bool();
    let axis = if interleaved { 3 } else { 2 };
    let mut table_shape = vec![n, 1.into(), half.into()];
    let rotary = if r == dim { x[0] } else { b.slice(x[0], 2, 0, r)? };
    let mut pair = [rotary, rotary];
    if interleaved {
        table_shape.push(1.into());
        let paired = b.reshape(rotary, vec![shape[0].clone(), shape[1].clone(), half.into(), 2.into()])?;
        pair = [b.slice(paired, 3, 0, 1)?, b.slice(paired, 3, 1, 1)?];
    } else {
        pair = [b.slice(pair[0], 2, 0, half)?, b.slice(pair[1], 2, half, half)?];
    }
    for c in &mut cs {
        *c = b.reshape(*c, table_shape.clone())?;
    }
    let ([p, q], [c, s]) = (pair, cs);
    let (pc, qs) = (b.bin(Op::Mul, p, c)?, b.bin(Op::Mul, q, s)?);
    let (qc, ps) = (b.bin(Op::Mul, q, c)?, b.bin(Op::Mul, p, s)?);
    let mut parts = vec![b.bin(Op::Sub, pc, qs)?, b.bin(Op::Add, qc, ps)?];
    if interleaved {
        let joined = b.concat(&parts, axis)?;
        parts = vec![b.reshape(joined, vec![shape[0].clone(), shape[1].clone(), r.into()])?];
    }
    if r < dim {
        parts.push(b.slice(x[0], 2, r, dim - r)?);
    }
    if parts.len() == 1 { Ok(parts[0]) } else { b.concat(&parts, 2) }
}

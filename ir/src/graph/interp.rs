//! The graph interpreter: slow, obvious, the oracle for everything else. Arithmetic is f32, in row-major order.

mod external;

use std::collections::HashMap;
use std::sync::Arc;

use super::{Attr, Builder, Function, Inst, Kind, Module, Op, QUANTIZE_FLOOR, Ty, Value};
use crate::{DType, Dim, Elem, Syms, quant};

/// A tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Extent of each axis.
    pub shape: Vec<usize>,
    /// Elements in row-major order.
    pub data: Data,
}

/// Elements of a host tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// f32.
    F32(Arc<Vec<f32>>),
    /// Integers of any width, and truth values.
    Int(DType, Arc<Vec<i64>>),
    /// Encoded elements: narrow floats and GGUF blocks.
    Bytes(Elem, Arc<Vec<u8>>),
    /// The numbers of a packed matrix or of quantized activations, kept as what they stand for: layout has no meaning here.
    Exact(Elem, Arc<Vec<f32>>),
}

/// A value during interpretation.
#[derive(Clone, Debug)]
pub enum Val {
    /// A tensor.
    Tensor(Tensor),
    /// Keys and values `[slots, heads, dim]`.
    Kv([Arc<Vec<f32>>; 2], [usize; 3]),
    /// A recurrent state `[rows, ..]`.
    Rows(Arc<Vec<f32>>, Vec<usize>),
}

/// What the interpreter can not do, with the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interpreter: {0}")]
pub struct InterpError(pub String);

type Res = Result<Val, InterpError>;

/// Evaluates one operator.
pub type Eval = fn(&Ctx<'_>, &Inst, &[&Val], &Ty) -> Res;

/// Surroundings of an evaluation.
pub struct Ctx<'a> {
    /// Symbols.
    pub syms: &'a Syms,
    /// Value of each symbol.
    pub sizes: &'a [i64],
    /// The function that the operation is in.
    pub func: &'a Function,
}

fn bad<T>(m: impl Into<String>) -> Result<T, InterpError> {
    Err(InterpError(m.into()))
}

impl Tensor {
    /// An f32 tensor.
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Tensor {
        Tensor { shape: shape.to_vec(), data: Data::F32(data.into()) }
    }

    /// An i32 tensor.
    pub fn i32(shape: &[usize], data: &[i32]) -> Tensor {
        let data: Vec<i64> = data.iter().map(|&v| v.into()).collect();
        Tensor { shape: shape.to_vec(), data: Data::Int(DType::I32, data.into()) }
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The numbers as f32; encoded elements are decoded.
    pub fn to_f32(&self) -> Result<Arc<Vec<f32>>, InterpError> {
        match &self.data {
            Data::F32(v) | Data::Exact(_, v) => Ok(v.clone()),
            Data::Int(_, v) => Ok(Arc::new(v.iter().map(|&x| x as f32).collect())),
            Data::Bytes(elem, bytes) => decode(*elem, bytes, self.count()).map(Arc::new),
        }
    }

    /// Elements of an integer tensor.
    pub fn ints(&self) -> Result<&[i64], InterpError> {
        match &self.data {
            Data::Int(_, v) => Ok(v),
            _ => bad("integers expected"),
        }
    }
}

fn decode(elem: Elem, bytes: &[u8], count: usize) -> Result<Vec<f32>, InterpError> {
    let words = |f: fn(u16) -> f32| bytes.chunks_exact(2).map(|c| f(u16::from_le_bytes([c[0], c[1]]))).collect();
    let out: Vec<f32> = match elem {
        Elem::Scalar(DType::F16) => words(|b| half::f16::from_bits(b).to_f32()),
        Elem::Scalar(DType::BF16) => words(|b| half::bf16::from_bits(b).to_f32()),
        Elem::Scalar(DType::F32) => {
            bytes.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
        }
        Elem::Gguf(t) => {
            let mut out = vec![0.0; count];
            quant::dequantize(t, bytes, &mut out).map_err(|e| InterpError(e.to_string()))?;
            out
        }
        other => return bad(format!("{other} has no host form")),
    };
    if out.len() == count { Ok(out) } else { bad(format!("{} elements where {count} are declared", out.len())) }
}

fn tensor(v: &Val) -> Result<&Tensor, InterpError> {
    match v {
        Val::Tensor(t) => Ok(t),
        Val::Kv(..) | Val::Rows(..) => bad("tensor expected, got a state"),
    }
}

impl Ctx<'_> {
    fn dims(&self, shape: &[Dim]) -> Vec<usize> {
        shape.iter().map(|d| d.eval(|s| self.sizes[s.0 as usize]).max(0) as usize).collect()
    }

    fn shape(&self, ty: &Ty) -> Vec<usize> {
        ty.as_tensor().map(|t| self.dims(&t.shape)).unwrap_or_default()
    }
}

fn out(shape: Vec<usize>, data: Data) -> Res {
    Ok(Val::Tensor(Tensor { shape, data }))
}

/// Positions in `from` (repeated where its extent is 1) of each element of `to`, in order.
fn broadcast_index(from: &[usize], to: &[usize]) -> Vec<usize> {
    let total: usize = to.iter().product();
    let pad = to.len() - from.len();
    let mut strides = vec![0usize; to.len()];
    let mut step = 1;
    for i in (0..from.len()).rev() {
        strides[pad + i] = if from[i] == 1 { 0 } else { step };
        step *= from[i];
    }
    let mut ix = vec![0usize; to.len()];
    let mut at = 0usize;
    let mut all = Vec::with_capacity(total);
    for _ in 0..total {
        all.push(at);
        for d in (0..to.len()).rev() {
            ix[d] += 1;
            at += strides[d];
            if ix[d] < to[d] {
                break;
            }
            at -= strides[d] * to[d];
            ix[d] = 0;
        }
    }
    all
}

/// `f` by position over any kind of data.
fn pick(x: &Tensor, at: &[usize]) -> Result<Data, InterpError> {
    Ok(match &x.data {
        Data::Int(d, v) => Data::Int(*d, Arc::new(at.iter().map(|&i| v[i]).collect())),
        _ => {
            let v = x.to_f32()?;
            Data::F32(Arc::new(at.iter().map(|&i| v[i]).collect()))
        }
    })
}

pub(super) fn leaf(_: &Ctx<'_>, inst: &Inst, _: &[&Val], _: &Ty) -> Res {
    bad(format!("`{}` is bound by the caller", inst.op.name()))
}

pub(super) fn constant(c: &Ctx<'_>, i: &Inst, _: &[&Val], ty: &Ty) -> Res {
    let shape = c.shape(ty);
    let n = shape.iter().product();
    let v = i.attrs[0].as_f32();
    match i.attrs[2] {
        Attr::DType(d) if !d.is_float() => out(shape, Data::Int(d, Arc::new(vec![v as i64; n]))),
        _ => out(shape, Data::F32(Arc::new(vec![v; n]))),
    }
}

pub(super) fn table(c: &Ctx<'_>, i: &Inst, _: &[&Val], ty: &Ty) -> Res {
    out(c.shape(ty), Data::F32(Arc::new(i.attrs[0].as_floats())))
}

pub(super) fn iota(c: &Ctx<'_>, i: &Inst, _: &[&Val], ty: &Ty) -> Res {
    let shape = c.shape(ty);
    let axis = i.attrs[0].as_int() as usize;
    let inner: usize = shape[axis + 1..].iter().product();
    let v = (0..shape.iter().product::<usize>()).map(|p| ((p / inner) % shape[axis]) as i64);
    match i.attrs[2] {
        Attr::DType(d) if !d.is_float() => out(shape.clone(), Data::Int(d, Arc::new(v.collect()))),
        _ => out(shape.clone(), Data::F32(Arc::new(v.map(|x| x as f32).collect()))),
    }
}

fn erf(x: f64) -> f64 {
    // Series near zero, continued fraction elsewhere: both converge to f64 noise.
    if x.abs() < 2.5 {
        let (mut sum, mut term) = (x, x);
        for n in 1..80 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * 2.0 / std::f64::consts::PI.sqrt();
    }
    let a = x.abs();
    let mut f = 0.0;
    for n in (1..=60).rev() {
        f = f64::from(n) / 2.0 / (a + f);
    }
    let tail = (-a * a).exp() / (std::f64::consts::PI.sqrt() * (a + f));
    (1.0 - tail).copysign(x)
}

/// The low bits of an integer, as one of that type.
fn wrap(d: DType, v: i64) -> i64 {
    match d {
        DType::I32 => (v as i32).into(),
        DType::U32 => (v as u32).into(),
        DType::I16 => (v as i16).into(),
        DType::I8 => (v as i8).into(),
        DType::U8 => (v as u8).into(),
        _ => v,
    }
}

/// Integers saturate in a narrower type and keep their bits in any other.
fn convert(from: DType, to: DType, v: i64) -> i64 {
    let bits = 8 * to.size() as u32;
    match to {
        DType::Bool => (v != 0).into(),
        DType::U8 | DType::U32 if to.size() < from.size() => v.clamp(0, (1 << bits) - 1),
        _ if to.size() < from.size() => v.clamp(-1 << (bits - 1), (1 << (bits - 1)) - 1),
        _ => wrap(to, v),
    }
}

pub(super) fn unary(_: &Ctx<'_>, i: &Inst, x: &[&Val], _: &Ty) -> Res {
    let x = tensor(x[0])?;
    if let (Op::Neg, Data::Int(d, v)) = (i.op, &x.data) {
        return out(x.shape.clone(), Data::Int(*d, Arc::new(v.iter().map(|v| wrap(*d, v.wrapping_neg())).collect())));
    }
    let f: fn(f32) -> f32 = match i.op {
        Op::Neg => |x| -x,
        Op::Exp => f32::exp,
        Op::Log => f32::ln,
        Op::Rsqrt => |x| 1.0 / x.sqrt(),
        Op::Tanh => f32::tanh,
        Op::Erf => |x| erf(f64::from(x)) as f32,
        Op::Sin => f32::sin,
        Op::Cos => f32::cos,
        other => return bad(format!("`{}` is not unary", other.name())),
    };
    out(x.shape.clone(), Data::F32(Arc::new(x.to_f32()?.iter().map(|&v| f(v)).collect())))
}

/// The second of two numbers where one is NaN, as machines have it.
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

pub(super) fn binary(c: &Ctx<'_>, i: &Inst, x: &[&Val], ty: &Ty) -> Res {
    let (a, b) = (tensor(x[0])?, tensor(x[1])?);
    let shape = c.shape(ty);
    let (ia, ib) = (broadcast_index(&a.shape, &shape), broadcast_index(&b.shape, &shape));
    let pairs = ia.into_iter().zip(ib);
    if let (Data::Int(d, a), Data::Int(_, b)) = (&a.data, &b.data) {
        let f: fn(i64, i64) -> i64 = match i.op {
            Op::Add => |a, b| a.wrapping_add(b),
            Op::Sub => |a, b| a.wrapping_sub(b),
            Op::Mul => |a, b| a.wrapping_mul(b),
            Op::Max => i64::max,
            Op::Min => i64::min,
            Op::Lt => |a, b| i64::from(a < b),
            Op::Le => |a, b| i64::from(a <= b),
            Op::And => |a, b| a & b,
            other => return bad(format!("`{}` of integers", other.name())),
        };
        let d = if matches!(i.op, Op::Lt | Op::Le) { DType::Bool } else { *d };
        return out(shape, Data::Int(d, Arc::new(pairs.map(|(p, q)| wrap(d, f(a[p], b[q]))).collect())));
    }
    let (a, b) = (a.to_f32()?, b.to_f32()?);
    if matches!(i.op, Op::Lt | Op::Le) {
        let lt = i.op == Op::Lt;
        let f = |(p, q): (usize, usize)| i64::from(if lt { a[p] < b[q] } else { a[p] <= b[q] });
        return out(shape, Data::Int(DType::Bool, Arc::new(pairs.map(f).collect())));
    }
    let f: fn(f32, f32) -> f32 = match i.op {
        Op::Add => |a, b| a + b,
        Op::Sub => |a, b| a - b,
        Op::Mul => |a, b| a * b,
        Op::Div => |a, b| a / b,
        Op::Max => larger,
        Op::Min => |a, b| if a < b { a } else { b },
        other => return bad(format!("`{}` of floats", other.name())),
    };
    out(shape, Data::F32(Arc::new(pairs.map(|(p, q)| f(a[p], b[q])).collect())))
}

pub(super) fn select(c: &Ctx<'_>, _: &Inst, x: &[&Val], ty: &Ty) -> Res {
    let (m, a, b) = (tensor(x[0])?, tensor(x[1])?, tensor(x[2])?);
    let shape = c.shape(ty);
    let [im, ia, ib] = [m, a, b].map(|t| broadcast_index(&t.shape, &shape));
    let mask = m.ints()?;
    let choose = |i: usize| mask[im[i]] != 0;
    if let (Data::Int(d, a), Data::Int(_, b)) = (&a.data, &b.data) {
        let v = (0..im.len()).map(|i| if choose(i) { a[ia[i]] } else { b[ib[i]] }).collect();
        return out(shape, Data::Int(*d, Arc::new(v)));
    }
    let (a, b) = (a.to_f32()?, b.to_f32()?);
    let v = (0..im.len()).map(|i| if choose(i) { a[ia[i]] } else { b[ib[i]] }).collect();
    out(shape, Data::F32(Arc::new(v)))
}

/// The nearest number of a float type.
fn rounded(v: f32, d: DType) -> f32 {
    match d {
        DType::F16 => half::f16::from_f32(v).to_f32(),
        DType::BF16 => half::bf16::from_f32(v).to_f32(),
        _ => v,
    }
}

pub(super) fn cast(_: &Ctx<'_>, i: &Inst, x: &[&Val], _: &Ty) -> Res {
    let x = tensor(x[0])?;
    match i.attrs[0] {
        Attr::DType(d) if d.is_float() => {
            out(x.shape.clone(), Data::F32(Arc::new(x.to_f32()?.iter().map(|v| rounded(*v, d)).collect())))
        }
        Attr::DType(d) => {
            // Floats truncate and saturate at the ends of the type.
            let whole = |v: f32| match d {
                DType::I64 => v as i64,
                DType::I32 => (v as i32).into(),
                DType::U32 => (v as u32).into(),
                DType::I16 => (v as i16).into(),
                DType::I8 => (v as i8).into(),
                DType::U8 => (v as u8).into(),
                _ => (v != 0.0).into(),
            };
            let v = match &x.data {
                Data::Int(from, v) => v.iter().map(|v| convert(*from, d, *v)).collect(),
                _ => x.to_f32()?.iter().map(|v| whole(*v)).collect(),
            };
            out(x.shape.clone(), Data::Int(d, Arc::new(v)))
        }
        _ => bad("a scalar type expected"),
    }
}

pub(super) fn reshape(c: &Ctx<'_>, _: &Inst, x: &[&Val], ty: &Ty) -> Res {
    out(c.shape(ty), tensor(x[0])?.data.clone())
}

pub(super) fn permute(c: &Ctx<'_>, i: &Inst, x: &[&Val], ty: &Ty) -> Res {
    let x = tensor(x[0])?;
    let Attr::Ints(perm) = &i.attrs[0] else { return bad("axes expected") };
    let shape = c.shape(ty);
    let mut strides = vec![1usize; x.shape.len()];
    for d in (0..x.shape.len().saturating_sub(1)).rev() {
        strides[d] = strides[d + 1] * x.shape[d + 1];
    }
    let total: usize = shape.iter().product();
    let at: Vec<usize> = (0..total)
        .map(|mut p| {
            let mut at = 0;
            for d in (0..shape.len()).rev() {
                at += (p % shape[d]) * strides[perm[d] as usize];
                p /= shape[d];
            }
            at
        })
        .collect();
    out(shape, pick(x, &at)?)
}

pub(super) fn broadcast(c: &Ctx<'_>, _: &Inst, x: &[&Val], ty: &Ty) -> Res {
    let x = tensor(x[0])?;
    let shape = c.shape(ty);
    let at = broadcast_index(&x.shape, &shape);
    out(shape, pick(x, &at)?)
}

/// Outer count and inner count around an axis.
fn around(shape: &[usize], axis: usize) -> (usize, usize) {
    (shape[..axis].iter().product(), shape[axis + 1..].iter().product())
}

pub(super) fn slice(c: &Ctx<'_>, i: &Inst, x: &[&Val], ty: &Ty) -> Res {
    let x = tensor(x[0])?;
    let [axis, start, len] = [0, 1, 2].map(|a| i.attrs[a].as_int() as usize);
    let (outer, inner) = around(&x.shape, axis);
    let mut at = vec![];
    for o in 0..outer {
        let base = (o * x.shape[axis] + start) * inner;
        at.extend(base..base + len * inner);
    }
    out(c.shape(ty), pick(x, &at)?)
}

pub(super) fn concat(c: &Ctx<'_>, i: &Inst, x: &[&Val], ty: &Ty) -> Res {
    let axis = i.attrs[0].as_int() as usize;
    let parts = x.iter().map(|v| tensor(v)).collect::<Result<Vec<_>, _>>()?;
    let shape = c.shape(ty);
    let (outer, inner) = around(&shape, axis);
    let mut floats = vec![];
    let mut ints = vec![];
    let mut dtype = None;
    for o in 0..outer {
        for p in &parts {
            let len = p.shape[axis] * inner;
            match &p.data {
                Data::Int(d, v) => {
                    dtype = Some(*d);
                    ints.extend_from_slice(&v[o * len..(o + 1) * len]);
                }
                _ => floats.extend_from_slice(&p.to_f32()?[o * len..(o + 1) * len]),
            }
        }
    }
    match dtype {
        Some(d) => out(shape, Data::Int(d, Arc::new(ints))),
        None => out(shape, Data::F32(Arc::new(floats))),
    }
}

pub(super) fn reduce(c: &Ctx<'_>, i: &Inst, x: &[&Val], ty: &Ty) -> Res {
    let x = tensor(x[0])?;
    let k = x.shape.last().copied().unwrap_or(1).max(1);
    let v = x.to_f32()?;
    let f = |row: &[f32]| match i.op {
        Op::ReduceMax => row.iter().copied().fold(f32::NEG_INFINITY, larger),
        _ => row.iter().sum(),
    };
    out(c.shape(ty), Data::F32(Arc::new(v.chunks(k).map(f).collect())))
}

pub(super) fn linear(c: &Ctx<'_>, _: &Inst, x: &[&Val], ty: &Ty) -> Res {
    let (a, w) = (tensor(x[0])?, tensor(x[1])?);
    product(c, a.to_f32()?, w.to_f32()?, w.shape[1], ty)
}

fn product(c: &Ctx<'_>, a: Arc<Vec<f32>>, w: Arc<Vec<f32>>, k: usize, ty: &Ty) -> Res {
    let mut y = Vec::new();
    for row in a.chunks(k.max(1)) {
        for col in w.chunks(k.max(1)) {
            y.push(row.iter().zip(col).map(|(p, q)| p * q).sum());
        }
    }
    out(c.shape(ty), Data::F32(Arc::new(y)))
}

/// Quantized activations stand for their numbers, so the product over them is `linear`'s.
pub(super) fn qlinear(c: &Ctx<'_>, i: &Inst, x: &[&Val], ty: &Ty) -> Res {
    let (a, w) = (tensor(x[0])?, tensor(x[1])?);
    if matches!(a.data, Data::Exact(Elem::Act8, _)) {
        return linear(c, i, x, ty);
    }
    let rounded = w.to_f32()?.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
    product(c, a.to_f32()?, Arc::new(rounded), w.shape[1], ty)
}

pub(super) fn gather(c: &Ctx<'_>, _: &Inst, x: &[&Val], ty: &Ty) -> Res {
    let (t, ids) = (tensor(x[0])?, tensor(x[1])?);
    let row: usize = t.shape[1..].iter().product();
    let rows = t.shape[0];
    let mut at = vec![];
    for &id in ids.ints()? {
        let id = usize::try_from(id).ok().filter(|&i| i < rows);
        let Some(id) = id else { return bad(format!("row index out of 0..{rows}")) };
        at.extend(id * row..(id + 1) * row);
    }
    out(c.shape(ty), pick(t, &at)?)
}

pub(super) fn dequant(_: &Ctx<'_>, _: &Inst, x: &[&Val], _: &Ty) -> Res {
    let x = tensor(x[0])?;
    out(x.shape.clone(), Data::F32(x.to_f32()?))
}

pub(super) fn pack(_: &Ctx<'_>, i: &Inst, x: &[&Val], _: &Ty) -> Res {
    let Attr::Elem(elem) = i.attrs[0] else { return bad("element type expected") };
    let x = tensor(x[0])?;
    out(x.shape.clone(), Data::Exact(elem, x.to_f32()?))
}

pub(super) fn concat_rows(c: &Ctx<'_>, i: &Inst, x: &[&Val], ty: &Ty) -> Res {
    let parts = x.iter().map(|v| tensor(v)).collect::<Result<Vec<_>, _>>()?;
    let k = parts[0].shape[1];
    let mut data = vec![];
    let rows: Vec<Arc<Vec<f32>>> = parts.iter().map(|p| p.to_f32()).collect::<Result<_, _>>()?;
    match i.attrs[0].as_int() as usize {
        0 => rows.iter().for_each(|r| data.extend_from_slice(r)),
        block => {
            let step = block * k;
            for b in 0..rows[0].len() / step.max(1) {
                rows.iter().for_each(|r| data.extend_from_slice(&r[b * step..(b + 1) * step]));
            }
        }
    }
    let elem = ty.as_tensor().map_or(Elem::Scalar(DType::F32), |t| t.elem);
    out(c.shape(ty), Data::Exact(elem, Arc::new(data)))
}

pub(super) fn quantize(_: &Ctx<'_>, _: &Inst, x: &[&Val], _: &Ty) -> Res {
    let x = tensor(x[0])?;
    let mut y = Vec::with_capacity(x.count());
    for g in x.to_f32()?.chunks(32) {
        let max = g.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let scale = max * (1.0 / 127.0);
        let inv = if max > QUANTIZE_FLOOR { 127.0 / max } else { 0.0 };
        y.extend(g.iter().map(|v| (v * inv).round_ties_even() * scale));
    }
    out(x.shape.clone(), Data::Exact(Elem::Act8, Arc::new(y)))
}

pub(super) fn kv_append(_: &Ctx<'_>, _: &Inst, x: &[&Val], ty: &Ty) -> Res {
    let Ty::Kv(super::KvTy { dtype, .. }) = ty else { return bad("cache expected") };
    let Val::Kv([k, v], dims) = x[0] else { return bad("state expected") };
    let row = dims[1] * dims[2];
    let (mut k, mut v) = (k.as_ref().clone(), v.as_ref().clone());
    let held =
        |x: &Val| Ok::<Vec<f32>, InterpError>(tensor(x)?.to_f32()?.iter().map(|v| rounded(*v, *dtype)).collect());
    let (new_k, new_v) = (held(x[1])?, held(x[2])?);
    for (t, &slot) in tensor(x[3])?.ints()?.iter().enumerate() {
        let Some(at) = usize::try_from(slot).ok().filter(|&s| s < dims[0]) else {
            return bad(format!("slot {slot} out of 0..{}", dims[0]));
        };
        k[at * row..(at + 1) * row].copy_from_slice(&new_k[t * row..(t + 1) * row]);
        v[at * row..(at + 1) * row].copy_from_slice(&new_v[t * row..(t + 1) * row]);
    }
    Ok(Val::Kv([k.into(), v.into()], *dims))
}

pub(super) fn kv_read(_: &Ctx<'_>, i: &Inst, x: &[&Val], _: &Ty) -> Res {
    let Val::Kv(kv, dims) = x[0] else { return bad("state expected") };
    let which = i.attrs[0].as_int() as usize;
    match kv.get(which) {
        Some(v) => out(dims.to_vec(), Data::F32(v.clone())),
        None => bad(format!("component {which} of a cache")),
    }
}

/// Attention, position by position, over the seen slots only.
pub(super) fn attend(c: &Ctx<'_>, i: &Inst, x: &[&Val], ty: &Ty) -> Res {
    let slopes = i.attrs.get(4).map_or(vec![], Attr::as_floats);
    attention(c, i, x, ty, &slopes, &mut |scores, value, out| {
        let (_, weights) = exponentials(scores);
        let sum: f32 = weights.iter().sum();
        add_weighted(weights.iter().map(|w| w / sum), value, out);
    })
}

/// Attention over pieces of the positions.
pub(super) fn attend_parts(c: &Ctx<'_>, i: &Inst, x: &[&Val], ty: &Ty) -> Res {
    let parts = i.attrs[4].as_int() as usize;
    attention(c, i, x, ty, &[], &mut |scores, value, out| {
        let (blocks, width) = (scores.len().div_ceil(16), out.len() / parts);
        for (p, out) in out.chunks_exact_mut(width).enumerate() {
            let [first, end] = [p, p + 1].map(|p| ((p * blocks).div_ceil(parts) * 16).min(scores.len()));
            let piece = &scores[first..end];
            let (max, weights) = exponentials(piece);
            out[width - 2..].copy_from_slice(&[max.max(-1e30), weights.iter().sum()]);
            add_weighted(weights.into_iter(), &|j| value(first + j), &mut out[..width - 2]);
        }
    })
}

/// The largest score, and the exponentials of scores less it.
fn exponentials(scores: &[f32]) -> (f32, Vec<f32>) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (max, scores.iter().map(|s| (s - max).exp()).collect())
}

fn add_weighted(weights: impl Iterator<Item = f32>, value: &dyn Fn(usize) -> Vec<f32>, out: &mut [f32]) {
    for (j, w) in weights.enumerate() {
        out.iter_mut().zip(value(j)).for_each(|(o, v)| *o += w * v);
    }
}

/// Fills the rows of a token's head from its scores and the values of its positions, in order.
type Fill<'f> = &'f mut dyn FnMut(&[f32], &dyn Fn(usize) -> Vec<f32>, &mut [f32]);

fn attention(c: &Ctx<'_>, i: &Inst, x: &[&Val], ty: &Ty, slopes: &[f32], fill: Fill<'_>) -> Res {
    let Val::Kv([k, v], [slots, heads, dim]) = x[1] else { return bad("state expected") };
    let shape = c.shape(ty);
    let (n, hq) = (shape[0], shape[1]);
    let (scale, window) = (i.attrs[0].as_f32(), i.attrs[1].as_int());
    let (cap, page) = (i.attrs[2].as_f32(), i.attrs[3].as_int());
    let width: usize = shape[2..].iter().product();
    let q = tensor(x[0])?.to_f32()?;
    let (pos, seq, pages) = (tensor(x[2])?, tensor(x[3])?, tensor(x[4])?);
    let per_seq = pages.shape[1];
    let group = hq / heads;
    let mut y = vec![0.0; n * hq * width];
    let narrow = c.func.ty(i.operands[0]).as_tensor().is_some_and(|t| t.elem == Elem::Scalar(DType::BF16));
    let bf16 = |v: f32| if narrow { rounded(v, DType::BF16) } else { v };
    for t in 0..n {
        let (p, s) = (pos.ints()?[t], seq.ints()?[t] as usize);
        let first = if window > 0 { (p - window + 1).max(0) } else { 0 };
        let mut at = vec![];
        for j in first..=p {
            let entry = s * per_seq + (j / page) as usize;
            let slot = pages.ints()?.get(entry).map(|pg| (pg * page + j % page) as usize);
            match slot.filter(|s| s < slots) {
                Some(slot) => at.push(slot),
                None => return bad(format!("position {j} of sequence {s} has no slot")),
            }
        }
        for h in 0..hq {
            let qh = &q[(t * hq + h) * dim..][..*dim];
            let row = |m: &[f32], slot: usize| -> Vec<f32> {
                m[(slot * heads + h / group) * dim..][..*dim].iter().map(|v| bf16(*v)).collect()
            };
            let slope = slopes.get(h).copied().unwrap_or(0.0);
            let score = |(j, slot): (i64, &usize)| {
                let dot: f32 = qh.iter().zip(row(k, *slot)).map(|(a, b)| a * b).sum();
                let s = dot * scale;
                let s = if cap > 0.0 { (s / cap).tanh() * cap } else { s };
                s + slope * (j - p) as f32
            };
            let scores: Vec<f32> = (first..).zip(&at).map(score).collect();
            let out = &mut y[(t * hq + h) * width..][..width];
            fill(&scores, &|j| row(v, at[j]), out);
            out.iter_mut().for_each(|v| *v = bf16(*v));
        }
    }
    out(shape, Data::F32(Arc::new(y)))
}

/// Evaluates the expansion.
pub(super) fn by_expansion(c: &Ctx<'_>, i: &Inst, x: &[&Val], ty: &Ty) -> Res {
    let Some(expand) = i.op.info().expand else { return bad(format!("`{}` has no expansion", i.op.name())) };
    let mut b = Builder::new(c.syms, Function::new("expansion", Kind::Graph));
    let args: Vec<Value> =
        i.operands.iter().enumerate().map(|(n, v)| b.arg(n.to_string(), c.func.ty(*v).clone())).collect();
    let y = expand(&mut b, &args, &i.attrs).map_err(|e| InterpError(e.to_string()))?;
    b.func.results.push(("y".into(), y));
    let args = x.iter().map(|v| (*v).clone()).collect();
    let mut results =
        run_function(&Module::default(), &b.func, c.syms, c.sizes, args, &mut HashMap::new(), &HashMap::new())?;
    match results.pop() {
        Some(v) => Ok(v),
        None => bad(format!("{ty:?}")),
    }
}

/// Runs a function of a module. `states` holds the states by name and is updated with the last value of each.
pub fn run_function(
    m: &Module,
    f: &Function,
    syms: &Syms,
    sizes: &[i64],
    args: Vec<Val>,
    states: &mut HashMap<String, Val>,
    params: &HashMap<String, Tensor>,
) -> Result<Vec<Val>, InterpError> {
    if let Some(k) = &f.kernel {
        return external::run(f, k, sizes, args);
    }
    let ctx = Ctx { syms, sizes, func: f };
    let mut env: Vec<Option<Val>> = vec![None; f.values.len()];
    let mut owner: Vec<Option<String>> = vec![None; f.values.len()];
    let mut left = f.uses();
    for ((_, v), a) in f.args.iter().zip(args) {
        env[v.0 as usize] = Some(a);
    }
    for inst in &f.insts {
        let name = inst.attrs.first().map_or("", Attr::as_str);
        let results = match inst.op {
            Op::Param => match params.get(name) {
                Some(t) => vec![Val::Tensor(t.clone())],
                None => return bad(format!("parameter `{name}` is not bound")),
            },
            Op::State => match states.get(name) {
                Some(v) => vec![v.clone()],
                None => return bad(format!("state `{name}` is not bound")),
            },
            _ => {
                let taken: Vec<Val> = inst
                    .operands
                    .iter()
                    .map(|v| env[v.0 as usize].clone().ok_or_else(|| InterpError(format!("%{} has no value", v.0))))
                    .collect::<Result<_, _>>()?;
                if inst.op == Op::Call {
                    let Some(callee) = m.function(name) else { return bad(format!("no function @{name}")) };
                    run_function(m, callee, syms, sizes, taken, states, params)?
                } else {
                    let refs: Vec<&Val> = taken.iter().collect();
                    let r = (inst.op.info().eval)(&ctx, inst, &refs, f.ty(inst.results[0]))
                        .map_err(|e| InterpError(format!("{} in `{}`", e.0, inst.op.name())))?;
                    vec![r]
                }
            }
        };
        track_states(f, inst, name, &mut owner);
        for (r, v) in inst.results.iter().zip(results) {
            if let (Val::Kv(..) | Val::Rows(..), Some(state)) = (&v, &owner[r.0 as usize]) {
                states.insert(state.clone(), v.clone());
            }
            env[r.0 as usize] = Some(v);
        }
        for v in &inst.operands {
            left[v.0 as usize] -= 1;
            if left[v.0 as usize] == 0 {
                env[v.0 as usize] = None;
            }
        }
    }
    f.results
        .iter()
        .map(|(n, v)| env[v.0 as usize].clone().ok_or_else(|| InterpError(format!("`{n}` has no value"))))
        .collect()
}

/// Which declared state each value is a version of: calls pass the states of their operands to their results in order.
fn track_states(f: &Function, inst: &Inst, name: &str, owner: &mut [Option<String>]) {
    let is_kv = |v: &&Value| f.ty(**v).is_state();
    if inst.op == Op::State {
        owner[inst.results[0].0 as usize] = Some(name.to_string());
        return;
    }
    let from: Vec<Option<String>> = inst.operands.iter().filter(is_kv).map(|v| owner[v.0 as usize].clone()).collect();
    for (r, o) in inst.results.iter().filter(is_kv).zip(from) {
        owner[r.0 as usize] = o;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_too_small_to_quantize_become_zeros() {
        let text = "func @f(%0 \"x\": f32[1, 64]) {\n  %1 = quantize %0 : act8[1, 64]\n  return \"y\" = %1\n}";
        let m = super::super::parse_module(text).unwrap();
        let x: Vec<f32> = (0..64).map(|i| if i < 32 { 1e-38 } else { i as f32 }).collect();
        let args = vec![Val::Tensor(Tensor::f32(&[1, 64], x))];
        let f = m.entry().unwrap();
        let mut y = run_function(&m, f, &m.syms, &[], args, &mut HashMap::new(), &HashMap::new()).unwrap();
        let Some(Val::Tensor(y)) = y.pop() else { panic!("no tensor") };
        let y = y.to_f32().unwrap();
        assert!(y[..32].iter().all(|v| *v == 0.0));
        assert!((y[63] - 63.0).abs() < 1e-4 && (y[40] - 40.0).abs() < 0.25);
    }
}

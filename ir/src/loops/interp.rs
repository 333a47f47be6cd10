//! A slow, obvious interpreter of the loop IR: the meaning that backends are tested against.
//!
//! Where the IR leaves room, this is what backends must do, too:
//! * `Min` is `if a < b { a } else { b }` and `Max` is `if a > b { a } else { b }`, also for floats and in `Reduce`;
//! * casts between integers of one width, or to a wider one, keep the value modulo 2^bits; narrower ones saturate;
//! * a number casts to `bool` as "not zero", `bool` casts to 0 or 1;
//! * `Round` takes ties to even, float to integer casts take NaN to 0.

use std::collections::HashMap;

use half::{bf16, f16};
use thiserror::Error;

use super::{BinOp, Buf, Expr, Kernel, Node, Scope, Stmt, UnOp, Var, micro};
use crate::{DType, Sym};

/// The contents of one buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufData {
    /// Element type.
    pub dtype: DType,
    /// Elements in little-endian byte order.
    pub bytes: Vec<u8>,
}

impl BufData {
    /// `len` zeros.
    pub fn zeros(dtype: DType, len: usize) -> BufData {
        BufData { dtype, bytes: vec![0; len * dtype.size()] }
    }

    /// A buffer of floats.
    pub fn from_f32(v: &[f32]) -> BufData {
        BufData { dtype: DType::F32, bytes: v.iter().flat_map(|x| x.to_le_bytes()).collect() }
    }

    /// The floats of an `F32` buffer.
    pub fn to_f32(&self) -> Vec<f32> {
        let (words, _) = self.bytes.as_chunks::<4>();
        words.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Is there no element?
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// One element.
    pub fn get(&self, i: usize) -> Scalar {
        let n = self.dtype.size();
        let mut raw = [0u8; 8];
        raw[..n].copy_from_slice(&self.bytes[i * n..(i + 1) * n]);
        let u = u64::from_le_bytes(raw);
        match self.dtype {
            DType::F32 => Scalar::F(f32::from_bits(u as u32)),
            d => Scalar::I(wrap(u as i64, d)),
        }
    }

    /// Writes one element.
    pub fn set(&mut self, i: usize, v: Scalar) {
        let n = self.dtype.size();
        let u = match v {
            Scalar::F(f) => u64::from(f.to_bits()),
            Scalar::I(x) => x as u64,
        };
        self.bytes[i * n..(i + 1) * n].copy_from_slice(&u.to_le_bytes()[..n]);
    }
}

/// One lane: floats of 32 bits as such, everything else as an integer (16-bit floats as their bits).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// Integer, truth value, or bits of a 16-bit float.
    I(i64),
    /// 32-bit float.
    F(f32),
}

impl Scalar {
    fn i(self) -> i64 {
        match self {
            Scalar::I(v) => v,
            Scalar::F(f) => i64::from(f.to_bits()),
        }
    }

    fn f(self) -> f32 {
        match self {
            Scalar::F(f) => f,
            Scalar::I(v) => f32::from_bits(v as u32),
        }
    }
}

/// Why a run stopped.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InterpError {
    /// An access outside its buffer.
    #[error("`{buffer}`: index {index:?} with {lanes} lanes is outside shape {shape:?}")]
    Bounds {
        /// The buffer's name.
        buffer: String,
        /// The index.
        index: Vec<i64>,
        /// Lanes accessed.
        lanes: u16,
        /// The buffer's extents.
        shape: Vec<i64>,
    },
    /// Arguments that do not fit the kernel.
    #[error("argument {0}: {1}")]
    Argument(usize, String),
    /// A kernel that is not well formed, or an operation without a result.
    #[error("{0}")]
    Invalid(String),
}

type R<T> = Result<T, InterpError>;

fn invalid<T>(what: impl Into<String>) -> R<T> {
    Err(InterpError::Invalid(what.into()))
}

/// Runs a kernel over its whole parallel range. `args` are its argument buffers in order.
pub fn run(k: &Kernel, sizes: &[i64], args: &mut [BufData]) -> R<()> {
    let mut whole = k.clone();
    micro::expand(&mut whole, &|_| true);
    let k = &whole;
    if args.len() != k.args() {
        return Err(InterpError::Argument(args.len(), format!("the kernel takes {} arguments", k.args())));
    }
    let size = |s: Sym| sizes.get(s.0 as usize).copied().unwrap_or(0);
    let shapes: Vec<Vec<i64>> = k.buffers.iter().map(|b| b.shape.iter().map(|d| d.eval(size)).collect()).collect();
    let mut data = Vec::new();
    for (i, b) in k.buffers.iter().enumerate() {
        let len = shapes[i].iter().product::<i64>().max(0) as usize;
        match args.get(i) {
            Some(a) if a.dtype != b.dtype => {
                return Err(InterpError::Argument(i, format!("`{}` is {}, not {}", b.name, b.dtype, a.dtype)));
            }
            Some(a) if a.len() < len => {
                return Err(InterpError::Argument(i, format!("`{}` has {len} elements, not {}", b.name, a.len())));
            }
            Some(a) => data.push(a.clone()),
            None => data.push(BufData { dtype: b.dtype, bytes: vec![0xff; len * b.dtype.size()] }),
        }
    }
    let mut m = Machine { k, sizes, shapes, data, env: HashMap::new(), memo: HashMap::new() };
    m.block(&k.body)?;
    for (a, d) in args.iter_mut().zip(m.data) {
        *a = d;
    }
    Ok(())
}

/// Value of an expression without variables or buffers, for tests of rewrites.
pub fn eval_with(e: &Expr, vars: &[(Var, Vec<Scalar>)]) -> Result<Vec<Scalar>, InterpError> {
    let k = Kernel::new("expr");
    let env = vars.iter().cloned().collect();
    Machine { k: &k, sizes: &[], shapes: vec![], data: vec![], env, memo: HashMap::new() }.eval(e)
}

struct Machine<'a> {
    k: &'a Kernel,
    sizes: &'a [i64],
    shapes: Vec<Vec<i64>>,
    data: Vec<BufData>,
    env: HashMap<Var, Vec<Scalar>>,
    memo: HashMap<usize, Vec<Scalar>>,
}

impl Machine<'_> {
    fn block(&mut self, body: &[Stmt]) -> R<()> {
        body.iter().try_for_each(|s| self.stmt(s))
    }

    fn stmt(&mut self, s: &Stmt) -> R<()> {
        self.memo.clear();
        match s {
            Stmt::For { var, extent, body, .. } => {
                let n = self.scalar(extent)?;
                for i in 0..n {
                    self.env.insert(*var, vec![Scalar::I(i)]);
                    self.block(body)?;
                }
                Ok(())
            }
            Stmt::Let { var, value } => {
                let v = self.eval(value)?;
                self.env.insert(*var, v);
                Ok(())
            }
            Stmt::Store { buf, index, value } => {
                if self.k.decl(*buf).scope == Scope::In {
                    return invalid(format!("store to `{}`, which is only read", self.k.decl(*buf).name));
                }
                let v = self.eval(value)?;
                let at = self.place(*buf, index, value.lanes())?;
                for (i, x) in v.into_iter().enumerate() {
                    self.data[buf.0 as usize].set(at + i, x);
                }
                Ok(())
            }
            Stmt::If { cond, then, other } => {
                let branch = if self.scalar(cond)? != 0 { then } else { other };
                self.block(branch)
            }
            Stmt::Micro(m) => invalid(format!("`{}` is not expanded", m.op)),
        }
    }

    fn scalar(&mut self, e: &Expr) -> R<i64> {
        Ok(self.eval(e)?[0].i())
    }

    /// Flat position of an access, checked.
    fn place(&mut self, buf: Buf, index: &[Expr], lanes: u16) -> R<usize> {
        let ix = index.iter().map(|e| self.scalar(e)).collect::<R<Vec<i64>>>()?;
        let shape = &self.shapes[buf.0 as usize];
        let last = ix.len().wrapping_sub(1);
        let inside = ix.len() == shape.len()
            && (!ix.is_empty() || lanes == 1)
            && ix.iter().zip(shape).enumerate().all(|(a, (&i, &n))| {
                let width = if a == last { i64::from(lanes) } else { 1 };
                i >= 0 && i + width <= n
            });
        if !inside {
            let buffer = self.k.decl(buf).name.clone();
            return Err(InterpError::Bounds { buffer, index: ix, lanes, shape: shape.clone() });
        }
        Ok(ix.iter().zip(shape).fold(0, |flat, (&i, &n)| flat * n + i) as usize)
    }

    fn eval(&mut self, e: &Expr) -> R<Vec<Scalar>> {
        if let Some(v) = self.memo.get(&e.id()) {
            return Ok(v.clone());
        }
        let v = self.compute(e)?;
        if !e.children().is_empty() {
            self.memo.insert(e.id(), v.clone());
        }
        Ok(v)
    }

    fn compute(&mut self, e: &Expr) -> R<Vec<Scalar>> {
        let (d, lanes) = (e.dtype(), e.lanes() as usize);
        Ok(match e.node() {
            Node::Int(v) => vec![Scalar::I(wrap(*v, d)); lanes],
            Node::Float(bits) => vec![Scalar::F(f32::from_bits(*bits)); lanes],
            Node::Size(s) => match self.sizes.get(s.0 as usize) {
                Some(&v) => vec![Scalar::I(v)],
                None => return invalid(format!("size {} has no value", s.0)),
            },
            Node::Var(v) => match self.env.get(v) {
                Some(x) => x.clone(),
                None => return invalid(format!("variable {} is not bound", v.0)),
            },
            Node::Load(buf, index) => {
                let at = self.place(*buf, index, e.lanes())?;
                (at..at + lanes).map(|i| self.data[buf.0 as usize].get(i)).collect()
            }
            Node::Unary(op, a) => self.eval(a)?.into_iter().map(|x| unary(*op, x, d)).collect::<R<_>>()?,
            Node::Binary(op, a, b) => {
                let t = a.dtype();
                let (a, b) = (self.eval(a)?, self.eval(b)?);
                a.into_iter().zip(b).map(|(x, y)| binary(*op, x, y, t)).collect::<R<_>>()?
            }
            Node::Fma(a, b, c) => {
                let (a, b, c) = (self.eval(a)?, self.eval(b)?, self.eval(c)?);
                (0..lanes).map(|i| Scalar::F(a[i].f().mul_add(b[i].f(), c[i].f()))).collect()
            }
            Node::Select(c, a, b) => {
                let (c, a, b) = (self.eval(c)?, self.eval(a)?, self.eval(b)?);
                (0..lanes).map(|i| if c[i].i() != 0 { a[i] } else { b[i] }).collect()
            }
            Node::Cast(a) => {
                let from = a.dtype();
                self.eval(a)?.into_iter().map(|x| cast(x, from, d)).collect()
            }
            Node::Bitcast(a) => {
                let bits = self.eval(a)?.into_iter().map(Scalar::i);
                bits.map(|b| if d == DType::F32 { Scalar::F(f32::from_bits(b as u32)) } else { Scalar::I(wrap(b, d)) })
                    .collect()
            }
            Node::Dot4 { acc, w, x, w_max } => {
                let (acc, w, x) = (self.eval(acc)?, self.eval(w)?, self.eval(x)?);
                let mut out = Vec::with_capacity(lanes);
                for i in 0..lanes {
                    let (wb, xb) = ((w[i].i() as u32).to_le_bytes(), (x[i].i() as u32).to_le_bytes());
                    if let Some(b) = wb.iter().find(|b| **b > *w_max) {
                        return invalid(format!("dot4 promises bytes up to {w_max}, found {b}"));
                    }
                    let sum: i32 = wb.iter().zip(xb).map(|(&w, x)| i32::from(w) * i32::from(x as i8)).sum();
                    out.push(Scalar::I(i64::from((acc[i].i() as i32).wrapping_add(sum))));
                }
                out
            }
            Node::Splat(a) => vec![self.eval(a)?[0]; lanes],
            Node::Ramp(a) => {
                let base = self.scalar(a)?;
                (0..lanes as i64).map(|i| Scalar::I(wrap(base.wrapping_add(i), d))).collect()
            }
            Node::Reduce(op, a) => {
                let mut v = self.eval(a)?;
                while v.len() > 1 {
                    let half = v.len() / 2;
                    if v.len() % 2 != 0 {
                        return invalid("reduce over a number of lanes that is no power of two");
                    }
                    v = (0..half).map(|i| binary(*op, v[i], v[i + half], d)).collect::<R<_>>()?;
                }
                v
            }
        })
    }
}

/// The value modulo the width of an integer type.
fn wrap(v: i64, d: DType) -> i64 {
    match d {
        DType::I64 => v,
        DType::I32 => i64::from(v as i32),
        DType::U32 | DType::F32 => i64::from(v as u32),
        DType::I16 => i64::from(v as i16),
        DType::F16 | DType::BF16 => i64::from(v as u16),
        DType::I8 => i64::from(v as i8),
        DType::U8 => i64::from(v as u8),
        DType::Bool => v & 1,
    }
}

fn saturate(v: i64, d: DType) -> i64 {
    match d {
        DType::I64 => v,
        DType::I32 => v.clamp(i64::from(i32::MIN), i64::from(i32::MAX)),
        DType::U32 => v.clamp(0, i64::from(u32::MAX)),
        DType::I16 => v.clamp(i64::from(i16::MIN), i64::from(i16::MAX)),
        DType::I8 => v.clamp(-128, 127),
        DType::U8 => v.clamp(0, 255),
        _ => wrap(v, d),
    }
}

fn cast(x: Scalar, from: DType, to: DType) -> Scalar {
    let x = match from {
        DType::F16 => Scalar::F(f16::from_bits(x.i() as u16).to_f32()),
        DType::BF16 => Scalar::F(bf16::from_bits(x.i() as u16).to_f32()),
        _ => x,
    };
    match (x, to) {
        (Scalar::F(f), DType::F32) => Scalar::F(f),
        (Scalar::F(f), DType::F16) => Scalar::I(i64::from(f16::from_f32(f).to_bits())),
        (Scalar::F(f), DType::BF16) => Scalar::I(i64::from(bf16::from_f32(f).to_bits())),
        (Scalar::F(f), DType::Bool) => Scalar::I(i64::from(f != 0.0)),
        (Scalar::F(f), d) => Scalar::I(saturate(f as i64, d)),
        (Scalar::I(v), DType::Bool) => Scalar::I(i64::from(v != 0)),
        (Scalar::I(v), DType::F32) => Scalar::F(v as f32),
        (Scalar::I(v), DType::F16) => Scalar::I(i64::from(f16::from_f32(v as f32).to_bits())),
        (Scalar::I(v), DType::BF16) => Scalar::I(i64::from(bf16::from_f32(v as f32).to_bits())),
        (Scalar::I(v), d) if d.size() < from.size() => Scalar::I(saturate(v, d)),
        (Scalar::I(v), d) => Scalar::I(wrap(v, d)),
    }
}

fn unary(op: UnOp, x: Scalar, d: DType) -> R<Scalar> {
    let wide = |f: fn(f64) -> f64| Ok(Scalar::F(f(f64::from(x.f())) as f32));
    match (op, d) {
        (UnOp::Neg, DType::F32) => Ok(Scalar::F(-x.f())),
        (UnOp::Abs, DType::F32) => Ok(Scalar::F(x.f().abs())),
        (UnOp::Sqrt, DType::F32) => Ok(Scalar::F(x.f().sqrt())),
        (UnOp::Floor, DType::F32) => Ok(Scalar::F(x.f().floor())),
        (UnOp::Round, DType::F32) => Ok(Scalar::F(x.f().round_ties_even())),
        (UnOp::Exp, DType::F32) => wide(f64::exp),
        (UnOp::Log, DType::F32) => wide(f64::ln),
        (UnOp::Sin, DType::F32) => wide(f64::sin),
        (UnOp::Cos, DType::F32) => wide(f64::cos),
        (UnOp::Tanh, DType::F32) => wide(f64::tanh),
        (UnOp::Erf, DType::F32) => wide(erf),
        (UnOp::Not, DType::Bool) => Ok(Scalar::I(x.i() ^ 1)),
        (UnOp::Neg, d) if !d.is_float() => Ok(Scalar::I(wrap(x.i().wrapping_neg(), d))),
        (UnOp::Abs, d) if !d.is_float() => Ok(Scalar::I(wrap(x.i().wrapping_abs(), d))),
        (op, d) => invalid(format!("{op:?} has no meaning for {d}")),
    }
}

fn binary(op: BinOp, x: Scalar, y: Scalar, d: DType) -> R<Scalar> {
    let truth = |t: bool| Ok(Scalar::I(i64::from(t)));
    if d == DType::F32 {
        let (a, b) = (x.f(), y.f());
        return Ok(Scalar::F(match op {
            BinOp::Add => a + b,
            BinOp::Sub => a - b,
            BinOp::Mul => a * b,
            BinOp::Div => a / b,
            BinOp::Min => {
                if a < b {
                    a
                } else {
                    b
                }
            }
            BinOp::Max => {
                if a > b {
                    a
                } else {
                    b
                }
            }
            BinOp::Lt => return truth(a < b),
            BinOp::Le => return truth(a <= b),
            BinOp::Eq => return truth(a == b),
            _ => return invalid(format!("{op:?} has no meaning for {d}")),
        }));
    }
    if d.is_float() {
        return invalid(format!("{op:?} has no meaning for {d}"));
    }
    let (a, b) = (x.i(), y.i());
    let v = match op {
        BinOp::Add => a.wrapping_add(b),
        BinOp::Sub => a.wrapping_sub(b),
        BinOp::Mul => a.wrapping_mul(b),
        BinOp::Div | BinOp::Rem if b <= 0 || a < 0 => return invalid(format!("{op:?} of {a} and {b}")),
        BinOp::Div => a / b,
        BinOp::Rem => a % b,
        BinOp::Min => a.min(b),
        BinOp::Max => a.max(b),
        BinOp::And => a & b,
        BinOp::Or => a | b,
        BinOp::Xor => a ^ b,
        BinOp::Shl | BinOp::Shr if b < 0 || b >= 8 * d.size() as i64 => return invalid(format!("shift by {b}")),
        BinOp::Shl => a << b,
        BinOp::Shr => a >> b,
        BinOp::Lt => return truth(a < b),
        BinOp::Le => return truth(a <= b),
        BinOp::Eq => return truth(a == b),
    };
    Ok(Scalar::I(wrap(v, d)))
}

/// Error function to about 1e-15: a series near zero, a continued fraction beyond.
pub(super) fn erf(x: f64) -> f64 {
    let a = x.abs();
    if x.is_nan() {
        return x;
    }
    if a < 2.5 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-18 * sum.abs() {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let fraction = (1..=60).rev().fold(0.0, |f, k| f64::from(k) / 2.0 / (a + f));
    let tail = (-a * a).exp() / (std::f64::consts::PI.sqrt() * (a + fraction));
    (1.0 - tail).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loops::LoopKind;

    fn scaled_copy(n: i64) -> Kernel {
        let mut k = Kernel::new("k");
        let a = k.buffer("a", DType::F32, vec![n.into()], Scope::In);
        let b = k.buffer("b", DType::F32, vec![4.into()], Scope::Out);
        let i = k.fresh("i");
        let value = k.load(a, vec![Expr::var(i)]) * Expr::float(2.0);
        let body = vec![Stmt::Store { buf: b, index: vec![Expr::var(i)], value }];
        k.body = vec![Stmt::For { var: i, extent: Expr::idx(4), kind: LoopKind::Parallel, body }];
        k
    }

    #[test]
    fn runs_and_checks_bounds() {
        let mut args = [BufData::from_f32(&[1.0, 2.0, 3.0, 4.0]), BufData::zeros(DType::F32, 4)];
        run(&scaled_copy(4), &[], &mut args).unwrap();
        assert_eq!(args[1].to_f32(), [2.0, 4.0, 6.0, 8.0]);
        let e = run(&scaled_copy(3), &[], &mut args).unwrap_err();
        assert_eq!(e.to_string(), "`a`: index [3] with 1 lanes is outside shape [3]");
    }

    #[test]
    fn erf_values() {
        for (x, y) in [(0.5, 0.520_499_877_813_046_5), (1.0, 0.842_700_792_949_714_9), (3.0, 0.999_977_909_503_001_4)] {
            assert!((erf(x) - y).abs() < 1e-15, "{x}: {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert!((erf(2.499_999) - erf(2.500_001)).abs() < 1e-8);
    }
}

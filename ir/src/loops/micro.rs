//! Micro-kernels: tiles of work that a target may have a routine for.
//!
//! A [`Micro`] statement names an operation and what it works on. Its meaning is the loop nest that [`expand`] puts in its
//! place, which every backend and the interpreter can run. A backend that knows a routine for the operation on its target
//! calls it instead: with the addresses of the arguments, in order, and with the sizes, followed by the number of elements
//! between neighbours along the first axis of each argument and by the operation's constants. The routine computes what the nest computes; sums of floats may be taken in
//! another order where the operation says so.

use std::fmt;
use std::str::FromStr;

use super::{BinOp, Buf, Expr, Kernel, LoopKind, Node, Scope, Stmt, UnOp, VTy};
use crate::graph::QUANTIZE_FLOOR;
use crate::{DType, Elem, FACTOR_SPAN, Packed};

/// A routine for a micro-kernel: addresses of arguments; sizes, strides and constants.
pub type Routine = unsafe extern "C" fn(*const *mut u8, *const i64);

/// What a micro-kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MicroOp {
    /// Products of quantized activations and packed rows, exact within a group and scaled in f32; groups are summed in any order.
    ///
    /// `acc f32[tokens * blocks, 8] = x[tokens, 32 * groups] * w[8 * blocks, 32 * groups]`, from the planes of the weight
    /// (data, scale, minimum and factors if there are any) and of the activations (words, scale, sums, as [`Elem::Act8`] says).
    /// Sizes: tokens, blocks, groups.
    Dot(Packed),
    /// Products of f32 activations and row blocks, each summed along k from the first to the last with fused multiply-adds.
    ///
    /// `acc f32[tokens * blocks, 8] = x[tokens, k] * w[blocks, k, 8]`. Sizes: tokens, blocks, k.
    Fma(DType),
    /// Packed rows as row blocks of f32: `out[blocks, 32 * groups, 8]` from the planes. Sizes: blocks, groups.
    Unpack(Packed),
    /// Products of bf16 activations and panels of bf16 in pairs along k, as matrix units read them; sums are f32, in any order.
    ///
    /// `acc f32[tokens * blocks, 8] = x[tokens, 32 * groups] * w[16 * groups, 8 * blocks, 2]`. Sizes: tokens, blocks, groups.
    Pairs,
    /// Packed rows rounded to bf16, in pairs: `out[16 * groups, 8 * blocks, 2]` from the planes. Sizes: blocks, groups.
    UnpackPairs(Packed),
    /// Attention of rows of queries, each over a range of positions of a paged cache; sums are taken in any order.
    ///
    /// `out f32[rows, dim] = softmax(q[rows, dim] * keys) * values`, from `out`, `q`, `keys[slots, heads, dim]` and `values` at one
    /// head, `pages i32[sequences, pages]`, and `meta i64[rows, 3]`: first position, last position, sequence of each row.
    /// Sizes: rows, dim, positions per page. With `parts`, rows have two numbers more and are those of `attend_parts`. With `narrow`,
    /// queries, keys, values and weights may be rounded to bf16; the loops round all but weights.
    Attend(Attend),
    /// Gated products of rows whose blocks of 8 are a gate and what it is for in turn: `out[tokens, 8 * blocks] = act(gate) * up`, in any
    /// float type, of `acc f32[tokens * 2 * blocks, 8]`. Sizes: tokens, blocks.
    Gate(Act, DType),
    /// Rows as the operator `quantize` leaves them, every bit of them.
    ///
    /// `q i8[rows, 32 * groups]`, `scale f32[rows, groups]` and `sums f32[rows, 2 * groups]` of `x f32[rows, 32 * groups]`.
    /// Sizes: rows, groups.
    Quantize,
}

/// Activation of [`MicroOp::Gate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// `x / (1 + e^-x)`
    Silu,
    /// Gaussian error linear unit by tanh.
    Gelu,
}

impl Act {
    fn name(self) -> &'static str {
        match self {
            Act::Silu => "silu",
            Act::Gelu => "gelu",
        }
    }

    fn apply(self, x: Expr) -> Expr {
        match self {
            Act::Silu => x.clone() / (Expr::unary(UnOp::Exp, Expr::unary(UnOp::Neg, x)) + Expr::float(1.0)),
            Act::Gelu => {
                let cube = x.clone() * x.clone() * x.clone();
                let inner = (x.clone() + cube * Expr::float(0.044715)) * Expr::float(0.797_884_6);
                x * Expr::float(0.5) * (Expr::unary(UnOp::Tanh, inner) + Expr::float(1.0))
            }
        }
    }
}

/// Parameters of [`MicroOp::Attend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attend {
    /// Element type of keys and values.
    pub dtype: DType,
    /// Factor of scores, f32 bits.
    pub scale: u32,
    /// Soft cap of scores, f32 bits; 0 for none.
    pub cap: u32,
    /// Are sums left with the largest score and the sum of weights behind them, instead of divided? Ranges may be empty then.
    pub parts: bool,
    /// Are products those of bf16 numbers?
    pub narrow: bool,
}

/// A call of a micro-kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Micro {
    /// What it computes.
    pub op: MicroOp,
    /// Where each argument begins.
    pub args: Vec<(Buf, Vec<Expr>)>,
    /// Sizes, `i64` scalars.
    pub sizes: Vec<Expr>,
}

/// An argument of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Element type.
    pub dtype: DType,
    /// Number of axes. What is only read may have more, the last ones of constant extents and read as one axis.
    pub rank: usize,
    /// Is it written? Those that are stand first.
    pub written: bool,
}

impl MicroOp {
    /// The arguments, in order.
    pub fn params(self) -> Vec<Param> {
        let p = |dtype, rank| Param { dtype, rank, written: false };
        let planes = |w: Packed| {
            let side = p(w.scale, 3);
            let mut all = vec![p(DType::U32, 4), side];
            all.extend(w.min.then_some(side));
            all.extend(w.has_factors().then_some(p(DType::F16, 4)));
            all
        };
        let written = if self == MicroOp::Quantize { 3 } else { 1 };
        let mut all = match self {
            MicroOp::Dot(w) => {
                let mut all = vec![p(DType::F32, 2)];
                all.extend(planes(w));
                all.extend([p(DType::U32, 2), p(DType::F32, 2), p(DType::F32, 2)]);
                all
            }
            MicroOp::Gate(_, d) => vec![p(d, 2), p(DType::F32, 2)],
            MicroOp::Fma(d) => vec![p(DType::F32, 2), p(d, 3), p(DType::F32, 2)],
            MicroOp::Unpack(w) | MicroOp::UnpackPairs(w) => {
                let to = if self == MicroOp::Unpack(w) { DType::F32 } else { DType::BF16 };
                let mut all = vec![p(to, 3)];
                all.extend(planes(w));
                all
            }
            MicroOp::Pairs => vec![p(DType::F32, 2), p(DType::BF16, 3), p(DType::BF16, 2)],
            MicroOp::Attend(a) => {
                let (rows, cache) = (p(DType::F32, 2), p(a.dtype, 3));
                vec![rows, rows, cache, cache, p(DType::I32, 2), p(DType::I64, 2)]
            }
            MicroOp::Quantize => [DType::I8, DType::F32, DType::F32, DType::F32].map(|d| p(d, 2)).into(),
        };
        all[..written].iter_mut().for_each(|p| p.written = true);
        all
    }

    /// What the routine is told beside sizes and strides.
    pub fn constants(self) -> Vec<i64> {
        match self {
            MicroOp::Attend(a) => vec![a.scale.into(), a.cap.into(), a.parts.into()],
            _ => vec![],
        }
    }

    /// Names of the sizes, in order.
    pub fn sizes(self) -> &'static [&'static str] {
        match self {
            MicroOp::Dot(_) | MicroOp::Pairs => &["tokens", "blocks", "groups"],
            MicroOp::Fma(_) => &["tokens", "blocks", "k"],
            MicroOp::Unpack(_) | MicroOp::UnpackPairs(_) => &["blocks", "groups"],
            MicroOp::Attend(_) => &["rows", "dim", "page"],
            MicroOp::Gate(..) => &["tokens", "blocks"],
            MicroOp::Quantize => &["rows", "groups"],
        }
    }
}

impl fmt::Display for MicroOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MicroOp::Dot(p) => write!(f, "dot {}", Elem::Packed(*p)),
            MicroOp::Fma(d) => write!(f, "fma {d}"),
            MicroOp::Unpack(p) => write!(f, "unpack {}", Elem::Packed(*p)),
            MicroOp::Pairs => write!(f, "pairs"),
            MicroOp::UnpackPairs(p) => write!(f, "unpack_pairs {}", Elem::Packed(*p)),
            MicroOp::Attend(a) => {
                let [parts, narrow] =
                    [(a.parts, " parts"), (a.narrow, " narrow")].map(|(is, s)| if is { s } else { "" });
                write!(f, "attend {} {:08x} {:08x}{parts}{narrow}", a.dtype, a.scale, a.cap)
            }
            MicroOp::Gate(a, d) => write!(f, "gate {} {d}", a.name()),
            MicroOp::Quantize => write!(f, "quantize"),
        }
    }
}

impl FromStr for MicroOp {
    type Err = ();

    fn from_str(s: &str) -> Result<MicroOp, ()> {
        let words: Vec<&str> = s.split(' ').collect();
        let packed = |s: &str| match s.parse() {
            Ok(Elem::Packed(p)) => Ok(p),
            _ => Err(()),
        };
        let float = |s: &str| s.parse::<DType>().ok().filter(|d| d.is_float()).ok_or(());
        let bits = |s: &str| u32::from_str_radix(s, 16).map_err(|_| ());
        match words.as_slice() {
            ["dot", p] => packed(p).map(MicroOp::Dot),
            ["fma", d] => float(d).map(MicroOp::Fma),
            ["unpack", p] => packed(p).map(MicroOp::Unpack),
            ["pairs"] => Ok(MicroOp::Pairs),
            ["unpack_pairs", p] => packed(p).map(MicroOp::UnpackPairs),
            ["quantize"] => Ok(MicroOp::Quantize),
            ["gate", act, d] => {
                let act = [Act::Silu, Act::Gelu].into_iter().find(|a| a.name() == *act).ok_or(())?;
                Ok(MicroOp::Gate(act, float(d)?))
            }
            ["attend", d, scale, cap, more @ ..]
                if matches!(more, [] | ["parts"] | ["narrow"] | ["parts", "narrow"]) =>
            {
                let [parts, narrow] = ["parts", "narrow"].map(|w| more.contains(&w));
                Ok(MicroOp::Attend(Attend { dtype: float(d)?, scale: bits(scale)?, cap: bits(cap)?, parts, narrow }))
            }
            _ => Err(()),
        }
    }
}

/// Scale or minimum `side` of a group in f32: what its plane has, by the factor where there is one.
pub fn side(side: Expr, factor: Option<Expr>) -> Expr {
    match factor {
        Some(f) => f.cast(DType::F32) * side.cast(DType::I32).cast(DType::F32),
        None => side.cast(DType::F32),
    }
}

/// The number that the integer `q` stands for beside the scale of its group and the minimum, if there is one.
pub fn number(p: Packed, q: Expr, (scale, min): (Expr, Option<Expr>)) -> Expr {
    match min {
        Some(min) => scale * q.cast(DType::F32) + min,
        None => scale * (q - i64::from(p.zero)).cast(DType::F32),
    }
}

/// One group's part of a product of quantized numbers, added to `old`: `scale * (dot * x - zero * Σx)`, or
/// `scale * dot * x + min * Σx`. `dot` is the exact sum as f32, `x` the scale of the activations, `total` their scaled sum.
pub fn scaled(p: Packed, (scale, min): (Expr, Option<Expr>), dot: Expr, x: Expr, total: Expr, old: Expr) -> Expr {
    match min {
        Some(m) => scale.fma(dot * x, m.fma(total, old)),
        None if p.zero == 0 => scale.fma(dot * x, old),
        None => scale.fma(dot.fma(x, total * Expr::float(-f32::from(p.zero))), old),
    }
}

/// The scale of a group of activations whose largest magnitude is `max`, and what its numbers are multiplied by.
pub fn group_scale(max: Expr) -> (Expr, Expr) {
    let inverse =
        Expr::float(QUANTIZE_FLOOR).lt(max.clone()).select(Expr::float(127.0) / max.clone(), Expr::float(0.0));
    (max * Expr::float(1.0 / 127.0), inverse)
}

/// Elements `4 * quad ..` of a group of 32 as the bytes of a word, from the data words that `word` gives.
pub fn quad(p: Packed, quad: i64, word: impl Fn(i64) -> Expr) -> Expr {
    parts(p, quad, 0x0101_0101, 0, word)
}

/// Element `j` of a group of 32 as i32, from the data words that `word` gives.
pub fn element(p: Packed, j: i64, word: impl Fn(i64) -> Expr) -> Expr {
    parts(p, j / 4, 1, 8 * (j % 4), word).bitcast(DType::I32)
}

/// The parts of a quad, joined: moved down by `skip` bits, of which those in every byte that `bytes` has a one for.
fn parts(p: Packed, quad: i64, bytes: i64, skip: i64, word: impl Fn(i64) -> Expr) -> Expr {
    let all = p.parts().map(|part| {
        let by = skip + part.bit(quad as usize) as i64 - i64::from(part.from);
        let w = word(part.word(quad as usize) as i64);
        let w = match by {
            0 => w,
            1.. => w >> by,
            _ => w << -by,
        };
        let mask = (i64::from(part.ones()) << part.from) * bytes;
        if mask == 0xffff_ffff { w } else { w & mask }
    });
    all.reduce(|a, b| a | b).unwrap_or_else(|| Expr::int(0, DType::U32))
}

/// Replaces every micro-kernel for which `missing` holds by the loops that define it.
pub fn expand(k: &mut Kernel, missing: &dyn Fn(MicroOp) -> bool) {
    let mut body = std::mem::take(&mut k.body);
    replace(k, &mut body, missing);
    k.body = body;
}

/// Are there micro-kernels in the statements?
pub fn any(body: &[Stmt]) -> bool {
    body.iter().any(|s| match s {
        Stmt::Micro(_) => true,
        Stmt::For { body, .. } => any(body),
        Stmt::If { then, other, .. } => any(then) || any(other),
        Stmt::Let { .. } | Stmt::Store { .. } => false,
    })
}

fn replace(k: &mut Kernel, body: &mut Vec<Stmt>, missing: &dyn Fn(MicroOp) -> bool) {
    for s in std::mem::take(body) {
        match s {
            Stmt::Micro(m) if missing(m.op) => body.extend(m.define(k)),
            Stmt::For { var, extent, kind, body: mut inner } => {
                replace(k, &mut inner, missing);
                body.push(Stmt::For { var, extent, kind, body: inner });
            }
            Stmt::If { cond, mut then, mut other } => {
                replace(k, &mut then, missing);
                replace(k, &mut other, missing);
                body.push(Stmt::If { cond, then, other });
            }
            s => body.push(s),
        }
    }
}

/// A serial loop.
fn each(k: &mut Kernel, name: &str, extent: Expr, f: impl FnOnce(&mut Kernel, Expr) -> Vec<Stmt>) -> Stmt {
    let var = k.fresh(name);
    let body = f(k, Expr::var(var));
    Stmt::For { var, extent, kind: LoopKind::Serial, body }
}

/// Binds a value; for indices and scalars that are used several times.
fn bind(k: &mut Kernel, name: &str, value: Expr) -> (Stmt, Expr) {
    let var = k.fresh(name);
    let VTy { dtype, lanes } = value.ty();
    (Stmt::Let { var, value }, Expr::new(Node::Var(var), dtype, lanes))
}

impl Micro {
    /// The loops that compute the same. Variables and scratch buffers are added to the kernel.
    pub fn define(&self, k: &mut Kernel) -> Vec<Stmt> {
        match self.op {
            MicroOp::Dot(p) => self.dot(k, p),
            MicroOp::Fma(_) => self.fma(k),
            MicroOp::Unpack(p) => self.unpack(k, p),
            MicroOp::Pairs => self.pairs(k),
            MicroOp::UnpackPairs(p) => self.unpack_pairs(k, p),
            MicroOp::Attend(a) => self.attend(k, a),
            MicroOp::Gate(act, d) => self.gate(k, act, d),
            MicroOp::Quantize => self.quantize(k),
        }
    }

    /// Indices of the arguments and sizes.
    pub fn exprs(&self) -> impl Iterator<Item = &Expr> {
        self.args.iter().flat_map(|(_, index)| index).chain(&self.sizes)
    }

    fn buf(&self, i: usize) -> Buf {
        self.args[i].0
    }

    /// Index of an element of an argument, relative to where it begins. The last offset counts through all axes that are left.
    fn at(&self, k: &Kernel, i: usize, offsets: &[Expr]) -> Vec<Expr> {
        let (buf, start) = &self.args[i];
        let mut offsets = offsets.to_vec();
        let extra = start.len().saturating_sub(offsets.len());
        if extra > 0
            && let Some(mut flat) = offsets.pop()
        {
            let inner = &k.decl(*buf).shape[start.len() - extra..];
            let mut last = vec![];
            for d in inner.iter().rev() {
                let d = d.as_const().unwrap_or(1);
                last.push(flat.clone() % d);
                flat = flat / d;
            }
            offsets.push(flat);
            offsets.extend(last.into_iter().rev());
        }
        start.iter().zip(&offsets).map(|(a, b)| a.clone() + b.clone()).collect()
    }

    fn load(&self, k: &Kernel, i: usize, offsets: &[Expr]) -> Expr {
        k.load(self.buf(i), self.at(k, i, offsets))
    }

    fn store(&self, offsets: &[Expr], value: Expr) -> Stmt {
        self.store_to(0, offsets, value)
    }

    fn store_to(&self, i: usize, offsets: &[Expr], value: Expr) -> Stmt {
        let index = self.args[i].1.iter().zip(offsets).map(|(a, b)| a.clone() + b.clone()).collect();
        Stmt::Store { buf: self.buf(i), index, value }
    }

    /// Scale and minimum, if there is one, of row `r` of a block; `g` counts groups of `p.group` elements. Planes begin with argument 1.
    fn sides(&self, k: &Kernel, p: Packed, [b, g, r]: [&Expr; 3]) -> (Expr, Option<Expr>) {
        let at = [b.clone(), g.clone(), r.clone()];
        let one = |kind: usize| {
            let span = g.clone() / (FACTOR_SPAN as i64 / i64::from(p.group));
            let factor = || self.load(k, p.planes(), &[b.clone(), span, Expr::idx(kind as i64), r.clone()]);
            side(self.load(k, 2 + kind, &at), p.has_factors().then(factor))
        };
        (one(0), p.min.then(|| one(1)))
    }

    fn dot(&self, k: &mut Kernel, p: Packed) -> Vec<Stmt> {
        let [tokens, blocks, groups] = [0, 1, 2].map(|i| self.sizes[i].clone());
        let x = 1 + p.planes();
        let subs = 32 / i64::from(p.group);
        vec![each(k, "t", tokens, |k, t| {
            vec![each(k, "b", blocks.clone(), |k, b| {
                let row = t.clone() * blocks.clone() + b.clone();
                let zero = each(k, "r", Expr::idx(8), |_, r| vec![self.store(&[row.clone(), r], Expr::float(0.0))]);
                let sum = each(k, "g", groups, |k, g| {
                    vec![each(k, "r", Expr::idx(8), |k, r| {
                        let mut dots = vec![Expr::int(0, DType::I32); subs as usize];
                        for at in 0..8 {
                            let word = |i| self.load(k, 1, &[b.clone(), g.clone(), Expr::idx(i), r.clone()]);
                            let w = quad(p, at, word);
                            let q = self.load(k, x, &[t.clone(), g.clone() * 8 + at]);
                            let d = &mut dots[(at * 4 / i64::from(p.group)) as usize];
                            *d = Expr::dot4(d.clone(), w, q, p.max);
                        }
                        let mut body = vec![];
                        for (sub, d) in dots.into_iter().enumerate() {
                            let sub = sub as i64;
                            let sides = self.sides(k, p, [&b, &(g.clone() * subs + sub), &r]);
                            let half = |i: i64| self.load(k, x + 2, &[t.clone(), g.clone() * 2 + i]);
                            let total = if subs == 2 { half(sub) } else { half(0) + half(1) };
                            let xs = self.load(k, x + 1, &[t.clone(), g.clone()]);
                            let old = self.load(k, 0, &[row.clone(), r.clone()]);
                            let value = scaled(p, sides, d.cast(DType::F32), xs, total, old);
                            body.push(self.store(&[row.clone(), r.clone()], value));
                        }
                        body
                    })]
                });
                vec![zero, sum]
            })]
        })]
    }

    fn fma(&self, k: &mut Kernel) -> Vec<Stmt> {
        let [tokens, blocks, inner] = [0, 1, 2].map(|i| self.sizes[i].clone());
        vec![each(k, "t", tokens, |k, t| {
            vec![each(k, "b", blocks.clone(), |k, b| {
                let row = t.clone() * blocks.clone() + b.clone();
                let zero = each(k, "r", Expr::idx(8), |_, r| vec![self.store(&[row.clone(), r], Expr::float(0.0))]);
                let sum = each(k, "k", inner, |k, i| {
                    vec![each(k, "r", Expr::idx(8), |k, r| {
                        let w = self.load(k, 1, &[b.clone(), i.clone(), r.clone()]).cast(DType::F32);
                        let x = self.load(k, 2, &[t.clone(), i.clone()]);
                        let old = self.load(k, 0, &[row.clone(), r.clone()]);
                        vec![self.store(&[row.clone(), r], x.fma(w, old))]
                    })]
                });
                vec![zero, sum]
            })]
        })]
    }

    fn unpack(&self, k: &mut Kernel, p: Packed) -> Vec<Stmt> {
        let [blocks, groups] = [0, 1].map(|i| self.sizes[i].clone());
        vec![each(k, "b", blocks, |k, b| {
            vec![each(k, "g", groups, |k, g| {
                let mut body = vec![];
                for j in 0..32 {
                    body.push(each(k, "r", Expr::idx(8), |k, r| {
                        let word = |i| self.load(k, 1, &[b.clone(), g.clone(), Expr::idx(i), r.clone()]);
                        let q = element(p, j, word);
                        let group = i64::from(p.group);
                        let sides = self.sides(k, p, [&b, &(g.clone() * (32 / group) + j / group), &r]);
                        let value = number(p, q, sides);
                        vec![self.store(&[b.clone(), g.clone() * 32 + j, r], value)]
                    }));
                }
                body
            })]
        })]
    }

    fn pairs(&self, k: &mut Kernel) -> Vec<Stmt> {
        let [tokens, blocks, groups] = [0, 1, 2].map(|i| self.sizes[i].clone());
        vec![each(k, "t", tokens, |k, t| {
            vec![each(k, "b", blocks.clone(), |k, b| {
                let row = t.clone() * blocks.clone() + b.clone();
                let zero = each(k, "r", Expr::idx(8), |_, r| vec![self.store(&[row.clone(), r], Expr::float(0.0))]);
                let sum = each(k, "p", groups * 16, |k, p| {
                    vec![each(k, "r", Expr::idx(8), |k, r| {
                        let mut value = self.load(k, 0, &[row.clone(), r.clone()]);
                        for half in 0..2 {
                            let at = [p.clone(), b.clone() * 8 + r.clone(), Expr::idx(half)];
                            let w = self.load(k, 1, &at).cast(DType::F32);
                            let x = self.load(k, 2, &[t.clone(), p.clone() * 2 + half]).cast(DType::F32);
                            value = x.fma(w, value);
                        }
                        vec![self.store(&[row.clone(), r], value)]
                    })]
                });
                vec![zero, sum]
            })]
        })]
    }

    fn unpack_pairs(&self, k: &mut Kernel, p: Packed) -> Vec<Stmt> {
        let [blocks, groups] = [0, 1].map(|i| self.sizes[i].clone());
        vec![each(k, "b", blocks, |k, b| {
            vec![each(k, "g", groups, |k, g| {
                let mut body = vec![];
                for j in 0..32 {
                    body.push(each(k, "r", Expr::idx(8), |k, r| {
                        let word = |i| self.load(k, 1, &[b.clone(), g.clone(), Expr::idx(i), r.clone()]);
                        let q = element(p, j, word).cast(DType::F32);
                        let group = i64::from(p.group);
                        let (s, min) = self.sides(k, p, [&b, &(g.clone() * (32 / group) + j / group), &r]);
                        let value = match min {
                            Some(min) => s.fma(q, min),
                            None => s * (q - Expr::float(f32::from(p.zero))),
                        };
                        let at = [g.clone() * 16 + j / 2, b.clone() * 8 + r, Expr::idx(j % 2)];
                        vec![self.store(&at, value.cast(DType::BF16))]
                    }));
                }
                body
            })]
        })]
    }

    fn gate(&self, k: &mut Kernel, act: Act, dtype: DType) -> Vec<Stmt> {
        let [tokens, blocks] = [0, 1].map(|i| self.sizes[i].clone());
        vec![each(k, "t", tokens, |k, t| {
            vec![each(k, "b", blocks.clone(), |k, b| {
                vec![each(k, "r", Expr::idx(8), |k, r| {
                    let row = (t.clone() * blocks + b.clone()) * 2;
                    let gate = act.apply(self.load(k, 1, &[row.clone(), r.clone()]));
                    let value = gate * self.load(k, 1, &[row + 1, r.clone()]);
                    vec![self.store(&[t.clone(), b.clone() * 8 + r], value.cast(dtype))]
                })]
            })]
        })]
    }

    fn quantize(&self, k: &mut Kernel) -> Vec<Stmt> {
        let [rows, groups] = [0, 1].map(|i| self.sizes[i].clone());
        let fold = k.buffer("fold", DType::F32, vec![1.into()], Scope::Reg);
        let zero = || vec![Expr::idx(0)];
        let set = |value: Expr| Stmt::Store { buf: fold, index: zero(), value };
        vec![each(k, "r", rows, |k, r| {
            vec![each(k, "g", groups, |k, g| {
                let x = |k: &Kernel, i: Expr| self.load(k, 3, &[r.clone(), g.clone() * 32 + i]);
                let largest = each(k, "i", Expr::idx(32), |k, i| {
                    vec![set(k.load(fold, zero()).max(Expr::unary(UnOp::Abs, x(k, i))))]
                });
                let (scale, inverse) = group_scale(k.load(fold, zero()));
                let (b1, scale) = bind(k, "scale", scale);
                let (b2, inverse) = bind(k, "inverse", inverse);
                let rounded = |k: &Kernel, i: Expr| Expr::unary(UnOp::Round, x(k, i) * inverse.clone());
                let mut body = vec![set(Expr::float(0.0)), largest, b1, b2];
                body.push(self.store_to(1, &[r.clone(), g.clone()], scale.clone()));
                body.push(each(k, "i", Expr::idx(32), |k, i| {
                    let q = rounded(k, i.clone()).cast(DType::I32).cast(DType::I8);
                    vec![self.store_to(0, &[r.clone(), g.clone() * 32 + i], q)]
                }));
                for half in 0..2 {
                    body.push(set(Expr::float(0.0)));
                    body.push(each(k, "i", Expr::idx(16), |k, i| {
                        vec![set(k.load(fold, zero()) + rounded(k, i + 16 * half))]
                    }));
                    let total = k.load(fold, zero()) * scale.clone();
                    body.push(self.store_to(2, &[r.clone(), g.clone() * 2 + half], total));
                }
                body
            })]
        })]
    }

    /// Twice over the positions: for the largest score, and for the sums.
    fn attend(&self, k: &mut Kernel, a: Attend) -> Vec<Stmt> {
        let [rows, dim, page] = [0, 1, 2].map(|i| self.sizes[i].clone());
        let reg = |k: &mut Kernel, name: &str| k.buffer(name, DType::F32, vec![1.into()], Scope::Reg);
        let (top, total, dot) = (reg(k, "top"), reg(k, "total"), reg(k, "dot"));
        let get = |k: &Kernel, b: Buf| k.load(b, vec![Expr::idx(0)]);
        let set = |b: Buf, value: Expr| Stmt::Store { buf: b, index: vec![Expr::idx(0)], value };
        let zero = Expr::idx(0);
        let rounded = |e: Expr| if a.narrow { e.cast(DType::BF16).cast(DType::F32) } else { e.cast(DType::F32) };
        vec![each(k, "r", rows, |k, r| {
            let meta = |k: &Kernel, i: i64| self.load(k, 5, &[r.clone(), Expr::idx(i)]);
            let (b1, first) = bind(k, "first", meta(k, 0));
            let (b2, seq) = bind(k, "seq", meta(k, 2));
            let (b3, last) = bind(k, "last", meta(k, 1));
            let count = last.clone() + 1 - first.clone();
            let score = |k: &mut Kernel, j: &Expr| {
                // No less than it is; analyses of ranges learn from it where a piece ends.
                let (c1, at) = bind(k, "at", (first.clone() + j.clone()).min(last.clone()));
                let entry = self.load(k, 4, &[seq.clone(), at.clone() / page.clone()]).cast(DType::I64);
                let (c2, slot) = bind(k, "slot", entry * page.clone() + at % page.clone());
                let sum = each(k, "d", dim.clone(), |k, d| {
                    let key = rounded(self.load(k, 2, &[slot.clone(), zero.clone(), d.clone()]));
                    let query = rounded(self.load(k, 1, &[r.clone(), d]));
                    vec![set(dot, query.fma(key, get(k, dot)))]
                });
                let mut e = get(k, dot) * Expr::float(f32::from_bits(a.scale));
                if a.cap != 0 {
                    let cap = Expr::float(f32::from_bits(a.cap));
                    e = Expr::unary(UnOp::Tanh, e / cap.clone()) * cap;
                }
                (vec![c1, c2, set(dot, Expr::float(0.0)), sum], slot, e)
            };
            let largest = each(k, "j", count.clone(), |k, j| {
                let (mut body, _, e) = score(k, &j);
                body.push(set(top, Expr::binary(BinOp::Max, get(k, top), e)));
                body
            });
            let clear = each(k, "d", dim.clone(), |_, d| vec![self.store(&[r.clone(), d], Expr::float(0.0))]);
            let sums = each(k, "j", count.clone(), |k, j| {
                let (mut body, slot, e) = score(k, &j);
                let (c, weight) = bind(k, "w", Expr::unary(UnOp::Exp, e - get(k, top)));
                body.extend([c, set(total, get(k, total) + weight.clone())]);
                body.push(each(k, "d", dim.clone(), |k, d| {
                    let value = rounded(self.load(k, 3, &[slot.clone(), zero.clone(), d.clone()]));
                    let old = self.load(k, 0, &[r.clone(), d.clone()]);
                    vec![self.store(&[r.clone(), d], weight.fma(value, old))]
                }));
                body
            });
            let (low, none) = (set(top, Expr::float(f32::NEG_INFINITY)), set(total, Expr::float(0.0)));
            let mut all = vec![b1, b2, b3, low, none, largest, clear, sums];
            if a.parts {
                let max = get(k, top).max(Expr::float(-1e30));
                all.push(self.store(&[r.clone(), dim.clone()], max));
                all.push(self.store(&[r, dim.clone() + 1], get(k, total)));
            } else {
                all.push(each(k, "d", dim.clone(), |k, d| {
                    let old = self.load(k, 0, &[r.clone(), d.clone()]);
                    vec![self.store(&[r.clone(), d], old / get(k, total))]
                }));
            }
            all
        })]
    }
}

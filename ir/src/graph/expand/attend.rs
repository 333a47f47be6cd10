//! Attention in primitives: its definition, and what else model code writes for it.

use super::{DType, Dim, Op, Ty, TypeError, iota};
use crate::Elem;
use crate::graph::build::Built;
use crate::graph::{Attr, Builder, Value};

/// Where scores get their scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// Queries' products with keys are multiplied.
    Scores,
    /// They are divided by this number instead, which is near the reciprocal of the scale.
    Divided(f32),
    /// Queries are multiplied, before or after they are arranged by heads.
    Queries {
        /// Before.
        first: bool,
    },
}

/// How positions that a token does not see are left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mask {
    /// Their scores are replaced by this number.
    Selected(f32),
    /// This number is added to their scores, 0 to the others. The sum is made from a mask of so many axes.
    Added(f32, usize),
}

/// How scores become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// By `softmax`.
    Softmax,
    /// By what `softmax` means.
    Spelled,
    /// By exponentials, and the sum over values is divided by theirs.
    Late,
}

/// One way to write attention. All mean the same as the definition, up to rounding, where every token sees a position, the values of
/// positions that it does not see are finite, and scores are smaller than half the mask's number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spelling {
    /// Where scores get their scale.
    pub scale: Scale,
    /// How scores are masked.
    pub mask: Mask,
    /// How scores become weights.
    pub weights: Weights,
    /// Values of positions that are not seen are replaced by 0.
    pub masked_values: bool,
    /// Key and value heads are repeated for each query head, instead of having an axis for those that share them.
    pub repeated: bool,
}

impl Spelling {
    /// The definition. A position that is not seen may hold anything, even NaN, and must not be multiplied.
    pub const DEFINITION: Spelling = Spelling {
        scale: Scale::Scores,
        mask: Mask::Selected(f32::NEG_INFINITY),
        weights: Weights::Softmax,
        masked_values: true,
        repeated: false,
    };
}

/// Attention over gathered keys and values, with a mask from positions.
pub fn attend(b: &mut Builder<'_>, x: &[Value], a: &[Attr]) -> Built {
    attend_spelled(b, x, a, &Spelling::DEFINITION)
}

/// [`attend`] in one of its spellings.
///
/// # Errors
/// Operands that are not those of `attend`.
pub fn attend_spelled(b: &mut Builder<'_>, x: &[Value], a: &[Attr], how: &Spelling) -> Built {
    let [q, state, pos, seq, pages] = x else {
        return Err(TypeError { code: "E0214", message: "`attend` takes five operands".into() });
    };
    let Ty::Kv(kv) = b.func.ty(*state).clone() else {
        return Err(TypeError { code: "E0201", message: "cache must be a state".into() });
    };
    let page = a[3].as_int();
    let q_shape = b.shape(*q);
    let (n, one) = (q_shape[0].clone(), Dim::from(1));
    let hq = q_shape[1].as_const().unwrap_or(0);
    let group = hq / kv.heads.max(1) as i64;
    let ctx = b.shape(*pages)[1].clone() * page.into();
    // Axes of heads: key heads and those that share one, or query heads.
    let heads: Vec<Dim> = if how.repeated { vec![hq.into()] } else { vec![kv.heads.into(), group.into()] };
    let mut gathered = gathered(b, (*state, kv.dtype), *seq, *pages, page)?;
    if is_bf16(b.func.ty(*q)) {
        for rows in &mut gathered {
            for to in [DType::BF16, DType::F32] {
                *rows = b.emit(Op::Cast, &[*rows], vec![Attr::DType(to)])?;
            }
        }
    }
    let mut arranged = [*q, *q];
    for (g, rows) in arranged.iter_mut().zip(gathered) {
        let with = |group: i64| vec![n.clone(), ctx.clone(), kv.heads.into(), group.into(), kv.dim.into()];
        *g = match (how.repeated, group) {
            (true, 1) => rows,
            (true, _) => {
                let own = b.reshape(rows, with(1))?;
                let wide = b.emit(Op::Broadcast, &[own], vec![Attr::Shape(with(group))])?;
                b.reshape(wide, vec![n.clone(), ctx.clone(), hq.into(), kv.dim.into()])?
            }
            (false, _) => b.reshape(rows, with(1))?,
        };
    }
    let [keys, values] = arranged;
    let narrow = is_bf16(b.func.ty(*q));
    let mut q = if narrow { b.emit(Op::Cast, &[*q], vec![Attr::DType(DType::F32)])? } else { *q };
    if how.scale == (Scale::Queries { first: true }) {
        q = b.with(Op::Mul, q, a[0].as_f32())?;
    }
    let by_heads = [&[n, one.clone()][..], &heads, &[kv.dim.into()]].concat();
    let mut q = b.reshape(q, by_heads)?;
    if how.scale == (Scale::Queries { first: false }) {
        q = b.with(Op::Mul, q, a[0].as_f32())?;
    }
    let products = b.bin(Op::Mul, q, keys)?;
    let mut scores = b.un(Op::ReduceSum, products)?;
    scores = match how.scale {
        Scale::Scores => b.with(Op::Mul, scores, a[0].as_f32())?,
        Scale::Divided(by) => b.with(Op::Div, scores, by)?,
        Scale::Queries { .. } => scores,
    };
    if a[2].as_f32() > 0.0 {
        scores = b.emit(Op::Softcap, &[scores], vec![a[2].clone()])?;
    }
    let rank = 3 + heads.len();
    let axes = if let Mask::Added(_, axes) = how.mask { axes } else { rank };
    let (j, p) = positions(b, *pos, &ctx, axes)?;
    let seen = seen(b, j, p, a[1].as_int())?;
    if let Some(slopes) = a.get(4) {
        let slopes = b.emit(Op::Table, &[], vec![slopes.clone()])?;
        let slopes = b.reshape(slopes, [&[one.clone(), one.clone()][..], &heads, &[one]].concat())?;
        let behind = b.bin(Op::Sub, j, p)?;
        let behind = b.emit(Op::Cast, &[behind], vec![Attr::DType(DType::F32)])?;
        let bias = b.bin(Op::Mul, slopes, behind)?;
        scores = b.bin(Op::Add, scores, bias)?;
    }
    let scores = match how.mask {
        Mask::Selected(low) => {
            let low = b.scalar(low)?;
            b.emit(Op::Select, &[seen, scores, low], vec![])?
        }
        Mask::Added(low, _) => {
            let (zero, low) = (b.scalar(0.0)?, b.scalar(low)?);
            let bias = b.emit(Op::Select, &[seen, zero, low], vec![])?;
            let bias = wide(b, bias, rank)?;
            b.bin(Op::Add, scores, bias)?
        }
    };
    // Softmax over positions, which go last.
    let rank = rank as i64;
    let perm = vec![Attr::Ints([0].into_iter().chain(2..rank).chain([1]).collect())];
    let last = b.emit(Op::Permute, &[scores], perm.clone())?;
    let weights = match how.weights {
        Weights::Softmax => b.un(Op::Softmax, last)?,
        Weights::Spelled => super::softmax(b, &[last], &[])?,
        Weights::Late => exponentials(b, last)?,
    };
    let v = b.emit(Op::Permute, &[values], perm.clone())?;
    let v = match how.masked_values {
        true => {
            let seen = wide(b, seen, rank as usize)?;
            let seen = b.emit(Op::Permute, &[seen], perm)?;
            let zero = b.scalar(0.0)?;
            b.emit(Op::Select, &[seen, v, zero], vec![])?
        }
        false => v,
    };
    let products = b.bin(Op::Mul, weights, v)?;
    let mut out = b.un(Op::ReduceSum, products)?;
    if how.weights == Weights::Late {
        let sum = b.un(Op::ReduceSum, weights)?;
        out = b.bin(Op::Div, out, sum)?;
    }
    let out = b.reshape(out, q_shape)?;
    if narrow { b.emit(Op::Cast, &[out], vec![Attr::DType(DType::BF16)]) } else { Ok(out) }
}

/// Attention over queries of bf16 has keys and values rounded to that, and results.
fn is_bf16(queries: &Ty) -> bool {
    queries.as_tensor().is_some_and(|t| t.elem == Elem::Scalar(DType::BF16))
}

/// `e^(x - max)`
fn exponentials(b: &mut Builder<'_>, x: Value) -> Built {
    let m = b.un(Op::ReduceMax, x)?;
    let d = b.bin(Op::Sub, x, m)?;
    b.un(Op::Exp, d)
}

fn whole(b: &mut Builder<'_>, v: i64) -> Built {
    b.emit(Op::Const, &[], vec![Attr::float(v as f32), Attr::Shape(vec![]), Attr::DType(DType::I32)])
}

/// Keys and values of the positions of each token's sequence: `[n, positions, heads, dim]`.
fn gathered(
    b: &mut Builder<'_>,
    (state, dtype): (Value, DType),
    seq: Value,
    pages: Value,
    page: i64,
) -> Result<[Value; 2], TypeError> {
    let table = b.shape(pages);
    let (s, m) = (table[0].clone(), table[1].clone());
    let first = b.reshape(pages, vec![s.clone(), m.clone(), 1.into()])?;
    let size = whole(b, page)?;
    let first = b.bin(Op::Mul, first, size)?;
    let within = iota(b, 2, vec![1.into(), 1.into(), page.into()], DType::I32)?;
    let slots = b.bin(Op::Add, first, within)?;
    let slots = b.reshape(slots, vec![s, m * page.into()])?;
    let slots = b.bin(Op::Gather, slots, seq)?;
    let mut both = [state, state];
    for (which, rows) in both.iter_mut().enumerate() {
        let all = b.emit(Op::KvRead, &[state], vec![Attr::Int(which as i64)])?;
        *rows = b.bin(Op::Gather, all, slots)?;
        if dtype != DType::F32 {
            *rows = b.emit(Op::Cast, &[*rows], vec![Attr::DType(DType::F32)])?;
        }
    }
    Ok(both)
}

/// The positions of keys along the second of so many axes, and those of tokens along the first.
fn positions(b: &mut Builder<'_>, pos: Value, ctx: &Dim, axes: usize) -> Result<(Value, Value), TypeError> {
    let along = |axis: usize, d: Dim| {
        let mut shape = vec![Dim::from(1); axes];
        shape[axis] = d;
        shape
    };
    let j = iota(b, 1, along(1, ctx.clone()), DType::I32)?;
    let n = b.shape(pos)[0].clone();
    Ok((j, b.reshape(pos, along(0, n))?))
}

fn seen(b: &mut Builder<'_>, j: Value, p: Value, window: i64) -> Built {
    let seen = b.bin(Op::Le, j, p)?;
    if window <= 0 {
        return Ok(seen);
    }
    let w = whole(b, window)?;
    let lo = b.bin(Op::Sub, p, w)?;
    let inside = b.bin(Op::Lt, lo, j)?;
    b.bin(Op::And, seen, inside)
}

/// With axes of extent 1 behind it.
fn wide(b: &mut Builder<'_>, x: Value, rank: usize) -> Built {
    let mut shape = b.shape(x);
    if shape.len() == rank {
        return Ok(x);
    }
    shape.resize(rank, 1.into());
    b.reshape(x, shape)
}

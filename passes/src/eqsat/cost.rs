//! The cost model: integer picoseconds at one shape point.

use marquetry_ir::graph::{Class, Op, Ty};
use marquetry_ir::{DType, Dim, Elem, FACTOR_SPAN, Packed, Syms};
use serde::Serialize;

/// Speeds of a target, per unit of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// One more kernel in the step: barrier and start.
    pub launch_ps: u64,
    /// One byte to or from memory.
    pub byte_ps: u64,
    /// One f32 multiply-add.
    pub f32_ps: u64,
    /// One f32 multiply-add with a weight that is dequantized on the way.
    pub dequant_ps: u64,
    /// One 8-bit multiply-add.
    pub i8_ps: u64,
    /// One multiply-add of bf16 numbers by a matrix unit.
    pub bf16_ps: u64,
    /// One weight made a number of a panel of bf16, once for all tokens.
    pub panel_ps: u64,
    /// One byte of weights that stays in memory beyond the smallest form: the time that is worth it.
    pub resident_ps: u64,
    /// Are there routines for micro-kernels?
    pub micro: bool,
    /// Has it a matrix unit for bf16?
    pub matrix: bool,
}

impl Target {
    /// Two cores of a desktop or server CPU with 256-bit vectors.
    pub const CPU: Target = Target {
        launch_ps: 700_000,
        byte_ps: 40,
        f32_ps: 35,
        dequant_ps: 90,
        i8_ps: 12,
        bf16_ps: 3,
        panel_ps: 240,
        resident_ps: 20_000,
        micro: false,
        matrix: false,
    };

    /// The same with a matrix unit for bf16, and routines.
    pub const MATRIX: Target = Target { micro: true, matrix: true, ..Target::CPU };
}

/// Positions of a page, about.
const TYPICAL_PAGE: u64 = 16;

/// Size at which symbols are costed: the value itself when fixed, else a typical one within the bounds.
pub fn point(syms: &Syms, d: &Dim) -> u64 {
    d.eval(|s| syms.decl(s).hi.min(512).max(syms.decl(s).lo)).max(0) as u64
}

fn elements(syms: &Syms, ty: &Ty) -> u64 {
    match ty {
        Ty::Tensor(t) => t.shape.iter().map(|d| point(syms, d)).product(),
        Ty::Kv(_) | Ty::Rows(_) => 0,
    }
}

fn bytes(syms: &Syms, ty: &Ty) -> u64 {
    let Ty::Tensor(t) = ty else { return 0 };
    let n = elements(syms, ty);
    match t.elem {
        Elem::Scalar(d) | Elem::Rows8(d) => n * d.size() as u64,
        Elem::Gguf(q) => n * q.block_bytes() as u64 / q.block_len() as u64,
        Elem::Packed(p) => {
            let kinds = if p.min { 2 } else { 1 };
            let factors = if p.has_factors() { n * kinds * 2 / FACTOR_SPAN as u64 } else { 0 };
            n * u64::from(p.bits) / 8 + n * kinds * p.scale.size() as u64 / u64::from(p.group) + factors
        }
        Elem::Act8 => n + n / 32 * 4 + n / 16 * 4,
    }
}

/// Picoseconds per element of an elementwise operator.
fn arithmetic(op: Op) -> u64 {
    match op {
        Op::Exp | Op::Log | Op::Tanh | Op::Erf | Op::Sin | Op::Cos | Op::Div | Op::Rsqrt => 160,
        // No dearer than its expansion.
        _ if op.info().expand.is_some() => 60,
        _ => 40,
    }
}

/// What something costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Cost {
    /// Estimated picoseconds.
    pub ps: u64,
    /// Kernels started, before the fuser groups operations.
    pub launches: u64,
    /// Bytes moved to and from memory.
    pub bytes: u64,
    /// Bytes of weights that stay in memory beyond the smallest form that kernels read.
    pub resident: u64,
}

impl std::ops::Add for Cost {
    type Output = Cost;

    fn add(self, o: Cost) -> Cost {
        Cost {
            ps: self.ps.saturating_add(o.ps),
            launches: self.launches.saturating_add(o.launches),
            bytes: self.bytes.saturating_add(o.bytes),
            resident: self.resident.saturating_add(o.resident),
        }
    }
}

impl Cost {
    /// What choices are compared by: time, and memory at the price that the target puts on it.
    pub fn weight(self, target: Target) -> u64 {
        self.ps.saturating_add(self.resident.saturating_mul(target.resident_ps))
    }

    fn of(ps: u64) -> Cost {
        Cost { ps, ..Cost::default() }
    }

    /// One kernel that moves these bytes and computes for this long.
    fn kernel(target: Target, bytes: u64, work: u64) -> Cost {
        let ps = target.launch_ps.saturating_add(work.max(bytes.saturating_mul(target.byte_ps)));
        Cost { ps, launches: 1, bytes, resident: 0 }
    }
}

/// Bytes that a form of a weight takes for good, beyond the smallest form that kernels read.
fn resident(syms: &Syms, operands: &[&Ty], result: &Ty) -> u64 {
    let Some(Ty::Tensor(file)) = operands.first() else { return 0 };
    let smallest = match file.elem {
        Elem::Gguf(q) => Elem::Packed(Packed::for_gguf(q)),
        Elem::Scalar(d) => Elem::Rows8(d),
        _ => return 0,
    };
    let least = bytes(syms, &Ty::tensor(smallest, file.shape.clone()));
    bytes(syms, result).saturating_sub(least)
}

/// Bytes of keys and values that attention of few tokens reads: queries' heads each read all, pieces once for those that share them,
/// by routines that compute them together.
fn cached(target: Target, syms: &Syms, operands: &[&Ty], result: &Ty) -> u64 {
    let [Ty::Tensor(q), Ty::Kv(kv), _, _, Ty::Tensor(pages)] = operands else { return 0 };
    let (Some(heads), Some(tokens)) = (q.shape.get(1), q.shape.first()) else { return 0 };
    let in_pieces = result.as_tensor().is_some_and(|t| t.shape.len() > q.shape.len());
    let readers = if in_pieces && target.micro { kv.heads as u64 } else { point(syms, heads) };
    let positions = pages.shape.last().map_or(0, |d| point(syms, d)).saturating_mul(TYPICAL_PAGE);
    let read = positions.saturating_mul(readers).saturating_mul((2 * kv.dim * kv.dtype.size()) as u64);
    // Many tokens are computed together either way.
    if point(syms, tokens) == 1 { read } else { 0 }
}

/// Picoseconds of the products of attention with keys and with values.
fn products(target: Target, syms: &Syms, operands: &[&Ty]) -> u64 {
    let [query @ Ty::Tensor(q), Ty::Kv(_), _, _, Ty::Tensor(pages)] = operands else { return 0 };
    let positions = pages.shape.last().map_or(0, |d| point(syms, d)).saturating_mul(TYPICAL_PAGE);
    let narrow = target.matrix && q.elem == Elem::Scalar(DType::BF16);
    let unit = if narrow { target.bf16_ps } else { target.f32_ps };
    elements(syms, query).saturating_mul(2 * positions).saturating_mul(unit)
}

/// Cost of one node given the types of its operands and result.
pub fn node(target: Target, syms: &Syms, op: Op, operands: &[&Ty], result: &Ty, weight_only: bool) -> Cost {
    if weight_only {
        let stays = matches!(op, Op::Pack | Op::Dequant);
        let resident = if stays { resident(syms, operands, result) } else { 0 };
        return Cost { resident, ..Cost::default() };
    }
    let moved: u64 = operands.iter().map(|t| bytes(syms, t)).sum::<u64>() + bytes(syms, result);
    match op.class() {
        Class::Leaf | Class::Call => Cost::default(),
        // Views: a hair above nothing, so that fewer win ties.
        Class::Movement => Cost::of(1),
        // Fused into a neighbour as a rule: arithmetic only.
        Class::Elementwise => Cost::of(elements(syms, result).saturating_mul(arithmetic(op))),
        Class::Contract => {
            let k = operands.first().and_then(|t| t.as_tensor()).and_then(|t| t.shape.last());
            let rows = operands.get(1).and_then(|t| t.as_tensor()).and_then(|t| t.shape.first());
            let k = k.map_or(1, |d| point(syms, d));
            let rows = rows.map_or(1, |d| point(syms, d));
            let lead = elements(syms, operands[0]) / k.max(1);
            let input = operands[0].as_tensor().map(|t| t.elem);
            let weight = operands.get(1).and_then(|t| t.as_tensor()).map(|t| t.elem);
            let pairs = target.matrix && input == Some(Elem::Scalar(DType::BF16));
            let unit = match weight {
                _ if input == Some(Elem::Act8) => target.i8_ps,
                Some(Elem::Packed(_)) if pairs => target.bf16_ps + target.panel_ps / lead.max(1),
                Some(Elem::Packed(_)) => target.dequant_ps,
                _ => target.f32_ps,
            };
            // Rows in a plain layout are read across cache lines and dequantized in memory first.
            let factor = match weight {
                Some(Elem::Packed(_) | Elem::Rows8(_)) => 1,
                _ => 8,
            };
            let work = lead.saturating_mul(k).saturating_mul(rows).saturating_mul(unit);
            let work = work.max(moved.saturating_mul(target.byte_ps)).saturating_mul(factor);
            Cost::kernel(target, moved, work)
        }
        Class::Gather => {
            let read = bytes(syms, result) * 2;
            let plain = operands[0].as_tensor().is_some_and(|t| t.elem.scalar().is_some());
            Cost::kernel(target, read, 0) + Cost::of(u64::from(plain))
        }
        Class::Reduce | Class::Repr | Class::State => {
            let work = products(target, syms, operands);
            Cost::kernel(target, moved + cached(target, syms, operands, result), work)
        }
    }
}

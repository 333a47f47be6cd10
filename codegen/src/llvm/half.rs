//! 16-bit floats where the target has no instructions for them: conversions as integer arithmetic of the loop IR.

use marquetry_ir::DType;
use marquetry_ir::loops::legalize::rewrite_kernel;
use marquetry_ir::loops::{BinOp, Expr, Kernel, Node};

use super::target::Features;

/// Expands casts that the target has no exact instruction for: those of bf16, and of f16 where it lacks them.
pub(super) fn expand(k: &mut Kernel, features: &Features) {
    let native = features.f16;
    rewrite_kernel(k, &|e| {
        let Node::Cast(a) = e.node() else { return None };
        let foreign = |d: DType| d == DType::BF16 || d == DType::F16 && !native;
        let (from, to) = (a.dtype(), e.dtype());
        let wide = match from {
            _ if !foreign(from) && !foreign(to) => return None,
            DType::BF16 => from_bf16(a),
            DType::F16 if !native => from_f16(a),
            _ => a.clone().cast(DType::F32),
        };
        Some(if foreign(to) { to_half(&wide, to) } else { wide.cast(to) })
    });
}

fn to_half(x: &Expr, to: DType) -> Expr {
    let bits = if to == DType::BF16 { bf16_bits(x) } else { f16_bits(x) };
    // Casts saturate, so the upper half is made the sign first.
    ((bits.bitcast(DType::I32) << 16) >> 16).cast(DType::I16).bitcast(to)
}

fn int(v: u32) -> Expr {
    Expr::int(i64::from(v), DType::U32)
}

fn or(a: Expr, b: Expr) -> Expr {
    Expr::binary(BinOp::Or, a, b)
}

fn is_number(x: &Expr) -> Expr {
    Expr::binary(BinOp::Eq, x.clone(), x.clone())
}

/// The bits, extended by their sign.
fn wide(x: &Expr) -> Expr {
    x.clone().bitcast(DType::I16).cast(DType::I32)
}

fn from_bf16(x: &Expr) -> Expr {
    (wide(x) << 16).bitcast(DType::F32)
}

fn from_f16(x: &Expr) -> Expr {
    let bits = (wide(x) << 13).bitcast(DType::U32);
    // The exponent is still biased for f16; the product also normalizes subnormal numbers.
    let scale = Expr::float(f32::from_bits(0x7780_0000));
    let v = Expr::binary(BinOp::And, bits, int(0x8fff_e000)).bitcast(DType::F32) * scale;
    // Infinities and NaNs are now 2^16 and more; nothing else has a square of 2^32.
    let special = Expr::float(f32::from_bits(0x4f80_0000)).le(v.clone() * v.clone());
    let exponent = special.select(int(0x7f80_0000), int(0));
    or(v.bitcast(DType::U32), exponent).bitcast(DType::F32)
}

/// Drops low bits, to the nearest even.
fn round_bits(v: Expr, drop: i64) -> Expr {
    let odd = (v.clone() >> drop) & 1;
    (v + ((1 << (drop - 1)) - 1) + odd) >> drop
}

fn bf16_bits(x: &Expr) -> Expr {
    let bits = x.clone().bitcast(DType::U32);
    let nan = or(bits.clone() >> 16, int(0x40));
    is_number(x).select(round_bits(bits, 16), nan)
}

fn f16_bits(x: &Expr) -> Expr {
    let bits = x.clone().bitcast(DType::U32);
    let a = bits.clone() & 0x7fff_ffff;
    let sign = (bits >> 16) & 0x8000;
    // Normal numbers: the exponent's bias differs by 112.
    let normal = round_bits(a.clone() - (112 << 23), 13);
    // Subnormal numbers: a sum with 0.5 has their bits lowest, rounded.
    let sum = a.clone().bitcast(DType::F32) + Expr::float(0.5);
    let small = sum.bitcast(DType::U32) - 0x3f00_0000;
    let finite = a.clone().lt(int(113 << 23)).select(small, normal);
    // From 65520 on, infinity.
    let r = int(0x477f_efff).lt(a.clone()).select(int(0x7c00), finite);
    let nan = or((a >> 13) & 0x3ff, int(0x7e00));
    or(is_number(x).select(r, nan), sign)
}

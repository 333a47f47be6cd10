//! 16-bit floats: conversions by integer arithmetic, as Cranelift has no instructions for them.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::immediates::Ieee32;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use marquetry_ir::DType;

use super::func::{Cx, Val};
use crate::jit::R;

impl Cx<'_> {
    /// f32 from f16 or bf16.
    pub fn half_to_f32(&mut self, a: Val) -> R<Val> {
        let lanes = a.lanes;
        let (wide, f) = if a.is_vector() { (types::I32X4, types::F32X4) } else { (types::I32, types::F32) };
        let f16 = a.dt == DType::F16;
        let p = if a.is_vector() {
            self.double(&a.p, lanes, 2, f16)
        } else if f16 {
            vec![self.pure().sextend(wide, a.p[0])]
        } else {
            vec![self.pure().uextend(wide, a.p[0])]
        };
        let mut out = Vec::new();
        for v in p {
            out.push(if f16 {
                self.f16_to_f32(v)
            } else {
                let v = self.pure().ishl_imm_u(v, 16);
                self.bits(v, f)
            });
        }
        Ok(Val::new(out, lanes, DType::F32))
    }

    /// f32 from sign-extended bits of f16, exact. NaN payloads are kept.
    pub fn f16_to_f32(&mut self, v: Value) -> Value {
        let t = self.ty(v);
        let f = if t.is_vector() { types::F32X4 } else { types::F32 };
        let v = self.pure().ishl_imm_u(v, 13);
        let mask = self.const32(t, 0x8fff_e000);
        let v = self.pure().band(v, mask);
        // The exponent is still biased for f16; the product also normalizes subnormal numbers.
        let v = self.bits(v, f);
        let scale = self.const32(f, 0x7780_0000);
        let v = self.pure().fmul(v, scale);
        if self.features.finite_f16 {
            return v;
        }
        // Infinities and NaNs are now 2^16 and more; nothing else has a square of 2^32.
        let square = self.pure().fmul(v, v);
        let limit = self.const32(f, 0x4f80_0000);
        let special = self.pure().fcmp(FloatCC::GreaterThanOrEqual, square, limit);
        let exponent = self.const32(t, 0x7f80_0000);
        let bits = self.bits(v, t);
        let exponent = if t.is_vector() {
            self.pure().band(special, exponent)
        } else {
            let zero = self.pure().iconst(types::I32, 0);
            self.pure().select(special, exponent, zero)
        };
        let bits = self.pure().bor(bits, exponent);
        self.bits(bits, f)
    }

    /// A 32-bit constant, in every lane of a vector.
    pub fn const32(&mut self, t: Type, bits: u32) -> Value {
        if t.is_vector() {
            let mut bytes = [0; 16];
            bytes.chunks_mut(4).for_each(|c| c.copy_from_slice(&bits.to_le_bytes()));
            self.vconst(t, bytes)
        } else if t.is_float() {
            self.pure().f32const(Ieee32::with_bits(bits))
        } else {
            self.pure().iconst(t, i64::from(bits))
        }
    }

    /// f16 or bf16 from f32: to the nearest, ties to even; NaN stays NaN.
    pub fn f32_to_half(&mut self, a: Val, to: DType) -> R<Val> {
        let mut p = Vec::new();
        for &v in &a.p {
            p.push(if to == DType::F16 { self.f16_bits(v) } else { self.bf16_bits(v) });
        }
        let p = if a.is_vector() {
            let pair = |c: &[Value]| (c[0], *c.last().expect("chunk"));
            p.chunks(2).map(pair).map(|(x, y)| self.pure().unarrow(x, y)).collect()
        } else {
            vec![self.pure().ireduce(types::I16, p[0])]
        };
        Ok(Val::new(p, a.lanes, to))
    }

    /// `c ? a : b` of 32-bit integers.
    fn pick(&mut self, c: Value, a: Value, b: Value) -> Value {
        if self.ty(a).is_vector() { self.pure().bitselect(c, a, b) } else { self.pure().select(c, a, b) }
    }

    /// Drops low bits, to the nearest even.
    fn round_bits(&mut self, v: Value, drop: i64) -> Value {
        let t = self.ty(v);
        let odd = self.pure().ushr_imm_u(v, drop);
        let one = self.const32(t, 1);
        let odd = self.pure().band(odd, one);
        let half = self.const32(t, (1 << (drop - 1)) - 1);
        let v = self.pure().iadd(v, half);
        let v = self.pure().iadd(v, odd);
        self.pure().ushr_imm_u(v, drop)
    }

    fn bf16_bits(&mut self, v: Value) -> Value {
        let t = if self.ty(v).is_vector() { types::I32X4 } else { types::I32 };
        let bits = self.bits(v, t);
        let rounded = self.round_bits(bits, 16);
        let nan = self.pure().ushr_imm_u(bits, 16);
        let quiet = self.const32(t, 0x40);
        let nan = self.pure().bor(nan, quiet);
        let is_nan = self.pure().fcmp(FloatCC::Unordered, v, v);
        self.pick(is_nan, nan, rounded)
    }

    fn f16_bits(&mut self, v: Value) -> Value {
        let vector = self.ty(v).is_vector();
        let (t, f) = if vector { (types::I32X4, types::F32X4) } else { (types::I32, types::F32) };
        let bits = self.bits(v, t);
        let magnitude = self.const32(t, 0x7fff_ffff);
        let a = self.pure().band(bits, magnitude);
        let sign = self.pure().ushr_imm_u(bits, 16);
        let sign_bit = self.const32(t, 0x8000);
        let sign = self.pure().band(sign, sign_bit);
        // Normal numbers: the exponent's bias differs by 112.
        let bias = self.const32(t, 112 << 23);
        let normal = self.pure().isub(a, bias);
        let normal = self.round_bits(normal, 13);
        // Subnormal numbers: a sum with 0.5 has their bits lowest, rounded.
        let half = self.const32(f, 0x3f00_0000);
        let float = self.bits(a, f);
        let sum = self.pure().fadd(float, half);
        let (sum, half) = (self.bits(sum, t), self.const32(t, 0x3f00_0000));
        let small = self.pure().isub(sum, half);
        let least = self.const32(t, 113 << 23);
        let is_small = self.pure().icmp(IntCC::SignedLessThan, a, least);
        let finite = self.pick(is_small, small, normal);
        // From 65520 on, infinity.
        let infinity = self.const32(t, 0x7c00);
        let limit = self.const32(t, 0x477f_efff);
        let is_large = self.pure().icmp(IntCC::SignedGreaterThan, a, limit);
        let r = self.pick(is_large, infinity, finite);
        let payload = self.pure().ushr_imm_u(a, 13);
        let (low, quiet) = (self.const32(t, 0x3ff), self.const32(t, 0x7e00));
        let payload = self.pure().band(payload, low);
        let nan = self.pure().bor(payload, quiet);
        let is_nan = self.pure().fcmp(FloatCC::Unordered, v, v);
        let r = self.pick(is_nan, nan, r);
        self.pure().bor(r, sign)
    }
}

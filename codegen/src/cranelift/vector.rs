//! Vectors: changes of lane width, masks, reductions, and the lane-by-lane fallback.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::immediates::Ieee32;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use marquetry_ir::DType;
use marquetry_ir::loops::BinOp;

use super::func::{Cx, Val, int_piece, piece_type, pieces, scalar_type};
use crate::facts::limits;
use crate::jit::R;

impl Cx<'_> {
    /// Conversion by value.
    pub fn cast(&mut self, a: Val, to: DType) -> R<Val> {
        let (from, lanes) = (a.dt, a.lanes);
        if from == to {
            return Ok(a);
        }
        if matches!(from, DType::F16 | DType::BF16) {
            let a = self.half_to_f32(a)?;
            return self.cast(a, to);
        }
        if matches!(to, DType::F16 | DType::BF16) {
            let a = self.cast(a, DType::F32)?;
            return self.f32_to_half(a, to);
        }
        if from == DType::Bool {
            return self.bool_to_number(a, to);
        }
        if to == DType::Bool {
            return self.nonzero(a);
        }
        if !a.is_vector() {
            let v = self.cast_scalar(a.p[0], from, to)?;
            return Ok(Val::new(vec![v], 1, to));
        }
        let per_piece = |cx: &mut Self, f: fn(&mut Self, Value) -> Value| {
            Val::new(a.p.iter().map(|v| f(cx, *v)).collect(), lanes, to)
        };
        match (from, to) {
            (DType::F32, DType::I32) => Ok(per_piece(self, |cx, v| cx.pure().fcvt_to_sint_sat(types::I32X4, v))),
            (DType::F32, DType::U32) => Ok(per_piece(self, |cx, v| cx.pure().fcvt_to_uint_sat(types::I32X4, v))),
            (DType::I32, DType::F32) => Ok(per_piece(self, |cx, v| cx.pure().fcvt_from_sint(types::F32X4, v))),
            (DType::U32, DType::F32) => Ok(per_piece(self, |cx, v| cx.pure().fcvt_from_uint(types::F32X4, v))),
            (DType::I64, _) | (_, DType::I64) => self.map_lanes(&[&a], to, |cx, v| cx.cast_scalar(v[0], from, to)),
            (DType::F32, _) | (_, DType::F32) => {
                let a = self.cast(a, DType::I32)?;
                self.cast(a, to)
            }
            _ if from.size() == to.size() => Ok(Val { dt: to, ..a }),
            _ if from.size() < to.size() => Ok(self.widen(a, to)),
            _ => Ok(self.narrow(a, to)),
        }
    }

    fn cast_scalar(&mut self, v: Value, from: DType, to: DType) -> R<Value> {
        let t = scalar_type(to);
        Ok(match (from, to) {
            (DType::F32, DType::U32) => self.pure().fcvt_to_uint_sat(types::I32, v),
            (DType::F32, DType::I64) => self.pure().fcvt_to_sint_sat(types::I64, v),
            (DType::F32, DType::I32) => self.pure().fcvt_to_sint_sat(types::I32, v),
            (DType::F32, to) => {
                let v = self.pure().fcvt_to_sint_sat(types::I32, v);
                self.cast_scalar(v, DType::I32, to)?
            }
            (from, DType::F32) if from.is_signed_int() => {
                let v = if from.size() < 4 { self.pure().sextend(types::I32, v) } else { v };
                self.pure().fcvt_from_sint(types::F32, v)
            }
            (_, DType::F32) => {
                let v = self.pure().uextend(types::I64, v);
                self.pure().fcvt_from_sint(types::F32, v)
            }
            _ if from.size() == to.size() => v,
            _ if from.size() < to.size() && from.is_signed_int() => self.pure().sextend(t, v),
            _ if from.size() < to.size() => self.pure().uextend(t, v),
            _ => {
                let (lo, hi) = limits(to);
                let f = scalar_type(from);
                let hi = self.pure().iconst(f, hi);
                let v = if from.is_signed_int() {
                    let mask = if f.bits() == 64 { -1 } else { (1 << f.bits()) - 1 };
                    let lo = self.pure().iconst(f, lo & mask);
                    let v = self.pure().smin(v, hi);
                    self.pure().smax(v, lo)
                } else {
                    self.pure().umin(v, hi)
                };
                self.pure().ireduce(t, v)
            }
        })
    }

    fn bool_to_number(&mut self, a: Val, to: DType) -> R<Val> {
        if !a.is_vector() {
            let t = if to == DType::F32 { types::I32 } else { scalar_type(to) };
            let v = if t == types::I8 { a.p[0] } else { self.pure().uextend(t, a.p[0]) };
            let v = if to == DType::F32 { self.pure().fcvt_from_sint(types::F32, v) } else { v };
            return Ok(Val::new(vec![v], 1, to));
        }
        let m = self.mask_width(&a, to.size())?;
        let one = if to == DType::F32 { 1.0f32.to_bits() as i64 } else { 1 };
        let n = to.size();
        let mut bytes = [0; 16];
        bytes.chunks_mut(n).for_each(|c| c.copy_from_slice(&one.to_le_bytes()[..n]));
        let ones = self.vconst(int_piece(n), bytes);
        let mut p = Vec::new();
        for v in m.p {
            let v = self.pure().band(v, ones);
            p.push(self.bits(v, piece_type(to)));
        }
        Ok(Val::new(p, a.lanes, to))
    }

    fn nonzero(&mut self, a: Val) -> R<Val> {
        let mut p = Vec::new();
        for &v in &a.p {
            let t = self.ty(v);
            let zero = if t.is_vector() {
                self.vconst(t, [0; 16])
            } else if t.is_float() {
                self.pure().f32const(Ieee32::with_bits(0))
            } else {
                self.pure().iconst(t, 0)
            };
            p.push(if a.dt == DType::F32 {
                self.pure().fcmp(FloatCC::NotEqual, v, zero)
            } else {
                self.pure().icmp(IntCC::NotEqual, v, zero)
            });
        }
        if a.is_vector() {
            return Ok(Val::mask(p, a.lanes, a.width));
        }
        Ok(Val::new(p, 1, DType::Bool))
    }

    /// Each lane twice as wide, by sign or zeros.
    pub fn double(&mut self, a: &[Value], lanes: usize, width: usize, signed: bool) -> Vec<Value> {
        let mut p = Vec::new();
        for i in 0..pieces(lanes, 2 * width) {
            let v = a[i / 2];
            p.push(match (i % 2, signed) {
                (0, true) => self.pure().swiden_low(v),
                (0, false) => self.pure().uwiden_low(v),
                (_, true) => self.pure().swiden_high(v),
                (_, false) => self.pure().uwiden_high(v),
            });
        }
        p
    }

    fn widen(&mut self, a: Val, to: DType) -> Val {
        let (mut p, mut width) = (a.p, a.dt.size());
        while width < to.size() {
            p = self.double(&p, a.lanes, width, a.dt.is_signed_int());
            width *= 2;
        }
        Val::new(p, a.lanes, to)
    }

    /// Saturating, from 32 or 16 bits.
    fn narrow(&mut self, a: Val, to: DType) -> Val {
        let (mut p, mut width) = (a.p, a.dt.size());
        if !a.dt.is_signed_int() {
            let n = width;
            let mut bytes = [0; 16];
            bytes.chunks_mut(n).for_each(|c| c.copy_from_slice(&limits(to).1.to_le_bytes()[..n]));
            let hi = self.vconst(int_piece(n), bytes);
            p = p.into_iter().map(|v| self.pure().umin(v, hi)).collect();
        }
        while width > to.size() {
            let unsigned = width == 2 && to == DType::U8;
            let half = p.chunks(2).map(|c| {
                let (x, y) = (c[0], *c.last().expect("chunk"));
                if unsigned { self.pure().unarrow(x, y) } else { self.pure().snarrow(x, y) }
            });
            p = half.collect();
            width /= 2;
        }
        Val::new(p, a.lanes, to)
    }

    /// A mask with lanes of another width.
    pub fn mask_width(&mut self, m: &Val, width: usize) -> R<Val> {
        let (mut p, mut w) = (m.p.clone(), m.width);
        while w < width {
            p = self.double(&p, m.lanes, w, true);
            w *= 2;
        }
        while w > width {
            let mut half = Vec::new();
            for c in p.chunks(2) {
                let (x, y) = (c[0], *c.last().expect("chunk"));
                half.push(if w == 8 {
                    let (x, y) = (self.bits(x, types::I32X4), self.bits(y, types::I32X4));
                    self.shuffle(x, y, [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27])
                } else {
                    self.pure().snarrow(x, y)
                });
            }
            p = half;
            w /= 2;
        }
        Ok(Val::mask(p, m.lanes, width))
    }

    /// One lane as a scalar; the lane of a mask as all ones or all zeros.
    pub fn lane(&mut self, v: &Val, i: usize) -> Value {
        let per = 16 / v.width;
        self.pure().extractlane(v.p[i / per], (i % per) as u8)
    }

    /// A vector from its lanes.
    pub fn gather(&mut self, lanes: &[Value], dt: DType) -> Val {
        let t = piece_type(dt);
        let mut p = Vec::new();
        for c in lanes.chunks(16 / dt.size()) {
            let mut v = self.pure().splat(t, c[0]);
            for (i, x) in c.iter().enumerate().skip(1) {
                v = self.pure().insertlane(v, *x, i as u8);
            }
            p.push(v);
        }
        Val::new(p, lanes.len(), dt)
    }

    /// Applies a scalar operation lane by lane: for what has no vector instruction.
    pub fn map_lanes(
        &mut self,
        args: &[&Val],
        to: DType,
        mut f: impl FnMut(&mut Self, &[Value]) -> R<Value>,
    ) -> R<Val> {
        let mut out = Vec::new();
        for i in 0..args[0].lanes {
            let lanes: Vec<Value> = args.iter().map(|a| self.lane(a, i)).collect();
            out.push(f(self, &lanes)?);
        }
        Ok(self.gather(&out, to))
    }

    /// Combines lane `i` with lane `i + lanes / 2` until one is left.
    pub fn reduce(&mut self, op: BinOp, a: Val) -> R<Val> {
        if !a.lanes.is_power_of_two() || a.dt == DType::Bool {
            return Err(format!("reduce of {} lanes of {}", a.lanes, a.dt));
        }
        let (mut p, mut lanes) = (a.p, a.lanes);
        let per = 16 / a.dt.size();
        while lanes > per {
            let half = p.len() / 2;
            p = (0..half).map(|i| self.binary_piece(op, a.dt, p[i], p[i + half])).collect::<R<_>>()?;
            lanes /= 2;
        }
        let mut v = p[0];
        // Shifts by whole 32-bit words are one instruction everywhere.
        while lanes > 1 && lanes / 2 * a.dt.size() >= 4 {
            lanes /= 2;
            let shift = lanes * a.dt.size();
            let high = self.shuffle(v, v, std::array::from_fn(|i| ((i + shift) % 16) as u8));
            v = self.binary_piece(op, a.dt, v, high)?;
        }
        let mut rest: Vec<Value> = (0..lanes).map(|i| self.pure().extractlane(v, i as u8)).collect();
        while rest.len() > 1 {
            let half = rest.len() / 2;
            rest = (0..half).map(|i| self.binary_piece(op, a.dt, rest[i], rest[i + half])).collect::<R<_>>()?;
        }
        Ok(Val::new(rest, 1, a.dt))
    }
}

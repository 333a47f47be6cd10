//! Products of four bytes: the instruction that each target has for them.

use cranelift_codegen::ir::{InstBuilder, Value, types};
use marquetry_ir::DType;

use super::func::{Cx, Val};
use crate::jit::R;

/// How products of four bytes are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DotForm {
    /// A tree of widening products, exact on every target; the instruction selection knows it on x86 with VNNI.
    Tree,
    /// The same with the factors in the order that it knows on aarch64 with `i8mm`.
    UnsignedFirst,
    /// For aarch64: both factors signed where `w_max` is up to 127, which is one instruction with `dotprod`.
    SignedTree,
    /// Saturating 16-bit sums of pairs, for x86 with SSSE3; large bytes are split in two.
    Pairs,
}

impl Cx<'_> {
    /// `acc + Σ w.u8[j] * x.i8[j]` per lane.
    pub fn dot4(&mut self, acc: Val, w: Val, x: Val, w_max: u8) -> R<Val> {
        let lanes = acc.lanes;
        if !acc.is_vector() {
            let v = self.dot4_scalar(acc.p[0], w.p[0], x.p[0]);
            return Ok(Val::new(vec![v], 1, DType::I32));
        }
        let mut p = Vec::new();
        for i in 0..acc.p.len() {
            let (w, x) = (self.bits(w.p[i], types::I8X16), self.bits(x.p[i], types::I8X16));
            p.push(match self.features.dot {
                DotForm::Pairs => self.dot4_pairs(acc.p[i], w, x, w_max),
                DotForm::SignedTree if w_max <= 127 => self.dot4_tree(acc.p[i], w, x, true),
                _ => self.dot4_tree(acc.p[i], w, x, false),
            });
        }
        Ok(Val::new(p, lanes, DType::I32))
    }

    fn dot4_tree(&mut self, acc: Value, w: Value, x: Value, w_signed: bool) -> Value {
        let (x_lo, x_hi) = (self.pure().swiden_low(x), self.pure().swiden_high(x));
        let (w_lo, w_hi) = if w_signed {
            (self.pure().swiden_low(w), self.pure().swiden_high(w))
        } else {
            (self.pure().uwiden_low(w), self.pure().uwiden_high(w))
        };
        let (lo, hi) = if self.features.dot == DotForm::UnsignedFirst {
            (self.pure().imul(w_lo, x_lo), self.pure().imul(w_hi, x_hi))
        } else {
            (self.pure().imul(x_lo, w_lo), self.pure().imul(x_hi, w_hi))
        };
        let lo = self.pairs(lo);
        let hi = self.pairs(hi);
        let sum = self.pure().iadd_pairwise(lo, hi);
        self.pure().iadd(sum, acc)
    }

    /// Sums of neighbouring 16-bit lanes.
    fn pairs(&mut self, v: Value) -> Value {
        let (lo, hi) = (self.pure().swiden_low(v), self.pure().swiden_high(v));
        self.pure().iadd_pairwise(lo, hi)
    }

    fn dot4_pairs(&mut self, acc: Value, w: Value, x: Value, w_max: u8) -> Value {
        let parts: &[u8] = if w_max <= 127 { &[0xff] } else { &[0x7f, 0x80] };
        let mut sum = acc;
        for &mask in parts {
            let w = if mask == 0xff {
                w
            } else {
                let mask = self.vconst(types::I8X16, [mask; 16]);
                self.pure().band(w, mask)
            };
            let pairs = self.pure().x86_pmaddubsw(x, w);
            let quads = self.pairs(pairs);
            sum = self.pure().iadd(quads, sum);
        }
        sum
    }

    fn dot4_scalar(&mut self, acc: Value, w: Value, x: Value) -> Value {
        let mut sum = acc;
        for j in 0..4 {
            let (mut wb, mut xb) = (w, x);
            if j > 0 {
                wb = self.pure().ushr_imm_u(w, 8 * j);
                xb = self.pure().ushr_imm_u(x, 8 * j);
            }
            let wb = self.pure().band_imm_u(wb, 0xff);
            let xb = self.pure().ireduce(types::I8, xb);
            let xb = self.pure().sextend(types::I32, xb);
            let product = self.pure().imul(wb, xb);
            sum = self.pure().iadd(sum, product);
        }
        sum
    }
}

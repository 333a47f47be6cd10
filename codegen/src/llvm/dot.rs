//! Products of four bytes: the instruction that each target has for them.

use marquetry_ir::DType;

use super::func::{Cx, Ty, Val};

/// How products of four bytes are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dot {
    /// x86 with VNNI: one instruction for up to this many lanes of 32 bits.
    Vnni(usize),
    /// x86 with SSSE3 or more: saturating 16-bit sums of pairs; large bytes are split in two. Up to this many lanes.
    Pairs(usize),
    /// aarch64: `sdot`, and `usdot` where the target has it.
    Neon {
        /// There is `usdot`.
        mixed: bool,
    },
    /// Shifts, products and sums.
    Plain,
}

impl Cx<'_> {
    /// `acc + Σ w.u8[j] * x.i8[j]` per lane.
    pub fn dot4(&mut self, acc: Val, w: Val, x: Val, w_max: u8) -> Val {
        let lanes = self.ty(acc).lanes;
        let most = match self.features.dot {
            Dot::Vnni(n) | Dot::Pairs(n) => n,
            Dot::Neon { .. } => 4,
            Dot::Plain => lanes,
        };
        if lanes == 1 || self.features.dot == Dot::Plain {
            return self.dot_plain(acc, w, x);
        }
        let (mut start, mut parts) = (0, Vec::new());
        while start < lanes {
            let mut n = most;
            while n > lanes - start {
                n /= 2;
            }
            let [acc, w, x] = [acc, w, x].map(|v| self.slice(v, start, n));
            parts.push(self.dot_piece(acc, w, x, w_max));
            start += n;
        }
        self.concat(&parts)
    }

    fn dot_piece(&mut self, acc: Val, w: Val, x: Val, w_max: u8) -> Val {
        let ty = self.ty(acc);
        let bytes = Ty::int(8, 4 * ty.lanes);
        match self.features.dot {
            Dot::Vnni(_) => {
                let (w, x) = (self.bitcast(w, bytes), self.bitcast(x, bytes));
                self.call(&format!("llvm.x86.avx512.vpdpbusd.{}", 32 * ty.lanes), ty, &[acc, w, x])
            }
            Dot::Pairs(_) => self.dot_pairs(acc, w, x, w_max),
            Dot::Neon { mixed } if mixed || w_max <= 127 => {
                let name = if w_max <= 127 { "sdot" } else { "usdot" };
                let (w, x) = (self.bitcast(w, bytes), self.bitcast(x, bytes));
                self.call(&format!("llvm.aarch64.neon.{name}.v4i32.v16i8"), ty, &[acc, w, x])
            }
            _ => self.dot_plain(acc, w, x),
        }
    }

    fn dot_pairs(&mut self, acc: Val, w: Val, x: Val, w_max: u8) -> Val {
        let ty = self.ty(acc);
        let (bytes, pairs) = (Ty::int(8, 4 * ty.lanes), Ty::int(16, 2 * ty.lanes));
        let (multiply, add) = match ty.lanes {
            4 => ("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd"),
            8 => ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
            _ => ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
        };
        let masks: &[i64] = if w_max <= 127 { &[0xff] } else { &[0x7f, 0x80] };
        let (w, x) = (self.bitcast(w, bytes), self.bitcast(x, bytes));
        let ones = self.int(pairs, 1);
        let mut sum = acc;
        for &mask in masks {
            let mask = (mask != 0xff).then(|| self.int(bytes, mask));
            let w = mask.map_or(w, |m| self.two("and", w, m));
            let v = self.call(multiply, pairs, &[w, x]);
            let v = self.call(add, ty, &[v, ones]);
            sum = self.two("add", v, sum);
        }
        sum
    }

    fn dot_plain(&mut self, acc: Val, w: Val, x: Val) -> Val {
        let ty = Ty::of(DType::I32, self.ty(acc).lanes);
        let (low, top) = (self.int(ty, 0xff), self.int(ty, 24));
        let mut sum = acc;
        for j in 0..4 {
            let (down, up) = (self.int(ty, 8 * j), self.int(ty, 24 - 8 * j));
            let wide = self.two("lshr", w, down);
            let wb = self.two("and", wide, low);
            let high = self.two("shl", x, up);
            let xb = self.two("ashr", high, top);
            let product = self.two("mul", wb, xb);
            sum = self.two("add", sum, product);
        }
        sum
    }
}

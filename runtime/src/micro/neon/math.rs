//! Eight floats in two registers.

use core::arch::aarch64::*;

use super::super::eight::{Eight, turn};
use super::super::vector::Lanes;

/// Applies an instruction to both halves.
macro_rules! both {
    ($f:ident($($v:expr),*)) => {
        float32x4x2_t($f($($v.0),*), $f($($v.1),*))
    };
}

impl Lanes for float32x4x2_t {
    const N: usize = 8;
    const LEAST: f32 = -87.0;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        unsafe { float32x4x2_t(vdupq_n_f32(v), vdupq_n_f32(v)) }
    }

    #[inline(always)]
    unsafe fn load<const D: u8>(p: *const u8) -> Self {
        unsafe {
            if D == 0 {
                return float32x4x2_t(vld1q_f32(p.cast()), vld1q_f32(p.add(16).cast()));
            }
            let v = vld1q_u16(p.cast());
            let (low, high) = (vget_low_u16(v), vget_high_u16(v));
            if D == 1 {
                let halves = (vreinterpret_f16_u16(low), vreinterpret_f16_u16(high));
                float32x4x2_t(vcvt_f32_f16(halves.0), vcvt_f32_f16(halves.1))
            } else {
                let words = (vshll_n_u16::<16>(low), vshll_n_u16::<16>(high));
                float32x4x2_t(vreinterpretq_f32_u32(words.0), vreinterpretq_f32_u32(words.1))
            }
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe {
            vst1q_f32(p, self.0);
            vst1q_f32(p.add(4), self.1);
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { both!(vaddq_f32(self, other)) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { both!(vsubq_f32(self, other)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { both!(vmulq_f32(self, other)) }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { both!(vdivq_f32(self, other)) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { both!(vmaxnmq_f32(self, other)) }
    }

    #[inline(always)]
    unsafe fn fma(self, factor: Self, more: Self) -> Self {
        unsafe { both!(vfmaq_f32(more, self, factor)) }
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { both!(vrndnq_f32(self)) }
    }

    #[inline(always)]
    unsafe fn scale(self, powers: Self) -> Self {
        unsafe {
            let exponent = |v| vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(v), vdupq_n_s32(127)));
            let by = (vreinterpretq_f32_s32(exponent(powers.0)), vreinterpretq_f32_s32(exponent(powers.1)));
            both!(vmulq_f32(self, by))
        }
    }

    #[inline(always)]
    unsafe fn abs(self) -> Self {
        unsafe { both!(vabsq_f32(self)) }
    }

    #[inline(always)]
    unsafe fn signed(self, signs: Self) -> Self {
        unsafe {
            let sign = vdupq_n_u32(1 << 31);
            float32x4x2_t(vbslq_f32(sign, signs.0, self.0), vbslq_f32(sign, signs.1, self.1))
        }
    }

    #[inline(always)]
    unsafe fn select(self, other: Self, by: Self) -> Self {
        unsafe {
            let negative = |v| vcltzq_s32(vreinterpretq_s32_f32(v));
            float32x4x2_t(vbslq_f32(negative(by.0), other.0, self.0), vbslq_f32(negative(by.1), other.1, self.1))
        }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(self.0, self.1)) }
    }

    #[inline(always)]
    unsafe fn turn(from: (*const f32, usize), given: usize, to: (*mut f32, usize), wanted: usize) {
        unsafe { turn::<Self>(from, given, to, wanted) }
    }
}

impl Eight for float32x4x2_t {
    #[inline(always)]
    unsafe fn bytes<const SIGNED: bool>(p: *const u8) -> Self {
        unsafe {
            let wide = if SIGNED { vmovl_s8(vld1_s8(p.cast())) } else { vreinterpretq_s16_u16(vmovl_u8(vld1_u8(p))) };
            let (low, high) = (vmovl_s16(vget_low_s16(wide)), vmovl_s16(vget_high_s16(wide)));
            float32x4x2_t(vcvtq_f32_s32(low), vcvtq_f32_s32(high))
        }
    }

    #[inline(always)]
    unsafe fn only(self, first: i32, last: i32, other: f32) -> Self {
        unsafe {
            let (first, last, other) = (vdupq_n_s32(first), vdupq_n_s32(last), vdupq_n_f32(other));
            let low = vld1q_s32([0, 1, 2, 3].as_ptr());
            let high = vaddq_s32(low, vdupq_n_s32(4));
            let inside = [low, high].map(|l| vandq_u32(vcgeq_s32(l, first), vcleq_s32(l, last)));
            float32x4x2_t(vbslq_f32(inside[0], self.0, other), vbslq_f32(inside[1], self.1, other))
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { vaddvq_f32(vaddq_f32(self.0, self.1)) }
    }

    #[inline(always)]
    unsafe fn sums(v: &[Self; 8]) -> Self {
        unsafe {
            let quad = |a: Self, b: Self, c: Self, d: Self| {
                let pairs = |a: Self, b: Self| vpaddq_f32(vaddq_f32(a.0, a.1), vaddq_f32(b.0, b.1));
                vpaddq_f32(pairs(a, b), pairs(c, d))
            };
            float32x4x2_t(quad(v[0], v[1], v[2], v[3]), quad(v[4], v[5], v[6], v[7]))
        }
    }

    #[inline(always)]
    unsafe fn transpose(v: [Self; 8]) -> [Self; 8] {
        /// Four rows of four as columns.
        #[inline(always)]
        unsafe fn quarter(a: float32x4_t, b: float32x4_t, c: float32x4_t, d: float32x4_t) -> [float32x4_t; 4] {
            unsafe {
                let (x, y) = (vtrnq_f32(a, b), vtrnq_f32(c, d));
                let low = |p, q| vcombine_f32(vget_low_f32(p), vget_low_f32(q));
                let high = |p, q| vcombine_f32(vget_high_f32(p), vget_high_f32(q));
                [low(x.0, y.0), low(x.1, y.1), high(x.0, y.0), high(x.1, y.1)]
            }
        }
        unsafe {
            let [a, b] = [quarter(v[0].0, v[1].0, v[2].0, v[3].0), quarter(v[4].0, v[5].0, v[6].0, v[7].0)];
            let [c, d] = [quarter(v[0].1, v[1].1, v[2].1, v[3].1), quarter(v[4].1, v[5].1, v[6].1, v[7].1)];
            let mut out = v;
            for i in 0..4 {
                out[i] = float32x4x2_t(a[i], b[i]);
                out[4 + i] = float32x4x2_t(c[i], d[i]);
            }
            out
        }
    }
}

//! Packed rows: sums of four products by one instruction (dotprod), or products in 16 bits, of two quads summed before they are widened.

use core::arch::aarch64::*;

use marquetry_ir::Packed;

use super::super::packed::Bytes;
use super::super::{Field, Layout, field, quads};

/// NEON, with the instruction for sums of four products or without.
pub struct Neon<const DOTPROD: bool>;

/// Sums of a token: of four rows each, or without the instruction of halves of two rows each.
type Sums = [int32x4_t; 4];

impl<const DOTPROD: bool> Bytes for Neon<DOTPROD> {
    type Floats = float32x4x2_t;

    /// Both instructions know signed bytes only.
    #[inline(always)]
    fn center(p: Packed) -> u8 {
        if p.max > 127 { 128 } else { 0 }
    }

    #[inline(always)]
    unsafe fn dot<L: Layout, const T: usize, const SUB: usize>(
        data: *const u8,
        q: *const u8,
        next: usize,
    ) -> [float32x4x2_t; T] {
        unsafe {
            let subs = 32 / L::P.group as usize;
            let mut sums: [Sums; T] = [[vdupq_n_s32(0); 4]; T];
            let mut x = [[vdupq_n_s8(0); 2]; T];
            for t in 0..T {
                for (half, x) in x[t].iter_mut().enumerate() {
                    if subs == 1 || half == SUB {
                        *x = vld1q_s8(q.add(t * next + 16 * half).cast());
                    }
                }
            }
            quads!(I, {
                if I * subs / 8 == SUB {
                    let w = signed::<L, I>(data);
                    if DOTPROD {
                        for t in 0..T {
                            for h in 0..2 {
                                sums[t][h] = sdot::<{ I % 4 }>(sums[t][h], w[h], x[t][I / 4]);
                            }
                        }
                    } else if subs == 1 && I / 4 == 1 || subs == 2 && I % 2 == 1 {
                        // With the quad before, in the order of `quads!`.
                        let last = match subs {
                            1 => signed::<L, { I % 4 }>(data),
                            _ => signed::<L, { I / 2 * 2 }>(data),
                        };
                        for t in 0..T {
                            let before = match subs {
                                1 => four::<{ (I % 4) as i32 }>(x[t][0]),
                                _ => four::<{ (I % 4 / 2 * 2) as i32 }>(x[t][SUB]),
                            };
                            let now = four::<{ (I % 4) as i32 }>(x[t][I / 4]);
                            for h in 0..2 {
                                let low = vmull_s8(vget_low_s8(last[h]), vget_low_s8(before));
                                let low = vmlal_s8(low, vget_low_s8(w[h]), vget_low_s8(now));
                                let high = vmull_high_s8(last[h], before);
                                let high = vmlal_high_s8(high, w[h], now);
                                sums[t][2 * h] = vpadalq_s16(sums[t][2 * h], low);
                                sums[t][2 * h + 1] = vpadalq_s16(sums[t][2 * h + 1], high);
                            }
                        }
                    }
                }
            });
            let mut floats = [float32x4x2_t(vdupq_n_f32(0.0), vdupq_n_f32(0.0)); T];
            for t in 0..T {
                let [a, b, c, d] = sums[t];
                let (low, high) = if DOTPROD { (a, b) } else { (vpaddq_s32(a, b), vpaddq_s32(c, d)) };
                floats[t] = float32x4x2_t(vcvtq_f32_s32(low), vcvtq_f32_s32(high));
            }
            floats
        }
    }

    #[inline(always)]
    unsafe fn quad<L: Layout, const I: usize>(data: *const u8, to: *mut u8) {
        unsafe {
            let [a, b] = quad::<L, I>(data);
            vst1q_u8(to, a);
            vst1q_u8(to.add(16), b);
        }
    }

    #[inline(always)]
    unsafe fn elements<L: Layout, const I: usize>(data: *const u8) -> [float32x4x2_t; 4] {
        unsafe {
            let w = quad::<L, I>(data);
            let mut words = [vreinterpretq_u32_u8(w[0]), vreinterpretq_u32_u8(w[1])];
            let mut floats = [float32x4x2_t(vdupq_n_f32(0.0), vdupq_n_f32(0.0)); 4];
            for f in &mut floats {
                let byte = vdupq_n_u32(255);
                let [low, high] = words;
                *f = float32x4x2_t(vcvtq_f32_u32(vandq_u32(low, byte)), vcvtq_f32_u32(vandq_u32(high, byte)));
                words = [vshrq_n_u32::<8>(low), vshrq_n_u32::<8>(high)];
            }
            floats
        }
    }
}

/// Adds to each lane the sum of four products of signed bytes, those of `x` being its word number `LANE`.
///
/// # Safety
/// The CPU has dotprod.
#[inline]
#[target_feature(enable = "dotprod")]
pub unsafe fn sdot<const LANE: usize>(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's processor has the instruction; registers are all it touches.
    unsafe {
        std::arch::asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            x = in(vreg) x,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// One word of four bytes in all lanes.
#[inline(always)]
unsafe fn four<const LANE: i32>(x: int8x16_t) -> int8x16_t {
    unsafe { vreinterpretq_s8_s32(vdupq_laneq_s32::<LANE>(vreinterpretq_s32_s8(x))) }
}

/// The bytes of [`quad`] as signed ones, less [`Bytes::center`].
#[inline(always)]
unsafe fn signed<L: Layout, const I: usize>(data: *const u8) -> [int8x16_t; 2] {
    unsafe {
        let [mut a, mut b] = quad::<L, I>(data);
        if Neon::<true>::center(L::P) > 0 {
            (a, b) = (veorq_u8(a, vdupq_n_u8(128)), veorq_u8(b, vdupq_n_u8(128)));
        }
        [vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b)]
    }
}

/// The bytes of elements `4 * I ..` of a group, four rows to a vector.
#[inline(always)]
unsafe fn quad<L: Layout, const I: usize>(data: *const u8) -> [uint8x16_t; 2] {
    unsafe {
        let mut bytes = [vdupq_n_u8(0); 2];
        for (h, bytes) in bytes.iter_mut().enumerate() {
            let data = data.add(16 * h);
            let [a, b] = [part::<L, 8, I>(data), part::<L, 4, I>(data)];
            let [c, d] = [part::<L, 2, I>(data), part::<L, 1, I>(data)];
            *bytes = vorrq_u8(vorrq_u8(a, b), vorrq_u8(c, d));
        }
        bytes
    }
}

/// Those of their bits that are in the part of width `W`.
#[inline(always)]
unsafe fn part<L: Layout, const W: u8, const I: usize>(data: *const u8) -> uint8x16_t {
    unsafe {
        let Some(Field { word, by, mask }) = (const { field(L::P, W, I) }) else { return vdupq_n_u8(0) };
        let word = vshlq_u8(vld1q_u8(data.add(word * 32)), vdupq_n_s8(-by as i8));
        // Nothing else is left of a byte's upper bits when they have moved to its end.
        let alone = by >= 0 && mask as u8 == u8::MAX >> by;
        if alone { word } else { vandq_u8(word, vdupq_n_u8(mask as u8)) }
    }
}

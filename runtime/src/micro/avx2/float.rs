//! Products of floats, and packed rows as floats.

use core::arch::x86_64::*;

use super::super::{Call, Layout, scale_bytes};
use super::math::load8;

/// Tokens that share a pass over the weights.
const TILE: usize = 8;

/// [`MicroOp::Fma`](marquetry_ir::loops::MicroOp::Fma): `D` is 0 for f32, 1 for f16, 2 for bf16 weights.
pub unsafe extern "C" fn fma<const D: u8>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Fma` says, on a CPU that has the level.
    unsafe { products::<D>(Call { args, sizes }) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn products<const D: u8>(c: Call) {
    unsafe {
        let [tokens, blocks, k] = [0, 1, 2].map(|i| c.size(i));
        let (block, next) = (c.size(4) * if D == 0 { 4 } else { 2 }, c.size(5));
        for b in 0..blocks {
            let rows = c.arg::<u8>(1).add(b * block);
            let mut t = 0;
            while t < tokens {
                let (out, x) = (c.arg::<f32>(0).add((t * blocks + b) * 8), c.arg::<f32>(2).add(t * next));
                t += match tokens - t {
                    TILE.. => tile::<D, TILE>(rows, x, next, k, out, blocks * 8),
                    4.. => tile::<D, 4>(rows, x, next, k, out, blocks * 8),
                    2.. => tile::<D, 2>(rows, x, next, k, out, blocks * 8),
                    _ => tile::<D, 1>(rows, x, next, k, out, blocks * 8),
                };
            }
        }
    }
}

/// 8 rows by `T` tokens; returns `T`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const D: u8, const T: usize>(
    rows: *const u8,
    x: *const f32,
    next: usize,
    k: usize,
    out: *mut f32,
    stride: usize,
) -> usize {
    unsafe {
        let size = if D == 0 { 4 } else { 2 };
        let mut acc = [_mm256_setzero_ps(); T];
        for i in 0..k {
            let w = load8::<D>(rows.add(i * 8 * size));
            for (t, acc) in acc.iter_mut().enumerate() {
                *acc = _mm256_fmadd_ps(_mm256_set1_ps(*x.add(t * next + i)), w, *acc);
            }
        }
        for (t, v) in acc.into_iter().enumerate() {
            _mm256_storeu_ps(out.add(t * stride), v);
        }
        T
    }
}

/// [`MicroOp::Unpack`](marquetry_ir::loops::MicroOp::Unpack) for one layout.
pub unsafe extern "C" fn unpack<L: Layout>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Unpack` says, on a CPU that has the level.
    unsafe { widen::<L>(Call { args, sizes }) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen<L: Layout>(c: Call) {
    unsafe {
        let p = L::P;
        let [blocks, groups] = [0, 1].map(|i| c.size(i));
        let stride = |arg: usize| c.size(2 + arg);
        let (words, group) = (p.bits as usize, p.group as usize);
        let bytes = scale_bytes(p);
        let zero = _mm256_set1_epi32(i32::from(p.zero));
        for b in 0..blocks {
            let out = c.arg::<f32>(0).add(b * stride(0));
            let data = c.arg::<u8>(1).add(b * stride(1) * 4);
            let scale = c.arg::<u8>(2).add(b * stride(2) * bytes);
            let min = if p.min { c.arg::<u8>(3).add(b * stride(3) * bytes) } else { scale };
            for j in 0..groups * 32 {
                let (g, j) = (j / 32, j % 32);
                let mut q = _mm256_setzero_si256();
                for part in p.parts() {
                    let w = _mm256_loadu_si256(data.add((g * words + part.word(j / 4)) * 32).cast());
                    let shift = 8 * (j % 4) + part.bit(j / 4);
                    let bits = _mm256_srl_epi32(w, _mm_cvtsi64_si128(shift as i64));
                    let bits = _mm256_and_si256(bits, _mm256_set1_epi32(part.ones().into()));
                    q = _mm256_or_si256(q, _mm256_sll_epi32(bits, _mm_cvtsi64_si128(part.from.into())));
                }
                let at = (g * (32 / group) + j / group) * 8 * bytes;
                let s = side::<L>(scale.add(at));
                let v = match p.min {
                    true => _mm256_add_ps(_mm256_mul_ps(s, _mm256_cvtepi32_ps(q)), side::<L>(min.add(at))),
                    false => _mm256_mul_ps(s, _mm256_cvtepi32_ps(_mm256_sub_epi32(q, zero))),
                };
                _mm256_storeu_ps(out.add((g * 32 + j) * 8), v);
            }
        }
    }
}

/// Scales or minima of eight rows.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn side<L: Layout>(p: *const u8) -> __m256 {
    unsafe { if scale_bytes(L::P) == 2 { load8::<1>(p) } else { load8::<0>(p) } }
}

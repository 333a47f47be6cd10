//! Products of floats.

use core::arch::x86_64::*;

use super::super::Call;
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

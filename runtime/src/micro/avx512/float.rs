//! Products of floats.

use core::arch::x86_64::*;

use super::super::Call;
use super::super::ahead::ask;
use super::super::vector::{Lanes, size};
use super::math::join;

/// Tokens that share a pass over the weights.
const TILE: usize = 12;

/// [`MicroOp::Fma`](marquetry_ir::loops::MicroOp::Fma): `D` is 0 for f32, 1 for f16, 2 for bf16 weights.
pub unsafe extern "C" fn fma<const D: u8>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Fma` says, on a CPU that has the level.
    unsafe { products::<D>(Call { args, sizes }) }
}

#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn products<const D: u8>(c: Call) {
    unsafe {
        let [tokens, blocks, k] = [0, 1, 2].map(|i| c.size(i));
        let (acc, w, x): (*mut f32, *const u8, *const f32) = (c.arg(0), c.arg(1), c.arg(2));
        let (block, next) = (c.size(4) * size::<D>(), c.size(5));
        let mut b = 0;
        while b < blocks {
            let rows = [b, (b + 1).min(blocks - 1)].map(|b| w.add(b * block));
            let pair = blocks - b > 1;
            let mut t = 0;
            while t < tokens {
                let (out, from) = (acc.add((t * blocks + b) * 8), x.add(t * next));
                t += match tokens - t {
                    TILE.. => tile::<D, TILE>(rows, from, next, k, out, blocks * 8, (pair, t == 0)),
                    8.. => tile::<D, 8>(rows, from, next, k, out, blocks * 8, (pair, t == 0)),
                    4.. => tile::<D, 4>(rows, from, next, k, out, blocks * 8, (pair, t == 0)),
                    2.. => tile::<D, 2>(rows, from, next, k, out, blocks * 8, (pair, t == 0)),
                    _ => tile::<D, 1>(rows, from, next, k, out, blocks * 8, (pair, t == 0)),
                };
            }
            b += 2;
        }
    }
}

/// 16 rows by `T` tokens; returns `T`. The first pass over the rows asks for the next ones.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn tile<const D: u8, const T: usize>(
    rows: [*const u8; 2],
    x: *const f32,
    next: usize,
    k: usize,
    out: *mut f32,
    stride: usize,
    (pair, first): (bool, bool),
) -> usize {
    unsafe {
        let size = size::<D>();
        let mut acc = [_mm512_setzero_ps(); T];
        for i in 0..k {
            let [a, b] = [rows[0].add(i * 8 * size), rows[1].add(i * 8 * size)];
            // Once per line of the cache.
            if first && (i * 8 * size).is_multiple_of(64) {
                ask(a, 64);
                ask(b, 64);
            }
            let w = join(__m256::load::<D>(a), __m256::load::<D>(b));
            for (t, acc) in acc.iter_mut().enumerate() {
                *acc = _mm512_fmadd_ps(_mm512_set1_ps(*x.add(t * next + i)), w, *acc);
            }
        }
        for (t, v) in acc.into_iter().enumerate() {
            let to = out.add(t * stride);
            if pair {
                _mm512_storeu_ps(to, v);
            } else {
                _mm256_storeu_ps(to, _mm512_castps512_ps256(v));
            }
        }
        T
    }
}

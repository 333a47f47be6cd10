//! Products of floats, eight rows at a time.

use super::Call;
use super::ahead::ask;
use super::eight::Eight;
use super::vector::size;

/// Tokens that share a pass over the weights.
const TILE: usize = 8;

/// [`MicroOp::Fma`](marquetry_ir::loops::MicroOp::Fma): `D` is 0 for f32, 1 for f16, 2 for bf16 weights.
///
/// # Safety
/// The call is one of that operation, on a CPU that has the vectors.
#[inline(always)]
pub unsafe fn products<E: Eight, const D: u8>(c: Call) {
    unsafe {
        let [tokens, blocks, k] = [c.size(0), c.size(1), c.size(2)];
        let (block, next) = (c.size(4) * size::<D>(), c.size(5));
        for b in 0..blocks {
            let rows = c.arg::<u8>(1).add(b * block);
            let mut t = 0;
            while t < tokens {
                let (out, x) = (c.arg::<f32>(0).add((t * blocks + b) * 8), c.arg::<f32>(2).add(t * next));
                t += match tokens - t {
                    TILE.. => tile::<E, D, TILE>(rows, x, next, k, out, blocks * 8, t == 0),
                    4.. => tile::<E, D, 4>(rows, x, next, k, out, blocks * 8, t == 0),
                    2.. => tile::<E, D, 2>(rows, x, next, k, out, blocks * 8, t == 0),
                    _ => tile::<E, D, 1>(rows, x, next, k, out, blocks * 8, t == 0),
                };
            }
        }
    }
}

/// 8 rows by `T` tokens; returns `T`. The first pass over the rows asks for the next ones.
#[inline(always)]
unsafe fn tile<E: Eight, const D: u8, const T: usize>(
    rows: *const u8,
    x: *const f32,
    next: usize,
    k: usize,
    out: *mut f32,
    stride: usize,
    first: bool,
) -> usize {
    unsafe {
        let mut acc = [E::splat(0.0); T];
        for i in 0..k {
            let from = rows.add(i * 8 * size::<D>());
            // Once per line of the cache.
            if first && (i * 8 * size::<D>()).is_multiple_of(64) {
                ask(from, 64);
            }
            let w = E::load::<D>(from);
            for (t, acc) in acc.iter_mut().enumerate() {
                *acc = E::splat(*x.add(t * next + i)).fma(w, *acc);
            }
        }
        for (t, v) in acc.into_iter().enumerate() {
            v.store(out.add(t * stride));
        }
        T
    }
}

//! Packed rows as floats.

use core::arch::x86_64::*;

use super::super::{Call, Layout, quads, scale_bytes};
use super::dot::{quad, side};

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
        let bytes = scale_bytes(p);
        let subs = 32 / p.group as usize;
        for b in 0..blocks {
            let out = c.arg::<f32>(0).add(b * stride(0));
            let data = c.arg::<u8>(1).add(b * stride(1) * 4);
            let scale = c.arg::<u8>(2).add(b * stride(2) * bytes);
            let min = if p.min { c.arg::<u8>(3).add(b * stride(3) * bytes) } else { scale };
            for g in 0..groups {
                let data = data.add(g * p.bits as usize * 32);
                let out = out.add(g * 32 * 8);
                quads!(I, {
                    let at = (g * subs + I * subs / 8) * 8 * bytes;
                    let s = side::<L>(scale.add(at));
                    let m = if p.min { side::<L>(min.add(at)) } else { s };
                    let mut word = quad::<L, I>(data);
                    for j in 0..4 {
                        let q = _mm256_and_si256(word, _mm256_set1_epi32(255));
                        word = _mm256_srli_epi32::<8>(word);
                        let v = match p.min {
                            true => _mm256_add_ps(_mm256_mul_ps(s, _mm256_cvtepi32_ps(q)), m),
                            false => {
                                let q = _mm256_sub_epi32(q, _mm256_set1_epi32(p.zero.into()));
                                _mm256_mul_ps(s, _mm256_cvtepi32_ps(q))
                            }
                        };
                        _mm256_storeu_ps(out.add((4 * I + j) * 8), v);
                    }
                });
            }
        }
    }
}

//! Packed rows as panels of bf16 in pairs.

use core::arch::x86_64::*;

use super::super::ahead::ask_group;
use super::super::avx512::{quad, sides};
use super::super::packed::Rows;
use super::super::{Call, Layout, quads};

/// [`MicroOp::UnpackPairs`](marquetry_ir::loops::MicroOp::UnpackPairs) for one layout.
pub unsafe extern "C" fn unpack_pairs<L: Layout>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::UnpackPairs` says, on a CPU that has the level.
    unsafe { blocks::<L>(Call { args, sizes }) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn blocks<L: Layout>(c: Call) {
    unsafe {
        let [blocks, groups] = [c.size(0), c.size(1)];
        // Strides follow the two sizes.
        let next = c.size(2) * 2;
        for b in (0..blocks).step_by(2) {
            let pair = b + 1 < blocks;
            // A block without a partner is computed twice.
            let rows = [Rows::of::<L>(c, 2, b), Rows::of::<L>(c, 2, b + usize::from(pair))];
            for g in 0..groups {
                ask_group::<L>(g, rows[0]);
                ask_group::<L>(g, rows[1]);
                let out = c.arg::<u8>(0).add(g * 16 * next + b * 32);
                group::<L>(rows, g, (out, next), pair);
            }
        }
    }
}

/// 32 elements of 16 rows, or of 8.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn group<L: Layout>(rows: [Rows; 2], g: usize, (out, next): (*mut u8, usize), pair: bool) {
    unsafe {
        let p = L::P;
        let subs = 32 / p.group as usize;
        let low = _mm512_set1_epi32(0xff);
        // A row's two numbers next to each other.
        let order = _mm512_add_epi32(
            _mm512_mullo_epi32(
                _mm512_set1_epi32(0x0001_0001),
                _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
            ),
            _mm512_set1_epi32(16 << 16),
        );
        let side = |sub: usize| {
            let [s, m] = sides::<L>(rows, g, sub);
            // Exact: the zero point is a power of two.
            (s, if p.min { m } else { _mm512_mul_ps(s, _mm512_set1_ps(-f32::from(p.zero))) })
        };
        let data = [rows[0].group::<L>(g), rows[1].group::<L>(g)];
        let both = [side(0), side(subs - 1)];
        quads!(I, {
            let (s, m) = both[I * subs / 8 % 2];
            let words = quad::<L, I>(data);
            let number = |bytes: __m512i| _mm512_fmadd_ps(s, _mm512_cvtepi32_ps(bytes), m);
            let four = [
                number(_mm512_and_si512(words, low)),
                number(_mm512_and_si512(_mm512_srli_epi32::<8>(words), low)),
                number(_mm512_and_si512(_mm512_srli_epi32::<16>(words), low)),
                number(_mm512_srli_epi32::<24>(words)),
            ];
            for half in 0..2 {
                let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(four[2 * half + 1], four[2 * half]));
                let both = _mm512_permutexvar_epi16(order, both);
                let to = out.add((2 * I + half) * next);
                if pair {
                    _mm512_storeu_si512(to.cast(), both);
                } else {
                    _mm256_storeu_si256(to.cast(), _mm512_castsi512_si256(both));
                }
            }
        });
    }
}

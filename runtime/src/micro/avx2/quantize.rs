//! Activations in 8 bits.

use core::arch::x86_64::*;

use marquetry_ir::graph::QUANTIZE_FLOOR;

use super::super::Call;
use super::super::activations::{Row, rows};

/// [`MicroOp::Quantize`](marquetry_ir::loops::MicroOp::Quantize).
pub unsafe extern "C" fn quantize(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Quantize` says, on a CPU that has the level.
    unsafe { rows(Call { args, sizes }).for_each(|row| groups(row)) }
}

#[target_feature(enable = "avx2")]
unsafe fn groups(row: Row) {
    unsafe {
        for g in 0..row.groups {
            *row.scale.add(g) = group(row.x.add(32 * g), row.q.add(32 * g), row.sums.add(2 * g));
        }
    }
}

/// One group of 32; returns its scale.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn group(x: *const f32, q: *mut i8, sums: *mut f32) -> f32 {
    unsafe {
        let mut v = [_mm256_setzero_ps(); 4];
        let mut top = _mm256_setzero_ps();
        for (i, v) in v.iter_mut().enumerate() {
            *v = _mm256_loadu_ps(x.add(8 * i));
            top = _mm256_max_ps(top, _mm256_andnot_ps(_mm256_set1_ps(-0.0), *v));
        }
        let top = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps::<1>(top));
        let top = _mm_max_ps(top, _mm_movehl_ps(top, top));
        let max = _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
        let inverse = _mm256_set1_ps(if max > QUANTIZE_FLOOR { 127.0 / max } else { 0.0 });
        // Ties to even, which is how conversions round.
        let mut n = [_mm256_setzero_si256(); 4];
        for (n, v) in n.iter_mut().zip(v) {
            *n = _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse));
        }
        // Packing works in halves of 128 bits: words of 0 2 4 6 and 1 3 5 7, each four numbers, are put in order.
        let bytes = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
        let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256(q.cast(), bytes);
        // Sums of two bytes, of four, of sixteen.
        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
        let quads = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        let pairs = _mm256_hadd_epi32(quads, quads);
        let all = _mm256_hadd_epi32(pairs, pairs);
        let scale = max * (1.0 / 127.0);
        *sums = _mm256_extract_epi32::<0>(all) as f32 * scale;
        *sums.add(1) = _mm256_extract_epi32::<4>(all) as f32 * scale;
        scale
    }
}

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

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2")]
unsafe fn groups(row: Row) {
    unsafe {
        for g in 0..row.groups {
            *row.scale.add(g) = group(row.x.add(32 * g), row.q.add(32 * g), row.sums.add(2 * g));
        }
    }
}

/// One group of 32; returns its scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2")]
unsafe fn group(x: *const f32, q: *mut i8, sums: *mut f32) -> f32 {
    unsafe {
        let (a, b) = (_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16)));
        let max = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
        let inverse = _mm512_set1_ps(if max > QUANTIZE_FLOOR { 127.0 / max } else { 0.0 });
        // Ties to even, which is how conversions round.
        let (a, b) = (_mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)), _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse)));
        let (a, b) = (_mm512_cvtepi32_epi8(a), _mm512_cvtepi32_epi8(b));
        let bytes = _mm256_set_m128i(b, a);
        _mm256_storeu_si256(q.cast(), bytes);
        // Sums of four bytes, then of four of those.
        let quads = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), bytes);
        let pairs = _mm256_hadd_epi32(quads, quads);
        let all = _mm256_hadd_epi32(pairs, pairs);
        let scale = max * (1.0 / 127.0);
        *sums = _mm256_extract_epi32::<0>(all) as f32 * scale;
        *sums.add(1) = _mm256_extract_epi32::<4>(all) as f32 * scale;
        scale
    }
}

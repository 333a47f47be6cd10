//! Eight floats in a register.

use core::arch::x86_64::*;

use super::super::eight::{Eight, turn};
use super::super::vector::Lanes;

impl Lanes for __m256 {
    const N: usize = 8;
    const LEAST: f32 = -87.0;

    #[inline(always)]
    unsafe fn splat(v: f32) -> __m256 {
        unsafe { _mm256_set1_ps(v) }
    }

    #[inline(always)]
    unsafe fn load<const D: u8>(p: *const u8) -> __m256 {
        unsafe {
            match D {
                0 => _mm256_loadu_ps(p.cast()),
                1 => _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
                _ => {
                    let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm256_storeu_ps(p, self) }
    }

    #[inline(always)]
    unsafe fn add(self, other: __m256) -> __m256 {
        unsafe { _mm256_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn div(self, other: __m256) -> __m256 {
        unsafe { _mm256_div_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn max(self, other: __m256) -> __m256 {
        unsafe { _mm256_max_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn fma(self, factor: __m256, more: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(self, factor, more) }
    }

    #[inline(always)]
    unsafe fn round(self) -> __m256 {
        unsafe { _mm256_round_ps::<8>(self) }
    }

    #[inline(always)]
    unsafe fn scale(self, powers: __m256) -> __m256 {
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(powers), _mm256_set1_epi32(127));
            _mm256_mul_ps(self, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        }
    }

    #[inline(always)]
    unsafe fn abs(self) -> __m256 {
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self) }
    }

    #[inline(always)]
    unsafe fn signed(self, signs: __m256) -> __m256 {
        unsafe { _mm256_or_ps(self, _mm256_and_ps(signs, _mm256_set1_ps(-0.0))) }
    }

    #[inline(always)]
    unsafe fn select(self, other: __m256, by: __m256) -> __m256 {
        unsafe { _mm256_blendv_ps(self, other, by) }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe {
            let v = _mm_max_ps(_mm256_castps256_ps128(self), _mm256_extractf128_ps::<1>(self));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }

    #[inline(always)]
    unsafe fn turn(from: (*const f32, usize), given: usize, to: (*mut f32, usize), wanted: usize) {
        unsafe { turn::<__m256>(from, given, to, wanted) }
    }
}

impl Eight for __m256 {
    #[inline(always)]
    unsafe fn bytes<const SIGNED: bool>(p: *const u8) -> __m256 {
        unsafe {
            let eight = _mm_loadl_epi64(p.cast());
            _mm256_cvtepi32_ps(if SIGNED { _mm256_cvtepi8_epi32(eight) } else { _mm256_cvtepu8_epi32(eight) })
        }
    }

    #[inline(always)]
    unsafe fn only(self, first: i32, last: i32, other: f32) -> __m256 {
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let before = _mm256_cmpgt_epi32(_mm256_set1_epi32(first), lanes);
            let behind = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(last));
            let outside = _mm256_castsi256_ps(_mm256_or_si256(before, behind));
            _mm256_blendv_ps(self, _mm256_set1_ps(other), outside)
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let v = _mm_add_ps(_mm256_castps256_ps128(self), _mm256_extractf128_ps::<1>(self));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }

    #[inline(always)]
    unsafe fn sums(v: &[__m256; 8]) -> __m256 {
        unsafe {
            let low = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
            let high = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
            _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high))
        }
    }

    #[inline(always)]
    unsafe fn transpose(v: [__m256; 8]) -> [__m256; 8] {
        unsafe {
            let mut quads = [_mm256_setzero_ps(); 8];
            for q in 0..2 {
                let [a, b, c, d] = [v[4 * q], v[4 * q + 1], v[4 * q + 2], v[4 * q + 3]];
                let (x, y) = (_mm256_castps_pd(_mm256_unpacklo_ps(a, b)), _mm256_castps_pd(_mm256_unpacklo_ps(c, d)));
                let (z, w) = (_mm256_castps_pd(_mm256_unpackhi_ps(a, b)), _mm256_castps_pd(_mm256_unpackhi_ps(c, d)));
                // Within each 128 bits: one column of rows 4q..4q + 4.
                quads[4 * q] = _mm256_castpd_ps(_mm256_unpacklo_pd(x, y));
                quads[4 * q + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(x, y));
                quads[4 * q + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(z, w));
                quads[4 * q + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(z, w));
            }
            let mut out = quads;
            for c in 0..4 {
                out[c] = _mm256_permute2f128_ps::<0x20>(quads[c], quads[4 + c]);
                out[4 + c] = _mm256_permute2f128_ps::<0x31>(quads[c], quads[4 + c]);
            }
            out
        }
    }
}

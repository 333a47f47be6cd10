//! Sixteen floats in a register.

use core::arch::x86_64::*;

use super::super::vector::{Lanes, polynomial};

/// Two halves as one vector.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub fn join(low: __m256, high: __m256) -> __m512 {
    _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high)
}

/// Lanes of two vectors: of each two neighbours the sum.
#[inline]
#[target_feature(enable = "avx512f")]
fn fold(a: __m512, b: __m512) -> __m512 {
    _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b))
}

// Loops are written out in what follows: a closure that an array function calls does not have the instruction set and
// would be called for every element.

/// Four vectors by quarters of 128 bits: lane `i` of a quarter is the sum of that quarter of vector `i`.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn sums_by_quarter([a, b, c, d]: [__m512; 4]) -> __m512 {
    let x = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let y = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let (x, y) = (_mm512_castps_pd(x), _mm512_castps_pd(y));
    let (low, high) = (_mm512_unpacklo_pd(x, y), _mm512_unpackhi_pd(x, y));
    _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
}

/// The sums of 16 vectors, four of which each [`sums_by_quarter`] has taken.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn sums_of_quarters([a, b, c, d]: [__m512; 4]) -> __m512 {
    fold(fold(a, b), fold(c, d))
}

/// Rows as columns.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn transpose(v: &[__m512; 16]) -> [__m512; 16] {
    let mut quads = [_mm512_setzero_ps(); 16];
    for q in 0..4 {
        let [a, b, c, d] = [v[4 * q], v[4 * q + 1], v[4 * q + 2], v[4 * q + 3]];
        let (x, y) = (_mm512_castps_pd(_mm512_unpacklo_ps(a, b)), _mm512_castps_pd(_mm512_unpacklo_ps(c, d)));
        let (z, w) = (_mm512_castps_pd(_mm512_unpackhi_ps(a, b)), _mm512_castps_pd(_mm512_unpackhi_ps(c, d)));
        // Within each 128 bits: one column of rows 4q..4q + 4.
        quads[4 * q] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
        quads[4 * q + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
        quads[4 * q + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(z, w));
        quads[4 * q + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(z, w));
    }
    let mut out = [_mm512_setzero_ps(); 16];
    for c in 0..4 {
        let [a, b, d, e] = [quads[c], quads[4 + c], quads[8 + c], quads[12 + c]];
        // Lanes 0 and 2, or 1 and 3, of rows 0..8 and 8..16.
        let (low0, high0) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(d, e));
        let (low1, high1) = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(d, e));
        out[c] = _mm512_shuffle_f32x4::<0x88>(low0, high0);
        out[4 + c] = _mm512_shuffle_f32x4::<0x88>(low1, high1);
        out[8 + c] = _mm512_shuffle_f32x4::<0xdd>(low0, high0);
        out[12 + c] = _mm512_shuffle_f32x4::<0xdd>(low1, high1);
    }
    out
}

impl Lanes for __m512 {
    const N: usize = 16;
    const LEAST: f32 = -104.0;

    #[inline(always)]
    unsafe fn splat(v: f32) -> __m512 {
        unsafe { _mm512_set1_ps(v) }
    }

    #[inline(always)]
    unsafe fn load<const D: u8>(p: *const u8) -> __m512 {
        unsafe {
            match D {
                0 => _mm512_loadu_ps(p.cast()),
                1 => _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())),
                _ => {
                    let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm512_storeu_ps(p, self) }
    }

    #[inline(always)]
    unsafe fn add(self, other: __m512) -> __m512 {
        unsafe { _mm512_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn div(self, other: __m512) -> __m512 {
        unsafe { _mm512_div_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn max(self, other: __m512) -> __m512 {
        unsafe { _mm512_max_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn fma(self, factor: __m512, more: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(self, factor, more) }
    }

    #[inline(always)]
    unsafe fn round(self) -> __m512 {
        unsafe { _mm512_roundscale_ps::<8>(self) }
    }

    #[inline(always)]
    unsafe fn scale(self, powers: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(self, powers) }
    }

    #[inline(always)]
    unsafe fn abs(self) -> __m512 {
        unsafe { _mm512_abs_ps(self) }
    }

    #[inline(always)]
    unsafe fn signed(self, signs: __m512) -> __m512 {
        unsafe { _mm512_or_ps(self, _mm512_and_ps(signs, _mm512_set1_ps(-0.0))) }
    }

    #[inline(always)]
    unsafe fn select(self, other: __m512, by: __m512) -> __m512 {
        unsafe { _mm512_mask_mov_ps(self, _mm512_movepi32_mask(_mm512_castps_si512(by)), other) }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self) }
    }

    #[inline(always)]
    unsafe fn turn(from: (*const f32, usize), given: usize, to: (*mut f32, usize), wanted: usize) {
        unsafe {
            let mut rows = [_mm512_setzero_ps(); 16];
            for (j, row) in rows.iter_mut().enumerate() {
                *row = _mm512_loadu_ps(from.0.add(j.min(given - 1) * from.1));
            }
            for (i, column) in transpose(&rows).into_iter().enumerate().take(wanted) {
                _mm512_storeu_ps(to.0.add(i * to.1), column);
            }
        }
    }

    /// Without a bound, as `scale` has all powers.
    #[inline(always)]
    unsafe fn exp2<const ROUGH: bool>(self) -> __m512 {
        unsafe {
            let n = self.round();
            polynomial::<__m512, ROUGH>(self.sub(n)).scale(n)
        }
    }
}

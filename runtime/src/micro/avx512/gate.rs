//! Gated products.

use core::arch::x86_64::*;

use super::super::Call;
use super::super::vector::Lanes;

/// [`MicroOp::Gate`](marquetry_ir::loops::MicroOp::Gate) by gelu or by silu; `D` is 0 for results of f32, 2 for bf16.
pub unsafe extern "C" fn gate<const GELU: bool, const D: u8>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Gate` says, on a CPU that has the level.
    unsafe { rows::<GELU, D>(Call { args, sizes }) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
unsafe fn rows<const GELU: bool, const D: u8>(c: Call) {
    unsafe {
        let [tokens, blocks] = [c.size(0), c.size(1)];
        let width = if D == 0 { 4 } else { 2 };
        // Strides follow the two sizes.
        let next = c.size(2) * width;
        for t in 0..tokens {
            let acc = c.arg::<f32>(1).add(t * blocks * 16);
            let out = c.arg::<u8>(0).add(t * next);
            for b in (0..blocks).step_by(2) {
                // Gate and up of a block are 8 lanes each; two blocks fill a vector of either.
                let low = _mm512_loadu_ps(acc.add(b * 16));
                let pair = b + 1 < blocks;
                let high = if pair { _mm512_loadu_ps(acc.add(b * 16 + 16)) } else { low };
                let gate = _mm512_shuffle_f32x4::<0x44>(low, high);
                let up = _mm512_shuffle_f32x4::<0xee>(low, high);
                let y = _mm512_mul_ps(if GELU { gelu(gate) } else { silu(gate) }, up);
                let to = out.add(b * 8 * width);
                let lanes: __mmask16 = if pair { 0xffff } else { 0xff };
                if D == 0 {
                    _mm512_mask_storeu_ps(to.cast(), lanes, y);
                } else {
                    _mm512_mask_cvtepi32_storeu_epi16(to.cast(), lanes, bf16(y));
                }
            }
        }
    }
}

/// `x / (1 + e^-x)`
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn silu(x: __m512) -> __m512 {
    // Of e^-|x|, which is no larger than 1.
    // SAFETY: the CPU has the vectors.
    let e = unsafe { _mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)).exp() };
    let one = _mm512_set1_ps(1.0);
    let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_setzero_ps());
    let over = _mm512_mask_mov_ps(one, negative, e);
    // The reciprocal, better than 14 bits, made better than 24 by a step of Newton's.
    let under = _mm512_add_ps(one, e);
    let guess = _mm512_rcp14_ps(under);
    let inverse = _mm512_fmadd_ps(guess, _mm512_fnmadd_ps(under, guess, one), guess);
    _mm512_mul_ps(_mm512_mul_ps(x, over), inverse)
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn gelu(x: __m512) -> __m512 {
    let cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    let inner = _mm512_mul_ps(_mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715), x), _mm512_set1_ps(0.797_884_6));
    let half = _mm512_mul_ps(x, _mm512_set1_ps(0.5));
    // SAFETY: the CPU has the vectors.
    _mm512_fmadd_ps(half, unsafe { inner.tanh() }, half)
}

/// Bits of the nearest bf16 numbers, in the lower halves of lanes; NaN stays NaN.
#[inline]
#[target_feature(enable = "avx512f")]
fn bf16(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let high = _mm512_srli_epi32::<16>(bits);
    let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    let up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    let quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    _mm512_mask_mov_epi32(_mm512_srli_epi32::<16>(up), nan, quiet)
}

//! Packed rows: sums of four products by one instruction (AVX-VNNI), or pairs summed in 16 bits as long as they fit.

use core::arch::x86_64::*;

use marquetry_ir::Packed;

use super::super::packed::Bytes;
use super::super::{Field, Layout, field, quads};

/// Which instruction sums four products: none, or that of AVX-VNNI or of AVX-512.
pub const NONE: u8 = 0;
pub const AVX: u8 = 1;
pub const AVX512: u8 = 2;

/// AVX2 with that instruction.
pub struct Avx2<const VNNI: u8>;

/// Quads whose products with activations may be summed in 16 bits; 0 if not even one's.
const fn whole(p: Packed) -> usize {
    match p.max {
        0..=15 => 8,
        16..=31 => 4,
        32..=63 => 2,
        64..=127 => 1,
        _ => 0,
    }
}

impl<const VNNI: u8> Bytes for Avx2<VNNI> {
    type Floats = __m256;

    /// With the sign apart, two products of 8 bits fit 16 with one.
    #[inline(always)]
    fn center(p: Packed) -> u8 {
        if VNNI == NONE && whole(p) == 0 { 128 } else { 0 }
    }

    #[inline(always)]
    unsafe fn dot<L: Layout, const T: usize, const SUB: usize>(
        data: *const u8,
        q: *const u8,
        next: usize,
    ) -> [__m256; T] {
        unsafe {
            let p = L::P;
            let subs = 32 / p.group as usize;
            let one = _mm256_set1_epi16(1);
            let mut dot = [_mm256_setzero_si256(); T];
            let mut sum = [_mm256_setzero_si256(); T];
            quads!(I, {
                if I * subs / 8 == SUB {
                    let mut bytes = quad::<L, I>(data);
                    let signs = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));
                    if Self::center(p) > 0 {
                        bytes = _mm256_abs_epi8(signs);
                    }
                    for t in 0..T {
                        let q: *const i32 = q.add(t * next + I * 4).cast();
                        let q = _mm256_set1_epi32(q.read_unaligned());
                        if VNNI != NONE {
                            dot[t] = dot4::<VNNI>(dot[t], bytes, q);
                        } else if whole(p) > 0 {
                            sum[t] = _mm256_add_epi16(sum[t], _mm256_maddubs_epi16(bytes, q));
                        } else {
                            let pairs = _mm256_maddubs_epi16(bytes, _mm256_sign_epi8(q, signs));
                            dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(pairs, one));
                        }
                    }
                    // Quads with this scale so far.
                    let count = if subs == 1 { I % 4 * 2 + I / 4 + 1 } else { I % 4 + 1 };
                    if VNNI == NONE && whole(p) > 0 && (count % whole(p) == 0 || count == 8 / subs) {
                        for t in 0..T {
                            dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(sum[t], one));
                            sum[t] = _mm256_setzero_si256();
                        }
                    }
                }
            });
            let mut floats = [_mm256_setzero_ps(); T];
            for (f, dot) in floats.iter_mut().zip(dot) {
                *f = _mm256_cvtepi32_ps(dot);
            }
            floats
        }
    }

    #[inline(always)]
    unsafe fn quad<L: Layout, const I: usize>(data: *const u8, to: *mut u8) {
        unsafe { _mm256_storeu_si256(to.cast(), quad::<L, I>(data)) }
    }

    #[inline(always)]
    unsafe fn elements<L: Layout, const I: usize>(data: *const u8) -> [__m256; 4] {
        unsafe {
            let mut word = quad::<L, I>(data);
            let mut floats = [_mm256_setzero_ps(); 4];
            for f in &mut floats {
                *f = _mm256_cvtepi32_ps(_mm256_and_si256(word, _mm256_set1_epi32(255)));
                word = _mm256_srli_epi32::<8>(word);
            }
            floats
        }
    }
}

/// Adds to each lane the sum of four products of unsigned and signed bytes. The intrinsics would be calls in functions that are
/// compiled for processors without them too.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot4<const VNNI: u8>(mut sum: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
    macro_rules! vpdpbusd {
        ($prefix:literal) => {
            std::arch::asm!(
                concat!($prefix, "vpdpbusd {sum}, {unsigned}, {signed}"),
                sum = inout(ymm_reg) sum,
                unsigned = in(ymm_reg) unsigned,
                signed = in(ymm_reg) signed,
                options(pure, nomem, nostack, preserves_flags)
            )
        };
    }
    // SAFETY: the caller's processor has the instruction in this encoding; registers are all it touches.
    unsafe {
        match VNNI {
            AVX512 => vpdpbusd!("{{evex}} "),
            _ => vpdpbusd!("{{vex}} "),
        }
    }
    sum
}

/// The bytes of elements `4 * I ..` of a group of eight rows.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn quad<L: Layout, const I: usize>(data: *const u8) -> __m256i {
    unsafe {
        let [a, b] = [part::<L, 8, I>(data), part::<L, 4, I>(data)];
        let [c, d] = [part::<L, 2, I>(data), part::<L, 1, I>(data)];
        _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d))
    }
}

/// Those of their bits that are in the part of width `W`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn part<L: Layout, const W: u8, const I: usize>(data: *const u8) -> __m256i {
    unsafe {
        let Some(Field { word, by, mask }) = (const { field(L::P, W, I) }) else { return _mm256_setzero_si256() };
        let word = _mm256_loadu_si256(data.add(word * 32).cast());
        let count = _mm_cvtsi32_si128(by.abs());
        let word = if by < 0 { _mm256_sll_epi16(word, count) } else { _mm256_srl_epi16(word, count) };
        _mm256_and_si256(word, _mm256_set1_epi8(mask))
    }
}

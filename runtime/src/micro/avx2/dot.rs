//! Products of quantized numbers: sums of four products by one instruction (AVX-VNNI), or pairs summed in 16 bits as long as they fit.

use core::arch::x86_64::*;

use marquetry_ir::Packed;

use super::super::{Call, Field, Layout, field, quads, scale_bytes};
use super::math::load8;

/// Tokens that share a pass over the weights.
const TILE: usize = 4;

/// Which instruction sums four products: none, or that of AVX-VNNI or of AVX-512.
const NONE: u8 = 0;
const AVX: u8 = 1;
const AVX512: u8 = 2;

/// A row block: data, scales, minima.
#[derive(Clone, Copy)]
struct Rows {
    data: *const u8,
    scale: *const u8,
    min: *const u8,
}

/// Activations of the first token, and distances to the next in bytes.
#[derive(Clone, Copy)]
struct Tokens {
    q: *const u8,
    scale: *const f32,
    sum: *const f32,
    next: [usize; 3],
}

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

/// [`MicroOp::Dot`](marquetry_ir::loops::MicroOp::Dot) for one layout.
pub unsafe extern "C" fn dot<L: Layout>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Dot` says, on a CPU that has the level.
    unsafe { tiles::<L, NONE>(Call { args, sizes }) }
}

/// As [`dot`], with AVX-512 VNNI for 256-bit vectors. One block at a time is one stream to read, which for a single token is faster than
/// two in one vector.
pub unsafe extern "C" fn dot_narrow<L: Layout>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: as above.
    unsafe { tiles::<L, AVX512>(Call { args, sizes }) }
}

/// As [`dot`], with AVX-VNNI.
pub unsafe extern "C" fn dot_vnni<L: Layout>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: as above.
    unsafe { tiles::<L, AVX>(Call { args, sizes }) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tiles<L: Layout, const VNNI: u8>(c: Call) {
    unsafe {
        let [tokens, blocks, groups] = [0, 1, 2].map(|i| c.size(i));
        let p = L::P;
        let x = if p.min { 4 } else { 3 };
        let acc: *mut f32 = c.arg(0);
        // Strides follow the three sizes.
        let (data, scale) = (c.size(4) * 4, c.size(5) * scale_bytes(p));
        let next = [c.size(3 + x) * 4, c.size(4 + x) * 4, c.size(5 + x) * 4];
        for b in 0..blocks {
            let rows = Rows {
                data: c.arg::<u8>(1).add(b * data),
                scale: c.arg::<u8>(2).add(b * scale),
                min: c.arg::<u8>(if p.min { 3 } else { 2 }).add(b * scale),
            };
            let mut t = 0;
            while t < tokens {
                let from = Tokens {
                    q: c.arg::<u8>(x).add(t * next[0]),
                    scale: c.arg::<f32>(x + 1).byte_add(t * next[1]),
                    sum: c.arg::<f32>(x + 2).byte_add(t * next[2]),
                    next,
                };
                let out = acc.add((t * blocks + b) * 8);
                t += match tokens - t {
                    TILE.. => tile::<L, VNNI, TILE>(rows, from, groups, out, blocks * 8),
                    2.. => tile::<L, VNNI, 2>(rows, from, groups, out, blocks * 8),
                    _ => tile::<L, VNNI, 1>(rows, from, groups, out, blocks * 8),
                };
            }
        }
    }
}

/// 8 rows by `T` tokens; returns `T`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<L: Layout, const VNNI: u8, const T: usize>(
    rows: Rows,
    x: Tokens,
    groups: usize,
    out: *mut f32,
    next: usize,
) -> usize {
    unsafe {
        let mut acc = [_mm256_setzero_ps(); T];
        for g in 0..groups {
            add::<L, VNNI, T, 0>(rows, x, g, &mut acc);
            if L::P.group == 16 {
                add::<L, VNNI, T, 1>(rows, x, g, &mut acc);
            }
        }
        for (t, v) in acc.into_iter().enumerate() {
            _mm256_storeu_ps(out.add(t * next), v);
        }
        T
    }
}

/// The products of those elements of group `g` that have its scale number `SUB`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add<L: Layout, const VNNI: u8, const T: usize, const SUB: usize>(
    rows: Rows,
    x: Tokens,
    g: usize,
    acc: &mut [__m256; T],
) {
    unsafe {
        let p = L::P;
        let subs = 32 / p.group as usize;
        let data = rows.data.add(g * p.bits as usize * 32);
        let one = _mm256_set1_epi16(1);
        let mut dot = [_mm256_setzero_si256(); T];
        let mut sum = [_mm256_setzero_si256(); T];
        quads!(I, {
            if I * subs / 8 == SUB {
                let bytes = quad::<L, I>(data);
                for t in 0..T {
                    let q: *const i32 = x.q.add(t * x.next[0] + g * 32 + I * 4).cast();
                    let q = _mm256_set1_epi32(q.read_unaligned());
                    if VNNI != NONE {
                        dot[t] = dot4::<VNNI>(dot[t], bytes, q);
                    } else if whole(p) > 0 {
                        sum[t] = _mm256_add_epi16(sum[t], _mm256_maddubs_epi16(bytes, q));
                    } else {
                        let low = _mm256_and_si256(bytes, _mm256_set1_epi8(127));
                        let high = _mm256_andnot_si256(_mm256_set1_epi8(127), bytes);
                        let low = _mm256_madd_epi16(_mm256_maddubs_epi16(low, q), one);
                        let high = _mm256_madd_epi16(_mm256_maddubs_epi16(high, q), one);
                        dot[t] = _mm256_add_epi32(dot[t], _mm256_add_epi32(low, high));
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
        let at = (g * subs + SUB) * 8 * scale_bytes(p);
        let s = side::<L>(rows.scale.add(at));
        let m = if p.min { side::<L>(rows.min.add(at)) } else { s };
        for (t, (acc, dot)) in acc.iter_mut().zip(dot).enumerate() {
            let sum = x.sum.byte_add(t * x.next[2]).add(g * 2);
            let total = if subs == 2 { *sum.add(SUB) } else { *sum + *sum.add(1) };
            let d = _mm256_cvtepi32_ps(dot);
            let xs = _mm256_set1_ps(*x.scale.byte_add(t * x.next[1]).add(g));
            *acc = match (p.min, p.zero) {
                (true, _) => {
                    let with = _mm256_fmadd_ps(m, _mm256_set1_ps(total), *acc);
                    _mm256_fmadd_ps(s, _mm256_mul_ps(d, xs), with)
                }
                (false, 0) => _mm256_fmadd_ps(s, _mm256_mul_ps(d, xs), *acc),
                (false, zero) => {
                    let shift = _mm256_set1_ps(total * -f32::from(zero));
                    _mm256_fmadd_ps(s, _mm256_fmadd_ps(d, xs, shift), *acc)
                }
            };
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
pub(super) unsafe fn quad<L: Layout, const I: usize>(data: *const u8) -> __m256i {
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

/// Scales or minima of eight rows.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn side<L: Layout>(p: *const u8) -> __m256 {
    unsafe { if scale_bytes(L::P) == 2 { load8::<1>(p) } else { load8::<0>(p) } }
}

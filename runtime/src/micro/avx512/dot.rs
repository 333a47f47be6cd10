//! Products of quantized numbers.

use core::arch::x86_64::*;
use core::mem::MaybeUninit;

use super::super::ahead::ask_group;
use super::super::avx2::dot_narrow;
use super::super::packed::{Rows, Tokens};
use super::super::{Call, Field, Layout, field, quads};
use super::math::join;

/// Tokens that share a pass over the weights.
const TILE: usize = 8;
/// Up to so many tokens reading the weights takes longest, which is faster in one stream.
const NARROW: usize = 4;

/// Numbers of [`Totals`]: 32 tokens have room up to rows of 4096 numbers with a scale each 16.
const TOTALS: usize = 32 * 256;

/// Of some tokens and their scales, what a zero point adds to products. It is computed once for all rows: vectors that are one number are
/// cheapest read from memory.
type Totals = [MaybeUninit<f32>; TOTALS];

/// [`MicroOp::Dot`](marquetry_ir::loops::MicroOp::Dot) for one layout.
pub unsafe extern "C" fn dot<L: Layout>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Dot` says, on a CPU that has the level.
    unsafe {
        let call = Call { args, sizes };
        if call.size(0) <= NARROW || scales::<L>(call.size(2)) > TOTALS {
            dot_narrow::<L>(args, sizes);
        } else {
            tiles::<L>(call);
        }
    }
}

/// Scales of a row.
fn scales<L: Layout>(groups: usize) -> usize {
    groups * (32 / L::P.group as usize)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn tiles<L: Layout>(c: Call) {
    unsafe {
        let [tokens, blocks, groups] = [0, 1, 2].map(|i| c.size(i));
        let acc: *mut f32 = c.arg(0);
        let all = Tokens::of::<L>(c);
        let mut memory: Totals = [const { MaybeUninit::uninit() }; TOTALS];
        let each = scales::<L>(groups);
        let most = (TOTALS / each.max(1)).min(tokens);
        let mut first = 0;
        while first < tokens {
            let end = tokens.min(first + most);
            for t in first..end {
                totals::<L>(&mut memory[(t - first) * each..][..each], all.at(t));
            }
            for b in (0..blocks).step_by(2) {
                // A block without a partner is computed twice.
                let rows = [Rows::of::<L>(c, 3, b), Rows::of::<L>(c, 3, (b + 1).min(blocks - 1))];
                let mut t = first;
                while t < end {
                    let (out, from) = (acc.add((t * blocks + b) * 8), all.at(t));
                    let totals = memory.as_ptr().cast::<f32>().add((t - first) * each);
                    let pair = blocks - b > 1;
                    t += match end - t {
                        TILE.. => tile::<L, TILE>(rows, (from, totals), groups, out, blocks * 8, (pair, t == 0)),
                        4.. => tile::<L, 4>(rows, (from, totals), groups, out, blocks * 8, (pair, t == 0)),
                        2.. => tile::<L, 2>(rows, (from, totals), groups, out, blocks * 8, (pair, t == 0)),
                        _ => tile::<L, 1>(rows, (from, totals), groups, out, blocks * 8, (pair, t == 0)),
                    };
                }
            }
            first = end;
        }
    }
}

/// The totals of a token.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn totals<L: Layout>(to: &mut [MaybeUninit<f32>], x: Tokens) {
    unsafe {
        let p = L::P;
        if p.min || p.zero == 0 {
            return;
        }
        for (i, to) in to.iter_mut().enumerate() {
            let total = if p.group == 16 { *x.sum.add(i) } else { *x.sum.add(2 * i) + *x.sum.add(2 * i + 1) };
            to.write(total * -f32::from(p.zero));
        }
    }
}

/// 16 rows by `T` tokens, beside which are their totals; returns `T`. The first pass over the rows asks for the next ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn tile<L: Layout, const T: usize>(
    rows: [Rows; 2],
    (x, totals): (Tokens, *const f32),
    groups: usize,
    out: *mut f32,
    next: usize,
    (pair, first): (bool, bool),
) -> usize {
    unsafe {
        let each = scales::<L>(groups);
        let mut acc = [_mm512_setzero_ps(); T];
        for g in 0..groups {
            if first {
                ask_group::<L>(g, rows[0]);
                ask_group::<L>(g, rows[1]);
            }
            add::<L, T, 0>(rows, x, (totals, each), g, &mut acc);
            if L::P.group == 16 {
                add::<L, T, 1>(rows, x, (totals, each), g, &mut acc);
            }
        }
        for (t, v) in acc.into_iter().enumerate() {
            let to = out.add(t * next);
            if pair {
                _mm512_storeu_ps(to, v);
            } else {
                _mm256_storeu_ps(to, _mm512_castps512_ps256(v));
            }
        }
        T
    }
}

/// The products of those elements of group `g` that have its scale number `SUB`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn add<L: Layout, const T: usize, const SUB: usize>(
    rows: [Rows; 2],
    x: Tokens,
    (totals, each): (*const f32, usize),
    g: usize,
    acc: &mut [__m512; T],
) {
    unsafe {
        let p = L::P;
        let subs = 32 / p.group as usize;
        let data = [rows[0].group::<L>(g), rows[1].group::<L>(g)];
        let mut dot = [_mm512_setzero_si512(); T];
        quads!(I, {
            if I * subs / 8 == SUB {
                let w = quad::<L, I>(data);
                for (t, dot) in dot.iter_mut().enumerate() {
                    *dot = dot4::<I>(*dot, w, x.q.add(t * x.next[0] + g * 32));
                }
            }
        });
        let [s, m] = sides::<L>(rows, g, SUB);
        for (t, (acc, dot)) in acc.iter_mut().zip(dot).enumerate() {
            let d = _mm512_cvtepi32_ps(dot);
            let xs = _mm512_set1_ps(*x.at(t).scale.add(g));
            *acc = match (p.min, p.zero) {
                (true, _) => {
                    let sum = x.at(t).sum.add(g * 2);
                    let total = if subs == 2 { *sum.add(SUB) } else { *sum + *sum.add(1) };
                    let with = _mm512_fmadd_ps(m, _mm512_set1_ps(total), *acc);
                    _mm512_fmadd_ps(s, _mm512_mul_ps(d, xs), with)
                }
                (false, 0) => _mm512_fmadd_ps(s, _mm512_mul_ps(d, xs), *acc),
                (false, _) => {
                    let shift = _mm512_set1_ps(*totals.add(t * each + g * subs + SUB));
                    _mm512_fmadd_ps(s, _mm512_fmadd_ps(d, xs, shift), *acc)
                }
            };
        }
    }
}

/// Adds to each lane the sum of its four bytes by elements `4 * I ..` of a group of activations. Products stay in the order in which they
/// are written: a compiler leaves those of one token for the end of the group, where each waits for the one before.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot4<const I: usize>(mut sum: __m512i, w: __m512i, group: *const u8) -> __m512i {
    // SAFETY: the caller's processor has the instruction, and its group 32 bytes.
    unsafe {
        std::arch::asm!(
            "vpdpbusd {sum}, {w}, dword ptr [{group} + {at}]{{1to16}}",
            sum = inout(zmm_reg) sum,
            w = in(zmm_reg) w,
            group = in(reg) group,
            at = const 4 * I,
            options(readonly, nostack, preserves_flags)
        );
    }
    sum
}

/// The bytes of elements `4 * I ..` of a group of 16 rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn quad<L: Layout, const I: usize>(data: [*const u8; 2]) -> __m512i {
    unsafe {
        let [a, b] = [part::<L, 8, I>(data), part::<L, 4, I>(data)];
        let [c, d] = [part::<L, 2, I>(data), part::<L, 1, I>(data)];
        _mm512_or_si512(_mm512_or_si512(a, b), _mm512_or_si512(c, d))
    }
}

/// Those of their bits that are in the part of width `W`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn part<L: Layout, const W: u8, const I: usize>([a, b]: [*const u8; 2]) -> __m512i {
    unsafe {
        let Some(Field { word, by, mask }) = (const { field(L::P, W, I) }) else { return _mm512_setzero_si512() };
        let low = _mm512_castsi256_si512(_mm256_loadu_si256(a.add(word * 32).cast()));
        let word = _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(b.add(word * 32).cast()));
        let count = _mm_cvtsi32_si128(by.abs());
        let word = if by < 0 { _mm512_sll_epi16(word, count) } else { _mm512_srl_epi16(word, count) };
        _mm512_and_si512(word, _mm512_set1_epi8(mask))
    }
}

/// Scales and minima of 16 rows, as [`Rows::sides`] has those of eight.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
pub unsafe fn sides<L: Layout>([a, b]: [Rows; 2], g: usize, sub: usize) -> [__m512; 2] {
    unsafe {
        let ([s, m], [t, n]) = (a.sides::<__m256, L>(g, sub), b.sides::<__m256, L>(g, sub));
        [join(s, t), join(m, n)]
    }
}

//! Attention of many rows, as `many.rs` computes it, by products of tiles of bf16.

use core::arch::x86_64::*;
use core::mem::MaybeUninit;

use super::super::Call;
use super::super::ahead::ask_rows;
use super::super::avx512::{attend as attend_rows, transpose};
use super::super::lanes::{BLOCK, Block, State, Weights, finish, positions, softmax};
use super::super::rows::{Job, ROWS, jobs};
use super::super::vector::{Lanes, size};
use super::pairs::{Place, Product};
use super::tile::Tiles;

/// Rows from which on tiles are worth filling.
const FEW: usize = 8;
/// Largest head that there is room for.
const DIM: usize = 256;

/// Memory of a job.
#[repr(C, align(64))]
struct Scratch {
    /// `[dim / 2, lanes, 2]`
    queries: [MaybeUninit<u16>; DIM * ROWS],
    /// `[BLOCK, dim]`
    keys: [MaybeUninit<u16>; BLOCK * DIM],
    /// `[dim, BLOCK]`
    values: [MaybeUninit<u16>; DIM * BLOCK],
    /// `[BLOCK, lanes]`
    scores: [MaybeUninit<f32>; BLOCK * ROWS],
    /// `[BLOCK / 2, lanes, 2]`
    weights: [MaybeUninit<u16>; BLOCK * ROWS],
    /// `[dim, lanes]`
    sums: [MaybeUninit<f32>; DIM * ROWS],
}

/// [`MicroOp::Attend`](marquetry_ir::loops::MicroOp::Attend) over bf16 numbers: `D` is 0 for a cache of f32, 1 for f16, 2 for bf16.
pub unsafe extern "C" fn attend<const D: u8>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Attend` says, on a CPU that has the level.
    unsafe {
        let fits = |j: &Job| j.rows >= FEW && j.dim.is_multiple_of(32) && j.dim <= DIM && !j.parts;
        if jobs(Call { args, sizes }).all(|j| fits(&j)) {
            let mut tiles = Tiles::default();
            jobs(Call { args, sizes }).for_each(|job| rows::<D>(job, &mut tiles));
        } else {
            attend_rows::<D>(args, sizes);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,f16c")]
unsafe fn rows<const D: u8>(job: Job, tiles: &mut Tiles) {
    unsafe {
        let mut scratch = MaybeUninit::<Scratch>::uninit();
        let s = scratch.as_mut_ptr();
        let queries = (&raw mut (*s).queries).cast::<u16>();
        let sums = (&raw mut (*s).sums).cast::<f32>();
        let lanes = job.rows.next_multiple_of(16);
        arrange(job, queries, lanes);
        for i in (0..job.dim * lanes).step_by(16) {
            _mm512_store_ps(sums.add(i), _mm512_setzero_ps());
        }
        let mut state = State::<__m512>::new(job);
        let (mut at, end) = positions(job);
        while at < end {
            let count = BLOCK.min(end - at);
            block::<D>(job, (at, count), s, lanes, &mut state, tiles);
            at += count;
        }
        finish(job, sums, lanes, &state);
    }
}

/// Two vectors rounded to bf16, number by number: `a` in the lower halves of lanes, `b` in the upper ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn interleaved(a: __m512, b: __m512) -> __m512i {
    let order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
        16, 0,
    );
    _mm512_permutexvar_epi16(order, following(a, b))
}

/// Two vectors rounded to bf16, one after the other.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn following(a: __m512, b: __m512) -> __m512i {
    // SAFETY: both are 512 bits of plain data.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(b, a)) }
}

/// Queries as `[dim / 2, lanes, 2]`; lanes without a row are zero.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
unsafe fn arrange(job: Job, to: *mut u16, lanes: usize) {
    unsafe {
        for r in (0..lanes).step_by(16) {
            for d in (0..job.dim).step_by(32) {
                let mut rows = [_mm512_setzero_ps(); 16];
                for (i, row) in rows.iter_mut().enumerate().take(job.rows - r) {
                    let q = job.q.add((r + i) * job.next[0] + d);
                    *row = _mm512_castsi512_ps(following(_mm512_loadu_ps(q), _mm512_loadu_ps(q.add(16))));
                }
                for (i, pair) in transpose(&rows).into_iter().enumerate() {
                    _mm512_store_ps(to.add(((d / 2 + i) * lanes + r) * 2).cast(), pair);
                }
            }
        }
    }
}

/// Adds the weighted values of `count` positions from `at` on to the sums.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,f16c")]
unsafe fn block<const D: u8>(
    job: Job,
    (at, count): (usize, usize),
    s: *mut Scratch,
    lanes: usize,
    state: &mut State<__m512>,
    tiles: &mut Tiles,
) {
    unsafe {
        let keys = (&raw mut (*s).keys).cast::<u16>();
        let values = (&raw mut (*s).values).cast::<u16>();
        let scores = (&raw mut (*s).scores).cast::<f32>();
        let weights = (&raw mut (*s).weights).cast::<u16>();
        let queries = (&raw mut (*s).queries).cast::<u8>();
        // Whole groups of 32 positions, of which those beyond the last are not seen.
        let all = count.next_multiple_of(32);
        let mut slots = [0usize; BLOCK];
        let mut i = 0;
        while i < count {
            let chunk = job.chunk(at + i, at + count, BLOCK);
            ask_rows::<D>(job, job.values, chunk);
            for j in 0..chunk.count {
                slots[i + j] = chunk.slot + j * job.slot;
            }
            i += chunk.count;
        }
        let last = slots[count - 1];
        slots[count..].fill(last);
        for (i, slot) in slots[..all].iter().enumerate() {
            for d in (0..job.dim).step_by(32) {
                let from = job.keys.add((slot + d) * size::<D>());
                let both = following(__m512::load::<D>(from), __m512::load::<D>(from.add(16 * size::<D>())));
                _mm512_store_si512(keys.add(i * job.dim + d).cast(), both);
            }
        }
        let product = Product {
            place: Place {
                acc: scores,
                acc_next: lanes * 4,
                w: queries,
                w_next: lanes * 4,
                x: keys.cast(),
                x_next: job.dim * 2,
            },
            tokens: all,
            rows: lanes,
            groups: job.dim / 32,
        };
        product.run(tiles, false);
        let sums = (&raw mut (*s).sums).cast::<f32>();
        softmax(job, Block { at, count, all, scores, lanes, sums }, &Pairs { to: weights, lanes }, state);
        transposed::<D>(job, &slots[..all], values);
        let product = Product {
            place: Place {
                acc: sums,
                acc_next: lanes * 4,
                w: weights.cast(),
                w_next: lanes * 4,
                x: values.cast(),
                x_next: BLOCK * 2,
            },
            tokens: job.dim,
            rows: lanes,
            groups: all / 32,
        };
        product.run(tiles, true);
    }
}

/// Values of positions as `[dim, BLOCK]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16,avx2,f16c")]
unsafe fn transposed<const D: u8>(job: Job, slots: &[usize], to: *mut u16) {
    unsafe {
        for (g, slots) in slots.chunks_exact(32).enumerate() {
            for d in (0..job.dim).step_by(16) {
                let mut pairs = [_mm512_setzero_ps(); 16];
                for (i, pair) in pairs.iter_mut().enumerate() {
                    let value = |j: usize| __m512::load::<D>(job.values.add((slots[j] + d) * size::<D>()));
                    *pair = _mm512_castsi512_ps(interleaved(value(2 * i), value(2 * i + 1)));
                }
                for (i, row) in transpose(&pairs).into_iter().enumerate() {
                    _mm512_store_ps(to.add((d + i) * BLOCK + 32 * g).cast(), row);
                }
            }
        }
    }
}

/// Weights rounded to bf16, of two positions side by side: `[BLOCK / 2, lanes, 2]`.
struct Pairs {
    to: *mut u16,
    lanes: usize,
}

impl Weights<__m512> for Pairs {
    const ROUGH: bool = true;

    #[inline(always)]
    unsafe fn put(&self, position: usize, lane: usize, two: [__m512; 2]) -> [__m512; 2] {
        // SAFETY: there is room for all positions and lanes; who calls has the vectors.
        unsafe {
            let both = interleaved(two[0], two[1]);
            _mm512_store_si512(self.to.add((position / 2 * self.lanes + lane) * 2).cast(), both);
            // Sums are of what values are multiplied by: one large weight beside small ones is 1 after all.
            let upper = _mm512_and_si512(both, _mm512_set1_epi32(!0xffff));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)), _mm512_castsi512_ps(upper)]
        }
    }
}

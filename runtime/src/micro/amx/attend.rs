//! Attention of many rows: scores and weighted values as products of tiles, softmax on the fly in between.
//!
//! Positions are rows of what is multiplied and queries its columns, so that a query's scores are one lane of the vectors below each
//! other, and softmax needs no sums across lanes:
//!
//! ```text
//! scores[positions, queries]  = keys[positions, features] * queries[features, queries]
//! sums[features, queries]    += values[features, positions] * weights[positions, queries]
//! ```

use core::arch::x86_64::*;
use core::mem::MaybeUninit;

use super::super::Call;
use super::super::ahead::ask_rows;
use super::super::avx512::{attend as attend_rows, load16, tanh, transpose};
use super::super::eight::size;
use super::super::rows::{Job, ROWS, jobs};
use super::pairs::{Place, Product};
use super::tile::Tiles;

/// Rows from which on tiles are worth filling.
const FEW: usize = 8;
/// Positions of a block.
const BLOCK: usize = 64;
/// Largest head that there is room for.
const DIM: usize = 256;
/// Vectors that hold a number of each row.
const LANES: usize = ROWS / 16;
/// By how much, in powers of two, scores exceed the largest so far before sums are rescaled. Weights stay below its power of two.
const SLACK: f32 = 8.0;
/// Score of a position that is not seen.
const UNSEEN: f32 = -1e30;

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

/// What is known of each row, as lanes. Lanes without a row repeat the last one.
struct State {
    /// Powers of two that weights are relative to.
    max: [__m512; LANES],
    total: [__m512; LANES],
    first: [__m512i; LANES],
    last: [__m512i; LANES],
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
        let mut state = begin(job);
        let (mut low, mut high) = (i64::MAX, i64::MIN);
        for r in 0..job.rows {
            let (first, last) = job.range(r);
            (low, high) = (low.min(first), high.max(last));
        }
        let (mut at, end) = (low.max(0) as usize, (high + 1).max(0) as usize);
        while at < end {
            let count = BLOCK.min(end - at);
            block::<D>(job, (at, count), s, lanes, &mut state, tiles);
            at += count;
        }
        finish(job, sums, lanes, &state);
    }
}

/// First and last positions by lane.
#[target_feature(enable = "avx512f")]
unsafe fn begin(job: Job) -> State {
    unsafe {
        let mut first = [0i32; ROWS];
        let mut last = [0i32; ROWS];
        for r in 0..ROWS {
            let (a, b) = job.range(r.min(job.rows - 1));
            (first[r], last[r]) = (a as i32, b as i32);
        }
        let mut state = State {
            max: [_mm512_set1_ps(UNSEEN); LANES],
            total: [_mm512_setzero_ps(); LANES],
            first: [_mm512_setzero_si512(); LANES],
            last: [_mm512_setzero_si512(); LANES],
        };
        for i in 0..LANES {
            state.first[i] = _mm512_loadu_si512(first.as_ptr().add(16 * i).cast());
            state.last[i] = _mm512_loadu_si512(last.as_ptr().add(16 * i).cast());
        }
        state
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
    state: &mut State,
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
                let both = following(load16::<D>(from), load16::<D>(from.add(16 * size::<D>())));
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
        softmax(job, (at, count, all), (scores, weights), (&raw mut (*s).sums).cast(), lanes, state);
        transposed::<D>(job, &slots[..all], values);
        let product = Product {
            place: Place {
                acc: (&raw mut (*s).sums).cast(),
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
                    let value = |j: usize| load16::<D>(job.values.add((slots[j] + d) * size::<D>()));
                    *pair = _mm512_castsi512_ps(interleaved(value(2 * i), value(2 * i + 1)));
                }
                for (i, row) in transpose(&pairs).into_iter().enumerate() {
                    _mm512_store_ps(to.add((d + i) * BLOCK + 32 * g).cast(), row);
                }
            }
        }
    }
}

/// Turns scores into weights, and rescales what was summed with a much smaller maximum.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
unsafe fn softmax(
    job: Job,
    (at, count, all): (usize, usize, usize),
    (scores, weights): (*mut f32, *mut u16),
    sums: *mut f32,
    lanes: usize,
    state: &mut State,
) {
    unsafe {
        let (begin, end) = (_mm512_set1_epi32(at as i32), _mm512_set1_epi32((at + count - 1) as i32));
        for i in 0..lanes / 16 {
            // Does every lane see every position?
            let (first, last) = (state.first[i], state.last[i]);
            let outside = _mm512_cmpgt_epi32_mask(first, begin) | _mm512_cmplt_epi32_mask(last, end);
            let last = _mm512_min_epi32(last, end);
            let column = scores.add(16 * i);
            let whole = outside == 0 && count == all;
            let (top, factor) = largest(job, (column, lanes), (at, all), (!whole).then_some((first, last)));
            let old = state.max[i];
            let far = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(top, _mm512_add_ps(old, _mm512_set1_ps(SLACK)));
            if far != 0 {
                let new = _mm512_mask_mov_ps(old, far, top);
                // What begins is zero.
                let shrink = power(_mm512_sub_ps(old, new));
                state.max[i] = new;
                state.total[i] = _mm512_mul_ps(state.total[i], shrink);
                for d in 0..job.dim {
                    let sum = sums.add(d * lanes + 16 * i);
                    _mm512_store_ps(sum, _mm512_mul_ps(_mm512_load_ps(sum), shrink));
                }
            }
            let (factor, max) = (_mm512_set1_ps(factor), state.max[i]);
            let mut total = [state.total[i], _mm512_setzero_ps()];
            for j in (0..all).step_by(2) {
                let mut two = [_mm512_setzero_ps(); 2];
                for (k, w) in two.iter_mut().enumerate() {
                    let score = _mm512_load_ps(column.add((j + k) * lanes));
                    *w = power(_mm512_fmsub_ps(score, factor, max));
                    if !whole {
                        let seen = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(score, _mm512_set1_ps(0.5 * UNSEEN));
                        *w = _mm512_maskz_mov_ps(seen, *w);
                    }
                }
                let both = interleaved(two[0], two[1]);
                _mm512_store_si512(weights.add((j / 2 * lanes + 16 * i) * 2).cast(), both);
                // Sums are of what values are multiplied by: one large weight beside small ones is 1 after all.
                let upper = _mm512_and_si512(both, _mm512_set1_epi32(!0xffff));
                total[0] = _mm512_add_ps(total[0], _mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)));
                total[1] = _mm512_add_ps(total[1], _mm512_castsi512_ps(upper));
            }
            state.total[i] = _mm512_add_ps(total[0], total[1]);
        }
    }
}

/// The largest scores of 16 rows as powers of two, and the factor that makes the scores such. Those of positions that a row does not see
/// become [`UNSEEN`].
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn largest(
    job: Job,
    (column, lanes): (*mut f32, usize),
    (at, all): (usize, usize),
    seen: Option<(__m512i, __m512i)>,
) -> (__m512, f32) {
    unsafe {
        let (log2_e, mut factor) = (std::f32::consts::LOG2_E, job.scale * std::f32::consts::LOG2_E);
        // What is larger after a negative factor is not before it.
        if job.cap != 0.0 || factor <= 0.0 {
            for j in 0..all {
                let mut s = _mm512_mul_ps(_mm512_load_ps(column.add(j * lanes)), _mm512_set1_ps(job.scale));
                if job.cap != 0.0 {
                    let cap = _mm512_set1_ps(job.cap);
                    s = _mm512_mul_ps(tanh(_mm512_div_ps(s, cap)), cap);
                }
                _mm512_store_ps(column.add(j * lanes), s);
            }
            factor = log2_e;
        }
        let unseen = _mm512_set1_ps(UNSEEN);
        let mut top = unseen;
        for j in 0..all {
            let score = column.add(j * lanes);
            let mut s = _mm512_load_ps(score);
            if let Some((first, last)) = seen {
                let p = _mm512_set1_epi32((at + j) as i32);
                let inside = _mm512_cmple_epi32_mask(first, p) & _mm512_cmple_epi32_mask(p, last);
                s = _mm512_mask_mov_ps(unseen, inside, s);
                _mm512_store_ps(score, s);
            }
            top = _mm512_max_ps(top, s);
        }
        (_mm512_max_ps(_mm512_mul_ps(top, _mm512_set1_ps(factor)), unseen), factor)
    }
}

/// `2^x` within 8e-5 of it, where it is no larger than the largest float; a fiftieth of what rounding to bf16 does.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn power(x: __m512) -> __m512 {
    let n = _mm512_roundscale_ps::<8>(x);
    let f = _mm512_sub_ps(x, n);
    // The polynomial of degree 3 with the least relative error on -1/2..1/2.
    let mut p = _mm512_set1_ps(0.055_171_67);
    for c in [0.242_611_13, 0.693_260_97, 0.999_928_06] {
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
    }
    _mm512_scalef_ps(p, n)
}

/// Sums divided by the sums of weights, as rows.
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn finish(job: Job, sums: *const f32, lanes: usize, state: &State) {
    unsafe {
        for r in (0..lanes).step_by(16) {
            let inverse = _mm512_div_ps(_mm512_set1_ps(1.0), state.total[r / 16]);
            for d in (0..job.dim).step_by(16) {
                let mut columns = [_mm512_setzero_ps(); 16];
                for (i, column) in columns.iter_mut().enumerate() {
                    *column = _mm512_mul_ps(_mm512_load_ps(sums.add((d + i) * lanes + r)), inverse);
                }
                for (i, row) in transpose(&columns).into_iter().enumerate().take(job.rows - r) {
                    _mm512_storeu_ps(job.out.add((r + i) * job.next[1] + d), row);
                }
            }
        }
    }
}

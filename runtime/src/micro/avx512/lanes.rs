//! Attention with queries as lanes: a query's scores are one lane of vectors that lie below each other, so that softmax needs no sums
//! across lanes. What multiplies is another's matter.

use core::arch::x86_64::*;

use super::super::rows::{Job, ROWS};
use super::math::{power, tanh, transpose};

/// Positions of a block.
pub const BLOCK: usize = 64;
/// Vectors that hold a number of each row.
const LANES: usize = ROWS / 16;
/// By how much, in powers of two, scores exceed the largest so far before sums are rescaled. Weights stay below its power of two.
const SLACK: f32 = 8.0;
/// Score of a position that is not seen.
const UNSEEN: f32 = -1e30;

/// What is known of each row, as lanes. Lanes without a row repeat the last one.
pub struct State {
    /// Powers of two that weights are relative to.
    max: [__m512; LANES],
    total: [__m512; LANES],
    first: [__m512i; LANES],
    last: [__m512i; LANES],
}

impl State {
    /// Before any position.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn new(job: Job) -> State {
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

    /// Positions that some row sees: the first, and the one after the last.
    pub unsafe fn positions(job: Job) -> (usize, usize) {
        let (mut low, mut high) = (i64::MAX, i64::MIN);
        for r in 0..job.rows {
            // SAFETY: the row is one of the job's.
            let (first, last) = unsafe { job.range(r) };
            (low, high) = (low.min(first), high.max(last));
        }
        (low.max(0) as usize, (high + 1).max(0) as usize)
    }
}

/// Scores of a block, and what it is added to.
#[derive(Clone, Copy)]
pub struct Block {
    /// The first position, and how many there are.
    pub at: usize,
    pub count: usize,
    /// How many there is room for: those beyond `count` are not seen.
    pub all: usize,
    /// `[all, lanes]`
    pub scores: *mut f32,
    pub lanes: usize,
    /// `[dim, lanes]`
    pub sums: *mut f32,
}

/// Where weights of two positions go, the even one of them and its lane given, and what of them is added to the sum of weights.
pub trait Weights {
    /// Is `2^x` within 8e-5 of it good enough?
    const ROUGH: bool;
    unsafe fn put(&self, position: usize, lane: usize, two: [__m512; 2]) -> [__m512; 2];
}

/// Turns scores into weights, and rescales what was summed with a much smaller maximum. It has the instruction set of its caller, as weights
/// may need more than others.
#[inline(always)]
pub unsafe fn softmax<W: Weights>(job: Job, b: Block, weights: &W, state: &mut State) {
    unsafe {
        let (begin, end) = (_mm512_set1_epi32(b.at as i32), _mm512_set1_epi32((b.at + b.count) as i32 - 1));
        // Who is told the largest score wants to know it exactly.
        let slack = _mm512_set1_ps(if job.parts { 0.0 } else { SLACK });
        for i in 0..b.lanes / 16 {
            // Does every lane see every position?
            let (first, last) = (state.first[i], state.last[i]);
            let outside = _mm512_cmpgt_epi32_mask(first, begin) | _mm512_cmplt_epi32_mask(last, end);
            let last = _mm512_min_epi32(last, end);
            let column = b.scores.add(16 * i);
            let whole = outside == 0 && b.count == b.all;
            let (top, factor) = largest(job, b, column, (!whole).then_some((first, last)));
            let old = state.max[i];
            let far = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(top, _mm512_add_ps(old, slack));
            if far != 0 {
                let new = _mm512_mask_mov_ps(old, far, top);
                // What begins is zero.
                let shrink = power::<false>(_mm512_sub_ps(old, new));
                state.max[i] = new;
                state.total[i] = _mm512_mul_ps(state.total[i], shrink);
                for d in 0..job.dim {
                    let sum = b.sums.add(d * b.lanes + 16 * i);
                    _mm512_store_ps(sum, _mm512_mul_ps(_mm512_load_ps(sum), shrink));
                }
            }
            let (factor, max) = (_mm512_set1_ps(factor), state.max[i]);
            let mut total = [state.total[i], _mm512_setzero_ps()];
            for j in (0..b.all).step_by(2) {
                let mut two = [_mm512_setzero_ps(); 2];
                for (k, w) in two.iter_mut().enumerate() {
                    let score = _mm512_load_ps(column.add((j + k) * b.lanes));
                    let x = _mm512_fmsub_ps(score, factor, max);
                    *w = if W::ROUGH { power::<true>(x) } else { power::<false>(x) };
                    if !whole {
                        let seen = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(score, _mm512_set1_ps(0.5 * UNSEEN));
                        *w = _mm512_maskz_mov_ps(seen, *w);
                    }
                }
                let [even, odd] = weights.put(j, 16 * i, two);
                total[0] = _mm512_add_ps(total[0], even);
                total[1] = _mm512_add_ps(total[1], odd);
            }
            state.total[i] = _mm512_add_ps(total[0], total[1]);
        }
    }
}

/// The largest scores of 16 rows as powers of two, and the factor that makes the scores such. Those of positions that a row does not see
/// become [`UNSEEN`].
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn largest(job: Job, b: Block, column: *mut f32, seen: Option<(__m512i, __m512i)>) -> (__m512, f32) {
    unsafe {
        let (log2_e, mut factor) = (std::f32::consts::LOG2_E, job.scale * std::f32::consts::LOG2_E);
        // What is larger after a negative factor is not before it.
        if job.cap != 0.0 || factor <= 0.0 {
            for j in 0..b.all {
                let mut s = _mm512_mul_ps(_mm512_load_ps(column.add(j * b.lanes)), _mm512_set1_ps(job.scale));
                if job.cap != 0.0 {
                    let cap = _mm512_set1_ps(job.cap);
                    s = _mm512_mul_ps(tanh(_mm512_div_ps(s, cap)), cap);
                }
                _mm512_store_ps(column.add(j * b.lanes), s);
            }
            factor = log2_e;
        }
        let unseen = _mm512_set1_ps(UNSEEN);
        let mut top = unseen;
        for j in 0..b.all {
            let score = column.add(j * b.lanes);
            let mut s = _mm512_load_ps(score);
            if let Some((first, last)) = seen {
                let p = _mm512_set1_epi32((b.at + j) as i32);
                let inside = _mm512_cmple_epi32_mask(first, p) & _mm512_cmple_epi32_mask(p, last);
                s = _mm512_mask_mov_ps(unseen, inside, s);
                _mm512_store_ps(score, s);
            }
            top = _mm512_max_ps(top, s);
        }
        (_mm512_max_ps(_mm512_mul_ps(top, _mm512_set1_ps(factor)), unseen), factor)
    }
}

/// Sums as rows: divided by the sums of weights, or in parts with those and the largest scores behind them.
#[target_feature(enable = "avx512f,avx512dq")]
pub unsafe fn finish(job: Job, sums: *const f32, lanes: usize, state: &State) {
    unsafe {
        for r in (0..lanes).step_by(16) {
            let total = state.total[r / 16];
            let one = _mm512_set1_ps(1.0);
            let factor = if job.parts { one } else { _mm512_div_ps(one, total) };
            for d in (0..job.dim).step_by(16) {
                let mut columns = [_mm512_setzero_ps(); 16];
                for (i, column) in columns.iter_mut().enumerate() {
                    *column = _mm512_mul_ps(_mm512_load_ps(sums.add((d + i) * lanes + r)), factor);
                }
                for (i, row) in transpose(&columns).into_iter().enumerate().take(job.rows - r) {
                    _mm512_storeu_ps(job.out.add((r + i) * job.next[1] + d), row);
                }
            }
            if job.parts {
                let max = _mm512_mul_ps(state.max[r / 16], _mm512_set1_ps(std::f32::consts::LN_2));
                let [mut tops, mut totals] = [[0f32; 16]; 2];
                _mm512_storeu_ps(tops.as_mut_ptr(), max);
                _mm512_storeu_ps(totals.as_mut_ptr(), total);
                for i in 0..16.min(job.rows - r) {
                    job.leave(r + i, tops[i], totals[i]);
                }
            }
        }
    }
}

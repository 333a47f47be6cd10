//! Attention with queries as lanes: a query's scores are one lane of vectors that lie below each other, so that softmax needs no sums
//! across lanes. What multiplies is another's matter.
//!
//! As all that is written over [`Lanes`], it is inlined into functions that have the instruction set, and has no closures.

use super::rows::{Job, ROWS};
use super::vector::Lanes;

/// Positions of a block.
pub const BLOCK: usize = 64;
/// Vectors that hold a number of each row, at most.
const VECTORS: usize = ROWS / 8;
/// By how much, in powers of two, scores exceed the largest so far before sums are rescaled. Weights stay below its power of two.
const SLACK: f32 = 8.0;
/// Score of a position that is not seen.
const UNSEEN: f32 = -1e30;

/// What is known of each row, as lanes. Lanes without a row repeat the last one.
pub struct State<L> {
    /// Powers of two that weights are relative to.
    max: [L; VECTORS],
    total: [L; VECTORS],
    /// First and last positions, as floats, which are exact below 2^24.
    first: [L; VECTORS],
    last: [L; VECTORS],
}

impl<L: Lanes> State<L> {
    /// Before any position.
    #[inline(always)]
    pub unsafe fn new(job: Job) -> State<L> {
        unsafe {
            let (mut first, mut last) = ([0f32; ROWS], [0f32; ROWS]);
            for r in 0..ROWS {
                let (a, b) = job.range(r.min(job.rows - 1));
                (first[r], last[r]) = (a as f32, b as f32);
            }
            let (none, zero) = ([L::splat(UNSEEN); VECTORS], [L::splat(0.0); VECTORS]);
            let mut state = State { max: none, total: zero, first: zero, last: zero };
            for i in 0..ROWS / L::N {
                state.first[i] = L::load::<0>(first.as_ptr().add(L::N * i).cast());
                state.last[i] = L::load::<0>(last.as_ptr().add(L::N * i).cast());
            }
            state
        }
    }
}

/// Positions that some row sees: the first, and the one after the last.
#[inline(always)]
pub unsafe fn positions(job: Job) -> (usize, usize) {
    let (mut low, mut high) = (i64::MAX, i64::MIN);
    for r in 0..job.rows {
        // SAFETY: the row is one of the job's.
        let (first, last) = unsafe { job.range(r) };
        (low, high) = (low.min(first), high.max(last));
    }
    (low.max(0) as usize, (high + 1).max(0) as usize)
}

/// Scores of a block, and what it is added to.
#[derive(Clone, Copy)]
pub struct Block {
    /// The first position, and how many there are.
    pub at: usize,
    pub count: usize,
    /// How many there is room for, an even number: those beyond `count` are not seen.
    pub all: usize,
    /// `[all, lanes]`
    pub scores: *mut f32,
    pub lanes: usize,
    /// `[dim, lanes]`
    pub sums: *mut f32,
}

/// Where weights of two positions go, the even one of them and its lane given, and what of them is added to the sum of weights.
pub trait Weights<L> {
    /// Is `2^x` within 8e-5 of it good enough?
    const ROUGH: bool;
    unsafe fn put(&self, position: usize, lane: usize, two: [L; 2]) -> [L; 2];
}

/// Turns scores into weights, and rescales what was summed with a much smaller maximum.
#[inline(always)]
pub unsafe fn softmax<L: Lanes, W: Weights<L>>(job: Job, b: Block, weights: &W, state: &mut State<L>) {
    unsafe {
        let (begin, end) = (b.at as f32, (b.at + b.count) as f32 - 1.0);
        // Who is told the largest score wants to know it exactly.
        let slack = L::splat(if job.parts { 0.0 } else { SLACK });
        for i in 0..b.lanes / L::N {
            // Does a lane miss a position?
            let (first, last) = (state.first[i], state.last[i]);
            let missed = first.sub(L::splat(begin)).max(L::splat(end).sub(last)).largest() > 0.0 || b.count < b.all;
            let last = last.select(L::splat(end), L::splat(end).sub(last));
            let column = b.scores.add(L::N * i);
            let (top, factor) = largest::<L>(job, b, column, missed.then_some((first, last)));
            let old = state.max[i];
            let near = old.add(slack).sub(top);
            if L::splat(0.0).sub(near).largest() > 0.0 {
                let new = old.select(top, near);
                // What begins is zero.
                let shrink = old.sub(new).exp2::<false>();
                state.max[i] = new;
                state.total[i] = state.total[i].mul(shrink);
                for d in 0..job.dim {
                    let sum = b.sums.add(d * b.lanes + L::N * i);
                    L::load::<0>(sum.cast()).mul(shrink).store(sum);
                }
            }
            let (factor, below) = (L::splat(factor), L::splat(0.0).sub(state.max[i]));
            let mut total = [state.total[i], L::splat(0.0)];
            for j in (0..b.all).step_by(2) {
                let mut two = [L::splat(0.0); 2];
                for (k, w) in two.iter_mut().enumerate() {
                    let score = L::load::<0>(column.add((j + k) * b.lanes).cast());
                    let x = score.fma(factor, below);
                    *w = if W::ROUGH { x.exp2::<true>() } else { x.exp2::<false>() };
                    if missed {
                        *w = w.select(L::splat(0.0), score.sub(L::splat(0.5 * UNSEEN)));
                    }
                }
                let [even, odd] = weights.put(j, L::N * i, two);
                total = [total[0].add(even), total[1].add(odd)];
            }
            state.total[i] = total[0].add(total[1]);
        }
    }
}

/// The largest scores of a vector of rows as powers of two, and the factor that makes the scores such. Those of positions that a row does
/// not see become [`UNSEEN`].
#[inline(always)]
unsafe fn largest<L: Lanes>(job: Job, b: Block, column: *mut f32, seen: Option<(L, L)>) -> (L, f32) {
    unsafe {
        let (log2_e, mut factor) = (std::f32::consts::LOG2_E, job.scale * std::f32::consts::LOG2_E);
        // What is larger after a negative factor is not before it.
        if job.cap != 0.0 || factor <= 0.0 {
            for j in 0..b.all {
                let at = column.add(j * b.lanes);
                let mut s = L::load::<0>(at.cast()).mul(L::splat(job.scale));
                if job.cap != 0.0 {
                    let cap = L::splat(job.cap);
                    s = s.div(cap).tanh().mul(cap);
                }
                s.store(at);
            }
            factor = log2_e;
        }
        let unseen = L::splat(UNSEEN);
        let mut top = unseen;
        for j in 0..b.all {
            let score = column.add(j * b.lanes);
            let mut s = L::load::<0>(score.cast());
            if let Some((first, last)) = seen {
                let p = L::splat((b.at + j) as f32);
                s = s.select(unseen, p.sub(first)).select(unseen, last.sub(p));
                s.store(score);
            }
            top = top.max(s);
        }
        (top.mul(L::splat(factor)).max(unseen), factor)
    }
}

/// Sums as rows: divided by the sums of weights, or in parts with those and the largest scores behind them.
#[inline(always)]
pub unsafe fn finish<L: Lanes>(job: Job, sums: *mut f32, lanes: usize, state: &State<L>) {
    unsafe {
        for r in (0..lanes).step_by(L::N) {
            let total = state.total[r / L::N];
            if !job.parts {
                let inverse = L::splat(1.0).div(total);
                for d in 0..job.dim {
                    let sum = sums.add(d * lanes + r);
                    L::load::<0>(sum.cast()).mul(inverse).store(sum);
                }
            }
            for d in (0..job.dim).step_by(L::N) {
                let to = job.out.add(r * job.next[1] + d);
                L::turn((sums.add(d * lanes + r), lanes), L::N, (to, job.next[1]), job.rows - r);
            }
            if job.parts {
                let (mut tops, mut totals) = ([0f32; 16], [0f32; 16]);
                state.max[r / L::N].mul(L::splat(std::f32::consts::LN_2)).store(tops.as_mut_ptr());
                total.store(totals.as_mut_ptr());
                for i in 0..L::N.min(job.rows - r) {
                    job.leave(r + i, tops[i], totals[i]);
                }
            }
        }
    }
}

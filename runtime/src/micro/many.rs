//! Attention of many rows: scores and weighted values as products of matrices, softmax on the fly in between (Milakov and Gimelshein,
//! arXiv 1805.02867).
//!
//! ```text
//! scores[positions, queries]  = keys[positions, features] * queries[features, queries]
//! sums[features, queries]    += values[features, positions] * weights[positions, queries]
//! ```

use core::mem::MaybeUninit;

use super::ahead::ask_rows;
use super::lanes::{BLOCK, Block, State, Weights, finish, positions, softmax};
use super::rows::{Job, ROWS};
use super::vector::{Lanes, size};

/// Largest head that there is room for.
pub const DIM: usize = 256;

/// Positions for which vectors of values have room, one more than there are: the vectors of one position would all compete for the same
/// few lines of the first cache.
const APART: usize = BLOCK + 1;

/// Memory of a job, all of f32. What is multiplied lies as it is read: one number at a time of the left side, vectors of the right.
#[repr(C, align(64))]
struct Scratch {
    /// `[dim, lanes]`
    queries: [MaybeUninit<f32>; DIM * ROWS],
    /// `[BLOCK, dim]`
    keys: [MaybeUninit<f32>; BLOCK * DIM],
    /// `[dim / N, APART, N]`
    values: [MaybeUninit<f32>; DIM * APART],
    /// `[BLOCK, lanes]`, then weights.
    scores: [MaybeUninit<f32>; BLOCK * ROWS],
    /// `[dim, lanes]`
    sums: [MaybeUninit<f32>; DIM * ROWS],
}

/// Rows whose heads are multiples of `L::N` and at most [`DIM`], by tiles of products that have `T` rows, an even divisor of `L::N`.
///
/// # Safety
/// The job is one of [`jobs`](super::rows::jobs); `D` is 0 for a cache of f32, 1 for f16, 2 for bf16. The CPU has the vectors.
#[inline(always)]
pub unsafe fn rows<L: Lanes, const D: u8, const T: usize>(job: Job) {
    unsafe {
        let mut scratch = MaybeUninit::<Scratch>::uninit();
        let s = scratch.as_mut_ptr();
        let queries = (&raw mut (*s).queries).cast::<f32>();
        let sums = (&raw mut (*s).sums).cast::<f32>();
        let lanes = job.rows.next_multiple_of(L::N);
        for r in (0..lanes).step_by(L::N) {
            for d in (0..job.dim).step_by(L::N) {
                let from = job.q.add(r * job.next[0] + d);
                L::turn((from, job.next[0]), job.rows - r, (queries.add(d * lanes + r), lanes), L::N);
            }
        }
        for i in (0..job.dim * lanes).step_by(L::N) {
            L::splat(0.0).store(sums.add(i));
        }
        let mut state = State::<L>::new(job);
        let (mut at, end) = positions(job);
        while at < end {
            let count = BLOCK.min(end - at);
            block::<L, D, T>(job, (at, count), s, lanes, &mut state);
            at += count;
        }
        finish(job, sums, lanes, &state);
    }
}

/// Adds the weighted values of `count` positions from `at` on to the sums.
#[inline(always)]
unsafe fn block<L: Lanes, const D: u8, const T: usize>(
    job: Job,
    (at, count): (usize, usize),
    s: *mut Scratch,
    lanes: usize,
    state: &mut State<L>,
) {
    unsafe {
        let keys = (&raw mut (*s).keys).cast::<f32>();
        let values = (&raw mut (*s).values).cast::<f32>();
        let scores = (&raw mut (*s).scores).cast::<f32>();
        let sums = (&raw mut (*s).sums).cast::<f32>();
        let queries = (&raw const (*s).queries).cast::<f32>();
        // Whole tiles, of which positions beyond the last are not seen: they repeat it.
        let all = count.next_multiple_of(T);
        let mut i = 0;
        while i < count {
            let chunk = job.chunk(at + i, at + count, BLOCK);
            ask_rows::<D>(job, job.values, chunk);
            let next = i + chunk.count;
            for j in i..if next == count { all } else { next } {
                let slot = chunk.slot + (j - i).min(chunk.count - 1) * job.slot;
                for d in (0..job.dim).step_by(L::N) {
                    let at = (slot + d) * size::<D>();
                    L::load::<D>(job.keys.add(at)).store(keys.add(j * job.dim + d));
                    L::load::<D>(job.values.add(at)).store(values.add(d * APART + j * L::N));
                }
            }
            i = next;
        }
        for j in (0..all).step_by(T) {
            let left = Left { from: keys.add(j * job.dim), row: job.dim, inner: 1, count: job.dim };
            tiles::<L, T, false>(left, queries, scores.add(j * lanes), lanes);
        }
        softmax(job, Block { at, count, all, scores, lanes, sums }, &Plain { to: scores, lanes }, state);
        for d in (0..job.dim).step_by(T) {
            let from = values.add(d / L::N * L::N * APART + d % L::N);
            let left = Left { from, row: 1, inner: L::N, count };
            tiles::<L, T, true>(left, scores, sums.add(d * lanes), lanes);
        }
    }
}

/// Weights in f32.
struct Plain {
    to: *mut f32,
    lanes: usize,
}

impl<L: Lanes> Weights<L> for Plain {
    const ROUGH: bool = false;

    #[inline(always)]
    unsafe fn put(&self, position: usize, lane: usize, two: [L; 2]) -> [L; 2] {
        // SAFETY: there is room for all positions and lanes; who calls has the vectors.
        unsafe {
            two[0].store(self.to.add(position * self.lanes + lane));
            two[1].store(self.to.add((position + 1) * self.lanes + lane));
        }
        two
    }
}

/// Numbers `from[i * row + k * inner]` of the rows `i` of a tile, `count` of each.
#[derive(Clone, Copy)]
struct Left {
    from: *const f32,
    row: usize,
    inner: usize,
    count: usize,
}

/// `[T, lanes]` numbers at `acc` are the products with `right[count, lanes]`, or with `ADD` more by them.
#[inline(always)]
unsafe fn tiles<L: Lanes, const T: usize, const ADD: bool>(left: Left, right: *const f32, acc: *mut f32, lanes: usize) {
    unsafe {
        let mut i = 0;
        while i < lanes {
            let (right, acc) = (right.add(i), acc.add(i));
            if lanes - i >= 2 * L::N {
                tile::<L, T, 2, ADD>(left, right, acc, lanes);
                i += 2 * L::N;
            } else {
                tile::<L, T, 1, ADD>(left, right, acc, lanes);
                i += L::N;
            }
        }
    }
}

/// `V` vectors of [`tiles`].
#[inline(always)]
unsafe fn tile<L: Lanes, const T: usize, const V: usize, const ADD: bool>(
    left: Left,
    right: *const f32,
    acc: *mut f32,
    lanes: usize,
) {
    unsafe {
        let mut sums = [[L::splat(0.0); V]; T];
        if ADD {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = L::load::<0>(acc.add(i * lanes + L::N * v).cast());
                }
            }
        }
        for k in 0..left.count {
            let mut r = [L::splat(0.0); V];
            for (v, r) in r.iter_mut().enumerate() {
                *r = L::load::<0>(right.add(k * lanes + L::N * v).cast());
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = L::splat(*left.from.add(i * left.row + k * left.inner));
                for (sum, r) in sums.iter_mut().zip(r) {
                    *sum = x.fma(r, *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                sum.store(acc.add(i * lanes + L::N * v));
            }
        }
    }
}

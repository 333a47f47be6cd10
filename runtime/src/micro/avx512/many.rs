//! Attention of many rows: scores and weighted values as products of matrices, softmax on the fly in between.
//!
//! ```text
//! scores[positions, queries]  = keys[positions, features] * queries[features, queries]
//! sums[features, queries]    += values[features, positions] * weights[positions, queries]
//! ```

use core::arch::x86_64::*;
use core::mem::MaybeUninit;

use super::super::ahead::ask_rows;
use super::super::eight::size;
use super::super::rows::{Job, ROWS};
use super::lanes::{BLOCK, Block, State, Weights, finish, softmax};
use super::math::{load16, transpose};

/// Largest head that there is room for.
pub const DIM: usize = 256;
/// Rows of a tile of products.
const TILE: usize = 8;

/// Memory of a job, all of f32. What is multiplied lies as it is read: one number at a time of the left side, vectors of the right.
#[repr(C, align(64))]
struct Scratch {
    /// `[dim, lanes]`
    queries: [MaybeUninit<f32>; DIM * ROWS],
    /// `[BLOCK, dim]`
    keys: [MaybeUninit<f32>; BLOCK * DIM],
    /// `[dim / 16, BLOCK, 16]`
    values: [MaybeUninit<f32>; DIM * BLOCK],
    /// `[BLOCK, lanes]`, then weights.
    scores: [MaybeUninit<f32>; BLOCK * ROWS],
    /// `[dim, lanes]`
    sums: [MaybeUninit<f32>; DIM * ROWS],
}

/// Rows whose heads are multiples of 16 and at most [`DIM`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx2,f16c")]
pub unsafe fn rows<const D: u8>(job: Job) {
    unsafe {
        let mut scratch = MaybeUninit::<Scratch>::uninit();
        let s = scratch.as_mut_ptr();
        let sums = (&raw mut (*s).sums).cast::<f32>();
        let lanes = job.rows.next_multiple_of(16);
        arrange(job, (&raw mut (*s).queries).cast(), lanes);
        for i in (0..job.dim * lanes).step_by(16) {
            _mm512_store_ps(sums.add(i), _mm512_setzero_ps());
        }
        let mut state = State::new(job);
        let (mut at, end) = State::positions(job);
        while at < end {
            let count = BLOCK.min(end - at);
            block::<D>(job, (at, count), s, lanes, &mut state);
            at += count;
        }
        finish(job, sums, lanes, &state);
    }
}

/// Queries as `[dim, lanes]`; lanes without a row are zero.
#[target_feature(enable = "avx512f")]
unsafe fn arrange(job: Job, to: *mut f32, lanes: usize) {
    unsafe {
        for r in (0..lanes).step_by(16) {
            for d in (0..job.dim).step_by(16) {
                let mut rows = [_mm512_setzero_ps(); 16];
                for (i, row) in rows.iter_mut().enumerate().take(job.rows - r) {
                    *row = _mm512_loadu_ps(job.q.add((r + i) * job.next[0] + d));
                }
                for (i, column) in transpose(&rows).into_iter().enumerate() {
                    _mm512_store_ps(to.add((d + i) * lanes + r), column);
                }
            }
        }
    }
}

/// Adds the weighted values of `count` positions from `at` on to the sums.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx2,f16c")]
unsafe fn block<const D: u8>(job: Job, (at, count): (usize, usize), s: *mut Scratch, lanes: usize, state: &mut State) {
    unsafe {
        let keys = (&raw mut (*s).keys).cast::<f32>();
        let values = (&raw mut (*s).values).cast::<f32>();
        let scores = (&raw mut (*s).scores).cast::<f32>();
        let sums = (&raw mut (*s).sums).cast::<f32>();
        let queries = (&raw const (*s).queries).cast::<f32>();
        // Whole tiles, of which positions beyond the last are not seen: they repeat it.
        let all = count.next_multiple_of(TILE);
        let mut i = 0;
        while i < count {
            let chunk = job.chunk(at + i, at + count, BLOCK);
            ask_rows::<D>(job, job.values, chunk);
            let last = i + chunk.count == count;
            for j in i..if last { all } else { i + chunk.count } {
                let slot = chunk.slot + (j - i).min(chunk.count - 1) * job.slot;
                for d in (0..job.dim).step_by(16) {
                    let at = (slot + d) * size::<D>();
                    _mm512_store_ps(keys.add(j * job.dim + d), load16::<D>(job.keys.add(at)));
                    _mm512_store_ps(values.add(d * BLOCK + j * 16), load16::<D>(job.values.add(at)));
                }
            }
            i += chunk.count;
        }
        for j in (0..all).step_by(TILE) {
            let left = Left { from: keys.add(j * job.dim), row: job.dim, inner: 1, count: job.dim };
            tiles::<false>(left, queries, scores.add(j * lanes), lanes);
        }
        softmax(job, Block { at, count, all, scores, lanes, sums }, &Plain { to: scores, lanes }, state);
        for d in (0..job.dim).step_by(TILE) {
            let left = Left { from: values.add(d / 16 * 16 * BLOCK + d % 16), row: 1, inner: 16, count };
            tiles::<true>(left, scores, sums.add(d * lanes), lanes);
        }
    }
}

/// Weights in f32.
struct Plain {
    to: *mut f32,
    lanes: usize,
}

impl Weights for Plain {
    const ROUGH: bool = false;

    #[inline(always)]
    unsafe fn put(&self, position: usize, lane: usize, two: [__m512; 2]) -> [__m512; 2] {
        // SAFETY: there is room for all positions and lanes; who calls has the vectors.
        unsafe {
            for (i, w) in two.iter().enumerate() {
                *self.to.add((position + i) * self.lanes + lane).cast() = *w;
            }
        }
        two
    }
}

/// Numbers `from[i * row + k * inner]` of [`TILE`] rows `i`, `count` of each.
#[derive(Clone, Copy)]
struct Left {
    from: *const f32,
    row: usize,
    inner: usize,
    count: usize,
}

/// `[TILE, lanes]` numbers at `acc` are the products with `right[count, lanes]`, or with `ADD` more by them.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn tiles<const ADD: bool>(left: Left, right: *const f32, acc: *mut f32, lanes: usize) {
    unsafe {
        let mut i = 0;
        while i < lanes {
            if lanes - i >= 32 {
                tile::<ADD, 2>(left, right.add(i), acc.add(i), lanes);
                i += 32;
            } else {
                tile::<ADD, 1>(left, right.add(i), acc.add(i), lanes);
                i += 16;
            }
        }
    }
}

/// `V` vectors of [`tiles`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn tile<const ADD: bool, const V: usize>(left: Left, right: *const f32, acc: *mut f32, lanes: usize) {
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); V]; TILE];
        if ADD {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_load_ps(acc.add(i * lanes + 16 * v));
                }
            }
        }
        for k in 0..left.count {
            let mut r = [_mm512_setzero_ps(); V];
            for (v, r) in r.iter_mut().enumerate() {
                *r = _mm512_load_ps(right.add(k * lanes + 16 * v));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*left.from.add(i * left.row + k * left.inner));
                for (sum, r) in sums.iter_mut().zip(r) {
                    *sum = _mm512_fmadd_ps(x, r, *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                _mm512_store_ps(acc.add(i * lanes + 16 * v), *sum);
            }
        }
    }
}

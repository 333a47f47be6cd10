//! Attention of few rows: positions in chunks of 8, softmax on the fly (Milakov and Gimelshein, arXiv 1805.02867).

use super::Call;
use super::ahead::{Keys, ask_rows};
use super::eight::Eight;
use super::many::{DIM, rows};
use super::rows::{Job, ROWS, State, jobs, plain};
use super::vector::size;

/// Most rows, where heads are not too large for products of matrices, which are faster with more.
const FEW: usize = 8;
/// Positions of a chunk.
const CHUNK: usize = 8;

/// [`MicroOp::Attend`](marquetry_ir::loops::MicroOp::Attend): `D` is 0 for a cache of f32, 1 for f16, 2 for bf16.
///
/// # Safety
/// The call is one of that operation, on a CPU that has the vectors.
#[inline(always)]
pub unsafe fn attend<E: Eight, const D: u8>(c: Call) {
    unsafe {
        for job in jobs(c) {
            match job.dim % 8 {
                0 if job.rows > FEW && job.dim <= DIM => rows::<E, D, 4>(job),
                0 => vectors::<E, D>(job),
                _ => plain::<D>(job),
            }
        }
    }
}

#[inline(always)]
unsafe fn vectors<E: Eight, const D: u8>(job: Job) {
    unsafe {
        let mut state = State::new();
        let (mut low, mut high) = (i64::MAX, i64::MIN);
        for r in 0..job.rows {
            let (first, last) = job.range(r);
            (low, high) = (low.min(first), high.max(last));
            let out = job.out.add(r * job.next[1]);
            for d in (0..job.dim).step_by(8) {
                E::splat(0.0).store(out.add(d));
            }
        }
        let mut weights = [[0f32; CHUNK]; ROWS];
        let (mut at, end) = (low.max(0) as usize, (high + 1).max(0) as usize);
        let mut keys = Keys::begin::<D>(job, CHUNK, at, end);
        while at < end {
            let chunk = job.chunk(at, end, CHUNK);
            at += chunk.count;
            let (count, slot) = (chunk.count, chunk.slot * size::<D>());
            ask_rows::<D>(job, job.values, chunk);
            keys.ask::<D>();
            for (r, weights) in weights.iter_mut().enumerate().take(job.rows) {
                let score = products::<E, D>(job, job.keys.add(slot), count, r);
                softmax(job, (chunk.at as i64, count as i64, r), score, weights, &mut state);
            }
            let mut r = 0;
            while r < job.rows {
                let values = job.values.add(slot);
                r += match job.rows - r {
                    4.. => weigh::<E, D, 4>(job, values, count, &weights, r),
                    2.. => weigh::<E, D, 2>(job, values, count, &weights, r),
                    _ => weigh::<E, D, 1>(job, values, count, &weights, r),
                };
            }
        }
        for r in 0..job.rows {
            if job.parts {
                job.leave(r, state.max[r], state.total[r]);
            } else {
                rescale::<E>(job, r, 1.0 / state.total[r]);
            }
        }
    }
}

/// Products of a row with a chunk of keys. Positions beyond `count` repeat the last one.
#[inline(always)]
unsafe fn products<E: Eight, const D: u8>(job: Job, keys: *const u8, count: usize, r: usize) -> E {
    unsafe {
        let q = job.q.add(r * job.next[0]);
        let mut parts = [E::splat(0.0); CHUNK];
        for d in (0..job.dim).step_by(8) {
            let q = E::load::<0>(q.add(d).cast());
            for (j, part) in parts.iter_mut().enumerate() {
                let key = E::load::<D>(keys.add((j.min(count - 1) * job.slot + d) * size::<D>()));
                *part = q.fma(key, *part);
            }
        }
        E::sums(&parts)
    }
}

/// Turns a row's scores into weights, and rescales what was summed with a smaller maximum.
#[inline(always)]
unsafe fn softmax<E: Eight>(
    job: Job,
    (at, count, r): (i64, i64, usize),
    score: E,
    weights: &mut [f32; CHUNK],
    state: &mut State,
) {
    unsafe {
        let (first, last) = job.range(r);
        let first = (first - at).clamp(0, 8) as i32;
        let last = (last - at).clamp(-1, count - 1) as i32;
        if first > last {
            *weights = [0.0; CHUNK];
            return;
        }
        let mut s = score.mul(E::splat(job.scale));
        if job.cap != 0.0 {
            let cap = E::splat(job.cap);
            s = s.div(cap).tanh().mul(cap);
        }
        let s = s.only(first, last, f32::NEG_INFINITY);
        let top = s.largest();
        if top > state.max[r] {
            let shrink = (state.max[r] - top).exp();
            state.max[r] = top;
            state.total[r] *= shrink;
            rescale::<E>(job, r, shrink);
        }
        let weight = s.sub(E::splat(state.max[r])).exp().only(first, last, 0.0);
        weight.store(weights.as_mut_ptr());
        state.total[r] += weight.sum();
    }
}

/// Multiplies what was summed of a row.
#[inline(always)]
unsafe fn rescale<E: Eight>(job: Job, r: usize, by: f32) {
    unsafe {
        let (out, by) = (job.out.add(r * job.next[1]), E::splat(by));
        for d in (0..job.dim).step_by(8) {
            E::load::<0>(out.add(d).cast()).mul(by).store(out.add(d));
        }
    }
}

/// Adds the weighted values of a chunk to `T` rows from `r` on; returns `T`.
#[inline(always)]
unsafe fn weigh<E: Eight, const D: u8, const T: usize>(
    job: Job,
    values: *const u8,
    count: usize,
    weights: &[[f32; CHUNK]; ROWS],
    r: usize,
) -> usize {
    unsafe {
        let out = job.out.add(r * job.next[1]);
        for d in (0..job.dim).step_by(8) {
            let mut acc = [E::splat(0.0); T];
            for (t, acc) in acc.iter_mut().enumerate() {
                *acc = E::load::<0>(out.add(t * job.next[1] + d).cast());
            }
            #[allow(clippy::needless_range_loop)] // `j` is a position, of weights and of values.
            for j in 0..count {
                let v = E::load::<D>(values.add((j * job.slot + d) * size::<D>()));
                for (t, acc) in acc.iter_mut().enumerate() {
                    *acc = E::splat(weights[r + t][j]).fma(v, *acc);
                }
            }
            for (t, acc) in acc.iter().enumerate() {
                acc.store(out.add(t * job.next[1] + d));
            }
        }
        T
    }
}

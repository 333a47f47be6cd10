//! Attention of few rows: positions in chunks of 16, softmax on the fly (Milakov and Gimelshein, arXiv 1805.02867).

use core::arch::x86_64::*;
use core::mem::MaybeUninit;

use super::super::Call;
use super::super::ahead::{ask_row, ask_rows};
use super::super::many::{DIM, rows};
use super::super::rows::{Chunk, Job, State, jobs, plain};
use super::super::vector::{Lanes, size};
use super::math::{sums_by_quarter, sums_of_quarters};

/// Positions of a chunk, lanes of a vector.
const CHUNK: usize = 16;
/// Positions whose keys are under way.
const AHEAD: usize = 32;
/// Chunks whose scores are known before they are weights, at most.
const BLOCK: usize = 8;
/// Most rows: with more, products of matrices are faster.
const ROWS: usize = 8;
/// Vectors of scores that are under way.
const SCORES: usize = ROWS * BLOCK;
/// Scores of rows with a block of chunks, then weights: those of a row one after the other.
type Scores = [MaybeUninit<__m512>; SCORES];

/// [`MicroOp::Attend`](marquetry_ir::loops::MicroOp::Attend): `D` is 0 for a cache of f32, 1 for f16, 2 for bf16.
pub unsafe extern "C" fn attend<const D: u8>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Attend` says, on a CPU that has the level.
    unsafe {
        for job in jobs(Call { args, sizes }) {
            match (job.dim % 16 == 0, job.rows) {
                (true, ..=ROWS) => vectors::<D>(job),
                (true, _) if job.dim <= DIM => many::<D>(job),
                _ => plain::<D>(job),
            }
        }
    }
}

/// See [`rows`].
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn many<const D: u8>(job: Job) {
    // SAFETY: the caller's.
    unsafe { rows::<__m512, D, 8>(job) }
}

/// Walks over the positions.
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn vectors<const D: u8>(job: Job) {
    unsafe {
        let mut state = State::new();
        let mut scores: Scores = [const { MaybeUninit::uninit() }; SCORES];
        let (mut low, mut high) = (i64::MAX, i64::MIN);
        for r in 0..job.rows {
            let (first, last) = job.range(r);
            (low, high) = (low.min(first), high.max(last));
            let out = job.out.add(r * job.next[1]);
            for d in (0..job.dim).step_by(16) {
                _mm512_storeu_ps(out.add(d), _mm512_setzero_ps());
            }
        }
        let (mut at, end) = (low.max(0) as usize, (high + 1).max(0) as usize);
        let mut asked = at;
        while asked < end.min(at + AHEAD) {
            let chunk = job.chunk(asked, end, CHUNK);
            ask_rows::<D>(job, job.keys, chunk);
            asked += chunk.count;
        }
        let mut chunks = [Chunk::default(); BLOCK];
        while at < end {
            let mut n = 0;
            while n < BLOCK && at < end {
                let chunk = job.chunk(at, end, CHUNK);
                at += chunk.count;
                products::<D>(job, chunk, scores.as_mut_ptr().cast::<__m512>().add(n), BLOCK);
                chunks[n] = chunk;
                n += 1;
            }
            for r in 0..job.rows {
                softmax(job, r, &chunks[..n], scores.as_mut_ptr().cast::<__m512>().add(r * BLOCK), &mut state);
            }
            let mut i = 0;
            while i < n {
                let (first, begin) = (chunks[i], i);
                // Chunks that lie one after the other are one.
                let mut count = first.count;
                i += 1;
                while i < n && count == (i - begin) * CHUNK && chunks[i].slot == first.slot + count * job.slot {
                    count += chunks[i].count;
                    i += 1;
                }
                let weights = scores.as_ptr().cast::<f32>().add(begin * CHUNK);
                let [keys, values] = [job.keys, job.values].map(|from| from.add(first.slot * size::<D>()));
                // The next head's, which this thread often computes next; where there is none they are the next position's.
                let beside = (job.slot != job.dim).then(|| keys.wrapping_add(job.dim * size::<D>()));
                add::<D>(job, (values, job.slot, count), (weights, BLOCK * CHUNK), beside);
            }
        }
        for r in 0..job.rows {
            if job.parts {
                job.leave(r, state.max[r], state.total[r]);
                continue;
            }
            let (out, inverse) = (job.out.add(r * job.next[1]), _mm512_set1_ps(1.0 / state.total[r]));
            for d in (0..job.dim).step_by(16) {
                _mm512_storeu_ps(out.add(d), _mm512_mul_ps(_mm512_loadu_ps(out.add(d)), inverse));
            }
        }
    }
}

/// Products of all rows with the keys of a chunk, to `scores[r * next]`. Lanes beyond the chunk repeat its last position. The first pass
/// asks for the chunk's values and for later keys.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn products<const D: u8>(job: Job, chunk: Chunk, scores: *mut __m512, next: usize) {
    unsafe {
        let mut later = Some(job.later(chunk.at + AHEAD, CHUNK).unwrap_or(chunk));
        let mut r = 0;
        while r < job.rows {
            let scores = scores.add(r * next);
            r += match job.rows - r {
                4.. => by_rows::<D, 4>(job, r, chunk, later.take(), scores, next),
                3 => by_rows::<D, 3>(job, r, chunk, later.take(), scores, next),
                2 => by_rows::<D, 2>(job, r, chunk, later.take(), scores, next),
                _ => by_rows::<D, 1>(job, r, chunk, later.take(), scores, next),
            };
        }
    }
}

/// Products of `T` rows from `first` on with a chunk of keys: four positions at a time, summed over features at the end; returns `T`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn by_rows<const D: u8, const T: usize>(
    job: Job,
    first: usize,
    chunk: Chunk,
    later: Option<Chunk>,
    scores: *mut __m512,
    next: usize,
) -> usize {
    unsafe {
        let queries = job.q.add(first * job.next[0]);
        let keys = job.keys.add(chunk.slot * size::<D>());
        let last = chunk.count - 1;
        let mut quads = [[_mm512_setzero_ps(); CHUNK / 4]; T];
        for j in (0..chunk.count).step_by(4) {
            let key: [_; 4] = std::array::from_fn(|i| keys.wrapping_add((j + i).min(last) * job.slot * size::<D>()));
            if let Some(later) = later {
                for (from, chunk) in [(job.values, chunk), (job.keys, later)] {
                    ask_rows::<D>(job, from, Chunk { slot: chunk.slot.wrapping_add(j * job.slot), count: 4, ..chunk });
                }
            }
            let mut acc = [[_mm512_setzero_ps(); 4]; T];
            for d in (0..job.dim).step_by(16) {
                let mut k = [_mm512_setzero_ps(); 4];
                for (k, key) in k.iter_mut().zip(key) {
                    *k = __m512::load::<D>(key.add(d * size::<D>()));
                }
                for (t, acc) in acc.iter_mut().enumerate() {
                    let q = _mm512_loadu_ps(queries.add(t * job.next[0] + d));
                    for (acc, k) in acc.iter_mut().zip(k) {
                        *acc = _mm512_fmadd_ps(q, k, *acc);
                    }
                }
            }
            for (quads, acc) in quads.iter_mut().zip(acc) {
                quads[j / 4] = sums_by_quarter(acc);
            }
        }
        for (t, quads) in quads.into_iter().enumerate() {
            *scores.add(t * next) = sums_of_quarters(quads);
        }
        T
    }
}

/// Turns a row's scores into weights, and rescales what was summed with a smaller maximum.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn softmax(job: Job, r: usize, chunks: &[Chunk], scores: *mut __m512, state: &mut State) {
    unsafe {
        let (first, last) = job.range(r);
        let none = _mm512_set1_ps(f32::NEG_INFINITY);
        let mut top = none;
        for (i, chunk) in chunks.iter().enumerate() {
            let at = chunk.at as i64;
            // Lanes from `from` up to `to` are seen.
            let (from, to) = ((first - at).clamp(0, 16) as u32, (last - at + 1).clamp(0, chunk.count as i64) as u32);
            let seen = ((1u32 << to) - 1) as u16 & !((1u32 << from) - 1) as u16;
            let mut s = _mm512_mul_ps(*scores.add(i), _mm512_set1_ps(job.scale));
            if job.cap != 0.0 {
                let cap = _mm512_set1_ps(job.cap);
                s = _mm512_mul_ps(_mm512_div_ps(s, cap).tanh(), cap);
            }
            s = _mm512_mask_mov_ps(none, seen, s);
            *scores.add(i) = s;
            top = _mm512_max_ps(top, s);
        }
        let top = _mm512_reduce_max_ps(top);
        let before = state.max[r];
        state.max[r] = before.max(top);
        // Sums that begin are zero.
        if top > before && before > f32::NEG_INFINITY {
            let shrink = (before - top).exp();
            state.total[r] *= shrink;
            let (out, shrink) = (job.out.add(r * job.next[1]), _mm512_set1_ps(shrink));
            for d in (0..job.dim).step_by(16) {
                _mm512_storeu_ps(out.add(d), _mm512_mul_ps(_mm512_loadu_ps(out.add(d)), shrink));
            }
        }
        let (max, mut total) = (_mm512_set1_ps(state.max[r]), _mm512_setzero_ps());
        for i in 0..chunks.len() {
            let s = *scores.add(i);
            let seen = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(s, none);
            let weight = _mm512_maskz_mov_ps(seen, _mm512_sub_ps(s, max).exp());
            *scores.add(i) = weight;
            total = _mm512_add_ps(total, weight);
        }
        state.total[r] += _mm512_reduce_add_ps(total);
    }
}

/// Adds the weighted values of neighbouring positions, `slot` elements apart, to all rows. The weights of a row are `next` numbers after
/// those of the one before. Asks for what lies `beside`, position by position.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn add<const D: u8>(
    job: Job,
    values: (*const u8, usize, usize),
    weights: (*const f32, usize),
    mut beside: Option<*const u8>,
) {
    unsafe {
        let mut r = 0;
        while r < job.rows {
            r += match job.rows - r {
                4.. => weigh::<D, 4>(job, values, weights, r, beside.take()),
                3 => weigh::<D, 3>(job, values, weights, r, beside.take()),
                2 => weigh::<D, 2>(job, values, weights, r, beside.take()),
                _ => weigh::<D, 1>(job, values, weights, r, beside.take()),
            };
        }
    }
}

/// Of [`add`], `T` rows from `r` on; returns `T`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn weigh<const D: u8, const T: usize>(
    job: Job,
    (values, slot, count): (*const u8, usize, usize),
    (weights, next): (*const f32, usize),
    r: usize,
    mut beside: Option<*const u8>,
) -> usize {
    unsafe {
        let weights = weights.add(r * next);
        let out = job.out.add(r * job.next[1]);
        let mut d = 0;
        while d < job.dim {
            // Four vectors of features at a time, or what is left.
            let wide = (job.dim - d) / 16;
            let n = if wide >= 4 { 4 } else { 1 };
            let mut acc = [[_mm512_setzero_ps(); 4]; T];
            for (t, acc) in acc.iter_mut().enumerate() {
                for (i, acc) in acc.iter_mut().enumerate().take(n) {
                    *acc = _mm512_loadu_ps(out.add(t * job.next[1] + d + 16 * i));
                }
            }
            for j in 0..count {
                let from = values.add((j * slot + d) * size::<D>());
                if let Some(beside) = beside {
                    ask_row::<D>(job, beside.wrapping_add(j * slot * size::<D>()));
                }
                if n == 4 {
                    let mut v = [_mm512_setzero_ps(); 4];
                    for (i, v) in v.iter_mut().enumerate() {
                        *v = __m512::load::<D>(from.add(16 * i * size::<D>()));
                    }
                    for (t, acc) in acc.iter_mut().enumerate() {
                        let w = _mm512_set1_ps(*weights.add(t * next + j));
                        for (acc, v) in acc.iter_mut().zip(v) {
                            *acc = _mm512_fmadd_ps(w, v, *acc);
                        }
                    }
                } else {
                    let v = __m512::load::<D>(from);
                    for (t, acc) in acc.iter_mut().enumerate() {
                        acc[0] = _mm512_fmadd_ps(_mm512_set1_ps(*weights.add(t * next + j)), v, acc[0]);
                    }
                }
            }
            for (t, acc) in acc.iter().enumerate() {
                for (i, acc) in acc.iter().enumerate().take(n) {
                    _mm512_storeu_ps(out.add(t * job.next[1] + d + 16 * i), *acc);
                }
            }
            beside = None;
            d += 16 * n;
        }
        T
    }
}

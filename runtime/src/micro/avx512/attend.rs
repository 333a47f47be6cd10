//! Attention: positions in chunks of 16, softmax on the fly (Milakov and Gimelshein, arXiv 1805.02867).

use core::arch::x86_64::*;
use core::mem::MaybeUninit;

use marquetry_ir::DType;
use marquetry_ir::loops::Routine;
use marquetry_ir::loops::micro::Attend;

use super::super::Call;
use super::super::rows::{Job, ROWS, State, jobs, plain};
use super::math::{exp, load16, sums, tanh, transpose};

/// Positions of a chunk.
const CHUNK: usize = 16;
/// Rows from which on keys are transposed first.
const MANY: usize = 3;
/// Largest head that keys are transposed for.
const DIM: usize = 256;
/// Rows whose scores are cheap to clear.
const FEW: usize = 8;

/// Keys with positions as lanes, as many as a head has features.
type Columns = [MaybeUninit<__m512>; DIM];

/// The routine for an element type of the cache.
pub fn attend(a: Attend) -> Option<Routine> {
    match a.dtype {
        DType::F32 => Some(run::<0>),
        DType::F16 => Some(run::<1>),
        DType::BF16 => Some(run::<2>),
        _ => None,
    }
}

unsafe extern "C" fn run<const D: u8>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Attend` says, on a CPU that has the level.
    unsafe {
        for job in jobs(Call { args, sizes }) {
            if job.dim % 16 == 0 && job.dim <= DIM { vectors::<D>(job) } else { plain::<D>(job) }
        }
    }
}

#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn vectors<const D: u8>(job: Job) {
    unsafe {
        match job.rows <= FEW {
            true => walk::<D>(job, &mut [_mm512_setzero_ps(); FEW]),
            false => walk::<D>(job, &mut [_mm512_setzero_ps(); ROWS]),
        }
    }
}

/// Walks over the positions.
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn walk<const D: u8>(job: Job, scores: &mut [__m512]) {
    unsafe {
        let mut state = State::new();
        let mut columns: Columns = [const { MaybeUninit::uninit() }; DIM];
        let (mut low, mut high) = (i64::MAX, i64::MIN);
        for r in 0..job.rows {
            let (first, last) = job.range(r);
            (low, high) = (low.min(first), high.max(last));
            let out = job.out.add(r * job.next[1]);
            for d in (0..job.dim).step_by(16) {
                _mm512_storeu_ps(out.add(d), _mm512_setzero_ps());
            }
        }
        let mut at = low.max(0) as usize;
        while at as i64 <= high {
            // A chunk ends with its page, beyond which slots are not neighbours.
            let count = CHUNK.min(job.page - at % job.page).min((high - at as i64) as usize + 1);
            let slot = job.slot(at);
            let keys = job.keys.add(slot * Job::size::<D>());
            if job.rows >= MANY {
                gather::<D>(job, keys, count, &mut columns);
                by_columns(job, &columns, scores);
            } else {
                by_rows::<D>(job, keys, count, scores);
            }
            softmax(job, (at as i64, count), scores, &mut state);
            let values = job.values.add(slot * Job::size::<D>());
            let mut r = 0;
            while r < job.rows {
                r += match job.rows - r {
                    4.. => weigh::<D, 4>(job, values, count, scores, r),
                    3 => weigh::<D, 3>(job, values, count, scores, r),
                    2 => weigh::<D, 2>(job, values, count, scores, r),
                    _ => weigh::<D, 1>(job, values, count, scores, r),
                };
            }
            at += count;
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

/// Keys of a chunk with positions as lanes: `columns[d]`. Positions beyond `count` repeat the last one.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn gather<const D: u8>(job: Job, keys: *const u8, count: usize, columns: &mut Columns) {
    unsafe {
        for d in (0..job.dim).step_by(16) {
            let mut rows = [_mm512_setzero_ps(); 16];
            for (j, row) in rows.iter_mut().enumerate() {
                *row = load16::<D>(keys.add((j.min(count - 1) * job.slot + d) * Job::size::<D>()));
            }
            for (column, v) in columns[d..].iter_mut().zip(transpose(&rows)) {
                column.write(v);
            }
        }
    }
}

/// Products of all rows with a chunk of keys, given by columns.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn by_columns(job: Job, columns: &Columns, scores: &mut [__m512]) {
    /// `T` rows from `r` on, each summed in `U` parts, so that enough sums are under way.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
    unsafe fn tile<const T: usize, const U: usize>(
        job: Job,
        columns: &Columns,
        scores: &mut [__m512],
        r: usize,
    ) -> usize {
        unsafe {
            let q = job.q.add(r * job.next[0]);
            let mut acc = [[_mm512_setzero_ps(); U]; T];
            for d in (0..job.dim).step_by(U) {
                for u in 0..U {
                    let column = columns[d + u].assume_init();
                    for (t, acc) in acc.iter_mut().enumerate() {
                        acc[u] = _mm512_fmadd_ps(_mm512_set1_ps(*q.add(t * job.next[0] + d + u)), column, acc[u]);
                    }
                }
            }
            for (score, acc) in scores[r..].iter_mut().zip(&acc) {
                *score = acc[1..].iter().fold(acc[0], |s, a| _mm512_add_ps(s, *a));
            }
            T
        }
    }
    unsafe {
        let mut r = 0;
        while r < job.rows {
            r += match job.rows - r {
                8.. => tile::<8, 1>(job, columns, scores, r),
                4.. => tile::<4, 2>(job, columns, scores, r),
                3 => tile::<3, 4>(job, columns, scores, r),
                2 => tile::<2, 4>(job, columns, scores, r),
                _ => tile::<1, 4>(job, columns, scores, r),
            };
        }
    }
}

/// Products of few rows with a chunk of keys.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn by_rows<const D: u8>(job: Job, keys: *const u8, count: usize, scores: &mut [__m512]) {
    unsafe {
        for (r, score) in scores.iter_mut().enumerate().take(job.rows) {
            let q = job.q.add(r * job.next[0]);
            let mut parts = [_mm512_setzero_ps(); 16];
            for d in (0..job.dim).step_by(16) {
                let q = _mm512_loadu_ps(q.add(d));
                for (j, part) in parts.iter_mut().enumerate() {
                    let key = load16::<D>(keys.add((j.min(count - 1) * job.slot + d) * Job::size::<D>()));
                    *part = _mm512_fmadd_ps(q, key, *part);
                }
            }
            *score = sums(&parts);
        }
    }
}

/// Turns scores into weights, and rescales what was summed with a smaller maximum.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn softmax(job: Job, (at, count): (i64, usize), scores: &mut [__m512], state: &mut State) {
    unsafe {
        for (r, score) in scores.iter_mut().enumerate().take(job.rows) {
            let (first, last) = job.range(r);
            // Lanes from `from` up to `to` are seen.
            let (from, to) = ((first - at).clamp(0, 16) as u32, (last - at + 1).clamp(0, count as i64) as u32);
            let seen = ((1u32 << to) - 1) as u16 & !((1u32 << from) - 1) as u16;
            if seen == 0 {
                *score = _mm512_setzero_ps();
                continue;
            }
            let mut s = _mm512_mul_ps(*score, _mm512_set1_ps(job.scale));
            if job.cap != 0.0 {
                let cap = _mm512_set1_ps(job.cap);
                s = _mm512_mul_ps(tanh(_mm512_div_ps(s, cap)), cap);
            }
            let top = _mm512_mask_reduce_max_ps(seen, s);
            if top > state.max[r] {
                let shrink = (state.max[r] - top).exp();
                state.max[r] = top;
                state.total[r] *= shrink;
                let (out, shrink) = (job.out.add(r * job.next[1]), _mm512_set1_ps(shrink));
                for d in (0..job.dim).step_by(16) {
                    _mm512_storeu_ps(out.add(d), _mm512_mul_ps(_mm512_loadu_ps(out.add(d)), shrink));
                }
            }
            let weight = exp(_mm512_sub_ps(s, _mm512_set1_ps(state.max[r])));
            *score = _mm512_maskz_mov_ps(seen, weight);
            state.total[r] += _mm512_reduce_add_ps(*score);
        }
    }
}

/// Adds the weighted values of a chunk to `T` rows from `r` on; returns `T`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn weigh<const D: u8, const T: usize>(
    job: Job,
    values: *const u8,
    count: usize,
    scores: &[__m512],
    r: usize,
) -> usize {
    unsafe {
        let weights: *const f32 = scores.as_ptr().add(r).cast();
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
                let from = values.add((j * job.slot + d) * Job::size::<D>());
                if n == 4 {
                    let mut v = [_mm512_setzero_ps(); 4];
                    for (i, v) in v.iter_mut().enumerate() {
                        *v = load16::<D>(from.add(16 * i * Job::size::<D>()));
                    }
                    for (t, acc) in acc.iter_mut().enumerate() {
                        let w = _mm512_set1_ps(*weights.add(16 * t + j));
                        for (acc, v) in acc.iter_mut().zip(v) {
                            *acc = _mm512_fmadd_ps(w, v, *acc);
                        }
                    }
                } else {
                    let v = load16::<D>(from);
                    for (t, acc) in acc.iter_mut().enumerate() {
                        acc[0] = _mm512_fmadd_ps(_mm512_set1_ps(*weights.add(16 * t + j)), v, acc[0]);
                    }
                }
            }
            for (t, acc) in acc.iter().enumerate() {
                for (i, acc) in acc.iter().enumerate().take(n) {
                    _mm512_storeu_ps(out.add(t * job.next[1] + d + 16 * i), *acc);
                }
            }
            d += 16 * n;
        }
        T
    }
}

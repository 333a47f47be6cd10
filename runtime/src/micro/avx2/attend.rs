//! Attention: positions in chunks of 8, softmax on the fly (Milakov and Gimelshein, arXiv 1805.02867).

use core::arch::x86_64::*;

use marquetry_ir::DType;
use marquetry_ir::loops::Routine;
use marquetry_ir::loops::micro::Attend;

use super::super::Call;
use super::super::rows::{Job, ROWS, State, jobs, plain};
use super::math::{exp, largest, load8, sum, sums, tanh};

/// Positions of a chunk.
const CHUNK: usize = 8;

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
            if job.dim % 8 == 0 { vectors::<D>(job) } else { plain::<D>(job) }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn vectors<const D: u8>(job: Job) {
    unsafe {
        let mut state = State::new();
        let (mut low, mut high) = (i64::MAX, i64::MIN);
        for r in 0..job.rows {
            let (first, last) = job.range(r);
            (low, high) = (low.min(first), high.max(last));
            let out = job.out.add(r * job.next[1]);
            for d in (0..job.dim).step_by(8) {
                _mm256_storeu_ps(out.add(d), _mm256_setzero_ps());
            }
        }
        let mut weights = [[0f32; CHUNK]; ROWS];
        let mut at = low.max(0) as usize;
        while at as i64 <= high {
            // A chunk ends with its page, beyond which slots are not neighbours.
            let count = CHUNK.min(job.page - at % job.page).min((high - at as i64) as usize + 1);
            let slot = job.slot(at) * Job::size::<D>();
            fetch::<D>(job, job.values.add(slot), count);
            let next = at + count;
            if next as i64 <= high {
                let slot = job.slot(next) * Job::size::<D>();
                fetch::<D>(job, job.keys.add(slot), CHUNK.min(job.page - next % job.page));
            }
            for (r, weights) in weights.iter_mut().enumerate().take(job.rows) {
                let score = products::<D>(job, job.keys.add(slot), count, r);
                softmax(job, (at as i64, count as i64, r), score, weights, &mut state);
            }
            let mut r = 0;
            while r < job.rows {
                let values = job.values.add(slot);
                r += match job.rows - r {
                    4.. => weigh::<D, 4>(job, values, count, &weights, r),
                    2.. => weigh::<D, 2>(job, values, count, &weights, r),
                    _ => weigh::<D, 1>(job, values, count, &weights, r),
                };
            }
            at += count;
        }
        for r in 0..job.rows {
            if job.parts {
                job.leave(r, state.max[r], state.total[r]);
                continue;
            }
            let (out, inverse) = (job.out.add(r * job.next[1]), _mm256_set1_ps(1.0 / state.total[r]));
            for d in (0..job.dim).step_by(8) {
                _mm256_storeu_ps(out.add(d), _mm256_mul_ps(_mm256_loadu_ps(out.add(d)), inverse));
            }
        }
    }
}

/// Starts to read keys or values of neighbouring positions: what one head has of them lies apart.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn fetch<const D: u8>(job: Job, from: *const u8, count: usize) {
    for j in 0..count {
        let slot = from.wrapping_add(j * job.slot * Job::size::<D>());
        for line in (0..job.dim * Job::size::<D>()).step_by(64) {
            _mm_prefetch::<_MM_HINT_T0>(slot.wrapping_add(line).cast());
        }
    }
}

/// Products of a row with a chunk of keys. Positions beyond `count` repeat the last one.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn products<const D: u8>(job: Job, keys: *const u8, count: usize, r: usize) -> __m256 {
    unsafe {
        let q = job.q.add(r * job.next[0]);
        let mut parts = [_mm256_setzero_ps(); CHUNK];
        for d in (0..job.dim).step_by(8) {
            let q = _mm256_loadu_ps(q.add(d));
            for (j, part) in parts.iter_mut().enumerate() {
                let key = load8::<D>(keys.add((j.min(count - 1) * job.slot + d) * Job::size::<D>()));
                *part = _mm256_fmadd_ps(q, key, *part);
            }
        }
        sums(&parts)
    }
}

/// Turns a row's scores into weights, and rescales what was summed with a smaller maximum.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn softmax(
    job: Job,
    (at, count, r): (i64, i64, usize),
    score: __m256,
    weights: &mut [f32; CHUNK],
    state: &mut State,
) {
    unsafe {
        let (first, last) = job.range(r);
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let from = _mm256_set1_epi32((first - at).clamp(0, 8) as i32);
        let to = _mm256_set1_epi32((last - at).clamp(-1, count - 1) as i32);
        let hidden = _mm256_or_si256(_mm256_cmpgt_epi32(from, lanes), _mm256_cmpgt_epi32(lanes, to));
        let hidden = _mm256_castsi256_ps(hidden);
        if _mm256_movemask_ps(hidden) == 0xff {
            *weights = [0.0; CHUNK];
            return;
        }
        let mut s = _mm256_mul_ps(score, _mm256_set1_ps(job.scale));
        if job.cap != 0.0 {
            let cap = _mm256_set1_ps(job.cap);
            s = _mm256_mul_ps(tanh(_mm256_div_ps(s, cap)), cap);
        }
        let s = _mm256_blendv_ps(s, _mm256_set1_ps(f32::NEG_INFINITY), hidden);
        let top = largest(s);
        if top > state.max[r] {
            let shrink = (state.max[r] - top).exp();
            state.max[r] = top;
            state.total[r] *= shrink;
            let (out, shrink) = (job.out.add(r * job.next[1]), _mm256_set1_ps(shrink));
            for d in (0..job.dim).step_by(8) {
                _mm256_storeu_ps(out.add(d), _mm256_mul_ps(_mm256_loadu_ps(out.add(d)), shrink));
            }
        }
        let weight = _mm256_andnot_ps(hidden, exp(_mm256_sub_ps(s, _mm256_set1_ps(state.max[r]))));
        _mm256_storeu_ps(weights.as_mut_ptr(), weight);
        state.total[r] += sum(weight);
    }
}

/// Adds the weighted values of a chunk to `T` rows from `r` on; returns `T`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn weigh<const D: u8, const T: usize>(
    job: Job,
    values: *const u8,
    count: usize,
    weights: &[[f32; CHUNK]; ROWS],
    r: usize,
) -> usize {
    unsafe {
        let out = job.out.add(r * job.next[1]);
        for d in (0..job.dim).step_by(8) {
            let mut acc = [_mm256_setzero_ps(); T];
            for (t, acc) in acc.iter_mut().enumerate() {
                *acc = _mm256_loadu_ps(out.add(t * job.next[1] + d));
            }
            #[allow(clippy::needless_range_loop)] // `j` is a position, of weights and of values.
            for j in 0..count {
                let v = load8::<D>(values.add((j * job.slot + d) * Job::size::<D>()));
                for (t, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm256_fmadd_ps(_mm256_set1_ps(weights[r + t][j]), v, *acc);
                }
            }
            for (t, acc) in acc.iter().enumerate() {
                _mm256_storeu_ps(out.add(t * job.next[1] + d), *acc);
            }
        }
        T
    }
}

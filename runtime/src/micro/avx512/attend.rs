//! Attention: positions in chunks of 16, softmax on the fly (Milakov and Gimelshein, arXiv 1805.02867).

use core::arch::x86_64::*;
use core::mem::MaybeUninit;

use super::super::Call;
use super::super::ahead::{ask_row, ask_rows};
use super::super::eight::size;
use super::super::rows::{Chunk, Job, ROWS, State, jobs, plain};
use super::math::{exp, load16, sums_by_quarter, sums_of_quarters, tanh, transpose};

/// Positions of a chunk, lanes of a vector.
const CHUNK: usize = 16;
/// Positions whose keys are under way.
const AHEAD: usize = 32;
/// Chunks whose scores are known before they are weights, at most.
const BLOCK: usize = 8;
/// Vectors of scores that are under way: of the most rows, two chunks.
const SCORES: usize = 2 * ROWS;
/// Rows that keys are not transposed for.
const FEW: usize = 4;
/// Rows that values are made f32 for, before each reads them.
const MANY: usize = 8;
/// Largest head that there is room for.
const DIM: usize = 256;

/// Keys with positions as lanes, as many as a head has features, or values of as many positions as fit.
type Columns = [MaybeUninit<__m512>; DIM];
/// Scores of rows with a block of chunks, then weights: those of a row one after the other.
type Scores = [MaybeUninit<__m512>; SCORES];

/// [`MicroOp::Attend`](marquetry_ir::loops::MicroOp::Attend): `D` is 0 for a cache of f32, 1 for f16, 2 for bf16.
pub unsafe extern "C" fn attend<const D: u8>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Attend` says, on a CPU that has the level.
    unsafe {
        for job in jobs(Call { args, sizes }) {
            if job.dim % 16 == 0 && job.dim <= DIM { vectors::<D>(job) } else { plain::<D>(job) }
        }
    }
}

/// Walks over the positions.
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn vectors<const D: u8>(job: Job) {
    unsafe {
        let mut state = State::new();
        let mut columns: Columns = [const { MaybeUninit::uninit() }; DIM];
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
        let block = (SCORES / job.rows).min(BLOCK);
        let mut chunks = [Chunk::default(); BLOCK];
        while at < end {
            let mut n = 0;
            while n < block && at < end {
                let chunk = job.chunk(at, end, CHUNK);
                at += chunk.count;
                products::<D>(job, chunk, &mut columns, scores.as_mut_ptr().cast::<__m512>().add(n), block);
                chunks[n] = chunk;
                n += 1;
            }
            for r in 0..job.rows {
                softmax(job, r, &chunks[..n], scores.as_mut_ptr().cast::<__m512>().add(r * block), &mut state);
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
                add::<D>(job, (values, count), (weights, block * CHUNK), &mut columns, beside);
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

/// Products of all rows with the keys of a chunk, to `scores[r * next]`. Lanes beyond the chunk repeat its last position. Asks for the
/// chunk's values and for later keys.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn products<const D: u8>(job: Job, chunk: Chunk, columns: &mut Columns, scores: *mut __m512, next: usize) {
    unsafe {
        let later = job.later(chunk.at + AHEAD, CHUNK).unwrap_or(chunk);
        match job.rows {
            1 => by_rows::<D, 1>(job, chunk, later, scores, next),
            2 => by_rows::<D, 2>(job, chunk, later, scores, next),
            3 => by_rows::<D, 3>(job, chunk, later, scores, next),
            FEW => by_rows::<D, FEW>(job, chunk, later, scores, next),
            _ => {
                ask_rows::<D>(job, job.values, chunk);
                ask_rows::<D>(job, job.keys, later);
                gather::<D>(job, job.keys.add(chunk.slot * size::<D>()), chunk.count, columns);
                by_columns(job, columns, scores, next);
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
                *row = load16::<D>(keys.add((j.min(count - 1) * job.slot + d) * size::<D>()));
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
unsafe fn by_columns(job: Job, columns: &Columns, scores: *mut __m512, next: usize) {
    /// `T` rows from `r` on, each summed in `U` parts, so that enough sums are under way.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
    unsafe fn tile<const T: usize, const U: usize>(
        job: Job,
        columns: &Columns,
        (scores, next): (*mut __m512, usize),
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
            for (t, acc) in acc.iter().enumerate() {
                *scores.add((r + t) * next) = acc[1..].iter().fold(acc[0], |s, a| _mm512_add_ps(s, *a));
            }
            T
        }
    }
    unsafe {
        let mut r = 0;
        while r < job.rows {
            r += match job.rows - r {
                8.. => tile::<8, 1>(job, columns, (scores, next), r),
                4.. => tile::<4, 2>(job, columns, (scores, next), r),
                3 => tile::<3, 4>(job, columns, (scores, next), r),
                2 => tile::<2, 4>(job, columns, (scores, next), r),
                _ => tile::<1, 4>(job, columns, (scores, next), r),
            };
        }
    }
}

/// Products of `T` rows, which are all, with a chunk of keys: four positions at a time, summed over features at the end.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn by_rows<const D: u8, const T: usize>(job: Job, chunk: Chunk, later: Chunk, scores: *mut __m512, next: usize) {
    unsafe {
        let keys = job.keys.add(chunk.slot * size::<D>());
        let last = chunk.count - 1;
        let mut quads = [[_mm512_setzero_ps(); CHUNK / 4]; T];
        for j in (0..chunk.count).step_by(4) {
            let key: [_; 4] = std::array::from_fn(|i| keys.wrapping_add((j + i).min(last) * job.slot * size::<D>()));
            for (from, chunk) in [(job.values, chunk), (job.keys, later)] {
                ask_rows::<D>(job, from, Chunk { slot: chunk.slot.wrapping_add(j * job.slot), count: 4, ..chunk });
            }
            let mut acc = [[_mm512_setzero_ps(); 4]; T];
            for d in (0..job.dim).step_by(16) {
                let mut k = [_mm512_setzero_ps(); 4];
                for (k, key) in k.iter_mut().zip(key) {
                    *k = load16::<D>(key.add(d * size::<D>()));
                }
                for (t, acc) in acc.iter_mut().enumerate() {
                    let q = _mm512_loadu_ps(job.q.add(t * job.next[0] + d));
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
                s = _mm512_mul_ps(tanh(_mm512_div_ps(s, cap)), cap);
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
            let weight = _mm512_maskz_mov_ps(seen, exp(_mm512_sub_ps(s, max)));
            *scores.add(i) = weight;
            total = _mm512_add_ps(total, weight);
        }
        state.total[r] += _mm512_reduce_add_ps(total);
    }
}

/// Adds the weighted values of neighbouring positions to all rows. The weights of a row are `next` numbers after those of the one
/// before. Asks for what lies `beside`, position by position.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn add<const D: u8>(
    job: Job,
    (values, count): (*const u8, usize),
    (weights, next): (*const f32, usize),
    plain: &mut Columns,
    beside: Option<*const u8>,
) {
    unsafe {
        if job.rows < MANY || D == 0 {
            return weigh_all::<D>(job, (values, job.slot, count), (weights, next), beside);
        }
        let most = DIM * 16 / job.dim;
        for first in (0..count).step_by(most) {
            let some = most.min(count - first);
            for j in 0..some {
                if let Some(beside) = beside {
                    ask_row::<D>(job, beside.wrapping_add((first + j) * job.slot * size::<D>()));
                }
                for d in (0..job.dim).step_by(16) {
                    let v = load16::<D>(values.add(((first + j) * job.slot + d) * size::<D>()));
                    plain[(j * job.dim + d) / 16].write(v);
                }
            }
            weigh_all::<0>(job, (plain.as_ptr().cast(), job.dim, some), (weights.add(first), next), None);
        }
    }
}

/// As [`add`]: positions are `slot` elements apart.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,f16c")]
unsafe fn weigh_all<const D: u8>(
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

/// Of [`weigh_all`], `T` rows from `r` on; returns `T`.
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
                        *v = load16::<D>(from.add(16 * i * size::<D>()));
                    }
                    for (t, acc) in acc.iter_mut().enumerate() {
                        let w = _mm512_set1_ps(*weights.add(t * next + j));
                        for (acc, v) in acc.iter_mut().zip(v) {
                            *acc = _mm512_fmadd_ps(w, v, *acc);
                        }
                    }
                } else {
                    let v = load16::<D>(from);
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

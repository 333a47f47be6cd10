//! Attention's rows, and a plain way to compute them.

use super::Call;

/// Rows that are under way together.
pub const ROWS: usize = 64;

/// Rows of one sequence.
#[derive(Clone, Copy)]
pub struct Job {
    pub out: *mut f32,
    pub q: *const f32,
    pub keys: *const u8,
    pub values: *const u8,
    /// Pages of the sequence.
    pub pages: *const i32,
    /// How many of them there is room for.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub table: usize,
    /// First and last position of each row, three numbers apart.
    pub meta: *const i64,
    pub rows: usize,
    pub dim: usize,
    pub page: usize,
    /// Elements between slots.
    pub slot: usize,
    /// Elements between rows of queries, and of sums.
    pub next: [usize; 2],
    pub scale: f32,
    pub cap: f32,
    /// Are sums left with the largest score and the sum of weights behind them?
    pub parts: bool,
}

/// The rows of a call, those of each sequence together and at most [`ROWS`].
///
/// # Safety
/// The call is one of [`MicroOp::Attend`](marquetry_ir::loops::MicroOp::Attend).
pub unsafe fn jobs(c: Call) -> impl Iterator<Item = Job> {
    let mut first = 0;
    std::iter::from_fn(move || {
        // SAFETY: the call's arguments and sizes are those of the operation.
        unsafe {
            let [rows, dim, page] = [0, 1, 2].map(|i| c.size(i));
            let stride = |arg: usize| c.size(3 + arg);
            let float = |i: usize| f32::from_bits(c.size(9 + i) as u32);
            let meta: *const i64 = c.arg(5);
            if first >= rows {
                return None;
            }
            let seq = *meta.add(first * 3 + 2);
            let mut count = 1;
            while first + count < rows && count < ROWS && *meta.add((first + count) * 3 + 2) == seq {
                count += 1;
            }
            let job = Job {
                out: c.arg::<f32>(0).add(first * stride(0)),
                q: c.arg::<f32>(1).add(first * stride(1)),
                keys: c.arg(2),
                values: c.arg(3),
                pages: c.arg::<i32>(4).add(seq as usize * stride(4)),
                table: stride(4),
                meta: meta.add(first * 3),
                rows: count,
                dim,
                page,
                slot: stride(2),
                next: [stride(1), stride(0)],
                scale: float(0),
                cap: float(1),
                parts: c.size(11) != 0,
            };
            first += count;
            Some(job)
        }
    })
}

/// Neighbouring positions of one page.
#[derive(Clone, Copy, Default)]
pub struct Chunk {
    pub at: usize,
    pub count: usize,
    /// The element where they begin.
    pub slot: usize,
}

impl Job {
    /// At most `most` positions from one on that is before `end`. They end with their page, beyond which slots are not neighbours.
    #[inline(always)]
    pub unsafe fn chunk(self, at: usize, end: usize, most: usize) -> Chunk {
        // SAFETY: the caller's position is one of the sequence.
        Chunk { at, count: most.min(self.page - at % self.page).min(end - at), slot: unsafe { self.slot(at) } }
    }

    /// As [`Job::chunk`], to be asked for: of a position that need not be one of the sequence, as far as there is room for it. Where that
    /// begins means nothing then.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    #[inline(always)]
    pub unsafe fn later(self, at: usize, most: usize) -> Option<Chunk> {
        // SAFETY: the table has an entry for the page.
        (at / self.page < self.table).then(|| unsafe { self.chunk(at, at + most, most) })
    }

    /// First and last position of a row.
    #[inline(always)]
    pub unsafe fn range(self, r: usize) -> (i64, i64) {
        unsafe { (*self.meta.add(3 * r), *self.meta.add(3 * r + 1)) }
    }

    /// Puts the largest score and the sum of weights behind a row's sums.
    #[inline(always)]
    pub unsafe fn leave(self, r: usize, max: f32, total: f32) {
        unsafe {
            let end = self.out.add(r * self.next[1] + self.dim);
            *end = max.max(-1e30);
            *end.add(1) = total;
        }
    }

    /// The element where a position's numbers begin.
    #[inline(always)]
    pub unsafe fn slot(self, position: usize) -> usize {
        unsafe {
            let page = *self.pages.add(position / self.page) as usize;
            page.wrapping_mul(self.page).wrapping_add(position % self.page).wrapping_mul(self.slot)
        }
    }
}

/// Sums of softmax of each row.
pub struct State {
    pub max: [f32; ROWS],
    pub total: [f32; ROWS],
}

impl State {
    pub fn new() -> State {
        State { max: [f32::NEG_INFINITY; ROWS], total: [0.0; ROWS] }
    }
}

/// Heads whose size does not suit vectors.
///
/// # Safety
/// The job is one of [`jobs`]; `D` is 0 for a cache of f32, 1 for f16, 2 for bf16.
pub unsafe fn plain<const D: u8>(job: Job) {
    unsafe {
        let number = |p: *const u8, i: usize| match D {
            0 => *p.cast::<f32>().add(i),
            1 => half::f16::from_bits(*p.cast::<u16>().add(i)).to_f32(),
            _ => half::bf16::from_bits(*p.cast::<u16>().add(i)).to_f32(),
        };
        for r in 0..job.rows {
            let (q, out) = (job.q.add(r * job.next[0]), job.out.add(r * job.next[1]));
            let (mut max, mut total) = (f32::NEG_INFINITY, 0.0f32);
            (0..job.dim).for_each(|d| *out.add(d) = 0.0);
            let (first, last) = job.range(r);
            for at in first..=last {
                let slot = job.slot(at as usize);
                let mut s =
                    (0..job.dim).fold(0.0, |s, d| (*q.add(d)).mul_add(number(job.keys, slot + d), s)) * job.scale;
                if job.cap != 0.0 {
                    s = (s / job.cap).tanh() * job.cap;
                }
                let shrink = if s > max { (max - s).exp() } else { 1.0 };
                max = max.max(s);
                let w = (s - max).exp();
                total = total.mul_add(shrink, w);
                (0..job.dim).for_each(|d| {
                    *out.add(d) = w.mul_add(number(job.values, slot + d), *out.add(d) * shrink);
                });
            }
            match job.parts {
                true => job.leave(r, max, total),
                false => (0..job.dim).for_each(|d| *out.add(d) /= total),
            }
        }
    }
}

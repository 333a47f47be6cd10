//! Asking for weights, keys and values before they are needed.

use marquetry_ir::FACTOR_SPAN;

use super::Layout;
use super::packed::Rows;
use super::rows::{Chunk, Job};
use super::vector::size;

/// Bytes of data ahead of the ones in use: more than a page, since the processor's own prefetching ends with the page.
const AHEAD: usize = 6 << 10;
/// Positions whose keys are under way.
const POSITIONS: usize = 48;

/// Starts to read a line of memory into the first cache, or into the second one, for which more lines can be under way at a time.
#[inline(always)]
fn line<const SECOND: bool>(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: hints, which read nothing and do not fault, whether there is memory or not.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        if SECOND { _mm_prefetch::<_MM_HINT_T1>(at.cast()) } else { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        if SECOND {
            core::arch::asm!("prfm pldl2keep, [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly));
        } else {
            core::arch::asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly));
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

/// Asks for `bytes` from an address on.
pub fn ask_range(from: *const u8, bytes: usize) {
    for at in (0..bytes).step_by(64) {
        line::<false>(from.wrapping_add(at));
    }
}

/// Asks for what comes [`AHEAD`] bytes after the `bytes` at `from`.
#[inline(always)]
pub fn ask(from: *const u8, bytes: usize) {
    for at in (0..bytes).step_by(64) {
        line::<false>(from.wrapping_add(AHEAD + at));
    }
}

/// The same for group `g` of a packed row block; scales, minima and factors are asked for as far ahead as their data are.
#[inline(always)]
pub fn ask_group<L: Layout>(g: usize, rows: Rows) {
    let p = L::P;
    let bytes = p.bits as usize * 32;
    ask(rows.data.wrapping_add(g * bytes), bytes);
    let side = 256 / p.group as usize * p.scale.size();
    ask_plane(rows.scale, g, side, bytes);
    if p.min {
        ask_plane(rows.min, g, side, bytes);
    }
    let span = FACTOR_SPAN / 32;
    if p.has_factors() && g.is_multiple_of(span) {
        ask_plane(rows.factor, g / span, (1 + p.min as usize) * 16, span * bytes);
    }
}

/// Of a plane that has `each` bytes for so many bytes of data, those number `i` if data were read that are [`AHEAD`] of them.
#[inline(always)]
fn ask_plane(from: *const u8, i: usize, each: usize, data: usize) {
    ask(from.wrapping_add((i * each + AHEAD * each / data).wrapping_sub(AHEAD)), each);
}

/// Asks for what one head has of a position. What it has of others lies apart, so that nothing but these requests brings it.
#[inline(always)]
pub fn ask_row<const D: u8>(job: Job, at: *const u8) {
    for offset in (0..job.dim * size::<D>()).step_by(64) {
        line::<true>(at.wrapping_add(offset));
    }
}

/// Asks for what one head has of a chunk, which lies apart.
#[inline(always)]
pub fn ask_rows<const D: u8>(job: Job, from: *const u8, chunk: Chunk) {
    for j in 0..chunk.count {
        let slot = chunk.slot.wrapping_add(j * job.slot);
        ask_row::<D>(job, from.wrapping_add(slot.wrapping_mul(size::<D>())));
    }
}

/// Asks for keys chunk by chunk: those of a head, then those of the next one, which lie behind them and which this thread often
/// computes next.
pub struct Keys {
    job: Job,
    chunk: usize,
    begin: usize,
    at: usize,
    end: usize,
    keys: *const u8,
}

impl Keys {
    /// Asks for the first ones of `begin..end`.
    ///
    /// # Safety
    /// The positions are ones of the sequence.
    #[inline(always)]
    pub unsafe fn begin<const D: u8>(job: Job, chunk: usize, begin: usize, end: usize) -> Keys {
        let mut keys = Keys { job, chunk, begin, at: begin, end, keys: job.keys };
        for _ in 0..POSITIONS / chunk {
            // SAFETY: the caller's.
            unsafe { keys.ask::<D>() };
        }
        keys
    }

    /// Asks for one chunk more.
    ///
    /// # Safety
    /// As for [`Keys::begin`].
    #[inline(always)]
    pub unsafe fn ask<const D: u8>(&mut self) {
        if self.at >= self.end {
            self.at = self.begin;
            self.keys = self.keys.wrapping_add(self.job.dim * size::<D>());
        }
        if self.at < self.end {
            // SAFETY: the position is one of the sequence.
            let chunk = unsafe { self.job.chunk(self.at, self.end, self.chunk) };
            ask_rows::<D>(self.job, self.keys, chunk);
            self.at += chunk.count;
        }
    }
}

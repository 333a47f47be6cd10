//! What this machine can do at most: bytes read from memory, and operations, per second.
//!
//! Each probe is a loop that does nothing else, on every thread of a pool. They say what a kernel could reach, not what it should:
//! a kernel that reads and computes needs the sum of both where the CPU does not overlap them.

use std::hint::black_box;
use std::time::Instant;

use crate::memory::AlignedBytes;
use crate::{Pool, RuntimeError, Worker};

/// Bytes read by default: many times what last-level caches hold that a few cores share.
pub const READ_BYTES: usize = 256 << 20;
/// Passes of a probe; the median counts.
const PASSES: usize = 7;
/// Instructions of a pass of the arithmetic probes, per thread.
const INSTRUCTIONS: u64 = 12 << 20;

/// Rates of a machine with the threads of a pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// Bytes per second read from a buffer that no cache holds.
    pub read: f64,
    /// Operations on floats per second by what routines use, if there are routines for this CPU: products of bf16 in a matrix unit, else
    /// fused multiply-adds in the widest vectors, two per lane.
    pub flops: Option<f64>,
    /// Operations on 8-bit integers per second by the instructions of routines for products: two per byte.
    pub int8_ops: Option<f64>,
}

/// Measures all rates, reading a buffer of that many bytes.
///
/// # Errors
/// If memory can not be had.
pub fn peaks(pool: &Pool, bytes: usize) -> Result<Peaks, RuntimeError> {
    let read = read_bandwidth(pool, bytes)?;
    let arithmetic = Arithmetic::best();
    let rate = |f: fn(Arithmetic, u64) -> u64| -> Result<Option<f64>, RuntimeError> {
        let Some(level) = arithmetic else { return Ok(None) };
        let each = f(level, 0);
        let work = |_: Worker<'_>| {
            black_box(f(level, INSTRUCTIONS));
        };
        Ok(Some(median(pool, (INSTRUCTIONS * each * pool.threads() as u64) as f64, &work)?))
    };
    Ok(Peaks { read, flops: rate(Arithmetic::floats)?, int8_ops: rate(Arithmetic::bytes)? })
}

/// Bytes per second that all threads read together from a buffer of that many bytes.
///
/// # Errors
/// If memory can not be had.
pub fn read_bandwidth(pool: &Pool, bytes: usize) -> Result<f64, RuntimeError> {
    let words = bytes.next_multiple_of(64) / 8;
    let mut buffer = AlignedBytes::new(words * 8, "the probe's buffer")?;
    // Pages that were never written are all one page of zeros.
    buffer.fill(1);
    let (data, _) = buffer.as_chunks::<8>();
    let share = words.div_ceil(pool.threads());
    let work = |w: Worker<'_>| {
        let mine = data.chunks(share.max(1)).nth(w.index).unwrap_or_default();
        black_box(sum(mine));
    };
    median(pool, (words * 8) as f64, &work)
}

/// Sums that do not wait for each other, so that reading is what takes time.
fn sum(data: &[[u8; 8]]) -> u64 {
    let mut sums = [0u64; 32];
    let (blocks, rest) = data.as_chunks::<32>();
    for block in blocks {
        // As the routines do.
        crate::micro::ask(block.as_ptr().cast(), size_of_val(block));
        for (s, v) in sums.iter_mut().zip(block) {
            *s = s.wrapping_add(u64::from_le_bytes(*v));
        }
    }
    let rest = rest.iter().map(|v| u64::from_le_bytes(*v));
    sums.into_iter().chain(rest).fold(0, u64::wrapping_add)
}

/// Work per second in the median pass; one more before them is not counted.
fn median(pool: &Pool, work: f64, f: &(dyn for<'a> Fn(Worker<'a>) + Sync)) -> Result<f64, RuntimeError> {
    pool.run(f)?;
    let mut seconds = [0.0; PASSES];
    for s in &mut seconds {
        let start = Instant::now();
        pool.run(f)?;
        *s = start.elapsed().as_secs_f64();
    }
    seconds.sort_by(f64::total_cmp);
    Ok(work / seconds[PASSES / 2].max(1e-9))
}

/// Instructions that routines use, and that this CPU has. Made by [`Arithmetic::best`] only.
#[derive(Clone, Copy)]
enum Arithmetic {
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Dotprod,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
impl Arithmetic {
    fn best() -> Option<Arithmetic> {
        None
    }

    fn floats(self, _: u64) -> u64 {
        match self {}
    }

    fn bytes(self, _: u64) -> u64 {
        match self {}
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::Arithmetic;
    use crate::micro::{Level, tile_products};

    /// Results that do not wait for each other: enough for two instructions a cycle of four cycles each.
    const CHAINS: usize = 12;

    impl Arithmetic {
        pub fn best() -> Option<Arithmetic> {
            Level::available().iter().find_map(|l| match l {
                Level::Amx => Some(Arithmetic::Amx),
                Level::Avx512 => Some(Arithmetic::Avx512),
                Level::AvxVnni => Some(Arithmetic::AvxVnni),
                Level::Avx2 => Some(Arithmetic::Avx2),
                _ => None,
            })
        }

        /// Fused multiply-adds; 0 of them give the operations of one.
        pub fn floats(self, count: u64) -> u64 {
            match self {
                // SAFETY: the CPU has what `best` found.
                Arithmetic::Amx => unsafe { tile_products(count) },
                Arithmetic::Avx512 if count == 0 => 2 * 16,
                Arithmetic::Avx2 | Arithmetic::AvxVnni if count == 0 => 2 * 8,
                // SAFETY: the CPU has what `best` found.
                Arithmetic::Avx512 => unsafe { floats512(count) },
                // SAFETY: as above.
                Arithmetic::Avx2 | Arithmetic::AvxVnni => unsafe { floats256(count) },
            }
        }

        /// Products of bytes added to 32-bit lanes; 0 of them give the operations of one.
        pub fn bytes(self, count: u64) -> u64 {
            match self {
                Arithmetic::Amx | Arithmetic::Avx512 if count == 0 => 2 * 64,
                Arithmetic::Avx2 | Arithmetic::AvxVnni if count == 0 => 2 * 32,
                // SAFETY: the CPU has what `best` found.
                Arithmetic::Amx | Arithmetic::Avx512 => unsafe { bytes512(count) },
                // SAFETY: as above.
                Arithmetic::AvxVnni => unsafe { bytes256_vnni(count) },
                // SAFETY: as above.
                Arithmetic::Avx2 => unsafe { bytes256(count) },
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    fn floats512(count: u64) -> u64 {
        let (x, y) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(1.0)));
        let mut sums = [y; CHAINS];
        for _ in 0..count / CHAINS as u64 {
            sums.iter_mut().for_each(|s| *s = _mm512_fmadd_ps(*s, x, y));
        }
        sums.iter().map(|s| _mm512_reduce_add_ps(*s) as u64).sum()
    }

    #[target_feature(enable = "avx2,fma")]
    fn floats256(count: u64) -> u64 {
        let (x, y) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(1.0)));
        let mut sums = [y; CHAINS];
        for _ in 0..count / CHAINS as u64 {
            sums.iter_mut().for_each(|s| *s = _mm256_fmadd_ps(*s, x, y));
        }
        sums.iter().map(|s| _mm_cvtss_f32(_mm256_castps256_ps128(*s)) as u64).sum()
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn bytes512(count: u64) -> u64 {
        let (x, y) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-2)));
        let mut sums = [x; CHAINS];
        for _ in 0..count / CHAINS as u64 {
            sums.iter_mut().for_each(|s| *s = _mm512_dpbusd_epi32(*s, x, y));
        }
        sums.iter().map(|s| _mm512_reduce_add_epi32(*s) as u64 & 1).sum()
    }

    #[target_feature(enable = "avx2,avxvnni")]
    fn bytes256_vnni(count: u64) -> u64 {
        let (x, y) = (_mm256_set1_epi8(black_box(3)), _mm256_set1_epi8(black_box(-2)));
        let mut sums = [x; CHAINS];
        for _ in 0..count / CHAINS as u64 {
            sums.iter_mut().for_each(|s| *s = _mm256_dpbusd_avx_epi32(*s, x, y));
        }
        sums.iter().map(|s| _mm256_extract_epi32::<0>(*s) as u64 & 1).sum()
    }

    #[target_feature(enable = "avx2")]
    fn bytes256(count: u64) -> u64 {
        let (x, y, one) =
            (_mm256_set1_epi8(black_box(3)), _mm256_set1_epi8(black_box(-2)), _mm256_set1_epi16(black_box(1)));
        let mut sums = [x; CHAINS];
        for _ in 0..count / CHAINS as u64 {
            // The product depends on the sum, or it would be computed once.
            let add = |s: &mut __m256i| {
                let pairs = _mm256_maddubs_epi16(_mm256_xor_si256(x, *s), y);
                *s = _mm256_add_epi32(*s, _mm256_madd_epi16(pairs, one));
            };
            sums.iter_mut().for_each(add);
        }
        sums.iter().map(|s| _mm256_extract_epi32::<0>(*s) as u64 & 1).sum()
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;
    use std::hint::black_box;

    use super::Arithmetic;
    use crate::micro::{Level, sdot};

    /// Results that do not wait for each other: enough for four instructions a cycle of four cycles each.
    const CHAINS: usize = 16;

    impl Arithmetic {
        pub fn best() -> Option<Arithmetic> {
            Level::available().iter().find_map(|l| match l {
                Level::Dotprod => Some(Arithmetic::Dotprod),
                Level::Neon => Some(Arithmetic::Neon),
                _ => None,
            })
        }

        /// Fused multiply-adds; 0 of them give the operations of one.
        pub fn floats(self, count: u64) -> u64 {
            match count {
                0 => 2 * 4,
                _ => floats(count),
            }
        }

        /// Sums of products of bytes in 32-bit lanes; 0 of them give the operations of one.
        pub fn bytes(self, count: u64) -> u64 {
            match self {
                _ if count == 0 => 2 * 16,
                // SAFETY: the CPU has what `best` found.
                Arithmetic::Dotprod => unsafe { bytes_dotprod(count) },
                Arithmetic::Neon => bytes(count),
            }
        }
    }

    fn floats(count: u64) -> u64 {
        // SAFETY: every aarch64 has NEON.
        unsafe {
            let (x, y) = (vdupq_n_f32(black_box(0.5)), vdupq_n_f32(black_box(1.0)));
            let mut sums = [y; CHAINS];
            for _ in 0..count / CHAINS as u64 {
                sums.iter_mut().for_each(|s| *s = vfmaq_f32(y, *s, x));
            }
            sums.iter().map(|s| vaddvq_f32(*s) as u64).sum()
        }
    }

    #[target_feature(enable = "dotprod")]
    fn bytes_dotprod(count: u64) -> u64 {
        let (x, y) = (vdupq_n_s8(black_box(3)), vdupq_n_s8(black_box(-2)));
        let mut sums = [vdupq_n_s32(0); CHAINS];
        for _ in 0..count / CHAINS as u64 {
            for s in &mut sums {
                // SAFETY: this function's callers have the instruction.
                *s = unsafe { sdot::<0>(*s, x, y) };
            }
        }
        sums.iter().map(|s| vaddvq_s32(*s) as u64 & 1).sum()
    }

    /// As routines without dotprod have them: two products in 16 bits, then widened.
    fn bytes(count: u64) -> u64 {
        // SAFETY: every aarch64 has NEON.
        unsafe {
            let (x, y) = (vdup_n_s8(black_box(3)), vdup_n_s8(black_box(-2)));
            let mut sums = [vdupq_n_s32(0); CHAINS];
            for _ in 0..count / CHAINS as u64 {
                sums.iter_mut().for_each(|s| {
                    // The products depend on the sum, or they would be computed once.
                    let x = veor_s8(x, vget_low_s8(vreinterpretq_s8_s32(*s)));
                    *s = vpadalq_s16(*s, vmlal_s8(vmull_s8(x, y), x, y));
                });
            }
            sums.iter().map(|s| vaddvq_s32(*s) as u64 & 1).sum()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_summed_once() {
        let data: Vec<[u8; 8]> = (0..1003u64).map(u64::to_le_bytes).collect();
        assert_eq!(sum(&data), 1003 * 1002 / 2);
    }

    #[test]
    fn rates_are_rates() {
        let pool = Pool::new(2).unwrap();
        let p = peaks(&pool, 1 << 20).unwrap();
        // Between a byte a microsecond and what no machine does.
        let plausible = |rate: f64| (1e6..1e15).contains(&rate);
        assert!(plausible(p.read), "{p:?}");
        assert!(p.flops.is_none_or(plausible) && p.int8_ops.is_none_or(plausible), "{p:?}");
        assert_eq!(p.flops.is_some(), crate::micro::Routines::Best.level().is_some());
    }
}

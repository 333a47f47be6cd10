//! Tiles: their shapes, moving them, products of bf16.
//!
//! Instructions are written out, as there are no functions for them in stable Rust. Tiles 0 to 3 are sums, 4 and 5 activations, 6 and 7
//! weights; the compiler uses none of them for anything.

use std::arch::asm;
#[cfg(target_os = "linux")]
use std::arch::x86_64::{__cpuid, __cpuid_count};

/// Rows of a tile.
pub const ROWS: usize = 16;
/// Bytes of a row.
pub const BYTES: usize = 64;

/// Has the CPU bf16 products of tiles, and does the system let this process use them?
pub fn available() -> bool {
    // Linux asks for permission once per process, as tiles make what a switch of threads saves larger.
    #[cfg(target_os = "linux")]
    {
        // Leaf 7 says in EDX: bit 22 AMX-BF16, bit 24 AMX-TILE. Leaf 0 says which is the last.
        const BITS: u32 = 1 << 22 | 1 << 24;
        let has = || __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BITS == BITS;
        has() && is_x86_feature_detected!("avx512bf16") && permitted()
    }
    #[cfg(not(target_os = "linux"))]
    false
}

#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let failed: i64;
    // SAFETY: the call changes what the process may use, no memory.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => failed, in("rdi") REQUEST, in("rsi") TILE_DATA,
            out("rcx") _, out("r11") _, options(nostack));
    }
    failed == 0
}

/// What LDTILECFG reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    /// Bytes of a row, by tile.
    bytes: [u16; 16],
    /// Rows, by tile.
    rows: [u8; 16],
}

/// Tiles of a product of up to twice 16 tokens and up to twice 16 rows of weights; a second one may have none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub tokens: [usize; 2],
    pub rows: [usize; 2],
}

/// Tiles in use, by their shape; released when dropped, which makes switching threads cheap again.
#[derive(Default)]
pub struct Tiles(Option<Shape>);

impl Tiles {
    /// Gives all tiles these shapes. What they hold is lost if they had others.
    ///
    /// # Safety
    /// Tiles are [`available`]; no extent is above 16.
    #[inline]
    pub unsafe fn shape(&mut self, shape: Shape) {
        if self.0 == Some(shape) {
            return;
        }
        self.0 = Some(shape);
        let mut c = Config { palette: 1, start: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        // A tile without rows must have no bytes either; it is not used.
        let mut set = |tile: usize, rows: usize, bytes: usize| {
            (c.rows[tile], c.bytes[tile]) = if rows * bytes == 0 { (0, 0) } else { (rows as u8, bytes as u16) };
        };
        for i in 0..2 {
            for j in 0..2 {
                set(2 * i + j, shape.tokens[i], shape.rows[j] * 4);
            }
            set(4 + i, shape.tokens[i], BYTES);
            set(6 + i, ROWS, shape.rows[i] * 4);
        }
        // SAFETY: the configuration is one of palette 1.
        unsafe { asm!("ldtilecfg [{c}]", c = in(reg) &raw const c, options(nostack, preserves_flags, readonly)) };
    }
}

impl Drop for Tiles {
    #[inline]
    fn drop(&mut self) {
        if self.0.is_some() {
            // SAFETY: there are tiles, since they have been given shapes.
            unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
        }
    }
}

/// `zero!(tile)`
macro_rules! zero {
    ($t:literal) => {
        ::std::arch::asm!(concat!("tilezero tmm", $t), options(nostack, preserves_flags, nomem))
    };
}

/// `load!(tile, address, bytes between rows)`
macro_rules! load {
    ($t:literal, $at:expr, $next:expr) => {
        ::std::arch::asm!(concat!("tileloadd tmm", $t, ", [{at} + {next}*1]"), at = in(reg) $at, next = in(reg) $next,
            options(nostack, preserves_flags, readonly))
    };
}

/// `store!(tile, address, bytes between rows)`
macro_rules! store {
    ($t:literal, $at:expr, $next:expr) => {
        ::std::arch::asm!(concat!("tilestored [{at} + {next}*1], tmm", $t), at = in(reg) $at, next = in(reg) $next,
            options(nostack, preserves_flags))
    };
}

/// `multiply!(sums, activations, weights)`
macro_rules! multiply {
    ($c:literal, $a:literal, $b:literal) => {
        ::std::arch::asm!(
            concat!("tdpbf16ps tmm", $c, ", tmm", $a, ", tmm", $b),
            options(nostack, preserves_flags, nomem)
        )
    };
}

pub(super) use {load, store, zero};

/// Products of bf16 tiles, `count` of them, four sums in turn; 0 of them give the operations of one.
///
/// # Safety
/// Tiles are [`available`].
pub unsafe fn tile_products(count: u64) -> u64 {
    if count == 0 {
        return 2 * (ROWS * ROWS * BYTES / 2) as u64;
    }
    let mut tiles = Tiles::default();
    // SAFETY: the caller's; tiles that were just shaped are zero.
    unsafe {
        tiles.shape(Shape { tokens: [ROWS; 2], rows: [ROWS; 2] });
        for _ in 0..count / 4 {
            multiply!(0, 4, 6);
            multiply!(1, 4, 7);
            multiply!(2, 5, 6);
            multiply!(3, 5, 7);
        }
    }
    count
}

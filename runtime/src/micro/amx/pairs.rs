//! Products of bf16 in pairs.

use std::arch::asm;

use super::super::Call;
use super::tile::{BYTES, ROWS, Shape, Tiles, load, store, zero};

/// Groups of 32 along k whose weights a pass over the tokens keeps in the nearest cache.
const PASS: usize = 12;

/// A product and its factors: where they are, and the bytes between their rows.
#[derive(Clone, Copy)]
pub struct Place {
    /// `f32[tokens, rows]`
    pub acc: *mut f32,
    pub acc_next: usize,
    /// `bf16[16 * groups, rows, 2]`
    pub w: *const u8,
    pub w_next: usize,
    /// `bf16[tokens, 32 * groups]`
    pub x: *const u8,
    pub x_next: usize,
}

/// A product of matrices.
pub struct Product {
    pub place: Place,
    pub tokens: usize,
    pub rows: usize,
    pub groups: usize,
}

impl Product {
    /// Computes it, or adds it to what is there.
    ///
    /// # Safety
    /// The matrices are where the product says, on a CPU that has the level.
    pub unsafe fn run(&self, tiles: &mut Tiles, add: bool) {
        let passes = self.groups.div_ceil(PASS);
        for pass in 0..passes {
            let [from, to] = [pass, pass + 1].map(|i| self.groups * i / passes);
            for row in (0..self.rows).step_by(2 * ROWS) {
                for token in (0..self.tokens).step_by(2 * ROWS) {
                    let shape = Shape { tokens: halves(self.tokens - token), rows: halves(self.rows - row) };
                    let all = self.place;
                    // SAFETY: the caller's; tiles have the shape of what is left.
                    unsafe {
                        tiles.shape(shape);
                        let at = Place {
                            acc: all.acc.byte_add(token * all.acc_next).add(row),
                            w: all.w.add(from * ROWS * all.w_next + row * 4),
                            x: all.x.add(token * all.x_next + from * BYTES),
                            ..all
                        };
                        let (groups, add) = (to - from, add || pass > 0);
                        match (shape.tokens[1] > 0, shape.rows[1] > 0) {
                            (true, true) => tile::<true, true>(at, groups, add),
                            (true, false) => tile::<true, false>(at, groups, add),
                            (false, true) => tile::<false, true>(at, groups, add),
                            (false, false) => tile::<false, false>(at, groups, add),
                        }
                    }
                }
            }
        }
    }
}

/// [`MicroOp::Pairs`](marquetry_ir::loops::MicroOp::Pairs).
pub unsafe extern "C" fn pairs(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Pairs` says, on a CPU that has the level.
    unsafe {
        let c = Call { args, sizes };
        let [tokens, blocks, groups] = [0, 1, 2].map(|i| c.size(i));
        // Strides follow the three sizes.
        let place = Place {
            acc: c.arg(0),
            acc_next: blocks * 32,
            w: c.arg(1),
            w_next: c.size(4) * 2,
            x: c.arg(2),
            x_next: c.size(5) * 2,
        };
        Product { place, tokens, rows: blocks * 8, groups }.run(&mut Tiles::default(), false);
    }
}

/// How many of `left` are in a first and a second tile.
fn halves(left: usize) -> [usize; 2] {
    let first = left.min(ROWS);
    [first, (left - first).min(ROWS)]
}

/// `steps!(place, groups, instructions)` repeats the instructions for each group: `x` and `y` are the tokens of the first and the second
/// tile, `w` the weights. The loop is written out as well, since the unit waits for whatever stands between its instructions.
macro_rules! steps {
    ($p:expr, $groups:expr, $($line:literal,)+) => {
        asm!(
            "2:",
            $($line,)+
            "add {x}, 64",
            "add {y}, 64",
            "add {w}, {step}",
            "dec {n}",
            "jnz 2b",
            x = inout(reg) $p.x => _,
            y = inout(reg) $p.x.wrapping_add(ROWS * $p.x_next) => _,
            w = inout(reg) $p.w => _,
            n = inout(reg) $groups => _,
            xs = in(reg) $p.x_next,
            ws = in(reg) $p.w_next,
            step = in(reg) ROWS * $p.w_next,
            options(nostack, readonly),
        )
    };
}

/// The product of one or two tiles of tokens (`T`) and of rows (`R`) over `groups`, set or added.
#[inline(always)]
unsafe fn tile<const T: bool, const R: bool>(p: Place, groups: usize, add: bool) {
    unsafe {
        let below = p.acc.byte_add(ROWS * p.acc_next);
        if add {
            load!(0, p.acc, p.acc_next);
            if R {
                load!(1, p.acc.add(ROWS), p.acc_next);
            }
            if T {
                load!(2, below, p.acc_next);
            }
            if T && R {
                load!(3, below.add(ROWS), p.acc_next);
            }
        } else {
            zero!(0);
            if R {
                zero!(1);
            }
            if T {
                zero!(2);
            }
            if T && R {
                zero!(3);
            }
        }
        if groups > 0 {
            match (T, R) {
                (true, true) => steps!(
                    p,
                    groups,
                    "tileloadd tmm4, [{x} + {xs}*1]",
                    "tileloadd tmm6, [{w} + {ws}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{w} + {ws}*1 + 64]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{y} + {xs}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                ),
                (false, true) => steps!(
                    p,
                    groups,
                    "tileloadd tmm4, [{x} + {xs}*1]",
                    "tileloadd tmm6, [{w} + {ws}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{w} + {ws}*1 + 64]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                ),
                (true, false) => steps!(
                    p,
                    groups,
                    "tileloadd tmm4, [{x} + {xs}*1]",
                    "tileloadd tmm6, [{w} + {ws}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{y} + {xs}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                ),
                (false, false) => steps!(
                    p,
                    groups,
                    "tileloadd tmm4, [{x} + {xs}*1]",
                    "tileloadd tmm6, [{w} + {ws}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                ),
            }
        }
        store!(0, p.acc, p.acc_next);
        if R {
            store!(1, p.acc.add(ROWS), p.acc_next);
        }
        if T {
            store!(2, below, p.acc_next);
        }
        if T && R {
            store!(3, below.add(ROWS), p.acc_next);
        }
    }
}

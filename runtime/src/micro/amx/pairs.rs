//! Products of bf16 in pairs.

use super::super::Call;
use super::tile::{BYTES, ROWS, Shape, Tiles, load, multiply, store, zero};

/// Groups of 32 along k whose weights a pass over the tokens keeps in the nearest cache.
const PASS: usize = 12;

/// Two matrices and their product, from some token and row on, with the bytes between their rows.
#[derive(Clone, Copy)]
struct Place {
    acc: *mut f32,
    acc_next: usize,
    w: *const u8,
    w_next: usize,
    x: *const u8,
    x_next: usize,
}

/// [`MicroOp::Pairs`](marquetry_ir::loops::MicroOp::Pairs).
pub unsafe extern "C" fn pairs(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Pairs` says, on a CPU that has the level.
    unsafe {
        let c = Call { args, sizes };
        let [tokens, blocks, groups] = [0, 1, 2].map(|i| c.size(i));
        if tokens * blocks == 0 {
            return;
        }
        // Strides follow the three sizes.
        let all = Place {
            acc: c.arg(0),
            acc_next: blocks * 32,
            w: c.arg(1),
            w_next: c.size(4) * 2,
            x: c.arg(2),
            x_next: c.size(5) * 2,
        };
        let passes = groups.div_ceil(PASS).max(1);
        let mut tiles: Option<(Shape, Tiles)> = None;
        for pass in 0..passes {
            let [from, to] = [pass, pass + 1].map(|i| groups * i / passes);
            for row in (0..blocks * 8).step_by(2 * ROWS) {
                for token in (0..tokens).step_by(2 * ROWS) {
                    let shape = Shape { tokens: halves(tokens - token), rows: halves(blocks * 8 - row) };
                    match &mut tiles {
                        Some((now, tiles)) if *now != shape => {
                            tiles.reshape(shape);
                            *now = shape;
                        }
                        Some(_) => {}
                        none => *none = Some((shape, Tiles::new(shape))),
                    }
                    let at = Place {
                        acc: all.acc.byte_add(token * all.acc_next).add(row),
                        w: all.w.add(from * ROWS * all.w_next + row * 4),
                        x: all.x.add(token * all.x_next + from * BYTES),
                        ..all
                    };
                    match (shape.tokens[1] > 0, shape.rows[1] > 0) {
                        (true, true) => tile::<true, true>(at, to - from, pass > 0),
                        (true, false) => tile::<true, false>(at, to - from, pass > 0),
                        (false, true) => tile::<false, true>(at, to - from, pass > 0),
                        (false, false) => tile::<false, false>(at, to - from, pass > 0),
                    }
                }
            }
        }
    }
}

/// How many of `left` are in a first and a second tile.
fn halves(left: usize) -> [usize; 2] {
    let first = left.min(ROWS);
    [first, (left - first).min(ROWS)]
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
        let (mut w, mut x) = (p.w, p.x);
        for _ in 0..groups {
            load!(4, x, p.x_next);
            load!(6, w, p.w_next);
            multiply!(0, 4, 6);
            if R {
                load!(7, w.add(BYTES), p.w_next);
                multiply!(1, 4, 7);
            }
            if T {
                load!(5, x.add(ROWS * p.x_next), p.x_next);
                multiply!(2, 5, 6);
            }
            if T && R {
                multiply!(3, 5, 7);
            }
            x = x.add(BYTES);
            w = w.add(ROWS * p.w_next);
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

//! Packed rows, eight at a time: their products with quantized activations, and their values.

use super::ahead::ask_group;
use super::eight::Eight;
use super::{Call, Layout, quads, scale_bytes};

/// Tokens that share a pass over the weights.
const TILE: usize = 4;

/// How an instruction set takes packed rows apart and multiplies bytes.
pub trait Bytes {
    type Floats: Eight;

    /// Sums of products of `T` tokens with those elements of a group of eight rows that have its scale number `SUB`, exact. Tokens
    /// are `next` bytes apart.
    unsafe fn dot<L: Layout, const T: usize, const SUB: usize>(
        data: *const u8,
        q: *const u8,
        next: usize,
    ) -> [Self::Floats; T];

    /// Elements `4 * I ..` of a group of eight rows.
    unsafe fn elements<L: Layout, const I: usize>(data: *const u8) -> [Self::Floats; 4];
}

/// A row block: data, scales, minima.
#[derive(Clone, Copy)]
struct Rows {
    data: *const u8,
    scale: *const u8,
    min: *const u8,
}

/// Activations of the first token, and distances to the next in bytes.
#[derive(Clone, Copy)]
pub struct Tokens {
    pub q: *const u8,
    pub scale: *const f32,
    pub sum: *const f32,
    pub next: [usize; 3],
}

impl Tokens {
    /// Those from the one `t` further on.
    #[inline(always)]
    pub unsafe fn at(self, t: usize) -> Tokens {
        unsafe {
            Tokens {
                q: self.q.add(t * self.next[0]),
                scale: self.scale.byte_add(t * self.next[1]),
                sum: self.sum.byte_add(t * self.next[2]),
                next: self.next,
            }
        }
    }
}

/// [`MicroOp::Dot`](marquetry_ir::loops::MicroOp::Dot) for one layout.
///
/// # Safety
/// The call is one of that operation, on a CPU that has the instructions.
#[inline(always)]
pub unsafe fn dot<B: Bytes, L: Layout>(c: Call) {
    unsafe {
        let [tokens, blocks, groups] = [c.size(0), c.size(1), c.size(2)];
        let p = L::P;
        let x = if p.min { 4 } else { 3 };
        let acc: *mut f32 = c.arg(0);
        // Strides follow the three sizes.
        let (data, scale) = (c.size(4) * 4, c.size(5) * scale_bytes(p));
        let next = [c.size(3 + x) * 4, c.size(4 + x) * 4, c.size(5 + x) * 4];
        let all = Tokens { q: c.arg(x), scale: c.arg(x + 1), sum: c.arg(x + 2), next };
        for b in 0..blocks {
            let rows = Rows {
                data: c.arg::<u8>(1).add(b * data),
                scale: c.arg::<u8>(2).add(b * scale),
                min: c.arg::<u8>(if p.min { 3 } else { 2 }).add(b * scale),
            };
            let mut t = 0;
            while t < tokens {
                let from = all.at(t);
                let out = acc.add((t * blocks + b) * 8);
                t += match tokens - t {
                    TILE.. => tile::<B, L, TILE>(rows, from, groups, out, blocks * 8, t == 0),
                    2.. => tile::<B, L, 2>(rows, from, groups, out, blocks * 8, t == 0),
                    _ => tile::<B, L, 1>(rows, from, groups, out, blocks * 8, t == 0),
                };
            }
        }
    }
}

/// 8 rows by `T` tokens; returns `T`. The first pass over the rows asks for the next ones.
#[inline(always)]
unsafe fn tile<B: Bytes, L: Layout, const T: usize>(
    rows: Rows,
    x: Tokens,
    groups: usize,
    out: *mut f32,
    next: usize,
    first: bool,
) -> usize {
    unsafe {
        let mut acc = [B::Floats::splat(0.0); T];
        for g in 0..groups {
            if first {
                ask_group::<L>(g, rows.data, rows.scale, rows.min);
            }
            add::<B, L, T, 0>(rows, x, g, &mut acc);
            if L::P.group == 16 {
                add::<B, L, T, 1>(rows, x, g, &mut acc);
            }
        }
        for (t, v) in acc.into_iter().enumerate() {
            v.store(out.add(t * next));
        }
        T
    }
}

/// The products of those elements of group `g` that have its scale number `SUB`.
#[inline(always)]
unsafe fn add<B: Bytes, L: Layout, const T: usize, const SUB: usize>(
    rows: Rows,
    x: Tokens,
    g: usize,
    acc: &mut [B::Floats; T],
) {
    unsafe {
        let p = L::P;
        let subs = 32 / p.group as usize;
        let dots = B::dot::<L, T, SUB>(rows.data.add(g * p.bits as usize * 32), x.q.add(g * 32), x.next[0]);
        let at = (g * subs + SUB) * 8 * scale_bytes(p);
        let s = side::<B::Floats, L>(rows.scale.add(at));
        let m = if p.min { side::<B::Floats, L>(rows.min.add(at)) } else { s };
        for (t, (acc, d)) in acc.iter_mut().zip(dots).enumerate() {
            let from = x.at(t);
            let sum = from.sum.add(g * 2);
            let total = if subs == 2 { *sum.add(SUB) } else { *sum + *sum.add(1) };
            let xs = B::Floats::splat(*from.scale.add(g));
            *acc = match (p.min, p.zero) {
                (true, _) => s.fma(d.mul(xs), m.fma(B::Floats::splat(total), *acc)),
                (false, 0) => s.fma(d.mul(xs), *acc),
                (false, zero) => s.fma(d.fma(xs, B::Floats::splat(total * -f32::from(zero))), *acc),
            };
        }
    }
}

/// [`MicroOp::Unpack`](marquetry_ir::loops::MicroOp::Unpack) for one layout.
///
/// # Safety
/// As [`dot`]'s.
#[inline(always)]
pub unsafe fn unpack<B: Bytes, L: Layout>(c: Call) {
    unsafe {
        let p = L::P;
        let [blocks, groups] = [c.size(0), c.size(1)];
        // Strides follow the two sizes.
        let (next, data, side_next) = (c.size(2), c.size(3) * 4, c.size(4) * scale_bytes(p));
        let subs = 32 / p.group as usize;
        for b in 0..blocks {
            let out = c.arg::<f32>(0).add(b * next);
            let data = c.arg::<u8>(1).add(b * data);
            let scale = c.arg::<u8>(2).add(b * side_next);
            let min = c.arg::<u8>(if p.min { 3 } else { 2 }).add(b * side_next);
            for g in 0..groups {
                ask_group::<L>(g, data, scale, min);
                let data = data.add(g * p.bits as usize * 32);
                let out = out.add(g * 32 * 8);
                quads!(I, {
                    let at = (g * subs + I * subs / 8) * 8 * scale_bytes(p);
                    let s = side::<B::Floats, L>(scale.add(at));
                    let m = if p.min { side::<B::Floats, L>(min.add(at)) } else { s };
                    for (j, q) in B::elements::<L, I>(data).into_iter().enumerate() {
                        let v = match p.min {
                            true => s.mul(q).add(m),
                            false => s.mul(q.sub(B::Floats::splat(f32::from(p.zero)))),
                        };
                        v.store(out.add((4 * I + j) * 8));
                    }
                });
            }
        }
    }
}

/// Scales or minima of eight rows.
#[inline(always)]
pub unsafe fn side<E: Eight, L: Layout>(p: *const u8) -> E {
    unsafe { if scale_bytes(L::P) == 2 { E::load::<1>(p) } else { E::load::<0>(p) } }
}

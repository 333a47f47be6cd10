//! Packed rows, eight at a time: their products with quantized activations, and their values.

use std::ops::Range;

use marquetry_ir::{DType, FACTOR_SPAN, Packed};

use super::ahead::ask_group;
use super::eight::Eight;
use super::panel::{Apart, GROUPS, Panel, worth_a_panel};
use super::vector::Lanes;
use super::{Call, Layout, quads};

/// Tokens that share a pass over the weights.
const TILE: usize = 4;

/// How an instruction set takes packed rows apart and multiplies bytes.
pub trait Bytes {
    type Floats: Eight;

    /// What [`Bytes::dot`] takes off elements of a layout.
    fn center(p: Packed) -> u8;

    /// Sums of products of `T` tokens with those elements of a group of eight rows that have its scale number `SUB`, less
    /// [`Bytes::center`], exact. Tokens are `next` bytes apart.
    unsafe fn dot<L: Layout, const T: usize, const SUB: usize>(
        data: *const u8,
        q: *const u8,
        next: usize,
    ) -> [Self::Floats; T];

    /// Writes elements `4 * I ..` of a group of eight rows as 32 bytes.
    unsafe fn quad<L: Layout, const I: usize>(data: *const u8, to: *mut u8);

    /// Elements `4 * I ..` of a group of eight rows.
    unsafe fn elements<L: Layout, const I: usize>(data: *const u8) -> [Self::Floats; 4];
}

/// A row block: data, scales, minima, factors.
#[derive(Clone, Copy)]
pub struct Rows {
    pub data: *const u8,
    pub scale: *const u8,
    pub min: *const u8,
    pub factor: *const u8,
}

impl Rows {
    /// Row block `b` of a call with so many sizes, whose planes are its arguments from number 1 on.
    #[inline(always)]
    pub unsafe fn of<L: Layout>(c: Call, sizes: usize, b: usize) -> Rows {
        let p = L::P;
        // Strides follow the sizes. A plane that there is not is never read.
        let plane =
            |arg: usize, size: usize| unsafe { c.arg::<u8>(arg).add(b * c.size(sizes + arg) * size).cast_const() };
        Rows {
            data: plane(1, 4),
            scale: plane(2, p.scale.size()),
            min: plane(if p.min { 3 } else { 2 }, p.scale.size()),
            factor: plane(p.planes(), DType::F16.size()),
        }
    }

    /// The data of group `g`.
    #[inline(always)]
    pub fn group<L: Layout>(self, g: usize) -> *const u8 {
        self.data.wrapping_add(g * L::P.bits as usize * 32)
    }

    /// Scales and minima of those elements of group `g` that have its scale number `sub`; without minima the scales twice.
    #[inline(always)]
    pub unsafe fn sides<E: Eight, L: Layout>(self, g: usize, sub: usize) -> [E; 2] {
        unsafe {
            let p = L::P;
            let at = (g * (32 / p.group as usize) + sub) * 8 * p.scale.size();
            let kinds = 1 + p.min as usize;
            // Where there are no factors, it is no address.
            let factor = self.factor.wrapping_add(g / (FACTOR_SPAN / 32) * kinds * 16);
            let s = side::<E, L>(self.scale.wrapping_add(at), factor);
            [s, if p.min { side::<E, L>(self.min.wrapping_add(at), factor.wrapping_add(16)) } else { s }]
        }
    }
}

/// Scales or minima of eight rows.
#[inline(always)]
unsafe fn side<E: Eight, L: Layout>(plane: *const u8, factor: *const u8) -> E {
    unsafe {
        match L::P.scale {
            DType::U8 => E::load::<1>(factor).mul(E::bytes::<false>(plane)),
            DType::I8 => E::load::<1>(factor).mul(E::bytes::<true>(plane)),
            DType::F16 => E::load::<1>(plane),
            _ => E::load::<0>(plane),
        }
    }
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
    /// Those of a call of [`MicroOp::Dot`](marquetry_ir::loops::MicroOp::Dot).
    #[inline(always)]
    pub unsafe fn of<L: Layout>(c: Call) -> Tokens {
        unsafe {
            // Behind the product and the planes; strides follow the three sizes.
            let x = 1 + L::P.planes();
            let next = [c.size(3 + x) * 4, c.size(4 + x) * 4, c.size(5 + x) * 4];
            Tokens { q: c.arg(x), scale: c.arg(x + 1), sum: c.arg(x + 2), next }
        }
    }

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
        let acc: *mut f32 = c.arg(0);
        let all = Tokens::of::<L>(c);
        for b in 0..blocks {
            let rows = Rows::of::<L>(c, 3, b);
            let to = Outputs { first: acc.add(b * 8), next: blocks * 8 };
            if !worth_a_panel(L::P) || tokens <= TILE || groups == 0 {
                tiles::<B, L>(rows, (all, tokens), 0..groups, to, true);
                continue;
            }
            let mut panel = Panel::new();
            for first in (0..groups).step_by(GROUPS) {
                let some = first..groups.min(first + GROUPS);
                let apart = panel.fill::<B, L>(rows, some.clone());
                tiles::<B, Apart<L>>(apart, (all, tokens), some, to, false);
            }
        }
    }
}

/// Where sums of eight rows go, those of the first token and how far on the next one's are.
#[derive(Clone, Copy)]
struct Outputs {
    first: *mut f32,
    next: usize,
}

/// Some groups of 8 rows by all tokens; adds to the sums if they are not the first ones. The first pass over the rows can ask for the
/// next ones.
#[inline(always)]
unsafe fn tiles<B: Bytes, L: Layout>(
    rows: Rows,
    (all, tokens): (Tokens, usize),
    groups: Range<usize>,
    to: Outputs,
    ask: bool,
) {
    unsafe {
        let mut t = 0;
        while t < tokens {
            let (x, groups, ask) = (all.at(t), groups.clone(), ask && t == 0);
            let to = Outputs { first: to.first.add(t * to.next), ..to };
            t += match tokens - t {
                TILE.. => tile::<B, L, TILE>(rows, x, groups, to, ask),
                2.. => tile::<B, L, 2>(rows, x, groups, to, ask),
                _ => tile::<B, L, 1>(rows, x, groups, to, ask),
            };
        }
    }
}

/// The same for `T` tokens; returns `T`.
#[inline(always)]
unsafe fn tile<B: Bytes, L: Layout, const T: usize>(
    rows: Rows,
    x: Tokens,
    groups: Range<usize>,
    to: Outputs,
    ask: bool,
) -> usize {
    unsafe {
        let mut acc = [B::Floats::splat(0.0); T];
        if groups.start > 0 {
            for (t, v) in acc.iter_mut().enumerate() {
                *v = B::Floats::load::<0>(to.first.add(t * to.next).cast());
            }
        }
        for g in groups {
            if ask {
                ask_group::<L>(g, rows);
            }
            add::<B, L, T, 0>(rows, x, g, &mut acc);
            if L::P.group == 16 {
                add::<B, L, T, 1>(rows, x, g, &mut acc);
            }
        }
        for (t, v) in acc.into_iter().enumerate() {
            v.store(to.first.add(t * to.next));
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
        let dots = B::dot::<L, T, SUB>(rows.group::<L>(g), x.q.add(g * 32), x.next[0]);
        let [s, m] = rows.sides::<B::Floats, L>(g, SUB);
        let shift = i16::from(B::center(p)) - i16::from(p.zero);
        for (t, (acc, d)) in acc.iter_mut().zip(dots).enumerate() {
            let from = x.at(t);
            let sum = from.sum.add(g * 2);
            let total = if subs == 2 { *sum.add(SUB) } else { *sum + *sum.add(1) };
            let xs = B::Floats::splat(*from.scale.add(g));
            let before = if p.min { m.fma(B::Floats::splat(total), *acc) } else { *acc };
            let product = match shift {
                0 => d.mul(xs),
                _ => d.fma(xs, B::Floats::splat(total * f32::from(shift))),
            };
            *acc = s.fma(product, before);
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
        let next = c.size(2);
        let subs = 32 / p.group as usize;
        for b in 0..blocks {
            let out = c.arg::<f32>(0).add(b * next);
            let rows = Rows::of::<L>(c, 2, b);
            for g in 0..groups {
                ask_group::<L>(g, rows);
                let data = rows.group::<L>(g);
                let out = out.add(g * 32 * 8);
                let sides = [rows.sides::<B::Floats, L>(g, 0), rows.sides::<B::Floats, L>(g, subs - 1)];
                quads!(I, {
                    let [s, m] = sides[I * subs / 8];
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

//! Rows taken apart: packed ones as plain bytes with f32 scales, which many tokens then share.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use marquetry_ir::{DType, Packed};

use super::ahead::ask_group;
use super::packed::{Bytes, Rows};
use super::vector::Lanes;
use super::{Layout, quads};

/// Groups of a panel: with the activations beside it it stays in the first cache.
pub const GROUPS: usize = 32;

/// The layout of a panel of rows of layout `L`: the same numbers, a byte each, and scales that need no conversion.
pub struct Apart<L>(PhantomData<L>);

impl<L: Layout> Layout for Apart<L> {
    const P: Packed = Packed { bits: 8, scale: DType::F32, ..L::P };
}

/// Does taking elements apart for every few tokens cost more than reading them as bytes? Those with all bits in one part are a shift
/// and a mask.
pub const fn worth_a_panel(p: Packed) -> bool {
    p.bits.count_ones() > 1
}

/// Up to [`GROUPS`] groups of eight rows.
pub struct Panel {
    data: MaybeUninit<[[u8; 32]; 8 * GROUPS]>,
    scale: MaybeUninit<[[f32; 8]; 2 * GROUPS]>,
    min: MaybeUninit<[[f32; 8]; 2 * GROUPS]>,
}

impl Panel {
    pub const fn new() -> Panel {
        Panel { data: MaybeUninit::uninit(), scale: MaybeUninit::uninit(), min: MaybeUninit::uninit() }
    }

    /// Takes some groups of `rows` apart, and asks for the ones after them. What is returned has them under the same numbers, and is of
    /// layout [`Apart`].
    ///
    /// # Safety
    /// The rows have the groups, of which there are [`GROUPS`] at most; the CPU has the instructions.
    #[inline(always)]
    pub unsafe fn fill<B: Bytes, L: Layout>(&mut self, rows: Rows, groups: Range<usize>) -> Rows {
        let subs = 32 / L::P.group as usize;
        let first = groups.start;
        let (data, scale, min): (*mut u8, *mut f32, *mut f32) =
            (self.data.as_mut_ptr().cast(), self.scale.as_mut_ptr().cast(), self.min.as_mut_ptr().cast());
        for g in groups {
            ask_group::<L>(g, rows);
            let at = g - first;
            // SAFETY: the caller's; there is room for so many groups.
            unsafe {
                let from = rows.group::<L>(g);
                quads!(I, { B::quad::<L, I>(from, data.add((at * 8 + I) * 32)) });
                for sub in 0..subs {
                    let [s, m] = rows.sides::<B::Floats, L>(g, sub);
                    let at = (at * subs + sub) * 8;
                    s.store(scale.add(at));
                    if L::P.min {
                        m.store(min.add(at));
                    }
                }
            }
        }
        let sides = first * subs * 32;
        Rows {
            data: data.cast_const().wrapping_sub(first * 256),
            scale: scale.cast_const().cast::<u8>().wrapping_sub(sides),
            min: min.cast_const().cast::<u8>().wrapping_sub(sides),
            factor: std::ptr::null(),
        }
    }
}

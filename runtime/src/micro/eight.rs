//! Eight floats: a row block's, or those of neighbouring features or positions.

use super::vector::Lanes;

/// Eight floats in registers.
pub trait Eight: Lanes {
    /// Eight bytes as numbers, with a sign or without.
    unsafe fn bytes<const SIGNED: bool>(p: *const u8) -> Self;
    /// Lanes `first..=last`; the rest is `other`.
    unsafe fn only(self, first: i32, last: i32, other: f32) -> Self;
    /// The sum of the lanes.
    unsafe fn sum(self) -> f32;
    /// The sum of each of eight vectors.
    unsafe fn sums(v: &[Self; 8]) -> Self;
    /// Rows as columns.
    unsafe fn transpose(rows: [Self; 8]) -> [Self; 8];
}

/// [`Lanes::turn`] of eight floats.
#[inline(always)]
pub unsafe fn turn<E: Eight>(from: (*const f32, usize), given: usize, to: (*mut f32, usize), wanted: usize) {
    unsafe {
        let mut rows = [E::splat(0.0); 8];
        for (j, row) in rows.iter_mut().enumerate() {
            *row = E::load::<0>(from.0.add(j.min(given - 1) * from.1).cast());
        }
        for (i, column) in E::transpose(rows).into_iter().enumerate().take(wanted) {
            column.store(to.0.add(i * to.1));
        }
    }
}

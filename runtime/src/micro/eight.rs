//! Eight floats: a row block's, or those of neighbouring features or positions. What instruction sets share is written over them.
//!
//! Such code is inlined into functions that have the instruction set. It has no closures: they would not be, and be called for
//! every vector.

/// Eight floats in registers. Everything but their definition needs a CPU that has the instruction set.
pub trait Eight: Copy {
    /// One number eight times.
    unsafe fn splat(v: f32) -> Self;
    /// Those of type `D` at an address that is readable: 0 for f32, 1 for f16, 2 for bf16.
    unsafe fn load<const D: u8>(p: *const u8) -> Self;
    /// Eight bytes as numbers, with a sign or without.
    unsafe fn bytes<const SIGNED: bool>(p: *const u8) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    /// `self * factor + more`, rounded once.
    unsafe fn fma(self, factor: Self, more: Self) -> Self;
    /// The nearest integers.
    unsafe fn round(self) -> Self;
    /// `2^self` of integers from -126 to 127.
    unsafe fn power(self) -> Self;
    /// The magnitudes.
    unsafe fn abs(self) -> Self;
    /// Numbers that are not negative, with the signs of others.
    unsafe fn signed(self, signs: Self) -> Self;
    /// `other` in the lanes where `by` has its sign set, these in the others.
    unsafe fn select(self, other: Self, by: Self) -> Self;
    /// Lanes `first..=last`; the rest is `other`.
    unsafe fn only(self, first: i32, last: i32, other: f32) -> Self;
    /// The sum of the lanes.
    unsafe fn sum(self) -> f32;
    /// The largest lane.
    unsafe fn largest(self) -> f32;
    /// The sum of each of eight vectors.
    unsafe fn sums(v: &[Self; 8]) -> Self;
    /// Rows as columns.
    unsafe fn transpose(rows: [Self; 8]) -> [Self; 8];

    /// `e^self` of numbers that are not positive, within about 2 units in the last place; next to 0 below the smallest normal number.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        unsafe {
            let x = self.max(Self::splat(-87.0));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            // ln 2 in two parts keeps the remainder exact.
            let r = n.fma(Self::splat(-0.693_359_4), x);
            let r = n.fma(Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.0 / 5040.0);
            for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
                p = p.fma(r, Self::splat(c));
            }
            p.mul(n.power())
        }
    }

    /// `tanh`, within a few units in the last place of 1.
    #[inline(always)]
    unsafe fn tanh(self) -> Self {
        unsafe {
            let e = self.abs().mul(Self::splat(-2.0)).exp();
            let one = Self::splat(1.0);
            one.sub(e).div(one.add(e)).signed(self)
        }
    }
}

/// Bytes of a float of type `D`.
pub const fn size<const D: u8>() -> usize {
    if D == 0 { 4 } else { 2 }
}

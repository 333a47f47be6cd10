//! Vectors of floats. What instruction sets share is written over them.
//!
//! Such code is inlined into functions that have the instruction set. It has no closures: they would not be, and be called for
//! every vector.

/// Floats in registers. Everything but their definition needs a CPU that has the instruction set.
pub trait Lanes: Copy {
    /// How many there are: 8 or 16.
    const N: usize;
    /// The least number that [`exp`](Lanes::exp) computes, by a power that [`scale`](Lanes::scale) has: smaller ones count as it.
    const LEAST: f32;
    /// One number in all lanes.
    unsafe fn splat(v: f32) -> Self;
    /// Those of type `D` at an address that is readable: 0 for f32, 1 for f16, 2 for bf16.
    unsafe fn load<const D: u8>(p: *const u8) -> Self;
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
    /// `self * 2^powers`, of integers from -126 to 127.
    unsafe fn scale(self, powers: Self) -> Self;
    /// The magnitudes.
    unsafe fn abs(self) -> Self;
    /// Numbers that are not negative, with the signs of others.
    unsafe fn signed(self, signs: Self) -> Self;
    /// `other` in the lanes where `by` has its sign set, these in the others.
    unsafe fn select(self, other: Self, by: Self) -> Self;
    /// The largest lane.
    unsafe fn largest(self) -> f32;
    /// Turns `N` by `N` numbers: `to[i * next + j] = from[j * stride + i]` for `i` below `wanted`. Of `from` there are `given` rows, the last
    /// of which stands for those that are missing.
    unsafe fn turn(from: (*const f32, usize), given: usize, to: (*mut f32, usize), wanted: usize);

    /// `e^self` of numbers that are not positive, within about 2 units in the last place; next to 0 below the smallest normal number.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        unsafe {
            let x = self.max(Self::splat(Self::LEAST));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            // ln 2 in two parts keeps the remainder exact.
            let r = n.fma(Self::splat(-0.693_359_4), x);
            let r = n.fma(Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.0 / 5040.0);
            for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
                p = p.fma(r, Self::splat(c));
            }
            p.scale(n)
        }
    }

    /// `2^self` of what is at most 127, next to 0 below -126: within 2 units in the last place, or within 8e-5 of it if `ROUGH`.
    #[inline(always)]
    unsafe fn exp2<const ROUGH: bool>(self) -> Self {
        unsafe {
            let x = self.max(Self::splat(-126.0));
            let n = x.round();
            polynomial::<Self, ROUGH>(x.sub(n)).scale(n)
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

/// `2^x` for `x` in -1/2..1/2, by polynomials of degrees 3 and 6 with the least relative error there.
#[inline(always)]
pub unsafe fn polynomial<L: Lanes, const ROUGH: bool>(x: L) -> L {
    let c: &[f32] = match ROUGH {
        true => &[0.055_171_67, 0.242_611_13, 0.693_260_97, 0.999_928_06],
        false => {
            &[1.534_581_2e-4, 1.339_993_1e-3, 9.618_489e-3, 0.055_503_29, 0.240_226_47, std::f32::consts::LN_2, 1.0]
        }
    };
    unsafe {
        let mut p = L::splat(c[0]);
        for c in &c[1..] {
            p = p.fma(x, L::splat(*c));
        }
        p
    }
}

/// Bytes of a float of type `D`.
pub const fn size<const D: u8>() -> usize {
    if D == 0 { 4 } else { 2 }
}

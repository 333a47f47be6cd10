//! Gated products, eight at a time.

use super::Call;
use super::eight::Eight;
use super::vector::size;

/// [`MicroOp::Gate`](marquetry_ir::loops::MicroOp::Gate) by gelu or by silu; `D` is 0 for results of f32, 2 for bf16.
///
/// # Safety
/// The call is one of that operation, on a CPU that has the vectors.
#[inline(always)]
pub unsafe fn gate<E: Eight, const GELU: bool, const D: u8>(c: Call) {
    unsafe {
        let [tokens, blocks] = [c.size(0), c.size(1)];
        // Strides follow the two sizes.
        let next = c.size(2) * size::<D>();
        for t in 0..tokens {
            let acc = c.arg::<f32>(1).add(t * blocks * 16);
            let out = c.arg::<u8>(0).add(t * next);
            for b in 0..blocks {
                let gate = E::load::<0>(acc.add(b * 16).cast());
                let up = E::load::<0>(acc.add(b * 16 + 8).cast());
                let y = if GELU { gelu(gate) } else { silu(gate) };
                put::<E, D>(y.mul(up), out.add(b * 8 * size::<D>()));
            }
        }
    }
}

#[inline(always)]
unsafe fn put<E: Eight, const D: u8>(y: E, out: *mut u8) {
    unsafe {
        if D == 0 {
            return y.store(out.cast());
        }
        let mut lanes = [0f32; 8];
        y.store(lanes.as_mut_ptr());
        for (i, v) in lanes.into_iter().enumerate() {
            out.cast::<u16>().add(i).write_unaligned(half::bf16::from_f32(v).to_bits());
        }
    }
}

/// `x / (1 + e^-x)`
#[inline(always)]
unsafe fn silu<E: Eight>(x: E) -> E {
    unsafe {
        // Of e^-|x|, which is no larger than 1.
        let e = E::splat(0.0).sub(x.abs()).exp();
        let one = E::splat(1.0);
        x.mul(one.select(e, x)).div(one.add(e))
    }
}

#[inline(always)]
unsafe fn gelu<E: Eight>(x: E) -> E {
    unsafe {
        let cube = x.mul(x).mul(x);
        let inner = cube.fma(E::splat(0.044715), x).mul(E::splat(0.797_884_6));
        let half = x.mul(E::splat(0.5));
        half.fma(inner.tanh(), half)
    }
}

//! NEON: one row block of 8 to two registers. Every aarch64 has it; products of bytes also come with an instruction of Armv8.2.

mod dot;
mod math;
mod quantize;

use core::arch::aarch64::float32x4x2_t;

use marquetry_ir::loops::{MicroOp, Routine};

use super::{Call, Layout, for_float, for_gate, for_layout};
use dot::Neon;
pub use dot::sdot;
use quantize::quantize;

/// The routine for a micro-kernel on a processor with dotprod.
pub fn dotprod_routine(op: &MicroOp) -> Option<Routine> {
    match *op {
        MicroOp::Dot(p) => for_layout!(p, dot_dotprod),
        _ => routine(op),
    }
}

/// The routine for a micro-kernel.
pub fn routine(op: &MicroOp) -> Option<Routine> {
    match *op {
        MicroOp::Dot(p) => for_layout!(p, dot),
        MicroOp::Unpack(p) => for_layout!(p, unpack),
        MicroOp::Fma(d) => for_float!(d, fma),
        MicroOp::Attend(a) => for_float!(a.dtype, attend),
        MicroOp::Quantize => Some(quantize),
        MicroOp::Gate(act, to) => for_gate!(act, to, gate),
        MicroOp::Pairs | MicroOp::UnpackPairs(_) => None,
    }
}

unsafe extern "C" fn dot<L: Layout>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Dot` says.
    unsafe { super::packed::dot::<Neon<false>, L>(Call { args, sizes }) }
}

#[target_feature(enable = "dotprod")]
unsafe extern "C" fn dot_dotprod<L: Layout>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: as above, on a CPU that has the instruction.
    unsafe { super::packed::dot::<Neon<true>, L>(Call { args, sizes }) }
}

unsafe extern "C" fn unpack<L: Layout>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Unpack` says.
    unsafe { super::packed::unpack::<Neon<false>, L>(Call { args, sizes }) }
}

unsafe extern "C" fn fma<const D: u8>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Fma` says.
    unsafe { super::float::products::<float32x4x2_t, D>(Call { args, sizes }) }
}

unsafe extern "C" fn attend<const D: u8>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Attend` says.
    unsafe { super::attend::attend::<float32x4x2_t, D>(Call { args, sizes }) }
}

unsafe extern "C" fn gate<const GELU: bool, const D: u8>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Gate` says.
    unsafe { super::gate::gate::<float32x4x2_t, GELU, D>(Call { args, sizes }) }
}

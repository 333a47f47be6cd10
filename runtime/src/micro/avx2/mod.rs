//! AVX2: one row block of 8 to a register.

mod dot;
mod math;
mod quantize;

use core::arch::x86_64::__m256;

use marquetry_ir::loops::{MicroOp, Routine};

use super::{Call, Layout, for_float, for_gate, for_layout};
use dot::{AVX, AVX512, Avx2, NONE};
use quantize::quantize;

/// The routine for a micro-kernel on a processor with AVX-VNNI.
pub fn vnni_routine(op: &MicroOp) -> Option<Routine> {
    match *op {
        MicroOp::Dot(p) => for_layout!(p, dot_vnni),
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

#[target_feature(enable = "avx2,fma,f16c")]
unsafe extern "C" fn dot<L: Layout>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Dot` says, on a CPU that has the level.
    unsafe { super::packed::dot::<Avx2<NONE>, L>(Call { args, sizes }) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe extern "C" fn dot_vnni<L: Layout>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: as above.
    unsafe { super::packed::dot::<Avx2<AVX>, L>(Call { args, sizes }) }
}

/// Products with AVX-512 VNNI for 256-bit vectors. One block at a time is one stream to read, which for few tokens is faster than
/// two in one vector.
///
/// # Safety
/// The call is one of `MicroOp::Dot`, on a CPU that has AVX-512 VNNI.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe extern "C" fn dot_narrow<L: Layout>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: as above.
    unsafe { super::packed::dot::<Avx2<AVX512>, L>(Call { args, sizes }) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe extern "C" fn unpack<L: Layout>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Unpack` says, on a CPU that has the level.
    unsafe { super::packed::unpack::<Avx2<NONE>, L>(Call { args, sizes }) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe extern "C" fn fma<const D: u8>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Fma` says, on a CPU that has the level.
    unsafe { super::float::products::<__m256, D>(Call { args, sizes }) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe extern "C" fn attend<const D: u8>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Attend` says, on a CPU that has the level.
    unsafe { super::attend::attend::<__m256, D>(Call { args, sizes }) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe extern "C" fn gate<const GELU: bool, const D: u8>(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Gate` says, on a CPU that has the level.
    unsafe { super::gate::gate::<__m256, GELU, D>(Call { args, sizes }) }
}

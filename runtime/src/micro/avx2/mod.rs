//! AVX2: one row block of 8 to a register.

mod attend;
mod dot;
mod float;
mod math;
mod quantize;
mod unpack;

use marquetry_ir::DType;
use marquetry_ir::loops::{MicroOp, Routine};

use super::for_layout;
use attend::attend;
pub use dot::dot_narrow;
use dot::{dot, dot_vnni};
use float::fma;
use quantize::quantize;
use unpack::unpack;

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
        MicroOp::Fma(DType::F32) => Some(fma::<0>),
        MicroOp::Fma(DType::F16) => Some(fma::<1>),
        MicroOp::Fma(DType::BF16) => Some(fma::<2>),
        MicroOp::Attend(a) => attend(a),
        MicroOp::Quantize => Some(quantize),
        MicroOp::Fma(_) => None,
    }
}

//! AVX-512: two row blocks of 8 to a register.

mod attend;
mod dot;
mod float;
mod gate;
mod math;
mod quantize;

use marquetry_ir::loops::{MicroOp, Routine};

use super::{for_float, for_gate, for_layout};
pub use attend::attend;
use dot::dot;
pub use dot::{quad, sides};
use float::fma;
use gate::gate;
pub use math::transpose;
use quantize::quantize;

/// The routine for a micro-kernel.
pub fn routine(op: &MicroOp) -> Option<Routine> {
    match *op {
        MicroOp::Dot(p) => for_layout!(p, dot),
        // Bound by stores, for which half the width is enough.
        MicroOp::Unpack(_) => super::avx2::routine(op),
        MicroOp::Fma(d) => for_float!(d, fma),
        MicroOp::Attend(a) => for_float!(a.dtype, attend),
        MicroOp::Quantize => Some(quantize),
        MicroOp::Gate(act, to) => for_gate!(act, to, gate),
        MicroOp::Pairs | MicroOp::UnpackPairs(_) => None,
    }
}

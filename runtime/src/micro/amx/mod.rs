//! AMX: tiles of 16 rows by 64 bytes, multiplied by a matrix unit; everything else as AVX-512 has it.

mod attend;
mod pairs;
mod tile;
mod unpack;

use marquetry_ir::loops::{MicroOp, Routine};

use super::{for_float, for_layout};
use attend::attend;
use pairs::pairs;
pub use tile::{available, tile_products};
use unpack::unpack_pairs;

/// The routine for a micro-kernel.
pub fn routine(op: &MicroOp) -> Option<Routine> {
    match *op {
        MicroOp::Pairs => Some(pairs),
        MicroOp::UnpackPairs(p) => for_layout!(p, unpack_pairs),
        MicroOp::Attend(a) if a.narrow => for_float!(a.dtype, attend),
        _ => super::avx512::routine(op),
    }
}

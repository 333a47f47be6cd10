//! AMX: tiles of 16 rows by 64 bytes, multiplied by a matrix unit; everything else as AVX-512 has it.

mod pairs;
mod tile;
mod unpack;

use marquetry_ir::loops::{MicroOp, Routine};

use super::for_layout;
use pairs::pairs;
pub use tile::available;
use unpack::unpack_pairs;

/// The routine for a micro-kernel.
pub fn routine(op: &MicroOp) -> Option<Routine> {
    match *op {
        MicroOp::Pairs => Some(pairs),
        MicroOp::UnpackPairs(p) => for_layout!(p, unpack_pairs),
        _ => super::avx512::routine(op),
    }
}

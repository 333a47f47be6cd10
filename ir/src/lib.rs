//! The intermediate representations of Marquetry.

mod dim;
mod dtype;
pub mod graph;
pub mod loops;
pub mod pack;
pub mod program;
pub mod quant;
pub mod random;
pub mod scalars;
#[cfg(feature = "testing")]
pub mod testing;
pub mod text;

pub use dim::{Dim, Proof, Sym, SymDecl, Syms};
pub use dtype::{DType, Elem, FACTOR_SPAN, GgufType, Packed, Part, plane_offsets};

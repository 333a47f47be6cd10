//! Lowering: fused functions become kernels of the loop IR, the entry function a straight line of launches.
//!
//! `kernel` derives a kernel from a fused function; `program` walks the calls, binds values to buffers, and records how
//! weights are packed. Arena buffers get places of their own here; `plan` lets them share.
//! `contract` and `attend` spell products and attention as loops, `tiles` and `rows` as micro-kernels.

mod attend;
mod contract;
pub mod index;
mod kernel;
mod map;
mod parts;
mod program;
mod read;
mod row;
mod rows;
mod tiles;

pub use program::lower;

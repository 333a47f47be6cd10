//! Passes over the Marquetry IR.

pub mod bind;
pub mod cache;
pub mod canon;
pub mod check;
pub mod dot;
pub mod eqsat;
pub mod fuse;
pub mod lower;
pub mod manager;
pub mod outline;
pub mod params;
pub mod plan;
pub mod refine;
pub mod schedule;
#[cfg(test)]
mod snapshots;
#[cfg(test)]
mod testing;
pub mod trim;

/// What a compilation may do to numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Numerics {
    /// f32 arithmetic on dequantized weights, in an order that does not depend on the number of threads.
    Strict,
    /// Activations beside quantized weights may be quantized to 8 bits, or, where there is a matrix unit, rounded to bf16 with the weights,
    /// as attention may be.
    Fast,
}

//! The intermediate representations of Marquetry.

mod dtype;
pub mod quant;

pub use dtype::{DType, Elem, GgufType, Packed};

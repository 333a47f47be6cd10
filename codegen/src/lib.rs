//! Code generators: each consumes scheduled kernels of the loop IR.

pub mod cranelift;
mod facts;
mod index;
mod jit;
#[cfg(feature = "llvm")]
pub mod llvm;

pub use jit::{Backend, CodegenError, JitModule, Options, Routines, compile};

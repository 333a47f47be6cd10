//! Compiled kernels against the interpreter, by every backend of this build.

mod cranelift;
mod harness;
mod kernels;
#[cfg(feature = "llvm")]
mod llvm;
mod micro;
mod random;

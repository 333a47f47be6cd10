//! Compiled kernels against the interpreter.

mod harness;
mod kernels;
mod random;

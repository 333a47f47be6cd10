//! Code generators: each consumes scheduled kernels of the loop IR.

pub mod cranelift;

//! What LLVM makes of kernels.

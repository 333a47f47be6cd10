//! Tensors combine with `f32`, not with integers.
use marquetry_frontend::Tensor;

fn double(x: Tensor<'_>) -> Tensor<'_> {
    x * 2
}

fn main() {}

//! Operations give no `Result`: mistakes are collected.
use marquetry_frontend::Tensor;

fn act(x: Tensor<'_>) -> Result<Tensor<'_>, String> {
    Ok(x.silu()?)
}

fn main() {}

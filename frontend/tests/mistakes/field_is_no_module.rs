//! A number beside the parameters, not marked with `#[module(skip)]`.
use marquetry_frontend::{Module, nn::Linear};

#[derive(Module)]
struct Layer {
    proj: Linear,
    heads: usize,
}

fn main() {}

//! A misspelt option.
use marquetry_frontend::{Module, nn::Linear};

#[derive(Module)]
struct Layer {
    #[module(nam = "q_proj")]
    proj: Linear,
}

fn main() {}

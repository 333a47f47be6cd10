//! A variant holds one module.
use marquetry_frontend::{Module, nn::Linear};

#[derive(Module)]
enum Either {
    One(Linear),
    Two(Linear, Linear),
}

fn main() {}

//! Fields without names have no parameter names.
use marquetry_frontend::{Module, nn::Linear};

#[derive(Module)]
struct Layer(Linear, Linear);

fn main() {}

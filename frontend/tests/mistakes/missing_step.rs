//! A model that continues text says how.
use marquetry_frontend::config::{Common, Keys};
use marquetry_frontend::models::CausalLm;
use marquetry_frontend::{Module, nn::Linear};

#[derive(Module)]
struct Model {
    head: Linear,
}

impl CausalLm for Model {
    fn from_keys(_: &mut Keys<'_>) -> (Model, Common) {
        unimplemented!()
    }
}

fn main() {}

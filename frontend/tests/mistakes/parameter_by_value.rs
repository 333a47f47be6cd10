//! Parameters are borrowed, so that two uses are one parameter.
use marquetry_frontend::{Param, Tensor};

struct Layer {
    weight: Param,
}

impl Layer {
    fn call<'t>(&self, x: Tensor<'t>) -> Tensor<'t> {
        x.linear(self.weight)
    }
}

fn main() {}

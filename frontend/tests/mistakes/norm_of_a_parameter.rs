//! A parameter becomes a tensor inside a trace only.
use marquetry_frontend::Param;

fn lengths(weight: &Param) {
    (weight * weight).sum();
}

fn main() {}

//! A tensor lives as long as its trace.
use marquetry_frontend::{DType, Module, Param, Tensor, dims, trace};

#[derive(Module)]
struct Empty {
    weight: Param,
}

fn main() {
    let mut kept: Option<Tensor<'_>> = None;
    let model = Empty { weight: Param::new(&[4]) };
    let _ = trace("f", &model, |cx| {
        kept = Some(cx.input("x", dims![4], DType::F32));
    });
    let _ = kept;
}

//! Vertical fusion by choice of operators.

use marquetry_ir::Elem;
use marquetry_ir::graph::{Attr, Op};

use super::rules;
use crate::eqsat::facts::add;

rules! {
    /// Activations in 8 bits beside packed weights: integer products.
    "int8-linear" Fuse Approximates: "(linear ?x (pack ?w ?e))" => "(qlinear (quantize ?x) (pack ?w ?e))"
        if "the layout is quantized", |g, b| {
            let Attr::Elem(e @ Elem::Packed(_)) = b.attr(g, "e")? else { return None };
            let p = add(g, Op::Pack, &[b.id("w")?], vec![Attr::Elem(e)])?;
            let q = add(g, Op::Quantize, &[b.id("x")?], vec![])?;
            add(g, Op::QLinear, &[q, p], vec![])
        };
}

//! Vertical fusion by choice of operators.

use marquetry_ir::graph::{Attr, Op, Ty};
use marquetry_ir::{DType, Elem};

use super::rules;
use crate::eqsat::facts::add;

/// Pieces that attention of one token is split into: few cost less to put together, and with the key heads, which are iterations too,
/// they occupy some threads.
fn parts(kv_heads: i64) -> i64 {
    (8 / kv_heads.max(1)).max(4)
}

rules! {
    /// Attention of one token in pieces of the positions that it sees: heads that share keys read them once.
    "attend-split" Fuse Reassociates: "(attend ?q ?state ?pos ?seq ?pages ?scale ?window ?cap ?page)" =>
        "(attend_merge (attend_parts ?q ?state ?pos ?seq ?pages ?scale ?window ?cap ?page ?parts))" if "there is one token", |g, b| {
            let one = b.shape(g, "q")?.first()?.as_const() == Some(1);
            let Ty::Kv(kv) = b.facts(g, "state")?.ty.as_ref()? else { return None };
            let count = parts(kv.heads as i64);
            let operands = ["q", "state", "pos", "seq", "pages"].map(|n| b.id(n));
            let operands: Vec<_> = operands.into_iter().collect::<Option<_>>().filter(|_| one)?;
            let attrs = ["scale", "window", "cap", "page"].map(|n| b.attr(g, n));
            let mut attrs: Vec<Attr> = attrs.into_iter().collect::<Option<_>>()?;
            attrs.push(Attr::Int(count));
            let parts = add(g, Op::AttendParts, &operands, attrs)?;
            add(g, Op::AttendMerge, &[parts], vec![])
        };
    /// Attention of many tokens over bf16 numbers, for matrix units.
    "bf16-attend" Fuse Approximates on Matrix: "(attend ?q ?state ?pos ?seq ?pages ?scale ?window ?cap ?page)" =>
        "(cast (attend (cast ?q bf16) ?state ?pos ?seq ?pages ?scale ?window ?cap ?page) f32)"
        if "there may be several tokens, ?q is f32, and heads are of a multiple of 32 features", |g, b| {
            b.is_f32(g, "q")?;
            (b.shape(g, "q")?.first()?.as_const() != Some(1)).then_some(())?;
            (b.columns(g, "q")? % 32 == 0).then_some(())?;
            let q = add(g, Op::Cast, &[b.id("q")?], vec![Attr::DType(DType::BF16)])?;
            let operands: Vec<_> = ["state", "pos", "seq", "pages"].iter().map(|n| b.id(n)).collect::<Option<_>>()?;
            let attrs: Vec<_> = ["scale", "window", "cap", "page"].iter().map(|n| b.attr(g, n)).collect::<Option<_>>()?;
            let y = add(g, Op::Attend, &[vec![q], operands].concat(), attrs)?;
            add(g, Op::Cast, &[y], vec![Attr::DType(DType::F32)])
        };
    /// Activations in 8 bits beside packed weights: integer products.
    "int8-linear" Fuse Approximates: "(linear ?x (pack ?w ?e))" => "(qlinear (quantize ?x) (pack ?w ?e))"
        if "the layout is quantized", |g, b| {
            let Attr::Elem(e @ Elem::Packed(_)) = b.attr(g, "e")? else { return None };
            let p = add(g, Op::Pack, &[b.id("w")?], vec![Attr::Elem(e)])?;
            let q = add(g, Op::Quantize, &[b.id("x")?], vec![])?;
            add(g, Op::QLinear, &[q, p], vec![])
        };
    /// Activations and weights rounded to bf16, for matrix units.
    "bf16-linear" Fuse Approximates on Matrix: "(linear ?x (pack ?w ?e))" => "(qlinear (cast ?x bf16) (pack ?w ?e))"
        if "the layout is quantized and ?x is f32", |g, b| {
            let Attr::Elem(e @ Elem::Packed(_)) = b.attr(g, "e")? else { return None };
            b.is_f32(g, "x")?;
            let p = add(g, Op::Pack, &[b.id("w")?], vec![Attr::Elem(e)])?;
            let x = add(g, Op::Cast, &[b.id("x")?], vec![Attr::DType(DType::BF16)])?;
            add(g, Op::QLinear, &[x, p], vec![])
        };
}

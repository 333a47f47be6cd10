//! Recognition of high-level operators in primitives.

use marquetry_ir::graph::{Attr, Op};

use super::rules;
use crate::eqsat::facts::add;

rules! {
    /// `x / (1 + e^-x)`
    "silu-div" Recognise Bitwise: "(div ?x (add (exp (neg ?x)) 1.0))" => "(silu ?x)",
        |g, b| add(g, Op::Silu, &[b.id("x")?], vec![]);
    /// `x/2 (1 + tanh(√(2/π)(x + 0.044715 x³)))`
    "gelu-tanh" Recognise Reassociates:
        "(mul (mul ?x 0.5) (add (tanh (mul (add ?x (mul (mul (mul ?x ?x) ?x) 0.044715)) 0.7978846)) 1.0))"
        => "(gelu ?x true)", |g, b| add(g, Op::Gelu, &[b.id("x")?], vec![Attr::Bool(true)]);
    /// `x/2 (1 + erf(x/√2))`
    "gelu-erf" Recognise Reassociates: "(mul (mul ?x 0.5) (add (erf (mul ?x 0.70710677)) 1.0))" => "(gelu ?x false)",
        |g, b| add(g, Op::Gelu, &[b.id("x")?], vec![Attr::Bool(false)]);
    /// `tanh(x / c) * c`
    "softcap" Recognise Bitwise: "(mul (tanh (div ?x ?c)) ?c)" => "(softcap ?x c)" if "?c is a constant",
        |g, b| { let c = b.constant(g, "c")?; add(g, Op::Softcap, &[b.id("x")?], vec![Attr::float(c)]) };
    /// Exponentials of the distance to the maximum, over their sum.
    "softmax" Recognise Bitwise:
        "(div (exp (sub ?x (reduce_max ?x))) (reduce_sum (exp (sub ?x (reduce_max ?x)))))" => "(softmax ?x)",
        |g, b| add(g, Op::Softmax, &[b.id("x")?], vec![]);
    /// `x / sqrt(mean(x²) + e) * w`
    "rms-norm" Recognise Bitwise:
        "(mul (mul ?x (rsqrt (add (mul (reduce_sum (mul ?x ?x)) ?inv) ?e))) (reshape ?w ?s))" => "(rms_norm ?x ?w e)"
        if "?inv is 1 / k, ?e a constant, and the gain lies along the last axis", |g, b| {
            let k = b.columns(g, "x")?;
            (b.constant(g, "inv")? == 1.0 / k as f32).then_some(())?;
            let s = b.attr(g, "s")?;
            let (last, lead) = s.as_shape().split_last()?;
            (*last == k.into() && lead.iter().all(|d| *d == 1.into())).then_some(())?;
            let e = b.constant(g, "e")?;
            add(g, Op::RmsNorm, &[b.id("x")?, b.id("w")?], vec![Attr::float(e)])
        };
    /// `silu(g) * u`
    "swiglu" Recognise Bitwise: "(mul (silu ?g) ?u)" => "(swiglu ?g ?u)",
        |g, b| add(g, Op::SwiGlu, &[b.id("g")?, b.id("u")?], vec![]);
    /// `gelu(g) * u`
    "geglu" Recognise Bitwise: "(mul (gelu ?g ?t) ?u)" => "(geglu ?g ?u ?t)",
        |g, b| { let t = b.attr(g, "t")?; add(g, Op::GeGlu, &[b.id("g")?, b.id("u")?], vec![t]) };
}

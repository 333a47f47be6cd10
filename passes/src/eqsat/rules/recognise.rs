//! Recognition of activations, norms and softmax in primitives.

use egg::Id;
use marquetry_ir::graph::{Attr, Op};
use marquetry_ir::{DType, Elem};

use super::dig::{is_mean, is_mean_square, near, nodes, polynomial};
use super::{Bound, filled, rules, tensor_of};
use crate::eqsat::facts::{Graph, add};

rules! {
    /// `x / (1 + e^-x)`
    "silu-div" Recognise Bitwise: "(div ?x (add (exp (neg ?x)) 1.0))" => "(silu ?x)",
        |g, b| add(g, Op::Silu, &[b.id("x")?], vec![]);
    /// `x` times the sigmoid of `x`
    "silu-sigmoid" Recognise Reassociates: "(mul ?x (div 1.0 (add (exp (neg ?x)) 1.0)))" => "(silu ?x)",
        |g, b| add(g, Op::Silu, &[b.id("x")?], vec![]);
    /// The sigmoid as a shifted tanh.
    "silu-tanh" Recognise Reassociates: "(mul (mul ?x 0.5) (add (tanh (mul ?x 0.5)) 1.0))" => "(silu ?x)",
        |g, b| add(g, Op::Silu, &[b.id("x")?], vec![]);
    /// `x/2 (1 + tanh(√(2/π)(x + 0.044715 x³)))`, the cubic in any spelling
    "gelu-tanh" Recognise Reassociates: "(mul (mul ?x 0.5) (add (tanh ?t) 1.0))" => "(gelu ?x true)"
        if "?t is that cubic of ?x", gelu_tanh;
    /// The same with the half outside.
    "gelu-tanh-outer" Recognise Reassociates: "(mul (mul ?x (add (tanh ?t) 1.0)) 0.5)" => "(gelu ?x true)"
        if "?t is that cubic of ?x", gelu_tanh;
    /// The same with the half inside.
    "gelu-tanh-inner" Recognise Reassociates: "(mul ?x (mul (add (tanh ?t) 1.0) 0.5))" => "(gelu ?x true)"
        if "?t is that cubic of ?x", gelu_tanh;
    /// `x/2 (1 + erf(x/√2))`
    "gelu-erf" Recognise Reassociates: "(mul (mul ?x 0.5) (add (erf ?t) 1.0))" => "(gelu ?x false)"
        if "?t is ?x over the square root of 2", gelu_erf;
    /// The same with the half outside.
    "gelu-erf-outer" Recognise Reassociates: "(mul (mul ?x (add (erf ?t) 1.0)) 0.5)" => "(gelu ?x false)"
        if "?t is ?x over the square root of 2", gelu_erf;
    /// The same with the half inside.
    "gelu-erf-inner" Recognise Reassociates: "(mul ?x (mul (add (erf ?t) 1.0) 0.5))" => "(gelu ?x false)"
        if "?t is ?x over the square root of 2", gelu_erf;
    /// `tanh(x / c) * c`
    "softcap" Recognise Bitwise: "(mul (tanh (div ?x ?c)) ?c)" => "(softcap ?x c)" if "?c is a constant",
        |g, b| { let c = b.constant(g, "c")?; add(g, Op::Softcap, &[b.id("x")?], vec![Attr::float(c)]) };
    /// The same by the reciprocal.
    "softcap-reciprocal" Recognise Reassociates: "(mul (tanh (mul ?x ?i)) ?c)" => "(softcap ?x c)"
        if "?c and ?i are constants, and ?i is 1 / c", |g, b| {
            let (i, c) = (b.constant(g, "i")?, b.constant(g, "c")?);
            ((i * c - 1.0).abs() < 1e-6).then_some(())?;
            add(g, Op::Softcap, &[b.id("x")?], vec![Attr::float(c)])
        };
    /// Exponentials of the distance to the maximum, over their sum.
    "softmax" Recognise Bitwise:
        "(div (exp (sub ?x (reduce_max ?x))) (reduce_sum (exp (sub ?x (reduce_max ?x)))))" => "(softmax ?x)",
        |g, b| add(g, Op::Softmax, &[b.id("x")?], vec![]);
    /// The same by the reciprocal of the sum.
    "softmax-reciprocal" Recognise Reassociates:
        "(mul (exp (sub ?x (reduce_max ?x))) (div 1.0 (reduce_sum (exp (sub ?x (reduce_max ?x))))))" => "(softmax ?x)",
        |g, b| add(g, Op::Softmax, &[b.id("x")?], vec![]);
    /// `x / sqrt(mean(x²) + e) * w`, the mean as a product or a quotient
    "rms-norm" Recognise Reassociates: "(mul (mul ?x (rsqrt (add ?m ?e))) (reshape ?w ?s))" => "(rms_norm ?x ?w e)"
        if "?m is the mean of ?x², ?e a constant, and the gain lies along the last axis", |g, b| {
            let e = root(g, b)?;
            lies_along_last(g, b)?;
            add(g, Op::RmsNorm, &[b.id("x")?, b.id("w")?], vec![Attr::float(e)])
        };
    /// The same with the gain on the root.
    "rms-norm-gain-first" Recognise Reassociates:
        "(mul ?x (mul (rsqrt (add ?m ?e)) (reshape ?w ?s)))" => "(rms_norm ?x ?w e)"
        if "?m is the mean of ?x², ?e a constant, and the gain lies along the last axis", |g, b| {
            let e = root(g, b)?;
            lies_along_last(g, b)?;
            add(g, Op::RmsNorm, &[b.id("x")?, b.id("w")?], vec![Attr::float(e)])
        };
    /// The gain is an offset plus a weight, as in Gemma.
    "rms-norm-offset" Recognise Reassociates:
        "(mul (mul ?x (rsqrt (add ?m ?e))) (add (reshape ?w ?s) ?o))" => "(rms_norm ?x (add ?w ?o) e)"
        if "?m is the mean of ?x², ?e and ?o are constants, and the gain lies along the last axis", |g, b| {
            let e = root(g, b)?;
            lies_along_last(g, b)?;
            b.constant(g, "o")?;
            let w = add(g, Op::Add, &[b.id("w")?, b.id("o")?], vec![])?;
            add(g, Op::RmsNorm, &[b.id("x")?, w], vec![Attr::float(e)])
        };
    /// No gain.
    "rms-norm-plain" Recognise Reassociates: "(mul ?x (rsqrt (add ?m ?e)))" => "(rms_norm ?x 1 e)"
        if "?m is the mean of ?x², ?e a constant", |g, b| {
            let e = root(g, b)?;
            let k = b.columns(g, "x")?;
            let one = filled(g, 1.0, vec![k.into()])?;
            add(g, Op::RmsNorm, &[b.id("x")?, one], vec![Attr::float(e)])
        };
    /// Normalised in f32, narrowed, then times a narrow gain: one rounding instead of two.
    "rms-norm-narrow-gain" Recognise Approximates:
        "(mul (cast (mul ?x (rsqrt (add ?m ?e))) ?t) (reshape ?w ?s))" => "(cast (rms_norm ?x (cast ?w f32) e) ?t)"
        if "?m is the mean of ?x², ?e a constant, the gain lies along the last axis, and ?t is a narrower float", |g, b| {
            let e = root(g, b)?;
            lies_along_last(g, b)?;
            let t = b.attr(g, "t")?;
            let Attr::DType(DType::F16 | DType::BF16) = t else { return None };
            let w = add(g, Op::Cast, &[b.id("w")?], vec![Attr::DType(DType::F32)])?;
            let y = add(g, Op::RmsNorm, &[b.id("x")?, w], vec![Attr::float(e)])?;
            add(g, Op::Cast, &[y], vec![t])
        };
    /// `(x - mean(x)) / sqrt(var(x) + e)`; gain and bias stay products and sums beside it
    "layer-norm" Recognise Reassociates: "(mul (sub ?y ?n) (rsqrt (add ?m ?e)))" => "(layer_norm ?y e)"
        if "?n is the mean of ?y, ?m the mean square of the difference, ?e a constant", |g, b| {
            let (y, n, m) = (b.id("y")?, b.id("n")?, b.id("m")?);
            let (k, e) = (b.columns(g, "y")?, b.constant(g, "e")?);
            let centred = nodes(g, b.class, Op::Mul).into_iter().flat_map(|(f, _)| f);
            let centred = centred.filter(|d| nodes(g, *d, Op::Sub).iter().any(|(f, _)| f[..] == [g.find(y), g.find(n)]));
            let mut spread = centred.filter(|d| is_mean_square(g, m, *d, k));
            (is_mean(g, n, y, k) && spread.next().is_some()).then_some(())?;
            add(g, Op::LayerNorm, &[y], vec![Attr::float(e)])
        };
    /// `silu(g) * u`
    "swiglu" Recognise Bitwise: "(mul (silu ?g) ?u)" => "(swiglu ?g ?u)",
        |g, b| add(g, Op::SwiGlu, &[b.id("g")?, b.id("u")?], vec![]);
    /// `gelu(g) * u`
    "geglu" Recognise Bitwise: "(mul (gelu ?g ?t) ?u)" => "(geglu ?g ?u ?t)",
        |g, b| { let t = b.attr(g, "t")?; add(g, Op::GeGlu, &[b.id("g")?, b.id("u")?], vec![t]) };
}

fn gelu_tanh(g: &mut Graph, b: &Bound<'_>) -> Option<Id> {
    let c = (2.0 / std::f64::consts::PI).sqrt();
    near(polynomial(g, b.id("t")?, b.id("x")?), [0.0, c, 0.0, c * 0.044715])?;
    add(g, Op::Gelu, &[b.id("x")?], vec![Attr::Bool(true)])
}

fn gelu_erf(g: &mut Graph, b: &Bound<'_>) -> Option<Id> {
    near(polynomial(g, b.id("t")?, b.id("x")?), [0.0, std::f64::consts::FRAC_1_SQRT_2, 0.0, 0.0])?;
    add(g, Op::Gelu, &[b.id("x")?], vec![Attr::Bool(false)])
}

/// The constant `?e` where `?m` is the mean square of the rows of `?x`.
fn root(g: &Graph, b: &Bound<'_>) -> Option<f32> {
    let k = b.columns(g, "x")?;
    is_mean_square(g, b.id("m")?, b.id("x")?, k).then(|| b.constant(g, "e"))?
}

/// `?w` has one axis, which `?s` puts last, as long as the rows of `?x`.
fn lies_along_last(g: &Graph, b: &Bound<'_>) -> Option<()> {
    let (k, s) = (b.columns(g, "x")?, b.attr(g, "s")?);
    let (last, lead) = s.as_shape().split_last()?;
    let w = tensor_of(g, b.id("w")?)?;
    let float = matches!(w.elem, Elem::Scalar(d) if d.is_float());
    (float && w.shape.len() == 1 && *last == k.into() && lead.iter().all(|d| *d == 1.into())).then_some(())
}

//! The rules, as data.

use egg::{Id, Subst, Var};
use marquetry_ir::graph::{Attr, Op, Ty};
use marquetry_ir::{DType, Dim, Elem, Packed};

use super::facts::{Facts, Graph, add};
use super::term::Term;
use crate::Numerics;

/// How far the right side's numbers may be from the left side's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exact {
    /// Not at all.
    Bitwise,
    /// The order of additions may differ.
    Reassociates,
    /// Within a bound that the rule states.
    Approximates,
}

/// When a rule runs. Each phase saturates before the next begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Finds high-level operators in primitives.
    Recognise,
    /// Algebra, movement, fusion and layout.
    Fuse,
}

/// Builds the right side; none when the guard does not hold.
pub type Build = fn(&mut Graph, &Bound<'_>) -> Option<Id>;

/// A rule.
pub struct Rule {
    /// Name in reports.
    pub name: &'static str,
    /// When it runs.
    pub phase: Phase,
    /// What it does to numbers.
    pub exact: Exact,
    /// The pattern that is matched.
    pub lhs: &'static str,
    /// The right side as documentation.
    pub rhs: &'static str,
    /// The right side as code.
    pub build: Build,
}

/// What a match bound.
pub struct Bound<'a>(pub &'a Subst);

impl Bound<'_> {
    /// The class bound to `?name`.
    pub fn id(&self, name: &str) -> Option<Id> {
        let var: Var = format!("?{name}").parse().ok()?;
        self.0.get(var).copied()
    }

    fn facts<'g>(&self, g: &'g Graph, name: &str) -> Option<&'g Facts> {
        self.id(name).map(|id| &g[id].data)
    }

    fn constant(&self, g: &Graph, name: &str) -> Option<f32> {
        self.facts(g, name)?.constant.map(f32::from_bits)
    }

    fn is(&self, g: &Graph, name: &str, v: f32) -> Option<()> {
        (self.constant(g, name)? == v).then_some(())
    }

    /// The last extent and the others of a shape attribute.
    fn shape_attr(&self, g: &Graph, name: &str) -> Option<(Dim, Vec<Dim>)> {
        let (last, lead) = self.facts(g, name)?.attr.as_ref()?.as_shape().split_last()?;
        Some((last.clone(), lead.to_vec()))
    }

    fn shape(&self, g: &Graph, name: &str) -> Option<Vec<Dim>> {
        match self.facts(g, name)?.ty.as_ref()? {
            Ty::Tensor(t) => Some(t.shape.clone()),
            Ty::Kv(_) => None,
        }
    }
}

macro_rules! rules {
    ($($name:literal $phase:ident $exact:ident: $lhs:literal => $rhs:literal, $build:expr;)*) => {
        /// Every rule, in rank order.
        pub static RULES: &[Rule] = &[$(Rule {
            name: $name, phase: Phase::$phase, exact: Exact::$exact, lhs: $lhs, rhs: $rhs, build: $build,
        }),*];
    };
}

rules! {
    "silu-div" Recognise Bitwise: "(div ?x (add (exp (neg ?x)) ?one))" => "(silu ?x)",
        |g, b| { b.is(g, "one", 1.0)?; add(g, Op::Silu, &[b.id("x")?], vec![]) };
    "gelu-tanh" Recognise Reassociates:
        "(mul (mul ?x ?half) (add (tanh (mul (add ?x (mul (mul (mul ?x ?x) ?x) ?c)) ?s)) ?one))" => "(gelu ?x true)",
        |g, b| {
            b.is(g, "half", 0.5)?;
            b.is(g, "one", 1.0)?;
            b.is(g, "c", 0.044715)?;
            b.is(g, "s", 0.797_884_6)?;
            add(g, Op::Gelu, &[b.id("x")?], vec![Attr::Bool(true)])
        };
    "gelu-erf" Recognise Reassociates: "(mul (mul ?x ?half) (add (erf (mul ?x ?s)) ?one))" => "(gelu ?x false)",
        |g, b| {
            b.is(g, "half", 0.5)?;
            b.is(g, "one", 1.0)?;
            b.is(g, "s", std::f32::consts::FRAC_1_SQRT_2)?;
            add(g, Op::Gelu, &[b.id("x")?], vec![Attr::Bool(false)])
        };
    "softcap" Recognise Bitwise: "(mul (tanh (div ?x ?c)) ?c)" => "(softcap ?x c)",
        |g, b| { let c = b.constant(g, "c")?; add(g, Op::Softcap, &[b.id("x")?], vec![Attr::float(c)]) };
    "softmax" Recognise Bitwise:
        "(div (exp (sub ?x (reduce_max ?x))) (reduce_sum (exp (sub ?x (reduce_max ?x)))))" => "(softmax ?x)",
        |g, b| add(g, Op::Softmax, &[b.id("x")?], vec![]);
    "rms-norm" Recognise Bitwise:
        "(mul (mul ?x (rsqrt (add (mul (reduce_sum (mul ?x ?x)) ?inv) ?e))) (reshape ?w ?s))" => "(rms_norm ?x ?w e)",
        |g, b| {
            let k = b.shape(g, "x")?.last()?.as_const()?;
            b.is(g, "inv", 1.0 / k as f32)?;
            // The gain must lie along the last axis.
            let (last, lead) = b.shape_attr(g, "s")?;
            (last == k.into() && lead.iter().all(|d| *d == 1.into())).then_some(())?;
            let e = b.constant(g, "e")?;
            add(g, Op::RmsNorm, &[b.id("x")?, b.id("w")?], vec![Attr::float(e)])
        };
    "swiglu" Recognise Bitwise: "(mul (silu ?g) ?u)" => "(swiglu ?g ?u)",
        |g, b| add(g, Op::SwiGlu, &[b.id("g")?, b.id("u")?], vec![]);
    "swiglu-mirror" Recognise Bitwise: "(mul ?u (silu ?g))" => "(swiglu ?g ?u)",
        |g, b| add(g, Op::SwiGlu, &[b.id("g")?, b.id("u")?], vec![]);
    "geglu" Recognise Bitwise: "(mul (gelu ?g ?t) ?u)" => "(geglu ?g ?u ?t)",
        |g, b| { let t = b.facts(g, "t")?.attr.clone()?; add(g, Op::GeGlu, &[b.id("g")?, b.id("u")?], vec![t]) };
    "geglu-mirror" Recognise Bitwise: "(mul ?u (gelu ?g ?t))" => "(geglu ?g ?u ?t)",
        |g, b| { let t = b.facts(g, "t")?.attr.clone()?; add(g, Op::GeGlu, &[b.id("g")?, b.id("u")?], vec![t]) };
    "reshape-reshape" Fuse Bitwise: "(reshape (reshape ?x ?a) ?b)" => "(reshape ?x ?b)",
        |g, b| { let s = b.facts(g, "b")?.attr.clone()?; add(g, Op::Reshape, &[b.id("x")?], vec![s]) };
    "permute-permute" Fuse Bitwise: "(permute (permute ?x ?p) ?q)" => "(permute ?x p∘q)",
        |g, b| {
            let (Attr::Ints(p), Attr::Ints(q)) = (b.facts(g, "p")?.attr.clone()?, b.facts(g, "q")?.attr.clone()?) else {
                return None;
            };
            let both = q.iter().map(|&i| p.get(i as usize).copied()).collect::<Option<Vec<_>>>()?;
            add(g, Op::Permute, &[b.id("x")?], vec![Attr::Ints(both)])
        };
    "pack-linear" Fuse Bitwise: "(linear ?x (dequant ?w))" => "(linear ?x (pack ?w layout))",
        |g, b| { let p = pack(g, b)?; add(g, Op::Linear, &[b.id("x")?, p], vec![]) };
    "pack-linear-f32" Fuse Bitwise: "(linear ?x ?w)" => "(linear ?x (pack ?w rows8.f32))",
        |g, b| { let p = pack(g, b)?; add(g, Op::Linear, &[b.id("x")?, p], vec![]) };
    "pack-gather" Fuse Bitwise: "(gather (dequant ?w) ?i)" => "(gather (pack ?w layout) ?i)",
        |g, b| { let p = pack(g, b)?; add(g, Op::Gather, &[p, b.id("i")?], vec![]) };
    "pack-gather-f32" Fuse Bitwise: "(gather ?w ?i)" => "(gather (pack ?w rows8.f32) ?i)",
        |g, b| {
            let Ty::Tensor(t) = b.facts(g, "w")?.ty.clone()? else { return None };
            (t.elem == Elem::Scalar(DType::F32)).then_some(())?;
            let p = pack(g, b)?;
            add(g, Op::Gather, &[p, b.id("i")?], vec![])
        };
    "int8-linear" Fuse Approximates: "(linear ?x (pack ?w ?e))" => "(qlinear (quantize ?x) (pack ?w ?e))",
        |g, b| {
            let Attr::Elem(e @ Elem::Packed(_)) = b.facts(g, "e")?.attr.clone()? else { return None };
            let p = add(g, Op::Pack, &[b.id("w")?], vec![Attr::Elem(e)])?;
            let q = add(g, Op::Quantize, &[b.id("x")?], vec![])?;
            add(g, Op::QLinear, &[q, p], vec![])
        };
    "glu-linear" Fuse Bitwise: "(swiglu (linear ?x (pack ?a ?e)) (linear ?x (pack ?b ?e)))"
        => "(glu_linear ?x (concat_rows (pack ?a ?e) (pack ?b ?e) 8) 0)", |g, b| glu(g, b, 0);
    "glu-qlinear" Fuse Bitwise: "(swiglu (qlinear ?x (pack ?a ?e)) (qlinear ?x (pack ?b ?e)))"
        => "(glu_linear ?x (concat_rows (pack ?a ?e) (pack ?b ?e) 8) 0)", |g, b| glu(g, b, 0);
    "geglu-linear" Fuse Bitwise: "(geglu (linear ?x (pack ?a ?e)) (linear ?x (pack ?b ?e)) true)"
        => "(glu_linear ?x (concat_rows (pack ?a ?e) (pack ?b ?e) 8) 2)", |g, b| glu(g, b, 2);
    "geglu-qlinear" Fuse Bitwise: "(geglu (qlinear ?x (pack ?a ?e)) (qlinear ?x (pack ?b ?e)) true)"
        => "(glu_linear ?x (concat_rows (pack ?a ?e) (pack ?b ?e) 8) 2)", |g, b| glu(g, b, 2);
}

impl Rule {
    /// May it run under these numerics?
    pub fn allowed(&self, numerics: Numerics) -> bool {
        numerics == Numerics::Fast || self.exact != Exact::Approximates
    }
}

/// `pack(?w)` in the layout that kernels read, if `?w` is a weight as the model file has it.
fn pack(g: &mut Graph, b: &Bound<'_>) -> Option<Id> {
    let w = b.id("w")?;
    let raw = g[w].nodes.iter().any(|n| matches!(n, Term::Leaf(_)));
    let Ty::Tensor(t) = g[w].data.ty.clone()? else { return None };
    if !raw || !g[w].data.weight_only || t.shape.len() != 2 {
        return None;
    }
    let to = match t.elem {
        Elem::Gguf(q) => Elem::Packed(Packed::for_gguf(q)),
        Elem::Scalar(d @ (DType::F32 | DType::F16 | DType::BF16)) => Elem::Rows8(d),
        _ => return None,
    };
    add(g, Op::Pack, &[w], vec![Attr::Elem(to)])
}

fn glu(g: &mut Graph, b: &Bound<'_>, act: i64) -> Option<Id> {
    let Attr::Elem(e) = b.facts(g, "e")?.attr.clone()? else { return None };
    let gate = add(g, Op::Pack, &[b.id("a")?], vec![Attr::Elem(e)])?;
    let up = add(g, Op::Pack, &[b.id("b")?], vec![Attr::Elem(e)])?;
    if g.find(gate) == g.find(up) {
        return None;
    }
    let w = add(g, Op::ConcatRows, &[gate, up], vec![Attr::Int(8)])?;
    add(g, Op::GluLinear, &[b.id("x")?, w], vec![Attr::Int(act)])
}

//! Algebra and clean-up.

use marquetry_ir::DType;
use marquetry_ir::graph::{Attr, Op};

use super::{Bound, filled, rules, scalar, tensor_of};
use crate::eqsat::facts::{Graph, add};

rules! {
    /// Adding nothing; -0 becomes 0 otherwise.
    "add-zero" Simplify Reassociates: "(add ?x 0.0)" => "?x", |_, b| b.id("x");
    /// Subtracting nothing.
    "sub-zero" Simplify Bitwise: "(sub ?x 0.0)" => "?x", |_, b| b.id("x");
    /// Multiplying by one.
    "mul-one" Simplify Bitwise: "(mul ?x 1.0)" => "?x", |_, b| b.id("x");
    /// Dividing by one.
    "div-one" Simplify Bitwise: "(div ?x 1.0)" => "?x", |_, b| b.id("x");
    /// Multiplying by nothing; a negative number gives -0 otherwise.
    "mul-zero" Simplify Reassociates: "(mul ?x 0.0)" => "0" if "?x is f32 and finite whatever the inputs are", |g, b| {
        b.is_f32(g, "x")?;
        b.facts(g, "x")?.finite.then_some(())?;
        let shape = b.shape(g, "x")?;
        filled(g, 0.0, shape)
    };
    /// The larger of 0 and a number that is not below 0 anyway.
    "max-zero" Simplify Bitwise: "(max 0.0 ?x)" => "?x" if "?x is finite and not negative, whatever the inputs are",
        not_below_zero;
    /// The same with 0 second; -0 becomes 0 otherwise.
    "max-zero-second" Simplify Reassociates: "(max ?x 0.0)" => "?x"
        if "?x is finite and not negative, whatever the inputs are", not_below_zero;
    /// Two signs.
    "neg-neg" Simplify Bitwise: "(neg (neg ?x))" => "?x", |_, b| b.id("x");
    /// Adding a negated number.
    "add-neg" Simplify Bitwise: "(add ?x (neg ?y))" => "(sub ?x ?y)",
        |g, b| add(g, Op::Sub, &[b.id("x")?, b.id("y")?], vec![]);
    /// Subtracting a negated number.
    "sub-neg" Simplify Bitwise: "(sub ?x (neg ?y))" => "(add ?x ?y)",
        |g, b| add(g, Op::Add, &[b.id("x")?, b.id("y")?], vec![]);
    /// Two factors in one.
    "mul-const-const" Simplify Reassociates: "(mul (mul ?x ?a) ?b)" => "(mul ?x a*b)"
        if "?a and ?b are constants, their product is a normal number", |g, b| {
            b.is_f32(g, "x")?;
            let c = b.constant(g, "a")? * b.constant(g, "b")?;
            c.is_normal().then_some(())?;
            let c = scalar(g, c)?;
            add(g, Op::Mul, &[b.id("x")?, c], vec![])
        };
    /// Division by a power of two is a product, exactly.
    "div-power-of-two" Simplify Bitwise: "(div ?x ?c)" => "(mul ?x 1/c)" if "?c is a constant power of two",
        |g, b| {
            let c = b.constant(g, "c").filter(|c| is_power_of_two(*c))?;
            reciprocal(g, b, c)
        };
    /// Division by a constant is nearly a product: a relative error of 2^-23 at most.
    "div-const" Simplify Approximates: "(div ?x ?c)" => "(mul ?x 1/c)" if "?c is a normal constant", |g, b| {
        let c = b.constant(g, "c").filter(|c| !is_power_of_two(*c))?;
        reciprocal(g, b, c)
    };
    /// Conversion to the type that is there.
    "cast-same" Simplify Bitwise: "(cast ?x ?t)" => "?x" if "?x has that type", |g, b| {
        let Attr::DType(to) = b.attr(g, "t")? else { return None };
        (b.tensor(g, "x")?.elem.scalar()? == to).then_some(())?;
        b.id("x")
    };
    /// Conversion by way of a wider type.
    "cast-cast" Simplify Bitwise: "(cast (cast ?x ?a) ?b)" => "(cast ?x ?b)" if "type ?a holds every number of ?x",
        |g, b| {
            let (Attr::DType(a), Attr::DType(to)) = (b.attr(g, "a")?, b.attr(g, "b")?) else { return None };
            holds(a, b.tensor(g, "x")?.elem.scalar()?).then_some(())?;
            add(g, Op::Cast, &[b.id("x")?], vec![Attr::DType(to)])
        };
    /// The softmax of a row does not change when all of it moves.
    "softmax-shift" Simplify Reassociates: "(softmax (sub ?x ?m))" => "(softmax ?x)"
        if "?m is one finite number per row, or the row's maximum", |g, b| {
            let m = b.id("m")?;
            let constant = tensor_of(g, m)?.shape.last().is_none_or(|d| *d == 1.into());
            let wide = b.shape(g, "x")?.last()? != &1.into();
            let x = b.id("x")?;
            let is_max = |n: &crate::eqsat::term::Term| {
                matches!(n, crate::eqsat::term::Term::Op(Op::ReduceMax, c) if g.find(c[0]) == g.find(x))
            };
            let finite = g[m].data.finite || g[m].nodes.iter().any(is_max);
            (constant && wide && finite && tensor_of(g, b.class)? == tensor_of(g, x)?).then_some(())?;
            add(g, Op::Softmax, &[x], vec![])
        };
}

fn not_below_zero(g: &mut Graph, b: &Bound<'_>) -> Option<egg::Id> {
    let f = b.facts(g, "x")?;
    (f.finite && f.nonneg).then_some(())?;
    b.id("x")
}

fn is_power_of_two(c: f32) -> bool {
    c.is_normal() && (1.0 / c).is_normal() && c.to_bits() & 0x007f_ffff == 0
}

fn reciprocal(g: &mut Graph, b: &Bound<'_>, c: f32) -> Option<egg::Id> {
    (c.is_normal() && (1.0 / c).is_normal()).then_some(())?;
    let r = scalar(g, 1.0 / c)?;
    add(g, Op::Mul, &[b.id("x")?, r], vec![])
}

/// Does `wide` have every number of `narrow`, so that a conversion there and on loses nothing?
fn holds(wide: DType, narrow: DType) -> bool {
    /// Bits of integers that are exact, signed or not; for floats the significand and the exponent range.
    fn whole(d: DType) -> Option<(u32, bool)> {
        match d {
            DType::Bool => Some((1, false)),
            DType::U8 => Some((8, false)),
            DType::I8 => Some((7, true)),
            DType::I16 => Some((15, true)),
            DType::U32 => Some((32, false)),
            DType::I32 => Some((31, true)),
            DType::I64 => Some((63, true)),
            _ => None,
        }
    }
    if wide == narrow {
        return true;
    }
    match (whole(wide), whole(narrow)) {
        // A truth value is not converted by value: everything but 0 becomes 1.
        (Some(_), _) if wide == DType::Bool => false,
        (Some((w, ws)), Some((n, ns))) => w >= n && (ws || !ns),
        (None, Some((n, _))) => n <= if wide == DType::F32 { 24 } else { 8 },
        (None, None) => wide == DType::F32,
        (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wider_types_hold_narrower_ones() {
        use DType::{BF16, Bool, F16, F32, I8, I16, I32, I64, U8, U32};
        for (w, n) in [(F32, F16), (F32, BF16), (I64, U32), (I32, Bool), (I16, U8), (F32, I16), (F16, I8), (F32, F32)] {
            assert!(holds(w, n), "{w} holds {n}");
        }
        for (w, n) in [(F16, F32), (BF16, F16), (F16, BF16), (U32, I8), (I32, U32), (F32, I32), (Bool, I8), (I64, F16)]
        {
            assert!(!holds(w, n), "{w} does not hold {n}");
        }
        assert!(is_power_of_two(0.25) && is_power_of_two(-8.0) && !is_power_of_two(3.0) && !is_power_of_two(0.0));
    }
}

//! Movement: permutations, reshapes, slices, joins, repetitions and row selections, alone and through arithmetic.

use egg::Id;
use marquetry_ir::Dim;
use marquetry_ir::graph::{Attr, Op};

use super::{Bound, rules, tensor_of};
use crate::eqsat::facts::{Graph, add, split};
use crate::eqsat::term::Term;

rules! {
    /// Two permutations in one.
    "permute-permute" Simplify Bitwise: "(permute (permute ?x ?p) ?q)" => "(permute ?x p∘q)", |g, b| {
        let (Attr::Ints(p), Attr::Ints(q)) = (b.attr(g, "p")?, b.attr(g, "q")?) else { return None };
        let both = q.iter().map(|&i| p.get(i as usize).copied()).collect::<Option<Vec<_>>>()?;
        add(g, Op::Permute, &[b.id("x")?], vec![Attr::Ints(both)])
    };
    /// Axes that stay where they are.
    "permute-id" Simplify Bitwise: "(permute ?x ?p)" => "?x" if "?p is the identity", |g, b| {
        let Attr::Ints(p) = b.attr(g, "p")? else { return None };
        p.iter().copied().eq(0..p.len() as i64).then_some(())?;
        b.id("x")
    };
    /// Where only axes of extent 1 move, the order of elements stays.
    "permute-as-reshape" Simplify Bitwise: "(permute ?x ?p)" => "(reshape ?x s)"
        if "axes of other extents than 1 keep their order", |g, b| {
            let Attr::Ints(p) = b.attr(g, "p")? else { return None };
            let from = b.shape(g, "x")?;
            let real: Vec<i64> = p.iter().copied().filter(|i| from.get(*i as usize) != Some(&1.into())).collect();
            (real.is_sorted() && !p.is_sorted()).then_some(())?;
            let to = p.iter().map(|i| from.get(*i as usize).cloned()).collect::<Option<Vec<Dim>>>()?;
            add(g, Op::Reshape, &[b.id("x")?], vec![Attr::Shape(to)])
        };
    /// Two reshapes in one.
    "reshape-reshape" Simplify Bitwise: "(reshape (reshape ?x ?a) ?b)" => "(reshape ?x ?b)",
        |g, b| { let s = b.attr(g, "b")?; add(g, Op::Reshape, &[b.id("x")?], vec![s]) };
    /// The shape that is there.
    "reshape-id" Simplify Bitwise: "(reshape ?x ?s)" => "?x" if "?x has that shape",
        |g, b| { same_shape(g, b)?; b.id("x") };
    /// Repetition to the shape that is there.
    "broadcast-id" Simplify Bitwise: "(broadcast ?x ?s)" => "?x" if "?x has that shape",
        |g, b| { same_shape(g, b)?; b.id("x") };
    /// Two repetitions in one.
    "broadcast-broadcast" Simplify Bitwise: "(broadcast (broadcast ?x ?a) ?b)" => "(broadcast ?x ?b)",
        |g, b| { let s = b.attr(g, "b")?; add(g, Op::Broadcast, &[b.id("x")?], vec![s]) };
    /// Arithmetic repeats operands by itself.
    "broadcast-sink" Simplify Bitwise: "(binary ?x (broadcast ?y ?s))" => "(binary ?x ?y)" if "the shape stays",
        |g, b| { let (x, y) = (b.id("x")?, b.id("y")?); binary(g, b, x, y) };
    /// The same for the other operand.
    "broadcast-sink-left" Simplify Bitwise: "(binary (broadcast ?x ?s) ?y)" => "(binary ?x ?y)" if "the shape stays",
        |g, b| { let (x, y) = (b.id("x")?, b.id("y")?); binary(g, b, x, y) };
    /// All of an axis.
    "slice-id" Simplify Bitwise: "(slice ?x ?a 0 ?l)" => "?x" if "?l is the extent of the axis", |g, b| {
        let axis = b.int(g, "a")? as usize;
        (b.shape(g, "x")?.get(axis)?.as_const()? == b.int(g, "l")?).then_some(())?;
        b.id("x")
    };
    /// Part of a part.
    "slice-slice" Simplify Bitwise: "(slice (slice ?x ?a ?s ?l) ?a ?t ?m)" => "(slice ?x ?a s+t ?m)", |g, b| {
        let start = b.int(g, "s")?.checked_add(b.int(g, "t")?)?;
        slice(g, b.id("x")?, b.int(g, "a")?, start, b.int(g, "m")?)
    };
    /// A part that lies within one operand of a join.
    "slice-of-concat" Simplify Bitwise: "(slice ?c ?a ?s ?l)" => "(slice ?x ?a s-start ?l)"
        if "?c joins along ?a, and the part lies within ?x", |g, b| {
            let (axis, start, len) = (b.int(g, "a")?, b.int(g, "s")?, b.int(g, "l")?);
            let mut from = 0;
            for part in joined(g, b.id("c")?, axis)? {
                let n = tensor_of(g, part)?.shape.get(axis as usize)?.as_const()?;
                if start >= from && start + len <= from + n {
                    return if len == n { Some(part) } else { slice(g, part, axis, start - from, len) };
                }
                from += n;
            }
            None
        };
    /// All parts of something, joined again.
    "concat-of-slices" Simplify Bitwise: "(concat (slice ?x ?a 0 ?l) (slice ?x ?a ?l ?m) ?a)" => "(slice ?x ?a 0 l+m)",
        |g, b| {
            let (axis, len) = (b.int(g, "a")?, b.int(g, "l")?.checked_add(b.int(g, "m")?)?);
            let whole = b.shape(g, "x")?.get(axis as usize)?.as_const() == Some(len);
            if whole { b.id("x") } else { slice(g, b.id("x")?, axis, 0, len) }
        };
    /// Arithmetic before a permutation.
    "unary-of-permute" Simplify Bitwise: "(unary (permute ?x ?p))" => "(permute (unary ?x) ?p)", |g, b| {
        let (y, p) = (unary(g, b)?, b.attr(g, "p")?);
        add(g, Op::Permute, &[y], vec![p])
    };
    /// A permutation before arithmetic.
    "permute-of-unary" Simplify Bitwise: "(permute (unary ?x) ?p)" => "(unary (permute ?x ?p))", |g, b| {
        let p = b.attr(g, "p")?;
        let x = add(g, Op::Permute, &[b.id("x")?], vec![p])?;
        let attrs = b.attrs(g)?;
        add(g, b.op?, &[x], attrs)
    };
    /// Arithmetic before a reshape.
    "unary-of-reshape" Simplify Bitwise: "(unary (reshape ?x ?s))" => "(reshape (unary ?x) ?s)", |g, b| {
        let (y, s) = (unary(g, b)?, b.attr(g, "s")?);
        add(g, Op::Reshape, &[y], vec![s])
    };
    /// One permutation instead of two.
    "binary-of-permutes" Simplify Bitwise: "(binary (permute ?x ?p) (permute ?y ?p))" => "(permute (binary ?x ?y) ?p)",
        |g, b| {
            let (x, y, p) = (b.id("x")?, b.id("y")?, b.attr(g, "p")?);
            let z = binary_any(g, b, x, y)?;
            add(g, Op::Permute, &[z], vec![p])
        };
    /// A number for all elements does not care where they are.
    "binary-of-permute" Simplify Bitwise: "(binary (permute ?x ?p) ?c)" => "(permute (binary ?x ?c) ?p)"
        if "?c is a scalar", |g, b| {
            b.shape(g, "c")?.is_empty().then_some(())?;
            let (x, c, p) = (b.id("x")?, b.id("c")?, b.attr(g, "p")?);
            let z = binary_any(g, b, x, c)?;
            add(g, Op::Permute, &[z], vec![p])
        };
    /// One reshape instead of two.
    "binary-of-reshapes" Simplify Bitwise: "(binary (reshape ?x ?s) (reshape ?y ?s))" => "(reshape (binary ?x ?y) ?s)"
        if "?x and ?y have equal shapes", |g, b| {
            (b.shape(g, "x")? == b.shape(g, "y")?).then_some(())?;
            let (x, y, s) = (b.id("x")?, b.id("y")?, b.attr(g, "s")?);
            let z = binary_any(g, b, x, y)?;
            add(g, Op::Reshape, &[z], vec![s])
        };
    /// Only the part that is read is computed.
    "slice-of-unary" Simplify Bitwise: "(slice (unary ?x) ?a ?s ?l)" => "(unary (slice ?x ?a ?s ?l))", |g, b| {
        let x = slice(g, b.id("x")?, b.int(g, "a")?, b.int(g, "s")?, b.int(g, "l")?)?;
        let attrs = b.attrs(g)?;
        add(g, b.op?, &[x], attrs)
    };
    /// Only the part that is read is computed, of two operands.
    "slice-of-binary" Simplify Bitwise:
        "(slice (binary ?x ?y) ?a ?s ?l)" => "(binary (slice ?x ?a ?s ?l) (slice ?y ?a ?s ?l))"
        if "an operand that repeats along ?a stays whole", |g, b| {
            let (axis, start, len) = (b.int(g, "a")?, b.int(g, "s")?, b.int(g, "l")?);
            let mut sides = [b.id("x")?, b.id("y")?];
            let extents = sides.map(|id| tensor_of(g, id).map(|t| t.shape.get(axis as usize).cloned()));
            let [x, y] = extents.map(Option::flatten);
            for (i, side) in sides.iter_mut().enumerate() {
                let (own, other) = if i == 0 { (&x, &y) } else { (&y, &x) };
                let repeats = own.is_none() || (*own == Some(1.into()) && other.as_ref().is_some_and(|o| *o != 1.into()));
                if !repeats {
                    *side = slice(g, *side, axis, start, len)?;
                }
            }
            binary(g, b, sides[0], sides[1])
        };
    /// Rows are selected before arithmetic.
    "gather-of-unary" Simplify Bitwise: "(gather (unary ?x) ?i)" => "(unary (gather ?x ?i))", |g, b| {
        let x = add(g, Op::Gather, &[b.id("x")?, b.id("i")?], vec![])?;
        let attrs = b.attrs(g)?;
        add(g, b.op?, &[x], attrs)
    };
    /// Rows are selected before arithmetic with two operands.
    "gather-of-binary" Simplify Bitwise: "(gather (binary ?x ?y) ?i)" => "(binary (gather ?x ?i) (gather ?y ?i))"
        if "an operand that repeats along the rows stays whole; ?i has one axis", |g, b| {
            let i = b.id("i")?;
            (b.shape(g, "i")?.len() == 1).then_some(())?;
            let rows = tensor_of(g, b.class)?.shape.len();
            let mut sides = [b.id("x")?, b.id("y")?];
            let leading = sides.map(|id| tensor_of(g, id).map(|t| (t.shape.len(), t.shape.first().cloned())));
            let one = |s: &Option<(usize, Option<Dim>)>| s.as_ref().is_some_and(|(_, d)| *d == Some(1.into()));
            for (n, side) in sides.iter_mut().enumerate() {
                let (rank, _) = leading[n].as_ref()?;
                let repeats = *rank == 0 || (one(&leading[n]) && !one(&leading[1 - n]));
                (*rank == 0 || *rank == rows).then_some(())?;
                if !repeats {
                    *side = add(g, Op::Gather, &[*side, i], vec![])?;
                }
            }
            binary(g, b, sides[0], sides[1])
        };
    /// Only the rows that are read are normalised.
    "gather-of-norm" Simplify Bitwise: "(gather (rms_norm ?x ?w ?e) ?i)" => "(rms_norm (gather ?x ?i) ?w ?e)"
        if "rows are whole vectors", |g, b| {
            (b.shape(g, "x")?.len() >= 2).then_some(())?;
            let e = b.attr(g, "e")?;
            let x = add(g, Op::Gather, &[b.id("x")?, b.id("i")?], vec![])?;
            add(g, Op::RmsNorm, &[x, b.id("w")?], vec![e])
        };
    /// The same for the norm without a gain.
    "gather-of-layer-norm" Simplify Bitwise: "(gather (layer_norm ?x ?e) ?i)" => "(layer_norm (gather ?x ?i) ?e)"
        if "rows are whole vectors", |g, b| {
            (b.shape(g, "x")?.len() >= 2).then_some(())?;
            let e = b.attr(g, "e")?;
            let x = add(g, Op::Gather, &[b.id("x")?, b.id("i")?], vec![])?;
            add(g, Op::LayerNorm, &[x], vec![e])
        };
    /// Only the rows that are read are multiplied: logits of the last token instead of all.
    "gather-of-linear" Simplify Bitwise: "(gather (linear ?x ?w) ?i)" => "(linear (gather ?x ?i) ?w)"
        if "rows are whole vectors", |g, b| {
            (b.shape(g, "x")?.len() >= 2).then_some(())?;
            let x = add(g, Op::Gather, &[b.id("x")?, b.id("i")?], vec![])?;
            add(g, Op::Linear, &[x, b.id("w")?], vec![])
        };
    /// A selection of a selection.
    "gather-gather" Simplify Bitwise: "(gather (gather ?x ?i) ?j)" => "(gather ?x (gather ?i ?j))"
        if "?i has one axis", |g, b| {
            (b.shape(g, "i")?.len() == 1).then_some(())?;
            let i = add(g, Op::Gather, &[b.id("i")?, b.id("j")?], vec![])?;
            add(g, Op::Gather, &[b.id("x")?, i], vec![])
        };
}

fn same_shape(g: &Graph, b: &Bound<'_>) -> Option<()> {
    let s = b.attr(g, "s")?;
    (b.shape(g, "x")? == s.as_shape()).then_some(())
}

fn slice(g: &mut Graph, x: Id, axis: i64, start: i64, len: i64) -> Option<Id> {
    add(g, Op::Slice, &[x], [axis, start, len].map(Attr::Int).to_vec())
}

/// The operator of the class word over `?x`.
fn unary(g: &mut Graph, b: &Bound<'_>) -> Option<Id> {
    let attrs = b.attrs(g)?;
    add(g, b.op?, &[b.id("x")?], attrs)
}

/// The operator of the class word over two classes.
fn binary_any(g: &mut Graph, b: &Bound<'_>, x: Id, y: Id) -> Option<Id> {
    let attrs = b.attrs(g)?;
    add(g, b.op?, &[x, y], attrs)
}

/// The same, where the result has the type of what matched.
fn binary(g: &mut Graph, b: &Bound<'_>, x: Id, y: Id) -> Option<Id> {
    let z = binary_any(g, b, x, y)?;
    (tensor_of(g, z)? == tensor_of(g, b.class)?).then_some(z)
}

/// The operands of a join along `axis` in a class; the first one found.
fn joined(g: &Graph, c: Id, axis: i64) -> Option<Vec<Id>> {
    g[c].nodes.iter().find_map(|n| match n {
        Term::Op(Op::Concat, children) => {
            let (parts, attrs) = split(Op::Concat, children);
            (g[attrs[0]].data.attr == Some(Attr::Int(axis))).then(|| parts.to_vec())
        }
        _ => None,
    })
}

//! Recognition of rotary embeddings.
//!
//! Operands and attributes are read off where the pattern leads; the operator's expansion then proves or refutes the guess
//! (`dig::define`), so that there is one definition of what each means.

use egg::Id;
use marquetry_ir::graph::{Attr, Op};

use super::dig::{below, define, nodes, unshaped};
use super::{Bound, rules, tensor_of};
use crate::eqsat::facts::{Graph, add};

rules! {
    /// Cosines and sines of positions times frequencies, side by side.
    "rope-table" Recognise Bitwise: "(concat (cos ?a) (sin ?a) 1)" => "(rope_table pos freq 1)"
        if "?a is positions times a table of frequencies", |g, b| {
            let (pos, freq) = angle(g, b.id("a")?)?;
            define(g, b.class, Op::RopeTable, &[pos], vec![freq, Attr::float(1.0)])
        };
    /// The same with a scale.
    "rope-table-scaled" Recognise Bitwise: "(concat (mul (cos ?a) ?c) (mul (sin ?a) ?c) 1)" => "(rope_table pos freq c)"
        if "?a is positions times a table of frequencies, ?c a constant", |g, b| {
            let (pos, freq) = angle(g, b.id("a")?)?;
            let c = b.constant(g, "c")?;
            define(g, b.class, Op::RopeTable, &[pos], vec![freq, Attr::float(c)])
        };
    /// Rotation of the two halves of each head.
    "rope-halves" Recognise Bitwise:
        "(concat (sub (mul ?p ?c) (mul ?q ?s)) (add (mul ?q ?c) (mul ?p ?s)) 2)" => "(rope_apply x table false)"
        if "?p and ?q are the halves of each head of one tensor, ?c and ?s have one row per token",
        |g, b| rope(g, b, false);
    /// Rotation of the first features, the rest stays.
    "rope-halves-partial" Recognise Bitwise:
        "(concat (sub (mul ?p ?c) (mul ?q ?s)) (add (mul ?q ?c) (mul ?p ?s)) ?rest 2)" => "(rope_apply x table false)"
        if "?p, ?q and ?rest are the parts of each head of one tensor, ?c and ?s have one row per token",
        |g, b| rope(g, b, false);
    /// Rotation of neighbouring features.
    "rope-pairs" Recognise Bitwise:
        "(reshape (concat (sub (mul ?p ?c) (mul ?q ?s)) (add (mul ?q ?c) (mul ?p ?s)) 3) ?shape)"
        => "(rope_apply x table true)"
        if "?p and ?q are the even and odd features of one tensor, ?c and ?s have one row per token",
        |g, b| rope(g, b, true);
    /// `x cos + rotate_half(x) sin`, where cosines and sines stand twice.
    "rope-rotate-half" Recognise Bitwise:
        "(add (mul ?x ?c) (mul (concat (neg (slice ?x 2 ?h ?h)) (slice ?x 2 0 ?h) 2) ?s))" => "(rope_apply ?x table false)"
        if "?h is half of each head, and both halves of ?c, as of ?s, are the same", |g, b| {
            let half = b.int(g, "h")?;
            (b.columns(g, "x")? == 2 * half).then_some(())?;
            let (c, s) = (twice(g, b.id("c")?, Op::Cos)?, twice(g, b.id("s")?, Op::Sin)?);
            let table = table(g, b.id("x")?, c, s, half)?;
            add(g, Op::RopeApply, &[b.id("x")?, table], vec![Attr::Bool(false)])
        };
}

/// Positions and frequencies of `cast(pos) * freq`.
fn angle(g: &Graph, a: Id) -> Option<(Id, Attr)> {
    let read = |pos: Id, freq: Id| {
        let freq = nodes(g, unshaped(g, freq), Op::Table).into_iter().next()?.1.into_iter().next()?;
        Some((below(g, unshaped(g, pos), Op::Cast)?, freq))
    };
    nodes(g, a, Op::Mul).into_iter().find_map(|(f, _)| read(f[0], f[1]).or_else(|| read(f[1], f[0])))
}

/// The table `[n, 2 half]` whose halves are `c` and `s`, each of `n` rows of `half`.
fn table(g: &mut Graph, x: Id, c: Id, s: Id, half: i64) -> Option<Id> {
    let n = tensor_of(g, x)?.shape.first()?.clone();
    let mut parts = vec![];
    for (part, start) in [(c, 0), (s, half)] {
        let flat = unshaped(g, part);
        let own = nodes(g, flat, Op::Slice)
            .into_iter()
            .find_map(|(x, a)| (a[..] == [1, start, half].map(Attr::Int)).then_some(x[0]));
        parts.push(own.filter(|t| tensor_of(g, *t).is_some_and(|t| t.shape == [n.clone(), (2 * half).into()])));
    }
    if let [Some(t), Some(u)] = parts[..]
        && t == u
    {
        return Some(t);
    }
    let [c, s] =
        [c, s].map(|p| add(g, Op::Reshape, &[unshaped(g, p)], vec![Attr::Shape(vec![n.clone(), half.into()])]));
    add(g, Op::Concat, &[c?, s?], vec![Attr::Int(1)])
}

fn rope(g: &mut Graph, b: &Bound<'_>, interleaved: bool) -> Option<Id> {
    let half = if interleaved { tensor_of(g, b.id("p")?)?.shape.get(2)?.as_const()? } else { b.columns(g, "p")? };
    let part = below(g, b.id("p")?, Op::Slice)?;
    // The first half may be a part of the rotated features, which may be a part of all.
    let mut candidates = vec![part, unshaped(g, part)];
    candidates.extend(candidates.clone().into_iter().filter_map(|c| below(g, c, Op::Slice)));
    let shape = tensor_of(g, b.class)?.shape.clone();
    let x = candidates.into_iter().find(|c| tensor_of(g, *c).is_some_and(|t| t.shape == shape))?;
    let table = table(g, x, b.id("c")?, b.id("s")?, half)?;
    define(g, b.class, Op::RopeApply, &[x, table], vec![Attr::Bool(interleaved)])
}

/// The class of which `id`, below a reshape, is two copies side by side; `f` may be applied before or after the join.
fn twice(g: &mut Graph, id: Id, f: Op) -> Option<Id> {
    let flat = unshaped(g, id);
    let equal = |g: &Graph, id: Id| {
        let last = tensor_of(g, id)?.shape.len() as i64 - 1;
        let same = |(x, a): &(Vec<Id>, Vec<Attr>)| x.len() == 2 && x[0] == x[1] && a[0] == Attr::Int(last);
        nodes(g, id, Op::Concat).into_iter().find(same).map(|(x, _)| x[0])
    };
    if let Some(part) = equal(g, flat) {
        return Some(part);
    }
    let angles = below(g, flat, f).and_then(|a| equal(g, a))?;
    add(g, f, &[angles], vec![])
}

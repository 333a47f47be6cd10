//! Recognition of attention over the paged cache.
//!
//! Operands, attributes and the way it is spelled are read off where the pattern leads; attention spelled in that way from those
//! operands (`expand::attend_spelled`) then proves or refutes the guess.

use egg::Id;
use marquetry_ir::graph::expand::{Mask, Scale, Spelling, Weights, attend_spelled};
use marquetry_ir::graph::{Attr, Op};

use super::dig::{below, built, define, nodes, unshaped};
use super::{Bound, rules, tensor_of};
use crate::eqsat::facts::{Graph, add};

rules! {
    /// Scores against the keys of each token's pages, masked by position, and the weighted sum of the values.
    "attention" Recognise Bitwise:
        "(reshape (reduce_sum (mul (softmax (permute (select ?seen ?scores ?low) ?a)) ?v)) ?shape)" => "(attend q state pos seq pages)"
        if "the mask is causal or a sliding window, keys and values are those of the pages of one cache, which has every position",
        |g, b| {
            let found = guess(g, b, b.id("scores")?, b.id("seen")?)?;
            define(g, b.class, Op::Attend, &found.operands, found.attrs)
        };
    /// The same with the scale on queries or as a division, with a mask that is added, with values as they are, with repeated
    /// heads, or with the softmax in primitives.
    "attention-spelled" Recognise Reassociates: "(reshape (reduce_sum (mul ?w ?v)) ?shape)" => "(attend q state pos seq pages)"
        if "?w is a softmax of scores as of `attention`, and what is added to scores that are not seen, or stands for them, is -inf or at most -1e9",
        |g, b| { let w = b.id("w")?; other(g, b, w, false) };
    /// The same with the sum of exponentials divided out last.
    "attention-late" Recognise Reassociates:
        "(reshape (div (reduce_sum (mul ?w ?v)) (reduce_sum ?w)) ?shape)" => "(attend q state pos seq pages)"
        if "?w are exponentials of scores as of `attention`, less their maximum, masked as in `attention-spelled`",
        |g, b| { let w = b.id("w")?; other(g, b, w, true) };
}

/// What stands for the score of a position that is not seen, at most. Scores of half of it are no numbers that a model has.
const LOW: f32 = -1e9;

/// What a match would be attention of, if it is.
struct Guess {
    operands: [Id; 5],
    attrs: Vec<Attr>,
    scale: Scale,
    repeated: bool,
}

fn number(g: &Graph, id: Id) -> Option<f32> {
    g[id].data.constant.map(f32::from_bits)
}

/// An integer constant.
fn whole(g: &Graph, id: Id) -> Option<i64> {
    nodes(g, id, Op::Const).first().map(|(_, a)| a[0].as_f32() as i64)
}

/// A factor that is a number, and the other one.
fn scaled(g: &Graph, id: Id) -> Option<(Id, f32)> {
    nodes(g, id, Op::Mul).into_iter().find_map(|(f, _)| Some((f[0], number(g, f[1])?)))
}

fn guess(g: &Graph, b: &Bound<'_>, scores: Id, seen: Id) -> Option<Guess> {
    // Scores: softcap of (the sum over features of queries times keys) times a scale.
    let capped = nodes(g, scores, Op::Softcap).into_iter().next();
    let (scores, cap) = capped.map_or((scores, 0.0), |(x, a)| (x[0], a[0].as_f32()));
    let divided = || nodes(g, scores, Op::Div).into_iter().find_map(|(f, _)| Some((f[0], number(g, f[1])?)));
    let (products, mut scale) = match (scaled(g, scores), divided()) {
        (Some((x, by)), _) => (x, Some((by, Scale::Scores))),
        (None, Some((x, by))) => (x, Some((1.0 / by, Scale::Divided(by)))),
        (None, None) => (scores, None),
    };
    let products = below(g, products, Op::ReduceSum)?;
    let (q, keys) = nodes(g, products, Op::Mul).into_iter().next().map(|(f, _)| (f[0], f[1]))?;
    let mut operand = unshaped(g, q);
    if scale.is_none() {
        let inside = scaled(g, q).map(|(x, by)| (unshaped(g, x), by, false));
        let (x, by, first) = inside.or_else(|| scaled(g, operand).map(|(x, by)| (x, by, true)))?;
        operand = x;
        scale = Some((by, Scale::Queries { first }));
    }
    let (by, scale) = scale?;
    let (state, [pages, seq], page, repeated) = cache(g, keys)?;
    let (pos, window) = mask(g, seen)?;
    let attrs = vec![Attr::float(by), Attr::Int(window), Attr::float(cap), Attr::Int(page)];
    let same = |id: &Id| tensor_of(g, *id).is_some_and(|t| Some(t) == tensor_of(g, b.class));
    same(&operand).then_some(Guess { operands: [operand, state, pos, seq, pages], attrs, scale, repeated })
}

/// The cache of keys, its page table and the tokens' sequences, the size of a page, and whether heads are repeated.
fn cache(g: &Graph, keys: Id) -> Option<(Id, [Id; 2], i64, bool)> {
    let wide = below(g, unshaped(g, keys), Op::Broadcast);
    let rows = unshaped(g, wide.unwrap_or(keys));
    let (rows, slots) = nodes(g, rows, Op::Gather).into_iter().next().map(|(x, _)| (x[0], x[1]))?;
    let state = below(g, rows, Op::KvRead)?;
    // Slots: the pages of each token's sequence, times the size of a page, and the offset in it.
    let (of_sequence, seq) = nodes(g, slots, Op::Gather).into_iter().next().map(|(x, _)| (x[0], x[1]))?;
    let first = nodes(g, unshaped(g, of_sequence), Op::Add).into_iter().next()?.0[0];
    let (pages, page) = nodes(g, first, Op::Mul).into_iter().next().map(|(f, _)| (f[0], f[1]))?;
    let repeated = tensor_of(g, keys)?.shape.len() == 4;
    Some((state, [unshaped(g, pages), seq], whole(g, page)?, repeated))
}

/// Positions of tokens and the window of a mask: positions up to that of the token, and after the window's start.
fn mask(g: &Graph, seen: Id) -> Option<(Id, i64)> {
    let both = nodes(g, seen, Op::And).into_iter().next();
    let (causal, window) = match &both {
        Some((x, _)) => {
            let start = nodes(g, x[1], Op::Lt).into_iter().next()?.0[0];
            (x[0], whole(g, nodes(g, start, Op::Sub).into_iter().next()?.0[1])?)
        }
        None => (seen, 0),
    };
    Some((unshaped(g, nodes(g, causal, Op::Le).into_iter().next()?.0[1]), window))
}

/// What exponentials less their maximum are of.
fn shifted(g: &Graph, e: Id) -> Option<Id> {
    below(g, below(g, e, Op::Exp)?, Op::Sub)
}

/// Attention in another spelling than the definition.
fn other(g: &mut Graph, b: &Bound<'_>, w: Id, late: bool) -> Option<Id> {
    let (last, weights) = match (late, below(g, w, Op::Softmax)) {
        (true, _) => (shifted(g, w)?, Weights::Late),
        (false, Some(x)) => (x, Weights::Softmax),
        (false, None) => (shifted(g, below(g, w, Op::Div)?)?, Weights::Spelled),
    };
    let masked = below(g, last, Op::Permute)?;
    let (seen, scores, mask) = masking(g, masked)?;
    let Guess { operands, attrs, scale, repeated } = guess(g, b, scores, seen)?;
    let masked_values = !nodes(g, b.id("v")?, Op::Select).is_empty();
    let how = Spelling { scale, mask, weights, masked_values, repeated };
    let parts = built(g, &operands, |b, x| attend_spelled(b, x, &attrs, &how))?;
    (how != Spelling::DEFINITION && g.find(parts) == g.find(b.class)).then_some(())?;
    add(g, Op::Attend, &operands, attrs)
}

/// The mask, the scores below it, and how they are masked.
fn masking(g: &Graph, id: Id) -> Option<(Id, Id, Mask)> {
    let low = |id: Id| number(g, id).filter(|v| *v <= LOW);
    let selected = nodes(g, id, Op::Select).into_iter().find_map(|(x, _)| Some((x[0], x[1], low(x[2])?)));
    if let Some((seen, scores, low)) = selected {
        return Some((seen, scores, Mask::Selected(low)));
    }
    nodes(g, id, Op::Add).into_iter().find_map(|(x, _)| {
        let (c, _) = nodes(g, unshaped(g, x[1]), Op::Select).into_iter().next()?;
        let axes = tensor_of(g, c[0])?.shape.len();
        (number(g, c[1]) == Some(0.0) && axes >= 2).then_some(())?;
        Some((c[0], x[0], Mask::Added(low(c[2])?, axes)))
    })
}

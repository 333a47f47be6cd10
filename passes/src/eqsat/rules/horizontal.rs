//! Horizontal merges: gate with up as rules, and groups of products of one input, which pay only as a whole.

use std::collections::BTreeMap;

use egg::Id;
use marquetry_ir::Elem;
use marquetry_ir::graph::{Attr, Op, Ty};

use super::{Bound, rules};
use crate::eqsat::Config;
use crate::eqsat::extract::Group;
use crate::eqsat::facts::{Graph, add};
use crate::eqsat::report::element;
use crate::eqsat::term::Term;
use crate::manager::Rewrites;

rules! {
    /// Gate and up, row blocks in turn, so that one kernel has both in registers.
    "glu-linear" Fuse Bitwise: "(swiglu (linear ?x (pack ?a ?e)) (linear ?x (pack ?b ?e)))"
        => "(glu_linear ?x (concat_rows (pack ?a ?e) (pack ?b ?e) 8) 0)" if "two matrices of multiples of 8 rows",
        |g, b| glu(g, b, 0);
    /// The same over 8-bit activations.
    "glu-qlinear" Fuse Bitwise: "(swiglu (qlinear ?x (pack ?a ?e)) (qlinear ?x (pack ?b ?e)))"
        => "(glu_linear ?x (concat_rows (pack ?a ?e) (pack ?b ?e) 8) 0)" if "two matrices of multiples of 8 rows",
        |g, b| glu(g, b, 0);
    /// The same with gelu.
    "geglu-linear" Fuse Bitwise: "(geglu (linear ?x (pack ?a ?e)) (linear ?x (pack ?b ?e)) ?t)"
        => "(glu_linear ?x (concat_rows (pack ?a ?e) (pack ?b ?e) 8) 1+t)" if "two matrices of multiples of 8 rows",
        |g, b| { let act = gelu(g, b)?; glu(g, b, act) };
    /// The same with gelu over 8-bit activations.
    "geglu-qlinear" Fuse Bitwise: "(geglu (qlinear ?x (pack ?a ?e)) (qlinear ?x (pack ?b ?e)) ?t)"
        => "(glu_linear ?x (concat_rows (pack ?a ?e) (pack ?b ?e) 8) 1+t)" if "two matrices of multiples of 8 rows",
        |g, b| { let act = gelu(g, b)?; glu(g, b, act) };
}

fn gelu(g: &Graph, b: &Bound<'_>) -> Option<i64> {
    Some(1 + i64::from(b.attr(g, "t")?.as_bool()))
}

fn glu(g: &mut Graph, b: &Bound<'_>, act: i64) -> Option<Id> {
    let Attr::Elem(e) = b.attr(g, "e")? else { return None };
    let gate = add(g, Op::Pack, &[b.id("a")?], vec![Attr::Elem(e)])?;
    let up = add(g, Op::Pack, &[b.id("b")?], vec![Attr::Elem(e)])?;
    if g.find(gate) == g.find(up) {
        return None;
    }
    let w = add(g, Op::ConcatRows, &[gate, up], vec![Attr::Int(8)])?;
    add(g, Op::GluLinear, &[b.id("x")?, w], vec![Attr::Int(act)])
}

/// Name of the group rule in reports.
pub const MERGE_LINEARS: &str = "merge-linears";

/// [`MERGE_LINEARS`]: products of one input with packed weights of one type become one over joined rows, then slices.
pub fn merge_siblings(g: &mut Graph, region: &str, config: &Config, rewrites: &Rewrites) -> Vec<Group> {
    if !config.rules.allows(MERGE_LINEARS) {
        return vec![];
    }
    type Key = (Id, Op, Elem);
    let mut by_input: BTreeMap<Key, Vec<(Id, Id)>> = BTreeMap::new();
    let mut classes: Vec<Id> = g.classes().map(|c| c.id).collect();
    classes.sort_unstable();
    for id in classes {
        for node in &g[id].nodes {
            let Term::Op(op @ (Op::Linear | Op::QLinear), c) = node else { continue };
            let (x, w) = (g.find(c[0]), g.find(c[1]));
            let packed = g[w].nodes.iter().any(|n| matches!(n, Term::Op(Op::Pack, _)));
            let Some(Ty::Tensor(t)) = &g[w].data.ty else { continue };
            if packed && g[w].data.weight_only && matches!(t.elem, Elem::Packed(_) | Elem::Rows8(_)) {
                by_input.entry((x, *op, t.elem)).or_default().push((id, w));
            }
        }
    }
    let mut groups = vec![];
    for ((x, op, _), siblings) in by_input.into_iter().filter(|(_, s)| s.len() > 1) {
        if !rewrites.open() {
            break;
        }
        if let Some(members) = merged(g, x, op, &siblings) {
            rewrites.applied(|| format!("eqsat @{region}: `{MERGE_LINEARS}` of {} siblings", members.len()));
            groups.push(Group { rule: MERGE_LINEARS, op, members });
        }
    }
    g.rebuild();
    groups
}

fn rows(g: &Graph, w: Id) -> Option<i64> {
    g[w].data.ty.as_ref()?.as_tensor()?.shape.first()?.as_const()
}

fn merged(g: &mut Graph, x: Id, op: Op, siblings: &[(Id, Id)]) -> Option<Vec<(Id, Term)>> {
    let weights: Vec<Id> = siblings.iter().map(|(_, w)| *w).collect();
    // Rows are padded to blocks of 8 per matrix only at the end of the joined one.
    let counts = weights.iter().map(|w| rows(g, *w)).collect::<Option<Vec<_>>>()?;
    if counts.iter().any(|n| n % 8 != 0) {
        return None;
    }
    let joined = add(g, Op::ConcatRows, &weights, vec![Attr::Int(0)])?;
    let y = add(g, op, &[x, joined], vec![])?;
    let axis = g[y].data.ty.as_ref()?.as_tensor()?.shape.len() as i64 - 1;
    let mut start = 0;
    let mut members = vec![];
    for ((id, _), n) in siblings.iter().zip(counts) {
        let part = add(g, Op::Slice, &[y], [axis, start, n].map(Attr::Int).to_vec())?;
        let node = g[part].nodes.iter().find(|n| matches!(n, Term::Op(Op::Slice, _)))?.clone();
        g.union_trusted(*id, part, MERGE_LINEARS);
        members.push((*id, node));
        start += n;
    }
    Some(members)
}

/// Products of one input in a choice that can not be merged, and why.
pub fn apart(g: &Graph, chosen: &BTreeMap<Id, Term>) -> Vec<(Vec<Id>, String)> {
    let mut by_input: BTreeMap<Id, Vec<(Id, Id)>> = BTreeMap::new();
    for (id, node) in chosen {
        if let Term::Op(Op::Linear | Op::QLinear, c) = node {
            by_input.entry(g.find(c[0])).or_default().push((*id, g.find(c[1])));
        }
    }
    let mut all = vec![];
    for siblings in by_input.into_values() {
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        siblings.iter().for_each(|(_, w)| *kinds.entry(element(g, *w)).or_default() += 1);
        let ragged = siblings.iter().any(|(_, w)| rows(g, *w).is_none_or(|n| n % 8 != 0));
        let why = if kinds.len() > 1 {
            let kinds: Vec<String> = kinds.iter().map(|(k, n)| format!("{n} x {k}")).collect();
            format!("layouts differ: {}", kinds.join(", "))
        } else if siblings.len() > 1 && ragged {
            "the rows of a matrix are no multiple of 8".into()
        } else {
            continue;
        };
        all.push((siblings.into_iter().map(|(id, _)| id).collect(), why));
    }
    all
}

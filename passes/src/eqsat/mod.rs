//! Equality saturation: recognition, horizontal merges and layout selection, one e-graph per function.
//!
//! Rules run in phases, each to saturation, within limits of count, never of time, so that the result does not depend on the
//! machine. Every application is logged; the log of what was chosen is the report.

mod bridge;
pub mod cost;
mod extract;
mod facts;
mod rules;
#[cfg(test)]
mod soundness;
mod term;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wrong_rules;

use std::collections::BTreeMap;

use egg::{Id, Pattern, Searcher};
use marquetry_ir::Elem;
use marquetry_ir::graph::{Attr, Module, Op, Ty, TypeError};

use crate::Numerics;
use bridge::Region;
use cost::Target;
use extract::Group;
use facts::{Graph, add};
pub use rules::{Exact, Phase, RULES, Rule};
use term::Term;

/// Limits of one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most e-nodes.
    pub nodes: usize,
    /// Most rounds over the rules of a phase.
    pub rounds: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { nodes: 20_000, rounds: 16 }
    }
}

/// What happened in one region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Function.
    pub region: String,
    /// Operations before and after.
    pub ops: (usize, usize),
    /// Estimated picoseconds before and after.
    pub cost: (u64, u64),
    /// E-nodes at the end.
    pub nodes: usize,
    /// A limit that stopped it, which is a defect of the rules.
    pub limit: Option<String>,
    /// Rule, how often it fired, how many of its products were chosen.
    pub rules: Vec<(String, usize, usize)>,
    /// Horizontal groups: rule, number of siblings, taken.
    pub groups: Vec<(String, usize, bool)>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let us = |ps: u64| ps as f64 / 1e6;
        let (a, b) = self.ops;
        writeln!(
            f,
            "@{}: {a} ops -> {b}, est. {:.1} -> {:.1} us, {} e-nodes",
            self.region,
            us(self.cost.0),
            us(self.cost.1),
            self.nodes
        )?;
        if let Some(limit) = &self.limit {
            writeln!(f, "  stopped by {limit}")?;
        }
        for (rule, fired, chosen) in &self.rules {
            let what = if *chosen > 0 { "taken    " } else { "not taken" };
            writeln!(f, "  {what} {rule}: fired {fired}, chosen {chosen}")?;
        }
        for (rule, n, taken) in &self.groups {
            let what = if *taken { "taken    " } else { "not taken" };
            let why = if *taken { "one kernel for all" } else { "another form of some sibling is cheaper" };
            writeln!(f, "  {what} {rule} of {n} siblings: {why}")?;
        }
        Ok(())
    }
}

/// Rewrites every function; gives the module and one report per function.
///
/// # Errors
/// A type rule that fails while the chosen terms are written back, which is a defect of a rule.
pub fn run(m: &Module, target: Target, numerics: Numerics, limits: Limits) -> Result<(Module, Vec<Report>), TypeError> {
    let weights = bridge::weight_arguments(m);
    let mut out = m.clone();
    let mut reports = vec![];
    for f in &mut out.functions {
        let mut region = Region::new(&m.syms, f, weights.get(&f.name).map_or(&[], Vec::as_slice));
        let before = region.cost(target);
        let (firings, limit) = saturate(&mut region.graph, numerics, limits);
        let groups = merge_siblings(&mut region.graph);
        let mut report = Report { region: f.name.clone(), limit, ..Report::default() };
        report.nodes = region.graph.total_size();
        report.ops.0 = f.insts.len();
        let chosen = extract::extract(&region.graph, target, &region.roots, &groups);
        let (Some((choice, taken)), None) = (chosen, &region.graph.analysis.poisoned) else {
            report.limit = Some(region.graph.analysis.poisoned.clone().unwrap_or_else(|| "no extraction".into()));
            report.ops.1 = f.insts.len();
            reports.push(report);
            continue;
        };
        report.cost = (before, choice.cost);
        report.rules = summarise(&region.graph, &firings, &choice.nodes);
        report.groups = groups.iter().zip(taken).map(|(g, t)| (g.rule.to_string(), g.members.len(), t)).collect();
        *f = region.write(&m.syms, f, &choice.nodes)?;
        report.ops.1 = f.insts.len();
        reports.push(report);
    }
    Ok((out, reports))
}

/// A rule application: what it produced.
struct Firing {
    rule: usize,
    node: Term,
    class: Id,
}

fn saturate(g: &mut Graph, numerics: Numerics, limits: Limits) -> (Vec<Firing>, Option<String>) {
    let mut firings = vec![];
    for phase in [Phase::Recognise, Phase::Fuse] {
        let rules: Vec<(usize, &Rule, Pattern<Term>)> = RULES
            .iter()
            .enumerate()
            .filter(|(_, r)| r.phase == phase && r.allowed(numerics))
            .filter_map(|(i, r)| r.lhs.parse().ok().map(|p| (i, r, p)))
            .collect();
        let mut round = 0;
        loop {
            let matches: Vec<_> = rules.iter().map(|(i, r, p)| (*i, *r, p.search(g))).collect();
            let mut changed = false;
            for (i, rule, found) in matches {
                for m in found {
                    for subst in &m.substs {
                        let Some(id) = (rule.build)(g, &rules::Bound(subst)) else { continue };
                        if g.find(id) == g.find(m.eclass) {
                            continue;
                        }
                        let node = g[id].nodes[0].clone();
                        g.union_trusted(m.eclass, id, rule.name);
                        firings.push(Firing { rule: i, node, class: m.eclass });
                        changed = true;
                    }
                }
            }
            g.rebuild();
            round += 1;
            if !changed {
                break;
            }
            if round >= limits.rounds || g.total_size() > limits.nodes {
                return (firings, Some(format!("{round} rounds, {} e-nodes", g.total_size())));
            }
        }
    }
    (firings, None)
}

/// `merge-linears`: contractions of one input with packed weights of one type become one over joined rows, then slices.
fn merge_siblings(g: &mut Graph) -> Vec<Group> {
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
        if let Some(members) = merged(g, x, op, &siblings) {
            groups.push(Group { rule: "merge-linears", members });
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
        g.union_trusted(*id, part, "merge-linears");
        members.push((*id, node));
        start += n;
    }
    Some(members)
}

fn summarise(g: &Graph, firings: &[Firing], chosen: &BTreeMap<Id, Term>) -> Vec<(String, usize, usize)> {
    let mut counts: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    for f in firings {
        let taken = chosen.get(&g.find(f.class)).is_some_and(|n| extract::same(g, n, &f.node));
        let e = counts.entry(f.rule).or_default();
        e.0 += 1;
        e.1 += usize::from(taken);
    }
    counts.into_iter().map(|(r, (a, b))| (RULES[r].name.to_string(), a, b)).collect()
}

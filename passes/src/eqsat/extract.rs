//! Extraction: greedy over the DAG, each class once, plus a local search over horizontal groups.
//!
//! For each class the cheapest node is kept with the *set* of classes it needs, so that shared operands count once (the
//! "faster greedy DAG" of the extraction gym). A merge of siblings pays only when all of them take part, so each group is
//! tried as a whole and kept when the whole region gets cheaper.

use std::collections::BTreeMap;

use egg::{Id, Language};
use marquetry_ir::graph::{Op, Ty};

use super::cost::{self, Target};
use super::facts::{Graph, split};
use super::term::Term;

/// A horizontal merge: siblings and the node each takes if the group is chosen.
#[derive(Clone, Debug)]
pub struct Group {
    /// Name of the rule.
    pub rule: &'static str,
    /// Class of each sibling and its node in the merged form.
    pub members: Vec<(Id, Term)>,
}

/// The chosen node of each class that the roots need.
pub struct Choice {
    /// Node per class.
    pub nodes: BTreeMap<Id, Term>,
    /// Cost of all chosen nodes.
    pub cost: u64,
}

#[derive(Clone)]
struct Best {
    node: Term,
    needs: BTreeMap<Id, u64>,
    total: u64,
}

fn node_cost(g: &Graph, target: Target, id: Id, node: &Term) -> Option<u64> {
    let data = &g[id].data;
    match node {
        Term::Attr(_) | Term::Leaf(_) => Some(0),
        Term::Op(op, children) => {
            let (operands, _) = split(*op, children);
            let tys: Option<Vec<&Ty>> = operands.iter().map(|c| g[*c].data.ty.as_ref()).collect();
            let result = data.ty.as_ref()?;
            Some(cost::node(target, &g.analysis.syms, *op, &tys?, result, data.weight_only && *op != Op::KvAppend))
        }
    }
}

/// Rank among nodes of equal cost: smaller nodes first, then table order; never a hash or an id.
fn rank(node: &Term) -> (usize, u32) {
    match node {
        Term::Op(op, c) => (c.len() + 1, *op as u32),
        _ => (0, 0),
    }
}

fn solve(g: &Graph, target: Target, order: &[Id], forced: &BTreeMap<Id, Term>) -> BTreeMap<Id, Best> {
    let mut best: BTreeMap<Id, Best> = BTreeMap::new();
    let mut changed = true;
    while changed {
        changed = false;
        for &id in order {
            let nodes: Vec<&Term> = match forced.get(&id) {
                Some(n) => vec![n],
                None => g[id].nodes.iter().collect(),
            };
            for node in nodes {
                let Some(own) = node_cost(g, target, id, node) else { continue };
                let mut needs = BTreeMap::new();
                let children = node.children().iter().map(|c| best.get(&g.find(*c)));
                let Some(children) = children.collect::<Option<Vec<_>>>() else { continue };
                children.iter().for_each(|c| needs.extend(c.needs.iter().map(|(k, v)| (*k, *v))));
                if needs.contains_key(&id) {
                    continue;
                }
                needs.insert(id, own);
                let total = needs.values().fold(0u64, |a, b| a.saturating_add(*b));
                let better = match best.get(&id) {
                    Some(b) => (total, rank(node)) < (b.total, rank(&b.node)),
                    None => true,
                };
                if better {
                    best.insert(id, Best { node: node.clone(), needs, total });
                    changed = true;
                }
            }
        }
    }
    best
}

/// Chooses nodes for everything that `roots` need. `order` lists all classes in a deterministic order.
pub fn extract(g: &Graph, target: Target, roots: &[Id], groups: &[Group]) -> Option<(Choice, Vec<bool>)> {
    let mut order: Vec<Id> = g.classes().map(|c| c.id).collect();
    order.sort_unstable();
    let mut forced = BTreeMap::new();
    let mut taken = vec![false; groups.len()];
    let mut current = choose(g, &solve(g, target, &order, &forced), roots)?;
    for _ in 0..2 {
        let before = current.cost;
        for (i, group) in
            groups.iter().enumerate().filter(|(i, _)| !taken.get(*i).copied().unwrap_or(true)).collect::<Vec<_>>()
        {
            let mut trial = forced.clone();
            for (id, node) in &group.members {
                trial.insert(g.find(*id), node.clone());
            }
            let Some(with) = choose(g, &solve(g, target, &order, &trial), roots) else { continue };
            let all_used = group.members.iter().all(|(id, _)| with.nodes.contains_key(&g.find(*id)));
            if with.cost < current.cost && all_used {
                (current, forced) = (with, trial);
                taken[i] = true;
            }
        }
        if current.cost == before {
            break;
        }
    }
    Some((current, taken))
}

/// The cheapest choice that takes the given nodes.
#[cfg(test)]
pub fn forced(g: &Graph, target: Target, roots: &[Id], nodes: &BTreeMap<Id, Term>) -> Option<Choice> {
    let mut order: Vec<Id> = g.classes().map(|c| c.id).collect();
    order.sort_unstable();
    choose(g, &solve(g, target, &order, nodes), roots)
}

fn choose(g: &Graph, best: &BTreeMap<Id, Best>, roots: &[Id]) -> Option<Choice> {
    let mut nodes = BTreeMap::new();
    let mut cost = 0u64;
    let mut stack: Vec<Id> = roots.iter().map(|r| g.find(*r)).collect();
    while let Some(id) = stack.pop() {
        if nodes.contains_key(&id) {
            continue;
        }
        let b = best.get(&id)?;
        cost = cost.saturating_add(*b.needs.get(&id)?);
        stack.extend(b.node.children().iter().map(|c| g.find(*c)));
        nodes.insert(id, b.node.clone());
    }
    Some(Choice { nodes, cost })
}

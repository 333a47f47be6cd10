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

/// The best node of a class so far.
#[derive(Clone)]
struct Best {
    /// Position among the candidates of the class.
    candidate: usize,
    /// Classes that it needs, itself included, one bit each.
    needs: Vec<u64>,
    /// Cost of all of them.
    total: u64,
}

struct Candidate<'g> {
    node: &'g Term,
    cost: u64,
    children: Vec<usize>,
}

/// The e-graph with dense class numbers and the cost of every node, made once for all trials.
struct Problem<'g> {
    ids: Vec<Id>,
    index: BTreeMap<Id, usize>,
    candidates: Vec<Vec<Candidate<'g>>>,
}

/// Are two nodes the same operator over the same classes?
pub fn same(g: &Graph, a: &Term, b: &Term) -> bool {
    a.matches(b) && a.children().iter().zip(b.children()).all(|(x, y)| g.find(*x) == g.find(*y))
}

/// Cost of a node of a class; none for one that breaks a type rule.
pub fn node_cost(g: &Graph, target: Target, id: Id, node: &Term) -> Option<u64> {
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

/// Rounds over all classes before an extraction settles for what it has.
const MAX_ROUNDS: usize = 64;

impl<'g> Problem<'g> {
    /// Classes in the order of their ids, which is deterministic.
    fn new(g: &'g Graph, target: Target) -> Problem<'g> {
        let mut ids: Vec<Id> = g.classes().map(|c| c.id).collect();
        ids.sort_unstable();
        let index: BTreeMap<Id, usize> = ids.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        let candidate = |id: Id, node: &'g Term| {
            let children = node.children().iter().map(|c| index.get(&g.find(*c)).copied());
            let (cost, children) = (node_cost(g, target, id, node)?, children.collect::<Option<Vec<_>>>()?);
            Some(Candidate { node, cost, children })
        };
        let candidates = ids.iter().map(|&id| g[id].nodes.iter().filter_map(|n| candidate(id, n)).collect()).collect();
        Problem { ids, index, candidates }
    }

    /// The best node of each class; `forced` classes may take one node only.
    fn solve(&self, g: &Graph, forced: &BTreeMap<Id, Term>) -> Vec<Option<Best>> {
        let words = self.ids.len().div_ceil(64);
        let mut best: Vec<Option<Best>> = vec![None; self.ids.len()];
        let mut own = vec![0u64; self.ids.len()];
        for _ in 0..MAX_ROUNDS {
            let mut changed = false;
            for (i, id) in self.ids.iter().enumerate() {
                let only = forced.get(id);
                for (n, c) in self.candidates[i].iter().enumerate() {
                    if only.is_some_and(|o| !same(g, o, c.node)) {
                        continue;
                    }
                    let Some(needs) = union(&best, &c.children, words).filter(|needs| !has(needs, i)) else { continue };
                    let total = bits(&needs).fold(c.cost, |sum, j| sum.saturating_add(own[j]));
                    let better = match &best[i] {
                        Some(b) => (total, rank(c.node)) < (b.total, rank(self.candidates[i][b.candidate].node)),
                        None => true,
                    };
                    if better {
                        let mut needs = needs;
                        needs[i / 64] |= 1 << (i % 64);
                        own[i] = c.cost;
                        best[i] = Some(Best { candidate: n, needs, total });
                        changed = true;
                    }
                }
            }
            if !changed {
                break;
            }
        }
        best
    }

    fn choose(&self, best: &[Option<Best>], g: &Graph, roots: &[Id]) -> Option<Choice> {
        let mut nodes = BTreeMap::new();
        let mut cost = 0u64;
        let mut stack = roots.iter().map(|r| self.index.get(&g.find(*r)).copied()).collect::<Option<Vec<_>>>()?;
        while let Some(i) = stack.pop() {
            if nodes.contains_key(&self.ids[i]) {
                continue;
            }
            let c = &self.candidates[i][best[i].as_ref()?.candidate];
            cost = cost.saturating_add(c.cost);
            stack.extend(&c.children);
            nodes.insert(self.ids[i], c.node.clone());
        }
        Some(Choice { nodes, cost })
    }
}

/// What all children need together; none while a child has no node yet.
fn union(best: &[Option<Best>], children: &[usize], words: usize) -> Option<Vec<u64>> {
    let mut all = vec![0u64; words];
    for c in children {
        let needs = &best[*c].as_ref()?.needs;
        all.iter_mut().zip(needs).for_each(|(a, b)| *a |= b);
    }
    Some(all)
}

fn has(set: &[u64], i: usize) -> bool {
    set[i / 64] >> (i % 64) & 1 == 1
}

fn bits(set: &[u64]) -> impl Iterator<Item = usize> {
    set.iter().enumerate().flat_map(|(w, word)| {
        let mut left = *word;
        std::iter::from_fn(move || {
            let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(w * 64 + bit)
        })
    })
}

/// Chooses nodes for everything that `roots` need.
pub fn extract(g: &Graph, target: Target, roots: &[Id], groups: &[Group]) -> Option<(Choice, Vec<bool>)> {
    let problem = Problem::new(g, target);
    let mut forced = BTreeMap::new();
    let mut taken = vec![false; groups.len()];
    let mut current = problem.choose(&problem.solve(g, &forced), g, roots)?;
    for _ in 0..2 {
        let before = current.cost;
        for (i, group) in
            groups.iter().enumerate().filter(|(i, _)| !taken.get(*i).copied().unwrap_or(true)).collect::<Vec<_>>()
        {
            let mut trial = forced.clone();
            for (id, node) in &group.members {
                trial.insert(g.find(*id), node.clone());
            }
            let Some(with) = problem.choose(&problem.solve(g, &trial), g, roots) else { continue };
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
    let problem = Problem::new(g, target);
    problem.choose(&problem.solve(g, nodes), g, roots)
}

//! Extraction: greedy over the DAG, each class once, plus a local search over horizontal groups.
//!
//! For each class the cheapest node is kept with the *set* of classes it needs, so that shared operands count once (the
//! "faster greedy DAG" of the extraction gym); then single nodes are changed while the whole gets cheaper. A merge of
//! siblings pays only when all of them take part, so each group is tried as a whole and kept when the whole region gets
//! cheaper.

use std::collections::{BTreeMap, HashMap};

use egg::{Id, Language};
use marquetry_ir::graph::{Op, Ty};

use super::cost::{self, Cost, Target};
use super::facts::{Graph, split};
use super::term::Term;

/// A horizontal merge: siblings and the node each takes if the group is chosen.
#[derive(Clone, Debug)]
pub struct Group {
    /// Name of the rule.
    pub rule: &'static str,
    /// The operator that is merged.
    pub op: Op,
    /// Class of each sibling and its node in the merged form.
    pub members: Vec<(Id, Term)>,
}

/// The chosen node of each class that the roots need.
pub struct Choice {
    /// Node per class.
    pub nodes: BTreeMap<Id, Term>,
    /// Cost of all chosen nodes.
    pub cost: Cost,
}

/// Nodes that a choice must take or leave.
#[derive(Clone, Default)]
pub struct Wish {
    /// Classes that may take one node only.
    pub forced: BTreeMap<Id, Term>,
    /// Nodes, by class, that may not be taken.
    pub banned: Vec<(Id, Term)>,
}

/// The best node of a class so far.
#[derive(Clone)]
struct Best {
    /// Position among the candidates of the class.
    candidate: usize,
    /// Classes that it needs, itself included, one bit each.
    needs: Vec<u64>,
    /// Cost of all of them, and their number.
    total: u64,
    count: usize,
}

struct Candidate<'g> {
    node: &'g Term,
    cost: Cost,
    children: Vec<usize>,
    /// Place among nodes of equal cost: products of earlier rules first, what was there last; then table order.
    rank: (usize, u32),
}

/// The e-graph with dense class numbers and the cost of every node, made once for all trials.
pub struct Problem<'g> {
    g: &'g Graph,
    target: Target,
    roots: &'g [Id],
    ids: Vec<Id>,
    index: BTreeMap<Id, usize>,
    candidates: Vec<Vec<Candidate<'g>>>,
}

/// Are two nodes the same operator over the same classes?
pub fn same(g: &Graph, a: &Term, b: &Term) -> bool {
    a.matches(b) && a.children().iter().zip(b.children()).all(|(x, y)| g.find(*x) == g.find(*y))
}

/// Cost of a node of a class; none for one that breaks a type rule.
pub fn node_cost(g: &Graph, target: Target, id: Id, node: &Term) -> Option<Cost> {
    let data = &g[id].data;
    match node {
        Term::Attr(_) | Term::Leaf(_) => Some(Cost::default()),
        Term::Op(op, children) => {
            let (operands, _) = split(*op, children);
            let tys: Option<Vec<&Ty>> = operands.iter().map(|c| g[*c].data.ty.as_ref()).collect();
            let result = data.ty.as_ref()?;
            Some(cost::node(target, &g.analysis.syms, *op, &tys?, result, data.weight_only && *op != Op::KvAppend))
        }
    }
}

/// The rule that made a node, by position; nodes that were there are not in it. Ties are broken by it, never by a hash or an id.
pub type Origins = HashMap<Term, usize>;

/// Rounds over all classes before an extraction settles for what it has.
const MAX_ROUNDS: usize = 64;

impl<'g> Problem<'g> {
    /// Classes in the order of their ids, which is deterministic.
    pub fn new(g: &'g Graph, target: Target, roots: &'g [Id], origins: &Origins) -> Problem<'g> {
        let mut ids: Vec<Id> = g.classes().map(|c| c.id).collect();
        ids.sort_unstable();
        let index: BTreeMap<Id, usize> = ids.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        let candidate = |id: Id, node: &'g Term| {
            let children = node.children().iter().map(|c| index.get(&g.find(*c)).copied());
            let (cost, children) = (node_cost(g, target, id, node)?, children.collect::<Option<Vec<_>>>()?);
            let tag = if let Term::Op(op, _) = node { *op as u32 + 1 } else { 0 };
            let rank = (origins.get(node).copied().unwrap_or(usize::MAX), tag);
            Some(Candidate { node, cost, children, rank })
        };
        let candidates = ids.iter().map(|&id| g[id].nodes.iter().filter_map(|n| candidate(id, n)).collect()).collect();
        Problem { g, target, roots, ids, index, candidates }
    }

    /// The best node of each class.
    fn solve(&self, wish: &Wish) -> Vec<Option<Best>> {
        let words = self.ids.len().div_ceil(64);
        let mut best: Vec<Option<Best>> = vec![None; self.ids.len()];
        let mut own = vec![0u64; self.ids.len()];
        let key = |i: usize, b: &Best| (b.total, b.count, self.candidates[i][b.candidate].rank);
        for _ in 0..MAX_ROUNDS {
            let mut changed = false;
            for i in 0..self.ids.len() {
                for (n, c) in self.candidates[i].iter().enumerate().filter(|(n, _)| self.allowed(wish, i, *n)) {
                    let Some(mut needs) = union(&best, &c.children, words).filter(|needs| !has(needs, i)) else {
                        continue;
                    };
                    let total = bits(&needs).fold(c.cost.weight(self.target), |sum, j| sum.saturating_add(own[j]));
                    needs[i / 64] |= 1 << (i % 64);
                    let new = Best { candidate: n, count: bits(&needs).count(), needs, total };
                    if best[i].as_ref().is_none_or(|old| key(i, &new) < key(i, old)) {
                        own[i] = c.cost.weight(self.target);
                        best[i] = Some(new);
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

    /// A cheap choice for the roots that grants the wish; none if there is none.
    pub fn choose(&self, wish: &Wish) -> Option<Choice> {
        let mut taken: Vec<Option<usize>> = self.solve(wish).iter().map(|b| b.as_ref().map(|b| b.candidate)).collect();
        let (order, cost) = self.improve(wish, &mut taken)?;
        let node = |i: usize| Some((self.ids[i], self.candidates[i][taken[i]?].node.clone()));
        Some(Choice { nodes: order.into_iter().filter_map(node).collect(), cost })
    }

    /// Changes single nodes of what the roots need while that makes the whole cheaper. The totals that `solve` compares may be
    /// too small, of operands that took other nodes since; here all is counted anew.
    fn improve(&self, wish: &Wish, taken: &mut [Option<usize>]) -> Option<(Vec<usize>, Cost)> {
        let (mut order, mut cost) = self.reach(taken)?;
        for _ in 0..MAX_ROUNDS {
            let before = cost;
            for i in order.clone() {
                for n in 0..self.candidates[i].len() {
                    if taken[i] == Some(n) || !self.allowed(wish, i, n) {
                        continue;
                    }
                    let old = taken[i].replace(n);
                    match self.reach(taken).filter(|(_, c)| c.weight(self.target) < cost.weight(self.target)) {
                        Some(better) => (order, cost) = better,
                        None => taken[i] = old,
                    }
                }
            }
            if cost == before {
                break;
            }
        }
        Some((order, cost))
    }

    /// The classes that the roots need, and what they cost together; none where a node is missing or needs itself.
    fn reach(&self, taken: &[Option<usize>]) -> Option<(Vec<usize>, Cost)> {
        #[derive(Clone, Copy, PartialEq)]
        enum Seen {
            No,
            Open,
            Done,
        }
        let (mut seen, mut order, mut cost) = (vec![Seen::No; self.ids.len()], vec![], Cost::default());
        let mut stack: Vec<usize> = vec![];
        for r in self.roots {
            stack.push(*self.index.get(&self.g.find(*r))?);
            while let Some(&i) = stack.last() {
                let c = &self.candidates[i][taken[i]?];
                match seen[i] {
                    Seen::No => {
                        seen[i] = Seen::Open;
                        if c.children.iter().any(|c| seen[*c] == Seen::Open) {
                            return None;
                        }
                        stack.extend(c.children.iter().filter(|c| seen[**c] == Seen::No));
                        continue;
                    }
                    Seen::Open => {
                        seen[i] = Seen::Done;
                        order.push(i);
                        cost = cost + c.cost;
                    }
                    Seen::Done => {}
                }
                stack.pop();
            }
        }
        Some((order, cost))
    }

    /// Does a wish let a class take this candidate?
    fn allowed(&self, wish: &Wish, i: usize, n: usize) -> bool {
        let (id, node) = (&self.ids[i], self.candidates[i][n].node);
        let other = wish.forced.get(id).is_some_and(|only| !same(self.g, only, node));
        !other && !wish.banned.iter().any(|(b, t)| b == id && same(self.g, t, node))
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

/// The outcome of trying groups.
pub struct Extracted {
    /// What was chosen.
    pub choice: Choice,
    /// The groups in it, as wishes.
    pub wish: Wish,
    /// Of each group: was it taken, and what the whole would cost the other way.
    pub groups: Vec<(bool, Option<Cost>)>,
}

/// The wish with the nodes of a group in it.
fn with(g: &Graph, wish: &Wish, group: &Group) -> Wish {
    let mut wish = wish.clone();
    wish.forced.extend(group.members.iter().map(|(id, node)| (g.find(*id), node.clone())));
    wish
}

/// Chooses nodes for everything that the roots need: groups one by one, in two passes, while the whole gets cheaper.
pub fn extract(problem: &Problem<'_>, groups: &[Group]) -> Option<Extracted> {
    let g = problem.g;
    let mut wish = Wish::default();
    let mut taken = vec![false; groups.len()];
    let mut current = problem.choose(&wish)?;
    let weight = |c: &Choice| c.cost.weight(problem.target);
    let used =
        |choice: &Choice, group: &Group| group.members.iter().all(|(id, _)| choice.nodes.contains_key(&g.find(*id)));
    for _ in 0..2 {
        let before = weight(&current);
        for (group, taken) in groups.iter().zip(&mut taken).filter(|(_, t)| !**t) {
            let trial = with(g, &wish, group);
            let Some(choice) = problem.choose(&trial) else { continue };
            if weight(&choice) < weight(&current) && used(&choice, group) {
                (current, wish, *taken) = (choice, trial, true);
            }
        }
        if weight(&current) == before {
            break;
        }
    }
    let other = |(group, taken): (&Group, &bool)| {
        let mut trial = if *taken { wish.clone() } else { with(g, &wish, group) };
        if *taken {
            group.members.iter().for_each(|(id, node)| {
                trial.forced.remove(&g.find(*id));
                trial.banned.push((g.find(*id), node.clone()));
            });
        }
        (*taken, problem.choose(&trial).map(|c| c.cost))
    };
    let groups = groups.iter().zip(&taken).map(other).collect();
    Some(Extracted { choice: current, wish, groups })
}

/// The cheapest choice that takes the given nodes.
#[cfg(test)]
pub fn forced(g: &Graph, target: Target, roots: &[Id], nodes: &BTreeMap<Id, Term>) -> Option<Choice> {
    let wish = Wish { forced: nodes.clone(), ..Wish::default() };
    Problem::new(g, target, roots, &Origins::default()).choose(&wish)
}

/// The weight of the cheapest choice of all, by trying every one; none where there are too many.
#[cfg(test)]
pub fn exact(problem: &Problem<'_>) -> Option<u64> {
    struct Search<'p, 'g> {
        p: &'p Problem<'g>,
        best: u64,
        steps: usize,
    }
    impl Search<'_, '_> {
        fn go(&mut self, chosen: &mut BTreeMap<usize, usize>, open: &mut Vec<usize>, cost: u64) {
            self.steps += 1;
            if cost >= self.best || self.steps > 2_000_000 {
                return;
            }
            let Some(i) = open.pop() else {
                if self.acyclic(chosen) {
                    self.best = cost;
                }
                return;
            };
            if chosen.contains_key(&i) {
                self.go(chosen, open, cost);
            } else {
                for (n, c) in self.p.candidates[i].iter().enumerate() {
                    chosen.insert(i, n);
                    let mut open = open.clone();
                    open.extend(&c.children);
                    self.go(chosen, &mut open, cost + c.cost.weight(self.p.target));
                    chosen.remove(&i);
                }
            }
            open.push(i);
        }

        fn acyclic(&self, chosen: &BTreeMap<usize, usize>) -> bool {
            let mut left = chosen.clone();
            while !left.is_empty() {
                let ready = |(i, n): (&usize, &usize)| {
                    self.p.candidates[*i][*n].children.iter().all(|c| !left.contains_key(c)).then_some(*i)
                };
                let done: Vec<usize> = left.iter().filter_map(ready).collect();
                if done.is_empty() {
                    return false;
                }
                left.retain(|i, _| !done.contains(i));
            }
            true
        }
    }
    let mut s = Search { p: problem, best: u64::MAX, steps: 0 };
    let mut open: Vec<usize> = problem.roots.iter().map(|r| problem.index[&problem.g.find(*r)]).collect();
    s.go(&mut BTreeMap::new(), &mut open, 0);
    (s.steps <= 2_000_000).then_some(s.best)
}

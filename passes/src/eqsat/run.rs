//! Saturation: phases, limits, and the log of what fired.

use std::collections::BTreeSet;

use egg::Id;

use super::Limits;
use super::facts::Graph;
use super::rules::{FORMS, Match, Phase, RULES};
use super::term::Term;
use crate::Numerics;

/// A rule application: what it produced.
pub struct Firing {
    /// Position in [`RULES`].
    pub rule: usize,
    /// The node of the right side.
    pub node: Term,
    /// The class it became part of.
    pub class: Id,
}

/// What saturation leaves beside the graph.
#[derive(Default)]
pub struct Log {
    /// Applications that changed the graph, in order.
    pub firings: Vec<Firing>,
    /// Rule and class where a left side fits and the guard refuses.
    pub refused: BTreeSet<(usize, Id)>,
    /// The limit that stopped it, and the rules that fired most in the last round.
    pub limit: Option<String>,
}

/// Runs the rules that `numerics` allows, phase by phase, each until nothing changes.
pub fn saturate(g: &mut Graph, numerics: Numerics, limits: Limits) -> Log {
    let order: Vec<usize> = (0..RULES.len()).collect();
    saturate_in(g, numerics, limits, &order)
}

/// The same with the rules in another order, which must not matter.
pub fn saturate_in(g: &mut Graph, numerics: Numerics, limits: Limits, order: &[usize]) -> Log {
    let mut log = Log::default();
    for phase in Phase::ALL {
        let rules: Vec<usize> =
            order.iter().copied().filter(|&i| RULES[i].phase <= phase && RULES[i].allowed(numerics)).collect();
        for round in 1.. {
            let before = log.firings.len();
            let found: Vec<_> = rules.iter().map(|&i| (i, RULES[i].search(g, &FORMS[i]))).collect();
            for (i, found) in found {
                for m in RULES[i].build(g, found) {
                    apply(g, i, m, &mut log);
                }
            }
            g.analysis.rule = "congruence";
            g.rebuild();
            let fresh = &log.firings[before..];
            if fresh.is_empty() {
                break;
            }
            if round >= limits.rounds || g.total_size() > limits.nodes {
                log.limit = Some(format!("{round} rounds, {} e-nodes; most fired {}", g.total_size(), most(fresh)));
                return log;
            }
        }
    }
    log
}

fn apply(g: &mut Graph, rule: usize, m: Match, log: &mut Log) {
    let Some(product) = m.product else {
        log.refused.insert((rule, m.class));
        return;
    };
    if g.find(product) == g.find(m.class) {
        return;
    }
    let node = g[product].nodes[0].clone();
    g.analysis.rule = RULES[rule].name;
    g.union_trusted(m.class, product, RULES[rule].name);
    log.firings.push(Firing { rule, node, class: m.class });
}

/// The rules that fired most, with their counts.
fn most(firings: &[Firing]) -> String {
    let count = |r: usize| firings.iter().filter(|f| f.rule == r).count();
    let rules: BTreeSet<usize> = firings.iter().map(|f| f.rule).collect();
    let mut counts: Vec<(usize, usize)> = rules.into_iter().map(|r| (count(r), r)).collect();
    counts.sort_by_key(|(n, r)| (std::cmp::Reverse(*n), *r));
    let top = counts.iter().take(3).map(|(n, r)| format!("{} ({n})", RULES[*r].name));
    top.collect::<Vec<_>>().join(", ")
}

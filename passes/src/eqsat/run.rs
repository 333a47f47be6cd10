//! Saturation: phases, limits, and the log of what fired.

use std::collections::BTreeSet;

use egg::Id;

use super::Config;
use super::facts::Graph;
use super::rules::{FORMS, Match, Phase, RULES};
use super::term::Term;
use crate::manager::Rewrites;

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

/// Runs the rules that the choice and its numerics allow, phase by phase, each until nothing changes.
pub fn saturate(g: &mut Graph, region: &str, config: &Config, rewrites: &Rewrites) -> Log {
    let order: Vec<usize> = (0..RULES.len()).filter(|&i| config.rules.allows(RULES[i].name)).collect();
    saturate_in(g, region, config, &order, rewrites)
}

/// The same with the rules in another order, which must not matter.
pub fn saturate_in(g: &mut Graph, region: &str, config: &Config, order: &[usize], rewrites: &Rewrites) -> Log {
    let (numerics, limits) = (config.numerics, config.limits);
    let mut log = Log::default();
    for phase in Phase::ALL {
        let rules: Vec<usize> =
            order.iter().copied().filter(|&i| RULES[i].phase <= phase && RULES[i].allowed(numerics)).collect();
        for round in 1.. {
            let before = log.firings.len();
            let found: Vec<_> = rules.iter().map(|&i| (i, RULES[i].search(g, &FORMS[i]))).collect();
            for (i, found) in found {
                for m in RULES[i].build(g, found) {
                    if rewrites.open() && apply(g, i, m, &mut log) {
                        let class = log.firings.last().map_or_else(String::new, |f| f.class.to_string());
                        rewrites.applied(|| format!("eqsat @{region}: `{}` at class {class}", RULES[i].name));
                    }
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

/// Did it change the graph?
fn apply(g: &mut Graph, rule: usize, m: Match, log: &mut Log) -> bool {
    let Some(product) = m.product else {
        log.refused.insert((rule, m.class));
        return false;
    };
    if g.find(product) == g.find(m.class) {
        return false;
    }
    let node = g[product].nodes[0].clone();
    g.analysis.rule = RULES[rule].name;
    g.union_trusted(m.class, product, RULES[rule].name);
    log.firings.push(Firing { rule, node, class: m.class });
    true
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

//! Saturation: phases, limits, and the log of what fired.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use egg::{Id, Language};
use marquetry_ir::graph::TypeError;

use super::Config;
use super::extract::Origins;
use super::facts::Graph;
use super::rules::template::Form;
use super::rules::{FORMS, Match, Phase, RULES, Rule};
use super::term::Term;
use crate::manager::Rewrites;

/// A rule application: what it produced.
pub struct Firing {
    /// Name of the rule.
    pub rule: &'static str,
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
    pub refused: BTreeSet<(&'static str, Id)>,
    /// The limit that stopped it, and the rules that fired most in the last round.
    pub limit: Option<String>,
}

impl Log {
    /// The rule that made each node.
    pub fn origins(&self, g: &Graph) -> Origins {
        let mut all = Origins::new();
        for f in &self.firings {
            let rank = RULES.iter().position(|r| r.name == f.rule).unwrap_or(usize::MAX);
            let node = f.node.clone().map_children(|c| g.find(c));
            let old = all.entry(node).or_insert(rank);
            *old = rank.min(*old);
        }
        all
    }
}

/// Rules with their patterns.
pub type RuleSet<'a> = Vec<(&'a Rule, &'a [Form])>;

/// The rules that a choice and its numerics allow, in rank order.
pub fn allowed(config: &Config) -> RuleSet<'static> {
    let all = RULES.iter().zip(FORMS.iter().map(Vec::as_slice));
    all.filter(|(r, _)| config.rules.allows(r.name) && r.allowed(config.numerics, config.target)).collect()
}

/// A region that takes longer hangs. Results do not depend on it: it can only fail.
const WATCHDOG: Duration = Duration::from_secs(60);

/// Runs rules, phase by phase, each until nothing changes. Their order does not matter.
///
/// # Errors
/// If it hangs.
pub fn saturate(
    g: &mut Graph,
    region: &str,
    config: &Config,
    set: &RuleSet<'_>,
    rewrites: &Rewrites,
) -> Result<Log, TypeError> {
    let (limits, start) = (config.limits, Instant::now());
    let mut log = Log::default();
    for phase in Phase::ALL {
        let rules: Vec<_> = set.iter().filter(|(r, _)| r.phase <= phase).collect();
        for round in 1.. {
            let before = log.firings.len();
            let found: Vec<_> = rules.iter().map(|(r, forms)| (r, r.search(g, forms))).collect();
            for (rule, found) in found {
                for m in rule.build(g, found) {
                    if rewrites.open() && apply(g, rule, m, &mut log) {
                        let class = log.firings.last().map_or_else(String::new, |f| f.class.to_string());
                        rewrites.applied(|| format!("eqsat @{region}: `{}` at class {class}", rule.name));
                    }
                }
            }
            g.analysis.rule = "congruence";
            g.rebuild();
            let fresh = &log.firings[before..];
            if fresh.is_empty() {
                break;
            }
            if start.elapsed() > WATCHDOG {
                let message = format!("@{region}: rewriting takes over {WATCHDOG:?}; most fired {}", most(fresh));
                return Err(TypeError { code: "E0219", message });
            }
            if round >= limits.rounds || g.total_size() > limits.nodes {
                log.limit = Some(format!(
                    "stopped after {round} rounds with {} e-nodes; most fired {}",
                    g.total_size(),
                    most(fresh)
                ));
                return Ok(log);
            }
        }
    }
    Ok(log)
}

/// Did it change the graph?
fn apply(g: &mut Graph, rule: &Rule, m: Match, log: &mut Log) -> bool {
    let Some(product) = m.product else {
        log.refused.insert((rule.name, m.class));
        return false;
    };
    if g.find(product) == g.find(m.class) {
        return false;
    }
    let node = g[product].nodes[0].clone();
    g.analysis.rule = rule.name;
    g.union_trusted(m.class, product, rule.name);
    log.firings.push(Firing { rule: rule.name, node, class: m.class });
    true
}

/// The rules that fired most, with their counts.
fn most(firings: &[Firing]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    firings.iter().for_each(|f| *counts.entry(f.rule).or_default() += 1);
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    counts.iter().take(3).map(|(r, n)| format!("{r} ({n})")).collect::<Vec<_>>().join(", ")
}

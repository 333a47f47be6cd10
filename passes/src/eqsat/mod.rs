//! Equality saturation: recognition, horizontal merges and layout selection, one e-graph per function.
//!
//! Rules run in phases, each to saturation, within limits of count, never of time, so that the result does not depend on the
//! machine. Every application is logged; the log of what was chosen is the report.

mod bridge;
pub mod cost;
mod extract;
mod facts;
mod rules;
mod run;
#[cfg(test)]
mod soundness;
mod term;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wrong_rules;

use std::collections::BTreeMap;

use egg::Id;
use marquetry_ir::graph::{Module, TypeError};

use crate::Numerics;
use crate::manager::{Names, Rewrites};
use bridge::Region;
use cost::Target;
use facts::Graph;
use rules::horizontal::{MERGE_LINEARS, merge_siblings};
pub use rules::{Exact, Phase, RULES, Rule};
use run::{Firing, saturate};
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

/// How to rewrite.
#[derive(Clone, Debug)]
pub struct Config {
    /// Speeds that the cost model decides by.
    pub target: Target,
    /// What may happen to numbers.
    pub numerics: Numerics,
    /// Limits of one region.
    pub limits: Limits,
    /// The rules that take part.
    pub rules: Names,
}

/// Names of everything that [`Config::rules`] can choose.
pub fn rule_names() -> Vec<&'static str> {
    RULES.iter().map(|r| r.name).chain([MERGE_LINEARS]).collect()
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
    run_with(m, &Config { target, numerics, limits, rules: Names::default() }, &Rewrites::default())
}

/// As [`run`], with a choice of rules; each firing asks `rewrites`.
///
/// # Errors
/// As [`run`].
pub fn run_with(m: &Module, config: &Config, rewrites: &Rewrites) -> Result<(Module, Vec<Report>), TypeError> {
    let target = config.target;
    let weights = bridge::weight_arguments(m);
    let mut out = m.clone();
    let mut reports = vec![];
    for f in &mut out.functions {
        let mut region = Region::new(&m.syms, f, weights.get(&f.name).map_or(&[], Vec::as_slice));
        let before = region.cost(target);
        let log = saturate(&mut region.graph, &f.name, config, rewrites);
        let groups = merge_siblings(&mut region.graph, &f.name, config, rewrites);
        let mut report = Report { region: f.name.clone(), limit: log.limit.clone(), ..Report::default() };
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
        report.rules = summarise(&region.graph, &log.firings, &choice.nodes);
        report.groups = groups.iter().zip(taken).map(|(g, t)| (g.rule.to_string(), g.members.len(), t)).collect();
        *f = region.write(&m.syms, f, &choice.nodes)?;
        report.ops.1 = f.insts.len();
        reports.push(report);
    }
    Ok((out, reports))
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

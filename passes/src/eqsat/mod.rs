//! Equality saturation: recognition, horizontal merges and layout selection, one e-graph per function.
//!
//! Rules run in phases, each to saturation, within limits of count, never of time, so that the result does not depend on the
//! machine. Every application is logged; the log of what was chosen is the report.

mod bridge;
#[cfg(test)]
mod choice;
#[cfg(test)]
mod classes;
pub mod cost;
mod extract;
mod facts;
mod report;
mod rules;
mod run;
#[cfg(test)]
mod soundness;
mod term;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wrong_rules;

use marquetry_ir::Syms;
use marquetry_ir::graph::{Function, Module, Op, TypeError};

use crate::Numerics;
use crate::manager::{Names, Rewrites};
use bridge::Region;
pub(crate) use bridge::weight_arguments;
use cost::Target;
use extract::{Problem, extract};
use report::Facts;
pub use report::{NotTaken, Report, Taken};
use rules::horizontal::{MERGE_LINEARS, merge_siblings};
pub use rules::{Exact, Needs, Phase, RULES, Rule};
use run::{RuleSet, saturate};

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

/// Rewrites every function; gives the module and one report per function.
///
/// # Errors
/// A type rule that fails while the chosen terms are written back, which is a defect of a rule.
pub fn run(m: &Module, target: Target, numerics: Numerics, limits: Limits) -> Result<(Module, Vec<Report>), TypeError> {
    run_with(m, &Config { target, numerics, limits, rules: Names::default() }, &Rewrites::default())
}

/// As [`run()`], with a choice of rules; each firing asks `rewrites`.
///
/// # Errors
/// As [`run()`].
pub fn run_with(m: &Module, config: &Config, rewrites: &Rewrites) -> Result<(Module, Vec<Report>), TypeError> {
    run_set(m, config, &run::allowed(config), rewrites)
}

fn run_set(
    m: &Module,
    config: &Config,
    set: &RuleSet<'_>,
    rewrites: &Rewrites,
) -> Result<(Module, Vec<Report>), TypeError> {
    let weights = bridge::weight_arguments(m);
    let mut out = m.clone();
    let mut reports = vec![];
    for f in out.functions.iter_mut().filter(|f| f.kernel.is_none()) {
        let weights = weights.get(&f.name).map_or(&[][..], Vec::as_slice);
        let mut report = Report { region: f.name.clone(), calls: calls(m, &f.name).max(1), ..Report::default() };
        *f = rewrite(&m.syms, f, weights, config, (set, rewrites), &mut report)?;
        reports.push(report);
    }
    Ok((out, reports))
}

fn calls(m: &Module, name: &str) -> usize {
    let all = m.functions.iter().flat_map(|f| &f.insts);
    all.filter(|i| i.op == Op::Call && i.attrs[0].as_str() == name).count()
}

/// One function. Where a rule is found wrong the function stays as it is.
fn rewrite(
    syms: &Syms,
    f: &Function,
    weights: &[bool],
    config: &Config,
    (set, rewrites): (&RuleSet<'_>, &Rewrites),
    report: &mut Report,
) -> Result<Function, TypeError> {
    let mut region = Region::new(syms, f, weights);
    report.cost.0 = region.cost(config.target);
    report.ops = (f.insts.len(), f.insts.len());
    let log = saturate(&mut region.graph, &f.name, config, set, rewrites)?;
    let groups = merge_siblings(&mut region.graph, &f.name, config, rewrites);
    let graph = &region.graph;
    report.size = (graph.total_size(), graph.number_of_classes());
    report.limit = log.limit.clone();
    let problem = Problem::new(graph, config.target, &region.roots, &log.origins(graph));
    let wrong = graph.analysis.poisoned.clone();
    let extracted = match wrong {
        None => extract(&problem, &groups).ok_or_else(|| "no extraction".to_string()),
        Some(why) => Err(why),
    };
    let extracted = match extracted {
        Ok(e) => e,
        Err(why) => {
            report.cost.1 = report.cost.0;
            report.limit = Some(why + "; left as it was");
            return Ok(f.clone());
        }
    };
    let facts =
        Facts { graph, locs: region.locs(f), problem: &problem, log: &log, groups: &groups, extracted: &extracted };
    (report.taken, report.not_taken) = facts.lines();
    report.cost.1 = extracted.choice.cost;
    let new = region.write(syms, f, &extracted.choice.nodes)?;
    report.ops.1 = new.insts.len();
    Ok(new)
}

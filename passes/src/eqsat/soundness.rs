//! No rule changes what a function computes.
//!
//! `tests/data/eqsat/RULE.tir`, or `RULE@VARIANT.tir`, holds a function that the rule matches; in `RULE@refused-WHY.tir` its
//! guard must hold back. The rule is applied alone. Both sides have equal types, symbolic ones, and equal numbers as far as
//! the rule's class says, on random inputs of random sizes. `MARQUETRY_CASES` sets how many.

use std::collections::BTreeMap;
use std::fmt;

use marquetry_ir::graph::{Module, parse_module, print_module, verify};
use marquetry_ir::testing::{
    Numbers, Outcome, bits_differ, cases, first_seed, gap, keep, mean_gap, reduce, run, sensitivity,
};

use super::bridge::{self, Region};
use super::cost::Target;
use super::rules::horizontal::MERGE_LINEARS;
use super::rules::template::forms;
use super::rules::{RULES, Rule};
use super::{Exact, extract};
use crate::testing::{data, inputs, result_types};

/// Horizontal merges: their cases are not those of a rule, `tests.rs` has them.
const GROUPS: &[&str] = &[MERGE_LINEARS];

/// What shows that a rule is wrong.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fault {
    /// It does not match, or its guard refuses.
    Silent,
    /// Classes of different types were united, or a result has another type.
    Types(String),
    /// The rewritten function is not valid.
    Verifier(String),
    /// Numbers differ where they must have the same bits.
    Bits(String),
    /// Numbers are further apart than the class allows.
    Bound(f32),
}

impl Fault {
    /// One word.
    pub fn kind(&self) -> &'static str {
        match self {
            Fault::Silent => "silent",
            Fault::Types(_) => "types",
            Fault::Verifier(_) => "verifier",
            Fault::Bits(_) => "bits",
            Fault::Bound(_) => "bound",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Silent => f.write_str("it does not apply"),
            Fault::Types(what) => write!(f, "types: {what}"),
            Fault::Verifier(what) => write!(f, "verifier: {what}"),
            Fault::Bits(what) => write!(f, "bits: {what}"),
            Fault::Bound(gap) => write!(f, "{gap} apart"),
        }
    }
}

/// Applies one rule wherever it matches and takes its product there, whatever it costs. Gives the number of places.
pub(super) fn apply(m: &Module, rule: &Rule) -> Result<(Module, usize), Fault> {
    let weights = bridge::weight_arguments(m);
    let Some(f) = m.entry() else { return Err(Fault::Silent) };
    let mut region = Region::new(&m.syms, f, weights.get(&f.name).map_or(&[], Vec::as_slice));
    let forms = forms(rule.lhs).unwrap_or_else(|e| panic!("{}: {e}", rule.name));
    let g = &mut region.graph;
    let mut forced = BTreeMap::new();
    g.analysis.rule = rule.name;
    let found = rule.search(g, &forms);
    for found in rule.build(g, found) {
        let Some(id) = found.product.filter(|id| g.find(*id) != g.find(found.class)) else { continue };
        let node = g[id].nodes[0].clone();
        g.union_trusted(found.class, id, rule.name);
        forced.insert(found.class, node);
    }
    g.rebuild();
    if let Some(why) = &g.analysis.poisoned {
        return Err(Fault::Types(why.clone()));
    }
    let forced: BTreeMap<_, _> = forced.into_iter().map(|(id, n)| (g.find(id), n)).collect();
    let invalid = |what: &str| Fault::Verifier(what.into());
    let chosen = extract::forced(g, Target::CPU, &region.roots, &forced).ok_or_else(|| invalid("no extraction"))?;
    let mut out = m.clone();
    let written = region.write(&m.syms, f, &chosen.nodes).map_err(|e| invalid(&e.message))?;
    *out.functions.last_mut().expect("an entry function") = written;
    Ok((out, forced.len()))
}

/// How far the two sides are apart, over the size of the results; an error beyond what the class allows for one case. `room` is what
/// relative changes of the inputs by 2^-18 do to the results: exponentials of large numbers are not comparable more closely.
fn agree(exact: Exact, a: &Outcome, b: &Outcome, room: impl Fn() -> f32) -> Result<f32, Fault> {
    let (d, bound) = match exact {
        Exact::Bitwise => return bits_differ(a, b).map_or(Ok(0.0), |what| Err(Fault::Bits(what))),
        Exact::Reassociates => (gap(a, b), 1e-5),
        // Where all results of a case happen to cancel, rounding weighs more.
        Exact::Approximates => (mean_gap(a, b), 0.1),
    };
    if d <= bound || d.is_finite() && d <= room() { Ok(d) } else { Err(Fault::Bound(d)) }
}

/// What a rule that approximates may cost, as the root mean square over all cases.
const APPROXIMATES: f64 = 0.01;

/// Applies a rule to a case and compares both sides on the inputs of these seeds: the one entry for all rules, right or wrong.
pub(super) fn check(rule: &Rule, before: &Module, seeds: impl Iterator<Item = u64>) -> Result<(), Fault> {
    let (after, fired) = apply(before, rule)?;
    if fired == 0 {
        return Err(Fault::Silent);
    }
    if let Some(first) = verify(&after).first() {
        return Err(Fault::Verifier(first.clone()));
    }
    if result_types(before) != result_types(&after) {
        return Err(Fault::Types("results".into()));
    }
    let numbers: &[Numbers] = match rule.exact {
        Exact::Bitwise => &[Numbers::Normal, Numbers::Wide, Numbers::All],
        _ => &[Numbers::Normal, Numbers::Wide],
    };
    let (mut sum, mut count) = (0f64, 0f64);
    for seed in seeds {
        let i = inputs(before, seed, numbers[seed as usize % numbers.len()]);
        let [a, b] = [before, &after].map(|m| run(m, &i).unwrap_or_else(|e| panic!("{}: {e}", rule.name)));
        let room = || 4.0 * sensitivity(before, &i, &a, seed);
        let d = agree(rule.exact, &a, &b, room).inspect_err(|_| println!("{} fails with seed {seed}", rule.name))?;
        sum += f64::from(d).powi(2);
        count += 1.0;
    }
    let mean = (sum / count.max(1.0)).sqrt();
    if mean <= APPROXIMATES { Ok(()) } else { Err(Fault::Bound(mean as f32)) }
}

/// The case files: name without extension, and module.
fn files() -> Vec<(String, Module)> {
    let dir = std::fs::read_dir(data("eqsat")).unwrap().map(|e| e.unwrap().path());
    let mut paths: Vec<_> = dir.filter(|p| p.extension().is_some_and(|e| e == "tir")).collect();
    paths.sort();
    let read = |p: std::path::PathBuf| {
        let name = p.file_stem().unwrap().to_string_lossy().into_owned();
        let m = parse_module(&std::fs::read_to_string(&p).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(verify(&m), Vec::<String>::new(), "{name}");
        (name, m)
    };
    paths.into_iter().map(read).collect()
}

fn stem(name: &str) -> &str {
    name.split('@').next().unwrap_or(name)
}

fn is_refusal(name: &str) -> bool {
    name.contains("@refused")
}

#[test]
fn every_rule_keeps_the_numbers_of_its_cases() {
    let seeds = || first_seed()..first_seed() + cases(256);
    let mut tried: BTreeMap<&str, usize> = RULES.iter().map(|r| (r.name, 0)).collect();
    let mut faults = vec![];
    for (name, before) in files().iter().filter(|(name, _)| !is_refusal(name)) {
        let Some(rule) = RULES.iter().find(|r| r.name == stem(name)) else {
            assert!(GROUPS.contains(&stem(name)), "{name}.tir is the case of no rule");
            continue;
        };
        *tried.entry(rule.name).or_default() += 1;
        if let Err(fault) = check(rule, before, seeds()) {
            let same = |f: Fault| f.kind() == fault.kind();
            let small = reduce(before, &mut |m| check(rule, m, first_seed()..first_seed() + 32).is_err_and(same));
            let path = keep(&format!("rule-{name}"), &fault.to_string(), &print_module(&small));
            faults.push(format!("{name}: {fault}; see {}", path.display()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let without: Vec<&&str> = tried.iter().filter(|(_, n)| **n == 0).map(|(name, _)| name).collect();
    assert!(without.is_empty(), "rules without a case: {without:?}");
}

#[test]
fn guards_refuse_what_is_written_down() {
    for (name, before) in files().iter().filter(|(name, _)| is_refusal(name)) {
        let rule = RULES.iter().find(|r| r.name == stem(name));
        let rule = rule.unwrap_or_else(|| panic!("{name}.tir is the case of no rule"));
        assert_eq!(apply(before, rule).map(|(_, fired)| fired), Ok(0), "{name}");
    }
}

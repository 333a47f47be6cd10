//! Every rule, alone: `tests/data/eqsat/NAME.tir` holds its left side, `NAME.out` what the rule makes of it (`BLESS=1` writes
//! it anew). Both are interpreted on random inputs and must agree as the rule's class says. Wrong rules must be caught.

use std::collections::BTreeMap;

use marquetry_ir::graph::{Attr, Module, Op, parse_module, print_module, verify};
use proptest::prelude::*;

use super::bridge::{self, Region};
use super::cost::Target;
use super::facts::add;
use super::rules::{Bound, RULES, Rule};
use super::term::Term;
use super::{Exact, Limits, Pattern, Phase, Searcher, extract};
use crate::Numerics;
use crate::testing::{data, gap, interpret, mean_gap, result_types, snapshot};

fn read(name: &str) -> Module {
    let path = data("eqsat").join(format!("{name}.tir"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let m = parse_module(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(verify(&m), Vec::<String>::new(), "{name}");
    m
}

/// Applies one rule wherever it matches and takes its product there, whatever it costs.
fn apply(m: &Module, rule: &Rule) -> Result<(Module, usize), String> {
    let weights = bridge::weight_arguments(m);
    let f = m.entry().unwrap();
    let mut region = Region::new(&m.syms, f, weights.get(&f.name).map_or(&[], Vec::as_slice));
    let pattern: Pattern<Term> = rule.lhs.parse().map_err(|e| format!("{}: {e}", rule.name))?;
    let g = &mut region.graph;
    let mut forced = BTreeMap::new();
    for found in pattern.search(g) {
        for subst in &found.substs {
            let Some(id) = (rule.build)(g, &Bound(subst)) else { continue };
            if g.find(id) == g.find(found.eclass) {
                continue;
            }
            let node = g[id].nodes[0].clone();
            g.union_trusted(found.eclass, id, rule.name);
            forced.insert(found.eclass, node);
        }
    }
    g.rebuild();
    if let Some(why) = &g.analysis.poisoned {
        return Err(why.clone());
    }
    let forced: BTreeMap<_, _> = forced.into_iter().map(|(id, n)| (g.find(id), n)).collect();
    let chosen = extract::forced(g, Target::CPU, &region.roots, &forced).ok_or("no extraction")?;
    let mut out = m.clone();
    *out.functions.last_mut().unwrap() = region.write(&m.syms, f, &chosen.nodes).map_err(|e| e.message)?;
    Ok((out, forced.len()))
}

/// How far the two sides may be apart, over the size of the results: at most, or in the mean where a rule approximates.
fn bound(exact: Exact) -> f32 {
    match exact {
        Exact::Bitwise => 0.0,
        Exact::Reassociates => 1e-5,
        Exact::Approximates => 0.03,
    }
}

fn sound(before: &Module, rule: &Rule, seed: u64) -> Result<(), String> {
    let (after, fired) = apply(before, rule)?;
    if fired == 0 {
        return Err("it does not match".into());
    }
    if result_types(before) != result_types(&after) {
        return Err("the types differ".into());
    }
    let measure = if rule.exact == Exact::Approximates { mean_gap } else { gap };
    match measure(&interpret(before, seed).0, &interpret(&after, seed).0) {
        d if d <= bound(rule.exact) => Ok(()),
        d => Err(format!("{d} apart, {} allowed", bound(rule.exact))),
    }
}

#[test]
fn every_rule_has_a_case_and_makes_what_is_written_down() {
    for rule in RULES {
        let before = read(rule.name);
        let (after, fired) = apply(&before, rule).unwrap_or_else(|e| panic!("{}: {e}", rule.name));
        assert!(fired > 0, "{} does not match its own case", rule.name);
        assert_eq!(verify(&after), Vec::<String>::new(), "{}", rule.name);
        snapshot(data("eqsat").join(format!("{}.out", rule.name)), &print_module(&after));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_sides_of_every_rule_agree(seed: u64) {
        for rule in RULES {
            sound(&read(rule.name), rule, seed).map_err(|e| TestCaseError::fail(format!("{}: {e}", rule.name)))?;
        }
    }

    #[test]
    fn all_rules_together_keep_the_numbers(seed: u64) {
        for name in RULES.iter().map(|r| r.name).chain(["merge-linears"]) {
            let before = read(name);
            for (numerics, bound) in [(Numerics::Strict, 1e-5), (Numerics::Fast, 0.05)] {
                let (after, reports) = super::run(&before, Target::CPU, numerics, Limits::default()).unwrap();
                prop_assert!(verify(&after).is_empty());
                prop_assert!(reports.iter().all(|r| r.limit.is_none()), "{name}: {reports:?}");
                let measure = if numerics == Numerics::Fast { mean_gap } else { gap };
                let d = measure(&interpret(&before, seed).0, &interpret(&after, seed).0);
                prop_assert!(d <= bound, "{name} {numerics:?}: {d} apart");
            }
        }
    }
}

#[test]
fn siblings_become_one_product() {
    let before = read("merge-linears");
    let (after, reports) = super::run(&before, Target::CPU, Numerics::Strict, Limits::default()).unwrap();
    let taken =
        reports.iter().flat_map(|r| &r.groups).any(|(rule, n, taken)| rule == "merge-linears" && *n == 2 && *taken);
    assert!(taken, "{reports:?}");
    snapshot(data("eqsat/merge-linears.out"), &print_module(&after));
}

#[test]
fn saturation_does_not_depend_on_the_run() {
    for rule in RULES {
        let m = read(rule.name);
        let once = super::run(&m, Target::CPU, Numerics::Fast, Limits::default()).unwrap();
        let again = super::run(&m, Target::CPU, Numerics::Fast, Limits::default()).unwrap();
        assert!(once == again, "{}", rule.name);
    }
}

#[test]
fn names_are_unique_and_patterns_parse() {
    let mut names: Vec<&str> = RULES.iter().map(|r| r.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), RULES.len());
    for rule in RULES {
        assert!(rule.lhs.parse::<Pattern<Term>>().is_ok(), "{}: {}", rule.name, rule.lhs);
        assert!(!rule.rhs.is_empty());
    }
}

/// The check itself: rules that are wrong in one detail do not pass.
#[test]
fn wrong_rules_are_caught() {
    let rule = |name, lhs, build| Rule { name, phase: Phase::Fuse, exact: Exact::Reassociates, lhs, rhs: "", build };
    let wrong = [
        rule("swiglu", "(mul (silu ?g) ?u)", |g, b| add(g, Op::SwiGlu, &[b.id("u")?, b.id("g")?], vec![])),
        rule("geglu", "(mul (gelu ?g ?t) ?u)", |g, b| {
            add(g, Op::GeGlu, &[b.id("g")?, b.id("u")?], vec![Attr::Bool(false)])
        }),
        rule("softcap", "(mul (tanh (div ?x ?c)) ?c)", |g, b| {
            add(g, Op::Softcap, &[b.id("x")?], vec![Attr::float(1.0)])
        }),
        rule("softmax", "(div (exp (sub ?x ?m)) ?s)", |g, b| {
            let e = add(g, Op::Exp, &[b.id("x")?], vec![])?;
            add(g, Op::Softmax, &[e], vec![])
        }),
        rule("rms-norm", "(mul (mul ?x ?r) (reshape ?w ?s))", |g, b| {
            add(g, Op::RmsNorm, &[b.id("x")?, b.id("w")?], vec![Attr::float(0.5)])
        }),
        rule("silu-div", "(div ?x (add (exp (neg ?x)) ?one))", |g, b| add(g, Op::Tanh, &[b.id("x")?], vec![])),
        // Types that differ poison the region.
        rule("reshape-reshape", "(reshape (reshape ?x ?a) ?b)", |_, b| b.id("x")),
    ];
    for rule in wrong {
        let m = read(rule.name);
        assert!((0..8).any(|seed| sound(&m, &rule, seed).is_err()), "a wrong `{}` passes", rule.name);
    }
}

/// Where a rule must hold back: its left side fits, its guard does not.
#[test]
fn guards_hold() {
    let square = "func @f(%0 \"x\": f32[8, 8], %1 \"w\": f32[8]) {
      %2 = mul %0, %0 : f32[8, 8]
      %3 = reduce_sum %2 : f32[8, 1]
      %4 = const {value = 0.125, shape = [], dtype = f32} : f32[]
      %5 = mul %3, %4 : f32[8, 1]
      %6 = const {value = 1e-5, shape = [], dtype = f32} : f32[]
      %7 = add %5, %6 : f32[8, 1]
      %8 = rsqrt %7 : f32[8, 1]
      %9 = mul %0, %8 : f32[8, 8]
      %10 = reshape %1 {shape = [8, 1]} : f32[8, 1]
      %11 = mul %9, %10 : f32[8, 8]
      return \"y\" = %11
    }";
    let half = "param \"w\": f16[32, 64]
    func @f(%0 \"i\": i32[4]) {
      %1 = param {name = \"w\"} : f16[32, 64]
      %2 = gather %1, %0 : f16[4, 64]
      return \"y\" = %2
    }";
    for (name, text) in [("rms-norm", square), ("pack-gather-f32", half)] {
        let m = parse_module(text).unwrap();
        assert_eq!(verify(&m), Vec::<String>::new(), "{name}");
        let rule = RULES.iter().find(|r| r.name == name).unwrap();
        assert_eq!(apply(&m, rule).map(|(_, fired)| fired), Ok(0), "{name}");
    }
}

/// `docs/rules.md` is this table. `BLESS=1` writes it anew.
#[test]
fn the_documented_table_is_up_to_date() {
    let mut out = String::from(
        "# Rules of equality saturation\n\nGenerated from the rule table in `passes/src/eqsat/rules.rs` by its tests (`BLESS=1 cargo \
         test -p marquetry-passes`).\n\n`recognise` rules find high-level operators in primitives; `fuse` rules do algebra, movement, fusion \
         and layout. A rule that\n`approximates` runs only with fast numerics. Beside these, `merge-linears` joins products of one input with \
         packed weights of one\ntype into one product over joined rows, where that makes the whole function cheaper.\n\n| rule | phase | \
         numbers | from | to |\n| --- | --- | --- | --- | --- |\n",
    );
    for r in RULES {
        let (phase, exact) = (format!("{:?}", r.phase).to_lowercase(), format!("{:?}", r.exact).to_lowercase());
        out.push_str(&format!("| {} | {phase} | {exact} | `{}` | `{}` |\n", r.name, r.lhs, r.rhs));
    }
    snapshot(data("../../../docs/rules.md"), &out);
}

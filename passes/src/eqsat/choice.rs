//! What extraction chooses: never dearer than what came, as cheap as can be on small functions, and the same whatever the order
//! of rules. A rule that unites what is not equal is found, named, and has no effect.

use marquetry_ir::graph::{Module, parse_module, print_module};

use super::bridge::{Region, weight_arguments};
use super::cost::Target;
use super::extract::{Problem, exact, extract};
use super::rules::horizontal::merge_siblings;
use super::rules::template::forms;
use super::rules::{Exact, Needs, Phase, Rule};
use super::run::{allowed, saturate};
use super::{Config, Limits, Report, run_set};
use crate::Numerics;
use crate::manager::{Names, Rewrites};
use crate::testing::data;

fn cases() -> Vec<(String, Module)> {
    let files = std::fs::read_dir(data("eqsat")).unwrap().map(|e| e.unwrap().path());
    let tir = files.filter(|p| p.extension().is_some_and(|e| e == "tir"));
    let mut all: Vec<_> = tir
        .map(|p| {
            let name = p.file_stem().unwrap().to_string_lossy().into_owned();
            let m = parse_module(&std::fs::read_to_string(&p).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
            (name, m)
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn config(numerics: Numerics) -> Config {
    Config { target: Target::CPU, numerics, limits: Limits::default(), rules: Names::default() }
}

/// The result with the rules in the order that `seed` gives.
fn with_order(m: &Module, numerics: Numerics, seed: u64) -> (String, Vec<Report>) {
    let mut set = allowed(&config(numerics));
    let mut state = seed;
    for i in (1..set.len()).rev().filter(|_| seed > 0) {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        set.swap(i, (state >> 33) as usize % (i + 1));
    }
    let (m, reports) = run_set(m, &config(numerics), &set, &Rewrites::default()).unwrap();
    (print_module(&m), reports)
}

#[test]
fn results_depend_neither_on_the_run_nor_on_the_order_of_rules() {
    for (name, m) in cases() {
        let (once, report) = with_order(&m, Numerics::Fast, 0);
        for seed in 0..100 {
            let (text, again) = with_order(&m, Numerics::Fast, seed);
            assert!(text == once, "{name}, order {seed}:\n{text}\nand\n{once}");
            let weight = |r: &[Report]| r.iter().map(|r| r.cost.1.weight(Target::CPU)).collect::<Vec<_>>();
            assert_eq!(weight(&again), weight(&report), "{name}, order {seed}");
        }
    }
}

#[test]
fn choices_are_as_cheap_as_can_be_and_no_dearer_than_before() {
    let mut compared = 0;
    for (name, m) in cases() {
        for numerics in [Numerics::Strict, Numerics::Fast] {
            let (config, weights) = (config(numerics), weight_arguments(&m));
            let f = m.entry().unwrap();
            let mut region = Region::new(&m.syms, f, weights.get(&f.name).map_or(&[], Vec::as_slice));
            let before = region.cost(Target::CPU).weight(Target::CPU);
            let log = saturate(&mut region.graph, &f.name, &config, &allowed(&config), &Rewrites::default()).unwrap();
            let groups = merge_siblings(&mut region.graph, &f.name, &config, &Rewrites::default());
            let origins = log.origins(&region.graph);
            let problem = Problem::new(&region.graph, Target::CPU, &region.roots, &origins);
            let chosen = extract(&problem, &groups).unwrap().choice.cost.weight(Target::CPU);
            assert!(chosen <= before, "{name} {numerics:?}: {before} -> {chosen}");
            if let Some(best) = exact(&problem) {
                assert_eq!(chosen, best, "{name} {numerics:?}");
                compared += 1;
            }
        }
    }
    assert!(compared > 200, "{compared} functions are small enough");
}

#[test]
fn a_rule_that_unites_other_types_is_named_and_changes_nothing() {
    let wrong = Rule {
        name: "forgetful",
        doc: "",
        phase: Phase::Simplify,
        exact: Exact::Bitwise,
        needs: Needs::Nothing,
        lhs: "(reshape ?x ?s)",
        rhs: "?x",
        guard: "",
        build: |_, b| b.id("x"),
    };
    let m = parse_module(&std::fs::read_to_string(data("eqsat/reshape-reshape.tir")).unwrap()).unwrap();
    let patterns = forms(wrong.lhs).unwrap();
    let mut set = allowed(&config(Numerics::Strict));
    set.push((&wrong, &patterns));
    let (after, reports) = run_set(&m, &config(Numerics::Strict), &set, &Rewrites::default()).unwrap();
    assert!(after == m);
    let why = reports[0].limit.as_deref().unwrap_or_default();
    assert!(why.contains("rule `forgetful`: ") && why.contains(" united with "), "{why}");
}

#[test]
fn a_rule_that_never_ends_meets_the_limit_and_is_named() {
    let endless = Rule {
        name: "endless",
        doc: "",
        phase: Phase::Simplify,
        exact: Exact::Bitwise,
        needs: Needs::Nothing,
        lhs: "(softcap ?x ?c)",
        rhs: "(softcap ?x c+1)",
        guard: "",
        build: |g, b| {
            let c = g[b.id("c")?].data.attr.clone()?.as_f32();
            super::facts::add(g, super::Op::Softcap, &[b.id("x")?], vec![marquetry_ir::graph::Attr::float(c + 1.0)])
        },
    };
    let text = "func @f(%0 \"x\": f32[4]) { %1 = softcap %0 {cap = 1.0} : f32[4] return \"y\" = %1 }";
    let (m, patterns) = (parse_module(text).unwrap(), forms(endless.lhs).unwrap());
    let set = vec![(&endless, patterns.as_slice())];
    let why = |limits: Limits| {
        let config = Config { limits, ..config(Numerics::Strict) };
        let (_, reports) = run_set(&m, &config, &set, &Rewrites::default()).unwrap();
        reports[0].limit.clone().unwrap_or_default()
    };
    let why = [why(Limits::default()), why(Limits { nodes: 10, rounds: 1000 })];
    assert!(why[0].contains("16 rounds") && why[0].contains("most fired endless"), "{why:?}");
    assert!(why[1].contains("e-nodes; most fired endless") && !why[1].contains("16 rounds"), "{why:?}");
}

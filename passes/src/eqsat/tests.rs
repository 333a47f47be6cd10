//! What the rules make of their cases: `tests/data/eqsat/NAME.tir` becomes `NAME.out` (`BLESS=1` writes it anew), and all rules
//! together. `soundness.rs` checks each alone.

use marquetry_ir::graph::{Module, parse_module, print_module, verify};
use marquetry_ir::testing::{gap, mean_gap};
use proptest::prelude::*;

use super::cost::Target;
use super::rules::RULES;
use super::rules::template::forms;
use super::soundness::apply;
use super::{Limits, Needs};
use crate::Numerics;
use crate::testing::{both, data, snapshot};

fn read(name: &str) -> Module {
    let path = data("eqsat").join(format!("{name}.tir"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let m = parse_module(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(verify(&m), Vec::<String>::new(), "{name}");
    m
}

/// Names of the case files, without ending.
fn cases() -> Vec<String> {
    let files = std::fs::read_dir(data("eqsat")).unwrap().map(|e| e.unwrap().path());
    let tir = files.filter(|p| p.extension().is_some_and(|e| e == "tir"));
    let mut all: Vec<String> = tir.map(|p| p.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    all.sort();
    all
}

#[test]
fn every_rule_has_a_case_and_makes_what_is_written_down() {
    for rule in RULES.iter() {
        let of_rule = |n: &String| n.split('@').next() == Some(rule.name) && !n.contains("@refused");
        let names: Vec<String> = cases().into_iter().filter(of_rule).collect();
        assert!(names.iter().any(|n| n == rule.name), "no case for {}", rule.name);
        for name in names {
            let (after, fired) = apply(&read(&name), rule).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(fired > 0, "{name}: the rule does not match");
            assert_eq!(verify(&after), Vec::<String>::new(), "{name}");
            snapshot(data("eqsat").join(format!("{name}.out")), &print_module(&after));
        }
    }
}

#[test]
fn no_expected_text_is_left_over() {
    for file in std::fs::read_dir(data("eqsat")).unwrap() {
        let path = file.unwrap().path();
        assert!(path.with_extension("tir").exists(), "{} has no case", path.display());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_rules_together_keep_the_numbers(seed: u64) {
        for name in cases() {
            let before = read(&name);
            let ways = [(Numerics::Strict, Target::CPU), (Numerics::Fast, Target::CPU), (Numerics::Fast, Target::MATRIX)];
            for (numerics, target) in ways {
                let bound = if numerics == Numerics::Fast { 0.05 } else { 1e-5 };
                let (after, reports) = super::run(&before, target, numerics, Limits::default()).unwrap();
                prop_assert!(verify(&after).is_empty());
                prop_assert!(reports.iter().all(|r| r.limit.is_none()), "{name}: {reports:?}");
                let measure = if numerics == Numerics::Fast { mean_gap } else { gap };
                let [a, b] = both(&before, &after, seed);
                let d = measure(&a, &b);
                prop_assert!(d <= bound, "{name} {numerics:?}: {d} apart");
            }
        }
    }
}

#[test]
fn siblings_become_one_product() {
    let before = read("merge-linears");
    let (after, reports) = super::run(&before, Target::CPU, Numerics::Strict, Limits::default()).unwrap();
    let mut taken = reports.iter().flat_map(|r| &r.taken);
    assert!(taken.any(|t| t.rule == "merge-linears" && t.what.starts_with("2 ")), "{reports:?}");
    snapshot(data("eqsat/merge-linears.out"), &print_module(&after));
}

#[test]
fn saturation_does_not_depend_on_the_run() {
    for rule in RULES.iter() {
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
    for rule in RULES.iter() {
        assert!(forms(rule.lhs).is_ok_and(|f| !f.is_empty()), "{}: {}", rule.name, rule.lhs);
        assert!(!rule.rhs.is_empty() && !rule.doc.is_empty());
    }
}

/// `docs/rules.md` is this table. `BLESS=1` writes it anew.
#[test]
fn the_documented_table_is_up_to_date() {
    let mut out = String::from(
        "# Rules of equality saturation\n\nGenerated from the rule tables in `passes/src/eqsat/rules/` by their tests (`BLESS=1 cargo \
         test -p marquetry-passes`).\n\n`recognise` rules find high-level operators in primitives, `simplify` rules do algebra and \
         movement, `fuse` rules fusion\nand layout. A rule that `approximates` runs only with fast numerics. `unary` and `binary` stand \
         for every elementwise\noperator that keeps the shape, `0.5` for a constant, and commutative operands match in both orders. \
         Beside these,\n`merge-linears` joins products of one input with packed weights of one type into one product over joined rows, \
         where\nthat makes the whole function cheaper.\n\n| rule | phase | numbers | from | to | if |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for r in RULES.iter() {
        let (phase, exact) = (format!("{:?}", r.phase).to_lowercase(), format!("{:?}", r.exact).to_lowercase());
        let needs = if r.needs == Needs::Matrix { "the target has a matrix unit; " } else { "" };
        out.push_str(&format!("| {} | {phase} | {exact} | `{}` | `{}` | {needs}{} |\n", r.name, r.lhs, r.rhs, r.guard));
    }
    out.push_str(include_str!("elsewhere.md"));
    snapshot(data("../../../docs/rules.md"), &out);
}

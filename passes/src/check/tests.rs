//! The check on whole pipelines, and what it must see.

use marquetry_ir::graph::{Attr, Op, parse_module};

use super::{Check, Checker};
use crate::Numerics;
use crate::manager::{self, Ir, Options, PASSES, PassError, bisect, default_pipeline};
use crate::testing::data;

fn read(path: &str) -> Ir {
    Ir::Graph(parse_module(&std::fs::read_to_string(data(path)).unwrap()).unwrap())
}

fn module() -> Ir {
    read("passes/whole.tir")
}

fn options(numerics: Numerics, seed: u64) -> Options {
    Options { numerics, check: Some(Check { seed, tolerance: None }), ..Options::default() }
}

#[test]
fn every_pass_keeps_the_numbers() {
    for (numerics, seed) in [(Numerics::Strict, 0), (Numerics::Strict, 1), (Numerics::Fast, 0)] {
        let (_, reports) =
            manager::run(module(), &default_pipeline(), &options(numerics, seed), &mut |_, _| {}).unwrap();
        assert_eq!(reports.passes.len(), PASSES.len());
        assert!(reports.passes.iter().all(|p| p.checked.as_ref().is_some_and(|c| c.contains("numbers"))));
        assert!(reports.rewrites > 10, "{}", reports.rewrites);
    }
}

/// With any number of rewrites the IR is valid and gives the same numbers.
#[test]
fn every_rewrite_may_be_the_last() {
    let all = manager::run(module(), &default_pipeline(), &Options::default(), &mut |_, _| {}).unwrap().1.rewrites;
    for limit in 0..=all {
        let o = Options { rewrite_limit: Some(limit), ..options(Numerics::Strict, limit) };
        let done = manager::run(module(), &default_pipeline(), &o, &mut |_, _| {});
        let (_, reports) = done.unwrap_or_else(|e| panic!("{limit} rewrites: {e}"));
        assert_eq!(reports.rewrites, limit);
    }
}

/// Held to more than rewriting promises, the first approximation is found.
#[test]
fn bisection_names_the_rewrite() {
    let check = Some(Check { seed: 3, tolerance: Some(1e-4) });
    let o = Options { check, ..options(Numerics::Fast, 3) };
    let module = read("eqsat/int8-linear.tir");
    let (mut runs, pipeline) = (0, default_pipeline());
    let found = bisect(&module, &pipeline, &o, &mut |_, _| runs += 1).unwrap();
    let (number, what) = found.unwrap();
    assert!(what.contains("`int8-linear`"), "{number}: {what}");
    assert!(runs > 2, "{runs}");
    let at = |limit| {
        manager::run(module.clone(), &pipeline, &Options { rewrite_limit: Some(limit), ..o.clone() }, &mut |_, _| {})
    };
    assert!(at(number - 1).is_ok() && matches!(at(number), Err(PassError::Check { .. })));
    assert!(bisect(&module, &pipeline, &options(Numerics::Strict, 3), &mut |_, _| {}).unwrap().is_none());
}

/// One wrong constant, operand or shape in a module is seen.
#[test]
fn wrong_passes_are_caught() {
    let Ir::Graph(good) = module() else { panic!("a program") };
    let pass = |after: &marquetry_ir::graph::Module| {
        let mut checker = Checker::new(&Check { seed: 0, tolerance: None });
        checker.pass(&PASSES[1], Numerics::Strict, &Ir::Graph(good.clone()), &Ir::Graph(after.clone()))
    };
    assert!(pass(&good).is_ok());
    let mut caught = 0;
    let (f, entry) = (good.functions.len() - 1, good.entry().unwrap());
    for (i, inst) in entry.insts.iter().enumerate() {
        let mut wrong = good.clone();
        let target = &mut wrong.functions[f].insts[i];
        match (inst.op, inst.attrs.first()) {
            (Op::RmsNorm, _) => target.attrs[0] = Attr::float(0.5),
            (Op::Silu, _) => target.op = Op::Tanh,
            (Op::Add, _) => target.op = Op::Sub,
            _ => continue,
        }
        assert!(matches!(pass(&wrong), Err(PassError::Check { .. })), "{:?}", inst.op);
        caught += 1;
    }
    assert!(caught > 1, "{caught}");
}

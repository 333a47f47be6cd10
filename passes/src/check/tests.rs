//! The check on whole pipelines, and what it must see.

use marquetry_ir::DType;
use marquetry_ir::graph::{Attr, Op, parse_module};

use super::{Check, Checker, after_rounding, distance, unrounded};
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

#[test]
fn caches_of_sixteen_bits_are_near() {
    for dtype in [DType::F16, DType::BF16] {
        let o = Options { cache_type: Some(dtype), ..options(Numerics::Strict, 2) };
        let (ir, reports) =
            manager::run(read("eqsat/attention-spelled@together.tir"), &default_pipeline(), &o, &mut |_, _| {})
                .unwrap();
        let Ir::Program(p) = ir else { panic!("a program") };
        assert!(p.states.iter().any(|s| s.dtype == dtype), "{:?}", p.states);
        let cache = reports.passes.iter().find(|p| p.pass == "cache").unwrap();
        assert!(!cache.checked.as_ref().unwrap().contains(" 0.0e0 apart"), "{:?}", cache.checked);
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

/// A chain of layers with one quantized matrix each: steps of 8 bits add up, and are no fault of a pass.
#[test]
fn rounding_over_many_layers_is_no_fault() {
    let layers = 24;
    let mut text = String::from("param \"w\": gguf.q4_0[256, 256]\n\nfunc @f(%0 \"x\": f32[2, 256]) {\n");
    text += "  %1 = param {name = \"w\"} : gguf.q4_0[256, 256]\n  %2 = dequant %1 : f32[256, 256]\n";
    text += "  %3 = const {value = 1.0, shape = [256], dtype = f32} : f32[256]\n  %4 = rms_norm %0, %3 {eps = 0.00001} : f32[2, 256]\n";
    for l in 0..layers {
        let [a, b, c, d] = [4, 5, 6, 7].map(|v| v + 3 * l);
        text += &format!(
            "  %{b} = linear %{a}, %2 : f32[2, 256]\n  %{c} = tanh %{b} : f32[2, 256]\n  %{d} = rms_norm %{c}, %3 {{eps = 0.00001}} : f32[2, 256]\n"
        );
    }
    text += &format!("  return \"y\" = %{}\n}}", 4 + 3 * layers);
    let deep = parse_module(&text).unwrap();
    let (_, reports) = manager::run(
        Ir::Graph(deep),
        "canon,eqsat,fuse,lower,schedule,plan",
        &options(Numerics::Fast, 1),
        &mut |_, _| {},
    )
    .unwrap();
    let moved = |pass: &str| -> f32 {
        let said = reports.passes.iter().find(|p| p.pass == pass).and_then(|p| p.checked.clone()).unwrap();
        said.split("move results by ").nth(1).unwrap_or_else(|| panic!("{said}")).parse().unwrap()
    };
    assert!(moved("eqsat") > 0.05, "{} is too little to show anything", moved("eqsat"));
    assert_eq!(moved("eqsat"), moved("plan"));
}

/// With fast numerics a rewrite that is wrong by less than 8 bits lose is seen.
#[test]
fn rounding_hides_no_wrong_rewrite() {
    let module = |scale: &str| {
        let text = format!(
            "param \"w\": gguf.q4_1[32, 64]\nfunc @f(%0 \"x\": f32[2, 64]) {{\n  %1 = param {{name = \"w\"}} : gguf.q4_1[32, 64]\n  \
             %2 = pack %1 {{elem = pack.b4g32f16z0mx15}} : pack.b4g32f16z0mx15[32, 64]\n  %3 = quantize %0 : act8[2, 64]\n  \
             %4 = qlinear %3, %2 : f32[2, 32]\n  %5 = const {{value = {scale}, shape = [], dtype = f32}} : f32[]\n  \
             %6 = mul %4, %5 : f32[2, 32]\n  return \"y\" = %6\n}}"
        );
        Ir::Graph(parse_module(&text).unwrap())
    };
    let eqsat = PASSES.iter().find(|p| p.name == "eqsat").unwrap();
    let check = |after: Ir| {
        Checker::new(&Check { seed: 0, tolerance: None }).pass(eqsat, Numerics::Fast, &module("1.0"), &after)
    };
    check(module("1.0")).unwrap();
    assert!(matches!(check(module("1.001")), Err(PassError::Check { asked: false, .. })));
    let Ir::Graph(m) = module("1.0") else { panic!("a program") };
    let Ir::Graph(n) = read("eqsat/int8-linear.tir") else { panic!("a program") };
    assert!(unrounded(&m).unwrap() != m && unrounded(&n).unwrap() == n);
}

#[test]
fn two_roundings_are_as_far_apart_as_both_are_from_the_number() {
    let o = |v: &[f32]| vec![("y".to_string(), v.to_vec())];
    let apart = |d: f32| distance(&o(&[1.0, 1.0]), &o(&[1.0 + d, 1.0 - d]), &[after_rounding(0.01)]);
    assert!(apart(0.015).is_ok() && apart(0.021).is_err());
    assert!(distance(&o(&[1.0, 1.0]), &o(&[1.0002, 1.0]), &[after_rounding(0.0)]).is_err());
}

//! A mistake in model code is reported once, at the line of the user who made it.

use marquetry_frontend::nn::{Embedding, Linear};
use marquetry_frontend::{Attend, DType, Diagnostics, Limits, Module, Param, Step, dims, trace};

#[derive(Module)]
struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
}

fn mlp(up: usize) -> Mlp {
    Mlp { gate: Linear::new(64, 128), up: Linear::new(64, up), down: Linear::new(128, 64) }
}

fn run(m: &Mlp) -> (Result<marquetry_ir::graph::Module, Diagnostics>, u32) {
    let mut line = 0;
    let result = trace("mlp", m, |cx| {
        let n = cx.dim("n", 1..=16);
        let x = cx.input("x", dims![n, 64usize], DType::F32);
        line = line!() + 1;
        let y = m.gate.call(x).silu() * m.up.call(x);
        // Poisoned by now: nothing more is said.
        cx.output("y", m.down.call(y) + x);
    });
    (result, line)
}

#[test]
fn a_shape_mistake_is_one_error_at_the_operator() {
    let (result, line) = run(&mlp(124));
    let errors = result.unwrap_err();
    assert_eq!(errors.0.len(), 1, "{errors}");
    let e = &errors.0[0];
    assert_eq!((e.code, e.op.as_str(), e.line), ("E0203", "mul", line));
    assert!(e.file.ends_with("diagnostics.rs"));
    assert!(e.message.contains("[n, 128]") && e.message.contains("[n, 124]"), "{}", e.message);
    assert!(e.notes[0].starts_with("a is f32[n, 128], from `silu` at "), "{:?}", e.notes);
    assert!(e.notes[1].starts_with("b is f32[n, 124], from `linear` at "), "{:?}", e.notes);
}

#[test]
fn the_message_shows_the_line_with_a_caret() {
    let (result, line) = run(&mlp(124));
    let mut e = result.unwrap_err().0.remove(0);
    e.file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/diagnostics.rs").into();
    let text = e.to_string();
    assert!(text.starts_with("error[E0203]: `mul`: "), "{text}");
    assert!(text.contains(&format!("{line} |         let y = m.gate.call(x).silu() * m.up.call(x);")), "{text}");
    let source = text.lines().position(|l| l.contains("let y = m.gate")).unwrap();
    let caret = text.lines().nth(source + 1).unwrap().find('^').unwrap();
    let shown = text.lines().nth(source).unwrap();
    assert_eq!(&shown[caret..caret + 1], "m", "the caret stands under the expression:\n{text}");
}

#[test]
fn right_code_traces() {
    let (result, _) = run(&mlp(128));
    let module = result.unwrap();
    assert_eq!(marquetry_ir::graph::verify(&module), Vec::<String>::new());
    let names: Vec<&str> = module.params.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["gate.weight", "up.weight", "down.weight"]);
}

#[test]
fn a_parameter_outside_of_the_module_is_named() {
    let m = mlp(128);
    let stray = Param::new(&[8, 64]);
    let errors = trace("stray", &m, |cx| {
        let x = cx.input("x", dims![4usize, 64usize], DType::F32);
        cx.output("y", x.linear(&stray));
    })
    .unwrap_err();
    assert_eq!(errors.0.len(), 1);
    assert_eq!(errors.0[0].code, "E0220");
    assert!(errors.0[0].message.contains("[8, 64]"), "{}", errors.0[0].message);
}

#[test]
fn mistakes_with_the_cache_are_named() {
    let table = Embedding::new(16, 32);
    let limits = Limits { tokens: 8, sequences: 1, context: 64, page: 16 };
    let how = Attend { scale: 1.0, window: 0, softcap: 0.0 };
    let errors = trace("cache", &table, |cx| {
        let step = Step::declare(cx, limits);
        let kv = cx.kv_cache(&step, 2, 2, 16);
        let k = table.call(step.tokens).split_heads(2, 16);
        cx.output("beyond", k.attend(&kv.update(2, k, k), how));
        let wide = table.call(step.tokens).split_heads(1, 32);
        cx.output("wide", k.attend(&kv.update(0, wide, k), how));
    })
    .unwrap_err();
    let codes: Vec<&str> = errors.0.iter().map(|e| e.code).collect();
    assert_eq!(codes, ["E0221", "E0203"], "{errors}");
    assert!(errors.0[0].message.contains("layer 2 of a cache with 2 layers"), "{}", errors.0[0].message);
}

#[test]
fn every_mistake_is_reported() {
    let m = mlp(128);
    let errors = trace("many", &m, |cx| {
        let n = cx.dim("n", 1..=16);
        let k = cx.dim("k", 1..=16);
        let x = cx.input("x", dims![n, 64usize], DType::F32);
        let y = cx.input("y", dims![k, 64usize], DType::F32);
        cx.output("unknown", x + y);
        cx.output("elements", x.reshape(dims![n, 63usize]));
        cx.output("axis", x.slice(1, 60, 8));
    })
    .unwrap_err();
    let codes: Vec<&str> = errors.0.iter().map(|e| e.code).collect();
    assert_eq!(codes, ["E0205", "E0208", "E0209"], "{errors}");
    assert!(errors.0[0].message.contains("n equals k"), "{}", errors.0[0].message);
}

#[test]
fn a_size_has_one_declaration() {
    let errors = trace("sizes", &mlp(128), |cx| {
        cx.dim("n", 1..=16);
        cx.dim("n", 1..=16);
        cx.dim("n", 1..=32);
    })
    .unwrap_err();
    assert_eq!(errors.0.len(), 1, "{errors}");
    assert_eq!(errors.0[0].code, "E0222");
}

//! Models whose weights went through MLC-LLM's group quantization, against reference logits.
//!
//! The numbers that the integers stand for run as any checkpoint's do, within the case's tolerance. Where a GGUF block holds the same
//! integers and scales, the blocks themselves run too, in place.

#[path = "support/gguf.rs"]
mod gguf;
mod support;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use gguf::{Array, oracles, recipes, written};
use half::f16;
use marquetry::engine::{Engine, EngineOptions, Rows};
use marquetry::frontend::safetensors::Safetensors;
use marquetry::frontend::weights::Weights;
use marquetry::model::{LoadOptions, LoadedModel};
use marquetry::passes::Numerics;
use marquetry_ir::GgufType;
use marquetry_ir::graph::interp::{Data, Tensor};
use marquetry_ir::quant::dequantize;
use safetensors::tensor::{Dtype, TensorView, serialize};
use support::{Case, Session, distance};

/// A group scheme: integers of a sign-symmetric range, one scale per group along a row.
#[derive(Clone, Copy, Debug)]
struct Scheme {
    name: &'static str,
    group: usize,
    /// Integers are in `0..=2 * max`, and `max` stands for 0.
    max: f32,
    /// Type of scales and of all arithmetic.
    half: bool,
}

const SCHEMES: [Scheme; 3] = [
    Scheme { name: "q4f16_1", group: 32, max: 7.0, half: true },
    Scheme { name: "q4f32_1", group: 32, max: 7.0, half: false },
    Scheme { name: "q3f16_1", group: 40, max: 3.0, half: true },
];

impl Scheme {
    fn round(self, v: f32) -> f32 {
        if self.half { f16::from_f32(v).to_f32() } else { v }
    }

    /// Scale and integers of a group.
    fn group(self, w: &[f32]) -> (f32, Vec<f32>) {
        let most = w.iter().fold(0.0f32, |m, v| m.max(self.round(*v).abs()));
        let scale = self.round(most / self.max);
        let q = |v: &f32| {
            let q = self.round(self.round(self.round(*v) / scale) + self.max);
            if q.is_nan() { self.max } else { q.round_ties_even().clamp(0.0, 2.0 * self.max) }
        };
        (scale, w.iter().map(q).collect())
    }

    /// The numbers that a row's integers stand for.
    fn row(self, w: &[f32]) -> Vec<f32> {
        let one = |g: &[f32]| {
            let (scale, q) = self.group(g);
            q.into_iter().map(|q| self.round((q - self.max) * scale)).collect::<Vec<_>>()
        };
        w.chunks(self.group).flat_map(one).collect()
    }
}

struct Expected {
    case: String,
    scheme: Scheme,
    short: Vec<f32>,
    last: Vec<f32>,
    greedy: Vec<u32>,
    margins: Vec<f32>,
}

fn expected() -> Vec<Expected> {
    let dir = oracles().join("quantization/models");
    let mut names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    names.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
    names.sort();
    assert!(names.len() >= 9);
    let one = |path: &std::path::PathBuf| {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let [family, case, scheme] = stem.split("--").collect::<Vec<_>>()[..] else { panic!("{stem}") };
        let file = Safetensors::open(path).unwrap();
        let words = |name: &str| file.tensor(name).map(|t| file.data(t).as_chunks::<4>().0.to_vec());
        let floats =
            |name: &str| -> Option<Vec<f32>> { Some(words(name)?.into_iter().map(f32::from_le_bytes).collect()) };
        let all = floats("long.logits").map(|l| l[l.len() / 40 * 39..].to_vec());
        Expected {
            case: format!("{family}/{case}"),
            scheme: SCHEMES.into_iter().find(|s| s.name == scheme).unwrap(),
            short: floats("short.logits").unwrap(),
            last: floats("long.last_logits").or(all).unwrap(),
            greedy: words("greedy.ids").unwrap().into_iter().map(u32::from_le_bytes).collect(),
            margins: floats("greedy.margins").unwrap(),
        }
    };
    names.iter().map(one).collect()
}

/// Is it a matrix that schemes quantize? Routers are left alone.
fn quantized(name: &str, shape: &[usize]) -> bool {
    shape.len() == 2 && !name.ends_with("block_sparse_moe.gate.weight")
}

fn tokens(ids: &[i32]) -> Vec<u32> {
    ids.iter().map(|&i| i as u32).collect()
}

/// A directory with the case's configuration and other numbers, f32.
fn checkpoint(case: &str, scheme: Scheme, dir: &Path) {
    let from = oracles().join(case);
    let weights = Weights::open(&from).unwrap();
    let mut all: Vec<(String, Vec<usize>, Vec<u8>)> = vec![];
    for name in weights.names() {
        let view = weights.get(name).unwrap();
        let values = support::host(view.elem, &view.shape, view.data().into_owned()).to_f32().unwrap().to_vec();
        let values = match view.shape.last() {
            Some(k) if quantized(name, &view.shape) => values.chunks(*k).flat_map(|r| scheme.row(r)).collect(),
            _ => values.into_iter().map(|v| scheme.round(v)).collect::<Vec<f32>>(),
        };
        all.push((name.to_owned(), view.shape.clone(), values.iter().flat_map(|v| v.to_le_bytes()).collect()));
    }
    let views = all.iter().map(|(n, s, b)| (n, TensorView::new(Dtype::F32, s.clone(), b).unwrap()));
    std::fs::write(dir.join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
    std::fs::copy(from.join("config.json"), dir.join("config.json")).unwrap();
}

fn engine(path: &Path, numerics: Numerics, threads: usize) -> Engine {
    let model = LoadedModel::open(&path.to_string_lossy(), &LoadOptions::default(), &mut |_| {});
    let model = model.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let options = EngineOptions { numerics: Some(numerics), threads, context: 64, ..EngineOptions::default() };
    Engine::new(Arc::new(model), options).unwrap()
}

fn best(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

/// Compares an engine with the reference; ids as long as the margin tells more than the tolerance.
fn compare(e: &mut Engine, want: &Expected, tolerance: f32, what: &str) {
    let case = Case::load(&want.case);
    let short = tokens(&case.short.ids);
    let d = distance(&e.prefill(&short, Rows::All).unwrap(), &want.short);
    assert!(d <= tolerance, "{} {what} short: {d} beyond {tolerance}", want.case);
    let mut logits = want.short[want.short.len() - want.last.len()..].to_vec();
    for (id, margin) in want.greedy.iter().zip(&want.margins).take_while(|(_, m)| **m > 2.0 * tolerance) {
        assert_eq!(best(&logits), *id, "{} {what}, margin {margin}", want.case);
        logits = e.decode(*id).unwrap().to_vec();
    }
    e.reset().unwrap();
    let d = distance(&e.prefill(&tokens(&case.long.ids), Rows::Last).unwrap(), &want.last);
    assert!(d <= tolerance, "{} {what} long: {d} beyond {tolerance}", want.case);
}

#[test]
fn the_numbers_that_schemes_stand_for_give_the_reference_logits() {
    for want in expected() {
        let case = Case::load(&want.case);
        let dir = tempfile::tempdir().unwrap();
        checkpoint(&want.case, want.scheme, dir.path());
        compare(&mut engine(dir.path(), Numerics::Strict, 2), &want, case.tolerance, want.scheme.name);
        // The same numbers in the interpreter, as traced.
        let mut weights = Weights::open(dir.path()).unwrap();
        weights.declare(&case.text.stored).unwrap();
        let param = |p: &marquetry_ir::graph::Decl| {
            let view = weights.get(&p.name).unwrap();
            (p.name.clone(), support::host(view.elem, &view.shape, view.data().into_owned()))
        };
        let params: HashMap<String, Tensor> = case.text.module.params.iter().map(param).collect();
        assert!(params.values().all(|p| matches!(p.data, Data::F32(_))));
        let logits = Session::new(&case.text.module, &params).prompt(&case.short.ids, &[case.short.ids.len()]);
        let d = distance(&logits, &want.short);
        assert!(d <= case.tolerance, "{} {} interpreted: {d}", want.case, want.scheme.name);
    }
}

/// Blocks of Q4_0, whose integers have their zero at 8 instead of 7, hold 4-bit groups with f16 scales exactly.
fn q4_0(scheme: Scheme, values: &[f32]) -> Vec<u8> {
    let block = |g: &[f32]| {
        let (scale, q) = scheme.group(g);
        let q: Vec<u8> = q.into_iter().map(|q| q as u8 + 1).collect();
        let nibbles = (0..16).map(move |i| q[i] | q[i + 16] << 4);
        f16::from_f32(scale).to_le_bytes().into_iter().chain(nibbles).collect::<Vec<_>>()
    };
    values.chunks(32).flat_map(block).collect()
}

/// The integers are scaled in f32 here and in f16 there, which is what the tolerance for f16 arithmetic is for.
#[test]
fn blocks_with_the_same_integers_run_in_place() {
    let recipes = recipes();
    for want in expected().into_iter().filter(|w| w.scheme.name == "q4f16_1") {
        let Some(recipe) = recipes.iter().find(|r| r["case"] == want.case.as_str()) else { panic!("{}", want.case) };
        if recipe["lost"].as_object().is_some_and(|l| !l.is_empty()) {
            continue;
        }
        let encode = |name: &str, a: &Array| {
            let router = name.ends_with("ffn_gate_inp.weight");
            (a.shape.len() > 1 && !router).then(|| (2, q4_0(want.scheme, &a.values)))
        };
        let dir = tempfile::tempdir().unwrap();
        let path = written(recipe, dir.path(), &encode);
        let tolerance = 2e-2 * Case::load(&want.case).std;
        compare(&mut engine(&path, Numerics::Strict, 2), &want, tolerance, "in place");
    }
}

/// Blocks of Q8_0.
fn q8_0(values: &[f32]) -> Vec<u8> {
    let block = |g: &[f32]| {
        let d = f16::from_f32(g.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0);
        let q = g.iter().map(move |v| (v / d.to_f32().max(1e-30)).round_ties_even().clamp(-127.0, 127.0) as i8 as u8);
        d.to_le_bytes().into_iter().chain(q).collect::<Vec<_>>()
    };
    values.chunks(32).flat_map(block).collect()
}

/// Stacks of quantized experts in place, against the same numbers as f32; the bits do not depend on the number of threads.
#[test]
fn quantized_experts_run_in_place() {
    for (t, blocks) in [
        (GgufType::Q4_0, &(|v: &[f32]| q4_0(SCHEMES[0], v)) as &dyn Fn(&[f32]) -> Vec<u8>),
        (GgufType::Q8_0, &|v: &[f32]| q8_0(v)),
    ] {
        for name in ["mixtral/e4k2", "minicpm/moe", "qwen2_moe/norm-topk-sharded"] {
            let recipe = recipes().into_iter().find(|r| r["case"] == name).unwrap();
            let packed = |name: &str, a: &Array| {
                let fits = a.shape.last().is_some_and(|k| k % 32 == 0) && a.shape.len() > 1;
                (fits && name.contains("_exps")).then(|| (t.tag(), blocks(&a.values)))
            };
            let plain = |name: &str, a: &Array| {
                let (_, bytes) = packed(name, a)?;
                let mut values = vec![0.0; a.values.len()];
                dequantize(t, &bytes, &mut values).unwrap();
                Some((0, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
            };
            let case = Case::load(name);
            let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            let path = written(&recipe, dirs[0].path(), &packed);
            let ids = tokens(&case.long.ids);
            let want = engine(&written(&recipe, dirs[1].path(), &plain), Numerics::Strict, 2);
            let want = { want }.prefill(&ids, Rows::All).unwrap();
            let mut first = None;
            for threads in [1, 2, 3] {
                let mut e = engine(&path, Numerics::Strict, threads);
                assert!(e.model().quantized(), "{name}");
                let whole = e.prefill(&ids, Rows::All).unwrap();
                let d = distance(&whole, &want);
                assert!(d <= case.tolerance, "{name} {t:?}: {d} beyond {}", case.tolerance);
                assert!(*first.get_or_insert_with(|| whole.clone()) == whole, "{name} {t:?}: {threads} threads differ");
                e.reset().unwrap();
                let steps: Vec<f32> = ids.iter().flat_map(|id| e.decode(*id).unwrap().to_vec()).collect();
                let d = distance(&steps, &want);
                assert!(d <= case.tolerance, "{name} {t:?} step by step: {d} beyond {}", case.tolerance);
            }
        }
    }
}

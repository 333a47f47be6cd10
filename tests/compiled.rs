//! Compiled code against outputs of independent implementations, and against itself at other thread counts.

mod support;

use std::path::PathBuf;
use std::sync::Arc;

use marquetry::engine::{Backend, Engine, EngineOptions, Rows};
use marquetry::frontend::safetensors::Safetensors;
use marquetry::model::{LoadOptions, LoadedModel};
use marquetry::passes::Numerics;
use support::{Case, distance};

fn engine(backend: Backend, name: &str, threads: usize) -> Engine {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracles").join(name);
    let model = LoadedModel::open(&path.to_string_lossy(), &LoadOptions::default(), &mut |_| {}).unwrap();
    let numerics = Some(Numerics::Strict);
    let options = EngineOptions { backend, numerics, threads, context: 64, ..EngineOptions::default() };
    Engine::new(Arc::new(model), options).unwrap()
}

fn tokens(ids: &[i32]) -> Vec<u32> {
    ids.iter().map(|&i| i as u32).collect()
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.map_or(0, |(i, _)| i as u32)
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|x| x.to_bits()).collect()
}

/// Every backend of this build is near the reference, and all give the same bits.
fn agrees(name: &str) {
    let case = Case::load(name);
    let mut first = None;
    for backend in Backend::native() {
        let results = bits(&near(backend, name, &case));
        assert!(*first.get_or_insert_with(|| results.clone()) == results, "{name}: {backend:?} has other bits");
    }
}

/// Checks one backend; its results for whole prompts.
fn near(backend: Backend, name: &str, case: &Case) -> Vec<f32> {
    let mut results = vec![];
    let mut e = engine(backend, name, 2);
    for p in [&case.short, &case.long] {
        let ids = tokens(&p.ids);
        e.reset().unwrap();
        let whole = e.prefill(&ids, Rows::All).unwrap();
        results.extend_from_slice(&whole);
        let d = distance(&whole, &p.logits);
        assert!(d <= case.tolerance, "{name}: {d} beyond {}", case.tolerance);
        e.reset().unwrap();
        e.expect(ids.len());
        let steps: Vec<f32> = ids.iter().flat_map(|id| e.decode(*id).unwrap().to_vec()).collect();
        let d = distance(&steps, &p.logits);
        assert!(d <= case.tolerance, "{name} step by step: {d} beyond {}", case.tolerance);
        for split in [1, 5, ids.len() - 1] {
            e.reset().unwrap();
            e.expect(ids.len());
            let mut parts = e.prefill(&ids[..split], Rows::All).unwrap();
            parts.extend(e.prefill(&ids[split..], Rows::All).unwrap());
            let d = distance(&parts, &p.logits);
            assert!(d <= case.tolerance, "{name} split at {split}: {d} beyond {}", case.tolerance);
        }
    }
    e.reset().unwrap();
    let mut next = argmax(&e.prefill(&tokens(&case.short.ids), Rows::Last).unwrap());
    for want in &case.greedy {
        assert_eq!(next, *want as u32, "{name}: greedy continuation");
        next = argmax(e.decode(next).unwrap());
    }
    results
}

macro_rules! cases {
    ($($test:ident $path:literal;)*) => {$(
        #[test]
        fn $test() {
            agrees($path);
        }
    )*};
}
reference_cases!(cases);

#[test]
fn strict_results_do_not_depend_on_the_number_of_threads() {
    for name in ["llama/llama3-rope-tied-bf16", "gemma3/text"] {
        let ids = tokens(&Case::load(name).long.ids);
        for backend in Backend::native() {
            let one = engine(backend, name, 1).prefill(&ids, Rows::All).unwrap();
            for threads in 2..=9 {
                let many = engine(backend, name, threads).prefill(&ids, Rows::All).unwrap();
                assert!(bits(&one) == bits(&many), "{name}, {backend:?}: {threads} threads differ from one");
            }
        }
    }
}

#[test]
fn encoders_give_the_reference_vectors_of_each_row() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracles/bert/bert-prefix-f16");
    let expected = Safetensors::open(dir.join("expected.safetensors")).unwrap();
    let ints = |name: &str| -> Vec<i32> {
        let t = expected.tensor(name).unwrap();
        expected.data(t).as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
    };
    let floats = |name: &str| -> Vec<f32> {
        let t = expected.tensor(name).unwrap();
        expected.data(t).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let mut e = engine(Backend::Cranelift, "bert/bert-prefix-f16", 2);
    for part in ["a", "b"] {
        let [rows, columns] = expected.tensor(&format!("{part}.input_ids")).unwrap().shape[..] else { panic!() };
        let [ids, types, mask] =
            ["input_ids", "token_type_ids", "attention_mask"].map(|n| ints(&format!("{part}.{n}")));
        let hidden = floats(&format!("{part}.last_hidden_state"));
        let pooled = floats(&format!("{part}.pooler_output"));
        let width = pooled.len() / rows;
        for row in 0..rows {
            let at = row * columns;
            let len = mask[at..at + columns].iter().filter(|m| **m != 0).count();
            let made = e.encode(&tokens(&ids[at..at + len]), &types[at..at + len]).unwrap();
            let get = |name: &str| &made.iter().find(|(n, _)| n == name).unwrap().1;
            let d = distance(get("last_hidden_state"), &hidden[at * width..][..len * width]);
            assert!(d < 1e-4, "{part} row {row}: {d}");
            let d = distance(&get("pooler_output")[..width], &pooled[row * width..][..width]);
            assert!(d < 1e-4, "{part} row {row}, pooled: {d}");
        }
    }
    let refused = e.prefill(&[1, 2], Rows::Last).unwrap_err();
    assert!(refused.to_string().contains("does not continue text"), "{refused}");
    assert!(e.encode(&[1, 2], &[0]).is_err());
}

/// Weights are unpacked then: numbers in f32, row after row.
#[test]
fn without_rewriting_models_run_and_agree() {
    for name in ["llama/base", "gemma3/text-linear-rope-bf16"] {
        let case = Case::load(name);
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracles").join(name);
        let model = LoadedModel::open(&path.to_string_lossy(), &LoadOptions::default(), &mut |_| {}).unwrap();
        let mut options = EngineOptions { numerics: Some(Numerics::Strict), context: 128, ..EngineOptions::default() };
        options.watch.pipeline = Some("specialize,canon,outline,fuse,lower,schedule,plan".into());
        let mut e = Engine::new(Arc::new(model), options).unwrap();
        let d = distance(&e.prefill(&tokens(&case.long.ids), Rows::All).unwrap(), &case.long.logits);
        assert!(d <= case.tolerance, "{name}: {d} beyond {}", case.tolerance);
    }
}

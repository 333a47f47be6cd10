//! Compiled code against outputs of independent implementations, and against itself at other thread counts.

mod support;

use std::path::PathBuf;
use std::sync::Arc;

use marquetry::engine::{Engine, EngineOptions, Rows};
use marquetry::model::{LoadOptions, LoadedModel};
use marquetry::passes::Numerics;
use support::{CASES, Case, distance};

fn engine(name: &str, threads: usize) -> Engine {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracles").join(name);
    let model = LoadedModel::open(&path.to_string_lossy(), &LoadOptions::default(), &mut |_| {}).unwrap();
    let options = EngineOptions { numerics: Some(Numerics::Strict), threads, context: 128, ..EngineOptions::default() };
    Engine::new(Arc::new(model), options).unwrap()
}

fn tokens(ids: &[i32]) -> Vec<u32> {
    ids.iter().map(|&i| i as u32).collect()
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.map_or(0, |(i, _)| i as u32)
}

fn agrees(name: &str) {
    let case = Case::load(name);
    let mut e = engine(name, 2);
    for p in [&case.short, &case.long] {
        let ids = tokens(&p.ids);
        e.reset().unwrap();
        let whole = e.prefill(&ids, Rows::All).unwrap();
        let d = distance(&whole, &p.logits);
        assert!(d <= case.tolerance, "{name}: {d} beyond {}", case.tolerance);
        e.reset().unwrap();
        let steps: Vec<f32> = ids.iter().flat_map(|id| e.decode(*id).unwrap().to_vec()).collect();
        let d = distance(&steps, &p.logits);
        assert!(d <= case.tolerance, "{name} step by step: {d} beyond {}", case.tolerance);
        for split in [1, 5, ids.len() - 1] {
            e.reset().unwrap();
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
}

macro_rules! cases {
    ($($test:ident $index:literal;)*) => {$(
        #[test]
        fn $test() {
            agrees(CASES[$index]);
        }
    )*};
}
cases! {
    llama_base 0;
    llama_biases_and_shards 1;
    llama_scaled_rope_tied_bf16 2;
    llama_new_style_config 3;
    gemma3_text 4;
    gemma3_linear_rope 5;
    gemma3_nested 6;
}

#[test]
fn strict_results_do_not_depend_on_the_number_of_threads() {
    for name in ["llama/llama3-rope-tied-bf16", "gemma3/text"] {
        let ids = tokens(&Case::load(name).long.ids);
        let one = engine(name, 1).prefill(&ids, Rows::All).unwrap();
        for threads in [2, 3, 7] {
            let many = engine(name, threads).prefill(&ids, Rows::All).unwrap();
            let same = one.iter().zip(&many).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{name}: {threads} threads differ from one");
        }
    }
}

//! Reference cases as llama.cpp's converter writes them to GGUF: the same settings, the same logits.
//!
//! `tests/tools/gguf_recipes.py` says how each file is made; it also compares logits with llama.cpp's on the same files.

#[path = "support/gguf.rs"]
mod gguf;
mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gguf::{oracles, recipes, written};
use marquetry::engine::{Engine, EngineOptions, Rows};
use marquetry::frontend::safetensors::Safetensors;
use marquetry::model::{LoadOptions, LoadedModel};
use marquetry::passes::Numerics;
use serde_json::Value;
use support::distance;

fn engine(path: &Path) -> Engine {
    let model = LoadedModel::open(&path.to_string_lossy(), &LoadOptions::default(), &mut |_| {});
    let model = model.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let options =
        EngineOptions { numerics: Some(Numerics::Strict), threads: 2, context: 64, ..EngineOptions::default() };
    Engine::new(Arc::new(model), options).unwrap()
}

/// The case's directory with the settings that GGUF does not carry set to what they are taken for.
fn reference(case: &str, lost: &Value, dir: &Path) -> PathBuf {
    let from = oracles().join(case);
    for entry in std::fs::read_dir(&from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(lost.as_object().unwrap().clone());
    std::fs::remove_file(dir.join("config.json")).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    dir.to_owned()
}

fn tensor<T>(file: &Safetensors, name: &str, of: fn([u8; 4]) -> T) -> Vec<T> {
    file.data(file.tensor(name).unwrap()).as_chunks().0.iter().map(|b| of(*b)).collect()
}

#[test]
fn logits_are_those_of_the_safetensors() {
    for recipe in recipes() {
        let case = recipe["case"].as_str().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut e = engine(&written(&recipe, dir.path(), &|_, _| None));
        let expected = Safetensors::open(oracles().join(case).join("expected.safetensors")).unwrap();
        let about: Value =
            serde_json::from_slice(&std::fs::read(oracles().join(case).join("case.json")).unwrap()).unwrap();
        let tolerance = about["tolerance"]["f32_max_abs"].as_f64().unwrap() as f32;
        if case.starts_with("bert/") {
            encodes(&mut e, &expected, tolerance);
            continue;
        }
        let other = tempfile::tempdir().unwrap();
        let lost = recipe["lost"].as_object().is_some_and(|l| !l.is_empty());
        let mut plain = lost.then(|| engine(&reference(case, &recipe["lost"], other.path())));
        for which in ["short", "long"] {
            let ids = tensor(&expected, &format!("{which}.input_ids"), u32::from_le_bytes);
            let logits = e.prefill(&ids, Rows::All).unwrap();
            let want = match &mut plain {
                Some(plain) => plain.prefill(&ids, Rows::All).unwrap(),
                None => tensor(&expected, &format!("{which}.logits"), f32::from_le_bytes),
            };
            let d = distance(&logits, &want);
            assert!(d <= tolerance, "{case} {which}: {d} beyond {tolerance}");
            e.reset().unwrap();
            plain.iter_mut().for_each(|p| p.reset().unwrap());
        }
    }
}

/// The last hidden states of the first batch's rows. Files have no pooler.
fn encodes(e: &mut Engine, expected: &Safetensors, tolerance: f32) {
    let [rows, columns] = expected.tensor("a.input_ids").unwrap().shape[..] else { panic!() };
    let ids = tensor(expected, "a.input_ids", u32::from_le_bytes);
    let types = tensor(expected, "a.token_type_ids", i32::from_le_bytes);
    let mask = tensor(expected, "a.attention_mask", i32::from_le_bytes);
    let hidden = tensor(expected, "a.last_hidden_state", f32::from_le_bytes);
    for row in 0..rows {
        let at = row * columns;
        let len = mask[at..at + columns].iter().filter(|m| **m != 0).count();
        let made = e.encode(&ids[at..at + len], &types[at..at + len]).unwrap();
        let [(name, states)] = &made[..] else { panic!("{} outputs", made.len()) };
        let d = distance(states, &hidden[at * (hidden.len() / ids.len())..][..states.len()]);
        assert!(name == "last_hidden_state" && d <= tolerance, "row {row}: {d} beyond {tolerance}");
    }
}

//! Reference cases as llama.cpp's converter writes them to GGUF: the same settings, the same logits.
//!
//! `tests/tools/gguf_recipes.py` says how each file is made; it also compares logits with llama.cpp's on the same files.

#[path = "../frontend/tests/common/mod.rs"]
mod files;
mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use files::GgufFile;
use half::{bf16, f16};
use marquetry::engine::{Engine, EngineOptions, Rows};
use marquetry::frontend::DType;
use marquetry::frontend::safetensors::Safetensors;
use marquetry::model::{LoadOptions, LoadedModel};
use marquetry::passes::Numerics;
use serde_json::Value;
use support::distance;

fn oracles() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracles")
}

/// Numbers with a shape, and the type that they were stored in.
struct Array {
    shape: Vec<usize>,
    values: Vec<f32>,
    dtype: DType,
}

fn source(file: &Safetensors, name: &str) -> Array {
    let t = file.tensor(name).unwrap_or_else(|| panic!("{name}"));
    let bytes = file.data(t);
    let values = match t.dtype {
        DType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DType::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        DType::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        other => panic!("{name} is {other}"),
    };
    Array { shape: t.shape.clone(), values, dtype: t.dtype }
}

impl Array {
    /// Rows in another order: the new one's row `i` is `at(i)`.
    fn rows(self, count: usize, at: impl Fn(usize) -> usize) -> Array {
        let row = self.values.len() / self.shape[0];
        let values = (0..count).flat_map(|i| &self.values[at(i) * row..][..row]).copied().collect();
        Array { shape: [&[count], &self.shape[1..]].concat(), values, dtype: self.dtype }
    }

    fn apply(self, op: &str, args: &[usize]) -> Array {
        let total = self.shape[0];
        match (op, args) {
            ("turn", _) => {
                let [outer @ .., n, k] = &self.shape[..] else { panic!() };
                let (n, k) = (*n, *k);
                let at = |i: usize| i / (n * k) * (n * k) + i % n * k + i / n % k;
                let values = (0..self.values.len()).map(|i| self.values[at(i)]).collect();
                Array { shape: [outer, &[k, n]].concat(), values, dtype: self.dtype }
            }
            ("add_one", _) => Array { values: self.values.iter().map(|v| v + 1.0).collect(), ..self },
            ("flatten", _) => Array { shape: vec![self.values.len()], ..self },
            ("take", &[blocks, start, len]) => {
                self.rows(blocks * len, |i| i / len * (total / blocks) + start + i % len)
            }
            ("heads", &[heads]) => {
                let dim = total / heads;
                self.rows(total, |i| i / dim * dim + i % 2 * (dim / 2) + i % dim / 2)
            }
            ("join", &[blocks, parts]) => {
                let len = total / blocks / parts;
                self.rows(total, |i| (i / len % blocks * parts + i / len / blocks) * len + i % len)
            }
            other => panic!("{other:?}"),
        }
    }
}

/// One tensor by its recipe.
fn made(file: &Safetensors, of: &Value, ops: &Value) -> Array {
    let mut parts: Vec<Array> = of.as_array().unwrap().iter().map(|n| source(file, n.as_str().unwrap())).collect();
    for op in ops.as_array().unwrap() {
        let (name, args) = match op {
            Value::Array(all) => (all[0].as_str().unwrap(), &all[1..]),
            name => (name.as_str().unwrap(), &[][..]),
        };
        let next = match name {
            "numbers" => {
                let values: Vec<f32> = args[0].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
                Array { shape: vec![values.len()], values, dtype: DType::F32 }
            }
            "stack" => {
                let shape = [&[parts.len()], &parts[0].shape[..]].concat();
                let values = parts.iter().flat_map(|p| &p.values).copied().collect();
                Array { shape, values, dtype: parts[0].dtype }
            }
            "scale" => {
                let one = parts.remove(0);
                let by = args[0].as_f64().unwrap() as f32;
                Array { values: one.values.iter().map(|v| v * by).collect(), ..one }
            }
            name => {
                let args: Vec<usize> = args.iter().map(|a| a.as_u64().unwrap() as usize).collect();
                parts.remove(0).apply(name, &args)
            }
        };
        parts = vec![next];
    }
    assert_eq!(parts.len(), 1);
    parts.remove(0)
}

/// Matrices keep their type, vectors become f32, as the converter does.
fn add(gguf: GgufFile, name: &str, a: &Array) -> GgufFile {
    let dims: Vec<u64> = a.shape.iter().rev().map(|d| *d as u64).collect();
    let (tag, bytes): (u32, Vec<u8>) = match a.dtype {
        DType::F16 if dims.len() > 1 => (1, a.values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()),
        DType::BF16 if dims.len() > 1 => (30, a.values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()),
        _ => (0, a.values.iter().flat_map(|v| v.to_le_bytes()).collect()),
    };
    gguf.tensor(name, &dims, tag, &bytes)
}

fn written(recipe: &Value, dir: &Path) -> PathBuf {
    let mut gguf = GgufFile::default();
    for key in recipe["keys"].as_array().unwrap() {
        let [name, kind, value] = &key.as_array().unwrap()[..] else { panic!("{key}") };
        let name = name.as_str().unwrap();
        gguf = match kind.as_str().unwrap() {
            "str" => gguf.str(name, value.as_str().unwrap()),
            "u32" => gguf.u32(name, value.as_u64().unwrap() as u32),
            "f32" => gguf.f32(name, value.as_f64().unwrap() as f32),
            "bool" => gguf.bool(name, value.as_bool().unwrap()),
            "bools" => {
                let items = value.as_array().unwrap().iter().map(|v| vec![u8::from(v.as_bool().unwrap())]);
                gguf.raw(name, 9, &files::array(7, items))
            }
            other => panic!("{other}"),
        };
    }
    let from = Safetensors::open(oracles().join(recipe["case"].as_str().unwrap())).unwrap();
    for tensor in recipe["tensors"].as_array().unwrap() {
        gguf = add(gguf, tensor[0].as_str().unwrap(), &made(&from, &tensor[1], &tensor[2]));
    }
    let path = dir.join("model.gguf");
    std::fs::write(&path, gguf.build()).unwrap();
    path
}

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
    let recipes = std::fs::read_to_string(oracles().join("gguf/recipes.jsonl")).unwrap();
    for line in recipes.lines() {
        let recipe: Value = serde_json::from_str(line).unwrap();
        let case = recipe["case"].as_str().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut e = engine(&written(&recipe, dir.path()));
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

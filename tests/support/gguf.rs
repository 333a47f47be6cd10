//! GGUF files made of reference cases by recipe, as llama.cpp's converter would.

#![allow(dead_code, reason = "each test crate uses a part")]

#[path = "../../frontend/tests/common/mod.rs"]
pub mod files;

use std::path::{Path, PathBuf};

use files::GgufFile;
use half::{bf16, f16};
use marquetry::frontend::DType;
use marquetry::frontend::safetensors::Safetensors;
use serde_json::Value;

/// How a tensor of that name is stored: its type's tag and bytes; none if as it was.
pub type Encode<'a> = &'a dyn Fn(&str, &Array) -> Option<(u32, Vec<u8>)>;

/// The reference cases.
pub fn oracles() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracles")
}

/// The recipes, one per case.
pub fn recipes() -> Vec<Value> {
    let text = std::fs::read_to_string(oracles().join("gguf/recipes.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Numbers with a shape, and the type that they were stored in.
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
    pub dtype: DType,
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
fn add(gguf: GgufFile, name: &str, a: &Array, encode: Encode<'_>) -> GgufFile {
    let dims: Vec<u64> = a.shape.iter().rev().map(|d| *d as u64).collect();
    let encoded = encode(name, a);
    let (tag, bytes): (u32, Vec<u8>) = match a.dtype {
        _ if encoded.is_some() => encoded.unwrap(),
        DType::F16 if dims.len() > 1 => (1, a.values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()),
        DType::BF16 if dims.len() > 1 => (30, a.values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()),
        _ => (0, a.values.iter().flat_map(|v| v.to_le_bytes()).collect()),
    };
    gguf.tensor(name, &dims, tag, &bytes)
}

/// Writes the file of a recipe into a directory.
pub fn written(recipe: &Value, dir: &Path, encode: Encode<'_>) -> PathBuf {
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
        gguf = add(gguf, tensor[0].as_str().unwrap(), &made(&from, &tensor[1], &tensor[2]), encode);
    }
    let path = dir.join("model.gguf");
    std::fs::write(&path, gguf.build()).unwrap();
    path
}

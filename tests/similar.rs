//! Models of architectures that nobody registered.

use std::path::Path;
use std::sync::Arc;

use marquetry::Error;
use marquetry::engine::{Engine, EngineOptions, Rows};
use marquetry::model::{LoadOptions, LoadedModel};
use serde_json::{Value, json};

/// A copy of a reference case under another architecture's name, with some settings changed.
fn renamed(case: &str, changes: Value) -> tempfile::TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracles").join(case);
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(from.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    let config = config.as_object_mut().unwrap();
    config.insert("model_type".into(), json!("fresh"));
    config.insert("architectures".into(), json!(["FreshForCausalLM"]));
    config.extend(changes.as_object().unwrap().clone());
    std::fs::write(dir.path().join("config.json"), serde_json::to_vec(config).unwrap()).unwrap();
    dir
}

fn open(dir: &Path, accepted: &[&str]) -> (Result<LoadedModel, Error>, String) {
    let options = LoadOptions { accepted: accepted.iter().map(|s| s.to_string()).collect(), ..LoadOptions::default() };
    let mut said = String::new();
    let model = LoadedModel::open(dir.to_str().unwrap(), &options, &mut |line| said += line);
    (model, said)
}

fn logits(model: LoadedModel) -> Vec<f32> {
    Engine::new(Arc::new(model), EngineOptions::default()).unwrap().prefill(&[1, 2, 3], Rows::Last).unwrap()
}

#[test]
fn what_fits_in_every_tensor_and_setting_is_run() {
    for (case, arch) in [("llama/base", "llama"), ("mistral/swa16", "mistral"), ("qwen3/tied", "qwen3")] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracles").join(case);
        let want = logits(open(&from, &[]).0.unwrap());
        let dir = renamed(case, json!({}));
        let (model, said) = open(dir.path(), &[]);
        assert!(said.contains("architecture `fresh` is not supported"), "{said}");
        assert!(said.contains(&format!("all those of {arch}")), "{said}");
        assert_eq!(logits(model.unwrap()), want, "{case}");
    }
}

#[test]
fn what_does_not_fit_is_listed() {
    let dir = renamed("qwen3/tied", json!({ "gate_temperature": 2.0 }));
    let error = open(dir.path(), &[]).0.unwrap_err();
    assert_eq!(error.code(), "MDL003");
    let text = error.to_string();
    assert!(text.contains("qwen3 is nearest") && text.contains("`gate_temperature` is not a known setting"), "{text}");
    assert!(text.contains("--accept-setting gate_temperature"), "{text}");
    open(dir.path(), &["gate_temperature"]).0.unwrap();

    let dir = renamed("llama/base", json!({ "num_hidden_layers": 1 }));
    let text = open(dir.path(), &[]).0.unwrap_err().to_string();
    assert!(text.contains("llama is nearest") && text.contains("`model.layers.1."), "{text}");

    let dir = renamed("gpt2/prefixed", json!({}));
    let error = open(dir.path(), &[]).0.unwrap_err();
    assert_eq!(error.code(), "CFG001", "{error}");
}

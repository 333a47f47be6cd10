//! Phi as it was published before transformers had it: other settings, other names, joined projections.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use marquetry::engine::{Engine, EngineOptions, Rows};
use marquetry::frontend::safetensors::Safetensors;
use marquetry::model::{LoadOptions, LoadedModel};
use marquetry::passes::Numerics;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use support::{Case, distance};

const CASE: &str = "phi/half-rotary";
const LAYERS: usize = 2;

/// Present name of a part, and the early one.
const PARTS: [(&str, &str); 5] = [
    ("input_layernorm", "ln"),
    ("self_attn.dense", "mixer.out_proj"),
    ("mlp.fc1", "mlp.fc1"),
    ("mlp.fc2", "mlp.fc2"),
    ("", "mixer.Wqkv"),
];

/// The case's tensors under early names: `layer` names a layer, `ends` the embedding, the last norm and the head.
fn renamed(layer: fn(usize) -> String, ends: [&str; 3]) -> Vec<u8> {
    let file = Safetensors::open(oracle()).unwrap();
    let get = |name: &str| {
        let t = file.tensor(name).unwrap_or_else(|| panic!("{name}"));
        (t.shape.clone(), file.data(t).to_vec())
    };
    let mut out = BTreeMap::new();
    out.insert(format!("{}.weight", ends[0]), get("model.embed_tokens.weight"));
    for kind in ["weight", "bias"] {
        out.insert(format!("{}.{kind}", ends[1]), get(&format!("model.final_layernorm.{kind}")));
        out.insert(format!("{}.{kind}", ends[2]), get(&format!("lm_head.{kind}")));
        for i in 0..LAYERS {
            for (present, early) in PARTS {
                let tensor = match present {
                    "" => {
                        let parts =
                            ["q", "k", "v"].map(|p| get(&format!("model.layers.{i}.self_attn.{p}_proj.{kind}")));
                        let rows = parts.iter().map(|p| p.0[0]).sum::<usize>();
                        ([&[rows], &parts[0].0[1..]].concat(), parts.map(|p| p.1).concat())
                    }
                    present => get(&format!("model.layers.{i}.{present}.{kind}")),
                };
                out.insert(format!("{}.{early}.{kind}", layer(i)), tensor);
            }
        }
    }
    let view = |(shape, bytes): &'_ (Vec<usize>, Vec<u8>)| (shape.clone(), bytes.clone());
    let owned: Vec<_> = out.iter().map(|(n, t)| (n.clone(), view(t))).collect();
    let views = owned.iter().map(|(n, (shape, b))| (n, TensorView::new(Dtype::F16, shape.clone(), b).unwrap()));
    serialize(views, None).unwrap()
}

fn oracle() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracles").join(CASE)
}

fn agrees(kind: Value, weights: &[u8]) {
    let mut config = json!({
        "vocab_size": 160, "n_positions": 128, "n_embd": 64, "n_layer": LAYERS, "n_head": 4, "n_head_kv": null,
        "n_inner": null, "rotary_dim": 8, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "flash_attn": false, "flash_rotary": false,
        "fused_dense": false, "initializer_range": 0.02, "tie_word_embeddings": false, "torch_dtype": "float16",
    });
    config.as_object_mut().unwrap().extend(kind.as_object().unwrap().clone());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), weights).unwrap();
    let model = LoadedModel::open(&dir.path().to_string_lossy(), &LoadOptions::default(), &mut |_| {});
    let model = model.unwrap_or_else(|e| panic!("{kind}: {e}"));
    let options = EngineOptions { numerics: Some(Numerics::Strict), context: 64, ..EngineOptions::default() };
    let mut engine = Engine::new(Arc::new(model), options).unwrap();
    let case = Case::load(CASE);
    let ids: Vec<u32> = case.long.ids.iter().map(|i| *i as u32).collect();
    let d = distance(&engine.prefill(&ids, Rows::All).unwrap(), &case.long.logits);
    assert!(d <= case.tolerance, "{kind}: {d} beyond {}", case.tolerance);
}

#[test]
fn logits_are_those_of_the_present_names() {
    let named = renamed(|i| format!("transformer.h.{i}"), ["transformer.embd.wte", "lm_head.ln", "lm_head.linear"]);
    agrees(json!({"model_type": "phi-msft", "architectures": ["PhiForCausalLM"]}), &named);
    let numbered = renamed(|i| format!("layers.{}", i + 1), ["layers.0.wte", "layers.3.ln", "layers.3.linear"]);
    let kind = json!({
        "model_type": "mixformer-sequential", "architectures": ["MixFormerSequentialForCausalLM"],
        "architecture": {"block_cls": "parallel", "mixer": {}, "mlp": {"mlp_cls": "mlp"}}, "phyagi_version": "0.0.4.dev",
    });
    agrees(kind, &numbered);
}

//! Random models of awkward shapes: compiled code against the interpreter, whole prompts and token by token.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use marquetry::engine::{Backend, Engine, EngineOptions, Rows};
use marquetry::model::{LoadOptions, LoadedModel};
use marquetry::passes::Numerics;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};
use serde_json::{Value, json};

/// Numbers in -1..1 from a 64-bit linear congruential generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn size(config: &Value, key: &str) -> usize {
    config[key].as_u64().map_or(0, |v| v as usize)
}

/// Names and shapes of the tensors that a configuration asks for.
fn tensors(c: &Value, gemma: bool) -> Vec<(String, Vec<usize>)> {
    let (h, f, v) = (size(c, "hidden_size"), size(c, "intermediate_size"), size(c, "vocab_size"));
    let (q, kv, d) = (size(c, "num_attention_heads"), size(c, "num_key_value_heads"), size(c, "head_dim"));
    let mut all = vec![("model.embed_tokens.weight".to_string(), vec![v, h]), ("model.norm.weight".into(), vec![h])];
    if !gemma {
        all.push(("lm_head.weight".into(), vec![v, h]));
    }
    for i in 0..size(c, "num_hidden_layers") {
        let mut put = |name: &str, shape: &[usize]| all.push((format!("model.layers.{i}.{name}"), shape.to_vec()));
        for (name, rows, cols) in [
            ("self_attn.q_proj", q * d, h),
            ("self_attn.k_proj", kv * d, h),
            ("self_attn.v_proj", kv * d, h),
            ("self_attn.o_proj", h, q * d),
            ("mlp.gate_proj", f, h),
            ("mlp.up_proj", f, h),
            ("mlp.down_proj", h, f),
        ] {
            put(&format!("{name}.weight"), &[rows, cols]);
            let part = if name.starts_with("mlp") { "mlp_bias" } else { "attention_bias" };
            if c[part] == true {
                put(&format!("{name}.bias"), &[rows]);
            }
        }
        put("input_layernorm.weight", &[h]);
        put("post_attention_layernorm.weight", &[h]);
        if gemma {
            put("pre_feedforward_layernorm.weight", &[h]);
            put("post_feedforward_layernorm.weight", &[h]);
            put("self_attn.q_norm.weight", &[d]);
            put("self_attn.k_norm.weight", &[d]);
        }
    }
    all
}

fn write_model(dir: &Path, config: &Value, gemma: bool, seed: u64) {
    let mut random = Random(seed);
    let mut data: HashMap<String, (Vec<usize>, Vec<u8>)> = HashMap::new();
    for (name, shape) in tensors(config, gemma) {
        let scale = if shape.len() == 2 { 1.7 / (shape[1] as f32).sqrt() } else { 0.5 };
        let count: usize = shape.iter().product();
        let bytes = (0..count).flat_map(|_| (random.next() * scale).to_le_bytes()).collect();
        data.insert(name, (shape, bytes));
    }
    let views = data.iter().map(|(n, (s, b))| (n.as_str(), TensorView::new(Dtype::F32, s.clone(), b).unwrap()));
    std::fs::write(dir.join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

fn agree(mut config: Value, seed: u64) {
    let gemma = config["model_type"] == "gemma3_text";
    config["max_position_embeddings"] = json!(256);
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &config, gemma, seed);
    let path = dir.path().to_string_lossy().into_owned();
    let model = Arc::new(LoadedModel::open(&path, &LoadOptions::default(), &mut |_| {}).unwrap());
    let vocab = model.text.vocab as u32;
    let tokens: Vec<u32> = (0..45).map(|i| (i * 7 + 3) % vocab).collect();
    let engine = |backend| {
        let options = EngineOptions {
            backend,
            numerics: Some(Numerics::Strict),
            threads: 2,
            context: 64,
            ..EngineOptions::default()
        };
        Engine::new(model.clone(), options).unwrap()
    };
    let want = engine(Backend::Interp).prefill(&tokens, Rows::All).unwrap();
    let mut compiled = engine(Backend::Cranelift);
    let whole = compiled.prefill(&tokens, Rows::All).unwrap();
    compiled.reset().unwrap();
    let steps: Vec<f32> = tokens.iter().flat_map(|t| compiled.decode(*t).unwrap().to_vec()).collect();
    let spread = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for (what, got) in [("whole", whole), ("steps", steps)] {
        let worst = got.iter().zip(&want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst <= 2e-5 * spread.max(1.0), "{what}: {worst} beside values up to {spread}: {config}");
    }
}

#[allow(clippy::too_many_arguments)]
fn llama(h: usize, f: usize, v: usize, layers: usize, q: usize, kv: usize, d: usize, bias: bool) -> Value {
    json!({
        "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "hidden_size": h, "intermediate_size": f, "vocab_size": v,
        "num_hidden_layers": layers, "num_attention_heads": q, "num_key_value_heads": kv, "head_dim": d,
        "attention_bias": bias, "mlp_bias": bias,
    })
}

#[test]
fn llama_of_awkward_shapes() {
    agree(llama(60, 100, 77, 2, 3, 1, 20, false), 1);
    agree(llama(80, 200, 131, 1, 5, 5, 16, true), 2);
    agree(llama(36, 50, 33, 3, 6, 2, 10, false), 3);
    agree(llama(8, 8, 9, 1, 2, 2, 2, false), 4);
    agree(llama(66, 70, 100, 2, 11, 1, 6, true), 5);
    agree(llama(96, 24, 257, 2, 2, 1, 48, false), 6);
}

#[test]
fn gemma3_of_awkward_shapes() {
    for (i, (h, f, v, q, kv, d, window)) in
        [(60, 90, 70, 3, 1, 20, 3), (64, 128, 129, 2, 2, 48, 20), (40, 8, 31, 4, 2, 6, 1)].into_iter().enumerate()
    {
        let config = json!({
            "model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
            "rope_theta": 1e6, "rope_local_base_freq": 1e4, "hidden_size": h, "intermediate_size": f, "vocab_size": v,
            "num_hidden_layers": 4, "num_attention_heads": q, "num_key_value_heads": kv, "head_dim": d,
            "query_pre_attn_scalar": d, "sliding_window": window, "sliding_window_pattern": 2,
        });
        agree(config, 10 + i as u64);
    }
}

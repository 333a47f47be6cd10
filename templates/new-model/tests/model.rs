//! The compiled model gives what the interpreter gives, at once and token by token.

use std::sync::Arc;

use marquetry::engine::{Backend, Engine, EngineOptions, Rows};
use marquetry::model::LoadedModel;
use serde_json::json;
use template::Template;

#[test]
fn compiled_equals_interpreted() {
    let settings = json!({
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 100,
    });
    let model = LoadedModel::random::<Template>("template", settings.as_object().unwrap().clone(), 1);
    let model = Arc::new(model.unwrap_or_else(|e| panic!("{e}")));
    let engine = |backend| Engine::new(model.clone(), EngineOptions { backend, ..EngineOptions::default() }).unwrap();
    let tokens = [1, 2, 3, 4, 5, 6, 7];
    let want = engine(Backend::Interp).prefill(&tokens, Rows::All).unwrap();
    let whole = engine(Backend::Cranelift).prefill(&tokens, Rows::All).unwrap();
    let mut stepping = engine(Backend::Cranelift);
    let steps: Vec<f32> = tokens.iter().flat_map(|t| stepping.decode(*t).unwrap().to_vec()).collect();
    for (what, got) in [("at once", whole), ("token by token", steps)] {
        let apart = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-3, "{what}: {apart}");
    }
}

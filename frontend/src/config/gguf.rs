//! GGUF metadata in Hugging Face spelling.

use serde_json::{Map, Value as Json, json};

use super::ConfigError;
use crate::gguf::{Gguf, GgufError, Kind, Value};

/// Keys below the architecture's prefix, and the settings they become. A dotted name goes into an object.
const TABLE: [(&str, &str); 15] = [
    ("block_count", "num_hidden_layers"),
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.sliding_window", "sliding_window"),
    ("rope.freq_base", "rope_theta"),
    ("rope.freq_base_swa", "rope_local_base_freq"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("vocab_size", "vocab_size"),
    ("expert_count", "num_local_experts"),
];

/// Keys that change nothing here, or that `translate` handles by hand.
const HANDLED: [&str; 12] = [
    "attention.value_length",
    "attention.sliding_window_pattern",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scale_linear",
    "expert_used_count",
    "tensor_data_layout",
    "attention.causal",
    "embedding_length_out",
];

/// A float that was stored as f32 becomes the f64 a person would have written: 1e-5, not 9.99999974e-6.
fn shortest(v: f64) -> f64 {
    #[allow(clippy::cast_possible_truncation, reason = "rounding back to the stored f32 is the point")]
    let narrow = v as f32;
    match narrow.to_string().parse() {
        Ok(short) if f64::from(narrow) == v => short,
        _ => v,
    }
}

fn to_json(value: Value<'_>) -> Json {
    match value {
        Value::Unsigned(v) => v.into(),
        Value::Signed(v) => v.into(),
        Value::Float(v) => shortest(v).into(),
        Value::Bool(v) => v.into(),
        Value::String(v) => String::from_utf8_lossy(v.get(..400).unwrap_or(v)).into(),
        Value::Array(v) => Json::Array(v.iter().take(4096).map(to_json).collect()),
    }
}

/// A per-layer list whose entries are all equal is as good as a number.
fn uniform(value: Json) -> Json {
    match &value {
        Json::Array(items) => match items.first() {
            Some(first) if items.iter().all(|i| i == first) => first.clone(),
            _ => value,
        },
        _ => value,
    }
}

fn tensor_elements(file: &Gguf, name: &str) -> Option<Vec<f64>> {
    let tensor = file.tensor(name).filter(|t| t.elem == marquetry_ir::DType::F32.into() && t.shape.len() == 1)?;
    let floats = file.data(tensor).as_chunks::<4>().0;
    Some(floats.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect())
}

/// Metadata of a file of architecture `arch`, whose keys start with `name`.
pub(super) fn translate(name: &str, arch: &str, file: &Gguf) -> Result<Map<String, Json>, ConfigError> {
    let mut out = Map::new();
    let prefix = format!("{name}.");
    for key in file.keys() {
        let Some((short, value)) = key.strip_prefix(&prefix).zip(file.value(key)) else { continue };
        if let Some((_, hf)) = TABLE.iter().find(|(gguf, _)| *gguf == short) {
            out.insert((*hf).to_owned(), uniform(to_json(value)));
        } else if !HANDLED.contains(&short) {
            out.insert(key.to_owned(), to_json(value));
        }
    }
    let key = |short: &str| format!("{prefix}{short}");
    head_dim(&mut out, file, &key)?;
    if let Some(scaling) = rope_scaling(file, &key)? {
        out.insert("rope_scaling".to_owned(), scaling);
    }
    let embedding = file.tensor("token_embd.weight").and_then(|t| t.shape.first().copied());
    let tokens = file.array("tokenizer.ggml.tokens")?.map(|a| a.len);
    if let Some(vocab) = embedding.or(tokens) {
        out.insert("vocab_size".to_owned(), vocab.into());
    }
    let has = |tensor: &str| file.tensor(tensor).is_some();
    if !file.tensors().is_empty() {
        out.insert("tie_word_embeddings".to_owned(), (!has("output.weight")).into());
    }
    out.insert("attention_bias".to_owned(), has("blk.0.attn_q.bias").into());
    if arch == "llama" {
        out.insert("mlp_bias".to_owned(), has("blk.0.ffn_up.bias").into());
        out.insert("hidden_act".to_owned(), "silu".into());
    }
    for token in ["bos", "eos"] {
        if let Some(id) = file.unsigned(&format!("tokenizer.ggml.{token}_token_id"))? {
            out.insert(format!("{token}_token_id"), id.into());
        }
    }
    if arch == "gemma3" {
        gemma3(&mut out, file, &key)?;
    }
    Ok(out)
}

/// Keys and values must have one head size, all of which is rotated.
fn head_dim(out: &mut Map<String, Json>, file: &Gguf, key: &impl Fn(&str) -> String) -> Result<(), GgufError> {
    let number = |out: &Map<String, Json>, k: &str| out.get(k).and_then(Json::as_u64);
    let even = number(out, "hidden_size").zip(number(out, "num_attention_heads"));
    let head_dim = number(out, "head_dim").or_else(|| even.and_then(|(h, n)| h.checked_div(n)));
    let Some(head_dim) = head_dim else { return Ok(()) };
    out.entry("head_dim").or_insert_with(|| head_dim.into());
    for other in ["attention.value_length", "rope.dimension_count"] {
        let other = key(other);
        if let Some(v) = file.unsigned(&other)?.filter(|v| *v != head_dim) {
            // An unknown name makes the reader of the settings refuse it.
            out.insert(other, v.into());
        }
    }
    Ok(())
}

fn rope_scaling(file: &Gguf, key: &impl Fn(&str) -> String) -> Result<Option<Json>, GgufError> {
    if let Some(factors) = tensor_elements(file, "rope_freqs.weight") {
        return Ok(Some(json!({"rope_type": "factors", "factors": factors})));
    }
    let kind = file.str(&key("rope.scaling.type"))?;
    let factor = file.float(&key("rope.scaling.factor"))?;
    let factor = factor.or(file.float(&key("rope.scale_linear"))?).map(shortest);
    Ok(match (kind, factor) {
        (Some("none"), _) | (None, None) => None,
        (kind, factor) => Some(json!({"rope_type": kind.unwrap_or("linear"), "factor": factor})),
    })
}

/// What llama.cpp knows about gemma3 without being told.
fn gemma3(out: &mut Map<String, Json>, file: &Gguf, key: &impl Fn(&str) -> String) -> Result<(), GgufError> {
    let pattern = key("attention.sliding_window_pattern");
    match file.value(&pattern) {
        None => drop(out.insert("sliding_window_pattern".to_owned(), 6.into())),
        Some(Value::Array(layers)) if layers.kind == Kind::Bool => {
            let name = |v| if v == Value::Bool(true) { "sliding_attention" } else { "full_attention" };
            out.insert("layer_types".to_owned(), layers.iter().take(4096).map(name).collect());
        }
        Some(value) => drop(out.insert("sliding_window_pattern".to_owned(), to_json(value))),
    }
    out.entry("rope_local_base_freq").or_insert_with(|| 10_000.0.into());
    out.insert("hidden_activation".to_owned(), "gelu_pytorch_tanh".into());
    let number = |k: &str| out.get(k).and_then(Json::as_u64);
    // The 27B model alone scales queries by hidden size / heads; llama.cpp tells it by its 62 layers.
    let scalar = match (number("num_hidden_layers"), number("hidden_size"), number("num_attention_heads")) {
        (Some(62), Some(hidden), Some(heads)) => hidden.checked_div(heads),
        _ => number("head_dim"),
    };
    if let Some(scalar) = scalar {
        out.insert("query_pre_attn_scalar".to_owned(), scalar.into());
    }
    Ok(())
}

//! GGUF metadata in Hugging Face spelling.

use serde_json::{Map, Value as Json, json};

use super::ConfigError;
use crate::gguf::formats::{Format, Known, Rotated};
use crate::gguf::{Gguf, GgufError, Kind, Value};

/// Keys below the architecture's prefix, and the settings they become. An empty setting changes nothing here, or is read below.
const TABLE: [(&str, &str); 25] = [
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
    ("attention.value_length", ""),
    ("rope.dimension_count", ""),
    ("rope.scaling.type", ""),
    ("rope.scaling.factor", ""),
    ("rope.scaling.attn_factor", ""),
    ("rope.scaling.original_context_length", ""),
    ("rope.scaling.finetuned", ""),
    ("rope.scale_linear", ""),
    ("expert_used_count", ""),
    ("tensor_data_layout", ""),
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

/// Metadata of a file of a format.
pub(super) fn translate(format: &Format, file: &Gguf) -> Result<Map<String, Json>, ConfigError> {
    let mut out = Map::new();
    let prefix = format!("{}.", format.gguf);
    for key in file.keys() {
        let Some((short, value)) = key.strip_prefix(&prefix).zip(file.value(key)) else { continue };
        match format.keys.iter().chain(&TABLE).find(|(gguf, _)| *gguf == short) {
            Some((_, "")) => {}
            Some((_, hf)) => {
                let (hf, value) = setting(hf, value);
                out.insert(hf.to_owned(), value);
            }
            None => drop(out.insert(key.to_owned(), to_json(value))),
        }
    }
    // A window of no tokens stands for none.
    out.retain(|key, value| key != "sliding_window" || value.as_u64() != Some(0));
    let key = |short: &str| format!("{prefix}{short}");
    head_dim(&mut out, format, file, &key)?;
    if let Some(scaling) = rope_scaling(file, &key)? {
        out.insert("rope_scaling".to_owned(), scaling);
    }
    let embedding = file.tensor("token_embd.weight").and_then(|t| t.shape.first().copied());
    let tokens = file.array("tokenizer.ggml.tokens")?.map(|a| a.len);
    if let Some(vocab) = embedding.or(tokens) {
        out.insert("vocab_size".to_owned(), vocab.into());
    }
    for (name, known) in format.known {
        if let Some(value) = value(*known, file, &out).filter(|_| !out.contains_key(*name)) {
            out.insert((*name).to_owned(), value);
        }
    }
    for token in ["bos", "eos"] {
        if let Some(id) = file.unsigned(&format!("tokenizer.ggml.{token}_token_id"))? {
            out.insert(format!("{token}_token_id"), id.into());
        }
    }
    Ok(out)
}

/// A setting and its value. Which layers have a window is a list of truth values or a period here, a list of names there.
fn setting<'a>(hf: &'a str, value: Value<'_>) -> (&'a str, Json) {
    match value {
        Value::Array(layers) if layers.kind == Kind::Bool && hf == "layer_types" => {
            let name = |v| if v == Value::Bool(true) { "sliding_attention" } else { "full_attention" };
            (hf, layers.iter().take(4096).map(name).collect())
        }
        value if hf == "layer_types" => ("sliding_window_pattern", to_json(value)),
        value => (hf, uniform(to_json(value))),
    }
}

/// The value of a setting that the metadata do not give; none if it hangs on one that is absent.
fn value(known: Known, file: &Gguf, out: &Map<String, Json>) -> Option<Json> {
    let has = |tensor: &str| file.tensor(tensor).is_some();
    let number = |k: &str| out.get(k).and_then(Json::as_u64);
    // A file without tensors says nothing by lacking one.
    let known_tensors = !file.tensors().is_empty();
    Some(match known {
        Known::Bool(v) => v.into(),
        Known::Int(v) => v.into(),
        Known::Float(v) => v.into(),
        Known::Text(v) => v.into(),
        Known::Has(tensor) => has(tensor).into(),
        Known::Lacks(tensor) => known_tensors.then(|| !has(tensor))?.into(),
        Known::Rows(tensor) => (*file.tensor(tensor)?.shape.first()?).into(),
        Known::Layers(n) => (number("num_hidden_layers") == Some(n)).into(),
        Known::Vocabulary(n) => (number("vocab_size") == Some(n)).into(),
        Known::QueryScale { unless_layers } if number("num_hidden_layers") == Some(unless_layers) => {
            number("hidden_size")?.checked_div(number("num_attention_heads")?)?.into()
        }
        Known::QueryScale { .. } => number("head_dim")?.into(),
    })
}

/// Keys and values must have one head size, and the format says how much of it is rotated.
fn head_dim(
    out: &mut Map<String, Json>,
    format: &Format,
    file: &Gguf,
    key: &impl Fn(&str) -> String,
) -> Result<(), GgufError> {
    let number = |out: &Map<String, Json>, k: &str| out.get(k).and_then(Json::as_u64);
    let even = number(out, "hidden_size").zip(number(out, "num_attention_heads"));
    let head_dim = number(out, "head_dim").or_else(|| even.and_then(|(h, n)| h.checked_div(n)));
    let Some(head_dim) = head_dim else { return Ok(()) };
    out.entry("head_dim").or_insert_with(|| head_dim.into());
    let rotated = match format.rotated {
        Rotated::Whole => Some(head_dim),
        Rotated::Half => Some(head_dim / 2),
        Rotated::Given => None,
    };
    for (other, must) in [("attention.value_length", Some(head_dim)), ("rope.dimension_count", rotated)] {
        let other = key(other);
        match (file.unsigned(&other)?, must) {
            // An unknown name makes the reader of the settings refuse it.
            (Some(v), Some(must)) if v != must => drop(out.insert(other, v.into())),
            (Some(v), None) => drop(out.insert("rotary_dim".to_owned(), v.into())),
            _ => {}
        }
    }
    Ok(())
}

/// Stretching of the rotation, by factors for each frequency or by type.
fn rope_scaling(file: &Gguf, key: &impl Fn(&str) -> String) -> Result<Option<Json>, GgufError> {
    if let Some(factors) = tensor_elements(file, "rope_freqs.weight") {
        return Ok(Some(json!({"rope_type": "factors", "factors": factors})));
    }
    let original = file.unsigned(&key("rope.scaling.original_context_length"))?;
    let attention = file.float(&key("rope.scaling.attn_factor"))?.map(shortest);
    let factors = |length| tensor_elements(file, &format!("rope_factors_{length}.weight"));
    if let Some((short, long)) = factors("short").zip(factors("long")) {
        return Ok(Some(json!({
            "rope_type": "longrope", "short_factor": short, "long_factor": long,
            "original_max_position_embeddings": original, "attention_factor": attention,
        })));
    }
    let kind = file.str(&key("rope.scaling.type"))?;
    let factor = file.float(&key("rope.scaling.factor"))?;
    let factor = factor.or(file.float(&key("rope.scale_linear"))?).map(shortest);
    Ok(match (kind, factor) {
        (Some("none"), _) | (None, None) => None,
        (Some("yarn"), factor) => Some(json!({
            "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
            "attention_factor": attention,
        })),
        (kind, factor) => Some(json!({"rope_type": kind.unwrap_or("linear"), "factor": factor})),
    })
}

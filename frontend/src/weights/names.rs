//! Tensor names: GGUF's in Hugging Face spelling, and the prefixes under which the latter are published.
//!
//! What llama.cpp's converters do to the values is part of the table, as a [`Rule`].

/// What the converter to GGUF did to a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Nothing.
    Plain,
    /// Rows of each query head were reordered for rotation of neighbouring pairs.
    QueryRows,
    /// As `QueryRows`, for key heads.
    KeyRows,
    /// One was added to norm weights.
    OneAdded,
}

/// Names outside layers.
const TOP: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Names in layers that all architectures share: `blk.{i}.` becomes `model.layers.{i}.`.
const LAYER: [(&str, &str); 8] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const LLAMA: [(&str, &str); 1] = [("ffn_norm", "post_attention_layernorm")];

const GEMMA3: [(&str, &str); 5] = [
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

fn layer_table(arch: &str) -> &'static [(&'static str, &'static str)] {
    match arch {
        "llama" => &LLAMA,
        "gemma3" => &GEMMA3,
        _ => &[],
    }
}

fn look(table: &[(&'static str, &'static str)], from: &str) -> Option<&'static str> {
    table.iter().find(|(gguf, _)| *gguf == from).map(|(_, hf)| *hf)
}

fn look_back(table: &[(&'static str, &'static str)], from: &str) -> Option<&'static str> {
    table.iter().find(|(_, hf)| *hf == from).map(|(gguf, _)| *gguf)
}

/// `blk.3.attn_q.weight` to `(Some("3"), "attn_q", "weight")`.
fn split<'a>(name: &'a str, layers: &str) -> Option<(Option<&'a str>, &'a str, &'a str)> {
    let (stem, kind) = name.rsplit_once('.')?;
    let Some(rest) = stem.strip_prefix(layers) else { return Some((None, stem, kind)) };
    let (layer, stem) = rest.split_once('.')?;
    let digits = !layer.is_empty() && layer.len() <= 6 && layer.bytes().all(|b| b.is_ascii_digit());
    digits.then_some((Some(layer), stem, kind))
}

/// The Hugging Face name of a GGUF tensor and what was done to it; `None` if the table has no such name.
pub(super) fn from_gguf(arch: &str, name: &str) -> Option<(String, Rule)> {
    let (layer, stem, kind) = split(name, "blk.")?;
    let hf = match layer {
        Some(layer) => {
            let hf = look(&LAYER, stem).or_else(|| look(layer_table(arch), stem))?;
            format!("model.layers.{layer}.{hf}.{kind}")
        }
        None => format!("{}.{kind}", look(&TOP, stem)?),
    };
    let rule = match (arch, stem) {
        ("llama", "attn_q") => Rule::QueryRows,
        ("llama", "attn_k") => Rule::KeyRows,
        ("gemma3", stem) if stem.ends_with("norm") => Rule::OneAdded,
        _ => Rule::Plain,
    };
    Some((hf, rule))
}

/// The GGUF name of a Hugging Face tensor, for messages.
pub(super) fn to_gguf(arch: &str, name: &str) -> Option<String> {
    let (layer, stem, kind) = split(name, "model.layers.")?;
    match layer {
        Some(layer) => {
            let gguf = look_back(&LAYER, stem).or_else(|| look_back(layer_table(arch), stem))?;
            Some(format!("blk.{layer}.{gguf}.{kind}"))
        }
        None => Some(format!("{}.{kind}", look_back(&TOP, stem)?)),
    }
}

/// The name without the prefixes that checkpoints of one model differ in: `layers.0...`, `h.0...`, `lm_head.weight`.
pub(super) fn canonical(name: &str) -> String {
    const PREFIXES: [&str; 6] = ["model.", "language_model.", "transformer.", "bert.", "gpt_neox.", "rwkv."];
    let mut rest = name;
    while let Some(shorter) = PREFIXES.iter().find_map(|p| rest.strip_prefix(p)) {
        rest = shorter;
    }
    rest.to_owned()
}

/// Buffers that old checkpoints hold beside the parameters: masks and positions.
pub(super) fn is_buffer(name: &str) -> bool {
    const ENDS: [&str; 4] = [".attn.bias", ".attention.bias", ".masked_bias", "position_ids"];
    ENDS.iter().any(|end| name.ends_with(end)) || name.ends_with("rotary_pos_emb.inv_freq")
}

/// Tensors that a text model never reads: old buffers, vision towers, and tables that the configuration has taken.
pub(super) fn ignorable(name: &str) -> bool {
    const PARTS: [&str; 5] =
        ["vision_tower.", "multi_modal_projector.", "vision_model.", "audio_tower.", "embed_vision."];
    let name = name.strip_prefix("model.").unwrap_or(name);
    PARTS.iter().any(|part| name.starts_with(part))
        || name.ends_with("rotary_emb.inv_freq")
        || name.ends_with(".attn_rot_embd.weight")
        || name == "rope_freqs.weight"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        let name = "model.layers.11.self_attn.q_proj.weight";
        assert_eq!(from_gguf("llama", "blk.11.attn_q.weight"), Some((name.to_owned(), Rule::QueryRows)));
        assert_eq!(from_gguf("gemma3", "blk.11.attn_q.weight"), Some((name.to_owned(), Rule::Plain)));
        assert_eq!(to_gguf("llama", name).as_deref(), Some("blk.11.attn_q.weight"));
        let norm = "model.layers.0.post_attention_layernorm.weight";
        assert_eq!(to_gguf("llama", norm).as_deref(), Some("blk.0.ffn_norm.weight"));
        assert_eq!(to_gguf("gemma3", norm).as_deref(), Some("blk.0.post_attention_norm.weight"));
        assert_eq!(from_gguf("gemma3", "output_norm.weight"), Some(("model.norm.weight".to_owned(), Rule::OneAdded)));
        assert_eq!(from_gguf("llama", "output.weight"), Some(("lm_head.weight".to_owned(), Rule::Plain)));
        assert_eq!(from_gguf("llama", "blk.x.attn_q.weight"), None);
    }

    #[test]
    fn prefixes_are_dropped() {
        for prefix in ["", "model.", "language_model.model.", "model.language_model."] {
            assert_eq!(canonical(&format!("{prefix}layers.0.x.weight")), "layers.0.x.weight");
        }
        assert_eq!(canonical("language_model.lm_head.weight"), "lm_head.weight");
        assert!(ignorable("model.vision_tower.x") && ignorable("model.layers.0.self_attn.rotary_emb.inv_freq"));
    }
}

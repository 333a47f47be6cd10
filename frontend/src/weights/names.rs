//! Prefixes under which tensors are published, and tensors that no model reads.

/// The name without the prefixes that checkpoints of one model differ in: `layers.0...`, `h.0...`, `lm_head.weight`.
pub(crate) fn canonical(name: &str) -> String {
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
        || ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_dropped() {
        for prefix in ["", "model.", "language_model.model.", "model.language_model."] {
            assert_eq!(canonical(&format!("{prefix}layers.0.x.weight")), "layers.0.x.weight");
        }
        assert_eq!(canonical("language_model.lm_head.weight"), "lm_head.weight");
        assert!(ignorable("model.vision_tower.x") && ignorable("model.layers.0.self_attn.rotary_emb.inv_freq"));
    }
}

//! Settings that several architectures share beside the common ones.

use serde_json::Value;

use super::ConfigError;
use super::keys::{Keys, shown};

impl Keys<'_> {
    /// Is a class the one that `architectures` names?
    pub fn is_class(&mut self, name: &str) -> bool {
        let classes = self.get("architectures").and_then(Value::as_array);
        classes.is_some_and(|all| all.iter().any(|c| c.as_str() == Some(name)))
    }

    /// Rotated features of a head: `rotary_dim`, or `partial_rotary_factor` of them.
    pub fn rotary_dim(&mut self, head_dim: usize, default: f64) -> usize {
        if let Some(dim) = self.int_or_null("rotary_dim", 2..=head_dim.max(2)) {
            self.harmless(&["partial_rotary_factor"]);
            if !dim.is_multiple_of(2) {
                self.errors.push(ConfigError::HeadDim { found: dim });
            }
            return dim;
        }
        let nested = self.get("rope_parameters").and_then(|r| r.get("partial_rotary_factor")).and_then(Value::as_f64);
        let factor = self.float("partial_rotary_factor", 0.0..=1.0, nested.unwrap_or(default)).clamp(0.0, 1.0);
        #[allow(clippy::cast_possible_truncation, reason = "the product is at most the head size")]
        let dim = (head_dim as f64 * factor) as usize;
        if dim < 2 || !dim.is_multiple_of(2) {
            self.errors.push(ConfigError::Range {
                key: "partial_rotary_factor".to_owned(),
                expected: format!("a share of {head_dim} features that is even and not 0"),
                found: factor.to_string(),
            });
            return 2;
        }
        dim
    }

    /// Number of experts, and how many of them a token passes.
    pub fn experts(&mut self, key: &'static str, experts: usize, chosen: usize) -> (usize, usize) {
        let experts = self.int_or_null(key, 1..=1024).unwrap_or(experts);
        (experts, self.int_or_null("num_experts_per_tok", 1..=experts).unwrap_or(chosen.min(experts)))
    }

    /// A cap on scores or logits; null is off, which is 0 here.
    pub fn cap(&mut self, key: &'static str, default: f64) -> f32 {
        let off = self.is_null(key);
        #[allow(clippy::cast_possible_truncation, reason = "the range is far inside that of f32")]
        let cap = self.float(key, 1e-6..=1e9, default) as f32;
        if off { 0.0 } else { cap }
    }

    /// A list of integers; empty if absent.
    pub fn integers(&mut self, key: &'static str) -> Vec<usize> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let one = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        let list = value.as_array().and_then(|list| list.iter().map(one).collect::<Option<Vec<_>>>());
        list.unwrap_or_else(|| {
            let (expected, found) = ("a list of integers".to_owned(), shown(value));
            self.errors.push(ConfigError::Range { key: key.to_owned(), expected, found });
            Vec::new()
        })
    }

    /// Which layers see everything: `layer_types`, or what `default` says of each.
    pub fn full_attention(&mut self, layers: usize, default: impl Fn(usize) -> bool) -> Vec<bool> {
        let layers = layers.min(4096);
        let Some(types) = self.get("layer_types") else { return (0..layers).map(default).collect() };
        let kind = |v: &Value| match v.as_str() {
            Some("full_attention") => Some(true),
            Some("sliding_attention") => Some(false),
            _ => None,
        };
        let kinds: Option<Vec<bool>> = types.as_array().and_then(|types| types.iter().map(kind).collect());
        match kinds {
            Some(kinds) if kinds.len() == layers => kinds,
            _ => {
                self.errors.push(ConfigError::Range {
                    key: "layer_types".to_owned(),
                    expected: format!("a list of {layers} times full_attention or sliding_attention"),
                    found: types.as_array().map_or("no list".to_owned(), |t| format!("a list of {}", t.len())),
                });
                (0..layers).map(default).collect()
            }
        }
    }

    /// The window of each layer, as in Qwen: none below layer `max_window_layers`, or without `use_sliding_window`.
    pub fn windows_above(&mut self, layers: usize) -> Vec<usize> {
        let on = self.bool("use_sliding_window", false);
        let window = self.int_or_null("sliding_window", 1..=1 << 24).unwrap_or(4096);
        let first = self.int_or_null("max_window_layers", 0..=4096).unwrap_or(28);
        let full = self.full_attention(layers, |i| i < first);
        full.into_iter().map(|full| if full || !on { 0 } else { window }).collect()
    }

    /// The object `rotary` of InternLM: base, type, and factor.
    pub fn rotary(&mut self) -> (f64, &str, f64) {
        let Some(value) = self.get("rotary") else { return (10_000.0, "origin", 1.0) };
        let number = |key: &str, default: f64| match value.get(key) {
            Some(v) => v.as_f64().filter(|n| (1e-3..=1e15).contains(n)),
            None => Some(default),
        };
        let kind = value.get("type").and_then(Value::as_str).filter(|k| ["origin", "dynamic"].contains(k));
        match (number("base", 10_000.0), kind, number("scaling_factor", 1.0)) {
            (Some(base), Some(kind), Some(factor)) => (base, kind, factor),
            _ => {
                let expected = "an object with a number `base` and a `type`, origin or dynamic".to_owned();
                let found = shown(value);
                self.errors.push(ConfigError::Range { key: "rotary".to_owned(), expected, found });
                (10_000.0, "origin", 1.0)
            }
        }
    }
}

//! Settings of rotary position embeddings.

use serde_json::Value;

use super::Source;
use super::keys::shown;
use crate::suggest;

/// How rotary frequencies are stretched for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All frequencies are divided by `factor`.
    Linear {
        /// At least 1 in practice.
        factor: f64,
    },
    /// Low frequencies are divided by `factor`, high ones kept, with a ramp between.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context length before scaling, in tokens.
        original_max_position_embeddings: usize,
    },
    /// The base grows with the sequence, once it is longer than the original context.
    Dynamic {
        /// Growth per original length.
        factor: f64,
        /// Context length before scaling, in tokens.
        original_max_position_embeddings: usize,
    },
    /// Frequencies that turn rarely within the original context are divided by `factor`, with a ramp to those kept
    /// (Peng et al., arXiv 2309.00071).
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// Context length before scaling, in tokens.
        original_max_position_embeddings: usize,
        /// Turns above which a frequency is kept.
        beta_fast: f64,
        /// Turns below which it is divided.
        beta_slow: f64,
        /// Factor on cosines and sines.
        attention_factor: f64,
    },
    /// Divisors per frequency, one list for sequences up to the original context, one for longer ones
    /// (Ding et al., arXiv 2402.13753).
    LongRope {
        /// One divisor per frequency.
        short_factor: Vec<f64>,
        /// One divisor per frequency.
        long_factor: Vec<f64>,
        /// Context length before scaling, in tokens.
        original_max_position_embeddings: usize,
        /// Factor on cosines and sines.
        attention_factor: f64,
    },
    /// Frequency `i` is divided by `factors[i]`; there are `head_dim / 2`. Only GGUF files have it.
    Factors {
        /// One divisor per frequency.
        factors: Vec<f64>,
    },
}

/// Types of scaling by their names.
const KINDS: [&str; 6] = ["default", "linear", "dynamic", "llama3", "yarn", "longrope"];

/// What the rest of the configuration says.
pub(super) struct Given {
    pub source: Source,
    /// Rotated features of a head.
    pub dim: usize,
    /// Longest context.
    pub longest: Option<usize>,
    /// Context length before scaling.
    pub original: Option<usize>,
    /// Was the share of rotated features read?
    pub partial: bool,
}

/// Reads one object of rope scaling; the error says what is wrong.
pub(super) fn scaling(value: &Value, given: &Given) -> Result<RopeScaling, String> {
    let (source, head_dim) = (given.source, given.dim);
    let object = value.as_object().ok_or_else(|| format!("it must be an object, is {}", shown(value)))?;
    let kind = match object.get("rope_type").or_else(|| object.get("type")) {
        None | Some(Value::Null) if !object.contains_key("factor") => "default",
        // Early files of Phi-3 say `su` or `yarn`.
        Some(Value::String(kind)) if kind == "su" || object.contains_key("long_factor") => "longrope",
        Some(Value::String(kind)) => kind.as_str(),
        _ => return Err("`rope_type` is missing".to_owned()),
    };
    let number = |key: &str| {
        let value = object.get(key).unwrap_or(&Value::Null);
        let n = value.as_f64().filter(|v| *v > 0.0 && *v <= 1e9);
        n.ok_or_else(|| format!("`{key}` must be a number above 0, is {}", shown(value)))
    };
    let factors = |key: &str| {
        let list = object.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let list: Vec<f64> = list.iter().filter_map(Value::as_f64).filter(|f| *f > 0.0).collect();
        match list.len() {
            n if n == head_dim / 2 => Ok(list),
            n => {
                let shown = if key == "factors" { "rope_freqs.weight" } else { key };
                Err(format!("`{shown}` has {n} positive numbers, head size {head_dim} needs {}", head_dim / 2))
            }
        }
    };
    let known: &[&str] = match kind {
        "default" => &[],
        "linear" => &["factor"],
        "dynamic" => &["factor", "original_max_position_embeddings"],
        "yarn" => {
            &["factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate"]
        }
        "longrope" => {
            &["short_factor", "long_factor", "original_max_position_embeddings", "factor", "attention_factor"]
        }
        "llama3" => &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
        "factors" if source == Source::Gguf => &["factors"],
        _ => {
            let nearest = suggest::nearest_text(kind, KINDS);
            return Err(format!("type {} is not supported{nearest}", shown(&kind.into())));
        }
    };
    let always = ["rope_type", "type", "rope_theta", if given.partial { "partial_rotary_factor" } else { "type" }];
    if let Some((key, value)) =
        object.iter().find(|(k, v)| !v.is_null() && !known.contains(&k.as_str()) && !always.contains(&k.as_str()))
    {
        // Checkpoints keep `factor` and the like beside type `default`, where they have no effect.
        let harmless = value.as_f64() == Some(1.0) || key == "original_max_position_embeddings";
        if !harmless {
            return Err(format!("`{}` is not known for type {kind}", key.escape_debug()));
        }
    }
    let integer = |key: &str| object.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    let original = || {
        let found = integer("original_max_position_embeddings").or(given.original).or(given.longest);
        let found = found.filter(|n| (1..=1 << 24).contains(n));
        found.ok_or("`original_max_position_embeddings` must be an integer 1-16777216")
    };
    let or =
        |key: &str, default: f64| if object.get(key).is_some_and(|v| !v.is_null()) { number(key) } else { Ok(default) };
    match kind {
        "dynamic" => {
            Ok(RopeScaling::Dynamic { factor: number("factor")?, original_max_position_embeddings: original()? })
        }
        "yarn" => {
            let factor = number("factor")?;
            if object.get("truncate").is_some_and(|t| *t == Value::Bool(false)) {
                return Err("`truncate` must be true".to_owned());
            }
            Ok(RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: original()?,
                beta_fast: or("beta_fast", 32.0)?,
                beta_slow: or("beta_slow", 1.0)?,
                attention_factor: or("attention_factor", if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 })?,
            })
        }
        "longrope" => {
            let original = original()?;
            let stretch = given.longest.map_or(1.0, |l| l as f64 / original as f64);
            let grown = (1.0 + stretch.ln() / (original as f64).ln()).sqrt();
            Ok(RopeScaling::LongRope {
                short_factor: factors("short_factor")?,
                long_factor: factors("long_factor")?,
                original_max_position_embeddings: original,
                attention_factor: or("attention_factor", if stretch <= 1.0 || original < 2 { 1.0 } else { grown })?,
            })
        }
        "linear" => Ok(RopeScaling::Linear { factor: number("factor")? }),
        "llama3" => {
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if low >= high {
                return Err(format!("`low_freq_factor` {low} must be below `high_freq_factor` {high}"));
            }
            let original = object.get("original_max_position_embeddings").and_then(Value::as_u64);
            let original = original.and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=1 << 24).contains(n));
            Ok(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original
                    .ok_or("`original_max_position_embeddings` must be an integer 1-16777216")?,
            })
        }
        "factors" => Ok(RopeScaling::Factors { factors: factors("factors")? }),
        _ => Ok(RopeScaling::Default),
    }
}

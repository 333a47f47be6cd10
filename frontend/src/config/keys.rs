//! Checked access to settings that collects all problems.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::rope::{self, RopeScaling};
use super::{ConfigError, ModelConfig, Source};
use crate::nn::Act;
use crate::suggest;

/// Settings that change nothing in a text model's results. Those of token ids are read by who needs them.
const HARMLESS: [&str; 44] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "bad_words_ids",
    "cache_implementation",
    "chat_template",
    "chunk_size_feed_forward",
    "dtype",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "task_specific_params",
    "tie_encoder_decoder",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "transformers.js_config",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

/// Settings that must have one value, the one that every model we run has.
const FIXED: [(&str, &str); 10] = [
    ("add_cross_attention", "false"),
    ("is_decoder", "false"),
    ("is_encoder_decoder", "false"),
    ("attn_logit_softcapping", "null"),
    ("final_logit_softcapping", "null"),
    ("num_local_experts", "0"),
    ("partial_rotary_factor", "1"),
    ("quantization_config", "null"),
    ("rope_interleaved", "false"),
    ("use_bidirectional_attention", "false"),
];

/// A short JSON spelling for messages.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}...", text.get(..at).unwrap_or_default()),
        None => text,
    }
}

/// Settings being read. Failed reads leave an error and give a harmless value, so that reading goes on.
pub struct Keys<'a> {
    arch: &'a str,
    source: Source,
    values: &'a Map<String, Value>,
    accepted: &'a [String],
    used: Vec<&'static str>,
    /// Names of this architecture and of others for one setting.
    renamed: Vec<(&'static str, &'static str)>,
    /// Problems so far.
    pub errors: Vec<ConfigError>,
}

impl<'a> Keys<'a> {
    /// The settings of a configuration.
    pub fn new(config: &'a ModelConfig) -> Keys<'a> {
        Keys {
            arch: &config.arch,
            source: config.source,
            values: &config.values,
            accepted: &config.accepted,
            used: Vec::new(),
            renamed: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// Lets settings be read by the second name of each pair; the first is what this architecture calls them.
    pub fn rename(&mut self, pairs: &[(&'static str, &'static str)]) {
        self.renamed.extend(pairs);
    }

    fn look(&self, key: &str) -> Option<&'a Value> {
        let own =
            || self.renamed.iter().filter(|(_, common)| *common == key).find_map(|(own, _)| self.values.get(*own));
        self.values.get(key).or_else(own)
    }

    /// Is the setting there, and null?
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.look(key).is_some_and(Value::is_null)
    }

    /// Is the setting there, and not null?
    pub fn has(&self, key: &str) -> bool {
        self.look(key).is_some_and(|v| !v.is_null())
    }

    /// The value, if it is there and not null.
    pub fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.used.push(key);
        self.look(key).filter(|v| !v.is_null())
    }

    fn range(&mut self, key: &str, expected: String, found: &Value) {
        self.errors.push(ConfigError::Range { key: key.to_owned(), expected, found: shown(found) });
    }

    /// An integer in a range, if the key is there.
    pub fn int(&mut self, key: &'static str, range: RangeInclusive<usize>) -> Option<usize> {
        self.used.push(key);
        let value = self.look(key)?;
        let n = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n));
        if n.is_none() {
            match key {
                "num_hidden_layers" => self.errors.push(ConfigError::Layers { found: shown(value) }),
                "num_attention_heads" | "num_key_value_heads" => {
                    let what = format!("`{key}` must be {}-{}, is {}", range.start(), range.end(), shown(value));
                    self.errors.push(ConfigError::Heads { what });
                }
                _ => self.range(key, format!("an integer {}-{}", range.start(), range.end()), value),
            }
            // A bad value was reported; callers must not report it as missing too.
            return Some(*range.start());
        }
        n
    }

    /// As [`Keys::int`], where null means absent.
    pub fn int_or_null(&mut self, key: &'static str, range: RangeInclusive<usize>) -> Option<usize> {
        self.get(key)?;
        self.int(key, range)
    }

    /// An integer that must be there.
    pub fn need_int(&mut self, key: &'static str, range: RangeInclusive<usize>) -> usize {
        let start = *range.start();
        self.int(key, range).unwrap_or_else(|| {
            self.errors.push(ConfigError::Missing { key: key.to_owned() });
            start
        })
    }

    fn number(&mut self, key: &str, value: &Value, range: RangeInclusive<f64>) -> f64 {
        match value.as_f64().filter(|v| range.contains(v)) {
            Some(v) => v,
            None => {
                self.range(key, format!("a number {:?}-{:?}", range.start(), range.end()), value);
                *range.start()
            }
        }
    }

    /// A number in a range, or a default if the key is absent.
    pub fn float(&mut self, key: &'static str, range: RangeInclusive<f64>, default: f64) -> f64 {
        match self.get(key) {
            Some(value) => self.number(key, value, range),
            None => default,
        }
    }

    /// A truth value, or a default if the key is absent.
    pub fn bool(&mut self, key: &'static str, default: bool) -> bool {
        match self.get(key) {
            Some(Value::Bool(v)) => *v,
            Some(value) => {
                self.range(key, "true or false".to_owned(), value);
                default
            }
            None => default,
        }
    }

    /// The activation function that a setting names, or a default if the key is absent.
    pub fn act(&mut self, key: &'static str, default: Act) -> Act {
        const NAMES: [(&str, Act); 8] = [
            ("silu", Act::Silu),
            ("swish", Act::Silu),
            ("gelu", Act::Gelu),
            ("gelu_new", Act::GeluTanh),
            ("gelu_pytorch_tanh", Act::GeluTanh),
            ("gelu_fast", Act::GeluTanh),
            ("gelu_python", Act::Gelu),
            ("relu", Act::Relu),
        ];
        self.one_of(key, &NAMES.map(|n| n.0));
        let name = self.get(key).and_then(Value::as_str);
        NAMES.iter().find(|(n, _)| Some(*n) == name).map_or(default, |(_, act)| *act)
    }

    /// A setting that must have one value if it is there, because another would change results.
    pub fn fixed(&mut self, key: &'static str, only: impl Into<Value>) {
        let only = only.into();
        if let Some(value) = self.get(key).filter(|v| **v != only) {
            let found = shown(value);
            self.errors.push(ConfigError::Unsupported { key: key.to_owned(), expected: shown(&only), found });
        }
    }

    /// Settings that change nothing in this architecture's results.
    pub fn harmless(&mut self, keys: &[&'static str]) {
        self.used.extend(keys);
    }

    /// Text that must be one of a list, if it is there.
    pub fn one_of(&mut self, key: &'static str, allowed: &[&str]) {
        if let Some(value) = self.get(key)
            && !value.as_str().is_some_and(|v| allowed.contains(&v))
        {
            let (expected, found) = (allowed.join(", "), shown(value));
            self.errors.push(ConfigError::Unsupported { key: key.to_owned(), expected, found });
        }
    }

    /// Token ids: a number, a list of numbers, or nothing. Each must be below `vocab`.
    pub fn tokens(&mut self, key: &'static str, vocab: usize) -> Vec<u32> {
        let of_vocab = |e: &ConfigError| match e {
            ConfigError::Range { key, .. } | ConfigError::Missing { key } => key == "vocab_size",
            _ => false,
        };
        // Ids cannot be judged by a size that was itself refused.
        let vocab = if self.errors.iter().any(of_vocab) { usize::MAX } else { vocab };
        let values = match self.get(key) {
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
            None => &[],
        };
        let mut out = Vec::new();
        for value in values {
            match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
                Some(id) if usize::try_from(id).is_ok_and(|id| id < vocab) => out.push(id),
                Some(id) => {
                    let id = usize::try_from(id).unwrap_or(usize::MAX);
                    self.errors.push(ConfigError::SpecialToken { key: key.to_owned(), id, vocab });
                }
                None => self.range(key, "a token id or a list of token ids".to_owned(), value),
            }
        }
        out
    }

    /// As [`Keys::tokens`]; where they were read before, their problems are not told again.
    pub fn tokens_once(&mut self, key: &'static str, vocab: usize) -> Vec<u32> {
        let (told, before) = (self.used.contains(&key), self.errors.len());
        let tokens = self.tokens(key, vocab);
        self.errors.truncate(if told { before } else { self.errors.len() });
        tokens
    }

    /// Rotary base and scaling from `rope_scaling` and `rope_theta`, or from the newer `rope_parameters` (or, in models with two
    /// kinds of layers, its part for `layers`).
    pub fn rope(&mut self, layers: Option<&str>, default_theta: f64, head_dim: usize) -> (f64, RopeScaling) {
        let theta = self.float("rope_theta", 1e-3..=1e15, default_theta);
        // Read with the scaling; kept by some checkpoints without one.
        self.used.push("original_max_position_embeddings");
        let old = self.get("rope_scaling");
        let new = self.get("rope_parameters");
        let new = layers.and_then(|layers| new?.get(layers)).or(new);
        match (new, old) {
            (Some(new), _) => {
                let theta = match new.get("rope_theta") {
                    Some(value) => self.number("rope_parameters.rope_theta", value, 1e-3..=1e15),
                    None => theta,
                };
                (theta, self.scaling(new, head_dim))
            }
            (None, Some(old)) => (theta, self.scaling(old, head_dim)),
            (None, None) => (theta, RopeScaling::Default),
        }
    }

    fn scaling(&mut self, value: &Value, dim: usize) -> RopeScaling {
        let number = |key: &str| self.look(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let (longest, original) = (number("max_position_embeddings"), number("original_max_position_embeddings"));
        let partial = self.used.contains(&"partial_rotary_factor");
        match rope::scaling(value, &rope::Given { source: self.source, dim, longest, original, partial }) {
            Ok(scaling) => scaling,
            Err(what) => {
                self.errors.push(ConfigError::RopeScaling { what });
                RopeScaling::Default
            }
        }
    }

    /// Reports what nobody asked for, and whether there were problems.
    pub fn finish(mut self) -> Result<(), Vec<ConfigError>> {
        for (key, value) in self.values {
            let own = key.as_str();
            let key = self.renamed.iter().find(|(name, _)| *name == own).map_or(own, |(_, common)| *common);
            if self.accepted.iter().any(|a| a == own) {
                continue;
            }
            if value.is_null() || self.used.contains(&key) || HARMLESS.contains(&key) {
                continue;
            }
            if let Some((_, only)) = FIXED.iter().find(|(fixed, _)| *fixed == key) {
                let same = shown(value) == *only || value.as_f64().is_some_and(|v| v.to_string() == *only);
                if !same {
                    let (expected, found) = ((*only).to_owned(), shown(value));
                    self.errors.push(ConfigError::Unsupported { key: key.to_owned(), expected, found });
                }
                continue;
            }
            let nearest = suggest::nearest_text(key, self.used.iter().copied());
            let shown: String = key.chars().take(80).flat_map(char::escape_debug).collect();
            self.errors.push(ConfigError::UnknownKey { key: shown, arch: self.arch.to_owned(), nearest });
        }
        if self.errors.is_empty() { Ok(()) } else { Err(self.errors) }
    }
}

/// The settings that all attention models share, with their limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Common {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward network.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Longest context, in tokens.
    pub max_position_embeddings: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
}

/// Defaults for settings that an architecture may leave out.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// Width of the feed-forward network.
    pub intermediate_size: Option<usize>,
    /// Query heads.
    pub num_attention_heads: Option<usize>,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: Option<usize>,
    /// Size of a head.
    pub head_dim: Option<usize>,
    /// Longest context, in tokens.
    pub max_position_embeddings: Option<usize>,
    /// Rows of the embedding.
    pub vocab_size: Option<usize>,
}

impl Keys<'_> {
    fn int_or(&mut self, key: &'static str, range: RangeInclusive<usize>, default: Option<usize>) -> usize {
        match default {
            Some(default) => self.int_or_null(key, range).unwrap_or(default),
            None => self.need_int(key, range),
        }
    }

    /// Reads the common settings and checks how they fit together.
    pub fn common(&mut self, defaults: &Defaults) -> Common {
        let hidden_size = self.need_int("hidden_size", 1..=1 << 20);
        let intermediate_size = self.int_or("intermediate_size", 1..=1 << 24, defaults.intermediate_size);
        let num_hidden_layers = self.need_int("num_hidden_layers", 1..=4096);
        let heads = self.int_or("num_attention_heads", 1..=65_536, defaults.num_attention_heads);
        let kv = self.int_or_null("num_key_value_heads", 1..=65_536);
        let kv = kv.or(defaults.num_key_value_heads).unwrap_or(heads);
        // How the numbers fit together can only be judged if each is good.
        let sound = self.errors.is_empty();
        if sound && !heads.is_multiple_of(kv) {
            let what = format!("`num_key_value_heads` {kv} does not divide `num_attention_heads` {heads}");
            self.errors.push(ConfigError::Heads { what });
        }
        let head_dim = self.int_or_null("head_dim", 1..=65_536).or(defaults.head_dim);
        let head_dim = head_dim.unwrap_or_else(|| {
            if sound && !hidden_size.is_multiple_of(heads) {
                let what = format!("`num_attention_heads` {heads} does not divide `hidden_size` {hidden_size}");
                self.errors.push(ConfigError::Heads { what });
            }
            (hidden_size / heads).max(1)
        });
        if !head_dim.is_multiple_of(2) {
            self.errors.push(ConfigError::HeadDim { found: head_dim });
        }
        Common {
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: kv,
            head_dim,
            max_position_embeddings: self.int_or(
                "max_position_embeddings",
                1..=1 << 24,
                defaults.max_position_embeddings,
            ),
            vocab_size: self.int_or("vocab_size", 1..=1 << 22, defaults.vocab_size),
        }
    }
}

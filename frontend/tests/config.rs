//! Configurations, from both kinds of files, and what is refused in them.

mod common;

use common::{GgufFile, real_model};
use marquetry_frontend::config::{ConfigError, Gemma3Config, LlamaConfig, ModelConfig, RopeScaling};
use marquetry_frontend::gguf::Gguf;
use serde_json::{Value, json};

#[track_caller]
fn check(error: &ConfigError, code: &str, words: &str) {
    let message = error.to_string();
    assert_eq!(error.code(), code, "{message}");
    assert!(message.contains(words), "{message:?} should contain {words:?}");
}

fn base() -> Value {
    serde_json::from_str(include_str!("data/config/llama-base.json")).unwrap()
}

fn with(changes: Value) -> ModelConfig {
    let mut config = base();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    ModelConfig::from_json(config.to_string().as_bytes()).unwrap()
}

/// The only problem of the base configuration with changes.
#[track_caller]
fn refused(changes: Value) -> ConfigError {
    let mut errors = LlamaConfig::from_config(&with(changes)).expect_err("the configuration should be refused");
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.remove(0)
}

macro_rules! published {
    ($kind:ty, $file:literal) => {
        <$kind>::from_config(&ModelConfig::from_json(include_bytes!(concat!("data/config/", $file, ".json"))).unwrap())
            .unwrap()
    };
}

#[test]
fn published_llama_configurations() {
    let c = published!(LlamaConfig, "llama-base");
    assert_eq!((c.hidden_size, c.head_dim, c.num_key_value_heads, c.vocab_size), (64, 16, 2, 160));
    assert_eq!((c.rope_theta, c.rope_scaling, c.tie_word_embeddings), (10_000.0, RopeScaling::Default, false));
    assert_eq!((c.bos_token_id, c.eos_token_ids), (Some(1), vec![2]));
    let c = published!(LlamaConfig, "llama-bias-sharded-old");
    assert_eq!((c.num_key_value_heads, c.attention_bias, c.mlp_bias), (4, true, true));
    let c = published!(LlamaConfig, "llama-new-style-config");
    assert_eq!((c.rope_theta, c.rope_scaling), (20_000.0, RopeScaling::Default));
    let c = published!(LlamaConfig, "llama-llama3-rope-tied-bf16");
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 16,
    };
    assert_eq!((c.head_dim, c.rope_theta, c.rope_scaling, c.tie_word_embeddings), (24, 500_000.0, scaling, true));
}

#[test]
fn published_gemma3_configurations() {
    let c = published!(Gemma3Config, "gemma3-text");
    assert_eq!(
        (c.sliding_window, c.full_attention, c.tie_word_embeddings),
        (16, vec![false, false, true, false], true)
    );
    assert_eq!((c.query_pre_attn_scalar, c.rope_theta, c.rope_local_base_freq), (16.0, 1e6, 1e4));
    let c = published!(Gemma3Config, "gemma3-text-linear-rope-bf16");
    assert_eq!((c.rope_scaling, c.num_key_value_heads), (RopeScaling::Linear { factor: 8.0 }, 1));
    let c = published!(Gemma3Config, "gemma3-nested-text");
    assert_eq!((c.hidden_size, c.vocab_size, c.eos_token_ids), (64, 256, vec![1, 106]));
}

#[test]
fn gemma3_in_the_newer_style_and_with_defaults() {
    let config = json!({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 2560,
        "intermediate_size": 10240, "num_hidden_layers": 3, "sliding_window": 1024,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}}});
    let c = Gemma3Config::from_config(&ModelConfig::from_json(config.to_string().as_bytes()).unwrap()).unwrap();
    assert_eq!((c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.vocab_size), (8, 4, 256, 262_208));
    assert_eq!((c.rope_theta, c.rope_local_base_freq), (2e6, 5000.0));
    assert_eq!((c.rope_scaling, c.full_attention), (RopeScaling::Linear { factor: 8.0 }, vec![false, true, false]));
}

#[test]
fn row_34_architecture() {
    let refused = |text: &str| ModelConfig::from_json(text.as_bytes()).unwrap_err();
    check(&refused(r#"{"model_type": "gpt5"}"#), "CFG001", "architecture `gpt5` is not supported");
    check(&refused(r#"{"model_type": "lama"}"#), "CFG001", "nearest: llama");
    check(&refused("{}"), "CFG008", "`model_type` is missing");
    let file = Gguf::parse(GgufFile::default().str("general.architecture", "gemma33").build()).unwrap();
    check(
        &ModelConfig::from_gguf(&file).unwrap_err(),
        "CFG001",
        "architecture `gemma33` is not supported; nearest: gemma3",
    );
}

#[test]
fn row_54_and_58_not_json() {
    let refused = |text: &[u8]| ModelConfig::from_json(text).unwrap_err();
    check(&refused(b""), "CFG002", "it is empty");
    check(&refused(b"\xEF\xBB\xBF{}"), "CFG002", "byte order mark (1:1)");
    check(&refused(b"{\n  // comment\n}"), "CFG002", "2:3: ");
    check(&refused(b"[1]"), "CFG002", "not an object");
    check(&refused(&[b' '; 5 << 20]), "CFG002", "it has 5242880 bytes, the limit is 4194304");
    check(&refused(br#"{"model_type": "llama", "model_type": "llama"}"#), "CFG002", "key `model_type` appears twice");
    check(&refused(r#"{"a":"#.repeat(10_000).as_bytes()), "CFG004", "nested deeper than 64 at byte ");
    let dir = tempfile::tempdir().unwrap();
    check(&ModelConfig::open(dir.path()).unwrap_err(), "CFG002", "config.json");
}

#[test]
fn row_55_ranges() {
    for (value, found) in
        [(json!("4096"), "\"4096\""), (json!(1e30), "1e+30"), (json!(-1), "-1"), (json!(null), "null")]
    {
        let error = refused(json!({"vocab_size": value}));
        check(&error, "CFG003", &format!("`vocab_size` must be an integer 1-4194304, is {found}"));
    }
    check(&refused(json!({"rms_norm_eps": "small"})), "CFG003", "`rms_norm_eps` must be a number");
    check(&refused(json!({"tie_word_embeddings": 1})), "CFG003", "must be true or false, is 1");
}

#[test]
fn row_32_layers() {
    for bad in [0, 100_000] {
        let error = refused(json!({"num_hidden_layers": bad}));
        check(&error, "CFG010", &format!("layers must be 1-4096: `num_hidden_layers` is {bad}"));
        let file = GgufFile::default().str("general.architecture", "llama").u32("llama.block_count", bad).build();
        let config = ModelConfig::from_gguf(&Gguf::parse(file).unwrap()).unwrap();
        let errors = LlamaConfig::from_config(&config).unwrap_err();
        assert!(errors.iter().any(|e| e.code() == "CFG010"), "{errors:?}");
    }
}

#[test]
fn row_33_and_56_heads() {
    check(&refused(json!({"num_attention_heads": 0})), "CFG011", "1-65536, is 0");
    check(&refused(json!({"num_key_value_heads": 3})), "CFG011", "`num_key_value_heads` 3 does not divide");
    let heads = json!({"num_attention_heads": 6, "num_key_value_heads": 2});
    check(&refused(heads), "CFG011", "`num_attention_heads` 6 does not divide `hidden_size` 64");
    check(&refused(json!({"head_dim": 15})), "CFG012", "`head_dim` must be even for rotary embeddings, is 15");
}

#[test]
fn row_57_rope_scaling() {
    let scaling = |s: Value| refused(json!({"rope_scaling": s}));
    check(&scaling(json!({"rope_type": "banana", "factor": 2})), "CFG013", "type \"banana\" is not supported");
    check(&scaling(json!({"rope_type": "yarn", "factor": 2, "truncate": false})), "CFG013", "`truncate` must be true");
    check(&scaling(json!({"rope_type": "yarn"})), "CFG013", "`factor` must be a number above 0, is null");
    let short = json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]});
    check(&scaling(short), "CFG013", "`short_factor` has 1 positive numbers, head size 16 needs 8");
    check(&scaling(json!({"rope_type": "linear", "factor": 0})), "CFG013", "`factor` must be a number above 0, is 0");
    check(&scaling(json!({"rope_type": "linear", "factor": "NaN"})), "CFG013", "is \"NaN\"");
    check(&scaling(json!({"type": "linear"})), "CFG013", "is null");
    check(&scaling(json!({"factor": 2.0})), "CFG013", "`rope_type` is missing");
    check(&scaling(json!({"rope_type": "factors", "factors": [1]})), "CFG013", "\"factors\" is not supported");
    check(&scaling(json!("linear")), "CFG013", "must be an object");
    check(&scaling(json!({"rope_type": "linear", "factor": 2, "mscale": 3})), "CFG013", "`mscale` is not known");
}

#[test]
fn unknown_and_unsupported_settings() {
    let error = refused(json!({"hiden_act": "silu"}));
    check(&error, "CFG005", "`hiden_act` is not a known setting of llama; nearest: hidden_act");
    check(
        &refused(json!({"hidden_act": "relu"})),
        "CFG006",
        "`hidden_act` = \"relu\" is not supported (silu, swish is)",
    );
    check(&refused(json!({"quantization_config": {"bits": 4}})), "CFG006", "`quantization_config` = {\"bits\":4}");
    check(&refused(json!({"partial_rotary_factor": 0.5})), "CFG006", "`partial_rotary_factor` = 0.5");
    check(&refused(json!({"eos_token_id": [2, 160]})), "CFG033", "`eos_token_id` is 160, `vocab_size` is 160");
    LlamaConfig::from_config(&with(json!({"partial_rotary_factor": 1.0, "pretraining_tp": 1, "x": null}))).unwrap();
}

#[test]
fn all_problems_are_reported_at_once() {
    let config = with(json!({"vocab_size": 0, "num_hidden_layers": 0, "rms_norm_eps": -1, "bogus": 1}));
    let errors = LlamaConfig::from_config(&config).unwrap_err();
    let codes: Vec<&str> = errors.iter().map(ConfigError::code).collect();
    assert_eq!(codes, ["CFG010", "CFG003", "CFG003", "CFG005"]);
}

fn tiny_gguf() -> GgufFile {
    GgufFile::default()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .u32("llama.context_length", 512)
        .u32("llama.embedding_length", 32)
        .u32("llama.feed_forward_length", 48)
        .u32("llama.attention.head_count", 4)
        .u32("llama.attention.head_count_kv", 2)
        .u32("llama.rope.dimension_count", 8)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32("llama.rope.freq_base", 500_000.0)
        .ramp("token_embd.weight", &[32, 40])
}

#[test]
fn gguf_metadata_is_translated() {
    let read = |file: GgufFile| {
        LlamaConfig::from_config(&ModelConfig::from_gguf(&Gguf::parse(file.build()).unwrap()).unwrap())
    };
    let c = read(tiny_gguf()).unwrap();
    assert_eq!((c.hidden_size, c.head_dim, c.vocab_size, c.max_position_embeddings), (32, 8, 40, 512));
    assert_eq!((c.rms_norm_eps, c.rope_theta, c.tie_word_embeddings), (1e-5, 500_000.0, true));
    let c = read(tiny_gguf().ramp("output.weight", &[32, 40]).ramp("rope_freqs.weight", &[4])).unwrap_err();
    check(&c[0], "CFG013", "`rope_freqs.weight` has 3 positive numbers, head size 8 needs 4");
    let ones: Vec<u8> = [1f32, 1.0, 4.0, 8.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let c = read(tiny_gguf().tensor("rope_freqs.weight", &[4], 0, &ones)).unwrap();
    assert_eq!(c.rope_scaling, RopeScaling::Factors { factors: vec![1.0, 1.0, 4.0, 8.0] });
    let scaled = tiny_gguf().str("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0);
    assert_eq!(read(scaled).unwrap().rope_scaling, RopeScaling::Linear { factor: 4.0 });
    let experts = tiny_gguf().u32("llama.expert_count", 8);
    assert_eq!(ModelConfig::from_gguf(&Gguf::parse(experts.build()).unwrap()).unwrap().arch, "mixtral");
    check(&read(tiny_gguf().f32("llama.logit_scale", 2.0)).unwrap_err()[0], "CFG005", "`llama.logit_scale`");
    let partial = tiny_gguf().u32("llama.attention.key_length", 16);
    check(&read(partial).unwrap_err()[0], "CFG005", "`llama.rope.dimension_count`");
}

#[test]
fn real_models() {
    if let Some(path) = real_model("smol.gguf") {
        let c = LlamaConfig::from_config(&ModelConfig::open(path).unwrap()).unwrap();
        assert_eq!((c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads), (576, 30, 9, 3));
        assert_eq!((c.head_dim, c.vocab_size, c.rope_theta, c.rms_norm_eps), (64, 49_152, 100_000.0, 1e-5));
        assert!(c.tie_word_embeddings && !c.attention_bias && c.eos_token_ids == [2]);
    }
    if let Some(path) = real_model("gemma.gguf") {
        let c = Gemma3Config::from_config(&ModelConfig::open(path).unwrap()).unwrap();
        assert_eq!((c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads), (640, 18, 4, 1));
        assert_eq!((c.head_dim, c.vocab_size, c.query_pre_attn_scalar, c.sliding_window), (256, 262_144, 256.0, 512));
        assert_eq!((c.rope_theta, c.rope_local_base_freq, c.rms_norm_eps), (1e6, 1e4, 1e-6));
        let full: Vec<usize> = (0..18).filter(|i| c.full_attention[*i]).collect();
        assert_eq!(full, [5, 11, 17]);
    }
}

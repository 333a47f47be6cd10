//! The table of formats: one row per architecture that both llama.cpp and we know.

use super::Known::{Bool, Float, Has, Int, Lacks, Layers, QueryScale, Rows, Text, Vocabulary};
use super::{Format, Name, Rotated, Rule};

const TOP: &[Name] = &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

const ATTENTION: &[Name] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
];

const GATED: &[Name] = &[("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")];

/// The norm before the feed-forward network, as Llama calls it.
const SECOND_NORM: &[Name] = &[("ffn_norm", "post_attention_layernorm")];

/// Norms before and after each branch.
const FOUR_NORMS: &[Name] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

const HEAD_NORMS: &[Name] = &[("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];

const GPT2_TOP: &[Name] = &[
    ("token_embd", "transformer.wte"),
    ("position_embd", "transformer.wpe"),
    ("output_norm", "transformer.ln_f"),
    ("output", "lm_head"),
];

const GPT2_LAYER: &[Name] = &[
    ("attn_norm", "ln_1"),
    ("attn_qkv", "attn.c_attn"),
    ("attn_output", "attn.c_proj"),
    ("ffn_norm", "ln_2"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_down", "mlp.c_proj"),
];

const NEIGHBOURS: &[(&str, Rule)] = &[("attn_q", Rule::QueryRows), ("attn_k", Rule::KeyRows)];

const ONE_ADDED: &[(&str, Rule)] = &[("norm", Rule::OneAdded)];

/// What rows leave out.
const BASE: Format = Format {
    gguf: "",
    model: "",
    experts: None,
    layers: "model.layers.",
    top: TOP,
    parts: &[ATTENTION, SECOND_NORM, GATED],
    rules: &[],
    keys: &[],
    known: &[],
    rotated: Rotated::Whole,
};

/// Epsilon of layer norms where the setting is called as in most configurations.
const LAYER_NORM: (&str, &str) = ("attention.layer_norm_epsilon", "layer_norm_eps");

const TIED: (&str, super::Known) = ("tie_word_embeddings", Lacks("output.weight"));

const Q_BIAS: super::Known = Has("blk.0.attn_q.bias");

pub(crate) static FORMATS: &[Format] = &[
    Format {
        gguf: "llama",
        model: "llama",
        experts: Some(false),
        rules: NEIGHBOURS,
        known: &[
            TIED,
            ("attention_bias", Q_BIAS),
            ("mlp_bias", Has("blk.0.ffn_up.bias")),
            ("hidden_act", Text("silu")),
        ],
        ..BASE
    },
    Format {
        gguf: "llama",
        model: "mixtral",
        experts: Some(true),
        parts: &[
            ATTENTION,
            SECOND_NORM,
            &[
                ("ffn_gate_inp", "block_sparse_moe.gate"),
                ("ffn_gate_exps", "block_sparse_moe.experts.{}.w1"),
                ("ffn_down_exps", "block_sparse_moe.experts.{}.w2"),
                ("ffn_up_exps", "block_sparse_moe.experts.{}.w3"),
            ],
        ],
        rules: NEIGHBOURS,
        keys: &[("expert_count", "num_local_experts"), ("expert_used_count", "num_experts_per_tok")],
        known: &[TIED],
        ..BASE
    },
    Format { gguf: "gemma", model: "gemma", rules: ONE_ADDED, known: &[TIED, ("attention_bias", Q_BIAS)], ..BASE },
    Format {
        gguf: "gemma2",
        model: "gemma2",
        parts: &[ATTENTION, FOUR_NORMS, GATED],
        rules: ONE_ADDED,
        // The 27B model alone scales queries by hidden size / heads; llama.cpp tells it by its layers.
        known: &[TIED, ("attention_bias", Q_BIAS), ("query_pre_attn_scalar", QueryScale { unless_layers: 46 })],
        ..BASE
    },
    Format {
        gguf: "gemma3",
        model: "gemma3",
        parts: &[ATTENTION, FOUR_NORMS, HEAD_NORMS, GATED],
        rules: ONE_ADDED,
        keys: &[("attention.sliding_window_pattern", "layer_types")],
        known: &[
            TIED,
            ("attention_bias", Q_BIAS),
            ("sliding_window_pattern", Int(6)),
            ("rope_local_base_freq", Float(10_000.0)),
            ("hidden_activation", Text("gelu_pytorch_tanh")),
            ("query_pre_attn_scalar", QueryScale { unless_layers: 62 }),
        ],
        ..BASE
    },
    Format {
        gguf: "gpt2",
        model: "gpt2",
        layers: "transformer.h.",
        top: GPT2_TOP,
        parts: &[GPT2_LAYER],
        rules: &[
            ("attn_qkv", Rule::Turned),
            ("attn_output", Rule::Turned),
            ("ffn_up", Rule::Turned),
            ("ffn_down", Rule::Turned),
        ],
        keys: &[LAYER_NORM],
        ..BASE
    },
    Format {
        gguf: "starcoder",
        model: "gpt_bigcode",
        layers: "transformer.h.",
        top: GPT2_TOP,
        parts: &[GPT2_LAYER],
        keys: &[LAYER_NORM],
        ..BASE
    },
    Format {
        gguf: "gptneox",
        model: "gpt_neox",
        layers: "gpt_neox.layers.",
        top: &[
            ("token_embd", "gpt_neox.embed_in"),
            ("output_norm", "gpt_neox.final_layer_norm"),
            ("output", "embed_out"),
        ],
        parts: &[&[
            ("attn_norm", "input_layernorm"),
            ("attn_qkv", "attention.query_key_value"),
            ("attn_output", "attention.dense"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.dense_h_to_4h"),
            ("ffn_down", "mlp.dense_4h_to_h"),
        ]],
        rules: &[("attn_qkv", Rule::Joined)],
        keys: &[LAYER_NORM, ("use_parallel_residual", "use_parallel_residual")],
        known: &[("attention_bias", Has("blk.0.attn_qkv.bias"))],
        rotated: Rotated::Given,
        ..BASE
    },
    Format {
        gguf: "baichuan",
        model: "baichuan",
        rules: NEIGHBOURS,
        known: &[TIED, ("norm_head", Vocabulary(125_696)), ("alibi", Layers(40))],
        ..BASE
    },
    Format {
        gguf: "internlm2",
        model: "internlm2",
        top: &[("token_embd", "model.tok_embeddings"), ("output_norm", "model.norm"), ("output", "output")],
        parts: &[&[
            ("attn_norm", "attention_norm"),
            ("attn_q", "attention.q_proj"),
            ("attn_k", "attention.k_proj"),
            ("attn_v", "attention.v_proj"),
            ("attn_output", "attention.wo"),
            ("ffn_norm", "ffn_norm"),
            ("ffn_gate", "feed_forward.w1"),
            ("ffn_down", "feed_forward.w2"),
            ("ffn_up", "feed_forward.w3"),
        ]],
        rules: NEIGHBOURS,
        known: &[TIED, ("bias", Q_BIAS)],
        ..BASE
    },
    Format {
        gguf: "orion",
        model: "orion",
        keys: &[("attention.layer_norm_epsilon", "rms_norm_eps")],
        known: &[TIED, ("attention_bias", Q_BIAS)],
        ..BASE
    },
    Format {
        gguf: "phi2",
        model: "phi",
        top: &[("token_embd", "model.embed_tokens"), ("output_norm", "model.final_layernorm"), ("output", "lm_head")],
        parts: &[&[
            ("attn_norm", "input_layernorm"),
            ("attn_qkv", "self_attn.Wqkv"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.dense"),
            ("ffn_up", "mlp.fc1"),
            ("ffn_down", "mlp.fc2"),
        ]],
        keys: &[LAYER_NORM],
        rotated: Rotated::Given,
        ..BASE
    },
    Format {
        gguf: "phi3",
        model: "phi3",
        parts: &[
            ATTENTION,
            SECOND_NORM,
            &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj"), ("ffn_down", "mlp.down_proj")],
        ],
        known: &[TIED, ("attention_bias", Has("blk.0.attn_qkv.bias"))],
        rotated: Rotated::Given,
        ..BASE
    },
    Format {
        gguf: "qwen",
        model: "qwen",
        layers: "transformer.h.",
        top: &[("token_embd", "transformer.wte"), ("output_norm", "transformer.ln_f"), ("output", "lm_head")],
        parts: &[&[
            ("attn_norm", "ln_1"),
            ("attn_qkv", "attn.c_attn"),
            ("attn_output", "attn.c_proj"),
            ("ffn_norm", "ln_2"),
            ("ffn_up", "mlp.w1"),
            ("ffn_gate", "mlp.w2"),
            ("ffn_down", "mlp.c_proj"),
        ]],
        keys: &[("attention.layer_norm_rms_epsilon", "layer_norm_epsilon")],
        ..BASE
    },
    Format { gguf: "qwen2", model: "qwen2", known: &[TIED, ("qkv_bias", Q_BIAS)], ..BASE },
    Format {
        gguf: "qwen2moe",
        model: "qwen2_moe",
        parts: &[
            ATTENTION,
            SECOND_NORM,
            GATED,
            &[
                ("ffn_gate_inp", "mlp.gate"),
                ("ffn_gate_exps", "mlp.experts.{}.gate_proj"),
                ("ffn_up_exps", "mlp.experts.{}.up_proj"),
                ("ffn_down_exps", "mlp.experts.{}.down_proj"),
                ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
                ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
                ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
                ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
            ],
        ],
        rules: &[("ffn_gate_inp_shexp", Rule::Flattened)],
        keys: &[
            ("expert_count", "num_experts"),
            ("expert_used_count", "num_experts_per_tok"),
            ("expert_feed_forward_length", "moe_intermediate_size"),
            ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
        ],
        known: &[TIED, ("qkv_bias", Q_BIAS), ("norm_topk_prob", Bool(false))],
        ..BASE
    },
    Format {
        gguf: "qwen3",
        model: "qwen3",
        parts: &[ATTENTION, HEAD_NORMS, SECOND_NORM, GATED],
        known: &[TIED, ("attention_bias", Q_BIAS)],
        ..BASE
    },
    Format {
        gguf: "minicpm",
        model: "minicpm",
        parts: &[
            ATTENTION,
            SECOND_NORM,
            GATED,
            &[
                ("ffn_gate_inp", "mlp.gate"),
                ("ffn_gate_exps", "mlp.experts.{}.w1"),
                ("ffn_down_exps", "mlp.experts.{}.w2"),
                ("ffn_up_exps", "mlp.experts.{}.w3"),
            ],
        ],
        rules: NEIGHBOURS,
        keys: &[
            ("embedding_scale", "scale_emb"),
            ("residual_scale", "residual_scale"),
            ("logit_scale", "logit_divisor"),
            ("expert_count", "num_experts"),
            ("expert_used_count", "num_experts_per_tok"),
        ],
        // Of the first model, whose files do not say them.
        known: &[
            TIED,
            ("attention_bias", Q_BIAS),
            ("scale_emb", Float(12.0)),
            ("scale_depth", Float(1.4)),
            ("dim_model_base", Int(256)),
        ],
        ..BASE
    },
    Format {
        gguf: "command-r",
        model: "cohere",
        parts: &[ATTENTION, HEAD_NORMS, GATED],
        keys: &[LAYER_NORM, ("logit_scale", "logit_scale")],
        known: &[TIED, ("attention_bias", Q_BIAS), ("use_qk_norm", Has("blk.0.attn_q_norm.weight"))],
        ..BASE
    },
    Format {
        gguf: "chatglm",
        model: "chatglm",
        layers: "transformer.encoder.layers.",
        top: &[
            ("token_embd", "transformer.embedding.word_embeddings"),
            ("output_norm", "transformer.encoder.final_layernorm"),
            ("output", "transformer.output_layer"),
        ],
        parts: &[&[
            ("attn_norm", "input_layernorm"),
            ("attn_qkv", "self_attention.query_key_value"),
            ("attn_q", "self_attention.q_proj"),
            ("attn_k", "self_attention.k_proj"),
            ("attn_v", "self_attention.v_proj"),
            ("attn_output", "self_attention.dense"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_up", "mlp.dense_h_to_4h"),
            ("ffn_down", "mlp.dense_4h_to_h"),
        ]],
        known: &[("add_qkv_bias", Has("blk.0.attn_qkv.bias"))],
        rotated: Rotated::Half,
        ..BASE
    },
    Format {
        gguf: "stablelm",
        model: "stablelm",
        parts: &[
            ATTENTION,
            SECOND_NORM,
            GATED,
            &[("attn_q_norm", "self_attn.q_layernorm.norms.{}"), ("attn_k_norm", "self_attn.k_layernorm.norms.{}")],
        ],
        keys: &[LAYER_NORM, ("use_parallel_residual", "")],
        known: &[
            TIED,
            ("use_qkv_bias", Q_BIAS),
            ("qk_layernorm", Has("blk.0.attn_q_norm.weight")),
            ("use_parallel_residual", Lacks("blk.0.ffn_norm.weight")),
        ],
        rotated: Rotated::Given,
        ..BASE
    },
    Format {
        gguf: "starcoder2",
        model: "starcoder2",
        parts: &[ATTENTION, SECOND_NORM, &[("ffn_up", "mlp.c_fc"), ("ffn_down", "mlp.c_proj")]],
        keys: &[("attention.layer_norm_epsilon", "norm_epsilon")],
        known: &[TIED, ("use_bias", Q_BIAS)],
        ..BASE
    },
    Format {
        gguf: "bert",
        model: "bert",
        layers: "encoder.layer.",
        top: &[
            ("token_embd", "embeddings.word_embeddings"),
            ("token_types", "embeddings.token_type_embeddings"),
            ("position_embd", "embeddings.position_embeddings"),
            ("token_embd_norm", "embeddings.LayerNorm"),
        ],
        parts: &[&[
            ("attn_q", "attention.self.query"),
            ("attn_k", "attention.self.key"),
            ("attn_v", "attention.self.value"),
            ("attn_output", "attention.output.dense"),
            ("attn_output_norm", "attention.output.LayerNorm"),
            ("ffn_up", "intermediate.dense"),
            ("ffn_down", "output.dense"),
            ("layer_output_norm", "output.LayerNorm"),
        ]],
        keys: &[LAYER_NORM, ("attention.causal", "is_decoder"), ("pooling_type", "")],
        known: &[("type_vocab_size", Rows("token_types.weight")), ("add_pooling_layer", Bool(false))],
        ..BASE
    },
    Format {
        gguf: "rwkv6",
        model: "rwkv6",
        layers: "rwkv.blocks.",
        top: &[
            ("token_embd", "rwkv.embeddings"),
            ("token_embd_norm", "rwkv.blocks.0.pre_ln"),
            ("output_norm", "rwkv.ln_out"),
            ("output", "head"),
        ],
        parts: &[&[
            ("attn_norm", "ln1"),
            ("attn_norm_2", "ln2"),
            ("time_mix_w1.weight", "attention.time_maa_w1"),
            ("time_mix_w2.weight", "attention.time_maa_w2"),
            ("time_mix_lerp_x.weight", "attention.time_maa_x"),
            ("time_mix_lerp_w.weight", "attention.time_maa_w"),
            ("time_mix_lerp_k.weight", "attention.time_maa_k"),
            ("time_mix_lerp_v.weight", "attention.time_maa_v"),
            ("time_mix_lerp_r.weight", "attention.time_maa_r"),
            ("time_mix_lerp_g.weight", "attention.time_maa_g"),
            ("time_mix_lerp_fused.weight", "attention.time_maa_{wkvrg}"),
            ("time_mix_first.weight", "attention.time_faaaa"),
            ("time_mix_decay.weight", "attention.time_decay"),
            ("time_mix_decay_w1.weight", "attention.time_decay_w1"),
            ("time_mix_decay_w2.weight", "attention.time_decay_w2"),
            ("time_mix_key", "attention.key"),
            ("time_mix_value", "attention.value"),
            ("time_mix_receptance", "attention.receptance"),
            ("time_mix_gate", "attention.gate"),
            ("time_mix_output", "attention.output"),
            ("time_mix_ln", "attention.ln_x"),
            ("channel_mix_lerp_k.weight", "feed_forward.time_maa_k"),
            ("channel_mix_lerp_r.weight", "feed_forward.time_maa_r"),
            ("channel_mix_key", "feed_forward.key"),
            ("channel_mix_value", "feed_forward.value"),
            ("channel_mix_receptance", "feed_forward.receptance"),
        ]],
        rules: &[
            ("time_mix_w1", Rule::Turned),
            ("time_mix_w2", Rule::Turned),
            ("time_mix_decay_w1", Rule::Turned),
            ("time_mix_decay_w2", Rule::Turned),
        ],
        keys: &[
            ("attention.layer_norm_epsilon", "layer_norm_epsilon"),
            ("attention.head_count", ""),
            ("wkv.head_size", "head_size"),
            ("rescale_every_n_layers", "halve_every"),
            ("time_mix_extra_dim", ""),
            ("time_decay_extra_dim", ""),
        ],
        ..BASE
    },
];

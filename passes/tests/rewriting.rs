//! Rewriting of whole models: what the report says, how many kernels are left, and that the target decides.
//!
//! `tests/data/reports/MODEL.BUCKET.txt` is the report; `BLESS=1` writes it anew.

use std::collections::HashMap;
use std::path::PathBuf;

use marquetry_frontend::Limits;
use marquetry_frontend::config::ModelConfig;
use marquetry_frontend::models::trace_model;
use marquetry_ir::graph::{Module, Ty, parse_module};
use marquetry_ir::program::Program;
use marquetry_ir::{DType, Elem, GgufType};
use marquetry_passes::Numerics;
use marquetry_passes::bind::{self, Narrow};
use marquetry_passes::eqsat::cost::Target;
use marquetry_passes::manager::{self, Ir, Options, Reports};

const LLAMA: &str = r#"{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 3,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 1024, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "attention_bias": false, "tie_word_embeddings": true}"#;

const GEMMA: &str = r#"{"model_type": "gemma3_text", "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 1024, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "query_pre_attn_scalar": 256,
    "sliding_window": 16, "sliding_window_pattern": 3, "hidden_activation": "gelu_pytorch_tanh"}"#;

/// A model whose matrices have the element type that `elem` gives by name.
fn model(config: &str, elem: impl Fn(&str) -> Elem) -> Module {
    let config = ModelConfig::from_json(config.as_bytes()).unwrap();
    let limits = Limits { tokens: 64, sequences: 1, context: 128, page: 16 };
    let m = trace_model(&config, limits).unwrap().module;
    let matrix = |t: &Ty| t.as_tensor().is_some_and(|t| t.shape.len() == 2);
    let elems: HashMap<String, Elem> =
        m.params.iter().filter(|p| matrix(&p.ty)).map(|p| (p.name.clone(), elem(&p.name))).collect();
    bind::storage(&m, &elems).unwrap()
}

fn q4(_: &str) -> Elem {
    Elem::Gguf(GgufType::Q4_1)
}

/// Values in 8 bits where the other matrices have 5, as quantizers do for some layers.
fn mixed(name: &str) -> Elem {
    Elem::Gguf(if name.contains("v_proj") { GgufType::Q8_0 } else { GgufType::Q5_0 })
}

fn options(prefill: bool, numerics: Numerics) -> Options {
    let tokens = if prefill { Narrow::Range(1, 64) } else { Narrow::Fixed(1) };
    let sizes = [("n", tokens), ("r", tokens), ("s", Narrow::Fixed(1))];
    Options { numerics, sizes: sizes.map(|(n, v)| (n.to_string(), v)).into(), ..Options::default() }
}

fn compile(m: &Module, options: &Options) -> (Program, Reports) {
    let (ir, reports) =
        manager::run(Ir::Graph(m.clone()), &manager::default_pipeline(), options, &mut |_, _| {}).unwrap();
    let Ir::Program(p) = ir else { panic!("a graph") };
    (*p, reports)
}

fn models() -> Vec<(&'static str, Module)> {
    vec![("llama", model(LLAMA, q4)), ("gemma3", model(GEMMA, q4)), ("gemma3-mixed", model(GEMMA, mixed))]
}

fn snapshot(name: &str, got: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/reports").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, got).unwrap();
        return;
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(got == want, "{} differs; BLESS=1 writes it anew. It would be:\n{got}", path.display());
}

/// `.rs:N` for every line of the models' source, which may change.
fn without_lines(text: &str) -> String {
    let mut parts = text.split(".rs:");
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |all, p| all + ".rs:N" + p.trim_start_matches(|c: char| c.is_ascii_digit()))
}

#[test]
fn reports_say_what_is_written_down_and_every_region_saturates() {
    for (name, m) in models() {
        for (bucket, prefill) in [("decode", false), ("prefill", true)] {
            let (_, reports) = compile(&m, &options(prefill, Numerics::Fast));
            let text: String = reports.eqsat.iter().map(ToString::to_string).collect();
            let kernels: String = reports.kernels.iter().map(|k| format!("{k}\n")).collect();
            assert!(reports.eqsat.iter().all(|r| r.limit.is_none()), "{name} {bucket}: {text}");
            snapshot(&format!("{name}.{bucket}.txt"), &without_lines(&(text + &kernels)));
            let (_, strict) = compile(&m, &options(prefill, Numerics::Strict));
            assert!(strict.eqsat.iter().all(|r| r.limit.is_none()), "{name} {bucket}, strict");
        }
    }
}

/// Reports as JSON have what the text has.
#[test]
fn reports_are_data() {
    let (_, reports) = compile(&model(GEMMA, mixed), &options(false, Numerics::Fast));
    let json = serde_json::to_value(&reports.eqsat).unwrap();
    let lines = |key: &str| -> Vec<serde_json::Value> {
        json.as_array().unwrap().iter().flat_map(|r| r[key].as_array().unwrap().clone()).collect()
    };
    assert!(lines("taken").iter().any(|t| t["rule"] == "merge-linears" && t["saves"]["launches"].as_u64() >= Some(1)));
    let apart = |n: &serde_json::Value| n["why"].as_str().is_some_and(|w| w.starts_with("layouts differ: "));
    let place = |v: &serde_json::Value| {
        let (file, line) = v.as_str().unwrap().rsplit_once(':').unwrap();
        file.ends_with("gemma3.rs") && line.parse::<u32>().is_ok()
    };
    let places = |n: &serde_json::Value| n["at"].as_array().is_some_and(|a| !a.is_empty() && a.iter().all(place));
    assert!(lines("not_taken").iter().any(|n| n["rule"] == "merge-linears" && apart(n) && places(n)));
}

/// Kernels of each decoder layer, by the analysis in `docs/architecture.md`.
#[test]
fn decoder_layers_have_the_fewest_kernels() {
    let of = |m: &Module, micro, numerics| -> Vec<(usize, Vec<&'static str>)> {
        let target = Target { micro, ..Target::CPU };
        let options = Options { target, ..options(false, numerics) };
        // Attention in pieces is a choice beyond the fewest.
        let pipeline = manager::default_pipeline().replace("eqsat", "eqsat{rules=-attend-split}");
        let (_, reports) = manager::run(Ir::Graph(m.clone()), &pipeline, &options, &mut |_, _| {}).unwrap();
        let layers = reports.kernels.into_iter().filter(|k| k.function.contains(".layer"));
        layers.map(|k| (k.calls, k.names)).collect()
    };
    let norm = ["quantize", "qlinear"];
    // The gated product quantizes its result.
    let network = ["quantize", "glu_linear", "qlinear"];
    let llama = [&norm[..], &["kv_append", "attend", "qlinear"], &network].concat();
    assert_eq!(of(&model(LLAMA, q4), true, Numerics::Fast), [(3, llama)]);
    let loops = [&norm[..], &["kv_append", "attend", "qlinear"], &norm, &norm].concat();
    assert_eq!(of(&model(LLAMA, q4), false, Numerics::Fast), [(3, loops)]);
    let strict = ["rms_norm", "linear", "kv_append", "attend", "linear", "rms_norm", "linear", "linear"];
    let strict = strict.map(|n| if n == "rms_norm" { "reduce_sum" } else { n }).to_vec();
    assert_eq!(of(&model(LLAMA, q4), true, Numerics::Strict), [(3, strict)]);
    // Beside a matrix unit activations are converted by what computes them.
    let options = Options { target: Target::MATRIX, ..options(true, Numerics::Fast) };
    let (p, reports) = compile(&model(LLAMA, q4), &options);
    let layer = reports.kernels.iter().find(|k| k.function.contains(".layer")).unwrap();
    let pairs = ["reduce_sum", "qlinear", "kv_append", "attend", "qlinear", "reduce_sum", "glu_linear", "qlinear"];
    assert_eq!(layer.names, pairs);
    let text = marquetry_ir::text::print_program(&p);
    assert!(text.contains("micro \"pairs\"") && text.contains("micro \"gate silu bf16\"") && !text.contains("act8"));
    // For few tokens making panels would take longer than it saves, were it not for launches, which outweigh weights as small as these.
    let few = ["n", "r"].map(|s| (s.to_string(), Narrow::Range(1, 8)));
    let sizes = options.sizes.clone().into_iter().chain(few).collect();
    let few = Options { sizes, target: Target { launch_ps: 0, ..Target::MATRIX }, ..options };
    let text = marquetry_ir::text::print_program(&compile(&model(LLAMA, q4), &few).0);
    assert!(text.contains("micro \"dot") && !text.contains("micro \"pairs\""));
    // Two halves: attention and feed-forward network. Windows differ by layer, networks do not.
    let attention = [&norm[..], &["reduce_sum", "kv_append", "reduce_sum", "attend", "qlinear", "reduce_sum"]].concat();
    let network = [&network[..], &["reduce_sum"]].concat();
    let gemma = of(&model(GEMMA, q4), true, Numerics::Fast);
    let calls: usize = gemma.iter().map(|(calls, _)| calls).sum();
    assert!(gemma.iter().all(|(_, names)| *names == attention || *names == network), "{gemma:?}");
    assert_eq!(calls, 12, "{gemma:?}");
}

/// The layout of weights is a choice by cost: where memory is free and dequantization dear, weights are held as f32.
#[test]
fn the_target_decides_the_layout() {
    let m = model(LLAMA, q4);
    let cpu = options(true, Numerics::Strict);
    let target = Target { resident_ps: 0, dequant_ps: 1000, ..Target::CPU };
    let [(small, _), (wide, reports)] = [compile(&m, &cpu), compile(&m, &Options { target, ..cpu.clone() })];
    let layouts = |p: &Program| p.weights.iter().map(|w| w.elem).filter(|e| e.scalar().is_none()).collect::<Vec<_>>();
    assert!(layouts(&small).iter().all(|e| matches!(e, Elem::Packed(_))), "{:?}", layouts(&small));
    assert!(layouts(&wide).contains(&Elem::Rows8(DType::F32)), "{:?}", layouts(&wide));
    assert!(small.kernels != wide.kernels);
    assert!(reports.eqsat.iter().flat_map(|r| &r.taken).any(|t| t.rule == "pack-linear-wide"));
}

/// Attention that rotates its queries and quantizes its result, and the other kernels of a layer, give the numbers of the graph.
#[test]
fn kernels_of_a_layer_keep_the_numbers() {
    let one = LLAMA.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 1").replace("1024", "64");
    let m = model(&one, q4);
    for prefill in [false, true] {
        let check = Some(marquetry_passes::check::Check { seed: 1, tolerance: None });
        let options = Options { check, ..options(prefill, Numerics::Fast) };
        let (p, reports) = compile(&m, &options);
        assert!(p.kernels.iter().any(|k| k.name.contains("attend") && k.buffers.iter().any(|b| b.name == "query")));
        let lowered = reports.passes.iter().find(|p| p.pass == "lower").unwrap();
        assert!(lowered.checked.is_some());
    }
}

/// A constant factor on a product, and the gain of a norm, take neither a launch nor memory: folding them into float weights would
/// save neither.
#[test]
fn scales_and_gains_take_no_kernel() {
    let network = |scale: &str, gain: &str| {
        let text = format!(
            "sym \"n\" in 1..=64
            param \"g\": f32[64]
            param \"a\": f32[128, 64]
            param \"b\": f32[64, 128]
            func @f(%0 \"x\": f32[n, 64]) {{
              %1 = {gain} : f32[64]
              %2 = rms_norm %0, %1 {{eps = 0.00001}} : f32[n, 64]
              %3 = param {{name = \"a\"}} : f32[128, 64]
              %4 = linear %2, %3 : f32[n, 128]
              %5 = const {{value = 0.3, shape = [], dtype = f32}} : f32[]
              %6 = {scale} : f32[n, 128]
              %7 = silu %6 : f32[n, 128]
              %8 = param {{name = \"b\"}} : f32[64, 128]
              %9 = linear %7, %8 : f32[n, 64]
              %10 = add %0, %9 : f32[n, 64]
              return \"y\" = %10
            }}"
        );
        let (p, _) = manager::compile(&parse_module(&text).unwrap(), &options(false, Numerics::Strict)).unwrap();
        (p.launches.len(), p.arena_bytes, p.weights.iter().filter(|w| w.shape.len() == 2).count())
    };
    let (scaled, gained) = ("mul %4, %5", "param {name = \"g\"}");
    let bare = network("reshape %4 {shape = [n, 128]}", "const {value = 1.0, shape = [64], dtype = f32}");
    assert_eq!(network(scaled, gained), bare);
    assert_eq!(bare.0, 3);
}

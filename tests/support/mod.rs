//! What the tests of graphs share: reference cases, and a session that feeds a traced step through the interpreter.

#![allow(dead_code, reason = "each test crate uses a part")]

use std::collections::HashMap;
use std::path::PathBuf;

use marquetry_frontend::config::ModelConfig;
use marquetry_frontend::models::{TextModel, trace_model};
use marquetry_frontend::safetensors::Safetensors;
use marquetry_frontend::weights::Weights;
use marquetry_frontend::{DType, Limits};
use marquetry_ir::graph::interp::{Data, Tensor, Val, run_function};
use marquetry_ir::graph::{Module, Ty};
use marquetry_ir::{Dim, Elem};
use marquetry_passes::bind;

/// Sizes that the tests trace for.
pub const LIMITS: Limits = Limits { tokens: 64, sequences: 2, context: 128, page: 16 };
/// Pages of the cache.
pub const PAGES: usize = 16;

/// Hands the reference cases of models that continue text to a macro: a name for a test, and the case.
#[macro_export]
macro_rules! reference_cases {
    ($then:ident) => {
        $then! {
            llama_base "llama/base";
            llama_biases_and_shards "llama/bias-sharded-old";
            llama_scaled_rope_tied_bf16 "llama/llama3-rope-tied-bf16";
            llama_new_style_config "llama/new-style-config";
            mistral_window "mistral/swa16";
            mixtral_experts "mixtral/e4k2";
            gemma_head_size "gemma/headdim32-bf16";
            gemma2_caps_and_windows "gemma2/caps-default";
            gemma3_text "gemma3/text";
            gemma3_linear_rope_bf16 "gemma3/text-linear-rope-bf16";
            gemma3_nested "gemma3/nested-text";
            gpt2_transposed "gpt2/prefixed";
            gpt_bigcode_one_key_head "gpt_bigcode/mqa";
            gpt_neox_parallel "gpt_neox/parallel";
            gpt_neox_sequential "gpt_neox/sequential-full-rotary";
            baichuan_joined "baichuan/7b";
            baichuan2_slopes "baichuan/baichuan2-13b-alibi";
            chatglm_half_rotation "chatglm3/gqa2";
            cohere_norms "cohere/gqa-qknorm";
            internlm_biases "internlm/bias";
            internlm2_by_group "internlm2/odd-bf16";
            minicpm_scales "minicpm/tied";
            minicpm_experts "minicpm/moe";
            orion_layer_norms "orion/mha";
            phi_half_rotation "phi/half-rotary";
            phi3_long_factors "phi3/longrope";
            phi3_partial_window "phi3/phi4mini-like";
            qwen_grows_and_scales "qwen/logn-ntk";
            qwen2_windows_and_yarn "qwen2/swa-yarn";
            qwen2_moe_shared_expert "qwen2_moe/norm-topk-sharded";
            qwen3_norms "qwen3/tied";
            rwkv5_recurrence "rwkv5/base";
            rwkv6_recurrence "rwkv6/base";
            stablelm_parallel_norms "stable_lm/parallel-qknorm";
            stablelm_partial_rotation "stable_lm/partial25";
            starcoder2_window "starcoder2/swa16";
        }
    };
}

macro_rules! paths {
    ($($test:ident $path:literal;)*) => {
        /// The reference cases of models that continue text, by architecture.
        pub const CASES: &[&str] = &[$($path),*];
    };
}
reference_cases!(paths);

/// A prompt and the logits of each of its positions.
pub struct Prompt {
    pub ids: Vec<i32>,
    pub logits: Vec<f32>,
}

/// A tiny model with reference outputs.
pub struct Case {
    pub name: String,
    pub text: TextModel,
    /// The traced module with the storage types of the weight file.
    pub module: Module,
    pub params: HashMap<String, Tensor>,
    pub tolerance: f32,
    pub std: f32,
    pub short: Prompt,
    pub long: Prompt,
    pub greedy: Vec<i32>,
}

fn oracles() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracles")
}

fn i32s(bytes: &[u8]) -> Vec<i32> {
    bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

impl Case {
    pub fn load(name: &str) -> Case {
        let dir = oracles().join(name);
        let config = ModelConfig::open(dir.join("config.json")).unwrap();
        let text = trace_model(&config, LIMITS).unwrap();
        let mut weights = Weights::open(&dir).unwrap();
        weights.declare(&text.stored).unwrap();
        let mut params = HashMap::new();
        let mut elems = HashMap::new();
        for p in &text.module.params {
            let view = weights.get(&p.name).unwrap_or_else(|| panic!("{name}: no weight {}", p.name));
            let Ty::Tensor(t) = &p.ty else { panic!("{} is a state", p.name) };
            let declared: Vec<Dim> = view.shape.iter().map(|&d| d.into()).collect();
            assert_eq!(t.shape, declared, "{}", p.name);
            params.insert(p.name.clone(), host(view.elem, &view.shape, view.data().into_owned()));
            elems.insert(p.name.clone(), view.elem);
        }
        let module = bind::storage(&text.module, &elems).unwrap();
        let expected = Safetensors::open(dir.join("expected.safetensors")).unwrap();
        let get = |name: &str| expected.data(expected.tensor(name).unwrap());
        let prompt = |which: &str| Prompt {
            ids: i32s(get(&format!("{which}.input_ids"))),
            logits: f32s(get(&format!("{which}.logits"))),
        };
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("case.json")).unwrap()).unwrap();
        Case {
            name: name.into(),
            tolerance: json["tolerance"]["f32_max_abs"].as_f64().unwrap() as f32,
            std: json["stats"]["logit_std"].as_f64().unwrap() as f32,
            short: prompt("short"),
            long: prompt("long"),
            greedy: i32s(get("greedy.ids")),
            text,
            module,
            params,
        }
    }
}

/// A host tensor of encoded elements.
pub fn host(elem: Elem, shape: &[usize], bytes: Vec<u8>) -> Tensor {
    let data = match elem {
        Elem::Scalar(DType::F32) => Data::F32(f32s(&bytes).into()),
        _ => Data::Bytes(elem, bytes.into()),
    };
    Tensor { shape: shape.to_vec(), data }
}

/// One token of a step.
#[derive(Clone, Copy, Debug)]
pub struct Token {
    pub id: i32,
    pub pos: usize,
    pub seq: usize,
}

/// A module with its caches. Slots that were never written hold NaN.
pub struct Session<'a> {
    pub module: &'a Module,
    pub params: &'a HashMap<String, Tensor>,
    pub states: HashMap<String, Val>,
    /// Pages of each sequence; deliberately not in order.
    pub pages: [Vec<i32>; 2],
    /// Length that each sequence is known to get.
    pub expected: [usize; 2],
}

impl<'a> Session<'a> {
    pub fn new(module: &'a Module, params: &'a HashMap<String, Tensor>) -> Session<'a> {
        let slots = PAGES * LIMITS.page;
        let state = |d: &marquetry_ir::graph::Decl| {
            let k = match &d.ty {
                Ty::Kv(k) => k,
                Ty::Rows(r) => {
                    let shape: Vec<usize> = [2].into_iter().chain(r.shape.iter().copied()).collect();
                    let stale = vec![f32::NAN; shape.iter().product()];
                    return (d.name.clone(), Val::Rows(stale.into(), shape));
                }
                Ty::Tensor(_) => panic!("{} is a tensor", d.name),
            };
            let empty = || vec![f32::NAN; slots * k.heads * k.dim].into();
            (d.name.clone(), Val::Kv([empty(), empty()], [slots, k.heads, k.dim]))
        };
        let states = module.states.iter().map(state).collect();
        // Odd pages downwards for one sequence, even ones upwards for the other.
        let pages = [(0..8).map(|i| 15 - 2 * i).collect(), (0..8).map(|i| 2 * i).collect()];
        Session { module, params, states, pages, expected: [0; 2] }
    }

    /// Logits of the tokens of `rows`.
    pub fn step(&mut self, tokens: &[Token], rows: &[usize]) -> Vec<f32> {
        let columns = tokens.iter().map(|t| t.pos / LIMITS.page + 1).max().unwrap();
        let sequences = tokens.iter().map(|t| t.seq + 1).max().unwrap();
        let vector = |f: &dyn Fn(&Token) -> i32| {
            Val::Tensor(Tensor::i32(&[tokens.len()], &tokens.iter().map(f).collect::<Vec<_>>()))
        };
        let pages: Vec<i32> = self.pages[..sequences].iter().flat_map(|p| p[..columns].to_vec()).collect();
        let slot =
            |t: &Token| self.pages[t.seq][t.pos / LIMITS.page] * LIMITS.page as i32 + (t.pos % LIMITS.page) as i32;
        let entry = self.module.entry().unwrap();
        let args = entry.args.iter().map(|(name, _)| match name.as_str() {
            "tokens" => vector(&|t| t.id),
            "pos" => vector(&|t| t.pos as i32),
            "row" => vector(&|t| t.seq as i32),
            "span" => vector(&|t| {
                let after = tokens.iter().filter(|o| o.seq == t.seq).map(|o| o.pos + 1).max();
                after.unwrap_or(0).max(self.expected[t.seq]) as i32
            }),
            "seq" => vector(&|t| t.seq as i32),
            "slot" => vector(&slot),
            "pages" => Val::Tensor(Tensor::i32(&[sequences, columns], &pages)),
            "rows" => {
                let rows: Vec<i32> = rows.iter().map(|&r| r as i32).collect();
                Val::Tensor(Tensor::i32(&[rows.len()], &rows))
            }
            other => panic!("input {other}"),
        });
        let args = args.collect();
        let size = |name: &str| match name {
            "n" => tokens.len(),
            "s" => sequences,
            "m" => columns,
            "r" => rows.len(),
            "p" => PAGES,
            "q" => 2,
            other => panic!("symbol {other}"),
        };
        let sizes: Vec<i64> = self.module.syms.0.iter().map(|d| size(&d.name) as i64).collect();
        let results =
            run_function(self.module, entry, &self.module.syms, &sizes, args, &mut self.states, self.params).unwrap();
        match &results[..] {
            [Val::Tensor(t)] => t.to_f32().unwrap().to_vec(),
            other => panic!("{} results", other.len()),
        }
    }

    /// Logits of every token of a prompt, fed in pieces of the given lengths.
    pub fn prompt(&mut self, ids: &[i32], pieces: &[usize]) -> Vec<f32> {
        let mut start = 0;
        self.expected[0] = ids.len();
        let mut logits = vec![];
        for &len in pieces {
            let tokens: Vec<Token> = (start..start + len).map(|pos| Token { id: ids[pos], pos, seq: 0 }).collect();
            logits.extend(self.step(&tokens, &(0..len).collect::<Vec<_>>()));
            start += len;
        }
        assert_eq!(start, ids.len());
        logits
    }
}

/// Largest distance; infinite where one side is not finite or lengths differ.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return f32::INFINITY;
    }
    let d = |(a, b): (&f32, &f32)| if (a - b).is_finite() { (a - b).abs() } else { f32::INFINITY };
    a.iter().zip(b).map(d).fold(0.0, f32::max)
}

/// Standard deviation.
pub fn deviation(v: &[f32]) -> f32 {
    let mean = v.iter().sum::<f32>() / v.len() as f32;
    (v.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / v.len() as f32).sqrt()
}

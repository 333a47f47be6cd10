//! `bench`: speed of prefill and decoding.

use std::sync::Arc;
use std::time::Instant;

use marquetry::Error;
use marquetry::engine::{Engine, Rows};
use marquetry::passes::Numerics;
use serde_json::{Value, json};

use super::info::peak_rss;
use super::options::{EngineArgs, ModelArgs, rate, with_explanation};
use super::ui::Ui;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    prompt: u32,
    /// Tokens decoded after it, one at a time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    r#gen: u32,
    /// Repetitions; medians are reported. One more run before them is not counted.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    reps: u16,
    /// Passes to run instead of the default ones, to measure what one is worth.
    #[arg(long, value_name = "PASSES")]
    pipeline: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Seconds of one repetition.
#[derive(Clone, Copy, Debug)]
struct Rep {
    prefill_s: f64,
    decode_s: f64,
}

pub fn run(args: &Args, ui: &Ui) -> Result<(), Error> {
    let mut options = args.engine.options();
    options.watch.pipeline.clone_from(&args.pipeline);
    let mut engine = Engine::new(Arc::new(args.model.open(ui)?), options)?;
    engine.prepare()?;
    let (prompt, count) = (tokens(args.prompt as usize, engine.model().text.vocab), args.r#gen as usize);
    repetition(&mut engine, &prompt, count)?;
    let mut reps = vec![];
    for i in 1..=args.reps {
        let rep = repetition(&mut engine, &prompt, count)?;
        let (p, d) = (rate(prompt.len(), rep.prefill_s), rate(count, rep.decode_s));
        ui.progress(&format!("{i} of {}: prefill {p:.1} tokens/s, decode {d:.1} tokens/s", args.reps));
        reps.push(rep);
    }
    let report = with_explanation(report(&engine, &reps, prompt.len(), count), &engine);
    if args.json {
        return ui.json(&report);
    }
    let get = |key: &str| report.get(key).and_then(Value::as_f64).unwrap_or(0.0);
    ui.line(&format!("prefill {:.1} tokens/s ({} tokens)", get("prefill_tok_s"), prompt.len()))?;
    ui.line(&format!("decode  {:.1} tokens/s ({count} tokens)", get("decode_tok_s")))?;
    ui.line(&format!("load {:.2} s, pack {:.2} s, compile {:.2} s", get("load_s"), get("pack_s"), get("compile_s")))
}

/// Token ids without meaning, always the same.
fn tokens(count: usize, vocab: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 7919 + 13) % vocab.max(1)) as u32).collect()
}

fn repetition(engine: &mut Engine, prompt: &[u32], count: usize) -> Result<Rep, Error> {
    engine.reset()?;
    let start = Instant::now();
    let mut token = best(&engine.prefill(prompt, Rows::Last)?);
    let prefill_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for _ in 0..count {
        token = best(engine.decode(token)?);
    }
    Ok(Rep { prefill_s, decode_s: start.elapsed().as_secs_f64() })
}

fn best(logits: &[f32]) -> u32 {
    let best = logits.iter().zip(0u32..).fold((f32::NEG_INFINITY, 0), |b, (&v, i)| if v > b.0 { (v, i) } else { b });
    best.1
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n == 0 { 0.0 } else { (values[(n - 1) / 2] + values[n / 2]) / 2.0 }
}

fn report(engine: &Engine, reps: &[Rep], prompt: usize, count: usize) -> Value {
    let prefill = |r: &Rep| rate(prompt, r.prefill_s);
    let decode = |r: &Rep| rate(count, r.decode_s);
    let each: Vec<Value> = reps
        .iter()
        .map(|r| {
            json!({
                "prefill_s": r.prefill_s, "decode_s": r.decode_s,
                "prefill_tok_s": prefill(r), "decode_tok_s": decode(r),
            })
        })
        .collect();
    let stats = engine.stats();
    json!({
        "model": engine.model().path.display().to_string(),
        "backend": engine.options().backend.name(),
        "numerics": match engine.numerics() { Numerics::Strict => "strict", Numerics::Fast => "fast" },
        "threads": engine.options().threads,
        "prompt": prompt, "gen": count,
        "prefill_tok_s": median(reps.iter().map(prefill).collect()),
        "decode_tok_s": median(reps.iter().map(decode).collect()),
        "load_s": engine.model().load_s, "pack_s": stats.pack_s, "compile_s": stats.compile_s,
        "cached_programs": stats.cached_programs, "weight_bytes": stats.weight_bytes,
        "cached_weights": stats.cached_weights,
        "peak_rss_bytes": peak_rss(),
        "reps": each,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_tokens() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(vec![]), 0.0);
        assert!(tokens(600, 7).iter().all(|&t| t < 7));
        assert_eq!(best(&[1.0, 3.0, 3.0]), 1);
    }
}

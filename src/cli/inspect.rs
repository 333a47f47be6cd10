//! `inspect`: a model, or what a stage of compilation makes of it.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use marquetry::Error;
use marquetry::codegen::{self, compile};
use marquetry::engine::{Backend, Bucket, bucket_options};
use marquetry::frontend::safetensors::Safetensors;
use marquetry::inspect::{Compilation, page, weights_of};
use marquetry::ir::program::Program;
use marquetry::model::LoadedModel;
use marquetry::passes::Numerics;
use marquetry::passes::dot::dot;
use marquetry::passes::manager::{self, Ir, Options, TRACE, pipeline_between, print};
use marquetry::runtime::files::write_file;
use marquetry::runtime::micro::Routines;
use marquetry::start::{Source, Start};
use marquetry::watch::Place;
use serde_json::{Value, json};

use super::options::{BackendArg, FromArgs, ModelArgs, NumericsArg, WatchArgs, with_reports};
use super::ui::Ui;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Show the IR after this stage instead of the model's settings and tensors.
    #[arg(long, value_enum)]
    stage: Option<Stage>,
    /// The function.
    #[arg(long, value_enum, default_value = "decode")]
    bucket: BucketArg,
    /// What may happen to numbers [default: fast for quantized weights, strict otherwise].
    #[arg(long, value_enum)]
    numerics: Option<NumericsArg>,
    /// What makes the machine code.
    #[arg(long, value_enum, default_value = "cranelift")]
    backend: BackendArg,
    /// Routines for vector instructions: those of a level, `none` for only what the compiler generates [default: best].
    #[arg(long, value_name = "LEVEL", value_parser = super::options::routines, default_value = "best", hide_default_value = true)]
    routines: Routines,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    from: FromArgs,
    /// Write a page that shows every stage, the kernels, the memory plan and the weights; it loads nothing.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["stage", "json"])]
    html: Option<PathBuf>,
    /// Write the entry function of a graph stage to FILE as a DOT graph.
    #[arg(long, value_name = "FILE", requires = "stage")]
    dot: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A stage of compilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// As traced, with the element types of the weights.
    Trace,
    /// Canonical.
    Canon,
    /// Equal layers made one function.
    Outline,
    /// After equality saturation.
    Eqsat,
    /// Grouped into kernels.
    Fused,
    /// Loops.
    Loops,
    /// Scheduled loops.
    Scheduled,
    /// Planned: launches over buffers in the arena.
    Plan,
    /// Machine code.
    Asm,
}

impl Stage {
    /// What the pass manager calls it.
    fn name(self) -> &'static str {
        match self {
            Stage::Trace => TRACE,
            Stage::Canon => "canon",
            Stage::Outline => "outline",
            Stage::Eqsat => "eqsat",
            Stage::Fused => "fused",
            Stage::Loops => "loops",
            Stage::Scheduled => "scheduled",
            Stage::Plan | Stage::Asm => "plan",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BucketArg {
    /// One token.
    Decode,
    /// Up to 24 tokens, on targets with a matrix unit.
    Few,
    /// Many tokens.
    Prefill,
}

pub fn run(args: &Args, ui: &Ui) -> Result<(), Error> {
    if args.stage.is_none() && args.from.compile_from.is_some() {
        return Err(Error::usage("--compile-from goes on from IR to a stage; name it with --stage"));
    }
    let path = Path::new(&args.model.model);
    if args.stage.is_none() && path.extension().is_some_and(|e| e == "safetensors") {
        return tensors_of_file(path, args.json, ui);
    }
    let model = args.model.open(ui)?;
    if let Some(file) = &args.html {
        return write_html(&model, file, args, ui);
    }
    match args.stage {
        None => summary(&model, args.json, ui),
        Some(stage) => show(&model, stage, args, ui),
    }
}

fn compile_options(model: &LoadedModel, args: &Args) -> (Bucket, Options) {
    let default = if model.quantized() { Numerics::Fast } else { Numerics::Strict };
    let numerics = args.numerics.map_or(default, Numerics::from);
    let bucket = match args.bucket {
        BucketArg::Decode => Bucket::Decode,
        BucketArg::Few => Bucket::Few,
        BucketArg::Prefill => Bucket::Prefill,
    };
    let mut options = bucket_options(bucket, numerics, model.text.context.min(32_768));
    let level = args.routines.level();
    (options.target.micro, options.target.matrix) =
        (level.is_some(), numerics == Numerics::Fast && level.is_some_and(|l| l.matrix()));
    (bucket, options)
}

fn assembly(p: &Program, backend: BackendArg, routines: Routines) -> Result<Vec<String>, Error> {
    let backend = Backend::from(backend).generator();
    let backend =
        backend.ok_or_else(|| Error::usage("the interpreter has no machine code; use `--backend cranelift`"))?;
    let options = codegen::Options { disassemble: true, routines: routines.lookup(), ..codegen::Options::default() };
    let code = compile(backend, &p.kernels, &p.syms, &options)?;
    Ok((0..code.len()).map(|i| code.asm(i).unwrap_or_default().to_string()).collect())
}

fn write_html(model: &LoadedModel, file: &Path, args: &Args, ui: &Ui) -> Result<(), Error> {
    let (bucket, options) = compile_options(model, args);
    let traced = Ir::Graph(model.bound_module()?);
    let mut stages = vec![(TRACE.to_string(), traced.clone())];
    let watch = args.watch.watch();
    let (last, _) = manager::run(traced, &manager::default_pipeline(), &watch.options(&options), &mut |pass, ir| {
        stages.push((pass.to_string(), ir.clone()));
    })?;
    let asm = match &last {
        Ir::Program(p) => assembly(p, args.backend, args.routines)?,
        Ir::Graph(_) => vec![],
    };
    let weights = &model.weights;
    let views = weights.names().filter_map(|n| Some((n, weights.get(n)?)));
    let given: Vec<_> =
        views.map(|(n, v)| (n.to_string(), v.shape.to_vec(), v.elem.to_string(), v.bytes.len())).collect();
    let name = model.path.file_name().unwrap_or(model.path.as_os_str()).to_string_lossy();
    let bytes: usize = given.iter().map(|w| w.3).sum();
    let numerics = format!("{:?}", options.numerics).to_lowercase();
    let facts = [
        ("architecture", model.config.arch.clone()),
        ("function", bucket.name().into()),
        ("numerics", numerics),
        ("weights", format!("{:.1} MB", bytes as f64 / 1e6)),
    ];
    let c = Compilation {
        title: name.into_owned(),
        facts: facts.map(|(k, v)| (k.to_string(), v)).into(),
        weights: weights_of(&stages, &given),
        stages,
        asm,
    };
    let page = page(&c);
    write_file(file, page.as_bytes())?;
    ui.progress(&format!("{}: {:.1} MB", file.display(), page.len() as f64 / 1e6));
    Ok(())
}

fn show(model: &LoadedModel, stage: Stage, args: &Args, ui: &Ui) -> Result<(), Error> {
    let (bucket, options) = compile_options(model, args);
    let (ir, from) = match args.from.source() {
        Some(source) => start(&source, bucket)?,
        None => (Ir::Graph(model.bound_module()?), TRACE.to_string()),
    };
    let pipeline = pipeline_between(&from, Some(stage.name()))?;
    let place = Place { stage: &from, sub: None };
    let (ir, reports) = args.watch.watch().run(ir, &pipeline, &options, place, &mut |line| ui.progress(line))?;
    if let Some(file) = &args.dot {
        write_dot(file, &ir)?;
    }
    let text = match (stage, &ir) {
        (Stage::Asm, Ir::Program(program)) => {
            let kernels = program.kernels.iter().zip(assembly(program, args.backend, args.routines)?);
            kernels.map(|(k, asm)| format!("; {}\n{asm}\n", k.name)).collect()
        }
        _ => print(&ir),
    };
    let stage = stage.to_possible_value().map_or(String::new(), |v| v.get_name().to_string());
    if !args.json {
        return ui.print(&text);
    }
    let out = json!({ "stage": stage, "bucket": bucket.name(), "text": text });
    ui.json(&with_reports(out, &reports, &args.watch))
}

/// The IR that is given: that of the bucket, where the dumps of an engine are.
fn start(source: &Source, bucket: Bucket) -> Result<(Ir, String), Error> {
    let of_bucket = if source.path.join(bucket.name()).is_dir() { source.bucket(bucket)? } else { None };
    let Start { ir, stage, .. } = of_bucket.map_or_else(|| source.read(), Ok)?;
    Ok((ir, stage))
}

fn write_dot(file: &Path, ir: &Ir) -> Result<(), Error> {
    let entry = match ir {
        Ir::Graph(m) => m.entry().map(|f| dot(&m.syms, f)),
        Ir::Program(_) => None,
    };
    let text = entry.ok_or_else(|| Error::usage("--dot shows graphs; choose a stage from trace to fused"))?;
    Ok(write_file(file, text.as_bytes())?)
}

fn tensors_of_file(path: &Path, as_json: bool, ui: &Ui) -> Result<(), Error> {
    let file = Safetensors::open(path)?;
    let rows = file.tensors().iter().map(|t| tensor(&t.name, &t.dtype.to_string(), &t.shape, t.bytes.len()));
    let tensors: Vec<Value> = rows.collect();
    match as_json {
        true => ui.json(&json!({ "path": path.display().to_string(), "tensors": tensors })),
        false => tensors.iter().try_for_each(|t| ui.line(&tensor_line(t))),
    }
}

fn tensor(name: &str, elem: &str, shape: &[usize], bytes: usize) -> Value {
    json!({ "name": name, "elem": elem, "shape": shape, "bytes": bytes })
}

fn tensor_line(t: &Value) -> String {
    let text = |key: &str| t.get(key).and_then(Value::as_str).unwrap_or_default();
    let shape = t.get("shape").map(Value::to_string).unwrap_or_default();
    let bytes = t.get("bytes").and_then(Value::as_u64).unwrap_or(0);
    format!("{:<56} {:<10} {:<16} {:>12} bytes", text("name"), text("elem"), shape, bytes)
}

fn summary(model: &LoadedModel, as_json: bool, ui: &Ui) -> Result<(), Error> {
    let weights = &model.weights;
    let views = weights.names().filter_map(|n| Some((n, weights.get(n)?)));
    let tensors: Vec<Value> = views.map(|(n, v)| tensor(n, &v.elem.to_string(), &v.shape, v.bytes.len())).collect();
    let views = || weights.names().filter_map(|n| weights.get(n));
    let parameters: usize = views().map(|v| v.shape.iter().product::<usize>()).sum();
    let bytes: usize = views().map(|v| v.bytes.len()).sum();
    let tokens = model.tokenizer.as_ref().map(|t| t.vocab_size());
    let template = model.tokenizer.as_ref().is_some_and(|t| t.chat_template().is_some());
    if as_json {
        return ui.json(&json!({
            "path": model.path.display().to_string(), "arch": model.config.arch, "parameters": parameters, "bytes": bytes,
            "vocab": model.text.vocab, "context": model.text.context, "eos": model.text.eos,
            "tokenizer_tokens": tokens, "chat_template": template,
            "config": model.config.values, "tensors": tensors, "ignored": weights.ignored(),
        }));
    }
    ui.line(&format!("{}: {}", model.path.display(), model.config.arch))?;
    ui.line(&format!("{:.1} M parameters in {:.1} MB", parameters as f64 / 1e6, bytes as f64 / 1e6))?;
    ui.line(&format!("vocabulary {}, context {}", model.text.vocab, model.text.context))?;
    let tokenizer = tokens.map_or("no tokenizer".into(), |n| format!("tokenizer of {n} tokens"));
    ui.line(&format!("{tokenizer}, {} chat template", if template { "a" } else { "no" }))?;
    ui.line("")?;
    model.config.values.iter().try_for_each(|(k, v)| ui.line(&format!("{k} = {}", shortened(v))))?;
    ui.line("")?;
    tensors.iter().try_for_each(|t| ui.line(&tensor_line(t)))
}

fn shortened(v: &Value) -> String {
    let text = v.to_string();
    match text.char_indices().nth(100) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_is_one_of_the_manager() {
        for stage in Stage::value_variants() {
            let pipeline = pipeline_between(TRACE, Some(stage.name())).unwrap();
            assert_eq!(pipeline.is_empty(), *stage == Stage::Trace, "{stage:?}: {pipeline}");
        }
    }
}

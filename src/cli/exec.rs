//! `exec`: IR in a file, run once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use marquetry::Error;
use marquetry::engine::Backend;
use marquetry::exec;
use marquetry::frontend::safetensors::Safetensors;
use marquetry::passes::Numerics;
use marquetry::passes::check::{Bound, Inputs, Outcome, distance};
use marquetry::passes::eqsat::Exact;
use marquetry::passes::manager::{Ir, Options, pipeline_between};
use marquetry::runtime::files;
use marquetry::start::{Source, Start};
use marquetry::watch::Place;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

use super::options::{BackendArg, NumericsArg, WatchArgs};
use super::ui::Ui;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Text IR of either level.
    file: PathBuf,
    /// What runs it: the interpreter of its level, or machine code, for which graphs are compiled.
    #[arg(long, value_enum, default_value = "interp")]
    backend: BackendArg,
    /// Run by this too, and fail unless the results agree.
    #[arg(long, value_enum)]
    against: Option<BackendArg>,
    /// Arguments, parameters and states: a safetensors file, or random ones.
    #[arg(long, value_name = "FILE|random:SEED", default_value = "random:0")]
    args: String,
    /// The value of a symbol, such as n=4.
    #[arg(long = "size", value_name = "NAME=VALUE", value_parser = size)]
    sizes: Vec<(String, i64)>,
    /// What may happen to numbers when a graph is compiled [default: what the file records, or strict].
    #[arg(long, value_enum)]
    numerics: Option<NumericsArg>,
    /// Threads of machine code.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Write results and states as f32 to this safetensors file instead of a summary to stdout.
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    watch: WatchArgs,
}

fn size(text: &str) -> Result<(String, i64), String> {
    let value = text.split_once('=').and_then(|(n, v)| Some((n.trim().to_string(), v.trim().parse().ok()?)));
    value.ok_or_else(|| "give a name and a value, such as n=4".into())
}

pub fn run(args: &Args, ui: &Ui) -> Result<(), Error> {
    let source = Source { path: args.file.clone(), stage: None };
    let Start { ir, stage, numerics, .. } = source.read()?;
    let numerics = args.numerics.map(Numerics::from).or(numerics).unwrap_or(Numerics::Strict);
    let inputs = inputs(&ir, args)?;
    let with = |backend: BackendArg| match (Backend::from(backend).generator(), &ir) {
        (None, _) => exec::interpret(&ir, &inputs),
        (Some(backend), Ir::Program(p)) => {
            // Only what the interpreter has run is known to stay inside its buffers.
            exec::interpret(&ir, &inputs)?;
            exec::compiled(p, &inputs, backend, numerics, args.threads.into())
        }
        (Some(backend), Ir::Graph(_)) => {
            let options = Options { numerics, ..Options::default() };
            let place = Place { stage: &stage, sub: None };
            let pipeline = pipeline_between(&stage, None)?;
            let watch = args.watch.watch();
            match watch.run(ir.clone(), &pipeline, &options, place, &mut |line| ui.progress(line))?.0 {
                Ir::Program(p) => exec::compiled(&p, &inputs, backend, numerics, args.threads.into()),
                Ir::Graph(_) => Err(Error::usage("the IR does not compile to a program")),
            }
        }
    };
    let outcome = with(args.backend)?;
    if let Some(other) = args.against {
        let exact = if numerics == Numerics::Fast { Exact::Approximates } else { Exact::Reassociates };
        let bound = args.watch.check_tolerance.map_or(Bound::of(exact), Bound::Most);
        let name = |b: BackendArg| Backend::from(b).name();
        distance(&with(other)?, &outcome, &vec![bound; outcome.len()]).map_err(|what| Error::Differs {
            what: format!("{} and {} disagree: {what}", name(other), name(args.backend)),
        })?;
        ui.progress(&format!("{} agrees", name(other)));
    }
    match &args.output {
        Some(path) => save(path, &outcome),
        None => summary(&inputs, &outcome, args.json, ui),
    }
}

fn inputs(ir: &Ir, args: &Args) -> Result<Inputs, Error> {
    match args.args.strip_prefix("random:") {
        Some(seed) => {
            let seed = seed.parse().map_err(|_| Error::usage(format!("`{seed}` is not a seed; give an integer")))?;
            exec::random(ir, &args.sizes, seed)
        }
        None => exec::read(ir, &args.sizes, &Safetensors::open(Path::new(&args.args))?),
    }
}

fn save(path: &Path, outcome: &Outcome) -> Result<(), Error> {
    let bad = |e: safetensors::SafeTensorError| Error::input(path, e.to_string());
    let mut views = HashMap::new();
    for (name, values) in outcome {
        let view = TensorView::new(Dtype::F32, vec![values.len()], bytemuck::cast_slice(values)).map_err(bad)?;
        views.insert(name.as_str(), view);
    }
    Ok(files::write_file(path, &serialize(views, None).map_err(bad)?)?)
}

fn summary(inputs: &Inputs, outcome: &Outcome, as_json: bool, ui: &Ui) -> Result<(), Error> {
    const SHOWN: usize = 8;
    if as_json {
        let results: serde_json::Map<String, Value> = outcome.iter().map(|(n, v)| (n.clone(), json!(v))).collect();
        let sizes: serde_json::Map<String, Value> = inputs.sizes().iter().map(|(n, v)| (n.clone(), json!(v))).collect();
        return ui.json(&json!({ "sizes": sizes, "results": results }));
    }
    for (name, value) in inputs.sizes() {
        ui.line(&format!("size {name} = {value}"))?;
    }
    for (name, values) in outcome {
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len().max(1) as f64;
        let rms = (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len().max(1) as f64).sqrt();
        let first: Vec<String> = values.iter().take(SHOWN).map(|v| rounded((*v).into())).collect();
        let more = if values.len() > SHOWN { " ..." } else { "" };
        let (mean, rms, n) = (rounded(mean), rounded(rms), values.len());
        ui.line(&format!("{name}: {n} numbers, mean {mean}, rms {rms}: {}{more}", first.join(" ")))?;
    }
    Ok(())
}

/// Three decimals; a zero has no sign.
fn rounded(v: f64) -> String {
    let text = format!("{v:.3}");
    if text == "-0.000" { "0.000".into() } else { text }
}

//! `opt`: passes over IR in a file.

use std::path::PathBuf;

use marquetry::Error;
use marquetry::passes::Numerics;
use marquetry::passes::check::Check;
use marquetry::passes::manager::{Ir, Options, bisect, pipeline_between, print};
use marquetry::passes::schedule::traces;
use marquetry::start::{Source, Start};
use marquetry::watch::Place;
use serde_json::json;

use super::options::{NumericsArg, WatchArgs, with_reports};
use super::ui::Ui;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Text IR of either level, or a directory of dumps.
    file: PathBuf,
    /// Passes with options, such as `canon,eqsat{iterations=8,rules=-swiglu}`; none only checks and prints.
    #[arg(long, conflicts_with = "compile_to")]
    pipeline: Option<String>,
    /// The stage that FILE is at [default: what it records, or trace], or the one to take of a directory.
    #[arg(long, value_name = "STAGE")]
    from_stage: Option<String>,
    /// Run the passes up to this stage.
    #[arg(long, value_name = "STAGE")]
    compile_to: Option<String>,
    /// What may happen to numbers [default: what the file records, or strict].
    #[arg(long, value_enum)]
    numerics: Option<NumericsArg>,
    #[command(flatten)]
    watch: WatchArgs,
    /// Find the first rewrite with which a pass changes results, instead of printing IR.
    #[arg(long)]
    bisect: bool,
    /// Print the steps of schedules, which `schedule{trace=FILE}` applies again, instead of IR.
    #[arg(long, conflicts_with_all = ["bisect", "json"])]
    traces: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, ui: &Ui) -> Result<(), Error> {
    let source = Source { path: args.file.clone(), stage: args.from_stage.clone() };
    let Start { ir, stage, recorded, numerics } = source.read()?;
    let numerics = args.numerics.map(Numerics::from).or(numerics).unwrap_or(Numerics::Strict);
    let options = Options { numerics, ..Options::default() };
    let pipeline = match (&args.pipeline, &args.compile_to) {
        (Some(p), _) => p.clone(),
        (None, Some(to)) => pipeline_between(&stage, Some(to))?,
        (None, None) if args.bisect => pipeline_between(&stage, None)?,
        (None, None) => String::new(),
    };
    let watch = args.watch.watch();
    if args.bisect {
        let check = watch.check.or(Some(Check { seed: 0, tolerance: None }));
        return find(&ir, &pipeline, &Options { check, ..options }, args.json, ui);
    }
    let place = Place { stage: if recorded { &stage } else { "input" }, sub: None };
    let (ir, reports) = watch.run(ir, &pipeline, &options, place, &mut |line| ui.progress(line))?;
    if args.traces {
        let Ir::Program(p) = &ir else {
            return Err(Error::usage("graph IR has no schedules; --compile-to scheduled makes some"));
        };
        return ui.print(&traces(p));
    }
    if !args.json {
        return ui.print(&print(&ir));
    }
    let pass = |p: &marquetry::passes::manager::PassReport| {
        json!({
            "pass": p.pass, "seconds": p.seconds, "nodes_before": p.nodes.0, "nodes_after": p.nodes.1,
            "rewrites": p.rewrites, "checked": p.checked,
        })
    };
    let passes: Vec<_> = reports.passes.iter().map(pass).collect();
    let out = json!({ "text": print(&ir), "passes": passes, "rewrites": reports.rewrites });
    ui.json(&with_reports(out, &reports, &args.watch))
}

fn find(ir: &Ir, pipeline: &str, options: &Options, as_json: bool, ui: &Ui) -> Result<(), Error> {
    let found = bisect(ir, pipeline, options, &mut |n, fails| {
        ui.progress(&format!("with {n} rewrites: {}", if fails { "a pass fails" } else { "good" }));
    })?;
    match (found, as_json) {
        (Some((n, what)), true) => ui.json(&json!({ "rewrite": n, "what": what })),
        (None, true) => ui.json(&json!({ "rewrite": null })),
        (Some((n, what)), false) => ui.line(&format!("rewrite {n} is the first that fails: {what}")),
        (None, false) => ui.line("no rewrite is to blame: every pass keeps the numbers, or fails without rewrites"),
    }
}

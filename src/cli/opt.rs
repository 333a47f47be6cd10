//! `opt`: passes over IR in a file.

use std::fs;
use std::path::{Path, PathBuf};

use marquetry::Error;
use marquetry::ir::graph::{Module, Violation, parse_placed, violations};
use marquetry::ir::text::lexer::render_at;
use marquetry::passes::Numerics;
use marquetry::passes::check::Check;
use marquetry::passes::manager::{
    Ir, Options, Recorded, TRACE, bisect, parse, pipeline_between, print, recorded, verify,
};
use marquetry::watch::Place;
use serde_json::json;

use super::options::{NumericsArg, StageArgs, WatchArgs};
use super::ui::Ui;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Text IR of either level.
    file: PathBuf,
    /// Passes with options, such as `canon,eqsat{iterations=8,rules=-swiglu}`; none only checks and prints.
    #[arg(long, conflicts_with = "compile_to")]
    pipeline: Option<String>,
    #[command(flatten)]
    stage: StageArgs,
    /// What may happen to numbers [default: what the file records, or strict].
    #[arg(long, value_enum)]
    numerics: Option<NumericsArg>,
    #[command(flatten)]
    watch: WatchArgs,
    /// Find the first rewrite with which a pass changes results, instead of printing IR.
    #[arg(long)]
    bisect: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// IR read from a file, with what the file records.
pub fn read(path: &Path) -> Result<(Ir, Recorded), Error> {
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    let ir = parse(&text).map_err(|e| Error::parse(&e, path, &text))?;
    let errors = match &ir {
        Ir::Graph(m) => placed(m, path, &text),
        Ir::Program(_) => verify(&ir),
    };
    if !errors.is_empty() {
        let what = format!("{} breaks the rules of the IR:\n{}", path.display(), errors.join("\n"));
        return Err(Error::Parse { code: "PAS006", what });
    }
    Ok((ir, recorded(&text)))
}

/// Every violation, with its line underlined.
fn placed(m: &Module, path: &Path, text: &str) -> Vec<String> {
    let places = parse_placed(text).map(|(_, p)| p).unwrap_or_default();
    let name = path.display().to_string();
    let render = |v: &Violation| {
        let f = places.get(v.function)?;
        let pos = v.inst.map_or(Some(f.signature), |i| f.insts.get(i).copied())?;
        Some(render_at(pos, &v.to_string(), &name, text))
    };
    violations(m).iter().map(|v| render(v).unwrap_or_else(|| v.to_string())).collect()
}

pub fn run(args: &Args, ui: &Ui) -> Result<(), Error> {
    let (ir, record) = read(&args.file)?;
    let numerics = args.numerics.map(Numerics::from).or(record.numerics).unwrap_or(Numerics::Strict);
    let options = Options { numerics, ..Options::default() };
    let stage = args.stage.from(record);
    let pipeline = match (&args.pipeline, &args.stage.compile_to) {
        (Some(p), _) => p.clone(),
        (None, Some(to)) => pipeline_between(stage, Some(to))?,
        (None, None) if args.bisect => pipeline_between(stage, None)?,
        (None, None) => String::new(),
    };
    let watch = args.watch.watch();
    if args.bisect {
        let check = watch.check.or(Some(Check { seed: 0, tolerance: None }));
        return find(&ir, &pipeline, &Options { check, ..options }, args.json, ui);
    }
    let place = Place { stage: if record.stage.is_some() { stage } else { "input" }, sub: None };
    let (ir, reports) = watch.run(ir, &pipeline, &options, place, &mut |line| ui.progress(line))?;
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
    ui.json(&json!({ "text": print(&ir), "passes": passes, "rewrites": reports.rewrites }))
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

impl StageArgs {
    /// The stage that IR is at: as given, as recorded, or as traced.
    pub fn from(&self, record: Recorded) -> &str {
        self.from_stage.as_deref().or(record.stage).unwrap_or(TRACE)
    }
}

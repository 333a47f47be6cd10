//! `opt`: passes over IR in a file.

use std::fs;
use std::path::{Path, PathBuf};

use marquetry::Error;
use marquetry::passes::manager::{self, Ir, Options, Reports, parse, print};
use marquetry::runtime::files;

use super::options::NumericsArg;
use super::ui::Ui;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Text IR of either level.
    file: PathBuf,
    /// Passes, separated by commas; none only checks and prints.
    #[arg(long, default_value = "")]
    pipeline: String,
    /// What may happen to numbers.
    #[arg(long, value_enum, default_value = "strict")]
    numerics: NumericsArg,
    /// Write the IR after every pass to DIR/NN-name.tir.
    #[arg(long, value_name = "DIR")]
    dump_ir: Option<PathBuf>,
    /// Say on stderr what each pass did, and how long it took.
    #[arg(long)]
    explain: bool,
}

pub fn run(args: &Args, ui: &Ui) -> Result<(), Error> {
    let text = fs::read_to_string(&args.file).map_err(Error::file("read", &args.file))?;
    let broken = |what: String| Error::Parse { path: args.file.clone(), what };
    let ir = parse(&text).map_err(|e| broken(e.to_string()))?;
    let errors = manager::verify(&ir);
    if !errors.is_empty() {
        return Err(broken(errors.join("\n")));
    }
    let options = Options { numerics: args.numerics.into(), ..Options::default() };
    let how =
        Piped { pipeline: &args.pipeline, options: &options, dump: args.dump_ir.as_deref(), explain: args.explain };
    ui.print(&print(&run_pipeline(ir, &how, ui)?))
}

/// How passes are run.
pub struct Piped<'a> {
    /// Names, separated by commas.
    pub pipeline: &'a str,
    /// Options of the passes.
    pub options: &'a Options,
    /// Where the IR after each pass goes.
    pub dump: Option<&'a Path>,
    /// Report on stderr.
    pub explain: bool,
}

/// Runs passes; dumps and explains as asked for.
pub fn run_pipeline(ir: Ir, how: &Piped<'_>, ui: &Ui) -> Result<Ir, Error> {
    if let Some(dir) = how.dump {
        fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
    }
    let mut number = 0;
    let mut dumped = Ok(());
    let (ir, reports) = manager::run(ir, how.pipeline, how.options, &mut |name, ir| {
        number += 1;
        if let (Some(dir), Ok(())) = (how.dump, &dumped) {
            let path = dir.join(format!("{number:02}-{name}.tir"));
            dumped = files::write_file(&path, print(ir).as_bytes());
        }
    })?;
    dumped?;
    if how.explain {
        explain(&reports, ui);
    }
    Ok(ir)
}

fn explain(reports: &Reports, ui: &Ui) {
    reports.eqsat.iter().for_each(|r| ui.progress(&r.to_string()));
    reports.seconds.iter().for_each(|(name, s)| ui.progress(&format!("{name:<12} {:8.1} ms", s * 1e3)));
}

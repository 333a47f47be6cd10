//! Watching passes: dumps, diffs, times, limits and checks around a pipeline.

use std::fs;
use std::path::{Path, PathBuf};

use marquetry_passes::check::Check;
use marquetry_passes::manager::{self, Ir, Options, Reports};
use marquetry_runtime::files;
use serde_json::{Value, json};
use similar::{Algorithm, TextDiff};

use crate::Error;
use crate::start::Source;

/// What to do beside running a pipeline.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// Write the IR after every pass to this directory as `NN-stage.tir`, and `NN-stage.diff` against the one before.
    pub dump: Option<PathBuf>,
    /// No more rewrites than this.
    pub rewrite_limit: Option<u64>,
    /// Interpret the IR before and after each pass.
    pub check: Option<Check>,
    /// Report what rewriting did.
    pub explain: bool,
    /// The passes of an engine, where they are not the default ones.
    pub pipeline: Option<String>,
    /// Report time, nodes and rewrites of each pass.
    pub times: bool,
    /// Where the IR of an engine's functions is, if it is not traced.
    pub from: Option<Source>,
    /// Where an engine reports to.
    pub log: Option<fn(&str)>,
}

impl Watch {
    /// Is there anything to do?
    pub fn is_on(&self) -> bool {
        let changed = self.pipeline.is_some() || self.from.is_some() || self.rewrite_limit.is_some();
        changed || self.dump.is_some() || self.check.is_some() || self.explain || self.times
    }

    /// Options of the passes with the limit and the check in them.
    pub fn options(&self, options: &Options) -> Options {
        Options { rewrite_limit: self.rewrite_limit, check: self.check, ..options.clone() }
    }

    /// Runs a pipeline over IR at a stage. Reports go to `progress`, line by line; dumps into `dump`, below `sub` if given.
    ///
    /// # Errors
    /// A pass that fails, or a file that can not be written.
    pub fn run(
        &self,
        ir: Ir,
        pipeline: &str,
        options: &Options,
        place: Place<'_>,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(Ir, Reports), Error> {
        let mut dump = match &self.dump {
            Some(dir) => Some(Dump::new(&place.below(dir), place.stage, options, &ir)?),
            None => None,
        };
        let (ir, reports) = manager::run(ir, pipeline, &self.options(options), &mut |pass, ir| {
            dump.iter_mut().for_each(|d| d.pass(pass, ir));
        })?;
        if let Some(d) = dump {
            d.failed?;
        }
        if self.explain {
            reports.eqsat.iter().for_each(|r| progress(r.to_string().trim_end()));
            reports.kernels.iter().for_each(|k| progress(&k.to_string()));
        }
        if self.times || self.check.is_some() {
            reports.passes.iter().for_each(|p| progress(&p.to_string()));
            let all: f64 = reports.passes.iter().map(|p| p.seconds).sum();
            progress(&format!("{:<12} {:9.1} ms", "all passes", all * 1e3));
        }
        if let (Some(limit), Some(last)) = (self.rewrite_limit, &reports.last_rewrite) {
            progress(&format!("rewrite {limit}, the last: {last}"));
        }
        Ok((ir, reports))
    }
}

/// What rewriting did and which kernels there are, as data.
pub fn explained(reports: &Reports) -> Value {
    json!({ "rewriting": reports.eqsat, "kernels": reports.kernels })
}

/// Where the IR comes from, for dumps.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its stage.
    pub stage: &'a str,
    /// A directory below the one for dumps, such as the name of a bucket.
    pub sub: Option<&'a str>,
}

impl Place<'_> {
    fn below(&self, dir: &Path) -> PathBuf {
        self.sub.map_or(dir.to_path_buf(), |s| dir.join(s))
    }
}

/// A directory of dumps that grows pass by pass.
struct Dump<'a> {
    dir: PathBuf,
    options: &'a Options,
    number: usize,
    last: String,
    failed: Result<(), Error>,
}

impl<'a> Dump<'a> {
    fn new(dir: &Path, stage: &str, options: &'a Options, ir: &Ir) -> Result<Dump<'a>, Error> {
        fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
        let mut d = Dump { dir: dir.into(), options, number: 0, last: String::new(), failed: Ok(()) };
        d.last = d.write(stage, ir)?;
        Ok(d)
    }

    fn write(&self, stage: &str, ir: &Ir) -> Result<String, Error> {
        let text = manager::dump(stage, self.options.numerics, ir);
        files::write_file(&self.dir.join(format!("{:02}-{stage}.tir", self.number)), text.as_bytes())?;
        Ok(text)
    }

    fn pass(&mut self, pass: &str, ir: &Ir) {
        if self.failed.is_err() {
            return;
        }
        self.number += 1;
        let stage = manager::PASSES.iter().find(|p| p.name == pass).map_or(pass, |p| p.stage);
        self.failed = self.write(stage, ir).and_then(|text| {
            let diff = diff(&self.last, &text);
            files::write_file(&self.dir.join(format!("{:02}-{stage}.diff", self.number)), diff.as_bytes())?;
            self.last = text;
            Ok(())
        });
    }
}

/// A unified diff, with three lines around each change.
pub fn diff(old: &str, new: &str) -> String {
    let lines = TextDiff::configure().algorithm(Algorithm::Patience).diff_lines(old, new);
    lines.unified_diff().context_radius(3).header("before", "after").to_string()
}

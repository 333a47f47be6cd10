//! Compilation that starts from IR in files instead of from a model.

use std::fs;
use std::path::{Path, PathBuf};

use marquetry_ir::graph::{Module, Violation, parse_placed, violations};
use marquetry_ir::text::lexer::render_at;
use marquetry_passes::Numerics;
use marquetry_passes::manager::{Ir, Recorded, TRACE, parse, recorded, stage_name, verify};

use crate::Error;
use crate::engine::Bucket;

/// Where IR is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// A file, or a directory of dumps: `NN-stage.tir`, those of an engine in one directory per bucket.
    pub path: PathBuf,
    /// The stage that a file is at, or the one to take of a directory.
    pub stage: Option<String>,
}

/// IR to go on from.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// The IR.
    pub ir: Ir,
    /// The stage that it is at: as given, as recorded, or as traced.
    pub stage: String,
    /// Does the file record a stage?
    pub recorded: bool,
    /// The numerics that the file records.
    pub numerics: Option<Numerics>,
}

impl Source {
    /// Reads the file, or the dump of a directory.
    ///
    /// # Errors
    /// What can not be read, or breaks the rules of the IR, and stages that no dump is at.
    pub fn read(&self) -> Result<Start, Error> {
        let file = if self.path.is_dir() { self.dump(&self.path)? } else { self.path.clone() };
        self.start(&file)
    }

    /// The IR of an engine's bucket; none where its dumps are not there.
    ///
    /// # Errors
    /// As [`Source::read`]; a path that is no directory with dumps of a bucket.
    pub fn bucket(&self, bucket: Bucket) -> Result<Option<Start>, Error> {
        let dir = |b: Bucket| self.path.join(b.name());
        if !Bucket::ALL.iter().any(|b| dir(*b).is_dir()) {
            let what = "has neither `decode` nor `prefill` in it; give the directory that --dump-ir wrote for a model";
            return Err(Error::usage(format!("{} {what}", self.path.display())));
        }
        match dir(bucket) {
            d if d.is_dir() => self.start(&self.dump(&d)?).map(Some),
            _ => Ok(None),
        }
    }

    /// The dump of the stage in a directory; the last one if no stage is given.
    fn dump(&self, dir: &Path) -> Result<PathBuf, Error> {
        let wanted = self.stage.as_deref().map(stage_name).transpose()?;
        let entries = fs::read_dir(dir).map_err(Error::file("read", dir))?;
        let mut all: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        all.retain(|p| p.extension().is_some_and(|e| e == "tir"));
        all.sort();
        let is = |p: &PathBuf| {
            let stem = p.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            wanted.is_none_or(|w| stem.split_once('-').is_some_and(|(_, stage)| stage == w))
        };
        let stage = wanted.map_or(String::new(), |w| format!(" of stage `{w}`"));
        let none = || Error::usage(format!("{} has no dump{stage}; --dump-ir writes them", dir.display()));
        all.into_iter().rfind(is).ok_or_else(none)
    }

    fn start(&self, path: &Path) -> Result<Start, Error> {
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
        let Recorded { stage, numerics } = recorded(&text);
        let at = self.stage.as_deref().or(stage).unwrap_or(TRACE).to_string();
        Ok(Start { ir, stage: at, recorded: stage.is_some(), numerics })
    }
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

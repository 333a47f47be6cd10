//! From a bound module to the planned program of a shape bucket, by way of the cache.

use std::collections::HashMap;
use std::path::Path;

use marquetry_ir::DType;
use marquetry_ir::graph::{Module, print_module};
use marquetry_ir::program::Program;
use marquetry_ir::text::{parse_program, print_program};
use marquetry_passes::Numerics;
use marquetry_passes::bind::Narrow;
use marquetry_passes::manager::{self, Ir, Options, PassError, Reports, TRACE, default_pipeline, pipeline_between};
use marquetry_passes::params::Params;
use marquetry_runtime::files::{self, Cache, Key};

use crate::Error;
use crate::model::{CHUNK, PAGE};
use crate::watch::{Place, Watch};

/// Bytes of programs that the cache keeps.
const CACHE_BYTES: u64 = 64 << 20;

/// The shapes that a function is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bucket {
    /// One token of one sequence.
    Decode,
    /// Up to 24 tokens of one sequence, where products of more are made for a matrix unit, for which these are too few.
    Few,
    /// Up to 512 tokens of one sequence.
    Prefill,
}

/// Tokens from which on products of tiles are faster than those of 8-bit numbers, at most.
const FEW: usize = 24;

impl Bucket {
    /// All of them.
    pub const ALL: [Bucket; 3] = [Bucket::Decode, Bucket::Few, Bucket::Prefill];

    /// The bucket of a step of that many tokens; with `matrix`, routines have products by a matrix unit.
    pub fn of(tokens: usize, matrix: bool) -> Bucket {
        match tokens {
            1 => Bucket::Decode,
            ..=FEW if matrix => Bucket::Few,
            _ => Bucket::Prefill,
        }
    }

    /// The most tokens of a step.
    pub fn most(self) -> usize {
        match self {
            Bucket::Decode => 1,
            Bucket::Few => FEW,
            Bucket::Prefill => CHUNK,
        }
    }

    /// Its name in options and dumps.
    pub fn name(self) -> &'static str {
        match self {
            Bucket::Decode => "decode",
            Bucket::Few => "few",
            Bucket::Prefill => "prefill",
        }
    }
}

/// Element type of keys and values, where nothing else is asked for.
fn cache_type(numerics: Numerics) -> Option<DType> {
    match numerics {
        Numerics::Strict => None,
        Numerics::Fast => Some(DType::F16),
    }
}

/// Options for compiling a bucket with a cache of that many positions, for any CPU.
pub fn bucket_options(bucket: Bucket, numerics: Numerics, context: usize) -> Options {
    let pages = Narrow::Range(1, context.div_ceil(PAGE).max(1) as i64);
    let tokens = match bucket {
        Bucket::Decode => Narrow::Fixed(1),
        _ => Narrow::Range(1, bucket.most() as i64),
    };
    let sizes =
        [("n", tokens), ("r", tokens), ("s", Narrow::Fixed(1)), ("q", Narrow::Fixed(1)), ("m", pages), ("p", pages)];
    let sizes: HashMap<String, Narrow> = sizes.map(|(n, v)| (n.to_string(), v)).into();
    let refine = numerics == Numerics::Fast;
    Options { numerics, sizes, cache_type: cache_type(numerics), trim: true, refine, ..Options::default() }
}

/// The program of a module, or of the IR that the watch starts from, made while its passes are watched.
pub(super) fn watched(
    module: &Module,
    bucket: Bucket,
    options: &Options,
    params: &Params,
    watch: &Watch,
) -> Result<(Program, Reports), Error> {
    let given = watch.from.as_ref().map(|from| from.bucket(bucket)).transpose()?.flatten();
    let (ir, stage) = given.map_or((Ir::Graph(module.clone()), TRACE.into()), |start| (start.ir, start.stage));
    let place = Place { stage: &stage, sub: Some(bucket.name()) };
    let mut say = |line: &str| watch.log.iter().for_each(|log| log(line));
    let default = || pipeline_between(&stage, None).map(|passes| params.pipeline(&passes));
    let pipeline = watch.pipeline.clone().map_or_else(default, Ok)?;
    match watch.run(ir, &pipeline, options, place, &mut say)? {
        (Ir::Program(p), reports) => Ok((*p, reports)),
        (Ir::Graph(_), _) => Err(PassError::Level { pass: "plan", wants: "a lowered program" }.into()),
    }
}

/// The program of a module, and whether it came from the cache. A cache that does not work is passed over.
pub(super) fn program(
    module: &Module,
    options: &Options,
    params: &Params,
    cache: Option<&Path>,
) -> Result<(Program, bool), Error> {
    let pipeline = params.pipeline(&default_pipeline());
    let cache = cache.and_then(|dir| Cache::open(dir.join("programs")).ok().map(|c| (c, dir.join("programs"))));
    let key = key_of(module, options, &pipeline);
    if let Some(found) = cache.as_ref().and_then(|(c, _)| stored(c, &key)) {
        return Ok((found, true));
    }
    let program = lowered(Ir::Graph(module.clone()), &pipeline, options)?;
    if let Some((cache, dir)) = cache {
        trim(&dir, CACHE_BYTES);
        // Without the entry the next start compiles again, nothing worse.
        let _ = cache.put(&key, print_program(&program).as_bytes());
    }
    Ok((program, false))
}

/// The program that a pipeline makes.
pub(super) fn lowered(ir: Ir, pipeline: &str, options: &Options) -> Result<Program, Error> {
    match manager::run(ir, pipeline, options, &mut |_, _| {})?.0 {
        Ir::Program(p) => Ok(*p),
        Ir::Graph(_) => Err(PassError::Level { pass: "plan", wants: "a lowered program" }.into()),
    }
}

fn stored(cache: &Cache, key: &Key) -> Option<Program> {
    let entry = cache.get(key)?;
    parse_program(std::str::from_utf8(&entry).ok()?).ok()
}

/// Everything that decides the program: the module, the options, the passes, the machine and the compiler.
fn key_of(module: &Module, options: &Options, pipeline: &str) -> Key {
    let mut sizes: Vec<String> = options.sizes.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
    sizes.sort();
    let Options { numerics, target, cache_type, trim, refine, .. } = options;
    let options = format!("{numerics:?} {target:?} {cache_type:?} {trim} {refine} {}", sizes.join(" "));
    let text = print_module(module);
    let parts =
        [text.as_str(), &options, pipeline, std::env::consts::ARCH, &cpu_features().join(" "), &build_identity()];
    files::key(&parts.map(str::as_bytes))
}

/// Version of the compiler, and length and date of the running program: a rebuilt compiler never reads old programs.
pub(super) fn build_identity() -> String {
    let exe = std::env::current_exe().and_then(std::fs::metadata);
    let exe = exe.map(|m| format!("{} {:?}", m.len(), m.modified().ok())).unwrap_or_default();
    format!("{} {exe}", env!("CARGO_PKG_VERSION"))
}

/// Names of the CPU's features that code generation may use.
pub fn cpu_features() -> Vec<&'static str> {
    let mut found = vec![];
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! probe {
            ($($name:tt),*) => { $(if std::is_x86_feature_detected!($name) { found.push($name); })* };
        }
        probe!("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avxvnni");
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! probe {
            ($($name:tt),*) => { $(if std::arch::is_aarch64_feature_detected!($name) { found.push($name); })* };
        }
        probe!("neon", "dotprod", "i8mm", "fp16", "bf16", "sve");
    }
    found
}

/// Removes the oldest entries until the rest fits.
fn trim(dir: &Path, most: u64) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut files: Vec<_> = entries
        .flatten()
        .filter(|e| e.path().extension().is_some_and(|x| x == "bin"))
        .filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.metadata().ok()?.len(), e.path())))
        .collect();
    files.sort();
    let mut total: u64 = files.iter().map(|f| f.1).sum();
    for (_, len, path) in files {
        if total <= most {
            return;
        }
        // Another process may have removed it, which is as good.
        let _ = std::fs::remove_file(path);
        total -= len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_entries_go_first() {
        let dir = tempfile::tempdir().unwrap();
        for (i, name) in ["a.bin", "b.bin", "c.bin", "d.txt"].iter().enumerate() {
            let file = std::fs::File::create(dir.path().join(name)).unwrap();
            file.set_len(10).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(i as u64)).unwrap();
        }
        trim(dir.path(), 20);
        let left = |n: &str| dir.path().join(n).exists();
        assert_eq!(["a.bin", "b.bin", "c.bin", "d.txt"].map(left), [false, true, true, true]);
    }

    #[test]
    fn keys_depend_on_the_options() {
        let m = Module::default();
        let at = |bucket, context| key_of(&m, &bucket_options(bucket, Numerics::Fast, context), "canon");
        assert_eq!(at(Bucket::Decode, 64), at(Bucket::Decode, 64));
        assert_ne!(at(Bucket::Decode, 64), at(Bucket::Prefill, 64));
        assert_ne!(at(Bucket::Decode, 64), at(Bucket::Decode, 128));
    }
}

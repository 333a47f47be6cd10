//! Random inputs, random modules and their reduction, for the tests of every crate. Built with the feature `testing` only.

mod graph;
mod kernel;
mod operators;
pub mod program;
mod reduce;
mod values;

pub use crate::random::{Numbers, Random};
pub use graph::module;
pub use kernel::{fewest, reduce_kernel, statements};
pub use operators::EXCUSED;
pub use reduce::{reduce, size};
pub use values::{Inputs, Outcome, bits_differ, gap, inputs, inputs_of, mean_gap, run, sensitivity};

use std::path::{Path, PathBuf};

/// How many random cases a test runs: `MARQUETRY_CASES` where it is set, else `default`.
pub fn cases(default: u64) -> u64 {
    std::env::var("MARQUETRY_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// First seed of a run: `MARQUETRY_SEED` where it is set, else 0.
pub fn first_seed() -> u64 {
    std::env::var("MARQUETRY_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Stores a failing case below the target directory, in `failures/NAME.tir`, and says where. Each line of `about` becomes a
/// comment at its head.
pub fn keep(name: &str, about: &str, text: &str) -> PathBuf {
    // A test runs as TARGET/PROFILE/deps/NAME.
    let exe = std::env::current_exe().unwrap_or_default();
    let dir = exe.ancestors().nth(3).unwrap_or(Path::new("target")).join("failures");
    let path = dir.join(format!("{name}.tir"));
    let head: String = about.lines().map(|l| format!("// {l}\n")).collect();
    let done = std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(&path, head + text));
    match done {
        Ok(()) => eprintln!("stored {}", path.display()),
        Err(e) => eprintln!("{}: {e}", path.display()),
    }
    path
}

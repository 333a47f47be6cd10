//! Random inputs, random modules and their reduction, for the tests of every crate. Built with the feature `testing` only.

mod graph;
mod kernel;
mod operators;
pub mod program;
mod reduce;
mod values;

pub use graph::module;
pub use kernel::{fewest, reduce_kernel, statements};
pub use operators::EXCUSED;
pub use reduce::{reduce, size};
pub use values::{Inputs, Numbers, Outcome, bits_differ, gap, inputs, mean_gap, run, sensitivity};

use std::path::{Path, PathBuf};

/// A small generator of pseudorandom numbers: one seed, one sequence, on every machine.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number in `0..n`; 0 where `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// True in that many of 100 cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of several, which must not be empty.
    pub fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    /// Roughly normal, standard deviation near 1.
    pub fn normal(&mut self) -> f32 {
        (0..4).map(|_| self.below(1 << 24) as f32 / (1 << 24) as f32 - 0.5).sum::<f32>() * 1.7
    }
}

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

//! The memory plan: arena buffers that are never needed at the same time share bytes, and launches wait only for what they
//! depend on.

use std::collections::BTreeMap;

use marquetry_ir::Dim;
use marquetry_ir::loops::Scope;
use marquetry_ir::program::{Place, Program};

#[derive(Clone, Debug)]
struct Alloc {
    at: u64,
    bytes: u64,
    first: usize,
    last: usize,
}

fn bytes(p: &Program, buffer: usize) -> u64 {
    let b = &p.buffers[buffer];
    let count = b.shape.iter().fold(Dim::from(1), |a, d| a * d.clone());
    (p.syms.range(&count).1.max(0) as u64).saturating_mul(b.dtype.size() as u64)
}

/// Rounded up to 64 bytes.
fn aligned(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(64).unwrap_or(u64::MAX)
}

/// Plans the arena for the largest admissible sizes and sets `sync` where a launch depends on one that may still run.
pub fn run(p: &mut Program) {
    run_with(p, &Config::default());
}

/// Which halves of the plan are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Buffers share bytes of the arena.
    pub reuse: bool,
    /// Launches wait only for what they depend on.
    pub relax: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config { reuse: true, relax: true }
    }
}

/// As [`run`], in part.
pub fn run_with(p: &mut Program, config: &Config) {
    if config.reuse {
        arena(p);
    }
    if config.relax {
        barriers(p);
    }
}

fn arena(p: &mut Program) {
    let mut allocs: BTreeMap<u64, Alloc> = BTreeMap::new();
    for (i, launch) in p.launches.iter().enumerate() {
        for b in &launch.args {
            if let Place::Arena(at) = p.buffers[b.0 as usize].place {
                let size = bytes(p, b.0 as usize).max(1);
                let a = allocs.entry(at).or_insert(Alloc { at, bytes: size, first: i, last: i });
                a.bytes = a.bytes.max(size);
                a.last = i;
            }
        }
    }
    let mut order: Vec<Alloc> = allocs.into_values().collect();
    order.sort_by_key(|a| (std::cmp::Reverse(a.bytes), a.first, a.at));
    let mut placed: Vec<(u64, Alloc)> = vec![];
    for a in order {
        let mut busy: Vec<(u64, u64)> = placed
            .iter()
            .filter(|(_, o)| o.first <= a.last && a.first <= o.last)
            .map(|(at, o)| (*at, at.saturating_add(aligned(o.bytes))))
            .collect();
        busy.sort_unstable();
        let mut at = 0u64;
        for (lo, hi) in busy {
            if at.saturating_add(a.bytes) <= lo {
                break;
            }
            at = at.max(hi);
        }
        placed.push((at, a));
    }
    p.arena_bytes = placed.iter().map(|(at, a)| aligned(at.saturating_add(a.bytes))).max().unwrap_or(0);
    let moved: BTreeMap<u64, u64> = placed.into_iter().map(|(at, a)| (a.at, at)).collect();
    for b in &mut p.buffers {
        if let Place::Arena(at) = &mut b.place {
            *at = moved.get(at).copied().unwrap_or(0);
        }
    }
}

/// A range of bytes that launches may share: which storage, from, to.
type Region = (String, u64, u64);

fn region(p: &Program, buffer: usize) -> Option<Region> {
    let n = bytes(p, buffer).max(1);
    match &p.buffers[buffer].place {
        Place::Arena(at) => Some(("arena".into(), *at, at.saturating_add(n))),
        Place::State(i) => Some((format!("state {i}"), 0, u64::MAX)),
        Place::Output(name) => Some((format!("output {name}"), 0, u64::MAX)),
        Place::Input(_) | Place::Weight(..) | Place::Constant(_) => None,
    }
}

fn touches(a: &Region, others: &[Region]) -> bool {
    others.iter().any(|b| a.0 == b.0 && a.1 < b.2 && b.1 < a.2)
}

fn barriers(p: &mut Program) {
    let (mut read, mut written): (Vec<Region>, Vec<Region>) = (vec![], vec![]);
    for i in 0..p.launches.len() {
        let launch = &p.launches[i];
        let kernel = &p.kernels[launch.kernel.0 as usize];
        let (mut reads, mut writes) = (vec![], vec![]);
        for (b, decl) in launch.args.iter().zip(&kernel.buffers) {
            let Some(r) = region(p, b.0 as usize) else { continue };
            if decl.scope != Scope::Out {
                reads.push(r.clone());
            }
            if decl.scope != Scope::In {
                writes.push(r);
            }
        }
        let depends =
            reads.iter().chain(&writes).any(|r| touches(r, &written)) || writes.iter().any(|w| touches(w, &read));
        if depends {
            read.clear();
            written.clear();
        }
        read.extend(reads);
        written.extend(writes);
        p.launches[i].sync = depends;
    }
}

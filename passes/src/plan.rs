//! The memory plan: what one thread would compute for all, each computes for itself; arena buffers that are never needed at the
//! same time share bytes; and launches wait only for what they depend on.

use std::collections::{BTreeMap, HashSet};

use marquetry_ir::Dim;
use marquetry_ir::loops::Scope;
use marquetry_ir::program::{BufferId, Launch, Place, Program};

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

/// Results that every thread computes for itself take at most this many bytes per launch: they stay in its first cache.
const OWN_BYTES: u64 = 16 << 10;

/// Rounded up to 64 bytes.
fn aligned(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(64).unwrap_or(u64::MAX)
}

/// Plans the arena for the largest admissible sizes and sets `sync` where a launch depends on one that may still run.
pub fn run(p: &mut Program) {
    run_with(p, &Config::default());
}

/// Which parts of the plan are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Every thread computes for itself what one would compute for all.
    pub own: bool,
    /// Buffers share bytes of the arena.
    pub reuse: bool,
    /// Launches wait only for what they depend on.
    pub relax: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config { own: true, reuse: true, relax: true }
    }
}

/// As [`run`], in part.
pub fn run_with(p: &mut Program, config: &Config) {
    if config.own {
        own(p);
    }
    if config.reuse {
        p.arena_bytes = pack(p, |place| if let Place::Arena(at) = place { Some(at) } else { None });
        p.own_bytes = pack(p, |place| if let Place::Own(at) = place { Some(at) } else { None });
    }
    if config.relax {
        barriers(p);
    }
}

/// Moves results of launches without a parallel loop to memory of each thread's own: while one thread computes, the others would
/// only wait for it, and then for its cache.
fn own(p: &mut Program) {
    let arena = |b: BufferId| if let Place::Arena(at) = p.buffers[b.0 as usize].place { Some(at) } else { None };
    let written = |l: &Launch| -> Vec<BufferId> {
        let decls = &p.kernels[l.kernel.0 as usize].buffers;
        l.args.iter().zip(decls).filter(|(_, d)| d.scope != Scope::In).map(|(b, _)| *b).collect()
    };
    let small = |l: &Launch| {
        let out = written(l);
        let total = out.iter().fold(0u64, |sum, b| sum.saturating_add(bytes(p, b.0 as usize)));
        p.kernels[l.kernel.0 as usize].parallel_extent().is_none()
            && total <= OWN_BYTES
            && out.iter().all(|b| arena(*b).is_some())
    };
    // What is also written by a launch that stays with one copy stays there, and so does all that its other writers write.
    let mut shared: HashSet<u64> = HashSet::new();
    loop {
        let before = shared.len();
        for l in &p.launches {
            let at: Vec<u64> = written(l).into_iter().filter_map(arena).collect();
            if !small(l) || at.iter().any(|a| shared.contains(a)) {
                shared.extend(at);
            }
        }
        if shared.len() == before {
            break;
        }
    }
    let moved: HashSet<u64> =
        p.launches.iter().flat_map(written).filter_map(arena).filter(|at| !shared.contains(at)).collect();
    for b in &mut p.buffers {
        if let Place::Arena(at) = b.place
            && moved.contains(&at)
        {
            b.place = Place::Own(at);
        }
    }
    if !moved.is_empty() {
        p.own_bytes = p.arena_bytes;
    }
}

/// Lets buffers in one kind of memory share its bytes; returns how many it then has. What threads read each for itself stays for one
/// launch more: the next one need not wait for the slowest of them.
fn pack(p: &mut Program, offset: impl Fn(&mut Place) -> Option<&mut u64>) -> u64 {
    let mut allocs: BTreeMap<u64, Alloc> = BTreeMap::new();
    for i in 0..p.launches.len() {
        let last = i + usize::from(p.launches[i].is_own(p));
        for b in p.launches[i].args.clone() {
            if let Some(at) = offset(&mut p.buffers[b.0 as usize].place).copied() {
                let size = bytes(p, b.0 as usize).max(1);
                let a = allocs.entry(at).or_insert(Alloc { at, bytes: size, first: i, last });
                a.bytes = a.bytes.max(size);
                a.last = last;
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
    let total = placed.iter().map(|(at, a)| aligned(at.saturating_add(a.bytes))).max().unwrap_or(0);
    let moved: BTreeMap<u64, u64> = placed.into_iter().map(|(at, a)| (a.at, at)).collect();
    for b in &mut p.buffers {
        if let Some(at) = offset(&mut b.place) {
            *at = moved.get(at).copied().unwrap_or(0);
        }
    }
    total
}

/// A range of bytes that launches may share: which storage, from, to.
type Region = (String, u64, u64);

/// The storage that each thread has for itself.
const OWN: &str = "own";

fn region(p: &Program, buffer: usize) -> Option<Region> {
    let n = bytes(p, buffer).max(1);
    match &p.buffers[buffer].place {
        Place::Arena(at) => Some(("arena".into(), *at, at.saturating_add(n))),
        Place::Own(at) => Some((OWN.into(), *at, at.saturating_add(n))),
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
        // A thread has computed its own before it reads it. It must not change it while another launch may still read it: threads
        // take over parts of launches from each other.
        let shared = reads.iter().filter(|r| r.0 != OWN);
        let depends = shared.chain(&writes).any(|r| touches(r, &written)) || writes.iter().any(|w| touches(w, &read));
        if depends {
            read.clear();
            written.clear();
        }
        read.extend(reads);
        written.extend(writes);
        p.launches[i].sync = depends;
    }
}

#[cfg(test)]
mod tests {
    use marquetry_ir::program::verify;
    use marquetry_ir::text::{parse_program, print_program};

    use super::*;

    /// Of the kernels only `add` has a parallel loop.
    fn program(launches: &str) -> Program {
        let text = format!(
            "program @p arena 1024 {{
              buffer %x: f32[8] input \"x\"
              buffer %a: f32[1] arena 0
              buffer %b: f32[8] arena 64
              buffer %c: f32[1] arena 128
              buffer %d: f32[8] output \"d\"
              buffer %e: f32[8] arena 192
              kernel @sum(%x: f32[8] in, %y: f32[1] out) {{
                store %y[0] = 0.0
                for i.0 in 0..8 {{ store %y[0] = %y[0] + %x[i.0] }}
              }}
              kernel @twice(%x: f32[1] in, %y: f32[1] out) {{
                store %y[0] = %x[0] * 2.0
              }}
              kernel @add(%x: f32[8] in, %a: f32[1] in, %y: f32[8] out) {{
                parallel i.0 in 0..8 {{ store %y[i.0] = %x[i.0] + %a[0] }}
              }}
              {launches}
            }}"
        );
        let mut p = parse_program(&text).unwrap();
        run(&mut p);
        assert_eq!(verify(&p), Vec::<String>::new());
        p
    }

    fn lines(p: &Program, what: &str) -> Vec<String> {
        print_program(p).lines().map(str::trim).filter(|l| l.contains(what)).map(str::to_string).collect()
    }

    #[test]
    fn what_one_thread_would_compute_each_computes_for_itself() {
        let p = program("launch @sum(%x, %a) launch @add(%x, %a, %b) launch @sum(%b, %c) launch @add(%b, %c, %d)");
        assert_eq!(
            lines(&p, "own"),
            ["program @p arena 64 own 64 {", "buffer %a: f32[1] own 0", "buffer %c: f32[1] own 0"]
        );
        // Only the second sum waits, for what all threads have made.
        let launches =
            ["launch @sum(%x, %a)", "launch @add(%x, %a, %b)", "sync launch @sum(%b, %c)", "launch @add(%b, %c, %d)"];
        assert_eq!(lines(&p, "launch"), launches);
        let p = program("launch @sum(%x, %a) launch @twice(%a, %c) launch @add(%x, %c, %b) launch @add(%b, %c, %d)");
        assert_eq!(lines(&p, "sync"), ["sync launch @add(%b, %c, %d)"], "what a thread has made itself is there");
    }

    #[test]
    fn after_reading_for_itself_a_thread_need_not_wait() {
        let p = program(
            "launch @sum(%x, %c) launch @add(%x, %c, %b) launch @sum(%b, %a)
             launch @add(%x, %a, %e) launch @add(%e, %a, %d)",
        );
        assert_eq!(
            lines(&p, "sync"),
            ["sync launch @sum(%b, %a)", "sync launch @add(%e, %a, %d)"],
            "`%e` does not take the place of `%b`, which others may still read"
        );
    }

    #[test]
    fn what_is_read_meanwhile_is_not_changed() {
        // `%a` and `%c` share bytes, and the second sum depends on nothing that other threads make.
        let p = program("launch @sum(%x, %a) launch @add(%x, %a, %b) launch @sum(%x, %c) launch @add(%x, %c, %d)");
        assert_eq!(lines(&p, "own 0").len(), 2);
        assert_eq!(lines(&p, "sync"), ["sync launch @sum(%x, %c)"]);
    }

    #[test]
    fn what_others_write_too_is_there_once() {
        // `%b` is written in parallel first, so its second writer stays alone, and with it what else that would write.
        let p = program("launch @add(%x, %x, %b) launch @sum(%x, %b) launch @add(%b, %b, %d)");
        assert_eq!(lines(&p, "own"), Vec::<String>::new());
    }
}

//! Running a function: sizes and buffers are bound by the caller's thread, then every pool thread walks the launches.
//!
//! What depends only on the sizes (guards, extents, lengths) is kept from run to run and recomputed when they change; pointer
//! tables are patched where a base pointer moved. A run with unchanged sizes allocates nothing.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use marquetry_ir::program::KernelFn;

use crate::extent::eval_extent;
use crate::governor::Governor;
use crate::memory::{ALIGN, Arena, States, eval_bytes};
use crate::module::{Function, KERNEL_ALIGN, Port};
use crate::pool::{Pool, Worker};
use crate::timeline::{Stamps, Timeline};
use crate::{RuntimeError, module::Call};

/// Largest extent of a parallel loop; keeps counters far from overflow.
const MAX_EXTENT: i64 = 1 << 40;

/// What is kept between runs.
pub(crate) struct Frame {
    /// What the rest was computed for; `None` before the first run and after a failed one.
    key: Option<(u64, usize)>,
    sizes: Vec<i64>,
    table: Vec<*mut u8>,
    arena: *mut u8,
    loops: Vec<Range>,
    /// Of each thread, how many iterations of its share of each launch are taken.
    counters: Vec<AtomicI64>,
    inputs: Vec<Bound>,
    outputs: Vec<Bound>,
    staging_bytes: u64,
    /// How many threads take part, at these sizes.
    governor: Governor,
}

// SAFETY: the pointers are dereferenced by kernels only, during a run, when every one of them has just been bound.
unsafe impl Send for Frame {}

/// Iterations of a launch, and how many a thread takes at a time. An extent below 0 stands for "no parallel loop".
#[derive(Clone, Copy)]
struct Range {
    extent: i64,
    chunk: i64,
}

/// An input or output at the current sizes.
#[derive(Clone, Copy)]
struct Bound {
    bytes: u64,
    /// Offset in staging.
    staging: usize,
    pointer: *mut u8,
}

impl Frame {
    pub(crate) fn new(table: Vec<*mut u8>, launches: usize, inputs: usize, outputs: usize) -> Frame {
        let unbound = Bound { bytes: 0, staging: 0, pointer: std::ptr::null_mut() };
        Frame {
            key: None,
            sizes: vec![],
            table,
            arena: std::ptr::null_mut(),
            loops: vec![Range { extent: -1, chunk: 1 }; launches],
            counters: vec![],
            inputs: vec![unbound; inputs],
            outputs: vec![unbound; outputs],
            staging_bytes: 0,
            governor: Governor::new(1),
        }
    }
}

/// What the threads share during a run.
struct Step<'a> {
    calls: &'a [Call],
    kernels: &'a [KernelFn],
    table: &'a [*mut u8],
    sizes: &'a [i64],
    loops: &'a [Range],
    counters: &'a [AtomicI64],
    /// When each launch began and ended on each worker, where that is asked for.
    stamps: Option<&'a Stamps>,
}

// SAFETY: the pointers are only passed on to kernels, whose contract covers concurrent calls.
unsafe impl Sync for Step<'_> {}

impl Step<'_> {
    /// Every launch in order, as one of the workers. `TIMED` keeps the clock out of runs that are not profiled.
    fn walk<const TIMED: bool>(&self, w: Worker<'_>) {
        for (i, call) in self.calls.iter().enumerate() {
            if call.sync {
                w.barrier();
            }
            let stamp = |end| self.stamps.iter().filter(|_| TIMED).for_each(|s| s.set(w.index, i, end));
            stamp(0);
            let f = self.kernels[call.kernel as usize];
            let args = self.table[call.args as usize..].as_ptr();
            let run = |begin: i64, end: i64| {
                // SAFETY: `Function::new` and the guards have checked that every pointer is valid for its argument at these
                // sizes and that read-only memory is passed to `In` arguments only; ranges of one launch are disjoint;
                // `Code::new` vouches for the kernel; the schedule's barriers order launches.
                unsafe { f(args, self.sizes.as_ptr(), begin, end) }
            };
            let extent = self.loops[i].extent;
            if extent < 0 {
                if w.index == 0 {
                    run(0, 1);
                }
            } else if w.count == 1 {
                if extent > 0 {
                    run(0, extent);
                }
            } else {
                self.deal(i, w, self.loops[i], run);
            }
            stamp(1);
        }
    }

    /// Runs a worker's share of a parallel loop, then chunks of what others have left of theirs. Threads that keep up with each other
    /// touch a counter of another one once, not for every chunk: that is a wait for the other core's cache.
    #[inline]
    fn deal(&self, launch: usize, w: Worker<'_>, Range { extent, chunk }: Range, run: impl Fn(i64, i64)) {
        let count = w.count as i64;
        for other in 0..w.count {
            let whose = (w.index + other) % w.count;
            let taken = &self.counters[whose * self.calls.len() + launch];
            let [first, end] = [0, 1].map(|k| extent * (whose as i64 + k) / count);
            while first + taken.load(Ordering::Relaxed) < end {
                let begin = first + taken.fetch_add(chunk, Ordering::Relaxed);
                if begin >= end {
                    break;
                }
                run(begin, (begin + chunk).min(end));
            }
        }
    }
}

impl Function {
    /// Runs the function once.
    ///
    /// * `arena`: scratch memory, grown when it is too small;
    /// * `states`: storage made for the same list of states, updated in place;
    /// * `sizes`: the values of [`Function::syms`], in order;
    /// * `inputs`, `outputs`: every one of the program's by name, as the bytes of a row-major array at these sizes. Memory that
    ///   is not aligned to 16 bytes is copied.
    ///
    /// Fails before anything runs when a size is out of its bounds (`RUN010`), a length is wrong (`RUN013`) or a buffer does
    /// not fit (`RUN012`). After a panic inside a kernel (`RUN032`) states and outputs are unspecified.
    pub fn run(
        &self,
        pool: &Pool,
        arena: &mut Arena,
        states: &mut States,
        sizes: &[i64],
        inputs: &[(&str, &[u8])],
        outputs: &mut [(&str, &mut [u8])],
    ) -> Result<(), RuntimeError> {
        self.step(pool, arena, states, sizes, inputs, outputs, None)
    }

    /// Like [`Function::run`], always on all threads; tells when each launch ran on each of them.
    pub fn run_profiled(
        &self,
        pool: &Pool,
        arena: &mut Arena,
        states: &mut States,
        sizes: &[i64],
        inputs: &[(&str, &[u8])],
        outputs: &mut [(&str, &mut [u8])],
    ) -> Result<Timeline, RuntimeError> {
        let stamps = Stamps::new(pool.threads(), self.calls.len());
        self.step(pool, arena, states, sizes, inputs, outputs, Some(&stamps))?;
        Ok(stamps.timeline(self.calls.iter().map(|c| c.kernel).collect()))
    }

    #[allow(clippy::too_many_arguments)]
    fn step(
        &self,
        pool: &Pool,
        arena: &mut Arena,
        states: &mut States,
        sizes: &[i64],
        inputs: &[(&str, &[u8])],
        outputs: &mut [(&str, &mut [u8])],
        stamps: Option<&Stamps>,
    ) -> Result<(), RuntimeError> {
        let mut guard = self.frame.lock().unwrap_or_else(PoisonError::into_inner);
        let frame = &mut *guard;
        let key = Some((states.id(), pool.threads()));
        if frame.key != key || frame.sizes != sizes {
            frame.key = None;
            self.resolve(frame, pool.threads(), states, sizes)?;
            let work = frame.loops.iter().fold(0i64, |sum, l| sum.saturating_add(l.extent));
            frame.governor.prepare(pool.threads(), work);
            frame.key = key;
        }
        arena.reserve(self.arena_bytes)?;
        if frame.arena != arena.base() {
            frame.arena = arena.base();
            for &(entry, at) in &self.arena_entries {
                frame.table[entry as usize] = frame.arena.wrapping_add(at);
            }
        }

        check_ports("input", &self.inputs, &frame.inputs, |i| inputs.get(i).map(|(n, b)| (*n, b.len())), inputs.len())?;
        check_ports(
            "output",
            &self.outputs,
            &frame.outputs,
            |i| outputs.get(i).map(|(n, b)| (*n, b.len())),
            outputs.len(),
        )?;
        let unaligned = inputs.iter().any(|(_, b)| !aligned(b)) || outputs.iter().any(|(_, b)| !aligned(b));
        let staging = if unaligned { arena.staging(frame.staging_bytes)? } else { std::ptr::null_mut() };
        for (port, bound) in self.inputs.iter().zip(&mut frame.inputs) {
            let Some((_, bytes)) = inputs.iter().find(|(n, _)| *n == port.name) else { continue };
            let mut pointer = bytes.as_ptr().cast_mut();
            if !aligned(bytes) {
                pointer = staging.wrapping_add(bound.staging);
                // SAFETY: staging holds `staging_bytes`, in which this input has `bytes` of its own at its offset; the length
                // was checked to be that; the memory is the arena's and borrowed by nobody else.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), pointer, bytes.len()) };
            }
            bind(&mut frame.table, port, bound, pointer);
        }
        for (port, bound) in self.outputs.iter().zip(&mut frame.outputs) {
            let Some((_, bytes)) = outputs.iter_mut().find(|(n, _)| *n == port.name) else { continue };
            let mut pointer = bytes.as_mut_ptr();
            if !aligned(bytes) {
                pointer = staging.wrapping_add(bound.staging);
                // Elements that no kernel writes keep their value, as they do in aligned memory.
                // SAFETY: as for inputs.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), pointer, bytes.len()) };
            }
            bind(&mut frame.table, port, bound, pointer);
        }

        frame.counters.iter().for_each(|c| c.store(0, Ordering::Relaxed));
        let step = Step {
            calls: &self.calls,
            kernels: &self.code.kernels,
            table: &frame.table,
            sizes: &frame.sizes,
            loops: &frame.loops,
            counters: &frame.counters,
            stamps,
        };
        match stamps {
            None => {
                let start = Instant::now();
                pool.run_on(frame.governor.active(), &|w| step.walk::<false>(w))?;
                frame.governor.ran(start.elapsed());
            }
            Some(_) => pool.run(&|w| step.walk::<true>(w))?,
        }

        for (port, bound) in self.outputs.iter().zip(&frame.outputs) {
            let Some((_, bytes)) = outputs.iter_mut().find(|(n, _)| *n == port.name) else { continue };
            if !aligned(bytes) {
                // SAFETY: as for inputs; every thread has finished.
                unsafe { std::ptr::copy_nonoverlapping(bound.pointer, bytes.as_mut_ptr(), bytes.len()) };
            }
        }
        Ok(())
    }

    /// Computes what depends on sizes, states and the number of threads.
    fn resolve(&self, frame: &mut Frame, threads: usize, states: &States, sizes: &[i64]) -> Result<(), RuntimeError> {
        if sizes.len() != self.syms.0.len() {
            return Err(RuntimeError::SizeCount { expected: self.syms.0.len(), found: sizes.len() });
        }
        for (d, &value) in self.syms.0.iter().zip(sizes) {
            if value < d.lo || value > d.hi || value % d.multiple != 0 {
                let (name, lo, hi, multiple) = (d.name.clone(), d.lo, d.hi, d.multiple);
                return Err(RuntimeError::Size { name, value, lo, hi, multiple });
            }
        }
        self.guards.iter().try_for_each(|g| g.check(sizes))?;
        states.check(&self.states, sizes)?;
        for &(entry, s) in &self.state_entries {
            frame.table[entry as usize] = states.base(s as usize);
        }
        frame.counters.resize_with(self.calls.len() * threads, Default::default);
        for (range, call) in frame.loops.iter_mut().zip(&self.calls) {
            let Some(e) = &self.extents[call.kernel as usize] else { continue };
            let name = &self.kernel_names[call.kernel as usize];
            match eval_extent(e, sizes) {
                Some(extent) if (0..=MAX_EXTENT).contains(&extent) => {
                    *range = Range { extent, chunk: (extent / (self.chunks * threads as i64)).max(1) };
                }
                v => {
                    let v = v.map_or("no valid value".into(), |v| format!("the value {v}, allowed 0..={MAX_EXTENT},"));
                    let what = format!("the parallel extent of kernel `{name}` has {v} at sizes {sizes:?}");
                    return Err(RuntimeError::Bounds { what });
                }
            }
        }
        let mut staging = 0u64;
        for (ports, bounds) in [(&self.inputs, &mut frame.inputs), (&self.outputs, &mut frame.outputs)] {
            for (port, bound) in ports.iter().zip(bounds) {
                let mut all = port.buffers.iter().map(|(d, s)| eval_bytes(*d, s, sizes));
                let first = all.next().flatten();
                let (Some(bytes), true) = (first, all.all(|b| b == first)) else {
                    let what = format!("`{}` has no valid or no single length at sizes {sizes:?}", port.name);
                    return Err(RuntimeError::Bounds { what });
                };
                bound.bytes = bytes;
                bound.staging = staging as usize;
                staging = staging.saturating_add(bytes).saturating_add(ALIGN as u64 - 1) / ALIGN as u64 * ALIGN as u64;
            }
        }
        frame.staging_bytes = staging;
        frame.sizes.clear();
        frame.sizes.extend_from_slice(sizes);
        Ok(())
    }
}

fn aligned(bytes: &[u8]) -> bool {
    (bytes.as_ptr() as u64).is_multiple_of(KERNEL_ALIGN)
}

fn bind(table: &mut [*mut u8], port: &Port, bound: &mut Bound, pointer: *mut u8) {
    if bound.pointer != pointer {
        bound.pointer = pointer;
        port.entries.iter().for_each(|&e| table[e as usize] = pointer);
    }
}

/// Checks that the given names and lengths are exactly those of the ports.
fn check_ports<'n>(
    kind: &str,
    ports: &[Port],
    bounds: &[Bound],
    given: impl Fn(usize) -> Option<(&'n str, usize)>,
    count: usize,
) -> Result<(), RuntimeError> {
    let fail = |what| Err(RuntimeError::Binding { what });
    for (port, bound) in ports.iter().zip(bounds) {
        let mut matches = (0..count).filter_map(&given).filter(|(n, _)| *n == port.name);
        match (matches.next(), matches.next()) {
            (Some((_, len)), None) if len as u64 == bound.bytes => {}
            (Some((name, len)), None) => {
                return fail(format!("{kind} `{name}` has {len} bytes, {} are expected at these sizes", bound.bytes));
            }
            (Some((name, _)), Some(_)) => return fail(format!("{kind} `{name}` is given twice")),
            (None, _) => return fail(format!("{kind} `{}` is missing", port.name)),
        }
    }
    match (0..count).filter_map(&given).find(|(n, _)| ports.iter().all(|p| p.name != *n)) {
        Some((name, _)) => fail(format!("{kind} `{name}` is not one of the program's")),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;

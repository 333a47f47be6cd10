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
use crate::memory::{ALIGN, Arena, eval_bytes};
use crate::micro::ask_range;
use crate::module::{Function, KERNEL_ALIGN, Port};
use crate::pool::{Pool, Worker};
use crate::states::States;
use crate::timeline::{Stamps, Timeline};
use crate::{RuntimeError, module::Call};

/// Largest extent of a parallel loop; keeps counters far from overflow.
const MAX_EXTENT: i64 = 1 << 40;

/// Bytes of weights that a thread asks for while it waits.
const ASK: u64 = 8 << 10;

/// What is kept between runs.
pub(crate) struct Frame {
    /// What the rest was computed for; `None` before the first run and after a failed one.
    key: Option<(u64, usize)>,
    sizes: Vec<i64>,
    /// Of each thread, the arguments of every launch.
    table: Vec<*mut u8>,
    arena: *mut u8,
    own: *mut u8,
    loops: Vec<Range>,
    /// Of each thread, its share of each launch. After a step none has anything left.
    shares: Vec<Share>,
    /// Number of threads that the shares are of.
    shared_by: usize,
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

/// A thread's share of the iterations of a launch. The thread takes chunks of it, and so do others that have nothing else to do.
struct Share {
    /// Iterations that somebody has taken; at least as many as there are when there are no more, and before the thread has come.
    taken: AtomicI64,
    /// Iterations that others have taken and finished.
    helped: AtomicI64,
}

impl Share {
    /// Nobody takes anything of it.
    fn closed() -> Share {
        Share { taken: AtomicI64::new(MAX_EXTENT), helped: AtomicI64::new(0) }
    }

    /// By its thread, which finds it in its own cache.
    fn open(&self) {
        self.helped.store(0, Ordering::Relaxed);
        self.taken.store(0, Ordering::Release);
    }
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
    pub(crate) fn new(launches: usize, inputs: usize, outputs: usize) -> Frame {
        let unbound = Bound { bytes: 0, staging: 0, pointer: std::ptr::null_mut() };
        Frame {
            key: None,
            sizes: vec![],
            table: vec![],
            arena: std::ptr::null_mut(),
            own: std::ptr::null_mut(),
            loops: vec![Range { extent: -1, chunk: 1 }; launches],
            shares: vec![],
            shared_by: 0,
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
    /// Of each thread, the arguments of every launch.
    table: &'a [*mut u8],
    /// Entries of a thread's table.
    width: usize,
    sizes: &'a [i64],
    loops: &'a [Range],
    shares: &'a [Share],
    /// When each launch began and ended on each worker, where that is asked for.
    stamps: Option<&'a Stamps>,
}

// SAFETY: the pointers are only passed on to kernels, whose contract covers concurrent calls.
unsafe impl Sync for Step<'_> {}

impl Step<'_> {
    /// Every launch in order, as one of the workers. `TIMED` keeps the clock out of runs that are not profiled.
    fn walk<const TIMED: bool>(&self, w: Worker<'_>) {
        let stamp = |i, end| self.stamps.iter().filter(|_| TIMED).for_each(|s| s.set(w.index, i, end));
        if w.count > 1 {
            self.shares[w.index * self.calls.len()..][..self.calls.len()].iter().for_each(Share::open);
        }
        // Launches from here on may still run on other threads.
        let mut since = 0;
        let help = |launches: std::ops::Range<usize>| {
            let last = launches.end.saturating_sub(1);
            for i in launches {
                if self.help(i, w) {
                    // What a thread does for an earlier launch counts as the last one's: launches follow each other on each thread.
                    stamp(last, 1);
                }
            }
        };
        for (i, call) in self.calls.iter().enumerate() {
            if call.sync && w.count > 1 {
                w.barrier_or(|| self.ask(i, w), || help(since..i));
                since = i;
            }
            stamp(i, 0);
            let Range { extent, .. } = self.loops[i];
            if extent < 0 {
                if w.index == 0 || call.own {
                    self.call(i, w, 0, 1);
                }
            } else if w.count == 1 {
                self.call(i, w, 0, extent);
            } else {
                self.work(i, w);
            }
            stamp(i, 1);
        }
        if w.count > 1 {
            help(since..self.calls.len());
        }
    }

    /// Asks for the weights that a worker's share of the next product begins with, before a launch that waits.
    #[inline]
    fn ask(&self, launch: usize, w: Worker<'_>) {
        let Some(next) = self.calls[launch].ask else { return };
        let call = &self.calls[next as usize];
        let extent = self.loops[next as usize].extent.max(1) as u64;
        let [first, _] = self.share(next as usize, w.index, w.count);
        let total = call.weights.iter().map(|(_, bytes)| bytes).sum::<u64>().max(1);
        for &(entry, bytes) in &call.weights {
            let from = self.table[w.index * self.width + entry as usize];
            ask_range(
                from.wrapping_add((bytes / extent * first as u64) as usize),
                (ASK.saturating_mul(bytes) / total) as usize,
            );
        }
    }

    /// Runs iterations of a launch.
    #[inline]
    fn call(&self, launch: usize, w: Worker<'_>, begin: i64, end: i64) {
        let call = &self.calls[launch];
        if begin < end {
            let args = self.table[w.index * self.width + call.args as usize..].as_ptr();
            // SAFETY: `Function::new` and the guards have checked that every pointer is valid for its argument at these
            // sizes and that read-only memory is passed to `In` arguments only; ranges of one launch are disjoint;
            // `Code::new` vouches for the kernel; the schedule's barriers order launches.
            unsafe { self.kernels[call.kernel as usize](args, self.sizes.as_ptr(), begin, end) }
        }
    }

    /// Runs what is left of a thread's share of a parallel loop, chunk by chunk; returns the number of iterations.
    #[inline]
    fn take(&self, launch: usize, whose: usize, w: Worker<'_>) -> i64 {
        let Range { chunk, .. } = self.loops[launch];
        let [first, end] = self.share(launch, whose, w.count);
        let taken = &self.shares[whose * self.calls.len() + launch].taken;
        let mut done = 0;
        loop {
            let begin = first + taken.fetch_add(chunk, Ordering::Acquire);
            if begin >= end {
                return done;
            }
            let end = (begin + chunk).min(end);
            self.call(launch, w, begin, end);
            done += end - begin;
        }
    }

    /// First iteration of a thread's share, and the one after its last.
    fn share(&self, launch: usize, whose: usize, count: usize) -> [i64; 2] {
        [whose, whose + 1].map(|k| self.loops[launch].extent * k as i64 / count as i64)
    }

    /// Runs a worker's share of a parallel loop and waits for those who took parts of it. The worker touches no memory that another
    /// thread writes, unless one has helped: each time it would wait for the other core's cache.
    #[inline]
    fn work(&self, launch: usize, w: Worker<'_>) {
        let own = self.take(launch, w.index, w);
        let [first, end] = self.share(launch, w.index, w.count);
        let helped = &self.shares[w.index * self.calls.len() + launch].helped;
        let mut spins = 0;
        while own + helped.load(Ordering::Acquire) < end - first {
            w.wait(&mut spins);
        }
    }

    /// Takes chunks of what others have left of a launch; returns whether there was anything.
    #[cold]
    fn help(&self, launch: usize, w: Worker<'_>) -> bool {
        let mut any = false;
        for whose in (0..w.count).filter(|&t| t != w.index) {
            let done = self.take(launch, whose, w);
            if done > 0 {
                self.shares[whose * self.calls.len() + launch].helped.fetch_add(done, Ordering::Release);
                any = true;
            }
        }
        any
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
        self.reserve(frame, arena)?;

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
            bind(&mut frame.table, self.table.0.len(), port, bound, pointer);
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
            bind(&mut frame.table, self.table.0.len(), port, bound, pointer);
        }

        let active = if stamps.is_none() { frame.governor.active() } else { pool.threads() };
        if frame.shared_by != active {
            frame.shares.fill_with(Share::closed);
        }
        // Until the step has succeeded.
        frame.shared_by = 0;
        let step = Step {
            calls: &self.calls,
            kernels: &self.code.kernels,
            table: &frame.table,
            width: self.table.0.len(),
            sizes: &frame.sizes,
            loops: &frame.loops,
            shares: &frame.shares,
            stamps,
        };
        match stamps {
            None => {
                let start = Instant::now();
                pool.run_on(active, &|w| step.walk::<false>(w))?;
                frame.governor.ran(start.elapsed());
            }
            Some(_) => pool.run(&|w| step.walk::<true>(w))?,
        }
        frame.shared_by = active;

        for (port, bound) in self.outputs.iter().zip(&frame.outputs) {
            let Some((_, bytes)) = outputs.iter_mut().find(|(n, _)| *n == port.name) else { continue };
            if !aligned(bytes) {
                // SAFETY: as for inputs; every thread has finished.
                unsafe { std::ptr::copy_nonoverlapping(bound.pointer, bytes.as_mut_ptr(), bytes.len()) };
            }
        }
        Ok(())
    }

    /// Makes room for what lies in the arena and what threads have for themselves.
    fn reserve(&self, frame: &mut Frame, arena: &mut Arena) -> Result<(), RuntimeError> {
        arena.reserve(self.arena_bytes)?;
        let threads = frame.table.len().checked_div(self.table.0.len()).unwrap_or(0);
        let own = arena.own(self.own_bytes.saturating_mul(threads as u64))?;
        if (frame.arena, frame.own) != (arena.base(), own) {
            (frame.arena, frame.own) = (arena.base(), own);
            for (t, table) in frame.table.chunks_exact_mut(self.table.0.len().max(1)).enumerate() {
                for (entries, base) in [
                    (&self.arena_entries, arena.base()),
                    (&self.own_entries, own.wrapping_add(t * self.own_bytes as usize)),
                ] {
                    entries.iter().for_each(|&(entry, at)| table[entry as usize] = base.wrapping_add(at));
                }
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
        if frame.table.len() != self.table.0.len() * threads {
            frame.table = self.table.0.repeat(threads);
            // Nothing is bound any more.
            frame.arena = std::ptr::null_mut();
            frame.inputs.iter_mut().chain(&mut frame.outputs).for_each(|b| b.pointer = std::ptr::null_mut());
        }
        for table in frame.table.chunks_exact_mut(self.table.0.len().max(1)) {
            for &(entry, s) in &self.state_entries {
                table[entry as usize] = states.base(s as usize);
            }
        }
        frame.shares.resize_with(self.calls.len() * threads, Share::closed);
        frame.shared_by = 0;
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

/// Points the entries of a port, in tables of `width` entries, to its memory.
fn bind(tables: &mut [*mut u8], width: usize, port: &Port, bound: &mut Bound, pointer: *mut u8) {
    if bound.pointer != pointer {
        bound.pointer = pointer;
        for table in tables.chunks_exact_mut(width.max(1)) {
            port.entries.iter().for_each(|&e| table[e as usize] = pointer);
        }
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

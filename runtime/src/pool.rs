//! A fork-join thread pool for short steps: workers enter a job together, meet at spinning barriers inside it, and park
//! between jobs.
//!
//! The caller is worker 0. A job is a whole step (hundreds of kernels), so that wake-ups are paid once a step and kernels are
//! separated by a barrier of well under a microsecond. Waiting threads spin, then yield the core, so that a machine that is
//! busy otherwise slows a step down but does not stop it.
//!
//! Invariants behind the `unsafe` parts:
//! * `job` is written only by the caller that holds `turn`, while no worker is inside a job (`running == 0`), and published
//!   by the `Release` store of `sequence`; a worker reads it only after an `Acquire` load saw the new sequence;
//! * the caller does not leave [`Pool::run`] before `running` is 0 again, so the borrowed closure outlives every use;
//! * a worker starts from sequence 0, the value at construction, never from what it reads when it gets going: a worker that
//!   is scheduled late still sees the first job.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::RuntimeError;

/// Spins before a waiting thread yields its core.
const SPINS: u32 = 2_000;
/// Spins at a barrier before a thread looks for something else to do.
const PATIENCE: u32 = 24;
/// Spins before a waiting thread yields where there are more threads than cores: whoever is waited for needs the core.
const SPINS_CROWDED: u32 = 100;
/// How long a worker waits for the next job before it parks.
const LINGER: Duration = Duration::from_micros(300);

/// Bits of [`Shared::sequence`] below the number of jobs.
const ACTIVE_BITS: u32 = 16;

type Job<'j> = dyn for<'a> Fn(Worker<'a>) + Sync + 'j;

/// A value on a cache line of its own.
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    count: usize,
    spins: u32,
    /// Number of jobs started, above the number of threads that the last one has: a change starts those.
    sequence: Line<AtomicU64>,
    /// Workers (without the caller) still inside the job.
    running: Line<AtomicUsize>,
    /// How many barriers each thread of the job has come to.
    arrived: Vec<Line<AtomicU64>>,
    /// A thread of this job panicked: whoever waits at a barrier gives up.
    broken: AtomicBool,
    stop: AtomicBool,
    failure: Mutex<Option<(usize, Box<dyn Any + Send>)>>,
    job: UnsafeCell<Option<*const Job<'static>>>,
    parked: Vec<Line<AtomicBool>>,
}

// SAFETY: `job` is the only field that is not already `Sync`/`Send`; its accesses are ordered as the module text says, and
// the closure behind it is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// Unwinds a thread out of a barrier when another thread has panicked.
struct Broken;

thread_local! {
    /// Address of the pool whose job this thread is in.
    static INSIDE: Cell<usize> = const { Cell::new(0) };
}

/// A thread pool with a fixed number of threads.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
    turn: Mutex<()>,
}

/// The place of one thread in a job.
#[derive(Clone, Copy)]
pub struct Worker<'a> {
    /// Which thread, from 0; 0 is the caller of [`Pool::run`].
    pub index: usize,
    /// How many threads there are.
    pub count: usize,
    shared: &'a Shared,
}

impl Worker<'_> {
    /// Waits until every thread of the job is here. Every thread must call it equally often.
    ///
    /// What a thread wrote before the barrier is visible to all after it. When another thread has panicked this unwinds, and
    /// [`Pool::run`] reports the panic.
    #[inline]
    pub fn barrier(&self) {
        self.barrier_or(|| {}, || {});
    }

    /// Like [`Worker::barrier`]; a thread calls `first` when it has come, and `meanwhile` when it waits for long. It counts as being here
    /// already: the others do not wait for what it does.
    ///
    /// Each thread writes a cache line of its own and reads those of the others. A core far away needs a few hundred nanoseconds
    /// to see a line change, and this takes one such time where a shared counter takes two or three.
    #[inline]
    pub fn barrier_or(&self, first: impl FnOnce(), meanwhile: impl FnOnce()) {
        let arrived = &self.shared.arrived[..self.count];
        let own = &arrived[self.index].0;
        let number = own.load(Ordering::Relaxed) + 1;
        own.store(number, Ordering::Release);
        first();
        let mut meanwhile = Some(meanwhile);
        let mut spins = 0;
        for other in arrived {
            while other.0.load(Ordering::Acquire) < number {
                if spins == PATIENCE
                    && let Some(f) = meanwhile.take()
                {
                    f();
                }
                self.wait(&mut spins);
            }
        }
    }

    /// One turn of a loop that waits for another thread of the job; unwinds when one has panicked.
    #[inline]
    pub fn wait(&self, spins: &mut u32) {
        if self.shared.broken.load(Ordering::Relaxed) {
            resume_unwind(Box::new(Broken));
        }
        wait(spins, self.shared.spins);
    }
}

/// One turn of a waiting loop.
#[inline]
fn wait(spins: &mut u32, limit: u32) {
    if *spins < limit {
        *spins += 1;
        spin_loop();
    } else {
        thread::yield_now();
    }
}

impl Shared {
    /// Runs the job as one worker of `count` and keeps its panic, if any.
    fn work(&self, index: usize, count: usize, job: &Job<'_>) {
        let before = INSIDE.replace(self as *const Shared as usize);
        let done = catch_unwind(AssertUnwindSafe(|| job(Worker { index, count, shared: self })));
        INSIDE.set(before);
        if let Err(payload) = done {
            if !payload.is::<Broken>() {
                let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert((index, payload));
            }
            self.broken.store(true, Ordering::Relaxed);
        }
    }

    fn worker(&self, index: usize) {
        let mut seen = 0;
        loop {
            seen = match self.next_sequence(index, seen) {
                Some(s) => s,
                None => return,
            };
            let active = (seen & ((1 << ACTIVE_BITS) - 1)) as usize;
            if index >= active {
                continue;
            }
            // SAFETY: the sequence changed, so the caller has published a job and waits for the active workers in `running`.
            let job = unsafe { *self.job.get() };
            if let Some(job) = job {
                // SAFETY: the closure is borrowed by the caller until `running` is 0.
                self.work(index, active, unsafe { &*job });
            }
            self.running.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a job after number `seen`; `None` when the pool is dropped.
    fn next_sequence(&self, index: usize, seen: u64) -> Option<u64> {
        let parked = &self.parked[index].0;
        let start = Instant::now();
        let mut turns = 0u32;
        loop {
            let now = self.sequence.0.load(Ordering::Acquire);
            if now != seen {
                return (!self.stop.load(Ordering::Relaxed)).then_some(now);
            }
            turns += 1;
            if !turns.is_multiple_of(64) {
                spin_loop();
                continue;
            }
            if self.spins == SPINS && start.elapsed() < LINGER {
                continue;
            }
            // Either the caller sees `parked` and unparks, or this thread sees the new sequence: both accesses are SeqCst.
            parked.store(true, Ordering::SeqCst);
            if self.sequence.0.load(Ordering::SeqCst) == seen {
                thread::park();
            }
            parked.store(false, Ordering::SeqCst);
        }
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller's included; 0 counts as 1.
    ///
    /// Fails when the system refuses a thread.
    pub fn new(threads: usize) -> Result<Pool, RuntimeError> {
        let count = threads.clamp(1, (1 << ACTIVE_BITS) - 1);
        let cores = thread::available_parallelism().map_or(1, |n| n.get());
        let shared = Arc::new(Shared {
            count,
            spins: if count > cores { SPINS_CROWDED } else { SPINS },
            sequence: Line(AtomicU64::new(0)),
            running: Line(AtomicUsize::new(0)),
            arrived: (0..count).map(|_| Line(AtomicU64::new(0))).collect(),
            broken: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
            job: UnsafeCell::new(None),
            parked: (0..count).map(|_| Line(AtomicBool::new(false))).collect(),
        });
        let mut pool = Pool { shared, threads: vec![], handles: vec![], turn: Mutex::new(()) };
        for index in 1..count {
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new()
                .name(format!("marquetry-{index}"))
                .spawn(move || shared.worker(index))
                .map_err(|source| RuntimeError::Thread { index, count, source })?;
            pool.handles.push(thread.thread().clone());
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.shared.count
    }

    /// Runs `f` once on every thread; as [`Pool::run_on`].
    pub fn run(&self, f: &(dyn for<'a> Fn(Worker<'a>) + Sync)) -> Result<(), RuntimeError> {
        self.run_on(self.threads(), f)
    }

    /// Runs `f` once on each of the first `active` threads, at least 1 and at most all, and returns when all have finished. Calls from several threads take turns.
    ///
    /// A panic inside `f` is caught and returned as [`RuntimeError::Panic`] after every thread has left; the pool stays
    /// usable. A call from inside a job of the same pool fails with [`RuntimeError::Nested`].
    pub fn run_on(&self, active: usize, f: &(dyn for<'a> Fn(Worker<'a>) + Sync)) -> Result<(), RuntimeError> {
        let s = &*self.shared;
        let active = active.clamp(1, s.count);
        if INSIDE.get() == s as *const Shared as usize {
            return Err(RuntimeError::Nested);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        s.arrived.iter().for_each(|a| a.0.store(0, Ordering::Relaxed));
        if active > 1 {
            // SAFETY: only the lifetime changes; this function does not return while a worker may use the pointer.
            let job = unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(f) };
            // SAFETY: `turn` is held and no worker is inside a job.
            unsafe { *s.job.get() = Some(job) };
            s.running.0.store(active - 1, Ordering::Relaxed);
            self.start(active);
        }
        s.work(0, active, f);
        let mut spins = 0;
        while s.running.0.load(Ordering::Acquire) != 0 {
            wait(&mut spins, s.spins);
        }
        if !s.broken.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let failure = s.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (worker, message) = failure.map_or((0, String::new()), |(w, p)| (w, panic_message(&*p)));
        Err(RuntimeError::Panic { worker, message })
    }

    fn start(&self, active: usize) {
        let jobs = (self.shared.sequence.0.load(Ordering::Relaxed) >> ACTIVE_BITS).wrapping_add(1);
        self.shared.sequence.0.store(jobs << ACTIVE_BITS | active as u64, Ordering::SeqCst);
        for (flag, thread) in self.shared.parked[1..active].iter().zip(&self.handles) {
            if flag.0.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.start(self.shared.count);
        for t in self.threads.drain(..) {
            // A worker catches the panics of jobs, so there is nothing to report here.
            let _ = t.join();
        }
    }
}

fn panic_message(p: &(dyn Any + Send)) -> String {
    if let Some(s) = p.downcast_ref::<&str>() {
        return (*s).to_string();
    }
    p.downcast_ref::<String>().cloned().unwrap_or_else(|| "(no message)".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_runs_once_and_barriers_order_writes() {
        for threads in 1..=9 {
            let pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            let cells: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            let wrong = AtomicUsize::new(0);
            for round in 1..=300 {
                pool.run(&|w| {
                    cells[w.index].store(round, Ordering::Relaxed);
                    for step in 0..3 {
                        w.barrier();
                        let seen = cells[(w.index + 1) % w.count].load(Ordering::Relaxed);
                        wrong.fetch_add(usize::from(seen != round + step), Ordering::Relaxed);
                        w.barrier();
                        cells[w.index].store(round + step + 1, Ordering::Relaxed);
                    }
                })
                .unwrap();
            }
            assert_eq!(wrong.into_inner(), 0, "{threads} threads");
        }
    }

    #[test]
    fn a_hundred_thousand_runs_lose_none() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        for _ in 0..100_000 {
            pool.run(&|w| {
                sum.fetch_add(w.index + 1, Ordering::Relaxed);
            })
            .unwrap();
        }
        assert_eq!(sum.into_inner(), 300_000);
    }

    #[test]
    fn any_number_of_threads_takes_part() {
        let pool = Pool::new(5).unwrap();
        for round in 0..20_000usize {
            let active = 1 + round * 7 % 5;
            let (sum, before) = (AtomicUsize::new(0), AtomicUsize::new(0));
            pool.run_on(active, &|w| {
                assert_eq!(w.count, active);
                before.fetch_add(1, Ordering::Relaxed);
                w.barrier();
                sum.fetch_add(w.index + before.load(Ordering::Relaxed), Ordering::Relaxed);
            })
            .unwrap();
            assert_eq!(sum.into_inner(), active * active + active * (active - 1) / 2);
        }
    }

    #[test]
    fn parked_workers_wake_up() {
        let pool = Pool::new(3).unwrap();
        for i in 0..50 {
            let sum = AtomicUsize::new(0);
            pool.run(&|w| {
                sum.fetch_add(w.index, Ordering::Relaxed);
            })
            .unwrap();
            assert_eq!(sum.into_inner(), 3);
            thread::sleep(Duration::from_micros(i * 10));
        }
    }

    #[test]
    fn dropping_joins_even_before_the_first_job() {
        for threads in 1..6 {
            for _ in 0..50 {
                drop(Pool::new(threads).unwrap());
            }
        }
    }

    #[test]
    fn a_panic_is_reported_and_the_pool_goes_on() {
        let pool = Pool::new(3).unwrap();
        for bad in 0..3 {
            let r = pool.run(&|w| {
                w.barrier();
                if w.index == bad {
                    resume_unwind(Box::new(format!("no {bad}")));
                }
                w.barrier();
            });
            match r {
                Err(RuntimeError::Panic { worker, message }) => {
                    assert_eq!((worker, message), (bad, format!("no {bad}")))
                }
                other => panic!("{other:?}"),
            }
            pool.run(&|w| (0..10).for_each(|_| w.barrier())).unwrap();
        }
    }

    #[test]
    fn nesting_is_refused_and_callers_take_turns() {
        let pool = Pool::new(2).unwrap();
        let nested = AtomicUsize::new(0);
        pool.run(&|_| {
            nested.fetch_add(usize::from(matches!(pool.run(&|_| {}), Err(RuntimeError::Nested))), Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(nested.into_inner(), 2);
        let sum = AtomicUsize::new(0);
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..200 {
                        pool.run(&|w| {
                            w.barrier();
                            sum.fetch_add(1, Ordering::Relaxed);
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 1600);
    }

    /// Prints the cost of a barrier and of an empty job: `cargo test --release -- --ignored --nocapture barrier_cost`.
    #[test]
    #[ignore = "a measurement"]
    fn barrier_cost() {
        for threads in 1..=2 {
            let pool = Pool::new(threads).unwrap();
            let n = 20_000;
            let mut best = [f64::MAX; 2];
            for _ in 0..10 {
                let t = Instant::now();
                pool.run(&|w| (0..n).for_each(|_| w.barrier())).unwrap();
                best[0] = best[0].min(t.elapsed().as_nanos() as f64 / f64::from(n));
                let t = Instant::now();
                (0..n).for_each(|_| pool.run(&|_| {}).unwrap());
                best[1] = best[1].min(t.elapsed().as_nanos() as f64 / f64::from(n));
            }
            println!("{threads} threads: barrier {:.0} ns, empty job {:.0} ns", best[0], best[1]);
        }
    }
}

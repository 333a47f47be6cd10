//! Where the time of steps goes: kernels with their times, what they compute and touch, and where they come from.
//!
//! Times are measured ([`crate::engine::Engine::record`]); operations and bytes follow from the loops of each kernel at the sizes of
//! the step ([`crate::ir::loops::cost`]). Bytes are those of distinct elements that a launch touches. Weights and states are taken
//! to come from memory, everything else is small and stays in caches.

mod table;
mod trace;

use std::collections::HashMap;

use marquetry_ir::loops::cost::{Cost, cost};
use marquetry_ir::program::{Launch, Place, Program};
use marquetry_passes::fuse::Origin;
use marquetry_runtime::probe::Peaks;
use serde_json::{Value, json};

use crate::engine::Recorded;

pub use trace::trace;

/// What launches compute and touch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Operations on floats.
    pub flops: f64,
    /// Operations on 8-bit integers.
    pub int8_ops: f64,
    /// Bytes of weights that are read.
    pub weight_bytes: f64,
    /// Bytes of states that are read.
    pub state_bytes: f64,
    /// All other bytes that are read or written.
    pub other_bytes: f64,
}

impl Work {
    /// Bytes that come from memory.
    pub fn memory_bytes(&self) -> f64 {
        self.weight_bytes + self.state_bytes
    }

    /// All bytes.
    pub fn bytes(&self) -> f64 {
        self.memory_bytes() + self.other_bytes
    }

    /// Seconds that the operations take at least.
    fn least_seconds(&self, peaks: &Peaks) -> Option<f64> {
        Some(self.flops / peaks.flops? + self.int8_ops / peaks.int8_ops?)
    }

    fn add(&mut self, mut o: Work) {
        for (sum, more) in self.parts().into_iter().zip(o.parts()) {
            *sum += *more;
        }
    }

    /// One of that many equal shares.
    fn share(mut self, count: f64) -> Work {
        self.parts().into_iter().for_each(|part| *part /= count);
        self
    }

    fn parts(&mut self) -> [&mut f64; 5] {
        let Work { flops, int8_ops, weight_bytes, state_bytes, other_bytes } = self;
        [flops, int8_ops, weight_bytes, state_bytes, other_bytes]
    }

    fn of(cost: &Cost, program: &Program, launch: &Launch) -> Work {
        let mut w = Work { flops: cost.flops as f64, int8_ops: cost.int8_ops as f64, ..Work::default() };
        for (touched, id) in cost.args.iter().zip(&launch.args) {
            match program.buffers.get(id.0 as usize).map(|b| &b.place) {
                Some(Place::Weight(..)) => w.weight_bytes += touched.read as f64,
                Some(Place::State(_)) => w.state_bytes += touched.read as f64,
                _ => w.other_bytes += touched.read as f64,
            }
            w.other_bytes += touched.written as f64;
        }
        w
    }
}

/// What the cost of a launch depends on: its kernel, the sizes, and the contents of arguments that are inputs.
type Key = (u32, Vec<i64>, Vec<Option<Vec<i32>>>);

/// Costs that were computed.
struct Costs<'a> {
    program: &'a Program,
    known: HashMap<Key, Cost>,
}

impl Costs<'_> {
    fn launch(&mut self, launch: &Launch, step: &Recorded) -> Work {
        let Some(kernel) = self.program.kernels.get(launch.kernel.0 as usize) else { return Work::default() };
        let place = |id: &marquetry_ir::program::BufferId| Some(&self.program.buffers.get(id.0 as usize)?.place);
        let contents = launch.args.iter().map(|id| match place(id) {
            Some(Place::Input(name)) => step.input(name).map(<[i32]>::to_vec),
            _ => None,
        });
        let key = (launch.kernel.0, step.sizes.clone(), contents.collect::<Vec<_>>());
        let contents: Vec<Option<&[i32]>> = key.2.iter().map(Option::as_deref).collect();
        let found = match self.known.get(&key) {
            Some(known) => known,
            None => {
                let new = cost(kernel, &step.sizes, &contents);
                self.known.entry(key).or_insert(new)
            }
        };
        Work::of(found, self.program, launch)
    }
}

/// What one step computes and touches.
pub fn work(program: &Program, step: &Recorded) -> Work {
    let mut costs = Costs { program, known: HashMap::new() };
    let mut all = Work::default();
    program.launches.iter().for_each(|l| all.add(costs.launch(l, step)));
    all
}

/// One kernel in all steps.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelProfile {
    /// Its name in the program.
    pub name: String,
    /// Where it comes from, where that is known.
    pub origin: Option<Origin>,
    /// Launches per run.
    pub calls: f64,
    /// Seconds per run, the median of all runs. Waiting for the slowest thread is part of it.
    pub seconds: f64,
    /// The share of its time that threads wait, on the average.
    pub idle: f64,
    /// What it computes and touches per run, on the average.
    pub work: Work,
}

/// Kernels of a function over several runs, the most expensive first. A run is a step, or the steps of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Name of the function's shape bucket.
    pub bucket: &'static str,
    /// Runs that were measured.
    pub runs: usize,
    /// Threads.
    pub threads: usize,
    /// Tokens per run, on the average.
    pub tokens: f64,
    /// Seconds per run, the median.
    pub seconds: f64,
    /// Seconds per run outside of every kernel, the median: inputs, waking threads, bookkeeping.
    pub outside: f64,
    /// The kernels.
    pub kernels: Vec<KernelProfile>,
    /// All kernels together, per run.
    pub work: Work,
}

/// Sums of one kernel.
#[derive(Clone, Default)]
struct Sums {
    calls: usize,
    busy: f64,
    time: f64,
    work: Work,
    /// Seconds of each run.
    runs: Vec<f64>,
}

impl Profile {
    /// The profile of runs of one program; each run is one step or more, and all steps are of that program.
    pub fn new(bucket: &'static str, program: &Program, origins: &[Origin], runs: &[&[Recorded]]) -> Profile {
        let count = runs.len().max(1) as f64;
        let mut sums = vec![Sums::default(); program.kernels.len()];
        let mut costs = Costs { program, known: HashMap::new() };
        let (mut whole, mut outside, mut tokens, mut threads) = (vec![], vec![], 0, 1);
        for run in runs {
            sums.iter_mut().for_each(|s| s.runs.push(0.0));
            let (mut seconds, mut inside) = (0.0, 0.0);
            for step in *run {
                tokens += step.tokens;
                seconds += step.seconds;
                threads = step.timeline.threads().count().max(1);
                let times = step.timeline.times().into_iter().zip(step.timeline.busy());
                for (launch, (time, busy)) in program.launches.iter().zip(times) {
                    let Some(s) = sums.get_mut(launch.kernel.0 as usize) else { continue };
                    let time = time as f64 / 1e9;
                    inside += time;
                    s.calls += 1;
                    s.busy += busy as f64 / 1e9;
                    s.time += time;
                    s.work.add(costs.launch(launch, step));
                    if let Some(last) = s.runs.last_mut() {
                        *last += time;
                    }
                }
            }
            whole.push(seconds);
            outside.push((seconds - inside).max(0.0));
        }
        let mut work = Work::default();
        let mut kernels: Vec<KernelProfile> = vec![];
        for (k, s) in program.kernels.iter().zip(sums).filter(|(_, s)| s.calls > 0) {
            let each = s.work.share(count);
            work.add(each);
            kernels.push(KernelProfile {
                name: k.name.clone(),
                origin: origins.iter().find(|o| o.kernel == k.name).cloned(),
                calls: s.calls as f64 / count,
                seconds: median(s.runs),
                idle: (1.0 - s.busy / (s.time * threads as f64).max(1e-12)).clamp(0.0, 1.0),
                work: each,
            });
        }
        kernels.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let tokens = tokens as f64 / count;
        let (seconds, outside) = (median(whole), median(outside));
        Profile { bucket, runs: runs.len(), threads, tokens, seconds, outside, kernels, work }
    }

    /// The profile as data, with shares of what the machine can do at most.
    pub fn json(&self, peaks: &Peaks) -> Value {
        let kernels = self.kernels.iter().map(|k| {
            let mut v = json!({ "name": k.name, "calls": k.calls, "idle": k.idle });
            merge(&mut v, rates(&k.work, k.seconds, peaks));
            v["share"] = json!(share(k.seconds, self.seconds));
            v["operators"] = json!(k.origin.as_ref().map(|o| &o.operators));
            v["places"] = json!(k.origin.as_ref().map(|o| &o.places));
            v
        });
        let kernels: Vec<Value> = kernels.collect();
        let mut v = json!({
            "bucket": self.bucket, "runs": self.runs, "threads": self.threads, "tokens": self.tokens,
            "outside_s": self.outside,
        });
        merge(&mut v, rates(&self.work, self.seconds, peaks));
        v["kernels"] = json!(kernels);
        v
    }
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// Work and time, and how near both come to the machine's rates.
fn rates(w: &Work, seconds: f64, peaks: &Peaks) -> Value {
    json!({
        "seconds": seconds, "flops": w.flops, "int8_ops": w.int8_ops, "bytes": w.bytes(), "weight_bytes": w.weight_bytes,
        "state_bytes": w.state_bytes,
        "read_percent": percent(w.memory_bytes() / peaks.read, seconds),
        "arithmetic_percent": w.least_seconds(peaks).map(|s| percent(s, seconds)),
    })
}

fn percent(part: f64, whole: f64) -> f64 {
    100.0 * share(part, whole)
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// The median; 0 of nothing.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n == 0 { 0.0 } else { (values[(n - 1) / 2] + values[n / 2]) / 2.0 }
}

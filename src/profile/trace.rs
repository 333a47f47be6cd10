//! Steps as a trace in the format of Chrome's trace viewer, which Perfetto opens, too.

use marquetry_ir::program::Program;
use serde_json::{Value, json};

use crate::engine::Recorded;

/// A trace of steps, each with its program: one row per thread with what it ran, and the steps around those of the first one.
///
/// Times are microseconds after the first step began.
pub fn trace(steps: &[(&Recorded, &Program)]) -> Value {
    let Some(zero) = steps.iter().map(|(s, _)| s.start).min() else { return json!({ "traceEvents": [] }) };
    let threads = steps.iter().map(|(s, _)| s.timeline.threads().count()).max().unwrap_or(0);
    let named = |i: usize| json!({ "ph": "M", "name": "thread_name", "pid": 1, "tid": i, "args": { "name": format!("thread {i}") } });
    let mut events: Vec<Value> = (0..threads).map(named).collect();
    for (step, program) in steps {
        let micros = |of: std::time::Instant| of.duration_since(zero).as_nanos() as f64 / 1e3;
        let name = format!("{}, {} tokens", step.bucket.name(), step.tokens);
        let sizes: serde_json::Map<String, Value> =
            program.syms.0.iter().zip(&step.sizes).map(|(d, v)| (d.name.clone(), json!(v))).collect();
        events.push(event(&name, "step", 0, micros(step.start), step.seconds * 1e6, json!(sizes)));
        let base = micros(step.timeline.start);
        for (thread, spans) in step.timeline.threads().enumerate() {
            for (i, (span, kernel)) in spans.iter().zip(&step.timeline.kernels).enumerate() {
                let Some(k) = program.kernels.get(*kernel as usize) else { continue };
                let (begin, end) = (span.begin as f64 / 1e3, span.end as f64 / 1e3);
                events.push(event(&k.name, "kernel", thread, base + begin, end - begin, json!({ "launch": i })));
            }
        }
    }
    json!({ "displayTimeUnit": "ns", "traceEvents": events })
}

fn event(name: &str, cat: &str, thread: usize, begin: f64, length: f64, args: Value) -> Value {
    json!({ "name": name, "cat": cat, "ph": "X", "pid": 1, "tid": thread, "ts": begin, "dur": length, "args": args })
}

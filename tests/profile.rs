//! `bench --profile` and `--trace`: figures against those computed by hand, and times that add up.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use marquetry::cli::captured;
use marquetry::engine::{Bucket, Recorded};
use marquetry::ir::text::parse_program;
use marquetry::profile::{Profile, trace, work};
use marquetry::runtime::probe::Peaks;
use marquetry::runtime::{Span, Timeline};
use serde_json::{Value, json};

/// 2 layers; 4 heads and 2 key heads of 16; 64 features, 128 inside, 160 tokens; all weights are f32.
fn model() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracles/llama/base").display().to_string()
}

fn bench(args: &[&str]) -> String {
    let model = model();
    let fixed = ["bench", &model, "--prompt", "9", "--gen", "3", "--reps", "2", "--threads", "2", "--no-cache", "-q"];
    let out = captured(&[&fixed[..], args].concat());
    assert_eq!(out.status, 0, "{}", out.stderr);
    out.stdout
}

fn num(v: &Value) -> f64 {
    v.as_f64().unwrap_or_else(|| panic!("{v}"))
}

/// Calls, operations on floats and bytes of weights of the kernels around an operator, the smallest first.
fn around(profile: &Value, operator: &str) -> Vec<[u64; 3]> {
    let all = profile["kernels"].as_array().unwrap().iter();
    let mut found: Vec<[u64; 3]> = all
        .filter(|k| k["operators"][0] == operator)
        .map(|k| ["calls", "flops", "weight_bytes"].map(|key| num(&k[key]) as u64))
        .collect();
    found.sort_by_key(|k| (k[2], k[1]));
    found
}

#[test]
fn kernels_of_a_small_model_cost_what_they_do_by_hand() {
    for args in [&["--json", "--profile"][..], &["--json", "--profile", "--routines", "none"]] {
        let report: Value = serde_json::from_str(&bench(args)).unwrap();
        let [decode, prefill] = [&report["profile"][0], &report["profile"][1]];
        assert_eq!((&decode["bucket"], &prefill["bucket"]), (&json!("decode"), &json!("prefill")));
        assert_eq!((&decode["runs"], &prefill["runs"]), (&json!(6), &json!(2)));
        for (p, n) in [(decode, 1), (prefill, 9)] {
            // Attention out, all in one, down, gate and up of a layer. The residual adds one operation to an output, the activation
            // and the gate five.
            let layer = |n: u64| {
                [
                    [1, n * (2 * 64 * 64 + 64), 64 * 64 * 4],
                    [1, n * (2 * 64 * 128), 64 * 128 * 4],
                    [1, n * (2 * 128 * 64 + 64), 128 * 64 * 4],
                    [1, n * (2 * 64 * 256 + 5 * 128), 64 * 256 * 4],
                ]
            };
            let logits = [1, 2 * 64 * 160, 64 * 160 * 4];
            let mut products: Vec<[u64; 3]> = match n {
                // Two layers of one kind.
                1 => layer(1).map(|p| p.map(|v| 2 * v)).into_iter().chain([logits]).collect(),
                // Of the last layer the last token alone, but for keys and values.
                _ => {
                    let [out, _, down, gate] = layer(1);
                    let [query, both] = [[1, 2 * 64 * 64, 64 * 64 * 4], [1, n * (2 * 64 * 64), 64 * 64 * 4]];
                    layer(n).into_iter().chain([query, both, out, down, gate, logits]).collect()
                }
            };
            products.sort_by_key(|p| (p[2], p[1]));
            assert_eq!(around(p, "linear"), products, "{n}");
            // Their weights, five norms, and a row of the embedding for each token.
            let weights: u64 = products.iter().map(|p| p[2]).sum::<u64>() + 5 * 64 * 4 + n * 64 * 4;
            assert_eq!(num(&p["weight_bytes"]), weights as f64, "{n}");
            assert_eq!((num(&p["int8_ops"]), num(&p["tokens"])), (0.0, n as f64));
            let place = p["kernels"][0]["places"][0].as_str().unwrap();
            assert!(place.contains(".rs:"), "{place}");
        }
        // Keys and values of 2 layers: 10, 11 and 12 positions of two heads of 16 numbers; 9 in one go.
        let position = 2.0 * 2.0 * 2.0 * 16.0 * 4.0;
        assert_eq!((num(&decode["state_bytes"]), num(&prefill["state_bytes"])), (11.0 * position, 9.0 * position));
        // The rate of decoding is that of the token in the middle.
        assert_eq!(num(&report["decode_state_bytes"]), 11.0 * position);
        let bytes = num(&report["decode_weight_bytes"]) + num(&report["decode_state_bytes"]);
        let rate = bytes * num(&report["decode_tok_s"]) / 1e9;
        assert!((num(&report["decode_gb_s"]) / rate - 1.0).abs() < 1e-9);
        let percent = 100.0 * rate / num(&report["read_gb_s"]);
        assert!((num(&report["decode_read_percent"]) / percent - 1.0).abs() < 1e-9);
    }
}

/// A program of two launches of a kernel and one of another, over a weight and a state.
const PROGRAM: &str = "program @p arena 64 {
  sym n in 1..=8 multiple 1
  weight [\"w\"]: f32 -> f32[1000]
  state %s: f32[500]
  buffer %w0: f32[1000] weight 0 + 0
  buffer %s0: f32[500] state 0
  buffer %t: f32[1] arena 0
  buffer %y: f32[1] output \"y\"
  kernel @big(%w: f32[1000] in, %t: f32[1] out) {
    store %t[0] = 0.0
    for i.0 in 0..1000 {
      store %t[0] = fma(%w[i.0], 2.0, %t[0])
    }
  }
  kernel @small(%s: f32[500] in, %y: f32[1] out) {
    store %y[0] = 0.0
    for i.0 in 0..500 {
      store %y[0] = %y[0] + %s[i.0]
    }
  }
  launch @big(%w0, %t)
  sync launch @small(%s0, %y)
  sync launch @big(%w0, %t)
}
";

/// A step of 120 µs whose run begins after 10: launches of 40, 10 and 50 on the first thread, the second one idle in part.
fn step(start: Instant, longer: u64) -> Recorded {
    let us = |begin: u64, end: u64| Span { begin: begin * 1000, end: end * 1000 };
    let spans = vec![us(0, 40), us(40, 50), us(50, 100 + longer), us(0, 20), us(40, 50), us(50, 75)];
    Recorded {
        bucket: Bucket::Decode,
        start,
        seconds: (120 + longer) as f64 / 1e6,
        tokens: 1,
        sizes: vec![1],
        inputs: vec![],
        timeline: Timeline::new(start + Duration::from_micros(10), (100 + longer) * 1000, vec![0, 1, 0], spans),
    }
}

#[test]
fn times_add_up() {
    let program = parse_program(PROGRAM).unwrap();
    let start = Instant::now();
    let steps = [step(start, 0), step(start, 30), step(start, 0)];
    let runs: Vec<&[Recorded]> = steps.iter().map(std::slice::from_ref).collect();
    let p = Profile::new("decode", &program, &[], &runs);
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
    assert_eq!((p.runs, p.threads, p.tokens), (3, 2, 1.0));
    near(p.seconds, 120e-6);
    near(p.outside, 20e-6);
    let [big, small] = p.kernels.as_slice() else { panic!("{:?}", p.kernels) };
    assert_eq!((big.name.as_str(), small.name.as_str()), ("big", "small"));
    assert_eq!((big.calls, small.calls), (2.0, 1.0));
    near(big.seconds, 90e-6);
    near(small.seconds, 10e-6);
    // Two threads had 300 µs of `big`, in three runs of 90, 120 and 90; they worked for 135, 165 and 135.
    near(big.idle, 1.0 - 435.0 / 600.0);
    near(small.idle, 0.0);
    let each = work(&program, &steps[0]);
    assert_eq!(p.work, each);
    assert_eq!((each.flops, each.weight_bytes, each.state_bytes), (4500.0, 8000.0, 2000.0));
    // What is written, and read again, beside them.
    assert_eq!(each.other_bytes, 3.0 * 4.0 + 3.0 * 4.0);
    let peaks = Peaks { read: 1e9, flops: Some(1e9), int8_ops: Some(1e9) };
    let v = p.json(&peaks);
    near(num(&v["kernels"][0]["read_percent"]), 100.0 * 8.0 / 90.0);
    near(num(&v["kernels"][0]["arithmetic_percent"]), 100.0 * 4.0 / 90.0);
    near(num(&v["kernels"][0]["share"]), 90.0 / 120.0);
    let table = p.table(&peaks, 1);
    let rows: Vec<Vec<&str>> = table.lines().skip(2).map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["0.090", "75.0%", "2", "28%", "0.008", "9%", "0.00", "4%", "big"]);
    assert_eq!(rows[1], ["0.010", "8.3%", "1", "0.002", "20%", "0.00", "5%", "1", "others"]);
    assert_eq!(rows[2][..2], ["0.020", "16.7%"]);
    assert_eq!(rows[3][..3], ["0.120", "100.0%", "3"]);
    // A step that ends before its kernels, or more kernels than launches, is not one of ours and takes nothing down.
    let odd = Recorded { seconds: 0.0, timeline: Timeline::new(start, 0, vec![7; 9], vec![]), ..step(start, 0) };
    Profile::new("decode", &program, &[], &[&[odd]]).table(&peaks, 9);
}

#[test]
fn a_trace_nests() {
    let program = parse_program(PROGRAM).unwrap();
    let start = Instant::now();
    let steps = [step(start, 0), step(start + Duration::from_micros(200), 30)];
    let made = trace(&[(&steps[0], &program), (&steps[1], &program)]);
    check_trace(&made, &[3, 3]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.json");
    let out = bench(&["--trace", file.to_str().unwrap()]);
    assert!(!out.contains("launches"), "{out}");
    let text = fs::read_to_string(&file).unwrap();
    let made: Value = serde_json::from_str(&text).unwrap();
    // A prompt, whose last layer chooses rows, positions and sequences and has queries of its own, and three tokens, whose
    // attention is in pieces that are merged after.
    check_trace(&made, &[23, 22, 22, 22]);
}

/// Checks a trace of two threads: each kernel inside a step, none before the one before it has ended.
fn check_trace(made: &Value, launches: &[usize]) {
    let events = made["traceEvents"].as_array().unwrap();
    let of = |cat: &str, tid: u64| -> Vec<(f64, f64)> {
        let all = events.iter().filter(|e| e["cat"] == cat && e["tid"] == tid && e["ph"] == "X");
        all.map(|e| (num(&e["ts"]), num(&e["ts"]) + num(&e["dur"]))).collect()
    };
    let around = of("step", 0);
    assert_eq!((around.len(), of("step", 1).len()), (launches.len(), 0));
    for thread in 0..2 {
        let kernels = of("kernel", thread);
        assert_eq!(kernels.len(), launches.iter().sum::<usize>(), "{thread}");
        // Times are microseconds with fractions; a nanosecond is what they are made of.
        assert!(kernels.windows(2).all(|w| w[0].1 <= w[1].0 + 1e-3), "{kernels:?}");
        let inside = |k: &(f64, f64)| around.iter().filter(|s| s.0 <= k.0 + 1e-3 && k.1 <= s.1 + 1e-3).count();
        assert!(kernels.iter().all(|k| k.0 <= k.1 && inside(k) == 1), "{thread} {around:?} {kernels:?}");
    }
    let names = events.iter().filter(|e| e["ph"] == "M" && e["name"] == "thread_name").count();
    assert_eq!(names, 2);
}

#[test]
fn the_table_says_what_takes_time() {
    let text = bench(&["--profile", "--top", "2"]);
    for part in
        ["decode: 6 x 1 tokens on 2 threads", "prefill: 2 x 9 tokens", "17 others", "outside of kernels", "% of "]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let model = model();
    let args = ["bench", &model, "--prompt", "2", "--gen", "1", "--reps", "1", "--backend", "interp", "-q"];
    let refused = captured(&[&args[..], &["--profile"]].concat());
    assert_eq!(refused.status, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("--backend cranelift"), "{}", refused.stderr);
    let plain = captured(&[&args[..], &["--json"]].concat());
    let plain: Value = serde_json::from_str(&plain.stdout).unwrap();
    assert!(plain["decode_gb_s"].is_null() && num(&plain["read_gb_s"]) > 0.0, "{plain}");
}

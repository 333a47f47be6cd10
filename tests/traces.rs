//! Traces of whole models: what the default schedule did, done again from its text.

use std::path::Path;
use std::process::Command;

use marquetry::engine::{Bucket, bucket_options};
use marquetry::model::{LoadOptions, LoadedModel};
use marquetry::passes::Numerics;
use marquetry::passes::manager::{Ir, TRACE, pipeline_between, print, run};
use marquetry::passes::schedule::{replay_program, traces};

fn case(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracles").join(name)
}

#[test]
fn every_kernel_is_scheduled_again_by_its_trace() {
    let mut steps = 0;
    for name in std::fs::read_to_string(case("cases.txt")).unwrap().lines() {
        let model = LoadedModel::open(case(name).to_str().unwrap(), &LoadOptions::default(), &mut |_| {}).unwrap();
        let module = model.bound_module().unwrap();
        for (bucket, micro) in [(Bucket::Decode, false), (Bucket::Prefill, true)] {
            let mut options = bucket_options(bucket, Numerics::Strict, 64);
            options.target.micro = micro;
            let lower = pipeline_between(TRACE, Some("loops")).unwrap();
            let (loops, _) = run(Ir::Graph(module.clone()), &lower, &options, &mut |_, _| {}).unwrap();
            let (scheduled, _) = run(loops.clone(), "schedule", &options, &mut |_, _| {}).unwrap();
            let (Ir::Program(mut again), Ir::Program(default)) = (loops, &scheduled) else { panic!("programs") };
            let text = traces(default);
            replay_program(&mut again, &text).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(print(&Ir::Program(again)) == print(&scheduled), "{name}");
            steps += default.kernels.iter().map(|k| k.trace.len()).sum::<usize>();
        }
    }
    assert!(steps > 1000, "{steps}");
}

const PROGRAM: &str = "program @p arena 0 {
  buffer %x: f32[24] input \"x\"
  buffer %y: f32[24] output \"y\"
  kernel @k(%x: f32[24] in, %y: f32[24] out) {
    for i.0 in 0..24 {
      store %y[i.0] = %x[i.0] * 2.0
    }
  }
  launch @k(%x, %y)
}
";

#[test]
fn the_command_line_prints_and_applies_traces() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("p.tir"), PROGRAM).unwrap();
    let call = |args: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_marquetry")).args(args).output().unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let (status, steps, err) = call(&["opt", &at("p.tir"), "--pipeline", "schedule", "--traces"]);
    assert_eq!((status, steps.as_str()), (Some(0), "kernel @k\n  vectorize %i.0 by 8\n"), "{err}");
    let with = format!("schedule{{trace={}}}", at("steps"));
    let apply = |text: &str| {
        std::fs::write(at("steps"), text).unwrap();
        call(&["opt", &at("p.tir"), "--pipeline", &with, "--check-pass"])
    };
    let (_, default, _) = call(&["opt", &at("p.tir"), "--pipeline", "schedule"]);
    assert_eq!(apply(&steps).1, default);
    assert_eq!(apply("# nothing is named\n").1, default);
    let (status, edited, _) = apply(&steps.replace("by 8", "by 4"));
    assert!(
        status == Some(0) && edited.contains("trace \"vectorize %i.0 by 4\"") && edited.contains("; 4]"),
        "{edited}"
    );
    for (text, why) in [
        (
            "kernel @k\n  vectorize %j.0 by 8\n",
            "steps: line 2: `vectorize %j.0 by 8`: no loop `%j.0`; did you mean `%i.0`?",
        ),
        ("kernel @q\n", "steps: line 1: `kernel @q`: no kernel `@q`; known are `k`"),
        ("unroll %i.0\n", "steps: line 1: `unroll %i.0`: there is no `kernel @NAME` above it"),
        ("kernel @k\nkernel @k\n", "steps: line 2: `kernel @k`: `@k` has two traces; keep one"),
    ] {
        let (status, _, err) = apply(text);
        assert!(status == Some(3) && err.contains(why) && err.contains("PAS010"), "{status:?} {err}");
    }
    std::fs::remove_file(at("steps")).unwrap();
    let (status, _, err) = call(&["opt", &at("p.tir"), "--pipeline", &with]);
    assert!(status == Some(3) && err.contains("No such file"), "{err}");
}

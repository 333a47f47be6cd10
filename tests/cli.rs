//! The binary from outside: what it prints, what it writes, how it exits.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use marquetry::engine::Backend;
use marquetry::frontend::safetensors::Safetensors;
use marquetry::passes::manager::PASSES;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::Value;
use tempfile::TempDir;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracles").join(name)
}

/// Calls the binary with a cache of its own.
struct Cli(TempDir);

impl Cli {
    fn new() -> Cli {
        Cli(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_marquetry"));
        c.args(args).env("MARQUETRY_CACHE", self.at("cache")).env("HF_HOME", self.at("hf")).stdin(Stdio::null());
        c
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Stdout of a call that must succeed.
    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{args:?}: {:?}\n{err}", out.status);
        String::from_utf8(out.stdout).unwrap()
    }

    /// Stderr of a call that must fail with this status; stdout stays empty.
    fn fails(&self, status: i32, args: &[&str]) -> String {
        let out = self.run(args);
        let err = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(status), "{args:?}: {err}");
        assert!(out.stdout.is_empty(), "{args:?}");
        err
    }
}

fn floats(file: &Safetensors, name: &str) -> Vec<f32> {
    let t = file.tensor(name).unwrap();
    file.data(t).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Integers of 4 or 8 bytes.
fn ids(file: &Safetensors, name: &str) -> Vec<i64> {
    let t = file.tensor(name).unwrap();
    let data = file.data(t);
    match t.dtype.size() {
        4 => data.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
        _ => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
    }
}

fn write_ids(path: &Path, name: &str, ids: &[i64]) {
    let bytes: Vec<u8> = ids.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::I64, vec![1, ids.len()], &bytes).unwrap();
    fs::write(path, serialize(HashMap::from([(name, view)]), None).unwrap()).unwrap();
}

fn check_eval(name: &str, backend: &str, step: bool) {
    let cli = Cli::new();
    let dir = case(name);
    let meta: Value = serde_json::from_slice(&fs::read(dir.join("case.json")).unwrap()).unwrap();
    let tolerance = meta["tolerance"]["f32_max_abs"].as_f64().unwrap() as f32;
    let want = Safetensors::open(dir.join("expected.safetensors")).unwrap();
    write_ids(&cli.at("in.safetensors"), "input_ids", &ids(&want, "short.input_ids"));
    let (input, output) = (cli.at("in.safetensors"), cli.at("out.safetensors"));
    let mut args = vec!["eval", dir.to_str().unwrap(), "--inputs", input.to_str().unwrap()];
    args.extend(["-o", output.to_str().unwrap(), "--numerics", "strict", "--backend", backend]);
    args.extend(step.then_some("--step"));
    assert_eq!(cli.ok(&args), "");
    let got = floats(&Safetensors::open(&output).unwrap(), "logits");
    let expected = floats(&want, "short.logits");
    assert_eq!(got.len(), expected.len());
    let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{name} {backend}: {worst} > {tolerance}");
}

#[test]
fn logits_are_those_of_the_reference() {
    for backend in Backend::native().chain([Backend::Interp]).map(Backend::name) {
        check_eval("llama/base", backend, false);
        check_eval("llama/base", backend, true);
        check_eval("gemma3/text", backend, false);
    }
}

#[test]
fn llvm_runs_where_it_is_built_and_says_how_to_build_it_elsewhere() {
    let cli = Cli::new();
    let model = case("llama/base");
    let model = model.to_str().unwrap();
    let doctor: Value = serde_json::from_str(&cli.ok(&["doctor", "--json"])).unwrap();
    let asm = ["inspect", model, "--stage", "asm", "--backend", "llvm"];
    if Backend::native().any(|b| b == Backend::Llvm) {
        assert_eq!(doctor["llvm"], "works");
        assert!(cli.ok(&asm).contains("ret"));
        return;
    }
    assert!(doctor["llvm"].as_str().unwrap().contains("--features llvm"), "{doctor}");
    let generate = ["generate", model, "--tokens", "1,2", "--backend", "llvm"];
    for args in [asm.as_slice(), &generate] {
        assert!(cli.fails(6, args).contains("--features llvm"), "{args:?}");
    }
}

#[test]
fn greedy_continuation_is_that_of_the_reference() {
    let cli = Cli::new();
    let dir = case("llama/base");
    let want = Safetensors::open(dir.join("expected.safetensors")).unwrap();
    let prompt: Vec<String> = ids(&want, "short.input_ids").iter().map(|v| v.to_string()).collect();
    let (model, tokens) = (dir.to_str().unwrap(), prompt.join(","));
    let args = ["generate", model, "--tokens", &tokens, "--max-tokens", "16", "--temperature", "0", "--ignore-eos"];
    let out: Value = serde_json::from_str(&cli.ok(&[&args[..], &["--json"]].concat())).unwrap();
    let got: Vec<i64> = out["ids"].as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect();
    assert_eq!(got, ids(&want, "greedy.ids")[..16]);
    assert_eq!((out["finish"].as_str(), &out["text"]), (Some("length"), &Value::Null));
    // Without a tokenizer the stream is the ids. The program comes from the cache now.
    let text = cli.ok(&args);
    assert_eq!(text.split_whitespace().map(|w| w.parse::<i64>().unwrap()).collect::<Vec<_>>(), got);
    assert!(cli.at("cache/programs").read_dir().unwrap().count() >= 2);
}

#[test]
fn mistakes_have_codes_and_statuses() {
    let cli = Cli::new();
    let model = case("llama/base");
    let model = model.to_str().unwrap();
    cli.fails(2, &["frobnicate"]);
    cli.fails(2, &["eval", model]);
    cli.fails(2, &["eval", model, "--tokens", "1,two"]);
    assert!(cli.fails(2, &["eval", model, "--tokens", "99999"]).contains("error[CLI001]"));
    assert!(cli.fails(2, &["generate", model, "--tokens", "1", "--top-p", "2"]).contains("error[RUN050]"));
    assert!(cli.fails(3, &["eval", "no/such/model", "--tokens", "1"]).contains("error[MDL001]"));
    assert!(cli.fails(3, &["eval", "pypi:--evil", "--tokens", "1"]).contains("error[MDL001]"));
    assert!(cli.fails(5, &["eval", "pypi:x", "--offline", "--tokens", "1"]).contains("error[NET001]"));
    assert!(cli.fails(5, &["eval", "hf:a/b", "--tokens", "1"]).contains("error[NET001]"));
    assert!(cli.fails(1, &["generate", model, "-p", "hello"]).contains("error[MDL002]"));
    assert!(cli.fails(1, &["chat", model]).contains("error[MDL002]"));
    assert!(cli.fails(1, &["eval", model, "--tokens", "1,2,3", "--context", "2"]).contains("error[RUN040]"));
    let input = cli.at("in.safetensors");
    write_ids(&input, "inputs", &[1]);
    assert!(cli.fails(3, &["eval", model, "--inputs", input.to_str().unwrap()]).contains("`inputs`"));
    let config = cli.at("config.json");
    fs::write(&config, r#"{"model_type": "mamba9"}"#).unwrap();
    let weights = case("llama/base").join("model.safetensors");
    fs::copy(weights, cli.at("model.safetensors")).unwrap();
    fs::remove_file(input).unwrap();
    let said = cli.fails(6, &["eval", cli.0.path().to_str().unwrap(), "--tokens", "1"]);
    assert!(said.contains("error[MDL003]") && said.contains("architecture `mamba9` is not supported"), "{said}");
}

#[test]
fn stages_can_be_seen_and_run_again() {
    let cli = Cli::new();
    let model = case("llama/base");
    let model = model.to_str().unwrap();
    let traced = cli.ok(&["inspect", model, "--stage", "trace"]);
    let file = cli.at("m.tir");
    fs::write(&file, &traced).unwrap();
    let dump = cli.at("dump");
    let args = ["opt", file.to_str().unwrap(), "--pipeline", "canon,outline", "--dump-ir", dump.to_str().unwrap()];
    let text = cli.ok(&args);
    let dumped = fs::read_to_string(dump.join("02-outline.tir")).unwrap();
    assert_eq!(dumped, format!("// stage: outline\n// numerics: strict\n{text}"));
    assert!(dump.join("01-canon.tir").is_file() && dump.join("00-input.tir").is_file());
    let diff = fs::read_to_string(dump.join("02-outline.diff")).unwrap();
    assert!(diff.starts_with("--- before\n+++ after\n@@") && diff.contains("\n+func @"), "{diff}");
    // From any dump the rest gives what the whole gives.
    let all = cli.at("all");
    let whole = cli.ok(&["opt", file.to_str().unwrap(), "--compile-to", "plan", "--dump-ir", all.to_str().unwrap()]);
    let dumps: Vec<PathBuf> = fs::read_dir(&all).unwrap().map(|e| e.unwrap().path()).collect();
    let dumps: Vec<_> = dumps.iter().filter(|p| p.extension().is_some_and(|e| e == "tir")).collect();
    assert_eq!(dumps.len(), PASSES.len() + 1);
    for dump in dumps {
        assert!(cli.ok(&["opt", dump.to_str().unwrap(), "--compile-to", "plan"]) == whole, "{}", dump.display());
    }
    let given = cli.ok(&["opt", file.to_str().unwrap(), "--pipeline", "specialize,canon"]);
    fs::write(cli.at("c.tir"), given).unwrap();
    let from = cli.ok(&["opt", cli.at("c.tir").to_str().unwrap(), "--from-stage", "canon", "--compile-to", "plan"]);
    assert!(whole == from);
    let args = ["inspect", model, "--stage", "plan", "--numerics", "strict", "--routines", "none"];
    let from = cli.ok(&[&args[..], &["--compile-from", all.join("07-eqsat.tir").to_str().unwrap()]].concat());
    assert!(whole == from);
    // A check is part of the run; times go to stderr.
    let checked = cli.run(&["opt", file.to_str().unwrap(), "--compile-to", "plan", "--check-pass"]);
    assert_eq!(String::from_utf8_lossy(&checked.stderr).matches(" numbers, ").count(), PASSES.len());
    let bisect = cli.ok(&["opt", file.to_str().unwrap(), "--bisect", "--check-tolerance", "1e-9", "--json"]);
    let found: Value = serde_json::from_str(&bisect).unwrap();
    assert!(found["rewrite"].is_null() || found["what"].as_str().unwrap().contains('@'), "{found}");
    assert!(
        cli.fails(2, &["opt", dump.join("02-outline.tir").to_str().unwrap(), "--compile-to", "canon"])
            .contains("PAS009")
    );
    assert_eq!(cli.ok(&["opt", file.to_str().unwrap()]), traced);
    for stage in ["canon", "eqsat", "fused", "loops", "scheduled", "plan", "asm"] {
        assert!(cli.ok(&["inspect", model, "--stage", stage, "--bucket", "prefill"]).len() > 1000, "{stage}");
    }
    let summary: Value = serde_json::from_str(&cli.ok(&["inspect", model, "--json"])).unwrap();
    assert_eq!(summary["arch"], "llama");
    assert!(cli.fails(2, &["opt", file.to_str().unwrap(), "--pipeline", "fly"]).contains("error[PAS001]"));
    fs::write(&file, "not ir").unwrap();
    let error = cli.fails(3, &["opt", file.to_str().unwrap()]);
    assert!(
        error.contains("error[IR001]") && error.contains("m.tir:1:1") && error.contains(" 1 | not ir\n"),
        "{error}"
    );
}

/// What rewriting did is data on every verb that compiles, and every one goes on from dumps.
#[test]
fn verbs_that_compile_explain_and_start_from_dumps() {
    let cli = Cli::new();
    let model = case("llama/base");
    let (model, dump) = (model.to_str().unwrap(), cli.at("dump"));
    let dumps = dump.to_str().unwrap();
    let json = |args: &[&str]| -> Value { serde_json::from_str(&cli.ok(args)).unwrap() };
    let generate =
        ["generate", model, "--tokens", "1,2,3", "-n", "4", "--temperature", "0", "--ignore-eos", "--json", "-q"];
    let whole = json(&[&generate[..], &["--explain", "--dump-ir", dumps]].concat());
    let stage = ["inspect", model, "--stage", "fused", "--explain", "--json", "-q"];
    for bucket in ["decode", "prefill"] {
        let seen = json(&[&stage[..], &["--bucket", bucket]].concat());
        let explained = &whole["explain"][bucket];
        assert!(explained["rewriting"][0]["taken"].as_array().is_some_and(|t| !t.is_empty()), "{explained}");
        for key in ["rewriting", "kernels"] {
            assert_eq!(explained[key], seen[key], "{bucket} {key}");
        }
        let file = dump.join(bucket).join("00-trace.tir");
        let traced = file.to_str().unwrap();
        // The sizes of a bucket are no part of the file.
        let opt = json(&["opt", traced, "--compile-to", "fused", "--explain", "--json", "-q"]);
        assert!(opt["rewriting"][0]["region"].is_string() && opt["kernels"][0]["names"].is_array(), "{opt}");
        let from = [&stage[..], &["--bucket", bucket, "--compile-from", dumps, "--from-stage", "canon"]].concat();
        assert_eq!(json(&from)["text"], seen["text"], "{bucket}");
    }
    let bench = ["bench", model, "--prompt", "3", "--gen", "2", "--reps", "1", "--json", "-q"];
    assert!(json(&[&bench[..], &["--explain"]].concat())["explain"]["decode"]["kernels"].is_array());
    assert!(json(&bench)["explain"].is_null());
    for stage in ["trace", "eqsat", "plan"] {
        let again = json(&[&generate[..], &["--compile-from", dumps, "--from-stage", stage]].concat());
        assert_eq!(again["ids"], whole["ids"], "{stage}");
    }
    json(&[&bench[..], &["--compile-from", dumps]].concat());
    // It is the dumps that are compiled.
    fs::write(dump.join("prefill/07-eqsat.tir"), "not ir").unwrap();
    let said = cli.fails(3, &[&generate[..], &["--compile-from", dumps, "--from-stage", "eqsat"]].concat());
    assert!(said.contains("07-eqsat.tir:1:1"), "{said}");
    cli.fails(2, &[&generate[..], &["--compile-from", cli.at("in").to_str().unwrap()]].concat());
    cli.fails(2, &[&generate[..], &["--compile-from", dumps, "--from-stage", "lops"]].concat());
    cli.fails(2, &[&generate[..], &["--compile-from", dumps, "--backend", "interp"]].concat());
    cli.fails(2, &["inspect", model, "--compile-from", dumps]);
}

#[test]
fn a_page_shows_the_whole_compilation() {
    let cli = Cli::new();
    let (model, file) = (case("gemma3/text"), cli.at("page.html"));
    assert_eq!(cli.ok(&["inspect", model.to_str().unwrap(), "--html", file.to_str().unwrap()]), "");
    let page = fs::read_to_string(&file).unwrap();
    assert!(page.len() < 2_000_000, "{}", page.len());
    let json = page.split("id=\"data\">").nth(1).and_then(|p| p.split("</script>").next()).unwrap();
    let data: Value = serde_json::from_str(json).unwrap();
    let names: Vec<&str> = data["stages"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!((names.len(), names[0], names.last()), (PASSES.len() + 1, "trace", Some(&"plan")));
    let kernels = data["program"]["kernels"].as_array().unwrap();
    assert!(kernels.iter().all(|k| k["asm"].as_str().is_some_and(|a| a.contains("ret"))));
    assert!(data["weights"].as_array().unwrap().len() > 10);
    let at =
        data["stages"][0]["functions"][0]["nodes"].as_array().unwrap().iter().filter(|n| n["at"].is_string()).count();
    assert!(at > 50, "{at} nodes know their source line");
}

#[test]
fn small_verbs_answer() {
    let cli = Cli::new();
    let model = case("llama/base");
    let doctor: Value = serde_json::from_str(&cli.ok(&["doctor", "--json"])).unwrap();
    assert_eq!(doctor["cranelift"], "works");
    assert!(cli.ok(&["models"]).contains("llama"));
    assert!(cli.ok(&["explain", "gguf012"]).starts_with("GGUF012: "));
    cli.fails(2, &["explain", "NOPE1"]);
    let args = ["bench", model.to_str().unwrap(), "--prompt", "9", "--gen", "3", "--reps", "2", "--json", "-q"];
    let bench: Value = serde_json::from_str(&cli.ok(&args)).unwrap();
    assert_eq!(bench["reps"].as_array().unwrap().len(), 2);
    assert!(bench["decode_tok_s"].as_f64().unwrap() > 0.0);
}

#[cfg(unix)]
#[test]
fn a_closed_output_is_no_error() {
    let cli = Cli::new();
    let mut child = cli.command(&["explain"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), out.stderr.as_slice()), (Some(0), &b""[..]));
}

//! Tests as files: `tests/files/**/NAME.tir` says at its head what to run, `NAME.out` what comes of it.
//!
//! ```text
//! // RUN: opt --pipeline canon
//! // RUN: exec --backend cranelift --against interp
//! ```
//!
//! A line is a call of the binary; the file goes in as the argument of the verb. `BLESS=1` writes the expectations anew. What
//! is expected is the output, and where a call fails its status and message. Beside that, for every call that succeeds:
//! IR that was printed reads back and prints the same, and with `opt --pipeline` every pass is checked by interpretation.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use marquetry::cli::{Captured, captured};
use marquetry::passes::manager;

/// Files below a directory, sorted.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

fn with_extension(dir: &str, extension: &str) -> Vec<PathBuf> {
    let mut all = files(Path::new(dir));
    all.retain(|p| p.extension().is_some_and(|e| e == extension));
    all
}

/// The calls at the head of a file.
fn calls(text: &str) -> Vec<&str> {
    text.lines().filter_map(|l| l.trim().strip_prefix("// RUN: ")).map(str::trim).collect()
}

fn call(line: &str, path: &Path, more: &[&str]) -> Captured {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    words.insert(1.min(words.len()), path.to_str().unwrap());
    words.extend(more);
    captured(&words)
}

/// What a call gave, for the expectation.
fn shown(line: &str, out: &Captured) -> String {
    let mut text = format!("$ {line}\n{}", out.stdout);
    if out.status != 0 {
        text.push_str(&format!("exit {}\n{}", out.status, out.stderr));
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// What must hold beside the expectation.
fn laws(line: &str, path: &Path, out: &Captured) -> Result<(), String> {
    if out.status != 0 || !line.starts_with("opt") || line.contains("--json") || line.contains("--bisect") {
        return Ok(());
    }
    let back = manager::parse(&out.stdout).map_err(|e| format!("what was printed does not read back: {e}"))?;
    if manager::print(&back) != out.stdout {
        return Err("what was printed and read back prints otherwise".into());
    }
    let checked = call(line, path, &["--check-pass"]);
    if checked.status != 0 { Err(format!("with --check-pass:\n{}", checked.stderr)) } else { Ok(()) }
}

fn run(path: &Path, bless: bool) -> Result<usize, String> {
    let text = fs::read_to_string(path).map_err(|e| e.to_string())?;
    let calls = calls(&text);
    if calls.is_empty() {
        return Err("it has no `// RUN:` line".into());
    }
    let mut got = String::new();
    for line in &calls {
        let out = call(line, path, &[]);
        if out.stdout.is_empty() && out.status == 0 {
            return Err(format!("`{line}` gives nothing to compare"));
        }
        if out.status == 70 && !line.contains("--check-tolerance") {
            return Err(format!("`{line}` meets a defect:\n{}", out.stderr));
        }
        got.push_str(&shown(line, &out));
        laws(line, path, &out).map_err(|e| format!("`{line}`: {e}"))?;
    }
    let expected = path.with_extension("out");
    if bless {
        fs::write(&expected, &got).map_err(|e| e.to_string())?;
    } else {
        let want = fs::read_to_string(&expected).map_err(|_| format!("{} is missing", expected.display()))?;
        if want != got {
            let diff = marquetry::watch::diff(&want, &got);
            return Err(format!("it gives something else; BLESS=1 writes it anew\n{diff}"));
        }
    }
    Ok(calls.len())
}

#[test]
fn every_file_gives_what_is_written_down() {
    let bless = std::env::var_os("BLESS").is_some();
    let only = std::env::var("ONLY").unwrap_or_default();
    let (mut failed, mut runs, mut count) = (vec![], 0, 0);
    for path in with_extension("tests/files", "tir").iter().filter(|p| p.to_str().unwrap().contains(&only)) {
        match run(path, bless) {
            Ok(n) => (runs, count) = (runs + n, count + 1),
            Err(what) => failed.push(format!("{}: {what}", path.display())),
        }
    }
    println!("{count} files, {runs} calls");
    assert!(failed.is_empty(), "{} of {} files\n{}", failed.len(), count + failed.len(), failed.join("\n\n"));
}

/// Nothing lies around that nobody reads, and no test is empty.
#[test]
fn files_belong_together() {
    if std::env::var_os("BLESS").is_some() {
        return; // The expectations are being written.
    }
    let mut total = 0;
    for dir in ["tests/files", "passes/tests/data"] {
        let stems = |e: &str| with_extension(dir, e).iter().map(|p| p.with_extension("")).collect::<BTreeSet<_>>();
        let (inputs, outputs) = (stems("tir"), stems("out"));
        let unused: Vec<_> = outputs.difference(&inputs).collect();
        assert!(unused.is_empty(), "expectations without an input: {unused:?}");
        for path in with_extension(dir, "tir").iter().chain(&with_extension(dir, "out")) {
            let text = fs::read_to_string(path).unwrap();
            let code = text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with("//") && !l.starts_with("$ "));
            assert!(code.count() > 0, "{} holds nothing", path.display());
        }
        // Reports of whole models stand beside the cases of the passes.
        let known = |p: &Path| {
            let report = p.parent().is_some_and(|d| d.ends_with("reports"));
            report || p.extension().is_some_and(|e| e == "tir" || e == "out")
        };
        let odd: Vec<PathBuf> = files(Path::new(dir)).into_iter().filter(|p| !known(p)).collect();
        assert_eq!(odd, Vec::<PathBuf>::new());
        println!("{dir}: {} inputs, {} expectations", inputs.len(), outputs.len());
        total += inputs.len();
    }
    println!("{total} inputs in all");
    assert!(total >= 250, "{total}");
}

/// Every code and pass is reached by some file.
#[test]
fn the_files_cover_what_there_is() {
    let paths = with_extension("tests/files", "tir");
    let inputs: Vec<String> = paths.iter().map(|p| fs::read_to_string(p).unwrap()).collect();
    let outputs: Vec<String> =
        paths.iter().map(|p| fs::read_to_string(p.with_extension("out")).unwrap_or_default()).collect();
    for code in ["IR001", "IR002", "IR010", "IR022", "PAS001", "PAS002", "PAS003", "PAS006", "PAS009"] {
        assert!(outputs.iter().any(|o| o.contains(&format!("error[{code}]"))), "no file meets {code}");
    }
    for pass in manager::PASSES {
        let runs = inputs.iter().flat_map(|t| calls(t)).filter(|l| {
            let pipeline = l.split_whitespace().skip_while(|w| *w != "--pipeline").nth(1).unwrap_or("");
            pipeline.split([',', '{']).any(|w| w == pass.name)
        });
        let n = runs.count();
        assert!(n >= 3, "{n} files run `{}`", pass.name);
    }
    let compiled = "$ exec --backend cranelift --against interp\n";
    let ran = |i: usize| outputs[i].split(compiled).nth(1).is_some_and(|o| !o.starts_with("exit"));
    let executed: Vec<&String> = (0..inputs.len()).filter(|&i| ran(i)).map(|i| &inputs[i]).collect();
    for op in marquetry::ir::graph::Op::ALL {
        let used = executed.iter().any(|t| t.split_whitespace().any(|w| w == op.name()));
        assert!(used, "no file runs `{}` as machine code", op.name());
    }
}

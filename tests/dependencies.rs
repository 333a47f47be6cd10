//! Which crate may know which, over `cargo metadata`: `ir` knows none of the others; `frontend`, `passes`, `codegen` and `runtime`
//! know `ir` only; what links into the runtime has no compiler in it. Dev-dependencies are free.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

const OURS: &str = "marquetry";

fn metadata() -> Value {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let cargo = std::env::var("CARGO").unwrap_or("cargo".into());
    // Of other platforms' packages there may be none on this machine.
    let version = Command::new("rustc").arg("-vV").output().unwrap().stdout;
    let version = String::from_utf8(version).unwrap();
    let host = version.lines().find_map(|l| l.strip_prefix("host: ")).unwrap();
    let out = Command::new(cargo)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--offline",
            "--locked",
            "--filter-platform",
            host,
            "--manifest-path",
            manifest,
        ])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Names of the packages that a package is built from, without dev-dependencies.
fn normal(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let names: BTreeMap<String, String> =
        list(&metadata["packages"]).iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
    let mut out: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let deps = list(&node["deps"]).into_iter().filter(|d| {
            let kinds = list(&d["dep_kinds"]);
            kinds.iter().any(|k| k["kind"].as_str() != Some("dev"))
        });
        out.entry(names[&text(&node["id"])].clone()).or_default().extend(deps.map(|d| names[&text(&d["pkg"])].clone()));
    }
    out
}

#[test]
fn crates_know_only_what_they_may() {
    let graph = normal(&metadata());
    let ours =
        |name: &str| -> Vec<&str> { graph[name].iter().map(String::as_str).filter(|d| d.starts_with(OURS)).collect() };
    assert_eq!(ours("marquetry-ir"), [""; 0]);
    assert_eq!(ours("marquetry-frontend-derive"), [""; 0]);
    assert_eq!(ours("marquetry-frontend"), ["marquetry-frontend-derive", "marquetry-ir"]);
    for name in ["marquetry-passes", "marquetry-codegen", "marquetry-runtime"] {
        assert_eq!(ours(name), ["marquetry-ir"], "{name}");
    }
    let known = ["marquetry", "marquetry-codegen", "marquetry-frontend", "marquetry-frontend-derive", "marquetry-ir"];
    let known: BTreeSet<&str> = known.into_iter().chain(["marquetry-passes", "marquetry-runtime"]).collect();
    let all: BTreeSet<&str> = graph.keys().map(String::as_str).filter(|n| n.starts_with(OURS)).collect();
    assert_eq!(all, known, "a new crate needs its place in this rule");
}

#[test]
fn the_runtime_links_no_compiler() {
    let graph = normal(&metadata());
    let mut seen = BTreeSet::new();
    let mut stack = vec!["marquetry-runtime".to_string()];
    while let Some(name) = stack.pop() {
        if seen.insert(name.clone()) {
            stack.extend(graph[&name].iter().cloned());
        }
    }
    for name in &seen {
        let compiler =
            ["egg", "petgraph", "inkwell", "llvm-sys"].contains(&name.as_str()) || name.starts_with("cranelift");
        assert!(!compiler, "the runtime links {name}");
    }
    assert!(seen.len() > 2 && seen.len() < 40, "{} packages: {seen:?}", seen.len());
}

//! `models` and `doctor`: what can be run, and where.

use std::fs;
use std::path::Path;
use std::process::Command;

use marquetry::Error;
use marquetry::codegen::{Backend, Options, compile};
use marquetry::engine::{EngineOptions, VerifiedPacks, cpu_features, verify_packs};
use marquetry::frontend::models::{ARCHITECTURES, Architecture};
use marquetry::ir::Syms;
use marquetry::model::cache_dir;
use marquetry::runtime::micro::Level;
use marquetry::tune::presets::preset;
use marquetry::tune::store::{Entry, Store};
use serde_json::{Value, json};

use super::ui::Ui;

#[derive(Debug, clap::Args)]
pub struct ModelsArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Read all packed weights of the cache, and remove files that are damaged.
    #[arg(long)]
    verify_cache: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn models(args: &ModelsArgs, ui: &Ui) -> Result<(), Error> {
    if args.json {
        let row = |a: &Architecture| json!({ "name": a.name, "types": a.types, "classes": a.classes, "features": a.features, "cases": cases(a) });
        return ui.json(&json!(ARCHITECTURES.iter().map(row).collect::<Vec<_>>()));
    }
    ARCHITECTURES.iter().try_for_each(|a| {
        let count = match cases(a).len() {
            1 => "1 case".to_string(),
            n => format!("{n} cases"),
        };
        ui.line(&format!("{:<12} {:<36} {count:<8} {}", a.name, a.types.join(", "), a.features))
    })
}

/// The reference cases that the tests compare an architecture with.
fn cases(a: &Architecture) -> Vec<&'static str> {
    let all = include_str!("../../tests/oracles/cases.txt").lines();
    all.filter(|c| c.split_once('/').is_some_and(|(of, _)| of == a.name || a.types.contains(&of))).collect()
}

pub fn doctor(args: &DoctorArgs, ui: &Ui) -> Result<(), Error> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let works = |backend| match compile(backend, &[], &Syms::default(), &Options::default()) {
        Ok(_) => "works".to_string(),
        Err(e) => e.to_string(),
    };
    let cache = cache_dir();
    let writable = cache.as_ref().is_some_and(|d| fs::create_dir_all(d).is_ok());
    let mut rows: Vec<(&str, Value)> = vec![
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("system", json!(format!("{} {}", std::env::consts::OS, std::env::consts::ARCH))),
        ("cpu_features", json!(cpu_features().join(" "))),
        ("routines", json!(Level::available().first().map(|l| l.name()))),
        ("cpus", json!(cores)),
        ("threads", json!(EngineOptions::default_threads())),
        ("memory_bytes", json!(proc_bytes("/proc/meminfo", "MemTotal:"))),
        ("memory_free_bytes", json!(proc_bytes("/proc/meminfo", "MemAvailable:"))),
        ("cranelift", json!(works(Backend::Cranelift))),
        ("llvm", json!(works(Backend::Llvm))),
        ("cache", json!(cache.as_ref().map(|d| d.display().to_string()))),
        ("cache_writable", json!(writable)),
        ("pip", json!(version_of("python3", &["-m", "pip", "--version"]))),
    ];
    if let Some(dir) = &cache {
        rows.push(("tuned", tuned(dir)));
    }
    rows.push(("preset", json!(Level::available().first().map(|l| format!("{}, {}", l.name(), preset(*l).source)))));
    if let (true, Some(dir)) = (args.verify_cache, &cache) {
        let VerifiedPacks { good, bytes, removed } = verify_packs(dir);
        rows.push(("packs_good", json!(good)));
        rows.push(("packs_bytes", json!(bytes)));
        rows.push(("packs_removed", json!(removed)));
    }
    if args.json {
        let map: serde_json::Map<String, Value> = rows.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
        return ui.json(&Value::Object(map));
    }
    rows.iter().try_for_each(|(k, v)| {
        let text = match v {
            Value::String(s) => s.clone(),
            Value::Null => "not found".into(),
            Value::Array(all) if all.is_empty() => "nothing".into(),
            Value::Array(all) => all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n                   "),
            other => other.to_string(),
        };
        ui.line(&format!("{k:<18} {text}"))
    })
}

/// What the database of tuned parameters holds, or why it is not used.
fn tuned(cache: &Path) -> Value {
    let show = |e: &Entry| {
        format!("{} {}, {} threads: {} ({:.2} times as fast)", e.model, e.bucket, e.threads, e.params, e.gain)
    };
    match Store::new(cache).entries() {
        Ok(all) => json!(all.iter().map(show).collect::<Vec<_>>()),
        Err(refused) => json!(refused.to_string()),
    }
}

/// First line that a program prints; none if it does not run.
fn version_of(program: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).output().ok().filter(|o| o.status.success())?;
    String::from_utf8_lossy(&out.stdout).lines().next().map(str::to_string)
}

/// A size in kB of a file of the kernel, in bytes.
fn proc_bytes(path: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Most memory that this process had, where the system tells.
pub fn peak_rss() -> Option<u64> {
    proc_bytes("/proc/self/status", "VmHWM:")
}

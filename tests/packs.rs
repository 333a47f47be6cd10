//! Packed weights that are kept: the same numbers with them and without, whatever happens to the files.

#[path = "support/gguf.rs"]
mod gguf;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use gguf::{Array, recipes, written};
use half::f16;
use marquetry::engine::{Engine, EngineOptions, Rows, verify_packs};
use marquetry::model::{LoadOptions, LoadedModel};
use serde_json::Value;

/// A small model with blocks of Q8_0, its numbers times `factor`.
fn model(dir: &Path, factor: f32) -> PathBuf {
    let recipe = recipes().into_iter().find(|r| r["case"] == "llama/base").unwrap();
    let block = |g: &[f32]| {
        let d = f16::from_f32(g.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0);
        let q = g.iter().map(move |v| (v / d.to_f32().max(1e-30)).round_ties_even().clamp(-127.0, 127.0) as i8 as u8);
        f16::from_f32(d.to_f32() * factor).to_le_bytes().into_iter().chain(q).collect::<Vec<_>>()
    };
    let encode = |_: &str, a: &Array| {
        let fits = a.shape.len() > 1 && a.shape[1].is_multiple_of(32);
        fits.then(|| (8, a.values.chunks(32).flat_map(block).collect()))
    };
    written(&recipe, dir, &encode)
}

/// Logits of a prompt and of a step after it, and how many weights were there.
fn run(path: &Path, cache: Option<&Path>) -> (Vec<u32>, usize) {
    let model = LoadedModel::open(path.to_str().unwrap(), &LoadOptions::default(), &mut |_| {}).unwrap();
    let options = EngineOptions { threads: 2, cache: cache.map(Path::to_owned), ..EngineOptions::default() };
    let mut e = Engine::new(Arc::new(model), options).unwrap();
    let mut all = e.prefill(&[1, 5, 9, 2, 7], Rows::All).unwrap();
    all.extend(e.decode(3).unwrap());
    (all.iter().map(|v| v.to_bits()).collect(), e.stats().cached_weights)
}

fn packs(cache: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(cache.join("packs")).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn weights_are_packed_once() {
    let dir = tempfile::tempdir().unwrap();
    let (path, cache) = (model(dir.path(), 1.0), dir.path().join("cache"));
    let (want, _) = run(&path, None);
    assert!(!cache.exists());
    assert_eq!(run(&path, Some(&cache)), (want.clone(), 0));
    let files = packs(&cache);
    let times: Vec<_> = files.iter().map(|f| f.metadata().unwrap().len()).collect();
    let (again, cached) = run(&path, Some(&cache));
    assert!(again == want && cached > 10, "{cached}");
    assert_eq!(packs(&cache), files);
    assert_eq!(files.iter().map(|f| f.metadata().unwrap().len()).collect::<Vec<_>>(), times);
    // A copy is another model: that its contents are the same is not known without reading them.
    let moved = dir.path().join("moved.gguf");
    fs::copy(&path, &moved).unwrap();
    assert_eq!(run(&moved, Some(&cache)), (want.clone(), 0));
    assert!(packs(&cache).len() > files.len());
}

#[test]
fn damaged_files_are_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (path, cache) = (model(dir.path(), 1.0), dir.path().join("cache"));
    let (want, _) = run(&path, Some(&cache));
    let (_, all) = run(&path, Some(&cache));
    for file in packs(&cache) {
        let good = fs::read(&file).unwrap();
        let rows = u32::from_le_bytes(good[12..16].try_into().unwrap()) as usize;
        let data = 128 + 64 * rows;
        let check = |bad: &[u8], what: String| {
            // Another file takes its place: what others have mapped does not change.
            fs::remove_file(&file).unwrap();
            fs::write(&file, bad).unwrap();
            let (got, cached) = run(&path, Some(&cache));
            assert!(got == want, "{what}");
            assert!(cached < all, "{what}: {cached}");
            assert!(fs::read(&file).unwrap() == good, "{what}");
        };
        for len in [0, 1, 8, 64, 96, 127, 128, 129, 128 + 64, data - 1, data, data + 1, good.len() - 1] {
            check(&good[..len], format!("{len} bytes of {}", good.len()));
        }
        check(&[&good[..], &[0; 64]].concat(), "64 bytes more".into());
        for byte in [0, 7, 8, 12, 16, 24, 32, 63, 64, 95, 96, 127, 128, 160, 168, 176, 191, data - 1] {
            let mut bad = good.clone();
            bad[byte] ^= 1 << (byte % 8);
            check(&bad, format!("a bit of byte {byte}"));
        }
        let zeros = vec![0; good.len()];
        check(&zeros, "zeros".into());
    }
}

#[test]
fn another_model_at_the_same_place_is_another() {
    let dir = tempfile::tempdir().unwrap();
    let (path, cache) = (model(dir.path(), 1.0), dir.path().join("cache"));
    let (first, _) = run(&path, Some(&cache));
    let (time, bytes) = (path.metadata().unwrap().modified().unwrap(), fs::read(&path).unwrap());
    let keep_time = || fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    // The file is replaced; length and time stay.
    fs::remove_file(&path).unwrap();
    model(dir.path(), 1.5);
    keep_time();
    assert_eq!(path.metadata().unwrap().len(), bytes.len() as u64);
    let (want, _) = run(&path, None);
    assert!(want != first);
    assert_eq!(run(&path, Some(&cache)), (want, 0));
    // One byte is changed in place, where no sample is taken.
    let mut changed = fs::read(&path).unwrap();
    let at = changed.len() - 100;
    changed[at] ^= 0x40;
    fs::write(&path, &changed).unwrap();
    keep_time();
    let (want, _) = run(&path, None);
    assert_eq!(run(&path, Some(&cache)), (want, 0));
}

#[test]
fn a_cache_that_can_not_be_written_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = model(dir.path(), 1.0);
    let (want, _) = run(&path, None);
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(run(&path, Some(&file)), (want.clone(), 0));
    // Directories are where files should be, so that nothing can be renamed there.
    let cache = dir.path().join("cache");
    run(&path, Some(&cache));
    let files = packs(&cache);
    for f in &files {
        fs::remove_file(f).unwrap();
        fs::create_dir(f).unwrap();
    }
    assert_eq!(run(&path, Some(&cache)), (want, 0));
    assert_eq!(packs(&cache), files);
}

fn command(args: &[&str], cache: &Path) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_marquetry"));
    c.args(args).env("MARQUETRY_CACHE", cache).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    c
}

#[test]
fn processes_share_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let (path, cache) = (model(dir.path(), 1.0), dir.path().join("cache"));
    let args = ["generate", path.to_str().unwrap(), "--tokens", "1,5,9", "-n", "4", "--temperature", "0", "--json"];
    let of = |out: Vec<u8>| {
        let v: Value = serde_json::from_slice(&out).unwrap();
        (v["ids"].clone(), v["stats"]["cached_weights"].as_u64().unwrap())
    };
    let uncached = command(&[&args[..], &["--no-cache"]].concat(), &cache).output().unwrap().stdout;
    let (want, none) = of(uncached);
    assert_eq!(none, 0);
    assert!(!cache.exists(), "--no-cache writes nothing");
    let children: Vec<_> = (0..3).map(|_| command(&args, &cache).spawn().unwrap()).collect();
    for child in children {
        assert_eq!(of(child.wait_with_output().unwrap().stdout).0, want);
    }
    let (ids, cached) = of(command(&args, &cache).output().unwrap().stdout);
    assert!(ids == want && cached > 10, "{cached}");
    assert_eq!(of(command(&[&args[..], &["--no-cache"]].concat(), &cache).output().unwrap().stdout), (want, 0));

    // A bit of a weight is found when all is read.
    let count = packs(&cache).len();
    assert_eq!(verify_packs(&cache).good, count);
    let file = &packs(&cache)[0];
    let mut bytes = fs::read(file).unwrap();
    let last = bytes.len() - 100;
    bytes[last] ^= 1;
    fs::write(file, bytes).unwrap();
    let report = command(&["doctor", "--verify-cache", "--json"], &cache).output().unwrap().stdout;
    let report: Value = serde_json::from_slice(&report).unwrap();
    assert_eq!((&report["packs_good"], &report["packs_removed"]), (&(count - 1).into(), &1.into()));
    assert!(!file.exists());
}

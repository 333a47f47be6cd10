//! The same model gives the same bytes: in another directory, on another number of threads, again. And every stage of every
//! reference model is text that reads back.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use marquetry::codegen::{Backend, Options, compile};
use marquetry::engine::{Bucket, bucket_options};
use marquetry::ir::graph::Module;
use marquetry::model::{LoadOptions, LoadedModel};
use marquetry::passes::Numerics;
use marquetry::passes::manager::{self, Ir};
use support::CASES;

/// Both buckets, both numerics.
const WAYS: [(Bucket, Numerics); 2] = [(Bucket::Decode, Numerics::Fast), (Bucket::Prefill, Numerics::Strict)];

fn oracle(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracles").join(name)
}

fn open(dir: &Path) -> Module {
    let model = LoadedModel::open(&dir.to_string_lossy(), &LoadOptions::default(), &mut |_| {});
    model.and_then(|m| m.bound_module()).unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
}

/// A copy of a model's files.
fn elsewhere(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(oracle(name)).unwrap().map(|f| f.unwrap()) {
        std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    dir
}

/// Text of the planned program, and of the machine code of its kernels.
fn products(module: &Module, threads: usize) -> Vec<String> {
    let mut all = vec![];
    for (bucket, numerics) in WAYS {
        let (program, _) = manager::compile(module, &bucket_options(bucket, numerics, 64)).unwrap();
        let options = Options { disassemble: true, threads, ..Options::default() };
        let code = compile(Backend::Cranelift, &program.kernels, &program.syms, &options).unwrap();
        all.extend((0..code.len()).map(|k| code.asm(k).unwrap_or_default().to_string()));
        all.push(manager::print(&Ir::Program(Box::new(program))));
    }
    all
}

#[test]
fn compiling_again_elsewhere_gives_the_same_bytes() {
    for name in ["llama/base", "gemma3/text", "qwen2_moe/norm-topk-sharded", "rwkv6/base"] {
        let copy = elsewhere(name);
        let first = products(&open(&oracle(name)), 1);
        assert!(first.iter().all(|text| !text.is_empty()), "{name}");
        let again = std::thread::spawn({
            let dir = copy.path().to_path_buf();
            move || products(&open(&dir), 3)
        });
        assert!(first == again.join().unwrap(), "{name}");
    }
}

#[test]
fn the_program_prints_the_same_from_another_directory() {
    let inspect = |dir: &Path, stage: &str| {
        let out = Command::new(env!("CARGO_BIN_EXE_marquetry"))
            .args(["inspect", ".", "--stage", stage])
            .current_dir(dir)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    };
    let copy = elsewhere("llama/base");
    for stage in ["plan", "asm"] {
        let text = inspect(&oracle("llama/base"), stage);
        assert!(text.len() > 1000 && text == inspect(copy.path(), stage), "{stage}");
    }
}

#[test]
fn every_stage_of_every_reference_model_reads_back() {
    for name in CASES {
        let module = open(&oracle(name));
        for (bucket, numerics) in WAYS {
            let mut seen = vec![];
            let mut check = |stage: &'static str, ir: &Ir| {
                let text = manager::print(ir);
                let back = manager::parse(&text).unwrap_or_else(|e| panic!("{name}, {stage}: {e}"));
                assert!(back == *ir, "{name}, {stage}: what is read differs from what was printed");
                assert!(manager::print(&back) == text, "{name}, {stage}: printed again, the text differs");
                seen.push(stage);
            };
            let traced = Ir::Graph(module.clone());
            check("trace", &traced);
            manager::run(traced, &manager::default_pipeline(), &bucket_options(bucket, numerics, 64), &mut check)
                .unwrap();
            let names: Vec<&str> = manager::PASSES.iter().map(|p| p.name).collect();
            assert_eq!(seen[1..], names, "{name}");
        }
    }
}

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use half::f16;
use marquetry_ir::loops::{Expr, LoopKind, MicroOp, Stmt};
use marquetry_ir::program::Program;
use marquetry_passes::Numerics;
use marquetry_passes::eqsat::Exact;
use marquetry_passes::params::{Params, TABLE};
use marquetry_runtime::micro::Routines;

use super::search::{Found, Limits, Subject, Times, search};
use super::store::Store;
use super::subject::OfEngine;
use super::{TuneOptions, tune};
use crate::Error;
use crate::engine::{Bucket, Engine, EngineOptions, Rows, Tuning};
use crate::model::{LoadOptions, LoadedModel};

#[path = "../../tests/support/gguf.rs"]
mod gguf;

fn open(path: &Path) -> Arc<LoadedModel> {
    Arc::new(LoadedModel::open(path.to_str().unwrap(), &LoadOptions::default(), &mut |_| {}).unwrap())
}

fn reference(case: &str) -> Arc<LoadedModel> {
    open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracles").join(case))
}

/// A small model with blocks of Q8_0.
fn quantized(dir: &Path) -> Arc<LoadedModel> {
    let recipe = gguf::recipes().into_iter().find(|r| r["case"] == "llama/base").unwrap();
    let block = |g: &[f32]| {
        let d = f16::from_f32(g.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0);
        let q = g.iter().map(move |v| (v / d.to_f32().max(1e-30)).round_ties_even().clamp(-127.0, 127.0) as i8 as u8);
        d.to_le_bytes().into_iter().chain(q).collect::<Vec<_>>()
    };
    let encode = |_: &str, a: &gguf::Array| {
        let fits = a.shape.len() > 1 && a.shape[1].is_multiple_of(32);
        fits.then(|| (8, a.values.chunks(32).flat_map(block).collect()))
    };
    open(&gguf::written(&recipe, dir, &encode))
}

fn engine(model: &Arc<LoadedModel>, options: EngineOptions) -> Engine {
    Engine::new(model.clone(), EngineOptions { threads: 2, context: 128, ..options }).unwrap()
}

/// Every value of every parameter, checked as the tuner does. Gives how many kernels were compared.
fn every_value(e: &mut Engine) -> usize {
    let (mut compared, strict) = (0, e.is_strict());
    for bucket in Bucket::ALL {
        let mut s = OfEngine::new(e, bucket, 7).unwrap();
        let base = s.make(&Params::default()).unwrap();
        let all: Vec<String> = base.program.kernels.iter().map(|k| k.name.clone()).collect();
        assert_eq!(s.check(&base, &all).unwrap(), None);
        for p in TABLE.iter().filter(|p| !strict || p.numbers == Exact::Bitwise) {
            for value in p.choices {
                let made = s.make(&Params::default().with(p.name, *value).unwrap()).unwrap();
                let changed = s.changed(&base, &made);
                compared += changed.len();
                assert_eq!(s.check(&made, &changed).unwrap(), None, "{} {}={value}", bucket.name(), p.name);
            }
        }
    }
    compared
}

#[test]
fn every_value_of_every_parameter_computes_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let q8 = quantized(dir.path());
    for (model, numerics, both) in [
        (reference("llama/base"), Numerics::Strict, true),
        (q8.clone(), Numerics::Strict, false),
        (q8, Numerics::Fast, true),
    ] {
        for routines in if both { &[Routines::Best, Routines::None][..] } else { &[Routines::Best] } {
            let routines = *routines;
            let mut e =
                engine(&model, EngineOptions { numerics: Some(numerics), routines, ..EngineOptions::default() });
            let compared = every_value(&mut e);
            assert!(compared > 20, "{compared}");
        }
    }
}

/// A defect in products: the last element of rows is left out.
fn shortened(params: &Params, p: &mut Program) {
    if params.fma_one_blocks != 2 {
        return;
    }
    fn each(body: &mut [Stmt]) {
        for s in body {
            match s {
                Stmt::For { body, .. } => each(body),
                Stmt::Micro(m) if matches!(m.op, MicroOp::Fma(_)) => m.sizes[2] = m.sizes[2].clone() - Expr::idx(1),
                _ => {}
            }
        }
    }
    p.kernels.iter_mut().for_each(|k| each(&mut k.body));
}

/// Another one: the last iteration of parallel loops is left out.
fn unfinished(params: &Params, p: &mut Program) {
    if params.fma_one_blocks != 2 {
        return;
    }
    for k in &mut p.kernels {
        if let [Stmt::For { extent, kind: LoopKind::Parallel, .. }] = k.body.as_mut_slice() {
            *extent = extent.clone() - 1;
        }
    }
}

#[test]
fn a_candidate_with_a_defect_is_found_and_never_taken() {
    if Routines::Best.level().is_none() {
        return;
    }
    let model = reference("llama/base");
    for defect in [shortened, unfinished] {
        let mut e = engine(&model, EngineOptions::default());
        let mut s = OfEngine::new(&mut e, Bucket::Decode, 0).unwrap();
        s.spoil = Some(defect);
        let base = s.make(&Params::default()).unwrap();
        let made = s.make(&Params { fma_one_blocks: 2, ..Params::default() }).unwrap();
        let changed = s.changed(&base, &made);
        let what = s.check(&made, &changed).unwrap().expect("the defect is seen");
        assert!(what.starts_with('@'), "{what}");
    }
}

/// Times by table: nothing runs.
struct Fake {
    timed: RefCell<Vec<Params>>,
}

impl Subject for Fake {
    type Made = Params;

    fn make(&mut self, params: &Params) -> Result<Params, Error> {
        Ok(*params)
    }

    fn changed(&self, from: &Params, to: &Params) -> Vec<String> {
        let names = [("product", from.fma_tokens == to.fma_tokens), ("other", from.small == to.small)];
        let rare = ("rare", from.panel == to.panel);
        names.into_iter().chain([rare]).filter(|(_, same)| !same).map(|(n, _)| n.to_string()).collect()
    }

    fn check(&mut self, made: &Params, kernels: &[String]) -> Result<Option<String>, Error> {
        let wrong = kernels.contains(&"product".to_string()) && made.fma_tokens == 8;
        Ok(wrong.then(|| "@product: planted".into()))
    }

    fn time(&mut self, made: &mut Params) -> Result<Times, Error> {
        self.timed.borrow_mut().push(*made);
        // The wrong one would be the fastest; 1 % is no win; what is rare does not count.
        let product = match made.fma_tokens {
            8 => 1.0,
            16 => 5.0,
            _ => 10.0,
        };
        let other = if made.small == 16 { 9.9 } else { 10.0 };
        let rare = if made.panel == 65536 { 0.01 } else { 0.1 };
        Ok([("product", product), ("other", other), ("rare", rare)].map(|(n, t)| (n.to_string(), t)).into())
    }
}

fn faked(seed: u64) -> (Found<Params>, Vec<Params>) {
    let mut s = Fake { timed: RefCell::default() };
    let limits = Limits { until: Instant::now() + Duration::from_secs(3600), seed, bitwise: true };
    let found = search(&mut s, &limits, &mut |_| {}).unwrap();
    let mut order = s.timed.into_inner();
    order.dedup();
    (found, order)
}

#[test]
fn the_search_takes_what_is_right_and_faster() {
    let (found, order) = faked(1);
    assert_eq!(found.params, Params { fma_tokens: 16, ..Params::default() });
    assert_eq!(found.best, found.params);
    assert!(found.complete && (found.gain - 20.1 / 15.1).abs() < 1e-6, "{}", found.gain);
    assert!(found.defects.iter().any(|d| d.contains("fma_tokens=8") && d.contains("planted")), "{:?}", found.defects);
    assert!(order.iter().all(|p| p.fma_tokens != 8), "a wrong candidate was timed");
    assert!(order.iter().all(|p| p.panel == Params::default().panel), "what takes no time was timed");
    let (again, same) = faked(1);
    assert!(again.params == found.params && same == order, "the order hangs on the seed only");
    assert!((2..9).any(|seed| faked(seed).1 != order), "the order hangs on the seed");
}

fn logits(e: &mut Engine) -> Vec<u32> {
    let mut all = e.prefill(&(0..70).map(|i| i * 7 % 50).collect::<Vec<_>>(), Rows::All).unwrap();
    all.extend(e.decode(3).unwrap());
    all.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn tuned_engines_give_the_same_bits_where_they_are_strict() {
    // Every parameter has another value than by default; those that may change bits are left out by the engine.
    let other = TABLE.iter().fold(Params::default(), |all, p| {
        let value = p.choices.iter().find(|c| c.to_string() != p.default).unwrap();
        all.with(p.name, *value).unwrap()
    });
    let dir = tempfile::tempdir().unwrap();
    for model in [reference("llama/base"), reference("gemma3/text"), reference("mixtral/e4k2"), quantized(dir.path())] {
        for routines in [Routines::Best, Routines::None] {
            let with = |tuning| {
                let options =
                    EngineOptions { numerics: Some(Numerics::Strict), routines, tuning, ..EngineOptions::default() };
                let mut e = engine(&model, options);
                let bits = logits(&mut e);
                (bits, e.tuning().unwrap().params(Bucket::Prefill))
            };
            let (want, none) = with(Tuning::Off);
            let (got, used) = with(Tuning::Given(Box::new([other; 3])));
            assert_eq!((none, used), (Params::default(), other.bitwise()));
            assert!(used != none && got == want);
        }
    }
}

#[test]
fn what_was_tuned_is_used_until_the_file_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let model = reference("llama/base");
    let options = || EngineOptions { cache: Some(dir.path().into()), ..EngineOptions::default() };
    let mut e = engine(&model, options());
    let key = e.tuning_key(Bucket::Decode).unwrap();
    let params = Params { fma_one_blocks: 2, chunks: 8, ..Params::default() };
    let (model_name, bucket, threads, gain) = ("base".into(), "decode".into(), 2, 1.5);
    let entry = super::store::Entry { key: key.clone(), model: model_name, bucket, threads, params, gain };
    let store = Store::new(dir.path());
    store.put(&key, Some(entry)).unwrap();
    let state = |options: EngineOptions| {
        let mut e = engine(&model, options);
        let bits = logits(&mut e);
        let t = e.tuning().unwrap();
        (bits, t.params(Bucket::Decode), t.params(Bucket::Prefill), t.refused.clone())
    };
    let (want, plain) = (logits(&mut e), Params::default());
    assert_eq!(state(options()), (want.clone(), params, plain, None));
    // Another length of the context is the same kernels, another number of threads is not.
    let longer = Engine::new(model.clone(), EngineOptions { threads: 2, context: 64, ..options() }).unwrap();
    assert_eq!(longer.tuning().unwrap().params(Bucket::Decode), params);
    let one = Engine::new(model.clone(), EngineOptions { threads: 1, context: 128, ..options() }).unwrap();
    assert_eq!(one.tuning().unwrap().params(Bucket::Decode), plain);
    assert_eq!(state(EngineOptions { tuning: Tuning::Off, ..options() }), (want.clone(), plain, plain, None));
    std::fs::write(store.path(), b"{\"format\": 1, \"sum\": \"\", \"entries\": []}").unwrap();
    let (bits, decode, _, refused) = state(options());
    assert_eq!((bits, decode), (want, plain));
    let refused = refused.unwrap();
    assert!(refused.contains("its sum is wrong; remove it, or tune again"), "{refused}");
}

#[test]
fn a_model_is_tuned_and_runs_on() {
    let dir = tempfile::tempdir().unwrap();
    let model = reference("llama/base");
    let options = EngineOptions { cache: Some(dir.path().into()), ..EngineOptions::default() };
    let mut e = engine(&model, options);
    let want = logits(&mut e);
    let time = Duration::from_secs(4);
    let found = tune(&mut e, &TuneOptions { time, seed: 3 }, &mut |_| {}).unwrap();
    assert_eq!(found.iter().map(|t| t.bucket).collect::<Vec<_>>(), e.buckets());
    assert!(found.iter().all(|t| t.defects.is_empty()), "{found:?}");
    assert!(found.iter().any(|t| t.timed > 0), "{found:?}");
    assert!(e.history().is_empty());
    for t in &found {
        assert_eq!(e.tuning().unwrap().params(t.bucket), t.params);
    }
    assert!(logits(&mut e) == want);
    let kept = Store::new(dir.path()).entries().unwrap();
    assert_eq!(kept.len(), found.iter().filter(|t| t.params != Params::default()).count());
    let interp = EngineOptions { backend: crate::engine::Backend::Interp, ..EngineOptions::default() };
    let e = tune(&mut engine(&model, interp), &TuneOptions::default(), &mut |_| {}).unwrap_err();
    assert!(e.to_string().contains("try --backend cranelift"), "{e}");
}

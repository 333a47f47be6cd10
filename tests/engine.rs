//! The engine as a library: chunks, steps and kept prefixes give the same numbers.

use std::path::Path;
use std::sync::Arc;

use marquetry::engine::{Backend, Engine, EngineOptions, Rows};
use marquetry::generate::{Finish, Limits, generate};
use marquetry::model::{LoadOptions, LoadedModel};
use marquetry::runtime::sampler::SamplerParams;

fn engine(backend: Backend, threads: usize) -> Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracles/llama/base");
    let model = LoadedModel::open(path.to_str().unwrap(), &LoadOptions::default(), &mut |_| {}).unwrap();
    Engine::new(Arc::new(model), EngineOptions { backend, threads, ..EngineOptions::default() }).unwrap()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-4)
}

#[test]
fn a_kept_prefix_changes_nothing() {
    for backend in [Backend::Interp, Backend::Cranelift] {
        let mut e = engine(backend, 2);
        let tokens: Vec<u32> = (0..40).map(|i| (i * 7 + 3) % 50).collect();
        let whole = e.prefill(&tokens, Rows::Last).unwrap();
        // Another end, then the first one again: only what differs is computed.
        let mut other = tokens.clone();
        other[35] += 1;
        assert_eq!(e.reuse(&other).unwrap(), 35);
        e.prefill(&other[35..], Rows::Last).unwrap();
        assert_eq!(e.reuse(&tokens).unwrap(), 35);
        let again = e.prefill(&tokens[35..], Rows::Last).unwrap();
        assert!(close(&whole, &again), "{backend:?}");
        assert_eq!(e.history(), tokens);
        assert_eq!(e.reuse(&tokens).unwrap(), 39);
        assert!(close(&whole, e.decode(tokens[39]).unwrap()));
    }
}

#[test]
fn all_rows_are_the_last_rows_of_each_step() {
    let tokens = [5u32, 9, 2, 2, 31];
    let all = engine(Backend::Cranelift, 2).prefill(&tokens, Rows::All).unwrap();
    let mut e = engine(Backend::Cranelift, 1);
    let stepped: Vec<f32> = tokens.iter().flat_map(|&t| e.decode(t).unwrap().to_vec()).collect();
    assert!(close(&all, &stepped));
}

#[test]
fn the_number_of_threads_does_not_change_strict_results() {
    let tokens: Vec<u32> = (0..33).collect();
    let one = engine(Backend::Cranelift, 1).prefill(&tokens, Rows::All).unwrap();
    let three = engine(Backend::Cranelift, 3).prefill(&tokens, Rows::All).unwrap();
    assert_eq!(one, three);
}

#[test]
fn generation_ends_for_the_right_reason() {
    let mut e = engine(Backend::Cranelift, 2);
    let out = generate(&mut e, &[1, 2, 3], SamplerParams::greedy(), &Limits::new(5), &mut |_| true).unwrap();
    assert_eq!((out.ids.len(), out.finish, out.reused), (5, Finish::Length, 0));
    let mut limits = Limits::new(5);
    limits.stop.insert(out.ids[2]);
    let first = out.ids.iter().position(|t| *t == out.ids[2]).unwrap();
    let stopped = generate(&mut e, &[1, 2, 3], SamplerParams::greedy(), &limits, &mut |_| true).unwrap();
    assert_eq!((&stopped.ids[..], stopped.finish, stopped.reused), (&out.ids[..first], Finish::Stop, 2));
    let cut = generate(&mut e, &[1, 2, 3], SamplerParams::greedy(), &Limits::new(5), &mut |_| false).unwrap();
    assert_eq!((cut.ids.len(), cut.finish), (1, Finish::Interrupted));
    let asked = generate(&mut e, &[], SamplerParams::greedy(), &Limits::new(5), &mut |_| true);
    assert_eq!(asked.unwrap_err().code(), "CLI001");
}

#[test]
fn a_cache_that_grows_keeps_what_it_has() {
    let token = |i: u32| (i * 7 + 3) % 50;
    // Room for all of it from the start, and for more and more as the sequence gets longer.
    let [mut roomy, mut growing] = [(); 2].map(|()| engine(Backend::Cranelift, 2));
    roomy.prefill(&vec![0; 250], Rows::Last).unwrap();
    assert_eq!(roomy.reuse(&[1]).unwrap(), 0);
    for i in 0..250 {
        let want = roomy.decode(token(i)).unwrap().to_vec();
        assert_eq!(want, growing.decode(token(i)).unwrap(), "position {i}");
    }
}

#[test]
fn a_full_context_is_an_answer_not_an_error() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracles/llama/base");
    let model = LoadedModel::open(path.to_str().unwrap(), &LoadOptions::default(), &mut |_| {}).unwrap();
    let options = EngineOptions { context: 8, ..EngineOptions::default() };
    let mut e = Engine::new(Arc::new(model), options).unwrap();
    let out = generate(&mut e, &[1, 2, 3], SamplerParams::greedy(), &Limits::new(50), &mut |_| true).unwrap();
    assert_eq!((out.ids.len(), out.finish), (6, Finish::Context));
    let long = [1u32; 9];
    let refused = generate(&mut e, &long, SamplerParams::greedy(), &Limits::new(1), &mut |_| true).unwrap_err();
    assert_eq!(refused.code(), "RUN040");
}

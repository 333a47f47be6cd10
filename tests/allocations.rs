//! Decoding and sampling allocate no memory once they are under way.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use marquetry::engine::{Engine, EngineOptions};
use marquetry::generate::{Limits, generate};
use marquetry::model::{LoadOptions, LoadedModel};
use marquetry::passes::Numerics;
use marquetry::runtime::micro::Routines;
use marquetry::runtime::sampler::SamplerParams;

/// The system's allocator, counting what it is asked for by any thread.
struct Counting;

static ASKED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ASKED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tokens before the count begins.
const WARM: usize = 4;
/// All tokens: several pages of the cache.
const TOKENS: usize = 100;

#[test]
fn generation_allocates_nothing() {
    let greedy = SamplerParams::greedy;
    let drawn = || SamplerParams { temperature: 0.8, top_k: 30, top_p: 0.9, min_p: 0.01, seed: 3, ..greedy() };
    let models = ["llama/base", "gemma3/text", "mixtral/e4k2", "rwkv6/base", "baichuan/baichuan2-13b-alibi"];
    for (name, numerics) in models.iter().flat_map(|m| [(m, Numerics::Strict), (m, Numerics::Fast)]) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracles").join(name);
        let model = Arc::new(LoadedModel::open(&path.to_string_lossy(), &LoadOptions::default(), &mut |_| {}).unwrap());
        for (routines, params) in [(Routines::Best, greedy()), (Routines::None, drawn())] {
            let numerics = Some(numerics);
            let options = EngineOptions { numerics, threads: 2, routines, context: 128, ..EngineOptions::default() };
            let mut engine = Engine::new(model.clone(), options).unwrap();
            let mut asked = Vec::with_capacity(TOKENS);
            let mut each = |_| {
                asked.push(ASKED.load(Ordering::Relaxed));
                true
            };
            let limits = Limits::new(TOKENS);
            generate(&mut engine, &[3, 1, 2], params.clone(), &limits, &mut each).unwrap();
            assert_eq!(asked.len(), TOKENS, "{name}");
            let at: Vec<usize> = (WARM..TOKENS).filter(|t| asked[*t] > asked[t - 1]).collect();
            assert!(at.is_empty(), "{name}, {numerics:?}, {params:?}: memory is allocated for tokens {at:?}");
            assert!(asked[0] > 1000, "nothing is counted");
        }
    }
}

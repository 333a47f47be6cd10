//! Shape mistakes and what is said to each, beside the line that made it: `tests/data/shapes.txt`. `BLESS=1` writes it anew.

use std::fmt::Write;

use marquetry_frontend::nn::{Embedding, LayerNorm, Linear, RmsNorm, Rope};
use marquetry_frontend::{
    Attend, KvCache, Limits, Module, Param, Step, Tensor, Tracer, config::RopeScaling, dims, trace,
};

/// What the mistakes are made with.
#[derive(Module)]
struct Parts {
    table: Embedding,
    narrow: Linear,
    wide: Linear,
    rms: RmsNorm,
    layer: LayerNorm,
}

const HOW: Attend = Attend { scale: 1.0, window: 0, softcap: 0.0 };

type Mistake = for<'t> fn(&'t Tracer, &Parts, &KvCache<'t>, Tensor<'t>) -> Vec<Tensor<'t>>;

/// `x` is f32 `[n, 32]`; the cache has 2 layers of 2 heads of 16.
const MISTAKES: &[(&str, Mistake)] = &[
    ("inner extents", |_, p, _, x| vec![p.wide.call(p.wide.call(x))]),
    ("unequal widths", |_, p, _, x| vec![p.narrow.call(x) + x]),
    ("ranks", |_, _, _, x| vec![x + x.split_heads(2, 16)]),
    ("heads that do not divide", |_, _, _, x| vec![x.split_heads(3, 16)]),
    ("norm of another width", |_, p, _, x| vec![p.rms.call(p.narrow.call(x)), p.layer.call(p.narrow.call(x))]),
    ("too many rotated features", |_, _, kv, x| {
        vec![Rope::new(32, 1e4, &RopeScaling::Default).call(x.split_heads(2, 16), kv)]
    }),
    ("query heads that key heads do not divide", |_, p, kv, x| {
        let k = x.split_heads(2, 16);
        vec![p.wide.call(x).split_heads(3, 16).attend(&kv.update(0, k, k), HOW)]
    }),
    ("keys of another head size", |_, _, kv, x| {
        let k = x.split_heads(4, 8);
        vec![k.attend(&kv.update(0, k, k), HOW)]
    }),
    ("a layer beyond the cache", |_, _, kv, x| {
        let k = x.split_heads(2, 16);
        vec![k.attend(&kv.update(2, k, k), HOW)]
    }),
    ("a slice beyond its axis", |_, _, _, x| vec![x.slice(1, 24, 16)]),
    ("joined along unequal axes", |_, p, _, x| vec![x.concat(&[p.narrow.call(x)], 0)]),
    ("floats as indices", |_, p, _, x| vec![x.embed(&p.table.weight)]),
    ("integers in arithmetic", |_, _, kv, x| vec![kv.pos().reshape(dims![kv.pos().shape()[0], 1]) * x]),
    ("more experts than there are", |_, _, _, x| vec![x.top_k(40)]),
    ("a kernel that can not be read", |cx, _, _, x| cx.external("kernel @k(%x: f32[n, 32] in) { store }", &[x])),
    ("a kernel for another width", |cx, _, _, x| {
        let text = "kernel @k(%x: f32[n, 64] in, %y: f32[n] out) {
          for t.0 in 0..n {
            store %y[t.0] = %x[t.0, 0]
          }
        }";
        cx.external(text, &[x])
    }),
    ("a parameter from elsewhere", |_, _, _, x| vec![x.linear(&Param::new(&[8, 32]))]),
];

#[test]
fn each_is_told_at_its_line() {
    let parts = Parts {
        table: Embedding::new(16, 32),
        narrow: Linear::new(32, 24),
        wide: Linear::new(32, 48),
        rms: RmsNorm::new(32, 1e-6),
        layer: LayerNorm::new(32, 1e-6),
    };
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let mut text = String::new();
    for (name, mistake) in MISTAKES {
        let errors = trace("mistake", &parts, |cx| {
            let step = Step::declare(cx, Limits { tokens: 8, sequences: 1, context: 64, page: 16 });
            let kv = cx.kv_cache(&step, 2, 2, 16);
            let x = parts.table.call(step.tokens);
            for (i, y) in mistake(cx, &parts, &kv, x).into_iter().enumerate() {
                cx.output(&format!("y{i}"), y);
            }
        });
        let mut errors = errors.err().unwrap_or_else(|| panic!("{name} is no mistake"));
        for e in &mut errors.0 {
            // The path is relative to the workspace, tests run in the crate.
            e.file = format!("{root}{}", e.file.strip_prefix("frontend/").unwrap_or(&e.file));
        }
        let _ = write!(text, "## {name}\n\n{}", errors.to_string().replace(root, ""));
    }
    let path = format!("{root}tests/data/shapes.txt");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert!(std::fs::read_to_string(&path).unwrap_or_default() == text, "BLESS=1 writes it anew; it would be:\n{text}");
}

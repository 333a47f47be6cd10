//! The harness is tested: steps that are wrong in one detail, as a primitive or the memory plan might be, must be caught by the
//! entry that real steps take. Primitives refuse to make them, so the results are written down.

use marquetry_ir::graph::{Module, parse_module, verify};
use marquetry_ir::program::{Place, Program};
use marquetry_ir::testing::program::run_program;
use marquetry_ir::testing::{Numbers, Random, gap, inputs, run};
use marquetry_passes::Numerics;
use marquetry_passes::manager::{self, Options};

use crate::{agree, kernel};

struct Wrong {
    name: &'static str,
    before: &'static str,
    after: &'static str,
    /// What shows it.
    by: &'static str,
}

const SUM: &str =
    "store %acc[0, 0] = 3.0 for i.0 in 0..16 { store %acc[0, 0] = %acc[0, 0] + %a[i.0] } store %y[0] = %acc[0, 0]";

#[rustfmt::skip]
const WRONG: &[Wrong] = &[
    Wrong {
        name: "split drops the tail", by: "values",
        before: "for i.0 in 0..10 { store %y[i.0] = %a[i.0] }",
        after: "for io.0 in 0..2 { for ii.1 in 0..4 { store %y[io.0 * 4 + ii.1] = %a[io.0 * 4 + ii.1] } }",
    },
    Wrong {
        name: "split rounds up without a guard", by: "bounds",
        before: "for i.0 in 0..n * 3 { store %y[i.0] = %a[i.0] }",
        after: "for io.0 in 0..(n * 3 + 4) / 5 { for ii.1 in 0..5 { store %y[io.0 * 5 + ii.1] = %a[io.0 * 5 + ii.1] } }",
    },
    Wrong {
        name: "reorder over a dependent reduction", by: "values",
        before: "for i.0 in 0..8 { for j.1 in 0..8 { store %y[0] = %y[0] * 0.5 + %m[i.0, j.1] } }",
        after: "for j.1 in 0..8 { for i.0 in 0..8 { store %y[0] = %y[0] * 0.5 + %m[i.0, j.1] } }",
    },
    Wrong {
        name: "parallel over a reduction", by: "parallel",
        before: "for i.0 in 0..8 { store %y[0] = %y[0] + %a[i.0] }",
        after: "parallel i.0 in 0..8 { store %y[0] = %y[0] + %a[i.0] }",
    },
    Wrong {
        name: "parallel with a value carried in scratch memory", by: "parallel",
        before: "for i.0 in 0..8 { if i.0 < 1 { store %row[0] = 0.0 } store %row[0] = %row[0] + %a[i.0] store %y[i.0] = %row[0] }",
        after: "parallel i.0 in 0..8 { if i.0 < 1 { store %row[0] = 0.0 } store %row[0] = %row[0] + %a[i.0] store %y[i.0] = %row[0] }",
    },
    Wrong {
        name: "vectorize with a carried dependency", by: "values",
        before: "for i.0 in 0..16 { store %y[i.0 + 1] = %y[i.0] }",
        after: "for i.0 in 0..2 { store %y[i.0 * 8 + 1; 8] = %y[i.0 * 8; 8] }",
    },
    Wrong {
        name: "vectorize begins the tail one element late", by: "values",
        before: "for i.0 in 0..18 { store %y[i.0] = %a[i.0] }",
        after: "for i.0 in 0..2 { store %y[i.0 * 8; 8] = %a[i.0 * 8; 8] } for t.1 in 0..2 { store %y[t.1 + 17] = %a[t.1 + 17] }",
    },
    Wrong {
        name: "vectorize_reduce forgets what was there", by: "values",
        before: SUM,
        after: "store %vec[0, 0; 8] = %a[0; 8] - %a[0; 8] for i.0 in 0..2 { store %vec[0, 0; 8] = %vec[0, 0; 8] + %a[i.0 * 8; 8] }
                store %y[0] = reduce.add(%vec[0, 0; 8])",
    },
    Wrong {
        name: "vectorize_reduce adds twice", by: "values",
        before: SUM,
        after: "store %acc[0, 0] = 3.0 store %acc[0, 0] = %acc[0, 0] + reduce.add(%a[0; 8]) + reduce.add(%a[8; 8])
                store %acc[0, 0] = %acc[0, 0] + reduce.add(%a[8; 8]) store %y[0] = %acc[0, 0]",
    },
    Wrong {
        name: "promote of a buffer with run-time indices", by: "verifier",
        before: "for i.0 in 0..8 { store %row[i.0] = %a[i.0] } for j.1 in 0..8 { store %y[j.1] = %row[7 - j.1] }",
        after: "for i.0 in 0..8 { store %acc[0, i.0] = %a[i.0] } for j.1 in 0..8 { store %y[j.1] = %acc[0, 7 - j.1] }",
    },
    Wrong {
        name: "promote of two buffers to one", by: "values",
        before: "store %row[0; 4] = %a[0; 4] store %row[4; 4] = %a[4; 4] store %y[0; 4] = %row[0; 4] + %row[4; 4]",
        after: "store %acc[0, 0; 4] = %a[0; 4] store %acc[0, 0; 4] = %a[4; 4] store %y[0; 4] = %acc[0, 0; 4] + %acc[0, 0; 4]",
    },
    Wrong {
        name: "unroll drops the last copy", by: "values",
        before: "for i.0 in 0..5 { store %y[i.0] = %a[i.0] }",
        after: "unroll i.0 in 0..4 { store %y[i.0] = %a[i.0] }",
    },
    Wrong {
        name: "a cached row is not written back", by: "values",
        before: "for i.0 in 0..8 { store %z[0, i.0] = %a[i.0] * 2.0 }",
        after: "for i.0 in 0..8 { store %row[i.0] = %a[i.0] * 2.0 }",
    },
    Wrong {
        name: "a cached row is read before it is complete", by: "values",
        before: "for i.0 in 0..8 { store %row[i.0] = %a[i.0] } for j.1 in 0..8 { store %y[j.1] = %row[7 - j.1] }",
        after: "for i.0 in 0..8 { store %row[i.0] = 0.0 } for j.1 in 0..8 { store %row[j.1] = %a[j.1] store %y[j.1] = %row[7 - j.1] }",
    },
    Wrong {
        name: "a guard dropped", by: "values",
        before: "for i.0 in 0..8 { if i.0 < 5 { store %y[i.0] = %a[i.0] } }",
        after: "for i.0 in 0..8 { store %y[i.0] = %a[i.0] }",
    },
];

/// A change of a planned program.
type Change = fn(&mut Program);

/// The lowest-placed buffers of the arena that are alive together come to lie on each other.
fn overlap(p: &mut Program) {
    for b in &mut p.buffers {
        if let Place::Arena(at) = &mut b.place {
            *at = 0;
        }
    }
}

const PLANS: &[(&str, Change, &str)] = &[
    ("a wait dropped", |p| p.launches.iter_mut().for_each(|l| l.sync = false), "without waiting"),
    ("arena buffers overlap", overlap, "overlap"),
    ("the arena is too small", |p| p.arena_bytes /= 2, "storage"),
    ("launches in another order", |p| p.launches.swap(0, 1), "without waiting"),
];

fn planned() -> (Module, Program) {
    let text = "sym \"n\" in 1..=16
        func @f(%0 \"x\": f32[n, 8], %1 \"y\": f32[n, 8]) {
          %2 = reduce_sum %0 : f32[n, 1]
          %3 = reshape %2 {shape = [1, n]} : f32[1, n]
          %4 = reshape %2 {shape = [n, 1]} : f32[n, 1]
          %5 = sub %3, %4 : f32[n, n]
          %6 = permute %5 {perm = [1, 0]} : f32[n, n]
          %7 = exp %6 : f32[n, n]
          %8 = add %7, %5 : f32[n, n]
          %9 = reduce_max %8 : f32[n, 1]
          %10 = add %9, %1 : f32[n, 8]
          %11 = reduce_sum %10 : f32[n, 1]
          %12 = reshape %11 {shape = [1, n]} : f32[1, n]
          %13 = mul %12, %11 : f32[n, n]
          return \"z\" = %13
        }";
    let m = parse_module(text).unwrap();
    assert_eq!(verify(&m), Vec::<String>::new());
    let options = Options { numerics: Numerics::Strict, ..Options::default() };
    let (p, _) = manager::compile(&m, &options).unwrap();
    assert!(p.launches.len() > 2, "{} launches", p.launches.len());
    (m, p)
}

/// What shows that a program does not compute its module.
fn fault(m: &Module, p: &Program) -> Option<String> {
    (0..8).find_map(|seed| {
        let i = inputs(m, &mut Random(seed), Numbers::Normal);
        let want = run(m, &i).unwrap();
        match run_program(m, p, &i) {
            Err(e) => Some(e),
            Ok(got) => Some(gap(&want, &got)).filter(|d| *d > 1e-4).map(|d| format!("{d} apart")),
        }
    })
}

#[test]
fn every_wrong_step_is_caught() {
    let mut missed = vec![];
    let mut report = |name: &str, found: Option<String>, by: &str| {
        let caught = found.as_ref().is_some_and(|f| f.contains(by));
        println!("{name:<48} {}", found.unwrap_or("MISSED".into()));
        missed.extend((!caught).then(|| name.to_string()));
    };
    for w in WRONG {
        let [before, after] = [w.before, w.after].map(|body| {
            kernel(&format!(
                "kernel @k(%a: f32[64] in, %m: f32[8, 64] in, %y: f32[64] inout, %z: f32[8, 64] inout) {{
                  local %row: f32[8]
                  reg %acc: f32[2, 8]
                  reg %vec: f32[1, 8]
                  {body}
                }}"
            ))
        });
        let found = (0..4).find_map(|seed| agree(&before, &after, 21, seed).err());
        report(w.name, found.map(|f| f.to_string()), w.by);
    }
    let (m, right) = planned();
    assert_eq!(fault(&m, &right), None);
    for (name, change, by) in PLANS {
        let mut p = right.clone();
        change(&mut p);
        report(name, fault(&m, &p), by);
    }
    assert!(WRONG.len() + PLANS.len() >= 10);
    assert!(missed.is_empty(), "not caught as they should be: {missed:?}");
}

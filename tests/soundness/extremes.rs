//! `max` and `min` of NaN, infinities and zeros of both signs: the same bits on every backend, for either order of operands.

use std::collections::HashMap;

use marquetry::codegen::Backend;
use marquetry::ir::graph::interp::{Tensor, Val};
use marquetry::ir::graph::parse_module;
use marquetry::ir::testing::program::run_program;
use marquetry::ir::testing::{Inputs, Outcome, run};
use marquetry::passes::Numerics;
use marquetry::passes::manager::{self, Options};

use crate::backends::native;

const SPECIAL: [f32; 9] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1.0, -1.0, 1e-40, f32::MIN_POSITIVE];

fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// Any NaN for any NaN.
fn bits(o: &Outcome) -> Vec<Vec<u32>> {
    let of = |v: &f32| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() };
    o.results.iter().map(|t| t.to_f32().unwrap().iter().map(of).collect()).collect()
}

#[test]
fn max_and_min_give_the_second_of_nan_and_of_zeros() {
    let text = "sym \"n\" in 1..=128
        func @f(%0 \"x\": f32[n], %1 \"y\": f32[n]) {
          %2 = max %0, %1 : f32[n]
          %3 = max %1, %0 : f32[n]
          %4 = min %0, %1 : f32[n]
          %5 = min %1, %0 : f32[n]
          return \"a\" = %2, \"b\" = %3, \"c\" = %4, \"d\" = %5
        }";
    let m = parse_module(text).unwrap();
    let pairs: Vec<(f32, f32)> = SPECIAL.iter().flat_map(|a| SPECIAL.iter().map(move |b| (*a, *b))).collect();
    // All of them, and tails that are shorter than a vector.
    for n in [pairs.len(), 1, 3, 7, 13] {
        for part in pairs.chunks(n).filter(|p| p.len() == n) {
            let (x, y): (Vec<f32>, Vec<f32>) = part.iter().copied().unzip();
            let pairwise =
                |f: fn(f32, f32) -> f32, a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect();
            let want: [Vec<f32>; 4] = [
                pairwise(larger, &x, &y),
                pairwise(larger, &y, &x),
                pairwise(smaller, &x, &y),
                pairwise(smaller, &y, &x),
            ];
            let want = Outcome { results: want.map(|v| Tensor::f32(&[n], v)).into(), states: vec![] };
            let args = [x, y].map(|v| Val::Tensor(Tensor::f32(&[n], v))).into();
            let i = Inputs { sizes: vec![n as i64], args, states: HashMap::new(), params: HashMap::new() };
            assert_eq!(bits(&run(&m, &i).unwrap()), bits(&want), "graph interpreter, {n}");
            for numerics in [Numerics::Strict, Numerics::Fast] {
                let (p, _) = manager::compile(&m, &Options { numerics, ..Options::default() }).unwrap();
                assert_eq!(bits(&run_program(&m, &p, &i).unwrap()), bits(&want), "loop interpreter, {n}");
                for backend in Backend::ALL.into_iter().filter(|b| b.is_built()) {
                    for got in native(backend, &m, &p, &i).unwrap() {
                        assert_eq!(bits(&got), bits(&want), "{}, {n}", backend.name());
                    }
                }
            }
        }
    }
}

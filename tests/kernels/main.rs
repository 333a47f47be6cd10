//! Every family of kernels at odd sizes and on 1 to 9 threads, through the whole pipeline: strict and fast numerics, with each set of
//! routines for micro-kernels that this CPU has and without any. The graph interpreter judges, and all numbers of threads must give the
//! same bits.

mod attention;
#[path = "../support/native.rs"]
mod native;
mod products;
mod rows;

use std::collections::HashMap;
use std::sync::LazyLock;

use marquetry::codegen::{Backend, Options};
use marquetry::ir::DType;
use marquetry::ir::graph::interp::{Data, Tensor, Val};
use marquetry::ir::graph::{Module, parse_module, verify};
use marquetry::ir::program::Program;
use marquetry::ir::testing::{
    Inputs, Numbers, Outcome, Random, bits_differ, cases, gap, inputs_of, mean_gap, run, sensitivity,
};
use marquetry::passes::Numerics;
use marquetry::passes::bind::Narrow;
use marquetry::passes::check::{rounds, unrounded};
use marquetry::passes::manager::{self, Ir};
use marquetry::runtime::Pool;
use marquetry::runtime::micro::{Level, Lookup, Routines};

use native::Native;

/// Results may differ by this much of the root mean square of their tensor.
const CLOSE: f32 = 2e-5;
/// Numbers of tokens of cases whose tokens have nothing to do with each other.
const TOKENS: &[i64] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 31, 33, 65];

static POOLS: LazyLock<Vec<Pool>> = LazyLock::new(|| (1..=9).map(|n| Pool::new(n).unwrap()).collect());

/// A function, and what it is run on.
#[derive(Clone)]
struct Case {
    name: String,
    /// The function, over tokens `n`.
    text: String,
    /// Passes, where they are not the default ones.
    pipeline: Option<&'static str>,
    runs: Vec<Run>,
    /// Distance of neighbouring numbers that computed ones are rounded to, over their size; 0 where none are.
    step: f32,
    /// Micro-kernels that programs for routines must have: in strict numerics, in fast ones.
    micro: [Vec<String>; 2],
}

/// Tokens, and arguments that are not random.
#[derive(Clone)]
struct Run {
    tokens: i64,
    args: Vec<(&'static str, Vec<i64>)>,
}

impl Case {
    fn new(name: String, text: String, micro: [Vec<String>; 2]) -> Case {
        let runs = TOKENS.iter().map(|n| Run { tokens: *n, args: vec![] }).collect();
        Case { name, text, pipeline: None, runs, step: 0.0, micro }
    }
}

/// A way to run micro-kernels: a name, are there any, where their routines come from, and is there a matrix unit.
type Way = (&'static str, bool, Lookup, bool);

fn ways() -> Vec<Way> {
    // AVX2 and NEON with another routine for one operation, which `runtime/tests/micro.rs` compares with its loops.
    let all = Level::available();
    let same = |l: &Level| *l == Level::AvxVnni || *l == Level::Neon && all.contains(&Level::Dotprod);
    let levels = all.iter().filter(|l| !same(l)).map(|l| (l.name(), true, Routines::Of(*l).lookup(), l.matrix()));
    [("portable", false, Routines::None.lookup(), false)].into_iter().chain(levels).collect()
}

/// Checks cases in all ways; `MARQUETRY_CASES` of them where it is set.
fn check(all: &[Case]) {
    for case in all.iter().take(cases(u64::MAX) as usize) {
        let m = parse_module(&case.text).unwrap_or_else(|e| panic!("{}: {e}\n{}", case.name, case.text));
        assert_eq!(verify(&m), Vec::<String>::new(), "{}", case.name);
        for numerics in [Numerics::Strict, Numerics::Fast] {
            for one in [true, false] {
                let runs: Vec<&Run> = case.runs.iter().filter(|r| (r.tokens == 1) == one).collect();
                let inputs: Vec<Inputs> = runs.iter().map(|r| inputs(&m, r)).collect();
                let made = ways().into_iter().filter(|_| !inputs.is_empty());
                let made: Vec<_> = made.map(|way| (way, compile(case, &m, numerics, one, (way.1, way.3)))).collect();
                let mut references: Vec<(&Module, Vec<Reference<'_>>)> = vec![];
                for (way, (g, p)) in &made {
                    let meant = if numerics == Numerics::Strict { &m } else { g };
                    if references.last().is_none_or(|(m, _)| *m != meant) {
                        references.push((meant, inputs.iter().map(|i| Reference::new(meant, i)).collect()));
                    }
                    let Some((_, want)) = references.last() else { continue };
                    let what = format!("{}, {numerics:?}, {}, {}", case.name, way.0, if one { "one" } else { "many" });
                    if way.1 {
                        let wanted = &case.micro[usize::from(numerics == Numerics::Fast)];
                        expect_micro(&what, p, wanted, way.3 && !one);
                    }
                    let judge = |i: usize, got: &Outcome| want[i].agrees(got, case.step);
                    threads(&what, numerics, *way, (&m, p), &inputs, &judge);
                }
            }
        }
    }
}

fn inputs(m: &Module, run: &Run) -> Inputs {
    let mut i = inputs_of(m, &[run.tokens], &mut Random(run.tokens as u64), Numbers::Normal);
    // The weights are packed once for all runs.
    i.params = inputs_of(m, &[run.tokens], &mut Random(1), Numbers::Normal).params;
    let names = m.entry().unwrap().args.iter().map(|(n, _)| n);
    for (name, v) in names.zip(&mut i.args) {
        let Some((_, given)) = run.args.iter().find(|(n, _)| n == name) else { continue };
        let Val::Tensor(t) = v else { panic!("`{name}` is no tensor") };
        assert_eq!(t.shape.iter().product::<usize>(), given.len(), "`{name}`");
        *v = Val::Tensor(Tensor { shape: t.shape.clone(), data: Data::Int(DType::I32, given.clone().into()) });
    }
    i
}

/// The last graph and the program.
fn compile(case: &Case, m: &Module, numerics: Numerics, one: bool, (micro, matrix): (bool, bool)) -> (Module, Program) {
    let mut options = manager::Options { numerics, ..manager::Options::default() };
    (options.target.micro, options.target.matrix) = (micro, matrix);
    if numerics == Numerics::Fast {
        // Weights are so small here that a launch more would outweigh products of 8 bits.
        options.target.launch_ps = 0;
        options.target.dequant_ps *= 100;
    }
    options.sizes = HashMap::from([("n".into(), if one { Narrow::Fixed(1) } else { Narrow::Range(1, 128) })]);
    let pipeline = case.pipeline.map_or_else(manager::default_pipeline, str::to_owned);
    let mut last = m.clone();
    let mut keep = |_, ir: &Ir| {
        if let Ir::Graph(g) = ir {
            last = g.clone();
        }
    };
    let made = manager::run(Ir::Graph(m.clone()), &pipeline, &options, &mut keep);
    match made.unwrap_or_else(|e| panic!("{}: {e}", case.name)).0 {
        Ir::Program(p) => (last, *p),
        Ir::Graph(_) => panic!("{}: no program", case.name),
    }
}

/// Are the micro-kernels there, or with `matrix` those of a matrix unit instead?
fn expect_micro(what: &str, p: &Program, wanted: &[String], matrix: bool) {
    let text = manager::print(&Ir::Program(Box::new(p.clone())));
    let has = |op: &str| text.contains(&format!("micro \"{op}"));
    for op in wanted {
        let other = if op.starts_with("dot ") { "pairs\"".into() } else { op.replace('"', " narrow\"") };
        assert!(has(op) || matrix && has(&other), "{what}: no micro-kernel `{op}`");
    }
    assert!(!wanted.is_empty() || !text.contains("micro \""), "{what}: a micro-kernel that was not expected");
}

/// What results are compared with.
struct Reference<'a> {
    m: &'a Module,
    i: &'a Inputs,
    want: Outcome,
    /// What rounding to 8 bits moves, in the mean.
    drift: f32,
}

impl<'a> Reference<'a> {
    fn new(m: &'a Module, i: &'a Inputs) -> Reference<'a> {
        let interpret = |m: &Module| run(m, i).unwrap_or_else(|e| panic!("{e}"));
        let want = interpret(m);
        let drift = if rounds(m) { mean_gap(&interpret(&unrounded(m).unwrap()), &want) } else { 0.0 };
        Reference { m, i, want, drift }
    }

    /// Numbers agree closely but for a few that were computed and then rounded, to 8 bits or to narrow floats: they may be neighbours.
    fn agrees(&self, got: &Outcome, step: f32) -> Result<(), String> {
        let (apart, mean) = (gap(&self.want, got), mean_gap(&self.want, got));
        let neighbours = mean <= CLOSE && apart <= 4.0 * step;
        if apart <= CLOSE || neighbours || self.drift > 0.0 && mean <= CLOSE + 2.0 * self.drift {
            return Ok(());
        }
        // A sum may cancel where it is all of a result.
        if apart <= CLOSE + 16.0 * sensitivity(self.m, self.i, &self.want, 1) {
            return Ok(());
        }
        Err(format!("{apart} apart at most, {mean} in the mean; rounding moves {}", self.drift))
    }
}

/// Runs on every number of threads.
fn threads(
    what: &str,
    numerics: Numerics,
    way: Way,
    (m, p): (&Module, &Program),
    inputs: &[Inputs],
    judge: &dyn Fn(usize, &Outcome) -> Result<(), String>,
) {
    let finite_f16 = numerics == Numerics::Fast;
    let options = Options { verify: true, finite_f16, routines: way.2, ..Options::default() };
    let mut made =
        Native::new(Backend::Cranelift, &options, p, &inputs[0].params).unwrap_or_else(|e| panic!("{what}: {e}"));
    for (at, i) in inputs.iter().enumerate() {
        let mut first: Option<Outcome> = None;
        for pool in POOLS.iter() {
            let what = || format!("{what}, sizes {:?}, {} threads", i.sizes, pool.threads());
            let got = made.run(m, i, pool).unwrap_or_else(|e| panic!("{}: {e}", what()));
            match &first {
                None => judge(at, &got).unwrap_or_else(|e| panic!("{}: {e}", what())),
                Some(one) => assert_eq!(bits_differ(one, &got), None, "{}: other bits than on one thread", what()),
            }
            first.get_or_insert(got);
        }
    }
}

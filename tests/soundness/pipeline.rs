//! Modules through the default pipeline: after each pass and on each backend they compute what they did before.

use std::collections::BTreeMap;
use std::path::PathBuf;

use marquetry::ir::graph::{Module, parse_module, print_module, verify};
use marquetry::ir::testing::program::run_program;
use marquetry::ir::testing::{
    Inputs, Numbers, Outcome, Random, bits_differ, cases, first_seed, gap, inputs, keep, mean_gap, module, reduce, run,
    sensitivity,
};
use marquetry::passes::Numerics;
use marquetry::passes::check::{narrows, rounds, unrounded};
use marquetry::passes::eqsat::cost::Target;
use marquetry::passes::manager::{self, Ir, Options};

use crate::backends::native;
use marquetry::codegen::Backend;

/// Where a module was found to be wrong, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Numerics and stage or backend.
    place: String,
    /// What differs.
    what: String,
}

/// Results may differ by this much of the size of their tensor, from polynomials and the order of sums.
const CLOSE: f32 = 2e-5;
/// Where rules may leave out a rounding to narrow floats: this much, in the mean.
const NARROW: f32 = 0.1;

/// What the compiler says it can not do, instead of doing it wrong.
const REFUSED: &[&str] = &["a weight that no rule has packed", "a block format that no rule has packed"];

/// What a stage is compared with.
struct Reference<'a> {
    m: &'a Module,
    i: &'a Inputs,
    want: Outcome,
    seed: u64,
    /// Allowed in the mean instead of [`CLOSE`] at most.
    mean: Option<f32>,
}

impl Reference<'_> {
    fn agrees(&self, place: &str, got: Result<Outcome, String>) -> Result<(), Fault> {
        let fault = |what: String| Fault { place: place.into(), what };
        let got = got.map_err(fault)?;
        let (d, bound) = match self.mean {
            Some(bound) => (mean_gap(&self.want, &got), bound),
            None => (gap(&self.want, &got), CLOSE),
        };
        if d <= bound {
            return Ok(());
        }
        let room = 16.0 * sensitivity(self.m, self.i, &self.want, self.seed);
        if d.is_finite() && d <= bound + room {
            Ok(())
        } else {
            Err(fault(format!("{d} apart, {} allowed", bound + room)))
        }
    }
}

/// Compiles and compares on the inputs of one seed. A panic of the compiler is a fault like others.
pub fn check(m: &Module, seed: u64) -> Result<(), Fault> {
    let message = |e: Box<dyn std::any::Any + Send>| match e.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => other.downcast::<&str>().map_or("?".into(), |text| text.to_string()),
    };
    let checked = std::panic::catch_unwind(|| checked(m, seed));
    checked.unwrap_or_else(|e| Err(Fault { place: "panic".into(), what: message(e) }))
}

fn checked(m: &Module, seed: u64) -> Result<(), Fault> {
    let fault = |place: &str, what: String| Fault { place: place.into(), what };
    let i = inputs(m, &mut Random(seed), Numbers::Normal);
    let interpret = |m: &Module| run(m, &i).map_err(|e| fault("interpreter", e.to_string()));
    let exact = |m: &Module| unrounded(m).map_err(|e| fault("without rounding", e.message));
    for numerics in [Numerics::Strict, Numerics::Fast] {
        let word = format!("{numerics:?}").to_lowercase();
        let place = |name: &str| format!("{word} {name}");
        let target = Target { matrix: seed % 2 == 1, ..Options::default().target };
        let options = Options { numerics, target, ..Options::default() };
        let mut stages: Vec<(&str, Ir)> = vec![];
        let pipeline = manager::default_pipeline();
        let run_all =
            manager::run(Ir::Graph(m.clone()), &pipeline, &options, &mut |name, ir| stages.push((name, ir.clone())));
        run_all.map_err(|e| fault(&place("pipeline"), e.to_string()))?;
        // Strict numerics keep every rounding. With fast ones graphs are compared without those to 8 bits, which are added for speed.
        let strict = numerics == Numerics::Strict;
        let meant = if strict { m.clone() } else { exact(m)? };
        let narrow = (!strict && narrows(m)).then_some(NARROW);
        let of_graph = Reference { m: &meant, i: &i, want: interpret(&meant)?, seed, mean: narrow };
        let mut last = None;
        for (name, ir) in &stages {
            let text = manager::print(ir);
            if !manager::parse(&text).is_ok_and(|back| back == *ir && manager::print(&back) == text) {
                return Err(fault(name, "what was printed does not read back".into()));
            }
            if let Ir::Graph(g) = ir {
                let g = if strict { g.clone() } else { exact(g)? };
                of_graph.agrees(&place(name), run(&g, &i).map_err(|e| e.to_string()))?;
            }
            last = if let Ir::Graph(g) = ir { Some(g) } else { last };
        }
        // Loops round to 8 bits as the last graph does: both are as far from it as from each other, at most.
        let g = last.ok_or_else(|| fault("pipeline", "no graph".into()))?;
        let want = interpret(g)?;
        let drift = if !strict && rounds(g) { mean_gap(&interpret(&exact(g)?)?, &want) } else { 0.0 };
        let mean = (drift > 0.0).then_some(CLOSE + 2.0 * drift);
        let of_loops = Reference { m: g, i: &i, want, seed, mean };
        for (name, ir) in &stages {
            match ir {
                // Its kernels are those of the plan.
                Ir::Program(_) if *name == "schedule" => {}
                Ir::Program(p) => {
                    of_loops.agrees(&place(&format!("{name}, loop interpreter")), run_program(m, p, &i))?
                }
                Ir::Graph(_) => {}
            }
        }
        let Some((_, Ir::Program(p))) = stages.last() else { return Err(fault("pipeline", "no program".into())) };
        for backend in Backend::ALL.into_iter().filter(|b| b.is_built()) {
            let name = backend.name();
            let [one, two] = native(backend, m, p, &i).map_err(|e| fault(name, e))?;
            if let Some(what) = bits_differ(&one, &two) {
                return Err(fault(&format!("{name} on two threads"), what));
            }
            of_loops.agrees(&place(name), Ok(one))?;
        }

        let target = Target { micro: true, ..options.target };
        let tiled = Options { target, ..options };
        let tiled = manager::run(Ir::Graph(g.clone()), "lower,schedule,plan", &tiled, &mut |_, _| {});
        let (Ir::Program(p), _) = tiled.map_err(|e| fault(&place("micro-kernels"), e.to_string()))? else {
            return Err(fault("pipeline", "no program".into()));
        };
        of_loops.agrees(&place("micro-kernels, loop interpreter"), run_program(m, &p, &i))?;
        let [one, two] = native(Backend::Cranelift, m, &p, &i).map_err(|e| fault("micro-kernels", e))?;
        if let Some(what) = bits_differ(&one, &two) {
            return Err(fault("micro-kernels on two threads", what));
        }
        of_loops.agrees(&place("micro-kernels, cranelift"), Ok(one))?;
    }
    Ok(())
}

/// The kind of a fault, without its numbers: what a reduced case must keep.
fn kind(f: &Fault) -> String {
    let what: String = f.what.chars().filter(|c| !c.is_ascii_digit()).collect();
    let what = if f.what.contains(" apart") { "apart".into() } else { what };
    format!("{}: {}", f.place, what.chars().take(40).collect::<String>())
}

fn regressions() -> Vec<PathBuf> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/regressions");
    let mut all: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|p| p.extension().is_some_and(|e| e == "tir"));
    all.sort();
    all
}

#[test]
fn regressions_stay_fixed() {
    for path in regressions() {
        let text = std::fs::read_to_string(&path).unwrap();
        let m = parse_module(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(verify(&m), Vec::<String>::new(), "{}", path.display());
        for seed in 0..16 {
            check(&m, seed).unwrap_or_else(|f| panic!("{}, seed {seed}: {f:?}", path.display()));
        }
    }
}

/// Rounding to 8 bits moves this module's results by a tenth, by a product followed by a minimum and a maximum. No stage is at fault.
#[test]
fn rounding_that_weighs_much_is_no_fault() {
    let seed = 4766;
    let m = module(&mut Random(seed), 5 + seed as usize % 56);
    check(&m, seed).unwrap_or_else(|f| panic!("{f:?}"));
    let i = inputs(&m, &mut Random(seed), Numbers::Normal);
    let options = Options { numerics: Numerics::Fast, ..Options::default() };
    let (fast, _) = manager::run(Ir::Graph(m.clone()), "canon,outline,eqsat", &options, &mut |_, _| {}).unwrap();
    let Ir::Graph(fast) = fast else { panic!("a program") };
    let drift = mean_gap(&run(&m, &i).unwrap(), &run(&fast, &i).unwrap());
    assert!(drift > 0.1, "{drift} shows nothing");
}

#[test]
fn random_modules_keep_their_meaning() {
    let mut faults: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let (mut refused, count) = (0, cases(500));
    for seed in first_seed()..first_seed() + count {
        let mut r = Random(seed);
        let m = module(&mut r, 5 + seed as usize % 56);
        assert_eq!(verify(&m), Vec::<String>::new(), "seed {seed}");
        let Err(fault) = check(&m, seed) else { continue };
        if REFUSED.iter().any(|r| fault.what.contains(r)) {
            refused += 1;
            continue;
        }
        let kind = kind(&fault);
        let seen = faults.entry(kind.clone()).or_default();
        seen.push(seed);
        if seen.len() == 1 {
            let small = reduce(&m, &mut |m| check(m, seed).is_err_and(|f| self::kind(&f) == kind));
            let again = check(&small, seed).err();
            keep(&format!("pipeline-{seed}"), &format!("seed: {seed}\n{kind}\n{again:?}"), &print_module(&small));
        }
    }
    let all: Vec<String> = faults.iter().map(|(k, s)| format!("{} × {k}: seeds {s:?}", s.len())).collect();
    println!("{count} modules, {refused} refused");
    assert!(faults.is_empty(), "{}", all.join("\n"));
    assert!(refused * 20 <= count, "{refused} of {count} modules are refused");
}

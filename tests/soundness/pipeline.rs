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
use marquetry::passes::manager::{self, Ir, Options};

use crate::backends::native;

/// Where a module was found to be wrong, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Numerics and stage or backend.
    place: String,
    /// What differs.
    what: String,
}

/// Strict results may differ by this much of the size of their tensor, from polynomials and the order of sums.
const STRICT: f32 = 2e-5;
/// Fast results: 8-bit activations, in the mean.
const FAST: f32 = 0.1;

/// What the compiler says it can not do, instead of doing it wrong.
const REFUSED: &[&str] = &["a weight that no rule has packed", "a block format that no rule has packed"];

struct Check<'a> {
    m: &'a Module,
    i: &'a Inputs,
    want: Outcome,
    seed: u64,
}

impl Check<'_> {
    fn agrees(&self, strict: bool, place: &str, got: Result<Outcome, String>) -> Result<(), Fault> {
        let fault = |what: String| Fault { place: format!("{} {place}", if strict { "strict" } else { "fast" }), what };
        let got = got.map_err(fault)?;
        let (d, bound) = if strict { (gap(&self.want, &got), STRICT) } else { (mean_gap(&self.want, &got), FAST) };
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
    let want = run(m, &i).map_err(|e| fault("interpreter", e.to_string()))?;
    let c = Check { m, i: &i, want, seed };
    for numerics in [Numerics::Strict, Numerics::Fast] {
        let strict = numerics == Numerics::Strict;
        let options = Options { numerics, ..Options::default() };
        let mut stages: Vec<(&str, Ir)> = vec![];
        let pipeline = manager::default_pipeline();
        let run_all =
            manager::run(Ir::Graph(m.clone()), &pipeline, &options, &mut |name, ir| stages.push((name, ir.clone())));
        run_all.map_err(|e| fault(if strict { "strict pipeline" } else { "fast pipeline" }, e.to_string()))?;
        for (name, ir) in &stages {
            let text = manager::print(ir);
            if !manager::parse(&text).is_ok_and(|back| back == *ir && manager::print(&back) == text) {
                return Err(fault(name, "what was printed does not read back".into()));
            }
            match ir {
                Ir::Graph(g) => c.agrees(strict, name, run(g, &i).map_err(|e| e.to_string()))?,
                // Its kernels are those of the plan.
                Ir::Program(_) if *name == "schedule" => {}
                Ir::Program(p) => c.agrees(strict, &format!("{name}, loop interpreter"), run_program(m, p, &i))?,
            }
        }
        let Some((_, Ir::Program(p))) = stages.last() else { return Err(fault("pipeline", "no program".into())) };
        let [one, two] = native(m, p, &i).map_err(|e| fault("cranelift", e))?;
        if let Some(what) = bits_differ(&one, &two) {
            return Err(fault("cranelift on two threads", what));
        }
        c.agrees(strict, "cranelift", Ok(one))?;
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

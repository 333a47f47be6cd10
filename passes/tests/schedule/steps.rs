//! Schedule steps as data, so that a failing list of them can be reduced, and stored.

use marquetry_ir::loops::{Expr, Kernel, Stmt, Var};
use marquetry_ir::testing::{fewest, keep, reduce_kernel};
use marquetry_passes::schedule::rules::default_schedule;
use marquetry_passes::schedule::{
    ScheduleError, parallel, promote, reorder, split, unroll, vectorize, vectorize_reduce,
};

use crate::harness::Rng;
use crate::{Fault, agree, syms, text};

/// A step. Loops are counted from the front, and around: a step means something on any kernel that has loops.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    Split {
        at: usize,
        by: i64,
        tail: bool,
    },
    Unroll {
        at: usize,
    },
    Reorder {
        at: usize,
    },
    Parallel {
        at: usize,
    },
    VectorizeReduce {
        at: usize,
        lanes: u16,
        accumulators: u16,
    },
    Vectorize {
        at: usize,
        lanes: u16,
    },
    Default,
    Promote,
    /// Wrong on purpose: a split that drops the tail.
    Planted {
        at: usize,
        by: i64,
    },
}

impl Step {
    /// One random primitive on a random loop.
    pub fn random(rng: &mut Rng) -> Step {
        let at = rng.below(1 << 16);
        let lanes = [4, 4, 8, 8, 16][rng.below(5)];
        match rng.below(12) {
            0 => Step::Split { at, by: 1 + rng.below(9) as i64, tail: rng.below(2) == 0 },
            1 => Step::Unroll { at },
            2 | 3 => Step::Reorder { at },
            4 => Step::Parallel { at },
            5..=7 => Step::VectorizeReduce { at, lanes, accumulators: 1 + rng.below(2) as u16 },
            _ => Step::Vectorize { at, lanes },
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Step::Split { .. } => "split",
            Step::Unroll { .. } => "unroll",
            Step::Reorder { .. } => "reorder",
            Step::Parallel { .. } => "parallel",
            Step::VectorizeReduce { .. } => "vectorize_reduce",
            Step::Vectorize { .. } => "vectorize",
            Step::Default => "default",
            Step::Promote => "promote",
            Step::Planted { .. } => "planted",
        }
    }

    fn set_at(&mut self, to: usize) {
        match self {
            Step::Split { at, .. }
            | Step::Unroll { at }
            | Step::Reorder { at }
            | Step::Parallel { at }
            | Step::VectorizeReduce { at, .. }
            | Step::Vectorize { at, .. }
            | Step::Planted { at, .. } => *at = to,
            Step::Default | Step::Promote => {}
        }
    }

    /// Tells whether there was anything to apply it to.
    pub fn apply(self, k: &mut Kernel) -> Result<bool, ScheduleError> {
        let mut all = vec![];
        loops(&k.body, &mut all);
        let nth = |at: usize| all.get(at % all.len().max(1)).copied();
        let done = |_| true;
        let (Step::Split { at, .. }
        | Step::Unroll { at }
        | Step::Reorder { at }
        | Step::Parallel { at }
        | Step::VectorizeReduce { at, .. }
        | Step::Vectorize { at, .. }
        | Step::Planted { at, .. }) = self
        else {
            if self == Step::Default {
                default_schedule(k)
            } else {
                promote(k)
            }
            return Ok(true);
        };
        let Some((v, inner)) = nth(at) else { return Ok(false) };
        match self {
            Step::Split { by, tail, .. } => split(k, v, by, tail).map(|_| true),
            Step::Unroll { .. } => unroll(k, v).map(done),
            Step::Reorder { .. } => {
                let nested: Vec<_> = all.iter().filter_map(|(o, i)| i.map(|i| (*o, i))).collect();
                let Some((o, i)) = nested.get(at % nested.len().max(1)) else { return Ok(false) };
                reorder(k, *o, *i).map(done)
            }
            Step::Parallel { .. } => parallel(k, inner.map_or(v, |_| all[0].0), false).map(done),
            Step::VectorizeReduce { lanes, accumulators, .. } => vectorize_reduce(k, v, lanes, accumulators).map(done),
            Step::Planted { by, .. } => Ok(planted(&mut k.body, v, by)),
            Step::Vectorize { lanes, .. } => vectorize(k, v, lanes).map(done),
            Step::Default | Step::Promote => Ok(true),
        }
    }
}

fn loops(body: &[Stmt], out: &mut Vec<(Var, Option<Var>)>) {
    for s in body {
        match s {
            Stmt::For { var, body, .. } => {
                let inner = body.iter().find_map(|s| if let Stmt::For { var, .. } = s { Some(*var) } else { None });
                out.push((*var, inner));
                loops(body, out);
            }
            Stmt::If { then, other, .. } => {
                loops(then, out);
                loops(other, out);
            }
            _ => {}
        }
    }
}

/// Makes a loop of a constant extent that `by` does not divide as short as it does divide.
fn planted(body: &mut [Stmt], v: Var, by: i64) -> bool {
    body.iter_mut().any(|s| match s {
        Stmt::For { var, extent, .. } if *var == v => match extent.as_int() {
            Some(e) if e > by && e % by != 0 => {
                *extent = Expr::idx(e / by * by);
                true
            }
            _ => false,
        },
        Stmt::For { body, .. } => planted(body, v, by),
        Stmt::If { then, other, .. } => planted(then, v, by) || planted(other, v, by),
        Stmt::Let { .. } | Stmt::Store { .. } | Stmt::Micro(_) => false,
    })
}

/// The steps, and the steps with one of them at another loop of the kernel.
fn moved(k: &Kernel, steps: &[Step]) -> Vec<Vec<Step>> {
    let mut all = vec![];
    loops(&k.body, &mut all);
    let mut out = vec![steps.to_vec()];
    for (i, at) in (0..steps.len()).flat_map(|i| (0..all.len()).map(move |at| (i, at))) {
        let mut other = steps.to_vec();
        other[i].set_at(at);
        out.push(other);
    }
    out
}

/// What shows that these steps, as far as they apply, change what a kernel computes. A panic is a fault like others.
pub fn fault(k: &Kernel, steps: &[Step], n: i64, seed: u64) -> Option<Fault> {
    let run = || {
        let mut after = k.clone();
        for s in steps {
            // What is refused leaves the kernel as it was.
            let _ = s.apply(&mut after);
        }
        agree(k, &after, n, seed).err()
    };
    std::panic::catch_unwind(run).unwrap_or_else(|e| {
        let text = e.downcast::<String>().map_or_else(|_| "a panic".into(), |t| *t);
        Some(Fault::Panic(text))
    })
}

/// A failing kernel and list of steps, reduced: fewer steps, then fewer statements and iterations, until neither gives.
/// Every kernel that is tried computes the same without steps.
pub fn reduced(k: &Kernel, steps: &[Step], n: i64, seed: u64) -> (Kernel, Vec<Step>) {
    let kind = fault(k, steps, n, seed).map(|f| std::mem::discriminant(&f));
    let fails = |k: &Kernel, steps: &[Step]| {
        let found = fault(k, steps, n, seed).map(|f| std::mem::discriminant(&f));
        found.is_some() && found == kind && fault(k, &[], n, seed).is_none()
    };
    let (mut k, mut steps) = (k.clone(), steps.to_vec());
    loop {
        let before = (k.clone(), steps.clone());
        steps = fewest(&steps, &mut |s| fails(&k, s));
        k = reduce_kernel(&k, &syms(), &mut |k| {
            // Where loops are gone, steps count others.
            let again = moved(k, &steps).into_iter().find(|s| fails(k, s));
            again.map(|s| steps = s).is_some()
        });
        if (&k, &steps) == (&before.0, &before.1) {
            return (k, steps);
        }
    }
}

/// Steps keep what a kernel computes. Where they do not, the reduced case is stored: the kernel before, and as comments the steps and
/// the kernel after them.
pub fn keeps(k: &Kernel, steps: &[Step], n: i64, seed: u64) {
    let Some(what) = fault(k, steps, n, seed) else { return };
    let (small, few) = reduced(k, steps, n, seed);
    let path = keep(&format!("schedule-{seed}"), &about(&small, &few, n, seed), &text(&small));
    panic!("{what}; {} of {} steps do it, see {}", few.len(), steps.len(), path.display());
}

fn about(k: &Kernel, steps: &[Step], n: i64, seed: u64) -> String {
    let mut after = k.clone();
    let lines = steps.iter().map(|s| {
        let said = s.apply(&mut after).map_or_else(|e| format!("refused: {e}"), |_| "applied".into());
        format!("{s:?}: {said}\n")
    });
    let lines: String = lines.collect();
    let what = fault(k, steps, n, seed).map_or(String::new(), |f| f.to_string());
    format!("seed: {seed}, n = {n}\n{what}\n{lines}after them:\n{}", text(&after))
}

/// A wrong step among thirty others on a random kernel comes down to itself and a loop.
#[test]
fn a_wrong_step_is_reduced_to_little() {
    let mut found = 0;
    for seed in 0..60 {
        let k = crate::random::random_kernel(seed);
        let mut rng = Rng(seed + 77);
        let mut steps: Vec<Step> = (0..15).map(|_| Step::random(&mut rng)).collect();
        steps.insert(rng.below(15), Step::Planted { at: rng.below(1 << 16), by: 4 });
        if fault(&k, &steps, 21, seed).is_none() {
            continue;
        }
        found += 1;
        let (k, few) = reduced(&k, &steps, 21, seed);
        assert!(matches!(few[..], [Step::Planted { .. }]), "seed {seed}: {few:?}");
        assert!(marquetry_ir::testing::statements(&k.body) <= 3, "seed {seed}:\n{}", text(&k));
        assert!(fault(&k, &few, 21, seed).is_some() && fault(&k, &[], 21, seed).is_none());
        // What is stored reads back.
        assert_eq!(text(&crate::kernel(&text(&k))), text(&k));
        let said = about(&k, &few, 21, seed);
        assert!(said.contains("Planted { at:") && said.contains("applied") && said.contains("differs"), "{said}");
        if found == 3 {
            return;
        }
    }
    panic!("{found} of 60 kernels show the planted step");
}

//! The search: one parameter after the other, each candidate checked, then timed beside the best one so far.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use marquetry_ir::random::Random;
use marquetry_passes::eqsat::Exact;
use marquetry_passes::params::{Param, Params, TABLE};

use crate::Error;
use crate::profile::median;

/// What a candidate must save, twice.
const WIN: f64 = 0.02;
/// Least share of a step that the kernels which a parameter changes must have.
const SHARE: f64 = 0.02;
/// Pairs of a comparison: at least, and at most; and how long it takes, about.
const PAIRS: (usize, usize) = (5, 41);
const COMPARISON: Duration = Duration::from_millis(600);

/// Seconds of one step in each kernel, by name.
pub(super) type Times = BTreeMap<String, f64>;

/// What is searched: something that can be made with parameters, checked and timed.
pub(super) trait Subject {
    /// What is made.
    type Made;
    /// Makes it.
    fn make(&mut self, params: &Params) -> Result<Self::Made, Error>;
    /// Names of kernels that differ.
    fn changed(&self, from: &Self::Made, to: &Self::Made) -> Vec<String>;
    /// What the kernels of these names compute wrong, if anything.
    fn check(&mut self, made: &Self::Made, kernels: &[String]) -> Result<Option<String>, Error>;
    /// Times one step.
    fn time(&mut self, made: &mut Self::Made) -> Result<Times, Error>;
}

/// How far to go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// When to stop.
    pub until: Instant,
    /// Decides the order of candidates.
    pub seed: u64,
    /// Only parameters that leave every bit alone?
    pub bitwise: bool,
}

/// What was found.
pub(super) struct Found<M> {
    pub params: Params,
    pub best: M,
    /// Time of a step with the defaults over that with the best.
    pub gain: f64,
    pub timed: usize,
    pub defects: Vec<String>,
    pub complete: bool,
}

/// Searches from the defaults until no single parameter improves, or time is over.
pub(super) fn search<S: Subject>(
    subject: &mut S,
    limits: &Limits,
    progress: &mut dyn FnMut(&str),
) -> Result<Found<S::Made>, Error> {
    let best = subject.make(&Params::default())?;
    let mut found = Found { params: Params::default(), best, gain: 1.0, timed: 0, defects: vec![], complete: true };
    let mut tried = vec![Params::default()];
    loop {
        let mut improved = false;
        for (param, values) in order(subject, &found, limits)? {
            for value in values {
                if Instant::now() >= limits.until {
                    found.complete = false;
                    return finish(subject, found, progress);
                }
                let Some(params) = found.params.with(param.name, value).filter(|p| !tried.contains(p)) else {
                    continue;
                };
                tried.push(params);
                improved |= candidate(subject, &mut found, params, progress)?;
            }
        }
        if !improved {
            return finish(subject, found, progress);
        }
    }
}

/// Parameters that change kernels which take time, those of most time first, and their other values in an order that the seed decides.
fn order<S: Subject>(
    subject: &mut S,
    found: &Found<S::Made>,
    limits: &Limits,
) -> Result<Vec<(&'static Param, Vec<i64>)>, Error> {
    let mut base = subject.make(&found.params)?;
    let mut runs = vec![];
    for _ in 0..PAIRS.0 {
        runs.push(subject.time(&mut base)?);
    }
    let typical = |name: &str| median(runs.iter().map(|t| t.get(name).copied().unwrap_or(0.0)).collect());
    let whole: f64 = runs.first().map_or(0.0, |t| t.keys().map(|name| typical(name)).sum());
    let mut all = vec![];
    for param in TABLE.iter().filter(|p| !limits.bitwise || p.numbers == Exact::Bitwise) {
        let mut share = 0.0f64;
        let mut values: Vec<i64> = vec![];
        for &value in param.choices {
            let Some(other) = found.params.with(param.name, value).filter(|p| *p != found.params) else { continue };
            let made = subject.make(&other)?;
            let changed = subject.changed(&found.best, &made);
            let of = changed.iter().map(|name| typical(name)).sum::<f64>() / whole.max(1e-12);
            if of >= SHARE {
                share = share.max(of);
                values.push(value);
            }
        }
        shuffle(&mut values, &mut Random::named(limits.seed, param.name));
        if !values.is_empty() {
            all.push((share, param, values));
        }
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    Ok(all.into_iter().map(|(_, param, values)| (param, values)).collect())
}

fn shuffle(values: &mut [i64], random: &mut Random) {
    for i in (1..values.len()).rev() {
        values.swap(i, random.below(i + 1));
    }
}

/// Checks and times a candidate; takes it for the best if it wins twice.
fn candidate<S: Subject>(
    subject: &mut S,
    found: &mut Found<S::Made>,
    params: Params,
    progress: &mut dyn FnMut(&str),
) -> Result<bool, Error> {
    let mut made = subject.make(&params)?;
    let changed = subject.changed(&found.best, &made);
    if let Some(what) = subject.check(&made, &changed)? {
        progress(&format!("{params}: wrong, a defect: {what}"));
        found.defects.push(format!("{params}: {what}"));
        return Ok(false);
    }
    found.timed += 1;
    let first = compare(subject, &mut found.best, &mut made, Some(&changed))?;
    let won = first < 1.0 - WIN && compare(subject, &mut found.best, &mut made, Some(&changed))? < 1.0 - WIN;
    progress(&format!("{params}: {:.3} of the time{}", first, if won { ", taken" } else { "" }));
    if won {
        found.params = params;
        found.best = made;
    }
    Ok(won)
}

/// Time of `new` over that of `old` in kernels of these names, or in all: medians of runs that take turns.
fn compare<S: Subject>(
    subject: &mut S,
    old: &mut S::Made,
    new: &mut S::Made,
    kernels: Option<&[String]>,
) -> Result<f64, Error> {
    let start = Instant::now();
    let sum = |t: Times| -> f64 {
        let counts = |name: &String| kernels.is_none_or(|k| k.contains(name));
        t.iter().filter(|(name, _)| counts(name)).map(|(_, s)| s).sum()
    };
    let mut times = [vec![], vec![]];
    for pair in 0..PAIRS.1 {
        if pair >= PAIRS.0 && start.elapsed() > COMPARISON {
            break;
        }
        let turns = if pair % 2 == 0 { [0, 1] } else { [1, 0] };
        for which in turns {
            times[which].push(sum(subject.time(if which == 0 { &mut *old } else { &mut *new })?));
        }
        let far = pair + 1 == PAIRS.0 && ratio(&times) > 1.0 + WIN;
        if far {
            break;
        }
    }
    Ok(ratio(&times))
}

fn ratio([old, new]: &[Vec<f64>; 2]) -> f64 {
    median(new.clone()) / median(old.clone()).max(1e-12)
}

/// Compares whole steps with the defaults. Parts that won and a whole that did not are noise, or not worth it: the defaults stay.
fn finish<S: Subject>(
    subject: &mut S,
    mut found: Found<S::Made>,
    progress: &mut dyn FnMut(&str),
) -> Result<Found<S::Made>, Error> {
    if found.params == Params::default() {
        return Ok(found);
    }
    let mut default = subject.make(&Params::default())?;
    let whole = compare(subject, &mut default, &mut found.best, None)?;
    found.gain = 1.0 / whole.max(1e-12);
    if whole >= 1.0 - WIN {
        progress(&format!("{}: whole steps take {whole:.3} of the time, the defaults stay", found.params));
        (found.params, found.best, found.gain) = (Params::default(), default, 1.0);
    }
    Ok(found)
}

//! Checking a pass by interpretation: the IR before and after it on equal random inputs, at small sizes.
//!
//! Works on both levels and across `lower`: results, and the states that are left, are compared by name. Interpretation is
//! slow; it is meant for small models and for finding out which pass is wrong.

pub(crate) mod compare;
mod exact;
mod inputs;
#[cfg(test)]
mod tests;

use marquetry_ir::Syms;

use crate::Numerics;
use crate::eqsat::Exact;
use crate::manager::{Ir, Pass, PassError};
pub use compare::distance;
use exact::cache_step;
pub use exact::{narrows, rounds, unrounded};
pub use inputs::{Inputs, pick};

/// How to check.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Check {
    /// Start of the random numbers.
    pub seed: u64,
    /// How far results may be apart, over their root mean square; by default what the pass declares.
    pub tolerance: Option<f32>,
}

/// Named results and states, as numbers in row-major order.
pub type Outcome = Vec<(String, Vec<f32>)>;

/// How far numbers may be apart: over the root mean square, at most or in the mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Every number.
    Most(f32),
    /// The root mean square of the distances.
    Mean(f32),
}

impl Bound {
    /// What a class of rewrites is held to.
    pub fn of(exact: Exact) -> Bound {
        match exact {
            Exact::Bitwise => Bound::Most(0.0),
            Exact::Reassociates => Bound::Most(1e-4),
            Exact::Approximates => Bound::Mean(0.05),
        }
    }
}

/// Checks passes one after the other; what one leaves is interpreted once.
pub struct Checker {
    check: Check,
    inputs: Option<Inputs>,
    last: Option<Outcome>,
    /// What rounding activations to 8 bits does to each result, in the mean; none where only a program is known.
    drift: Option<Vec<(String, f32)>>,
}

/// How two outcomes are compared.
struct Compared {
    old: Outcome,
    new: Outcome,
    what: &'static str,
    bounds: Vec<Bound>,
}

impl Checker {
    /// Nothing interpreted so far.
    pub fn new(check: &Check) -> Checker {
        Checker { check: *check, inputs: None, last: None, drift: None }
    }

    /// Compares what a pass was given with what it made. Says what was compared.
    ///
    /// With fast numerics, passes that rewrite graphs are checked without the rounding of activations to 8 bits ([`unrounded`]). Where
    /// both sides round, loops that sum in another order may round a number to the neighbouring step, so that they are as far from the
    /// graph's results, at most, as both are from those without rounding.
    ///
    /// # Errors
    /// Results that differ, or IR that can not be interpreted.
    pub fn pass(&mut self, pass: &Pass, numerics: Numerics, before: &Ir, after: &Ir) -> Result<String, PassError> {
        let name = pass.name;
        let unchecked = |what: String| PassError::Unchecked { pass: name, what };
        let asked = self.check.tolerance.is_some();
        let failed = |what: String| PassError::Check { pass: name, what, asked };
        // A pass may narrow sizes: inputs are made for those that both sides admit.
        let sizes = inputs::pick(syms(after), self.check.seed);
        if self.inputs.as_ref().is_none_or(|i| i.sizes() != sizes) {
            self.inputs = Some(Inputs::new(before, &sizes, self.check.seed).map_err(unchecked)?);
            self.last = None;
        }
        let Some(inputs) = &self.inputs else { return Err(unchecked("there are no inputs".into())) };
        let old = match self.last.take() {
            Some(old) => old,
            None => inputs.run(before).map_err(unchecked)?,
        };
        let new = inputs.run(after).map_err(|what| PassError::Check { pass: name, what, asked: false })?;
        let count: usize = new.iter().map(|(_, v)| v.len()).sum();
        if count == 0 {
            return Err(unchecked("it has no results and no states".into()));
        }
        if let Some(drift) = drift(inputs, after, &new).map_err(unchecked)? {
            self.drift = Some(drift);
        }
        let c = self.compared(pass, numerics, (before, &old), (after, &new)).map_err(unchecked)?;
        let worst = distance(&c.old, &c.new, &c.bounds).map_err(failed)?;
        self.last = Some(new);
        let drift = self.drift.iter().flatten().fold(0.0f32, |m, (_, d)| m.max(*d));
        let drift = if drift > 0.0 { format!("; 8 bits move results by {drift:.1e}") } else { String::new() };
        Ok(format!("{count} numbers{}, {worst:.1e} apart{drift}", c.what))
    }

    fn compared(
        &self,
        pass: &Pass,
        numerics: Numerics,
        (before, old): (&Ir, &Outcome),
        (after, new): (&Ir, &Outcome),
    ) -> Result<Compared, String> {
        let all = |bound: Bound| vec![bound; old.len()];
        let as_they_are = |bounds: Vec<Bound>| Ok(Compared { old: old.clone(), new: new.clone(), what: "", bounds });
        if let Some(most) = self.check.tolerance {
            return as_they_are(all(Bound::Most(most)));
        }
        if let (Ir::Graph(a), Ir::Graph(b)) = (before, after)
            && cache_step(b) > cache_step(a)
        {
            return as_they_are(all(Bound::Mean(4.0 * cache_step(b))));
        }
        if numerics == Numerics::Strict || pass.numbers == Exact::Bitwise {
            return as_they_are(all(Bound::of(pass.numbers)));
        }
        match (before, after, &self.inputs) {
            (Ir::Graph(a), Ir::Graph(b), Some(inputs)) => {
                let narrow = narrows(a) && pass.numbers != Exact::Bitwise;
                let bounds = all(Bound::of(if narrow { Exact::Approximates } else { pass.numbers }));
                if !rounds(a) && !rounds(b) {
                    return as_they_are(bounds);
                }
                let run = |m| inputs.run(&Ir::Graph(unrounded(m).map_err(|e| e.message)?));
                Ok(Compared { old: run(a)?, new: run(b)?, what: " before rounding", bounds })
            }
            _ => as_they_are(match &self.drift {
                Some(drift) => {
                    let of =
                        |(name, _): &(String, Vec<f32>)| drift.iter().find(|(n, _)| n == name).map_or(0.0, |(_, d)| *d);
                    old.iter().map(of).map(after_rounding).collect()
                }
                None => all(Bound::of(Exact::Approximates)),
            }),
        }
    }
}

/// What two computations in another order may differ by if rounding to 8 bits moves each by `drift` in the mean.
pub fn after_rounding(drift: f32) -> Bound {
    if drift > 0.0 { Bound::Mean(1e-4 + 2.0 * drift) } else { Bound::of(Exact::Reassociates) }
}

/// How far the results of a graph are, in the mean, from what they are without rounding to 8 bits; none for a program.
fn drift(inputs: &Inputs, ir: &Ir, rounded: &Outcome) -> Result<Option<Vec<(String, f32)>>, String> {
    let Ir::Graph(m) = ir else { return Ok(None) };
    if !rounds(m) {
        return Ok(Some(vec![]));
    }
    let exact = inputs.run(&Ir::Graph(unrounded(m).map_err(|e| e.message)?))?;
    let apart = exact.iter().zip(rounded).map(|((name, a), (_, b))| (name.clone(), compare::mean_gap(a, b)));
    Ok(Some(apart.filter(|(_, d)| d.is_finite()).collect()))
}

fn syms(ir: &Ir) -> &Syms {
    match ir {
        Ir::Graph(m) => &m.syms,
        Ir::Program(p) => &p.syms,
    }
}

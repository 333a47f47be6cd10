//! Checking a pass by interpretation: the IR before and after it on equal random inputs, at small sizes.
//!
//! Works on both levels and across `lower`: results, and the states that are left, are compared by name. Interpretation is
//! slow; it is meant for small models and for finding out which pass is wrong.

pub(crate) mod compare;
mod inputs;
#[cfg(test)]
mod tests;

use marquetry_ir::Syms;

use crate::Numerics;
use crate::eqsat::Exact;
use crate::manager::{Ir, Pass, PassError};
pub use compare::distance;
pub use inputs::{Inputs, Random, pick};

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
}

impl Checker {
    /// Nothing interpreted so far.
    pub fn new(check: &Check) -> Checker {
        Checker { check: *check, inputs: None, last: None }
    }

    /// Compares what a pass was given with what it made. Says what was compared.
    ///
    /// # Errors
    /// Results that differ, or IR that can not be interpreted.
    pub fn pass(&mut self, pass: &Pass, numerics: Numerics, before: &Ir, after: &Ir) -> Result<String, PassError> {
        let name = pass.name;
        let unchecked = |what: String| PassError::Unchecked { pass: name, what };
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
        let new = inputs.run(after).map_err(|what| PassError::Check { pass: name, what })?;
        let approximate = numerics == Numerics::Fast && pass.numbers == Exact::Reassociates;
        let bound = match self.check.tolerance {
            Some(t) => Bound::Most(t),
            None => Bound::of(if approximate { Exact::Approximates } else { pass.numbers }),
        };
        let hint = match approximate && self.check.tolerance.is_none() {
            true => "; steps of 8 bits add up over layers: check with strict numerics, or give a tolerance",
            false => "",
        };
        let worst = distance(&old, &new, bound)
            .map_err(|what| PassError::Check { pass: name, what: format!("{what}{hint}") })?;
        let count: usize = new.iter().map(|(_, v)| v.len()).sum();
        if count == 0 {
            return Err(unchecked("it has no results and no states".into()));
        }
        self.last = Some(new);
        Ok(format!("{count} numbers, {worst:.1e} apart"))
    }
}

fn syms(ir: &Ir) -> &Syms {
    match ir {
        Ir::Graph(m) => &m.syms,
        Ir::Program(p) => &p.syms,
    }
}

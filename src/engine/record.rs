//! Steps that were timed, with the inputs that decide what they cost.

use std::time::Instant;

use marquetry_ir::program::Program;
use marquetry_passes::fuse::Origin;
use marquetry_runtime::Timeline;

use super::{Bucket, Engine, StepArgs};
use crate::Error;

/// A step that was timed.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// The function that ran.
    pub bucket: Bucket,
    /// When the engine began the step.
    pub start: Instant,
    /// Seconds of the whole step, preparing its inputs included.
    pub seconds: f64,
    /// Tokens of the step.
    pub tokens: usize,
    /// Sizes, in the order of the program's symbols.
    pub sizes: Vec<i64>,
    /// Inputs by name.
    pub inputs: Vec<(&'static str, Vec<i32>)>,
    /// When kernels ran.
    pub timeline: Timeline,
}

/// What a machine tells of a step that it timed.
pub(super) struct Timed {
    pub bucket: Bucket,
    pub sizes: Vec<i64>,
    pub timeline: Timeline,
}

impl Recorded {
    pub(super) fn new(args: &StepArgs<'_>, timed: Timed) -> Recorded {
        let Timed { bucket, sizes, timeline } = timed;
        let inputs = StepArgs::INPUTS.iter().filter_map(|n| Some((*n, args.input(n)?.to_vec()))).collect();
        Recorded { bucket, start: timeline.start, seconds: 0.0, tokens: args.tokens.len(), sizes, inputs, timeline }
    }

    /// An input, by name.
    pub fn input(&self, name: &str) -> Option<&[i32]> {
        self.inputs.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_slice())
    }
}

impl Engine {
    /// Times every kernel of the steps from now on.
    ///
    /// # Errors
    /// If there are no kernels, or programs were not kept (see [`super::EngineOptions::profile`]).
    pub fn record(&mut self) -> Result<(), Error> {
        if !self.options.profile || self.options.backend.generator().is_none() {
            return Err(Error::usage(
                "kernels are timed of programs that are kept and compiled; the interpreter has none, try --backend cranelift",
            ));
        }
        self.recorded = Some(vec![]);
        Ok(())
    }

    /// Ends recording, and gives the steps since it began.
    pub fn recorded(&mut self) -> Vec<Recorded> {
        self.recorded.take().unwrap_or_default()
    }

    /// The program of a bucket, once it is compiled and where it is kept.
    pub fn program(&self, bucket: Bucket) -> Option<&Program> {
        self.machine.program(bucket)
    }

    /// Where the kernels of a bucket come from. Runs the passes again where they were not watched.
    ///
    /// # Errors
    /// A pass that fails.
    pub fn origins(&self, bucket: Bucket) -> Result<Vec<Origin>, Error> {
        self.machine.origins(bucket)
    }
}

//! A bucket of an engine as what the search makes and times.

use marquetry_passes::params::Params;

use super::check::{Checker, How};
use super::search::{Subject, Times};
use crate::Error;
use crate::engine::{Bucket, Engine, Variant};

/// Tokens of the prompt that is timed, and before the token that is, at most.
const PROMPT: usize = 256;
/// Tokens of the prompt that kernels are checked with: more than a tile of any parameter has, and no multiple of it.
const CHECKED: usize = 67;

/// A bucket of an engine.
pub(super) struct OfEngine<'a> {
    engine: &'a mut Engine,
    bucket: Bucket,
    prompt: Vec<u32>,
    checker: Checker,
    /// For tests: what a compiler with a defect would do to a candidate.
    #[cfg(test)]
    pub spoil: Option<fn(&Params, &mut crate::ir::program::Program)>,
}

impl<'a> OfEngine<'a> {
    pub fn new(engine: &'a mut Engine, bucket: Bucket, seed: u64) -> Result<OfEngine<'a>, Error> {
        let (context, vocab) = (engine.context(), engine.model().text.vocab.max(1));
        let prompt: Vec<u32> = (0..PROMPT.min(context / 2)).map(|i| ((i * 7919 + 13) % vocab) as u32).collect();
        if prompt.len() < 2 {
            return Err(Error::usage(format!(
                "a context of {context} positions is too short to tune with; give 8 or more"
            )));
        }
        let untuned = engine.variant(bucket, &Params::default())?;
        let (loops, program) = (engine.loops(bucket)?, untuned.program.clone());
        engine.place(bucket, untuned)?;
        let step = engine.sample(bucket, &prompt[..prompt.len().min(CHECKED)])?;
        let options = engine.options();
        let Some(backend) = options.backend.generator() else {
            return Err(Error::usage("the interpreter has nothing to tune; try --backend cranelift"));
        };
        let (threads, routines) = (options.threads, options.routines);
        let how = How { backend, numerics: engine.numerics(), routines, threads, seed };
        let checker = Checker::new(how, loops, program, step)?;
        Ok(OfEngine {
            engine,
            bucket,
            prompt,
            checker,
            #[cfg(test)]
            spoil: None,
        })
    }

    /// Leaves the engine with a function.
    pub fn keep(self, made: Variant) -> Result<(), Error> {
        self.engine.place(self.bucket, made)
    }
}

impl Subject for OfEngine<'_> {
    type Made = Variant;

    fn make(&mut self, params: &Params) -> Result<Variant, Error> {
        #[allow(unused_mut, reason = "tests change it")]
        let mut made = self.engine.variant(self.bucket, params)?;
        #[cfg(test)]
        self.spoil.iter().for_each(|spoil| spoil(params, &mut made.program));
        Ok(made)
    }

    fn changed(&self, from: &Variant, to: &Variant) -> Vec<String> {
        // A thread that is alone takes a loop as a whole.
        let same_chunks = from.params.chunks == to.params.chunks || self.engine.options().threads == 1;
        let same = |k| same_chunks && from.program.kernels.contains(k);
        to.program.kernels.iter().filter(|k| !same(k)).map(|k| k.name.clone()).collect()
    }

    fn check(&mut self, made: &Variant, kernels: &[String]) -> Result<Option<String>, Error> {
        for name in kernels {
            if let Some(what) = self.checker.kernel(&made.program, name, made.params.chunks)? {
                return Ok(Some(what));
            }
        }
        Ok(None)
    }

    fn time(&mut self, made: &mut Variant) -> Result<Times, Error> {
        self.engine.exchange(self.bucket, made)?;
        let step = self.engine.sample(self.bucket, &self.prompt);
        self.engine.exchange(self.bucket, made)?;
        let step = step?;
        let mut times = Times::new();
        for (launch, time) in made.program.launches.iter().zip(step.timeline.times()) {
            let kernel = made.program.kernels.get(launch.kernel.0 as usize);
            *times.entry(kernel.map_or_else(String::new, |k| k.name.clone())).or_default() += time as f64 / 1e9;
        }
        Ok(times)
    }
}

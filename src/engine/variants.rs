//! Parameters of kernels: those that an engine's functions are compiled with, and trying others.

use marquetry_ir::graph::Ty;
use marquetry_ir::program::Program;
use marquetry_passes::Numerics;
use marquetry_passes::params::Params;
use marquetry_runtime::Function;

use super::jit::Jit;
use super::{Bucket, Engine, EngineOptions, Recorded, Rows, has_matrix};
use crate::Error;
use crate::tune::presets::preset;
use crate::tune::store::Store;

/// Where parameters of kernels come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tuning {
    /// What was tuned on this machine for these kernels; else the preset of the CPU's family.
    #[default]
    Stored,
    /// The defaults.
    Off,
    /// These, by bucket.
    Given(Box<[Params; 3]>),
}

/// The parameters of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TuningFound {
    params: [Params; 3],
    /// Buckets whose parameters were tuned.
    pub tuned: Vec<Bucket>,
    /// Why the database is not used, where it can not be.
    pub refused: Option<String>,
}

impl TuningFound {
    /// Decides them; `keys` are those of the buckets in the database.
    pub(super) fn find(options: &EngineOptions, keys: &[Option<String>; 3], numerics: Numerics) -> TuningFound {
        let mut found = TuningFound::default();
        match &options.tuning {
            Tuning::Off => {}
            Tuning::Given(params) => found.params = **params,
            Tuning::Stored => {
                let preset = options.routines.level().map(preset);
                found.params = Bucket::ALL.map(|b| preset.map_or_else(Params::default, |p| p.params(b)));
                let entries =
                    options.cache.as_deref().map_or(Ok(vec![]), |dir| Store::new(dir).entries()).unwrap_or_else(|e| {
                        found.refused = Some(e.to_string());
                        vec![]
                    });
                for (bucket, key) in Bucket::ALL.into_iter().zip(keys) {
                    if let Some(e) = entries.iter().find(|e| Some(&e.key) == key.as_ref()) {
                        found.set(bucket, e.params);
                    }
                }
            }
        }
        if numerics == Numerics::Strict {
            found.params = found.params.map(Params::bitwise);
        }
        found
    }

    /// Those of a bucket.
    pub fn params(&self, bucket: Bucket) -> Params {
        self.params[bucket as usize]
    }

    pub(super) fn set(&mut self, bucket: Bucket, params: Params) {
        self.params[bucket as usize] = params;
        self.tuned.retain(|b| *b != bucket);
        self.tuned.push(bucket);
    }
}

/// A bucket's program with some parameters.
pub(crate) struct Variant {
    /// The parameters.
    pub params: Params,
    /// The program.
    pub program: Program,
    /// What it was compiled to, or what it has taken the place of.
    pub(super) function: Option<Function>,
}

impl Engine {
    fn jit(&mut self) -> Result<&mut Jit, Error> {
        self.machine.compiled().ok_or_else(|| {
            Error::usage("the interpreter compiles nothing that could be tuned; try --backend cranelift")
        })
    }

    /// The parameters that functions are compiled with; none for the interpreter.
    pub fn tuning(&self) -> Option<&TuningFound> {
        self.machine.tuning()
    }

    /// The buckets whose functions this engine runs.
    pub fn buckets(&self) -> Vec<Bucket> {
        let (encoder, matrix) = (self.model.text.is_encoder(), has_matrix(&self.options, self.numerics));
        let all = Bucket::ALL.into_iter();
        all.filter(|b| if *b == Bucket::Decode { !encoder } else { *b == Bucket::of(b.most(), matrix) }).collect()
    }

    pub(crate) fn is_strict(&self) -> bool {
        self.numerics == Numerics::Strict
    }

    /// The key of a bucket in the database of tuned parameters.
    pub(crate) fn tuning_key(&mut self, bucket: Bucket) -> Option<String> {
        self.machine.compiled().map(|jit| jit.tuning_key(bucket))
    }

    pub(crate) fn loops(&mut self, bucket: Bucket) -> Result<Program, Error> {
        self.jit()?.loops(bucket)
    }

    pub(crate) fn variant(&mut self, bucket: Bucket, params: &Params) -> Result<Variant, Error> {
        self.jit()?.variant(bucket, params)
    }

    pub(crate) fn exchange(&mut self, bucket: Bucket, v: &mut Variant) -> Result<(), Error> {
        self.jit()?.exchange(bucket, v)
    }

    pub(crate) fn place(&mut self, bucket: Bucket, v: Variant) -> Result<(), Error> {
        self.jit()?.place(bucket, v)
    }

    /// One timed step: the prompt, as much as the bucket takes, or a token after it.
    pub(crate) fn sample(&mut self, bucket: Bucket, prompt: &[u32]) -> Result<Recorded, Error> {
        let recurrent = self.model.text.module.states.iter().any(|s| matches!(s.ty, Ty::Rows(_)));
        self.recorded = None;
        if bucket != Bucket::Decode {
            let prompt = &prompt[..prompt.len().min(bucket.most())];
            self.reset()?;
            self.recorded = Some(vec![]);
            match self.model.text.is_encoder() {
                true => drop(self.encode(prompt, &[])?),
                false => drop(self.prefill(prompt, Rows::Last)?),
            }
        } else {
            // Recurrent states have no past to go back to, and cost the same at every position.
            if !recurrent && self.history.len() > prompt.len() {
                self.keep(prompt.len())?;
            }
            if self.history.len() < prompt.len() || self.history.len() >= self.context() {
                self.reset()?;
                self.prefill(prompt, Rows::Last)?;
            }
            self.recorded = Some(vec![]);
            self.decode(prompt[0])?;
        }
        self.recorded().pop().ok_or_else(|| Error::usage("the engine times no steps"))
    }
}

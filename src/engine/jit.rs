//! Compiled functions as a machine: one for decoding, one for prefill, over the same weights and states.
//!
//! `unsafe` is here once: code from the JIT is paired with the program it was compiled from.

use std::sync::Arc;
use std::time::Instant;

use marquetry_codegen::{self as codegen, CodegenError, Options};
use marquetry_ir::graph::Module;
use marquetry_ir::program::Program;
use marquetry_passes::Numerics;
use marquetry_passes::fuse::Origin;
use marquetry_passes::manager::{self, Ir, Reports, TRACE, pipeline_between};
use marquetry_runtime::{Arena, Code, Function, Pool, RuntimeError, States, micro};

use super::programs::{self, Bucket, bucket_options};
use super::record::Timed;
use super::weights::PackedWeights;
use super::{EngineOptions, Machine, Stats, StepArgs};
use crate::Error;
use crate::model::{LoadedModel, PAGE};

/// Compiled functions and their memory.
pub(super) struct Jit {
    model: Arc<LoadedModel>,
    module: Module,
    backend: codegen::Backend,
    options: EngineOptions,
    numerics: Numerics,
    pages: usize,
    decode: Option<Function>,
    prefill: Option<Function>,
    weights: PackedWeights,
    states: Option<States>,
    arena: Arena,
    pool: Pool,
    reports: Vec<(Bucket, Reports)>,
    /// Programs, where they are kept.
    programs: Vec<(Bucket, Program)>,
}

impl Jit {
    pub fn new(
        model: Arc<LoadedModel>,
        backend: codegen::Backend,
        options: &EngineOptions,
        numerics: Numerics,
    ) -> Result<Jit, Error> {
        if !backend.is_built() {
            return Err(CodegenError::NotBuilt(backend.name()).into());
        }
        Ok(Jit {
            module: model.bound_module()?,
            backend,
            model,
            options: options.clone(),
            numerics,
            pages: options.context.div_ceil(PAGE),
            decode: None,
            prefill: None,
            weights: PackedWeights::new(options.cache.clone()),
            states: None,
            arena: Arena::default(),
            pool: Pool::new(options.threads)?,
            reports: vec![],
            programs: vec![],
        })
    }

    fn pass_options(&self, bucket: Bucket) -> manager::Options {
        let mut options = bucket_options(bucket, self.numerics, self.options.context);
        options.cache_type = self.options.cache_type.or(options.cache_type);
        options.target.micro = !self.options.portable && micro::available();
        options
    }

    fn compile(&mut self, bucket: Bucket, stats: &mut Stats) -> Result<Function, Error> {
        let start = Instant::now();
        let options = self.pass_options(bucket);
        let (program, cached) = match self.options.watch.is_on() {
            true => {
                let (program, reports) = programs::watched(&self.module, bucket, &options, &self.options.watch)?;
                self.reports.push((bucket, reports));
                (program, false)
            }
            false => programs::program(&self.module, &options, self.options.cache.as_deref())?,
        };
        let code = generate(&program, self.backend, self.numerics)?;
        stats.cached_programs += usize::from(cached);
        stats.compile_s += start.elapsed().as_secs_f64();
        let start = Instant::now();
        let weights = self.weights.get(&self.model, &program.weights, self.options.threads)?;
        stats.pack_s += start.elapsed().as_secs_f64();
        stats.weight_bytes = self.weights.bytes();
        stats.cached_weights = self.weights.cached();
        if self.options.profile {
            self.programs.push((bucket, program.clone()));
        }
        Ok(Function::new(program, code, weights)?)
    }
}

/// Machine code of a program's kernels.
pub(crate) fn generate(program: &Program, backend: codegen::Backend, numerics: Numerics) -> Result<Code, Error> {
    let options = Options { finite_f16: numerics == Numerics::Fast, routines: micro::routine, ..Options::default() };
    let module = codegen::compile(backend, &program.kernels, &program.syms, &options)?;
    let kernels = (0..module.len()).map(|i| module.kernel(i)).collect();
    // SAFETY: the entry points are those of the program's kernels in order, and live as long as the module, which goes along.
    Ok(unsafe { Code::new(kernels, Box::new(module)) })
}

/// The values of a function's symbols.
fn sizes(f: &Function, args: &StepArgs<'_>, pages: usize) -> Result<Vec<i64>, Error> {
    let value = |name: &str| {
        let what = || RuntimeError::Program { what: format!("size `{name}` is not one that a step has") };
        args.size(name, pages).ok_or_else(|| what().into())
    };
    f.syms().0.iter().map(|d| value(&d.name)).collect()
}

impl Machine for Jit {
    fn reports(&self) -> &[(Bucket, Reports)] {
        &self.reports
    }

    fn program(&self, bucket: Bucket) -> Option<&Program> {
        self.programs.iter().find(|(b, _)| *b == bucket).map(|(_, p)| p)
    }

    fn origins(&self, bucket: Bucket) -> Result<Vec<Origin>, Error> {
        if let Some((_, watched)) = self.reports.iter().find(|(b, _)| *b == bucket) {
            return Ok(watched.origins.clone());
        }
        let passes = pipeline_between(TRACE, Some("fused"))?;
        let ir = Ir::Graph(self.module.clone());
        let (_, reports) = manager::run(ir, &passes, &self.pass_options(bucket), &mut |_, _| {})?;
        Ok(reports.origins)
    }

    fn state(&self, name: &str) -> Option<Vec<f32>> {
        Some(bytemuck::cast_slice(self.states.as_ref()?.get(name)?).to_vec())
    }

    fn prepare(&mut self, bucket: Bucket, stats: &mut Stats) -> Result<(), Error> {
        let slot = match bucket {
            Bucket::Decode => &self.decode,
            Bucket::Prefill => &self.prefill,
        };
        if slot.is_some() {
            return Ok(());
        }
        let made = Some(self.compile(bucket, stats)?);
        match bucket {
            Bucket::Decode => self.decode = made,
            Bucket::Prefill => self.prefill = made,
        }
        Ok(())
    }

    fn step(
        &mut self,
        args: &StepArgs<'_>,
        outputs: &mut [(&str, &mut [f32])],
        stats: &mut Stats,
    ) -> Result<Option<Timed>, Error> {
        let bucket = if args.tokens.len() == 1 { Bucket::Decode } else { Bucket::Prefill };
        self.prepare(bucket, stats)?;
        let f = match bucket {
            Bucket::Decode => &self.decode,
            Bucket::Prefill => &self.prefill,
        };
        let Some(f) = f else { return Ok(None) };
        let sizes = sizes(f, args, self.pages)?;
        let states = match &mut self.states {
            Some(s) => s,
            none => none.insert(States::new(f.states(), &sizes)?),
        };
        let given = f.inputs().filter_map(|(name, ..)| Some((name, bytemuck::cast_slice(args.input(name)?))));
        let inputs: Vec<(&str, &[u8])> = given.collect();
        let outputs = outputs.iter_mut().map(|(name, v)| (*name, bytemuck::cast_slice_mut(v)));
        let mut outputs: Vec<(&str, &mut [u8])> = outputs.collect();
        if !args.timed {
            f.run(&self.pool, &mut self.arena, states, &sizes, &inputs, &mut outputs)?;
            return Ok(None);
        }
        let timeline = f.run_profiled(&self.pool, &mut self.arena, states, &sizes, &inputs, &mut outputs)?;
        Ok(Some(Timed { bucket, sizes, timeline }))
    }
}

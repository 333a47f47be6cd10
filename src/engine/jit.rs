//! Compiled functions as a machine, one for each bucket of tokens, over the same weights and states.
//!
//! `unsafe` is here once: code from the JIT is paired with the program it was compiled from.

use std::sync::Arc;
use std::time::Instant;

use marquetry_codegen::{self as codegen, CodegenError, Options};
use marquetry_ir::graph::{Module, print_module};
use marquetry_ir::program::Program;
use marquetry_passes::Numerics;
use marquetry_passes::fuse::Origin;
use marquetry_passes::manager::{self, Ir, Reports, TRACE, pipeline_between};
use marquetry_passes::params::Params;
use marquetry_runtime::micro::Routines;
use marquetry_runtime::{Arena, Code, Function, Pool, RuntimeError, States};

use super::programs::{self, Bucket, bucket_options};
use super::record::Timed;
use super::variants::Tuning;
use super::weights::PackedWeights;
use super::{EngineOptions, Few, Machine, Stats, StepArgs, TuningFound, Variant, has_matrix};
use crate::Error;
use crate::model::{LoadedModel, PAGE};
use crate::tune::store;

/// Pages that states have room for at least, where the context has as many.
const FIRST_PAGES: usize = 4;

/// Compiled functions and their memory.
pub(super) struct Jit {
    model: Arc<LoadedModel>,
    module: Module,
    backend: codegen::Backend,
    options: EngineOptions,
    numerics: Numerics,
    /// Pages that the states have room for.
    pages: usize,
    /// By bucket.
    functions: [Option<Function>; 3],
    weights: PackedWeights,
    states: Option<States>,
    arena: Arena,
    pool: Pool,
    reports: Vec<(Bucket, Reports)>,
    tuning: TuningFound,
    /// Modules before lowering, where they were needed.
    fused: Vec<(Bucket, Ir)>,
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
        let mut jit = Jit {
            module: model.bound_module()?,
            backend,
            model,
            options: options.clone(),
            numerics,
            pages: 0,
            functions: [const { None }; 3],
            weights: PackedWeights::new(options.cache.clone()),
            states: None,
            arena: Arena::default(),
            pool: Pool::new(options.threads)?,
            reports: vec![],
            tuning: TuningFound::default(),
            fused: vec![],
            programs: vec![],
        };
        jit.find_params();
        Ok(jit)
    }

    /// May products be those of a matrix unit?
    fn has_matrix(&self) -> bool {
        has_matrix(&self.options, self.numerics)
    }

    fn pass_options(&self, bucket: Bucket) -> manager::Options {
        let mut options = bucket_options(bucket, self.numerics, self.options.context);
        options.cache_type = self.options.cache_type.or(options.cache_type);
        options.target.micro = self.options.routines.level().is_some();
        options.target.matrix = self.has_matrix();
        options
    }

    fn compile(&mut self, bucket: Bucket, stats: &mut Stats) -> Result<Function, Error> {
        let start = Instant::now();
        let (options, params) = (self.pass_options(bucket), self.tuning.params(bucket));
        let (program, cached) = match self.options.watch.is_on() {
            true => {
                let (program, reports) =
                    programs::watched(&self.module, bucket, &options, &params, &self.options.watch)?;
                self.reports.push((bucket, reports));
                (program, false)
            }
            false => programs::program(&self.module, &options, &params, self.options.cache.as_deref())?,
        };
        let code = generate(&program, self.backend, self.numerics, self.options.routines)?;
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
        Ok(Function::new(program, code, weights)?.with_chunks(params.chunks))
    }
}

/// Trying other parameters; see [`crate::tune`].
impl Jit {
    fn slot(&mut self, bucket: Bucket) -> &mut Option<Function> {
        &mut self.functions[bucket as usize]
    }

    /// Decides the parameters of all buckets.
    fn find_params(&mut self) {
        let keys = match self.options.tuning {
            Tuning::Stored if self.options.cache.is_some() => Bucket::ALL.map(|b| Some(self.tuning_key(b))),
            _ => [const { None }; 3],
        };
        self.tuning = TuningFound::find(&self.options, &keys, self.numerics);
    }

    /// Identifies the untuned kernels of a bucket, by what they are made of; the length of the context is no part of that.
    pub fn tuning_key(&self, bucket: Bucket) -> String {
        let options = self.pass_options(bucket);
        let routines = self.options.routines.level();
        let how = format!("{bucket:?} {:?} {:?} {:?} {routines:?}", self.numerics, options.target, options.cache_type);
        store::key(&[&print_module(&self.module), &how, self.backend.name()], self.options.threads)
    }

    fn fused(&mut self, bucket: Bucket) -> Result<(Ir, manager::Options), Error> {
        let options = self.pass_options(bucket);
        if let Some((_, ir)) = self.fused.iter().find(|(b, _)| *b == bucket) {
            return Ok((ir.clone(), options));
        }
        let passes = pipeline_between(TRACE, Some("fused"))?;
        let (ir, _) = manager::run(Ir::Graph(self.module.clone()), &passes, &options, &mut |_, _| {})?;
        self.fused.push((bucket, ir.clone()));
        Ok((ir, options))
    }

    /// The program of a bucket with the default parameters, before any schedule.
    pub fn loops(&mut self, bucket: Bucket) -> Result<Program, Error> {
        let (ir, options) = self.fused(bucket)?;
        programs::lowered(ir, &pipeline_between("fused", Some("loops"))?, &options)
    }

    /// The program of a bucket with other parameters.
    pub fn variant(&mut self, bucket: Bucket, params: &Params) -> Result<Variant, Error> {
        let (ir, options) = self.fused(bucket)?;
        let program = programs::lowered(ir, &params.pipeline(&pipeline_between("fused", None)?), &options)?;
        Ok(Variant { params: *params, program, function: None })
    }

    /// Puts the function of a variant, compiled if it is not yet, in the place of the present one, which the variant gets.
    pub fn exchange(&mut self, bucket: Bucket, v: &mut Variant) -> Result<(), Error> {
        if v.function.is_none() {
            let code = generate(&v.program, self.backend, self.numerics, self.options.routines)?;
            let weights = self.weights.get(&self.model, &v.program.weights, self.options.threads)?;
            v.function = Some(Function::new(v.program.clone(), code, weights)?.with_chunks(v.params.chunks));
        }
        std::mem::swap(self.slot(bucket), &mut v.function);
        Ok(())
    }

    /// Puts a variant in the place of the present function for good.
    pub fn place(&mut self, bucket: Bucket, mut v: Variant) -> Result<(), Error> {
        self.exchange(bucket, &mut v)?;
        self.tuning.set(bucket, v.params);
        if let Some((_, p)) = self.programs.iter_mut().find(|(b, _)| *b == bucket) {
            *p = v.program;
        }
        Ok(())
    }
}

/// Machine code of a program's kernels.
pub(crate) fn generate(
    program: &Program,
    backend: codegen::Backend,
    numerics: Numerics,
    routines: Routines,
) -> Result<Code, Error> {
    let finite_f16 = numerics == Numerics::Fast;
    let options = Options { finite_f16, routines: routines.lookup(), ..Options::default() };
    let module = codegen::compile(backend, &program.kernels, &program.syms, &options)?;
    let kernels = (0..module.len()).map(|i| module.kernel(i)).collect();
    // SAFETY: the entry points are those of the program's kernels in order, and live as long as the module, which goes along.
    Ok(unsafe { Code::new(kernels, Box::new(module)) })
}

/// Pages that states get room for when a step needs so many, and they have room for `now`: half as many more, so that they grow
/// rarely, up to those of the context. In huge pages they take the memory of all of these.
fn room(needed: usize, now: usize, context: usize) -> usize {
    if needed <= now && now > 0 {
        return now;
    }
    (needed + needed / 2).max(FIRST_PAGES).min(context.div_ceil(PAGE).max(1))
}

/// The values of a function's symbols.
fn sizes(f: &Function, args: &StepArgs<'_>, pages: usize) -> Result<Few<i64>, Error> {
    let value = |name: &str| {
        let what = || RuntimeError::Program { what: format!("size `{name}` is not one that a step has") };
        args.size(name, pages).ok_or_else(|| what().into())
    };
    f.syms().0.iter().map(|d| value(&d.name)).collect()
}

impl Machine for Jit {
    fn compiled(&mut self) -> Option<&mut Jit> {
        Some(self)
    }

    fn tuning(&self) -> Option<&TuningFound> {
        Some(&self.tuning)
    }

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
        if self.slot(bucket).is_none() {
            let made = self.compile(bucket, stats)?;
            *self.slot(bucket) = Some(made);
        }
        Ok(())
    }

    fn step(
        &mut self,
        args: &StepArgs<'_>,
        outputs: &mut [(&str, &mut [u8])],
        stats: &mut Stats,
    ) -> Result<Option<Timed>, Error> {
        let bucket = Bucket::of(args.tokens.len(), self.has_matrix());
        self.prepare(bucket, stats)?;
        let Some(f) = &self.functions[bucket as usize] else { return Ok(None) };
        let grown = room(args.pages(), self.pages, self.options.context);
        let sizes = sizes(f, args, grown)?;
        let states = match &mut self.states {
            Some(s) => {
                if grown > self.pages {
                    s.resize(f.states(), &sizes)?;
                }
                s
            }
            none => none.insert(States::new(f.states(), &sizes)?),
        };
        self.pages = grown;
        let given = f.inputs().filter_map(|(name, ..)| Some((name, bytemuck::cast_slice(args.input(name)?))));
        let inputs: Few<(&str, &[u8])> = given.collect();
        if !args.timed {
            f.run(&self.pool, &mut self.arena, states, &sizes, &inputs, outputs)?;
            return Ok(None);
        }
        let timeline = f.run_profiled(&self.pool, &mut self.arena, states, &sizes, &inputs, outputs)?;
        Ok(Some(Timed { bucket, sizes: sizes.to_vec(), timeline }))
    }
}

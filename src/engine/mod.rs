//! A model that runs: compiled functions (or the interpreter) over a paged cache, for one sequence.

mod interp;
mod jit;
mod packs;
mod pieces;
mod programs;
mod record;
mod variants;
mod weights;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use marquetry_ir::DType;
use marquetry_ir::graph::Ty;
use marquetry_ir::program::Program;
use marquetry_passes::Numerics;
use marquetry_passes::fuse::Origin;
use marquetry_passes::manager::Reports;
use marquetry_runtime::kv::{PagedKv, SeqId, StepInputs};
use marquetry_runtime::micro::Routines;
use marquetry_runtime::{AlignedBytes, RuntimeError};

use crate::Error;
use crate::model::{CHUNK, LoadedModel, PAGE};
use crate::watch::Watch;
use record::Timed;

pub(crate) use jit::generate;
pub use packs::{VerifiedPacks, verify_packs};
pub use programs::{Bucket, bucket_options, cpu_features};
pub use record::Recorded;
pub(crate) use variants::Variant;
pub use variants::{Tuning, TuningFound};

/// A list that takes no memory of its own while it is short.
type Few<T> = smallvec::SmallVec<[T; 12]>;

/// Bytes of logits that one step makes at most when every token's are wanted.
const MAX_LOGITS: usize = 128 << 20;
/// Threads used by default, at most.
const MAX_THREADS: usize = 16;
/// Positions by default, at most. The cache grows with what is used.
const DEFAULT_CONTEXT: usize = 32_768;

/// What runs the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// The graph interpreter: slow, the reference.
    Interp,
    /// Machine code by Cranelift.
    #[default]
    Cranelift,
    /// Machine code by LLVM, in builds with the cargo feature `llvm`.
    Llvm,
}

impl Backend {
    /// All, built or not.
    pub const ALL: [Backend; 3] = [Backend::Interp, Backend::Cranelift, Backend::Llvm];

    /// Those of this build that run machine code.
    pub fn native() -> impl Iterator<Item = Backend> {
        Backend::ALL.into_iter().filter(|b| b.generator().is_some_and(|g| g.is_built()))
    }

    /// Its name in options and reports.
    pub fn name(self) -> &'static str {
        self.generator().map_or("interp", marquetry_codegen::Backend::name)
    }

    /// What makes its machine code, if it runs any.
    pub fn generator(self) -> Option<marquetry_codegen::Backend> {
        match self {
            Backend::Interp => None,
            Backend::Cranelift => Some(marquetry_codegen::Backend::Cranelift),
            Backend::Llvm => Some(marquetry_codegen::Backend::Llvm),
        }
    }
}

/// Choices of an engine.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// What runs the model.
    pub backend: Backend,
    /// What may happen to numbers; by default strict, and fast for quantized weights.
    pub numerics: Option<Numerics>,
    /// Threads; 0 for one per CPU, at most 16.
    pub threads: usize,
    /// Routines for vector instructions.
    pub routines: Routines,
    /// Positions of the cache; 0 for those of the model, at most 32768.
    pub context: usize,
    /// Element type of keys and values in compiled code, a float; by default f32 with strict numerics and f16 with fast ones.
    pub cache_type: Option<DType>,
    /// Where planned programs and packed weights are kept; nowhere if absent.
    pub cache: Option<PathBuf>,
    /// How passes are watched; while they are, programs are not taken from the cache.
    pub watch: Watch,
    /// Keep the programs, for [`Engine::record`].
    pub profile: bool,
    /// Where parameters of kernels come from.
    pub tuning: Tuning,
}

impl EngineOptions {
    /// The number of threads that 0 stands for.
    pub fn default_threads() -> usize {
        std::thread::available_parallelism().map_or(1, |n| n.get()).min(MAX_THREADS)
    }
}

/// Do the numerics allow products by a matrix unit, and have the routines such?
fn has_matrix(options: &EngineOptions, numerics: Numerics) -> bool {
    numerics == Numerics::Fast && options.routines.level().is_some_and(|l| l.matrix())
}

/// Seconds spent, and tokens computed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Packing weights.
    pub pack_s: f64,
    /// Passes and code generation.
    pub compile_s: f64,
    /// Functions whose program came from the cache.
    pub cached_programs: usize,
    /// Bytes of packed weights.
    pub weight_bytes: usize,
    /// Weights that were found packed in the cache.
    pub cached_weights: usize,
    /// Tokens through the prefill function.
    pub prefill_tokens: usize,
    /// Seconds that they took.
    pub prefill_s: f64,
    /// Tokens through the decode function.
    pub decode_tokens: usize,
    /// Seconds that they took.
    pub decode_s: f64,
}

/// Whose logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Those of the last token.
    Last,
    /// Those of every token.
    All,
}

/// Inputs of a step.
struct StepArgs<'a> {
    tokens: &'a [i32],
    rows: &'a [i32],
    /// Length that each token's sequence has after the step, or is known to get.
    span: &'a [i32],
    /// Kind of each token, for models that have several.
    types: &'a [i32],
    /// Row of recurrent states that each token's sequence has.
    row: &'a [i32],
    kv: &'a StepInputs,
    /// Is the step to be timed?
    timed: bool,
}

impl StepArgs<'_> {
    /// The value of a symbol, by name; `pages` is the size of the cache.
    fn size(&self, symbol: &str, pages: usize) -> Option<i64> {
        let v = match symbol {
            "n" => self.tokens.len(),
            "r" => self.rows.len(),
            "s" => self.kv.nseq,
            "m" => self.kv.max_pages,
            "p" => pages,
            // One sequence, one row of recurrent states.
            "q" => 1,
            _ => return None,
        };
        i64::try_from(v).ok()
    }

    /// Pages of the cache that the step may touch are numbered below this.
    fn pages(&self) -> usize {
        self.kv.pages.iter().max().map_or(0, |&p| p as usize + 1)
    }

    /// Names of all inputs.
    const INPUTS: [&'static str; 9] = ["tokens", "rows", "span", "token_types", "row", "pos", "seq", "slot", "pages"];

    /// An input, by name.
    fn input(&self, name: &str) -> Option<&[i32]> {
        Some(match name {
            "tokens" => self.tokens,
            "rows" => self.rows,
            "span" => self.span,
            "token_types" => self.types,
            "row" => self.row,
            "pos" => &self.kv.pos,
            "seq" => &self.kv.seq,
            "slot" => &self.kv.slot,
            "pages" => &self.kv.pages,
            _ => return None,
        })
    }
}

/// A recurrent state of all layers.
#[derive(Clone, Debug, PartialEq)]
pub struct RecurrentState {
    /// Its name in the model.
    pub name: String,
    /// Layers, then the record's extents.
    pub shape: Vec<usize>,
    /// In row-major order.
    pub values: Vec<f32>,
}

/// What computes a step.
trait Machine {
    /// The first row of a recurrent state, if there was a step.
    fn state(&self, name: &str) -> Option<Vec<f32>>;
    /// Computes the outputs by name, each the bytes of f32 `[rows, width]`. Tells when kernels ran if the step is to be timed.
    fn step(
        &mut self,
        args: &StepArgs<'_>,
        outputs: &mut [(&str, &mut [u8])],
        stats: &mut Stats,
    ) -> Result<Option<Timed>, Error>;
    /// The program of a bucket, where it was kept.
    fn program(&self, _: Bucket) -> Option<&Program> {
        None
    }
    /// Where the kernels of a bucket come from, as far as that is known.
    fn origins(&self, _: Bucket) -> Result<Vec<Origin>, Error> {
        Ok(vec![])
    }
    /// What the passes of each function did, where they were watched.
    fn reports(&self) -> &[(Bucket, Reports)] {
        &[]
    }
    /// The machine, if it runs compiled functions.
    fn compiled(&mut self) -> Option<&mut jit::Jit> {
        None
    }
    /// The parameters that functions are compiled with, and where they come from.
    fn tuning(&self) -> Option<&TuningFound> {
        None
    }
    /// Compiles what is not compiled yet.
    fn prepare(&mut self, bucket: Bucket, stats: &mut Stats) -> Result<(), Error>;
}

/// A model with one sequence in its cache.
pub struct Engine {
    model: Arc<LoadedModel>,
    machine: Box<dyn Machine>,
    options: EngineOptions,
    numerics: Numerics,
    kv: PagedKv,
    sequence: SeqId,
    /// Tokens in the cache.
    history: Vec<u32>,
    /// Length that the sequence is known to get.
    expected: usize,
    inputs: StepInputs,
    /// Kinds of the tokens of the next step; empty for all 0.
    types: Vec<i32>,
    /// Other inputs of the last step, kept for their memory.
    tokens: Vec<i32>,
    rows: Vec<i32>,
    span: Vec<i32>,
    row: Vec<i32>,
    /// One per output of the model.
    outputs: Vec<AlignedBytes>,
    stats: Stats,
    /// Steps since recording began, where it did.
    recorded: Option<Vec<Recorded>>,
}

impl Engine {
    /// Prepares a model for running. Functions are compiled when they are first needed, or by [`Engine::prepare`].
    ///
    /// # Errors
    /// If the context asked for is larger than the model's, or memory can not be had.
    pub fn new(model: Arc<LoadedModel>, mut options: EngineOptions) -> Result<Engine, Error> {
        let most = model.text.context.max(1);
        if options.context > most {
            let what = format!("a context of {} positions; the model was made for {most}", options.context);
            return Err(Error::usage(what));
        }
        if options.backend == Backend::Interp && options.watch.from.is_some() {
            return Err(Error::usage(
                "the interpreter runs the model as it is traced; IR to start from needs a compiler",
            ));
        }
        if options.context == 0 {
            options.context = most.min(DEFAULT_CONTEXT);
        }
        if options.threads == 0 {
            options.threads = EngineOptions::default_threads();
        }
        let numerics = options.numerics.unwrap_or(match model.quantized() {
            true => Numerics::Fast,
            false => Numerics::Strict,
        });
        let machine: Box<dyn Machine> = match options.backend.generator() {
            None => Box::new(interp::Interp::new(&model)?),
            Some(backend) => Box::new(jit::Jit::new(model.clone(), backend, &options, numerics)?),
        };
        let mut kv = PagedKv::new(options.context.div_ceil(PAGE), PAGE, options.context)?;
        let sequence = kv.start();
        let outputs = model.text.outputs.iter().map(|_| AlignedBytes::new(0, "an output")).collect::<Result<_, _>>()?;
        // Steps of one token allocate nothing: what grows with the sequence has its room from the beginning.
        let history = Vec::with_capacity(options.context);
        let pages = Vec::with_capacity(options.context.div_ceil(PAGE));
        let (inputs, stats) = (StepInputs { pages, ..StepInputs::default() }, Stats::default());
        Ok(Engine {
            model,
            machine,
            options,
            numerics,
            kv,
            sequence,
            history,
            expected: 0,
            inputs,
            types: vec![],
            tokens: vec![],
            rows: vec![],
            span: vec![],
            row: vec![],
            outputs,
            stats,
            recorded: None,
        })
    }

    /// The model.
    pub fn model(&self) -> &LoadedModel {
        &self.model
    }

    /// What the passes of each compiled function did, where they were watched.
    pub fn reports(&self) -> &[(Bucket, Reports)] {
        self.machine.reports()
    }

    /// The model, to keep beside a running engine.
    pub fn shared_model(&self) -> Arc<LoadedModel> {
        self.model.clone()
    }

    /// The options, with defaults filled in.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// What may happen to numbers.
    pub fn numerics(&self) -> Numerics {
        self.numerics
    }

    /// Most tokens that the sequence can have.
    pub fn context(&self) -> usize {
        self.options.context
    }

    /// Tokens in the cache.
    pub fn history(&self) -> &[u32] {
        &self.history
    }

    /// Times and counts so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Compiles the functions for one token and for many now. One for few, where there is such, is compiled when it is first needed.
    ///
    /// # Errors
    /// If a pass or code generation fails, or memory can not be had.
    pub fn prepare(&mut self) -> Result<(), Error> {
        self.machine.prepare(Bucket::Prefill, &mut self.stats)?;
        self.machine.prepare(Bucket::Decode, &mut self.stats)
    }

    /// Says how long the sequence will get at least. Models whose rotation depends on the length compute the first tokens as part
    /// of a sequence of that length; otherwise the length after each step counts.
    pub fn expect(&mut self, tokens: usize) {
        self.expected = tokens;
    }

    /// Empties the cache.
    ///
    /// # Errors
    /// None in practice; the cache's bookkeeping could refuse.
    pub fn reset(&mut self) -> Result<(), Error> {
        self.keep(0)
    }

    fn is_recurrent(&self) -> bool {
        self.model.text.module.states.iter().any(|s| matches!(s.ty, Ty::Rows(_)))
    }

    /// Recurrent states after the last step, by name, each `[layers, ..]`. Empty for models without.
    ///
    /// # Errors
    /// If there was no step.
    pub fn recurrent_states(&self) -> Result<Vec<RecurrentState>, Error> {
        let mut all: Vec<RecurrentState> = vec![];
        for s in &self.model.text.module.states {
            let Ty::Rows(r) = &s.ty else { continue };
            let name = s.name.rsplit_once('.').map_or(s.name.as_str(), |(name, _)| name);
            let values = self.machine.state(&s.name).ok_or_else(|| Error::usage("there was no step yet"))?;
            match all.iter_mut().find(|a| a.name == name) {
                Some(a) => {
                    a.shape[0] += 1;
                    a.values.extend(values);
                }
                None => {
                    let shape = [1].into_iter().chain(r.shape.iter().copied()).collect();
                    all.push(RecurrentState { name: name.to_owned(), shape, values });
                }
            }
        }
        Ok(all)
    }

    /// Keeps the first `len` tokens of the cache.
    fn keep(&mut self, len: usize) -> Result<(), Error> {
        self.expected = 0;
        // Recurrent states have no past to go back to.
        let len = if len < self.history.len() && self.is_recurrent() { 0 } else { len };
        if len < self.history.len() {
            // Pages are never shared here, so there is nothing to copy.
            self.kv.truncate(self.sequence, len)?;
            self.history.truncate(len);
        }
        Ok(())
    }

    /// Keeps what the cache and `tokens` begin with in common, less than all of `tokens`, and gives its length: the rest is to
    /// be computed.
    ///
    /// # Errors
    /// As [`Engine::reset`].
    pub fn reuse(&mut self, tokens: &[u32]) -> Result<usize, Error> {
        let len = common_prefix(&self.history, tokens);
        self.keep(len)?;
        Ok(len.min(self.history.len()))
    }

    /// Adds tokens to the sequence and gives the logits `[rows, vocab]`.
    ///
    /// # Errors
    /// No tokens, a token outside the vocabulary, a full context, or a failure underneath.
    pub fn prefill(&mut self, tokens: &[u32], want: Rows) -> Result<Vec<f32>, Error> {
        let mut all = vec![];
        self.prefill_with(tokens, want, &mut |logits| {
            all.extend_from_slice(logits);
            Ok(())
        })?;
        Ok(all)
    }

    /// As [`Engine::prefill`]; gives the logits to `each` in pieces of whole rows as they are made.
    ///
    /// # Errors
    /// As [`Engine::prefill`], and those of `each`.
    pub fn prefill_with(
        &mut self,
        tokens: &[u32],
        want: Rows,
        each: &mut dyn FnMut(&[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if tokens.is_empty() {
            return Err(Error::usage("there are no tokens; give at least one"));
        }
        self.check(tokens)?;
        self.continues()?;
        let row_bytes = self.width(0).max(1) * size_of::<f32>();
        let chunk = match want {
            Rows::Last => CHUNK,
            Rows::All => (MAX_LOGITS / row_bytes).clamp(1, CHUNK),
        };
        let mut left = tokens.len();
        self.expected = self.expected.max(self.history.len() + left);
        for part in tokens.chunks(chunk) {
            left -= part.len();
            self.step(part, want)?;
            if want == Rows::All || left == 0 {
                each(self.last_logits(part.len(), want))?;
            }
        }
        Ok(())
    }

    /// Adds one token to the sequence and gives the logits after it.
    ///
    /// # Errors
    /// As [`Engine::prefill`].
    pub fn decode(&mut self, token: u32) -> Result<&[f32], Error> {
        self.check(&[token])?;
        self.continues()?;
        self.step(&[token], Rows::Last)?;
        Ok(self.last_logits(1, Rows::Last))
    }

    /// Refuses to continue text with a model that gives vectors.
    fn continues(&self) -> Result<(), Error> {
        match self.model.text.is_encoder() {
            true => Err(Error::usage("the model is an encoder, which does not continue text; use `eval`")),
            false => Ok(()),
        }
    }

    /// Refuses what can not be computed before anything changes.
    fn check(&self, tokens: &[u32]) -> Result<(), Error> {
        let vocab = self.model.text.vocab;
        if let Some(t) = tokens.iter().find(|t| **t as usize >= vocab) {
            return Err(Error::usage(format!("token {t} is outside the vocabulary of {vocab}; check the token ids")));
        }
        let (context, asked) = (self.context(), self.history.len() + tokens.len());
        if asked > context { Err(RuntimeError::Context { context, asked }.into()) } else { Ok(()) }
    }

    /// Numbers per row of an output.
    fn width(&self, output: usize) -> usize {
        self.model.text.outputs.get(output).map_or(0, |o| o.width)
    }

    fn last_logits(&self, tokens: usize, want: Rows) -> &[f32] {
        let rows = if want == Rows::All { tokens } else { 1 };
        self.output(0, rows)
    }

    fn output(&self, i: usize, rows: usize) -> &[f32] {
        let bytes = self.outputs.get(i).map_or(&[][..], |b| b);
        bytemuck::cast_slice(bytes).get(..rows * self.width(i)).unwrap_or_default()
    }

    /// Computes a sequence of its own with an encoder: every output by name, `[tokens, width]`. `types` holds the kind of each
    /// token, or nothing for all 0.
    ///
    /// # Errors
    /// As [`Engine::prefill`]; more tokens than one step takes; kinds that are not one per token.
    pub fn encode(&mut self, tokens: &[u32], types: &[i32]) -> Result<Vec<(String, Vec<f32>)>, Error> {
        if tokens.is_empty() || tokens.len() > CHUNK {
            let what = format!("a sequence of {} tokens; an encoder takes 1 to {CHUNK}", tokens.len());
            return Err(Error::usage(what));
        }
        if !types.is_empty() && types.len() != tokens.len() {
            return Err(Error::usage(format!("{} kinds for {} tokens; give one each", types.len(), tokens.len())));
        }
        self.reset()?;
        self.check(tokens)?;
        self.types = types.to_vec();
        let done = self.step(tokens, Rows::All);
        self.types.clear();
        done?;
        let all = self.model.text.outputs.iter().enumerate();
        Ok(all.map(|(i, o)| (o.name.clone(), self.output(i, tokens.len()).to_vec())).collect())
    }

    fn step(&mut self, tokens: &[u32], want: Rows) -> Result<(), Error> {
        let start = Instant::now();
        let (pack, compile) = (self.stats.pack_s, self.stats.compile_s);
        let n = tokens.len();
        let last = n as i32 - 1;
        self.rows.clear();
        self.rows.extend(if want == Rows::All { 0..=last } else { last..=last });
        for (i, o) in self.model.text.outputs.iter().enumerate() {
            let bytes = self.rows.len() * o.width * size_of::<f32>();
            if self.outputs.get(i).is_some_and(|b| b.len() < bytes) {
                self.outputs[i] = AlignedBytes::new(bytes, "an output")?;
            }
        }
        let before = self.history.len();
        self.kv.append(self.sequence, n)?;
        let done = match self.run(tokens) {
            Ok(done) => done,
            Err(e) => {
                self.kv.truncate(self.sequence, before)?;
                return Err(e);
            }
        };
        self.history.extend_from_slice(tokens);
        let whole = start.elapsed();
        let making = (self.stats.pack_s - pack) + (self.stats.compile_s - compile);
        let seconds = (start.elapsed().as_secs_f64() - making).max(0.0);
        let (count, spent) = match n {
            1 => (&mut self.stats.decode_tokens, &mut self.stats.decode_s),
            _ => (&mut self.stats.prefill_tokens, &mut self.stats.prefill_s),
        };
        *count += n;
        *spent += seconds;
        if let (Some(all), Some(step)) = (&mut self.recorded, done) {
            all.push(Recorded { start, seconds: whole.as_secs_f64(), ..step });
        }
        Ok(())
    }

    fn run(&mut self, tokens: &[u32]) -> Result<Option<Recorded>, Error> {
        let n = tokens.len();
        let len = self.history.len() + n;
        let span = i32::try_from(len.max(self.expected)).unwrap_or(i32::MAX);
        for (input, value) in [(&mut self.span, span), (&mut self.row, 0)] {
            input.clear();
            input.resize(n, value);
        }
        self.tokens.clear();
        self.tokens.extend(tokens.iter().map(|&t| t as i32));
        let pages = len.div_ceil(PAGE);
        self.kv.step(&[(self.sequence, n)], pages, &mut self.inputs)?;
        self.types.resize(n, 0);
        let args = StepArgs {
            tokens: &self.tokens,
            rows: &self.rows,
            span: &self.span,
            types: &self.types,
            row: &self.row,
            kv: &self.inputs,
            timed: self.recorded.is_some(),
        };
        let bytes = self.rows.len() * size_of::<f32>();
        let pairs = self.model.text.outputs.iter().zip(&mut self.outputs);
        let mut outputs: Few<(&str, &mut [u8])> =
            pairs.map(|(o, b)| (o.name.as_str(), &mut b[..bytes * o.width])).collect();
        let timed = self.machine.step(&args, &mut outputs, &mut self.stats)?;
        Ok(timed.map(|t| Recorded::new(&args, t)))
    }
}

/// Length of the common start, less than all of `new`.
fn common_prefix(old: &[u32], new: &[u32]) -> usize {
    let same = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    same.min(new.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::common_prefix;

    #[test]
    fn at_least_one_token_is_computed_again() {
        assert_eq!(common_prefix(&[1, 2, 3], &[1, 2, 4]), 2);
        assert_eq!(common_prefix(&[1, 2, 3], &[1, 2, 3]), 2);
        assert_eq!(common_prefix(&[1, 2, 3], &[1, 2, 3, 4]), 3);
        assert_eq!(common_prefix(&[1, 2], &[]), 0);
        assert_eq!(common_prefix(&[], &[1]), 0);
    }
}

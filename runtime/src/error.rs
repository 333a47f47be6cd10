//! What can go wrong at run time.

use std::io;
use std::path::PathBuf;

/// An error of the runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// A run-time size outside its declared bounds.
    #[error("RUN010: size {name} = {value}, allowed {lo}..={hi}{}", multiple_of(*.multiple))]
    Size {
        /// The symbol.
        name: String,
        /// The value given.
        value: i64,
        /// Smallest value allowed.
        lo: i64,
        /// Largest value allowed.
        hi: i64,
        /// The value must be a multiple of this.
        multiple: i64,
    },
    /// A wrong number of run-time sizes.
    #[error("RUN011: {found} run-time sizes given, the program has {expected}")]
    SizeCount {
        /// Symbols of the program.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// A buffer, extent or offset that does not fit at these sizes.
    #[error("RUN012: {what}")]
    Bounds {
        /// What does not fit, with both numbers.
        what: String,
    },
    /// An input or output that is missing, unknown, given twice, or of the wrong length.
    #[error("RUN013: {what}")]
    Binding {
        /// Which one, with both lengths.
        what: String,
    },
    /// A program that contradicts itself, its code or its weights.
    #[error("RUN020: {what}")]
    Program {
        /// What is wrong where.
        what: String,
    },
    /// Memory could not be had.
    #[error(
        "RUN030: {bytes} bytes for {what} could not be allocated; close other programs or choose a smaller context"
    )]
    Memory {
        /// What the memory was for.
        what: String,
        /// How much was asked for.
        bytes: u64,
    },
    /// Threads could not be started.
    #[error("RUN031: thread {index} of {count} could not be started: {source}")]
    Thread {
        /// The thread.
        index: usize,
        /// Threads asked for.
        count: usize,
        /// Why.
        source: io::Error,
    },
    /// Code on a pool thread panicked.
    #[error("RUN032: worker {worker} panicked: {message}")]
    Panic {
        /// The worker.
        worker: usize,
        /// The panic's message.
        message: String,
    },
    /// A pool was asked to run a job from inside one of its own jobs.
    #[error("RUN033: a pool job may not start another job on the same pool")]
    Nested,
    /// A sequence would grow past the context.
    #[error(
        "RUN040: the context holds {context} tokens, {asked} were asked for; shorten the prompt or raise the context"
    )]
    Context {
        /// Largest number of tokens of one sequence.
        context: usize,
        /// Tokens the sequence would have had.
        asked: usize,
    },
    /// The cache has no free pages.
    #[error("RUN041: {needed} cache pages are needed, {free} of {total} are free; end a sequence or enlarge the cache")]
    Pages {
        /// Pages asked for.
        needed: usize,
        /// Pages free.
        free: usize,
        /// Pages in all.
        total: usize,
    },
    /// A sequence number that is not in use, or not usable here.
    #[error("RUN042: {what}")]
    Sequence {
        /// What is wrong.
        what: String,
    },
    /// A sampling parameter outside its range.
    #[error("RUN050: {name} = {value}, allowed {allowed}")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// The value given.
        value: String,
        /// The values allowed.
        allowed: &'static str,
    },
    /// Logits that can not be sampled.
    #[error("RUN051: {what}")]
    Logits {
        /// What is wrong with them.
        what: String,
    },
    /// A file operation failed.
    #[error("RUN060: {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn multiple_of(m: i64) -> String {
    if m > 1 { format!(" in multiples of {m}") } else { String::new() }
}

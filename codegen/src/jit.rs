//! What the backends have in common: options, errors, and machine code in memory.

use std::any::Any;
use std::sync::atomic::{AtomicUsize, Ordering};

use marquetry_ir::Syms;
use marquetry_ir::loops::verify::verify;
use marquetry_ir::loops::{Kernel, MicroOp, Routine};
use marquetry_ir::program::KernelFn;
use thiserror::Error;

/// Most bytes that a kernel's `Local` buffers take of its thread's stack.
pub(crate) const MAX_LOCAL: i64 = 512 << 10;

/// Why a kernel could not be translated; the caller adds the kernel's name.
pub(crate) type R<T> = Result<T, String>;

/// A code generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Cranelift: quick, always there, vectors of 128 bits.
    Cranelift,
    /// LLVM: slower to compile, vectors as wide as the machine's. Built with the cargo feature `llvm`.
    Llvm,
}

impl Backend {
    /// All, built or not.
    pub const ALL: [Backend; 2] = [Backend::Cranelift, Backend::Llvm];

    /// Its name in options.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Cranelift => "cranelift",
            Backend::Llvm => "llvm",
        }
    }

    /// Is it part of this build?
    pub fn is_built(self) -> bool {
        self != Backend::Llvm || cfg!(feature = "llvm")
    }
}

/// Why kernels were not compiled.
#[derive(Debug, Error)]
pub enum CodegenError {
    /// The kernel is not well formed.
    #[error("kernel `{kernel}` is not well formed: {what}")]
    Invalid {
        /// The kernel's name.
        kernel: String,
        /// All faults.
        what: String,
    },
    /// The kernel asks for something that this backend does not do.
    #[error("kernel `{kernel}`: {what}")]
    Unsupported {
        /// The kernel's name.
        kernel: String,
        /// What was asked for.
        what: String,
    },
    /// The compiler library refused the kernel.
    #[error("kernel `{kernel}`: {backend}: {what}")]
    Backend {
        /// The kernel's name.
        kernel: String,
        /// The library.
        backend: &'static str,
        /// Its message.
        what: String,
    },
    /// There is no code generator for the host.
    #[error("no code generator for this machine: {0}")]
    Host(String),
    /// The code could not be placed in memory.
    #[error("placing code in memory: {0}")]
    Memory(String),
    /// The backend is not part of this build.
    #[error(
        "this build has no backend `{0}`; install LLVM 22 with its headers (Debian: `apt-get install llvm-22-dev`) and build \
         with `LLVM_SYS_221_PREFIX=/usr/lib/llvm-22 cargo build --release --features {0}`"
    )]
    NotBuilt(&'static str),
}

/// The routine for a micro-kernel, if there is one.
pub type Routines = fn(&MicroOp) -> Option<Routine>;

/// Choices of code generation.
#[derive(Clone, Debug)]
pub struct Options {
    /// Use what the host CPU offers beyond the baseline of its architecture.
    pub host_features: bool,
    /// Use instructions for products of four bytes, where the host has them.
    pub dot_instructions: bool,
    /// Assume that f16 inputs are finite: infinities and NaNs may then read as numbers of 2^16 and more.
    pub finite_f16: bool,
    /// Finds the routine for a micro-kernel on this machine; where there is none, its loops are compiled.
    pub routines: Routines,
    /// Check the kernels and the generated code of the backend's own IR.
    pub verify: bool,
    /// Keep the assembly text of every kernel.
    pub disassemble: bool,
    /// Threads that compile; 0 for one per CPU.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            host_features: true,
            dot_instructions: true,
            finite_f16: false,
            routines: |_| None,
            verify: cfg!(debug_assertions),
            disassemble: false,
            threads: 0,
        }
    }
}

/// Compiled kernels. The code lives as long as this value.
pub struct JitModule {
    pub(crate) kernels: Vec<Entry>,
    /// Owns the code.
    pub(crate) _code: Box<dyn Any + Send + Sync>,
}

pub(crate) struct Entry {
    pub run: KernelFn,
    pub asm: Option<String>,
}

impl JitModule {
    /// Entry point of a kernel, by its position in the list that was compiled. Valid as long as the module lives.
    pub fn kernel(&self, i: usize) -> KernelFn {
        self.kernels[i].run
    }

    /// Number of kernels.
    pub fn len(&self) -> usize {
        self.kernels.len()
    }

    /// Are there no kernels?
    pub fn is_empty(&self) -> bool {
        self.kernels.is_empty()
    }

    /// Assembly text of a kernel, where [`Options::disassemble`] asked for it.
    pub fn asm(&self, i: usize) -> Option<&str> {
        self.kernels[i].asm.as_deref()
    }
}

/// Compiles kernels for the host. `syms` declares the sizes they use.
///
/// # Errors
/// A kernel that is not well formed, or that the backend can not spell; a machine without code generator; a backend that was
/// not built.
pub fn compile(backend: Backend, kernels: &[Kernel], syms: &Syms, opts: &Options) -> Result<JitModule, CodegenError> {
    if opts.verify {
        check(kernels, syms)?;
    }
    match backend {
        Backend::Cranelift => crate::cranelift::compile(kernels, opts),
        #[cfg(feature = "llvm")]
        Backend::Llvm => crate::llvm::compile(kernels, opts),
        #[cfg(not(feature = "llvm"))]
        Backend::Llvm => Err(CodegenError::NotBuilt(backend.name())),
    }
}

fn check(kernels: &[Kernel], syms: &Syms) -> Result<(), CodegenError> {
    for k in kernels {
        let faults = verify(k, syms);
        if !faults.is_empty() {
            let what = faults.iter().map(|e| e.to_string()).collect::<Vec<_>>().join("; ");
            return Err(CodegenError::Invalid { kernel: k.name.clone(), what });
        }
    }
    Ok(())
}

/// Threads that compile this many pieces.
pub(crate) fn threads(opts: &Options, pieces: usize) -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    if opts.threads == 0 { cpus } else { opts.threads }.min(pieces).max(1)
}

/// Applies `one` to every item on some threads; results in order, or the first error.
pub(crate) fn on_threads<T: Sync, U: Send>(
    items: &[T],
    threads: usize,
    one: impl Fn(&T) -> Result<U, CodegenError> + Sync,
) -> Result<Vec<U>, CodegenError> {
    if threads <= 1 {
        return items.iter().map(one).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(i) else { break };
            done.push((i, one(item)));
        }
        done
    };
    let mut all: Vec<(usize, Result<U, CodegenError>)> = std::thread::scope(|s| {
        let handles: Vec<_> = (0..threads).map(|_| s.spawn(work)).collect();
        handles.into_iter().flat_map(|h| h.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    });
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, c)| c).collect()
}

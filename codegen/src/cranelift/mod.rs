//! Machine code in memory by Cranelift, for x86-64 and aarch64 hosts.
//!
//! Kernels come scheduled: vector widths, register tiles and unrolling are given. What is left is done here in one walk:
//! pieces of 128 bits, value numbering, hoisting of invariants, and the choice of instructions for products of bytes.

mod dot;
mod expr;
mod func;
mod half;
mod index;
mod regs;
mod stmt;
mod vector;

use std::mem::transmute;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{AbiParam, Function, InstBuilder, Signature, StackSlotData, StackSlotKind, types};
use cranelift_codegen::isa::{self, CallConv, OwnedTargetIsa, TargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_codegen::{Context, FinalizedMachReloc};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{FuncId, Linkage, Module, ModuleReloc, default_libcall_names};
use marquetry_ir::Syms;
use marquetry_ir::loops::legalize::legalize;
use marquetry_ir::loops::verify::verify;
use marquetry_ir::loops::{Buf, Kernel, Scope};
use marquetry_ir::program::KernelFn;
use thiserror::Error;

use dot::DotForm;
use func::Cx;

/// Most bytes that a kernel's `Local` buffers take of its thread's stack.
const MAX_LOCAL: i64 = 512 << 10;

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
    /// Cranelift refused the kernel.
    #[error("kernel `{kernel}`: cranelift: {what}")]
    Backend {
        /// The kernel's name.
        kernel: String,
        /// Its message.
        what: String,
    },
    /// There is no code generator for the host.
    #[error("no code generator for this machine: {0}")]
    Host(String),
    /// The code could not be placed in memory.
    #[error("placing code in memory: {0}")]
    Memory(String),
}

/// Choices of code generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CraneliftOptions {
    /// Use what the host CPU offers beyond the baseline of its architecture.
    pub host_features: bool,
    /// Use instructions for products of four bytes, where the host has them.
    pub dot_instructions: bool,
    /// Assume that f16 inputs are finite: infinities and NaNs then read as numbers of 2^16 and more.
    pub finite_f16: bool,
    /// Check the kernels and the generated Cranelift IR.
    pub verify: bool,
    /// Keep the assembly text of every kernel.
    pub disassemble: bool,
    /// Threads that compile; 0 for one per CPU.
    pub threads: usize,
}

impl Default for CraneliftOptions {
    fn default() -> CraneliftOptions {
        CraneliftOptions {
            host_features: true,
            dot_instructions: true,
            finite_f16: false,
            verify: cfg!(debug_assertions),
            disassemble: false,
            threads: 0,
        }
    }
}

/// What the translation depends on.
#[derive(Clone, Copy, Debug)]
struct Features {
    dot: DotForm,
    finite_f16: bool,
    /// Vector loads of floats must not become memory operands.
    keep_loads_apart: bool,
}

/// Compiled kernels. The code lives as long as this value.
pub struct JitModule {
    /// Taken when dropped.
    code: Mutex<Option<JITModule>>,
    kernels: Vec<Entry>,
}

struct Entry {
    run: KernelFn,
    size: usize,
    asm: Option<String>,
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

    /// Assembly text of a kernel, where [`CraneliftOptions::disassemble`] asked for it.
    pub fn asm(&self, i: usize) -> Option<&str> {
        self.kernels[i].asm.as_deref()
    }

    /// Bytes of machine code, all kernels together.
    pub fn code_size(&self) -> usize {
        self.kernels.iter().map(|k| k.size).sum()
    }
}

impl Drop for JitModule {
    fn drop(&mut self) {
        let code = match self.code.get_mut() {
            Ok(c) => c.take(),
            Err(e) => e.into_inner().take(),
        };
        if let Some(code) = code {
            // SAFETY: entry points are documented to be valid only while this module lives.
            unsafe { code.free_memory() };
        }
    }
}

/// Compiles kernels for the host. `syms` declares the sizes they use.
pub fn compile(kernels: &[Kernel], syms: &Syms, opts: &CraneliftOptions) -> Result<JitModule, CodegenError> {
    if opts.verify {
        for k in kernels {
            let faults = verify(k, syms);
            if !faults.is_empty() {
                let what = faults.iter().map(|e| e.to_string()).collect::<Vec<_>>().join("; ");
                return Err(CodegenError::Invalid { kernel: k.name.clone(), what });
            }
        }
    }
    let isa = target(opts)?;
    let features = features(&*isa, opts);
    let done = compile_all(kernels, &*isa, features, opts)?;

    let memory = |e: cranelift_module::ModuleError| CodegenError::Memory(e.to_string());
    let mut module = JITModule::new(JITBuilder::with_isa(isa, default_libcall_names()));
    let mut ids = Vec::new();
    for (i, c) in done.iter().enumerate() {
        let name = format!("kernel{i}");
        let id = module.declare_function(&name, Linkage::Local, &c.func.signature).map_err(memory)?;
        let relocs: Vec<_> = c.relocs.iter().map(|r| ModuleReloc::from_mach_reloc(r, &c.func, id)).collect();
        module.define_function_bytes(id, c.align.max(32), &c.code, &relocs).map_err(memory)?;
        ids.push(id);
    }
    module.finalize_definitions().map_err(memory)?;
    let entry = |(id, c): (FuncId, Compiled)| {
        let code = module.get_finalized_function(id);
        // SAFETY: the code at this address was compiled with the signature of `KernelFn`.
        let run = unsafe { transmute::<*const u8, KernelFn>(code) };
        Entry { run, size: c.code.len(), asm: c.asm }
    };
    let kernels = ids.into_iter().zip(done).map(entry).collect();
    Ok(JitModule { code: Mutex::new(Some(module)), kernels })
}

/// Assembly text of one kernel for another machine: `triple` as in `aarch64-unknown-linux`, `features` by Cranelift's names.
pub fn assembly(
    kernel: &Kernel,
    triple: &str,
    features_on: &[&str],
    opts: &CraneliftOptions,
) -> Result<String, CodegenError> {
    let host = |e: &dyn std::fmt::Display| CodegenError::Host(e.to_string());
    let mut builder = isa::lookup_by_name(triple).map_err(|e| host(&e))?;
    for f in features_on {
        builder.enable(f).map_err(|e| host(&e))?;
    }
    let isa = builder.finish(flags(opts)?).map_err(|e| host(&e))?;
    let opts = CraneliftOptions { disassemble: true, ..opts.clone() };
    let c = compile_one(kernel, &*isa, features(&*isa, &opts), &opts)?;
    Ok(c.asm.unwrap_or_default())
}

fn flags(opts: &CraneliftOptions) -> Result<settings::Flags, CodegenError> {
    let mut flags = settings::builder();
    let verify = if opts.verify { "true" } else { "false" };
    // The schedule is the optimizer; Cranelift's would undo its order.
    for (name, value) in
        [("opt_level", "none"), ("is_pic", "false"), ("use_colocated_libcalls", "false"), ("enable_verifier", verify)]
    {
        flags.set(name, value).map_err(|e| CodegenError::Host(e.to_string()))?;
    }
    Ok(settings::Flags::new(flags))
}

fn target(opts: &CraneliftOptions) -> Result<OwnedTargetIsa, CodegenError> {
    let host = |e: &dyn std::fmt::Display| CodegenError::Host(e.to_string());
    let mut isa = cranelift_native::builder_with_options(opts.host_features).map_err(|e| host(&e))?;
    if !opts.dot_instructions && opts.host_features {
        let names: &[&str] = if cfg!(target_arch = "x86_64") {
            &["has_avx_vnni", "has_avx512vnni"]
        } else if cfg!(target_arch = "aarch64") {
            &["has_dotprod", "has_i8mm"]
        } else {
            &[]
        };
        for name in names {
            isa.set(name, "false").map_err(|e| host(&e))?;
        }
    }
    isa.finish(flags(opts)?).map_err(|e| host(&e))
}

fn features(isa: &dyn TargetIsa, opts: &CraneliftOptions) -> Features {
    let flags = isa.isa_flags();
    let has = |name: &str| flags.iter().any(|f| f.name == name && f.as_bool() == Some(true));
    let x86 = isa.name() == "x64";
    let vnni = has("has_avx_vnni") || has("has_avx512vnni") && has("has_avx512vl");
    let dot = if x86 && !vnni && has("has_ssse3") {
        DotForm::Pairs
    } else if has("has_i8mm") {
        DotForm::UnsignedFirst
    } else if isa.name() == "aarch64" {
        DotForm::SignedTree
    } else {
        DotForm::Tree
    };
    Features { dot, finite_f16: opts.finite_f16, keep_loads_apart: x86 && !has("has_avx") }
}

/// A kernel's code before it has an address.
struct Compiled {
    func: Function,
    code: Vec<u8>,
    align: u64,
    relocs: Vec<FinalizedMachReloc>,
    asm: Option<String>,
}

fn compile_all(
    kernels: &[Kernel],
    isa: &dyn TargetIsa,
    features: Features,
    opts: &CraneliftOptions,
) -> Result<Vec<Compiled>, CodegenError> {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = if opts.threads == 0 { cpus } else { opts.threads }.min(kernels.len());
    let one = |k: &Kernel| compile_one(k, isa, features, opts);
    if threads <= 1 {
        return kernels.iter().map(one).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(k) = kernels.get(i) else { break };
            done.push((i, one(k)));
        }
        done
    };
    let mut all: Vec<(usize, Result<Compiled, CodegenError>)> = std::thread::scope(|s| {
        let handles: Vec<_> = (0..threads).map(|_| s.spawn(work)).collect();
        handles.into_iter().flat_map(|h| h.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    });
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, c)| c).collect()
}

fn compile_one(
    k: &Kernel,
    isa: &dyn TargetIsa,
    features: Features,
    opts: &CraneliftOptions,
) -> Result<Compiled, CodegenError> {
    let mut legal = k.clone();
    legalize(&mut legal);
    let func =
        translate(&legal, isa, features).map_err(|what| CodegenError::Unsupported { kernel: k.name.clone(), what })?;
    let mut ctx = Context::for_function(func);
    ctx.set_disasm(opts.disassemble);
    if let Err(e) = ctx.compile(isa, &mut ControlPlane::default()) {
        let what = format!("{:?}", e.inner);
        return Err(CodegenError::Backend { kernel: k.name.clone(), what });
    }
    let code = ctx.take_compiled_code().expect("compiled just now");
    Ok(Compiled {
        func: ctx.func,
        code: code.code_buffer().to_vec(),
        align: u64::from(code.buffer.alignment),
        relocs: code.buffer.relocs().to_vec(),
        asm: code.vcode.clone(),
    })
}

/// Cranelift IR of a kernel.
fn translate(k: &Kernel, isa: &dyn TargetIsa, features: Features) -> Result<Function, String> {
    let mut sig = Signature::new(CallConv::triple_default(isa.triple()));
    sig.params = vec![AbiParam::new(types::I64); 4];
    let mut func = Function::with_name_signature(Default::default(), sig);
    let mut shared = FunctionBuilderContext::new();
    let mut b = FunctionBuilder::new(&mut func, &mut shared);
    let entry = b.create_block();
    b.append_block_params_for_function_params(entry);
    b.switch_to_block(entry);
    b.seal_block(entry);
    let p = b.block_params(entry);
    let params = [p[0], p[1], p[2], p[3]];
    let mut cx = Cx::new(k, features, b, params);
    let narrowest = regs::chunks(&k.body);
    let mut local = 0;
    for (i, decl) in k.buffers.iter().enumerate() {
        let buf = Buf(i as u32);
        match decl.scope {
            Scope::Reg => cx.declare_reg(buf, narrowest.get(&buf).copied())?,
            Scope::Local => {
                let len = decl.shape.iter().map(|d| d.as_const()).try_fold(1i64, |p, d| d.map(|d| p.saturating_mul(d)));
                let Some(len) = len else { return Err(format!("shape of local `{}` is no constant", decl.name)) };
                let bytes = len.saturating_mul(decl.dtype.size() as i64);
                local += bytes.clamp(0, MAX_LOCAL + 1);
                if local > MAX_LOCAL {
                    return Err(format!("local buffers take more than {MAX_LOCAL} bytes"));
                }
                let data = StackSlotData::new(StackSlotKind::ExplicitSlot, bytes as u32, 4);
                let slot = cx.b.create_sized_stack_slot(data);
                cx.bases[i] = Some(cx.pure().stack_addr(types::I64, slot, 0));
            }
            _ => {}
        }
    }
    cx.block(&k.body)?;
    cx.b.ins().return_(&[]);
    let Cx { b, .. } = cx;
    b.finalize(isa.frontend_config());
    Ok(func)
}

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

use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{AbiParam, Function, InstBuilder, Signature, StackSlotData, StackSlotKind, types};
use cranelift_codegen::isa::{self, CallConv, OwnedTargetIsa, TargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_codegen::{Context, FinalizedMachReloc};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{FuncId, Linkage, Module, ModuleReloc, ModuleRelocTarget, default_libcall_names};
use marquetry_ir::loops::legalize::legalize;
use marquetry_ir::loops::{Buf, Kernel, MicroOp, Scope, micro};
use marquetry_ir::program::KernelFn;

use crate::facts::{local_bytes, narrowest};
use crate::jit::{CodegenError, Entry, JitModule, Options, on_threads, threads};
use dot::DotForm;
use func::Cx;

/// What the translation depends on.
#[derive(Clone, Copy, Debug)]
struct Features {
    dot: DotForm,
    finite_f16: bool,
    /// Vector loads of floats must not become memory operands.
    keep_loads_apart: bool,
}

/// Owner of the code.
struct Memory(Mutex<Option<JITModule>>);

impl Drop for Memory {
    fn drop(&mut self) {
        let code = match self.0.get_mut() {
            Ok(c) => c.take(),
            Err(e) => e.into_inner().take(),
        };
        if let Some(code) = code {
            // SAFETY: entry points are documented to be valid only while this value lives.
            unsafe { code.free_memory() };
        }
    }
}

/// Namespace of routines in a function's external names; the index counts the micro-kernels that it calls.
const ROUTINES: u32 = 1;

/// Signature of a [`Routine`](marquetry_ir::loops::Routine).
fn call_signature(conv: CallConv) -> Signature {
    let mut s = Signature::new(conv);
    s.params = vec![AbiParam::new(types::I64); 2];
    s
}

/// Compiles kernels for the host.
pub(crate) fn compile(kernels: &[Kernel], opts: &Options) -> Result<JitModule, CodegenError> {
    let isa = target(opts)?;
    let features = features(&*isa, opts);
    let done = on_threads(kernels, threads(opts, kernels.len()), |k| compile_one(k, &*isa, features, opts))?;

    let memory = |e: cranelift_module::ModuleError| CodegenError::Memory(e.to_string());
    let mut builder = JITBuilder::with_isa(isa, default_libcall_names());
    for op in done.iter().flat_map(|c| &c.calls) {
        if let Some(routine) = (opts.routines)(op) {
            builder.symbol(op.to_string(), routine as *const u8);
        }
    }
    let mut module = JITModule::new(builder);
    let routine = call_signature(module.isa().default_call_conv());
    let mut ids = Vec::new();
    for (i, c) in done.iter().enumerate() {
        let name = format!("kernel{i}");
        let id = module.declare_function(&name, Linkage::Local, &c.func.signature).map_err(memory)?;
        let mut relocs: Vec<_> = c.relocs.iter().map(|r| ModuleReloc::from_mach_reloc(r, &c.func, id)).collect();
        for r in &mut relocs {
            if let ModuleRelocTarget::User { namespace: ROUTINES, index } = r.name {
                let name = c.calls[index as usize].to_string();
                let id = module.declare_function(&name, Linkage::Import, &routine).map_err(memory)?;
                r.name = ModuleRelocTarget::user(0, id.as_u32());
            }
        }
        module.define_function_bytes(id, c.align.max(32), &c.code, &relocs).map_err(memory)?;
        ids.push(id);
    }
    module.finalize_definitions().map_err(memory)?;
    let entry = |(id, c): (FuncId, Compiled)| {
        let code = module.get_finalized_function(id);
        // SAFETY: the code at this address was compiled with the signature of `KernelFn`.
        let run = unsafe { transmute::<*const u8, KernelFn>(code) };
        Entry { run, asm: c.asm }
    };
    let kernels = ids.into_iter().zip(done).map(entry).collect();
    Ok(JitModule { kernels, _code: Box::new(Memory(Mutex::new(Some(module)))) })
}

/// Assembly text of one kernel for another machine: `triple` as in `aarch64-unknown-linux`, `features` by Cranelift's names.
pub fn assembly(kernel: &Kernel, triple: &str, features_on: &[&str], opts: &Options) -> Result<String, CodegenError> {
    let host = |e: &dyn std::fmt::Display| CodegenError::Host(e.to_string());
    let mut builder = isa::lookup_by_name(triple).map_err(|e| host(&e))?;
    for f in features_on {
        builder.enable(f).map_err(|e| host(&e))?;
    }
    let isa = builder.finish(flags(opts)?).map_err(|e| host(&e))?;
    let opts = Options { disassemble: true, ..opts.clone() };
    let c = compile_one(kernel, &*isa, features(&*isa, &opts), &opts)?;
    Ok(c.asm.unwrap_or_default())
}

fn flags(opts: &Options) -> Result<settings::Flags, CodegenError> {
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

fn target(opts: &Options) -> Result<OwnedTargetIsa, CodegenError> {
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

fn features(isa: &dyn TargetIsa, opts: &Options) -> Features {
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
    /// Micro-kernels whose routines it calls.
    calls: Vec<MicroOp>,
    asm: Option<String>,
}

fn compile_one(k: &Kernel, isa: &dyn TargetIsa, features: Features, opts: &Options) -> Result<Compiled, CodegenError> {
    let mut legal = k.clone();
    micro::expand(&mut legal, &|op| (opts.routines)(&op).is_none());
    legalize(&mut legal);
    let (func, calls) =
        translate(&legal, isa, features).map_err(|what| CodegenError::Unsupported { kernel: k.name.clone(), what })?;
    let mut ctx = Context::for_function(func);
    ctx.set_disasm(opts.disassemble);
    if let Err(e) = ctx.compile(isa, &mut ControlPlane::default()) {
        let what = format!("{:?}", e.inner);
        return Err(CodegenError::Backend { kernel: k.name.clone(), backend: "cranelift", what });
    }
    let code = ctx.take_compiled_code().expect("compiled just now");
    Ok(Compiled {
        func: ctx.func,
        code: code.code_buffer().to_vec(),
        align: u64::from(code.buffer.alignment),
        relocs: code.buffer.relocs().to_vec(),
        calls,
        asm: code.vcode.clone(),
    })
}

/// Bytes of a line of the cache.
const LINE: u32 = 64;

/// Cranelift IR of a kernel, and the micro-kernels whose routines it calls.
fn translate(k: &Kernel, isa: &dyn TargetIsa, features: Features) -> Result<(Function, Vec<MicroOp>), String> {
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
    let narrowest = narrowest(&k.body);
    for (i, bytes) in local_bytes(k)?.into_iter().enumerate().filter(|(i, _)| k.buffers[*i].scope == Scope::Local) {
        // The stack itself is aligned to 16 bytes only. Rows of larger vectors and of tiles should not cross cache lines.
        let line = if bytes >= LINE { LINE } else { 1 };
        let data = StackSlotData::new(StackSlotKind::ExplicitSlot, bytes.saturating_add(line - 1), 4);
        let slot = cx.b.create_sized_stack_slot(data);
        let mut at = cx.pure().stack_addr(types::I64, slot, i32::try_from(line - 1).unwrap_or(0));
        if line > 1 {
            at = cx.pure().band_imm_s(at, -i64::from(line));
        }
        cx.bases[i] = Some(at);
    }
    for (i, _) in k.buffers.iter().enumerate().filter(|(_, d)| d.scope == Scope::Reg) {
        let buf = Buf(i as u32);
        cx.declare_reg(buf, narrowest.get(&buf).copied())?;
    }
    cx.block(&k.body)?;
    cx.b.ins().return_(&[]);
    let Cx { b, calls, .. } = cx;
    b.finalize(isa.frontend_config());
    Ok((func, calls))
}

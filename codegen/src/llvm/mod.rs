//! Machine code by LLVM: in memory for the host, or as objects for other machines.
//!
//! Kernels become text of LLVM's IR, in SSA form with invariants hoisted and equal values shared, at the vector widths of the
//! schedule. LLVM selects instructions and allocates registers; its optimizer does not run, as the schedule is one. No
//! operation has fast-math flags, so results are those of the loop IR bit by bit.

mod dot;
mod expr;
mod func;
mod half;
mod index;
mod stmt;
mod target;
mod vector;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::mem::{ManuallyDrop, transmute};

use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::execution_engine::ExecutionEngine;
use inkwell::memory_buffer::MemoryBuffer;
use inkwell::module::Module;
use inkwell::targets::FileType;
use marquetry_ir::loops::legalize::legalize;
use marquetry_ir::loops::{Buf, Kernel, Scope, micro};
use marquetry_ir::program::KernelFn;

use crate::facts::{local_bytes, narrowest};
use crate::jit::{CodegenError, Entry, JitModule, Options, R, Routines, on_threads, threads};
use func::Cx;
use target::Features;
pub use target::Target;

/// Pieces per thread, so that threads end at about the same time.
const PIECES: usize = 4;

/// Code in memory and what it was made from.
struct Loaded {
    /// Borrows the context, so it goes first.
    engine: ManuallyDrop<ExecutionEngine<'static>>,
    context: *mut Context,
}

// SAFETY: after `load` nothing is called on the engine or the context until both are dropped, by one thread.
unsafe impl Send for Loaded {}
// SAFETY: as above; there is nothing to call on a shared reference.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: both are dropped here only, the borrower first; entry points are documented to live no longer than this.
        unsafe {
            ManuallyDrop::drop(&mut self.engine);
            drop(Box::from_raw(self.context));
        }
    }
}

/// Compiles kernels for the host.
pub(crate) fn compile(kernels: &[Kernel], opts: &Options) -> Result<JitModule, CodegenError> {
    let target = Target::host(opts);
    let threads = threads(opts, kernels.len());
    let per = if opts.disassemble { 1 } else { kernels.len().div_ceil(threads * PIECES).max(1) };
    let pieces: Vec<&[Kernel]> = kernels.chunks(per).collect();
    let loaded = on_threads(&pieces, threads, |piece| load(piece, &target, opts))?;
    let (mut entries, mut code) = (Vec::new(), Vec::new());
    for (e, c) in loaded {
        entries.extend(e);
        code.push(c);
    }
    Ok(JitModule { kernels: entries, _code: Box::new(code) })
}

/// An object file of kernels for a machine, with the symbols of [`symbol`] and the calling convention of [`KernelFn`]. A
/// micro-kernel that the options have a routine for is called by the text of its operation.
///
/// # Errors
/// A machine that LLVM does not know, or a kernel that can not be spelled.
pub fn object(kernels: &[Kernel], target: &Target, opts: &Options) -> Result<Vec<u8>, CodegenError> {
    emit(kernels, target, opts, FileType::Object)
}

/// Assembly text of kernels for a machine; as [`object`].
///
/// # Errors
/// As [`object`].
pub fn assembly(kernels: &[Kernel], target: &Target, opts: &Options) -> Result<String, CodegenError> {
    emit(kernels, target, opts, FileType::Assembly).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn emit(kernels: &[Kernel], target: &Target, opts: &Options, file: FileType) -> Result<Vec<u8>, CodegenError> {
    let machine = target.machine()?;
    let context = Context::create();
    let names: Vec<String> = kernels.iter().map(symbol).collect();
    let module = parse(&context, kernels, &names, target, opts)?;
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    let bytes = machine.write_to_memory_buffer(&module, file).map_err(|e| refused(kernels, &e.to_string()))?;
    Ok(bytes.as_slice().to_vec())
}

/// The symbol of a kernel in an object file.
pub fn symbol(k: &Kernel) -> String {
    format!("marquetry_{}", k.name)
}

/// Puts kernels into memory.
fn load(kernels: &[Kernel], target: &Target, opts: &Options) -> Result<(Vec<Entry>, Loaded), CodegenError> {
    let asm = match opts.disassemble {
        true => kernels.iter().map(|k| assembly(std::slice::from_ref(k), target, opts).map(Some)).collect(),
        false => Ok(vec![None; kernels.len()]),
    }?;
    let context = Box::into_raw(Box::new(Context::create()));
    // SAFETY: the context is in its box until `Loaded` or the error path below frees it, after all that borrows it.
    let borrowed: &'static Context = unsafe { &*context };
    let names: Vec<String> = (0..kernels.len()).map(|i| format!("kernel{i}")).collect();
    let engine = parse(borrowed, kernels, &names, target, opts).and_then(|module| {
        let engine = module.create_jit_execution_engine(OptimizationLevel::Default);
        let engine = engine.map_err(|e| CodegenError::Memory(e.to_string()))?;
        place_routines(&engine, &module, opts);
        Ok(engine)
    });
    let engine = match engine {
        Ok(e) => e,
        Err(e) => {
            // SAFETY: nothing borrows it any more.
            drop(unsafe { Box::from_raw(context) });
            return Err(e);
        }
    };
    let loaded = Loaded { engine: ManuallyDrop::new(engine), context };
    let mut entries = Vec::new();
    for (name, asm) in names.iter().zip(asm) {
        let address = loaded.engine.get_function_address(name).map_err(|e| refused(kernels, &e.to_string()))?;
        // SAFETY: the code at this address was compiled with the signature of `KernelFn`.
        let run = unsafe { transmute::<usize, KernelFn>(address) };
        entries.push(Entry { run, asm });
    }
    Ok((entries, loaded))
}

/// Gives the routines that a module calls their addresses.
fn place_routines(engine: &ExecutionEngine<'_>, module: &Module<'_>, opts: &Options) {
    for f in module.get_functions().filter(|f| f.count_basic_blocks() == 0) {
        let routine = f.get_name().to_str().ok().and_then(|n| n.parse().ok()).and_then(|op| (opts.routines)(&op));
        if let Some(r) = routine {
            engine.add_global_mapping(&f, r as usize);
        }
    }
}

fn refused(kernels: &[Kernel], what: &str) -> CodegenError {
    let names: Vec<&str> = kernels.iter().map(|k| k.name.as_str()).collect();
    CodegenError::Backend { kernel: names.join("`, `"), backend: "llvm", what: what.into() }
}

fn parse<'a>(
    context: &'a Context,
    kernels: &[Kernel],
    names: &[String],
    target: &Target,
    opts: &Options,
) -> Result<Module<'a>, CodegenError> {
    // The parser reads up to a zero behind the end.
    let text = print(kernels, names, target, opts.routines)? + "\0";
    let buffer = MemoryBuffer::create_from_memory_range(&text.as_bytes()[..text.len() - 1], "kernels");
    let module = context.create_module_from_ir(buffer).map_err(|e| refused(kernels, &e.to_string()))?;
    if opts.verify {
        module.verify().map_err(|e| refused(kernels, &e.to_string()))?;
    }
    Ok(module)
}

/// LLVM IR of kernels.
///
/// # Errors
/// A kernel that can not be spelled.
pub fn text(kernels: &[Kernel], target: &Target) -> Result<String, CodegenError> {
    print(kernels, &kernels.iter().map(symbol).collect::<Vec<_>>(), target, |_| None)
}

fn print(kernels: &[Kernel], names: &[String], target: &Target, routines: Routines) -> Result<String, CodegenError> {
    let features = target.translation();
    let buffers = kernels.iter().map(|k| k.buffers.len()).max().unwrap_or(0);
    let mut declares = BTreeSet::new();
    let mut out = String::new();
    for (k, name) in kernels.iter().zip(names) {
        let mut legal = k.clone();
        micro::expand(&mut legal, &|op| routines(&op).is_none());
        legalize(&mut legal);
        half::expand(&mut legal, &features);
        let body = function(&legal, &features, &mut declares, buffers)
            .map_err(|what| CodegenError::Unsupported { kernel: k.name.clone(), what })?;
        let name = quoted(name);
        let _ =
            writeln!(out, "define void @{name}(ptr %args, ptr %sizes, i64 %begin, i64 %end) #0 {{\nentry:\n{body}}}\n");
    }
    for d in &declares {
        let _ = writeln!(out, "{d}");
    }
    let attribute = |key: &str, v: &str| if v.is_empty() { String::new() } else { format!(" \"{key}\"={}", quoted(v)) };
    let (cpu, more) = (attribute("target-cpu", &target.cpu), attribute("target-features", &target.features));
    let _ = writeln!(out, "attributes #0 = {{ nounwind{cpu}{more} }}");
    metadata(&mut out, buffers);
    Ok(out)
}

/// A name or string in quotes.
fn quoted(text: &str) -> String {
    let escaped = text.bytes().map(|b| match b {
        b'"' | b'\\' | 0..0x20 | 0x7f.. => format!("\\{b:02X}"),
        b => char::from(b).to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

/// A domain, then per buffer its scope, the list of that scope, the list of all others; then the empty node.
fn metadata(out: &mut String, buffers: usize) {
    let node = |out: &mut String, items: &mut dyn Iterator<Item = usize>| {
        let items: Vec<String> = items.map(|i| format!("!{i}")).collect();
        let _ = writeln!(out, "!{{{}}}", items.join(", "));
    };
    out.push_str("!0 = distinct !{!0}\n");
    for b in 0..buffers {
        let _ = writeln!(out, "!{} = distinct !{{!{}, !0}}", 1 + b, 1 + b);
    }
    for b in 0..buffers {
        let _ = write!(out, "!{} = ", 1 + buffers + b);
        node(out, &mut [1 + b].into_iter());
    }
    for b in 0..buffers {
        let _ = write!(out, "!{} = ", 1 + 2 * buffers + b);
        node(out, &mut (0..buffers).filter(|o| *o != b).map(|o| 1 + o));
    }
    let _ = writeln!(out, "!{} = !{{}}", 1 + 3 * buffers);
}

/// The body of a kernel's function.
fn function(k: &Kernel, features: &Features, declares: &mut BTreeSet<String>, buffers: usize) -> R<String> {
    let mut cx = Cx::new(k, features, declares, buffers);
    let narrowest = narrowest(&k.body);
    let locals = local_bytes(k)?;
    for (i, decl) in k.buffers.iter().enumerate() {
        let buf = Buf(i as u32);
        match decl.scope {
            Scope::Reg => cx.declare_reg(buf, narrowest.get(&buf).copied())?,
            Scope::Local => cx.bases[i] = Some(cx.alloca(locals[i])),
            _ => {}
        }
    }
    cx.block(&k.body)?;
    cx.line("ret void");
    Ok(cx.pop().text)
}

//! Compiled functions: a program with its code and weights, checked once so that running it can not leave its buffers.
//!
//! What is checked when a function is made: every index; the argument count, element types and extents of each launch
//! against its kernel; that weights and inputs are only read; that arena and weight ranges lie inside their memory for every
//! admissible size. What interval arithmetic can not decide for all sizes becomes a guard, evaluated whenever the sizes
//! change. Index expressions inside kernels are the compiler's responsibility.

use std::any::Any;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use marquetry_ir::loops::{BufDecl, Expr, Scope};
use marquetry_ir::program::{Buffer, KernelFn, Place, Program, State, elements};
use marquetry_ir::{DType, Dim, Proof, Syms};

use crate::RuntimeError;
use crate::exec::Frame;
use crate::extent::check_extent;
use crate::memory::{WeightData, eval_bytes};

/// Chunks that a thread takes of a parallel loop by default.
const CHUNKS: i64 = 4;
/// The same, at most.
const MAX_CHUNKS: i64 = 1 << 10;
/// What threads have for themselves begins at multiples of this many bytes: two cache lines, which some processors fetch together.
const OWN_ALIGN: u64 = 128;
/// Alignment of every pointer a kernel gets, in bytes.
pub const KERNEL_ALIGN: u64 = 16;

/// Compiled kernels and whatever keeps their machine code in memory.
pub struct Code {
    pub(crate) kernels: Vec<KernelFn>,
    _keep: Box<dyn Any + Send + Sync>,
}

impl Code {
    /// Kernels in the order of the program they were compiled from; `keep` owns their code.
    ///
    /// # Safety
    /// While `keep` lives, every function must implement the kernel of the same position in the program that the code is
    /// used with: it accesses only its arguments, inside their declared shapes, and writes only `Out` and `InOut` ones.
    pub unsafe fn new(kernels: Vec<KernelFn>, keep: Box<dyn Any + Send + Sync>) -> Code {
        Code { kernels, _keep: keep }
    }

    /// Number of kernels.
    pub fn len(&self) -> usize {
        self.kernels.len()
    }

    /// Are there no kernels?
    pub fn is_empty(&self) -> bool {
        self.kernels.is_empty()
    }
}

/// A kernel call, ready to be made.
pub(crate) struct Call {
    pub kernel: u32,
    /// First entry in the pointer table.
    pub args: u32,
    pub sync: bool,
    /// Every thread makes it.
    pub own: bool,
    /// Entries of the table that are weights, and their bytes, if an iteration reads the rows that stand at its place.
    pub weights: Vec<(u32, u64)>,
    /// The next product, for whose weights threads ask while they wait to make this call.
    pub ask: Option<u32>,
}

/// The arguments of every launch, as far as they do not depend on memory given later.
pub(crate) struct Table(pub Vec<*mut u8>);

// SAFETY: the pointers are only copied; kernels dereference them during a run.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

/// An input or output: the buffers that share a name.
pub(crate) struct Port {
    pub name: String,
    pub buffers: Vec<(DType, Vec<Dim>)>,
    /// Entries of the pointer table that point to it.
    pub entries: Vec<u32>,
}

/// Something to check whenever the sizes change.
pub(crate) struct Guard {
    /// Who, for the error.
    pub what: String,
    pub dtype: DType,
    pub shape: Vec<Dim>,
    pub rule: Rule,
}

pub(crate) enum Rule {
    /// The bytes are at most this many.
    AtMost(u64),
    /// The bytes are at most those of another array.
    Within(DType, Vec<Dim>),
    /// The bytes are those of another array.
    Same(DType, Vec<Dim>),
}

impl Guard {
    pub(crate) fn check(&self, sizes: &[i64]) -> Result<(), RuntimeError> {
        let have = eval_bytes(self.dtype, &self.shape, sizes);
        let (limit, exact) = match &self.rule {
            Rule::AtMost(n) => (Some(*n), false),
            Rule::Within(d, s) => (eval_bytes(*d, s, sizes), false),
            Rule::Same(d, s) => (eval_bytes(*d, s, sizes), true),
        };
        match (have, limit) {
            (Some(a), Some(b)) if a == b || (a < b && !exact) => Ok(()),
            (Some(a), Some(b)) => Err(RuntimeError::Bounds {
                what: format!("{} takes {a} bytes, {b} are there at sizes {sizes:?}", self.what),
            }),
            _ => Err(RuntimeError::Bounds { what: format!("{} has no valid extent at sizes {sizes:?}", self.what) }),
        }
    }
}

/// A compiled function, ready to run.
pub struct Function {
    pub(crate) name: String,
    pub(crate) syms: Syms,
    pub(crate) states: Vec<State>,
    pub(crate) arena_bytes: u64,
    /// Bytes from what one thread has for itself to what the next one has.
    pub(crate) own_bytes: u64,
    pub(crate) table: Table,
    pub(crate) kernel_names: Vec<String>,
    /// Extent of the parallel loop, by kernel.
    pub(crate) extents: Vec<Option<Expr>>,
    pub(crate) calls: Vec<Call>,
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
    /// Table entries that point into the arena, and their offsets.
    pub(crate) arena_entries: Vec<(u32, usize)>,
    /// Those that point to what each thread has for itself.
    pub(crate) own_entries: Vec<(u32, usize)>,
    /// Table entries that point to states.
    pub(crate) state_entries: Vec<(u32, u32)>,
    pub(crate) guards: Vec<Guard>,
    pub(crate) code: Code,
    /// Chunks that a thread takes of a parallel loop, about.
    pub(crate) chunks: i64,
    /// The pointer table holds addresses inside these.
    _weights: Vec<Arc<WeightData>>,
    _constants: Vec<WeightData>,
    pub(crate) frame: Mutex<Frame>,
}

/// The bytes of a constant, aligned for kernels.
fn constant(bits: &[u32]) -> Result<WeightData, RuntimeError> {
    let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
    WeightData::copy(&bytes)
}

fn wrong(what: String) -> RuntimeError {
    RuntimeError::Program { what }
}

/// Smallest and largest byte count over all admissible sizes, where interval arithmetic gives one.
fn byte_range(dtype: DType, shape: &[Dim], syms: &Syms) -> Option<(u64, u64)> {
    let mut range = (dtype.size() as u64, dtype.size() as u64);
    for d in shape {
        let (lo, hi) = syms.range(d);
        if lo < 0 || hi == i64::MAX {
            return None;
        }
        range = (range.0.checked_mul(lo as u64)?, range.1.checked_mul(hi as u64)?);
    }
    i64::try_from(range.1).is_ok().then_some(range)
}

struct Checker<'a> {
    program: &'a Program,
    guards: Vec<Guard>,
    seen: HashSet<(u32, u32, usize)>,
}

impl Checker<'_> {
    /// Checks that a shape uses declared symbols only.
    fn shape(&self, shape: &[Dim], who: &str) -> Result<(), RuntimeError> {
        let n = self.program.syms.0.len();
        match shape.iter().flat_map(|d| d.syms()).find(|s| s.0 as usize >= n) {
            Some(s) => Err(wrong(format!("{who} uses symbol ${}, {n} are declared", s.0))),
            None => Ok(()),
        }
    }

    /// `at` plus the bytes of the buffer must not exceed `limit`.
    fn fits(&mut self, b: &Buffer, at: u64, limit: u64, where_: &str) -> Result<(), RuntimeError> {
        let who = format!("buffer `{}` at byte {at} of {where_}", b.name);
        if !at.is_multiple_of(KERNEL_ALIGN) {
            return Err(wrong(format!("{who} is not aligned to {KERNEL_ALIGN} bytes")));
        }
        let Some(room) = limit.checked_sub(at) else {
            return Err(wrong(format!("{who} lies outside its {limit} bytes")));
        };
        match byte_range(b.dtype, &b.shape, &self.program.syms) {
            Some((_, hi)) if hi <= room => Ok(()),
            Some((lo, _)) if lo > room => Err(wrong(format!("{who} takes {lo} bytes or more, {room} are left there"))),
            _ => {
                let (dtype, shape) = (b.dtype, b.shape.clone());
                self.guards.push(Guard { what: who, dtype, shape, rule: Rule::AtMost(room) });
                Ok(())
            }
        }
    }

    /// The array `a` must lie within (or be as large as) the array `b`, both of one element type.
    fn within(
        &mut self,
        who: String,
        dtype: DType,
        a: &[Dim],
        b: &[Dim],
        exact: bool,
        key: (u32, u32, usize),
    ) -> Result<(), RuntimeError> {
        if a == b || !self.seen.insert(key) {
            return Ok(());
        }
        let syms = &self.program.syms;
        if byte_range(dtype, a, syms).is_some()
            && byte_range(dtype, b, syms).is_some()
            && let (Some(x), Some(y)) = (elements(a), elements(b))
        {
            match if exact { syms.prove_eq(&x, &y) } else { syms.prove_le(&x, &y) } {
                Proof::Yes => return Ok(()),
                Proof::No => {
                    return Err(wrong(format!("{who} has {} elements, {} are there", syms.show(&x), syms.show(&y))));
                }
                Proof::Unknown => {}
            }
        }
        let rule = if exact { Rule::Same(dtype, b.to_vec()) } else { Rule::Within(dtype, b.to_vec()) };
        self.guards.push(Guard { what: who, dtype, shape: a.to_vec(), rule });
        Ok(())
    }

    fn buffer(&mut self, i: usize, weights: &[Arc<WeightData>]) -> Result<(), RuntimeError> {
        let program = self.program;
        let b = &program.buffers[i];
        self.shape(&b.shape, &format!("buffer `{}`", b.name))?;
        match &b.place {
            Place::Input(_) | Place::Output(_) => Ok(()),
            Place::Arena(at) => self.fits(b, *at, program.arena_bytes, "the arena"),
            Place::Own(at) => self.fits(b, *at, program.own_bytes, "each thread's own memory"),
            Place::Weight(w, at) => {
                let Some(weight) = weights.get(*w as usize) else {
                    return Err(wrong(format!("buffer `{}` is in weight {w} of {}", b.name, weights.len())));
                };
                self.fits(b, *at, weight.len() as u64, &format!("weight {w}"))
            }
            Place::Constant(c) => {
                let Some(constant) = program.constants.get(*c as usize) else {
                    return Err(wrong(format!("buffer `{}` is constant {c} of {}", b.name, program.constants.len())));
                };
                self.fits(b, 0, 4 * constant.len() as u64, &format!("constant {c}"))
            }
            Place::State(s) => {
                let Some(state) = program.states.get(*s as usize) else {
                    return Err(wrong(format!("buffer `{}` is state {s} of {}", b.name, program.states.len())));
                };
                let who = format!("buffer `{}` of state `{}`", b.name, state.name);
                if state.dtype != b.dtype {
                    return Err(wrong(format!("{who} has element type {}, the state has {}", b.dtype, state.dtype)));
                }
                self.within(who, b.dtype, &b.shape, &state.shape, true, (u32::MAX, i as u32, 0))
            }
        }
    }

    fn argument(&mut self, kernel: u32, arg: usize, decl: &BufDecl, buffer: u32) -> Result<(), RuntimeError> {
        let program = self.program;
        let name = &program.kernels[kernel as usize].name;
        let who = format!("argument `{}` of kernel `{name}`", decl.name);
        let Some(b) = program.buffers.get(buffer as usize) else {
            return Err(wrong(format!("{who} is buffer {buffer} of {}", program.buffers.len())));
        };
        if decl.dtype != b.dtype {
            return Err(wrong(format!("{who} has element type {}, buffer `{}` has {}", decl.dtype, b.name, b.dtype)));
        }
        if decl.scope != Scope::In && matches!(b.place, Place::Input(_) | Place::Weight(..) | Place::Constant(_)) {
            return Err(wrong(format!("{who} is written, but buffer `{}` is read only", b.name)));
        }
        let who = format!("{who} on buffer `{}`", b.name);
        self.within(who, decl.dtype, &decl.shape, &b.shape, false, (kernel, buffer, arg))
    }
}

/// The weights of each product are asked for at the first barrier after the product before it: what lies between leaves memory idle.
fn plan_asking(calls: &mut [Call]) {
    let mut next = None;
    for i in (0..calls.len()).rev() {
        if !calls[i].weights.is_empty() {
            next = Some(i as u32);
        }
        calls[i].ask = next.filter(|_| calls[i].sync);
    }
    let mut asked = None;
    for c in calls {
        match c.ask {
            a if a == asked => c.ask = None,
            a => asked = a.or(asked),
        }
    }
}

impl Function {
    /// Checks a program against its code and weights, and prepares it for running.
    ///
    /// `weights` are the packed bytes of [`Program::weights`], in order. Fails with [`RuntimeError::Program`] where the parts
    /// contradict each other.
    pub fn new(program: Program, code: Code, weights: Vec<Arc<WeightData>>) -> Result<Function, RuntimeError> {
        for (what, have, want) in
            [("kernels", code.kernels.len(), program.kernels.len()), ("weights", weights.len(), program.weights.len())]
        {
            if have != want {
                return Err(wrong(format!("{have} {what} given, program `{}` has {want}", program.name)));
            }
        }
        for d in &program.syms.0 {
            if d.lo > d.hi || d.multiple < 1 {
                return Err(wrong(format!(
                    "size `{}` has the bounds {}..={} and divisor {}",
                    d.name, d.lo, d.hi, d.multiple
                )));
            }
        }
        let constants = program.constants.iter().map(|c| constant(c)).collect::<Result<Vec<_>, _>>()?;
        let mut checker = Checker { program: &program, guards: vec![], seen: HashSet::new() };
        for s in &program.states {
            checker.shape(&s.shape, &format!("state `{}`", s.name))?;
        }
        for i in 0..program.buffers.len() {
            checker.buffer(i, &weights)?;
        }
        for k in &program.kernels {
            for (i, b) in k.buffers.iter().enumerate() {
                checker.shape(&b.shape, &format!("buffer `{}` of kernel `{}`", b.name, k.name))?;
                if i >= k.args() && !matches!(b.scope, Scope::Local | Scope::Reg) {
                    return Err(wrong(format!(
                        "kernel `{}` declares argument `{}` after a local buffer",
                        k.name, b.name
                    )));
                }
            }
            if let Some(e) = k.parallel_extent() {
                check_extent(e, program.syms.0.len(), &k.name)?;
            }
        }

        let mut calls = Vec::with_capacity(program.launches.len());
        let mut table: Vec<*mut u8> = vec![];
        let mut inputs: Vec<Port> = vec![];
        let mut outputs: Vec<Port> = vec![];
        let (mut arena_entries, mut own_entries) = (vec![], vec![]);
        let mut state_entries = vec![];
        for b in &program.buffers {
            let (ports, name) = match &b.place {
                Place::Input(n) => (&mut inputs, n),
                Place::Output(n) => (&mut outputs, n),
                _ => continue,
            };
            let i = ports.iter().position(|p| p.name == *name).unwrap_or_else(|| {
                ports.push(Port { name: name.clone(), buffers: vec![], entries: vec![] });
                ports.len() - 1
            });
            ports[i].buffers.push((b.dtype, b.shape.clone()));
        }
        for l in &program.launches {
            let Some(k) = program.kernels.get(l.kernel.0 as usize) else {
                return Err(wrong(format!("a launch of kernel {} of {}", l.kernel.0, program.kernels.len())));
            };
            if k.args() != l.args.len() {
                return Err(wrong(format!("kernel `{}` is given {} arguments of {}", k.name, l.args.len(), k.args())));
            }
            let first = table.len();
            let own = l.is_own(&program);
            if own && k.parallel_extent().is_some() {
                return Err(wrong(format!("kernel `{}` writes each thread's own memory in a parallel loop", k.name)));
            }
            let mut read = vec![];
            for (i, (id, decl)) in l.args.iter().zip(&k.buffers).enumerate() {
                checker.argument(l.kernel.0, i, decl, id.0)?;
                let place = &program.buffers[id.0 as usize].place;
                if own && decl.scope != Scope::In && !matches!(place, Place::Own(_)) {
                    let what = format!("argument `{}` of kernel `{}`", decl.name, k.name);
                    return Err(wrong(format!("{what} is written by every thread, but is there once")));
                }
                let entry = table.len() as u32;
                let mut pointer = std::ptr::null_mut();
                match place {
                    Place::Input(n) => inputs.iter_mut().filter(|p| p.name == *n).for_each(|p| p.entries.push(entry)),
                    Place::Output(n) => outputs.iter_mut().filter(|p| p.name == *n).for_each(|p| p.entries.push(entry)),
                    Place::State(s) => state_entries.push((entry, *s)),
                    Place::Arena(at) => arena_entries.push((entry, *at as usize)),
                    Place::Own(at) => own_entries.push((entry, *at as usize)),
                    Place::Constant(c) => pointer = constants[*c as usize].as_ptr().cast_mut(),
                    // The range was checked above, so the sum stays inside the weight.
                    Place::Weight(w, at) => {
                        pointer = weights[*w as usize].as_ptr().cast_mut().wrapping_add(*at as usize);
                        if !(pointer as u64).is_multiple_of(KERNEL_ALIGN) {
                            return Err(wrong(format!("weight {w} is not aligned to {KERNEL_ALIGN} bytes")));
                        }
                        let b = &program.buffers[id.0 as usize];
                        read.extend(byte_range(b.dtype, &b.shape, &program.syms).map(|(_, bytes)| (entry, bytes)));
                    }
                }
                table.push(pointer);
            }
            if k.parallel_extent().is_none() {
                read.clear();
            }
            calls.push(Call { kernel: l.kernel.0, args: first as u32, sync: l.sync, own, weights: read, ask: None });
        }
        plan_asking(&mut calls);
        let guards = checker.guards;
        let extents: Vec<_> = program.kernels.iter().map(|k| k.parallel_extent().cloned()).collect();
        let frame = Mutex::new(Frame::new(calls.len(), inputs.len(), outputs.len()));
        Ok(Function {
            name: program.name,
            syms: program.syms,
            states: program.states,
            arena_bytes: program.arena_bytes,
            own_bytes: program
                .own_bytes
                .checked_next_multiple_of(OWN_ALIGN)
                .ok_or_else(|| wrong(format!("each thread needs {} bytes for itself", program.own_bytes)))?,
            table: Table(table),
            kernel_names: program.kernels.into_iter().map(|k| k.name).collect(),
            extents,
            calls,
            inputs,
            outputs,
            arena_entries,
            own_entries,
            state_entries,
            guards,
            code,
            chunks: CHUNKS,
            _weights: weights,
            _constants: constants,
            frame,
        })
    }

    /// With parallel loops handed to threads in about that many chunks each, at least one; by default 4. More even out disturbed
    /// threads, fewer cost less.
    pub fn with_chunks(self, chunks: i64) -> Function {
        Function { chunks: chunks.clamp(1, MAX_CHUNKS), ..self }
    }

    /// Name of the program.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The run-time sizes, in the order in which [`Function::run`] takes their values.
    pub fn syms(&self) -> &Syms {
        &self.syms
    }

    /// The persistent tensors, for [`crate::States::new`].
    pub fn states(&self) -> &[State] {
        &self.states
    }

    /// Bytes of arena that a run needs.
    pub fn arena_bytes(&self) -> u64 {
        self.arena_bytes
    }

    /// Number of kernel launches of a run.
    pub fn launches(&self) -> usize {
        self.calls.len()
    }

    /// Name, element type and shape of every input.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, DType, &[Dim])> {
        self.inputs.iter().map(|p| (p.name.as_str(), p.buffers[0].0, p.buffers[0].1.as_slice()))
    }

    /// Name, element type and shape of every output.
    pub fn outputs(&self) -> impl Iterator<Item = (&str, DType, &[Dim])> {
        self.outputs.iter().map(|p| (p.name.as_str(), p.buffers[0].0, p.buffers[0].1.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_asked_for_once_and_early() {
        let call = |sync, weights: &[u32]| {
            let weights = weights.iter().map(|&entry| (entry, 64)).collect();
            Call { kernel: 0, args: 0, sync, own: false, weights, ask: None }
        };
        // Waits before 1, 3, 4, 5 and 7; products are 2, 5 and 7.
        let mut calls = [
            call(false, &[]),
            call(true, &[]),
            call(false, &[0, 1]),
            call(true, &[]),
            call(true, &[]),
            call(true, &[2]),
            call(false, &[]),
            call(true, &[3]),
            call(true, &[]),
        ];
        plan_asking(&mut calls);
        assert_eq!(calls.map(|c| c.ask), [None, Some(2), None, Some(5), None, None, None, Some(7), None]);
    }
}

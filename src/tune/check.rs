//! Checking a candidate: each of its kernels alone, as machine code, beside the interpreter and beside the untuned kernel.
//!
//! A kernel runs on what a real step gives it where that is known (positions, pages, constants), and on random numbers elsewhere. The
//! interpreter runs the loops as `lower` made them with the default parameters, before any schedule, but of a parallel loop only the
//! first and the last iteration: whole kernels of a real model take it minutes. All elements are compared with the untuned kernel, whose
//! own results are compared with the interpreter's.

use std::collections::HashMap;

use marquetry_codegen::Backend;
use marquetry_ir::DType;
use marquetry_ir::loops::interp::{BufData, run as interpret};
use marquetry_ir::loops::{Expr, Kernel, LoopKind, Scope, Stmt, Var};
use marquetry_ir::program::interp::bytes_at;
use marquetry_ir::program::{Buffer, BufferId, KernelId, Launch, Place, Program, State};
use marquetry_ir::random::Random;
use marquetry_ir::scalars::{decode, encode};
use marquetry_passes::Numerics;
use marquetry_passes::check::{Bound, distance};
use marquetry_passes::eqsat::Exact;
use marquetry_runtime::micro::Routines;
use marquetry_runtime::{Arena, Function, Pool, States};

use crate::Error;
use crate::engine::{Recorded, generate};

/// Of 8-bit results, how many may be one step apart.
const ROUNDED: f64 = 0.01;
/// How far floats may be apart in the mean beside results that round to 8 bits.
const BESIDE_ROUNDED: f32 = 1e-3;
/// The same where they are stored in 16 bits.
const NARROW: f32 = 2e-3;
/// What results start as for the interpreter, so that those it does not reach are known.
const UNTOUCHED: u8 = 0x5b;

/// How kernels are compiled and run.
#[derive(Clone, Copy)]
pub(super) struct How {
    pub backend: Backend,
    pub numerics: Numerics,
    pub routines: Routines,
    pub threads: usize,
    pub seed: u64,
}

/// Checks kernels of candidates against those of the untuned program; each of these is run once.
pub(super) struct Checker {
    how: How,
    /// Loops that no schedule has seen.
    loops: Program,
    untuned: Program,
    /// A step whose sizes and inputs are used.
    step: Recorded,
    pool: Pool,
    known: HashMap<String, Result<Reference, String>>,
}

/// What a kernel is run on, and what the untuned one made of it.
struct Reference {
    args: Vec<BufData>,
    results: Vec<BufData>,
}

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::Exec { what: what.to_string() }
}

impl Checker {
    pub fn new(how: How, loops: Program, untuned: Program, step: Recorded) -> Result<Checker, Error> {
        Ok(Checker { how, loops, untuned, step, pool: Pool::new(how.threads)?, known: HashMap::new() })
    }

    /// What a kernel of a program computes wrong, if anything.
    pub fn kernel(&mut self, program: &Program, name: &str, chunks: i64) -> Result<Option<String>, Error> {
        let Some(kernel) = program.kernels.iter().find(|k| k.name == name) else { return Ok(None) };
        if !self.known.contains_key(name) {
            let made = self.reference(name)?;
            self.known.insert(name.into(), made);
        }
        let of = match self.known.get(name) {
            Some(Ok(of)) => of,
            Some(Err(what)) => return Ok(Some(what.clone())),
            None => return Err(wrong("a reference is missing")),
        };
        let got = self.compiled(program, kernel, &of.args, chunks)?;
        let strict = self.how.numerics == Numerics::Strict;
        Ok(compare(kernel, &of.results, &got, None, strict).err().map(|what| format!("@{name}: {what}")))
    }

    /// Runs the untuned kernel, and compares it with the interpreter.
    fn reference(&self, name: &str) -> Result<Result<Reference, String>, Error> {
        let find = |p: &Program| p.kernels.iter().position(|k| k.name == name);
        let (Some(l), Some(u)) = (find(&self.loops), find(&self.untuned)) else {
            return Ok(Err(format!("@{name}: the untuned program has no such kernel")));
        };
        let args = self.arguments(l)?;
        let results = self.compiled(&self.untuned, &self.untuned.kernels[u], &args, 1)?;
        let kernel = &self.loops.kernels[l];
        let mut want = args.clone();
        for (data, decl) in want.iter_mut().zip(&kernel.buffers) {
            if decl.scope == Scope::Out {
                data.bytes.fill(UNTOUCHED);
            }
        }
        let before = want.clone();
        interpret(&ends(kernel), &self.step.sizes, &mut want).map_err(wrong)?;
        let what = compare(kernel, &want, &results, Some(&before), false);
        Ok(match what {
            Ok(()) => Ok(Reference { args, results }),
            Err(what) => Err(format!("@{name}: the untuned kernel and the interpreter differ: {what}")),
        })
    }

    /// What the first launch of a kernel of the unscheduled program is given.
    fn arguments(&self, kernel: usize) -> Result<Vec<BufData>, Error> {
        let (p, k) = (&self.loops, &self.loops.kernels[kernel]);
        let launch = p.launches.iter().find(|l| l.kernel.0 as usize == kernel);
        let launch = launch.ok_or_else(|| wrong(format!("kernel `{}` is never launched", k.name)))?;
        let mut all = vec![];
        for (decl, id) in k.buffers.iter().zip(&launch.args) {
            let len = bytes_at(decl.dtype, &decl.shape, &self.step.sizes).map_err(wrong)?;
            let place = p.buffers.get(id.0 as usize).map(|b| &b.place);
            let given = match place {
                Some(Place::Input(name)) => {
                    self.step.input(name).map(|v| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
                }
                Some(Place::Constant(c)) => {
                    p.constants.get(*c as usize).map(|c| c.iter().flat_map(|x| x.to_le_bytes()).collect())
                }
                _ => None,
            };
            let mut random = Random::named(self.how.seed, &format!("{}.{}", k.name, decl.name));
            let bytes = match given {
                Some(bytes) if bytes.len() >= len => bytes[..len].to_vec(),
                _ if decl.scope == Scope::Out => vec![0; len],
                _ => numbers(decl.dtype, len, &mut random),
            };
            all.push(BufData { dtype: decl.dtype, bytes });
        }
        Ok(all)
    }

    /// Runs a kernel alone, as machine code, and gives its arguments afterwards.
    fn compiled(
        &self,
        program: &Program,
        kernel: &Kernel,
        args: &[BufData],
        chunks: i64,
    ) -> Result<Vec<BufData>, Error> {
        let alone = alone(program, kernel);
        let sizes = &self.step.sizes;
        let names: Vec<String> = alone.buffers.iter().map(|b| b.name.clone()).collect();
        let code = generate(&alone, self.how.backend, self.how.numerics, self.how.routines)?;
        let f = Function::new(alone, code, vec![])?.with_chunks(chunks);
        let mut states = States::new(f.states(), sizes)?;
        let mut left = args.to_vec();
        let scopes = || names.iter().zip(&kernel.buffers).map(|(n, d)| (n.as_str(), d.scope));
        let mut inputs: Vec<(&str, &[u8])> = vec![];
        let mut outputs: Vec<(&str, &mut [u8])> = vec![];
        for (((name, scope), given), room) in scopes().zip(args).zip(&mut left) {
            match scope {
                Scope::In => inputs.push((name, &given.bytes)),
                Scope::Out => outputs.push((name, &mut room.bytes)),
                _ => {
                    let state = states.get_mut(name).and_then(|s| s.get_mut(..given.bytes.len()));
                    state.ok_or_else(|| wrong("a state does not fit"))?.copy_from_slice(&given.bytes);
                }
            }
        }
        f.run(&self.pool, &mut Arena::default(), &mut states, sizes, &inputs, &mut outputs)?;
        for ((name, scope), room) in scopes().zip(&mut left) {
            if scope == Scope::InOut
                && let Some(state) = states.get(name)
            {
                let n = room.bytes.len();
                room.bytes.copy_from_slice(&state[..n]);
            }
        }
        Ok(left)
    }
}

/// Random contents that any kernel may be given: indices that are computed on the way are 0, bytes of data are in -127..=127.
fn numbers(dtype: DType, len: usize, random: &mut Random) -> Vec<u8> {
    match dtype {
        d if d.is_float() => {
            let values: Vec<f32> = (0..len / d.size()).map(|_| random.normal()).collect();
            encode(d, &values)
        }
        DType::I32 | DType::I64 | DType::Bool => vec![0; len],
        _ => {
            let mut bytes: Vec<u8> = vec![];
            while bytes.len() < len {
                bytes.extend(random.bits().to_le_bytes().map(|b| if b == 0x80 { 0x7f } else { b }));
            }
            bytes.truncate(len);
            bytes
        }
    }
}

/// The kernel with only the first and the last iteration of its parallel loop.
fn ends(kernel: &Kernel) -> Kernel {
    let mut k = kernel.clone();
    let end: Var = k.fresh("end");
    if let [Stmt::For { var, extent, kind: LoopKind::Parallel, body }] = kernel.body.as_slice() {
        let which = Stmt::Let { var: *var, value: Expr::var(end) * (extent.clone() - 1) };
        let body = std::iter::once(which).chain(body.iter().cloned()).collect();
        k.body = vec![Stmt::For { var: end, extent: Expr::idx(2), kind: LoopKind::Serial, body }];
    }
    k
}

/// A program of one launch of a kernel, whose arguments are inputs, outputs and states of their names.
fn alone(p: &Program, kernel: &Kernel) -> Program {
    let (mut buffers, mut states) = (vec![], vec![]);
    for d in &kernel.buffers[..kernel.args()] {
        let place = match d.scope {
            Scope::In => Place::Input(d.name.clone()),
            Scope::Out => Place::Output(d.name.clone()),
            _ => {
                states.push(State { name: d.name.clone(), dtype: d.dtype, shape: d.shape.clone() });
                Place::State(states.len() as u32 - 1)
            }
        };
        buffers.push(Buffer { name: d.name.clone(), dtype: d.dtype, shape: d.shape.clone(), place });
    }
    let args = (0..buffers.len() as u32).map(BufferId).collect();
    Program {
        name: kernel.name.clone(),
        syms: p.syms.clone(),
        weights: vec![],
        constants: vec![],
        states,
        buffers,
        kernels: vec![kernel.clone()],
        launches: vec![Launch { kernel: KernelId(0), args, sync: true }],
        arena_bytes: 0,
        own_bytes: 0,
    }
}

/// Compares what two forms of a kernel leave in its arguments; with `before`, only elements that the first changed. With `bits`, all
/// bits must be equal.
fn compare(
    kernel: &Kernel,
    want: &[BufData],
    got: &[BufData],
    before: Option<&[BufData]>,
    bits: bool,
) -> Result<(), String> {
    let written = || kernel.buffers.iter().enumerate().take(want.len()).filter(|(_, d)| d.scope != Scope::In);
    let rounds = written().any(|(_, d)| d.dtype == DType::I8);
    let mut compared = 0;
    for (i, decl) in written() {
        let size = decl.dtype.size();
        let changed = |at: &usize| {
            let place = at * size..(at + 1) * size;
            before.is_none_or(|b| b[i].bytes[place.clone()] != want[i].bytes[place])
        };
        let at: Vec<usize> = (0..want[i].len()).filter(changed).collect();
        let pick = |data: &BufData| -> Vec<u8> {
            at.iter().flat_map(|at| data.bytes[at * size..(at + 1) * size].iter().copied()).collect()
        };
        let (a, b) = (pick(&want[i]), pick(&got[i]));
        compared += at.len();
        if a == b {
            continue;
        }
        if bits {
            let first = a.chunks(size).zip(b.chunks(size)).position(|(x, y)| x != y).unwrap_or(0);
            return Err(format!("`{}` has other bits, first at [{}]", decl.name, at[first]));
        }
        let [a, b] = [a, b].map(|v| decode(decl.dtype, &v));
        let named = |v: Vec<f32>| vec![(decl.name.clone(), v)];
        let bound = match decl.dtype {
            DType::I8 => {
                stepped(&a, &b).map_err(|what| format!("`{}` {what}", decl.name))?;
                continue;
            }
            DType::F32 if rounds => Bound::Mean(BESIDE_ROUNDED),
            DType::F32 => Bound::of(Exact::Reassociates),
            // A step of bf16 is eight of f16.
            DType::BF16 => Bound::Mean(4.0 * NARROW),
            d if d.is_float() => Bound::Mean(NARROW),
            _ => Bound::Most(0.0),
        };
        distance(&named(a), &named(b), &[bound])?;
    }
    if compared == 0 { Err("nothing could be compared".into()) } else { Ok(()) }
}

/// Rounded numbers: a few may be one step apart.
fn stepped(a: &[f32], b: &[f32]) -> Result<(), String> {
    let far = a.iter().zip(b).map(|(x, y)| (x - y).abs());
    let (most, count) = far.fold((0.0f32, 0usize), |(m, n), d| (m.max(d), n + usize::from(d > 0.0)));
    match most <= 1.0 && count as f64 <= (ROUNDED * a.len() as f64).max(1.0) {
        true => Ok(()),
        false => Err(format!("differs in {count} of {} rounded numbers, by {most} at most", a.len())),
    }
}

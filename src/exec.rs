//! Running IR as it is: either level by its interpreter, programs also as machine code.

use std::collections::BTreeMap;
use std::sync::Arc;

use marquetry_codegen::Backend;
use marquetry_ir::Dim;
use marquetry_ir::graph::Ty;
use marquetry_ir::program::interp::{Memory, bytes_at};
use marquetry_ir::program::{Place, Program};
use marquetry_passes::Numerics;
use marquetry_passes::check::{Inputs, Outcome, pick};
use marquetry_passes::manager::Ir;
use marquetry_runtime::micro::Routines;
use marquetry_runtime::{Arena, Function, Pool, States, WeightData};

use crate::Error;
use crate::engine::generate;
use crate::frontend::safetensors::Safetensors;
use crate::ir::graph::interp::{Data, Tensor};
use crate::ir::{DType, Elem};

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::Exec { what: what.to_string() }
}

/// Shapes of the arguments, by name.
fn arguments(ir: &Ir) -> Vec<(&str, &[Dim])> {
    match ir {
        Ir::Graph(m) => {
            let args = m.entry().into_iter().flat_map(|f| f.args.iter().map(move |(n, v)| (n, f.ty(*v))));
            let tensors = args.filter_map(|(n, t)| match t {
                Ty::Tensor(t) => Some((n.as_str(), t.shape.as_slice())),
                Ty::Kv(_) | Ty::Rows(_) => None,
            });
            tensors.collect()
        }
        Ir::Program(p) => {
            let inputs = p.buffers.iter().filter_map(|b| match &b.place {
                Place::Input(n) => Some((n.as_str(), b.shape.as_slice())),
                _ => None,
            });
            inputs.collect()
        }
    }
}

/// Values of the symbols: as asked for, as given tensors show, or small ones.
fn sizes(
    ir: &Ir,
    wanted: &[(String, i64)],
    given: &[(String, Tensor)],
    seed: u64,
) -> Result<Vec<(String, i64)>, Error> {
    let syms = match ir {
        Ir::Graph(m) => &m.syms,
        Ir::Program(p) => &p.syms,
    };
    let mut sizes: BTreeMap<String, i64> = pick(syms, seed).into_iter().collect();
    for (name, shape) in arguments(ir) {
        let Some((_, t)) = given.iter().find(|(n, _)| n == name) else { continue };
        for (dim, extent) in shape.iter().zip(&t.shape) {
            if let [one] = dim.syms()[..]
                && *dim == Dim::from(one)
            {
                sizes.insert(syms.decl(one).name.clone(), *extent as i64);
            }
        }
    }
    for (name, value) in wanted {
        if sizes.insert(name.clone(), *value).is_none() {
            let near = crate::ir::text::suggest(name, syms.0.iter().map(|d| d.name.as_str()));
            return Err(wrong(format!("no size `{name}`{near}")));
        }
    }
    for d in &syms.0 {
        let v = sizes.get(&d.name).copied().unwrap_or(d.lo);
        if v < d.lo || v > d.hi || v % d.multiple.max(1) != 0 {
            let (lo, hi, by) = (d.lo, d.hi, d.multiple);
            return Err(wrong(format!("size `{}` is {v}; it must be in {lo}..={hi}, a multiple of {by}", d.name)));
        }
    }
    Ok(syms.0.iter().filter_map(|d| sizes.get(&d.name).map(|v| (d.name.clone(), *v))).collect())
}

/// Random inputs, at the sizes asked for.
///
/// # Errors
/// A size out of its bounds, or values too large to interpret.
pub fn random(ir: &Ir, wanted: &[(String, i64)], seed: u64) -> Result<Inputs, Error> {
    Inputs::new(ir, &sizes(ir, wanted, &[], seed)?, seed).map_err(wrong)
}

/// Inputs from a safetensors file: arguments, parameters, and planes of states (zeros where they are missing).
///
/// # Errors
/// A tensor that is missing, surplus, or of another shape or type; and as [`random`].
pub fn read(ir: &Ir, wanted: &[(String, i64)], file: &Safetensors) -> Result<Inputs, Error> {
    let given: Vec<(String, Tensor)> =
        file.tensors().iter().map(|t| (t.name.clone(), host(t.dtype, &t.shape, file.data(t)))).collect();
    let mut inputs = Inputs::new(ir, &sizes(ir, wanted, &given, 0)?, 0).map_err(wrong)?;
    inputs.clear_states();
    let missing: Vec<String> = inputs.required().into_iter().filter(|n| given.iter().all(|(g, _)| g != n)).collect();
    if !missing.is_empty() {
        return Err(wrong(format!("the file lacks {}; add them, or use `--args random:SEED`", missing.join(", "))));
    }
    given.into_iter().try_for_each(|(name, t)| inputs.replace(&name, t)).map_err(wrong)?;
    Ok(inputs)
}

fn host(dtype: DType, shape: &[usize], bytes: &[u8]) -> Tensor {
    let f32s = || bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<_>>();
    let data = match dtype {
        DType::F32 => Data::F32(f32s().into()),
        d if d.is_float() => Data::Bytes(Elem::Scalar(d), bytes.to_vec().into()),
        d => {
            let one = |b: &[u8]| {
                let sign =
                    !matches!(d, DType::U8 | DType::U32 | DType::Bool) && b.last().is_some_and(|b| b & 0x80 != 0);
                let mut raw = [if sign { 0xff } else { 0 }; 8];
                raw[..b.len()].copy_from_slice(b);
                i64::from_le_bytes(raw)
            };
            Data::Int(d, bytes.chunks_exact(d.size()).map(one).collect::<Vec<_>>().into())
        }
    };
    Tensor { shape: shape.to_vec(), data }
}

/// Interprets either level: results, then states, by name.
///
/// # Errors
/// What the interpreter meets.
pub fn interpret(ir: &Ir, inputs: &Inputs) -> Result<Outcome, Error> {
    inputs.run(ir).map_err(wrong)
}

/// Compiles a program to machine code and runs it once.
///
/// A program from a file may reach outside of its buffers; [`interpret`] it on these inputs first, which checks every index.
///
/// # Errors
/// What code generation or the runtime refuse.
pub fn compiled(
    p: &Program,
    inputs: &Inputs,
    backend: Backend,
    numerics: Numerics,
    threads: usize,
) -> Result<Outcome, Error> {
    let mut memory: Memory = inputs.memory(p).map_err(wrong)?;
    let sizes = inputs.sizes_of(p).map_err(wrong)?;
    let weights = memory.weights.iter().map(|w| WeightData::copy(w).map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
    let f = Function::new(p.clone(), generate(p, backend, numerics, Routines::Best)?, weights)?;
    let mut states = States::new(f.states(), &sizes)?;
    for (s, data) in p.states.iter().zip(&memory.states) {
        let room = states.get_mut(&s.name).filter(|r| r.len() >= data.len());
        let room = room.ok_or_else(|| wrong(format!("state `{}` does not fit", s.name)))?;
        room[..data.len()].copy_from_slice(data);
    }
    let mut outputs = vec![];
    for (name, dtype, shape) in f.outputs() {
        outputs.push((name.to_string(), vec![0u8; bytes_at(dtype, shape, &sizes).map_err(wrong)?]));
    }
    let given: Vec<(&str, &[u8])> = memory.inputs.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    let mut made: Vec<(&str, &mut [u8])> = outputs.iter_mut().map(|(n, b)| (n.as_str(), b.as_mut_slice())).collect();
    f.run(&Pool::new(threads)?, &mut Arena::default(), &mut states, &sizes, &given, &mut made)?;
    memory.outputs = outputs.into_iter().collect();
    for (s, data) in p.states.iter().zip(&mut memory.states) {
        if let Some(left) = states.get(&s.name) {
            let n = data.len().min(left.len());
            data[..n].copy_from_slice(&left[..n]);
        }
    }
    Ok(inputs.outcome(p, &memory))
}

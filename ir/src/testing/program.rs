//! A program on the interpreter, made hard for it: launches that do not wait for each other run in the reverse of their order,
//! which any missing `sync` allows, but for what a thread computes for itself, which it has computed before it reads it. Launches
//! that touch the same bytes without waiting are refused, and so are arguments of one launch that overlap.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Inputs, Outcome};
use crate::graph::interp::{Data, Tensor, Val};
use crate::graph::{Module, Ty};
use crate::loops::Scope;
use crate::pack::{pack_weight, packed_len};
use crate::program::interp::{Memory, bytes_at, run};
use crate::program::{Place, Program, Weight};
use crate::scalars::{decode, encode};
use crate::{DType, Elem};

/// The bytes of a tensor as programs read it.
///
/// # Errors
/// A tensor that has no form in memory.
pub fn bytes(t: &Tensor) -> Result<Vec<u8>, String> {
    match &t.data {
        Data::F32(v) => Ok(v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Data::Int(d, v) => Ok(v.iter().flat_map(|x| x.to_le_bytes()[..d.size()].to_vec()).collect()),
        Data::Bytes(_, b) => Ok(b.to_vec()),
        Data::Exact(e, _) => Err(format!("{e} has no form in memory")),
    }
}

/// A tensor from the bytes that a program wrote.
pub fn tensor(dtype: DType, shape: Vec<usize>, raw: &[u8]) -> Tensor {
    let data = match dtype {
        DType::F32 => Data::F32(Arc::new(raw.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect())),
        d if d.is_float() => Data::Bytes(Elem::Scalar(d), Arc::new(raw.to_vec())),
        d => {
            let signed = !matches!(d, DType::U8 | DType::U32 | DType::Bool);
            let int = |c: &[u8]| {
                let fill = if signed && c.last().is_some_and(|b| b >> 7 == 1) { 0xff } else { 0 };
                let mut all = [fill; 8];
                all[..c.len()].copy_from_slice(c);
                i64::from_le_bytes(all)
            };
            Data::Int(d, Arc::new(raw.chunks_exact(d.size()).map(int).collect()))
        }
    };
    Tensor { shape, data }
}

/// A weight as kernels read it, from parameters.
///
/// # Errors
/// A parameter that is missing, or a layout that there is no way to.
pub fn weight(w: &Weight, params: &HashMap<String, Tensor>) -> Result<Vec<u8>, String> {
    let source = |name: &String| {
        let t = params.get(name).ok_or_else(|| format!("no parameter `{name}`"))?;
        Ok((bytes(t)?, if t.shape.len() < 2 { 1 } else { t.shape[0] }))
    };
    let sources = w.sources.iter().map(source).collect::<Result<Vec<_>, String>>()?;
    let parts: Vec<(&[u8], usize)> = sources.iter().map(|(b, n)| (b.as_slice(), *n)).collect();
    let mut out = vec![0; packed_len(w).map_err(|e| e.to_string())?];
    pack_weight(w, &parts, &mut out).map_err(|e| e.to_string())?;
    Ok(out)
}

/// Names, types and extents of the tensors among the entry function's results.
pub fn results(m: &Module, sizes: &[i64]) -> Vec<(String, DType, Vec<usize>)> {
    let Some(f) = m.entry() else { return vec![] };
    let one = |(name, v): &(String, crate::graph::Value)| match f.ty(*v) {
        Ty::Tensor(t) => {
            let shape = t.shape.iter().map(|d| d.eval(|s| sizes[s.0 as usize]).max(0) as usize).collect();
            Some((name.clone(), t.elem.scalar()?, shape))
        }
        Ty::Kv(_) | Ty::Rows(_) => None,
    };
    f.results.iter().filter_map(one).collect()
}

/// Element type of a state.
fn state_type(m: &Module, name: &str) -> DType {
    match m.states.iter().find(|d| d.name == name).map(|d| &d.ty) {
        Some(Ty::Kv(k)) => k.dtype,
        Some(Ty::Rows(r)) => r.dtype,
        _ => DType::F32,
    }
}

/// Keys and values of a state by the names that programs give them.
pub fn planes(m: &Module, states: &HashMap<String, Val>) -> HashMap<String, Vec<u8>> {
    let mut all = HashMap::new();
    for (name, v) in states {
        let dtype = state_type(m, name);
        if let Val::Rows(v, _) = v {
            all.insert(name.clone(), encode(dtype, v));
        }
        if let Val::Kv(kv, _) = v {
            for (plane, suffix) in kv.iter().zip(["_k", "_v"]) {
                all.insert(format!("{name}{suffix}"), encode(dtype, plane));
            }
        }
    }
    all
}

/// Results and states of a program, given the bytes of each.
///
/// # Errors
/// A result or a state that the program does not have.
pub fn outcome(
    m: &Module,
    i: &Inputs,
    output: &dyn Fn(&str) -> Option<Vec<u8>>,
    state: &dyn Fn(&str) -> Option<Vec<u8>>,
) -> Result<Outcome, String> {
    let missing = |what: &str, name: &str| format!("the program has no {what} `{name}`");
    let mut all = Outcome { results: vec![], states: vec![] };
    for (name, dtype, shape) in results(m, &i.sizes) {
        let raw = output(&name).ok_or_else(|| missing("output", &name))?;
        all.results.push(tensor(dtype, shape, &raw));
    }
    let untouched = planes(m, &i.states);
    let mut names: Vec<&String> = i.states.keys().collect();
    names.sort();
    for name in names {
        let plane = |suffix: &str| {
            let name = format!("{name}{suffix}");
            // A state that is only declared is no state of the program.
            state(&name).or_else(|| untouched.get(&name).cloned()).unwrap_or_default()
        };
        let raw = match i.states[name] {
            Val::Rows(..) => plane(""),
            _ => [plane("_k"), plane("_v")].concat(),
        };
        all.states.push((name.clone(), decode(state_type(m, name), &raw)));
    }
    Ok(all)
}

/// Which storage, from, to.
type Range = (String, u64, u64);

/// Storage that each thread has for itself.
const OWN: &str = "own";

fn range(p: &Program, sizes: &[i64], buffer: usize) -> Result<Range, String> {
    let b = &p.buffers[buffer];
    let len = bytes_at(b.dtype, &b.shape, sizes).map_err(|e| e.to_string())? as u64;
    let (storage, at) = match &b.place {
        Place::Arena(at) => ("arena".into(), *at),
        Place::Own(at) => (OWN.into(), *at),
        Place::Weight(i, at) => (format!("weight {i}"), *at),
        other => (format!("{other:?}"), 0),
    };
    Ok((storage, at, at + len))
}

fn overlap(a: &Range, b: &Range) -> bool {
    a.0 == b.0 && a.1 < b.2 && b.1 < a.2
}

/// Bytes that a launch reads and writes.
fn touched(p: &Program, sizes: &[i64], l: usize) -> Result<(Vec<Range>, Vec<Range>), String> {
    let kernel = &p.kernels[p.launches[l].kernel.0 as usize];
    let (mut reads, mut writes) = (vec![], vec![]);
    for (b, decl) in p.launches[l].args.iter().zip(&kernel.buffers) {
        let r = range(p, sizes, b.0 as usize)?;
        if decl.scope != Scope::In && reads.iter().chain(&writes).any(|other| overlap(&r, other))
            || decl.scope == Scope::In && writes.iter().any(|other| overlap(&r, other))
        {
            return Err(format!("launch {l} of `{}`: argument `{}` overlaps another", kernel.name, decl.name));
        }
        if decl.scope == Scope::In { reads.push(r) } else { writes.push(r) }
    }
    Ok((reads, writes))
}

/// Does a later launch read what the threads have computed for themselves in an earlier one?
fn follows(reads: &[Range], earlier: &[Range]) -> bool {
    reads.iter().any(|r| r.0 == OWN && earlier.iter().any(|w| overlap(r, w)))
}

/// The program with launches between two waits in reverse order, as far as they can be.
fn reversed(p: &Program, sizes: &[i64]) -> Result<Program, String> {
    let mut out = p.clone();
    out.launches.clear();
    let mut at = 0;
    while at < p.launches.len() {
        let end = (at + 1..p.launches.len()).find(|j| p.launches[*j].sync).unwrap_or(p.launches.len());
        let all = (at..end).map(|l| touched(p, sizes, l)).collect::<Result<Vec<_>, _>>()?;
        for (i, (_, writes)) in all.iter().enumerate() {
            for (j, (reads, others)) in all.iter().enumerate().filter(|(j, _)| *j != i) {
                let shared = |r: &&Range| j < i || r.0 != OWN;
                if writes.iter().any(|w| reads.iter().filter(shared).chain(others).any(|r| overlap(w, r))) {
                    return Err(format!("launches {} and {} touch the same bytes without waiting", at + i, at + j));
                }
            }
        }
        let mut left: Vec<usize> = (0..all.len()).collect();
        while let Some(next) =
            (0..left.len()).rev().find(|&k| !left[..k].iter().any(|&e| follows(&all[left[k]].0, &all[e].1)))
        {
            out.launches.push(p.launches[at + left.remove(next)].clone());
        }
        at = end;
    }
    Ok(out)
}

/// Runs a lowered program of a module.
///
/// # Errors
/// What the interpreter refuses, launches or arguments that must not overlap.
pub fn run_program(m: &Module, p: &Program, i: &Inputs) -> Result<Outcome, String> {
    let mut planes = planes(m, &i.states);
    let state = |name: &String| planes.remove(name).ok_or_else(|| format!("no state `{name}`"));
    let states = p.states.iter().map(|s| &s.name).map(state).collect::<Result<Vec<_>, _>>()?;
    let weights = p.weights.iter().map(|w| weight(w, &i.params)).collect::<Result<Vec<_>, _>>()?;
    let mut inputs = BTreeMap::new();
    let names = m.entry().map_or(vec![], |f| f.args.iter().map(|(n, _)| n.clone()).collect());
    for (name, v) in names.into_iter().zip(&i.args) {
        if let Val::Tensor(t) = v {
            inputs.insert(name, bytes(t)?);
        }
    }
    let mut memory = Memory { inputs, outputs: BTreeMap::new(), states, weights };
    run(&reversed(p, &i.sizes)?, &i.sizes, &mut memory).map_err(|e| e.to_string())?;
    let state = |name: &str| Some(memory.states[p.states.iter().position(|s| s.name == name)?].clone());
    outcome(m, i, &|name| memory.outputs.get(name).cloned(), &state)
}

//! The data of the page, from IR.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::ir::graph::{Attr, Function, Kind, Module, Op, Ty, print_type};
use crate::ir::program::{Place, Program};
use crate::ir::text::{print_kernel, print_shape};
use crate::ir::{Dim, Syms};
use crate::passes::eqsat::cost::{self, Target};
use crate::passes::manager::{Ir, print};

/// A parameter of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Its name.
    pub name: String,
    /// Extents.
    pub shape: Vec<usize>,
    /// Element type in the file.
    pub elem: String,
    /// Bytes in the file.
    pub bytes: usize,
    /// Layouts that kernels read it in.
    pub packed: String,
}

/// Name, shape, element type and bytes of parameters, with the layouts of the last program.
pub fn weights_of(stages: &[(String, Ir)], given: &[(String, Vec<usize>, String, usize)]) -> Vec<Weight> {
    let mut packed: HashMap<&str, Vec<String>> = HashMap::new();
    if let Some(p) = last_program(stages) {
        for w in &p.weights {
            let others = w.sources.len() - 1;
            let more = match (others, w.interleave) {
                (0, _) => String::new(),
                (n, 0) => format!(", joined with {n}"),
                (n, by) => format!(", {by} rows in turn with {n}"),
            };
            for s in &w.sources {
                packed.entry(s).or_default().push(format!("{}{more}", w.elem));
            }
        }
    }
    let layouts = |name: &str| packed.get(name).map_or(String::new(), |all| all.join("; "));
    let weight = |(name, shape, elem, bytes): &(String, Vec<usize>, String, usize)| Weight {
        packed: layouts(name),
        name: name.clone(),
        shape: shape.clone(),
        elem: elem.clone(),
        bytes: *bytes,
    };
    given.iter().map(weight).collect()
}

fn last_program(stages: &[(String, Ir)]) -> Option<&Program> {
    stages.iter().rev().find_map(|(_, ir)| if let Ir::Program(p) = ir { Some(&**p) } else { None })
}

pub fn weight(w: &Weight) -> Value {
    json!({ "name": w.name, "shape": w.shape, "elem": w.elem, "bytes": w.bytes, "packed": w.packed })
}

pub fn stage(name: &str, ir: &Ir) -> Value {
    let functions: Vec<Value> = match ir {
        Ir::Graph(m) => {
            let mut costs = HashMap::new();
            m.functions.iter().map(|f| function(m, f, &mut costs)).collect()
        }
        Ir::Program(_) => vec![],
    };
    json!({ "name": name, "text": print(ir), "functions": functions, "nodes": ir.nodes() })
}

/// The part of a parameter's name up to its first number, which names the layer.
fn layer(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let at = parts.iter().position(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))?;
    Some(parts[..=at].join("."))
}

/// The layer of each operation: that of the parameters it reads, else that of the operation before.
fn groups(f: &Function) -> Vec<Option<String>> {
    let defs = f.defs();
    let own = |i: usize| {
        let inst = &f.insts[i];
        let name = inst.attrs.first().map_or("", Attr::as_str);
        if inst.op == Op::Param { layer(name) } else { None }
    };
    let mut out: Vec<Option<String>> = vec![];
    let mut current = None;
    for (i, inst) in f.insts.iter().enumerate() {
        let leaves =
            inst.operands.iter().filter_map(|v| defs[v.0 as usize]).filter(|d| f.insts[*d].operands.is_empty());
        let read = leaves.filter_map(own).next().or_else(|| own(i));
        // A parameter outside of any layer ends the layer.
        let ends = inst.op == Op::Param && read.is_none();
        if read.is_some() || ends {
            current = read;
        }
        out.push(current.clone());
    }
    // A state belongs to what reads it first.
    for (i, inst) in f.insts.iter().enumerate().filter(|(_, inst)| inst.op == Op::State) {
        let reads = |u: &crate::ir::graph::Inst| u.operands.iter().any(|v| inst.results.contains(v));
        out[i] = f.insts.iter().position(reads).and_then(|u| out[u].clone());
    }
    out
}

fn attributes(syms: &Syms, op: Op, attrs: &[Attr]) -> String {
    let show = |a: &Attr| match a {
        Attr::Int(v) => v.to_string(),
        Attr::Float(_) => a.as_f32().to_string(),
        Attr::Bool(b) => b.to_string(),
        Attr::Str(s) => s.clone(),
        Attr::Ints(v) => format!("{v:?}"),
        Attr::Floats(v) => format!("{} numbers", v.len()),
        Attr::Shape(s) => print_shape(s, syms),
        Attr::DType(d) => d.to_string(),
        Attr::Elem(e) => e.to_string(),
    };
    let all = attrs.iter().zip(op.info().attrs).map(|(a, (name, _))| format!("{name} = {}", show(a)));
    all.collect::<Vec<_>>().join(", ")
}

/// `costs` has the estimates of the functions before this one, in picoseconds, and gets this one's.
fn function(m: &Module, f: &Function, costs: &mut HashMap<String, u64>) -> Value {
    let syms = &m.syms;
    let mut total = 0;
    let defs = f.defs();
    let args = f.args.len();
    // Nodes: arguments, then operations, then results. An edge is the position of a node.
    let mut of = vec![0usize; f.values.len()];
    f.args.iter().enumerate().for_each(|(i, (_, v))| of[v.0 as usize] = i);
    defs.iter().enumerate().for_each(|(v, d)| d.iter().for_each(|d| of[v] = args + d));
    let loc = |v: u32| f.values[v as usize].loc.as_ref().map(|l| format!("{}:{}", l.file, l.line));
    let mut nodes: Vec<Value> = vec![];
    for (name, v) in &f.args {
        let at = loc(v.0);
        nodes.push(
            json!({ "op": "argument", "label": name, "ty": print_type(syms, f.ty(*v)), "at": at, "in": [], "cost": 0 }),
        );
    }
    let groups = groups(f);
    for (inst, group) in f.insts.iter().zip(groups) {
        let tys: Vec<String> = inst.results.iter().map(|r| print_type(syms, f.ty(*r))).collect();
        let operands: Vec<&Ty> = inst.operands.iter().map(|v| f.ty(*v)).collect();
        let name = inst.attrs.first().map_or("", Attr::as_str);
        let picoseconds = match inst.results.first() {
            _ if inst.op == Op::Call => costs.get(name).copied().unwrap_or(0),
            Some(r) => cost::node(Target::CPU, syms, inst.op, &operands, f.ty(*r), false).ps,
            None => 0,
        };
        total += picoseconds;
        let label = match inst.op {
            Op::Param | Op::State => name.to_string(),
            Op::Call => format!("@{name}"),
            Op::Const => inst.attrs[0].as_f32().to_string(),
            op => op.name().to_string(),
        };
        nodes.push(json!({
            "op": inst.op.name(), "label": label, "ty": tys.join(", "), "at": inst.results.first().and_then(|r| loc(r.0)),
            "attrs": attributes(syms, inst.op, &inst.attrs), "cost": picoseconds, "group": group,
            "in": inst.operands.iter().map(|v| of[v.0 as usize]).collect::<Vec<_>>(),
            "call": (inst.op == Op::Call).then_some(name),
        }));
    }
    for (name, v) in &f.results {
        let t = print_type(syms, f.ty(*v));
        nodes.push(json!({ "op": "result", "label": name, "ty": t, "in": [of[v.0 as usize]], "cost": 0 }));
    }
    costs.insert(f.name.clone(), total);
    json!({ "name": f.name, "fused": f.kind == Kind::Fused, "nodes": nodes })
}

fn kernel_texts(stages: &[(String, Ir)], stage: &str) -> HashMap<String, String> {
    let of = stages.iter().find(|(name, _)| name == stage);
    match of {
        Some((_, Ir::Program(p))) => p.kernels.iter().map(|k| (k.name.clone(), print_kernel(k, &p.syms))).collect(),
        _ => HashMap::new(),
    }
}

/// Launches, kernels and memory of the last program; null where there is none.
pub fn program(stages: &[(String, Ir)], asm: &[String]) -> Value {
    let Some(p) = last_program(stages) else { return Value::Null };
    let loops = kernel_texts(stages, "lower");
    let kernel = |(i, k): (usize, &crate::ir::loops::Kernel)| {
        let scheduled = print_kernel(k, &p.syms);
        json!({
            "name": k.name, "loops": loops.get(&k.name).unwrap_or(&scheduled), "scheduled": scheduled,
            "asm": asm.get(i), "trace": k.trace.len(),
        })
    };
    let launch = |l: &crate::ir::program::Launch| {
        let args: Vec<&str> =
            l.args.iter().filter_map(|b| p.buffers.get(b.0 as usize)).map(|b| b.name.as_str()).collect();
        json!({ "kernel": l.kernel.0, "sync": l.sync, "args": args })
    };
    json!({
        "kernels": p.kernels.iter().enumerate().map(kernel).collect::<Vec<_>>(),
        "launches": p.launches.iter().map(launch).collect::<Vec<_>>(),
        "arena": arena(p), "arena_bytes": p.arena_bytes,
        "states": p.states.iter().map(|s| json!([s.name, bytes(&p.syms, s.dtype.size(), &s.shape)])).collect::<Vec<_>>(),
    })
}

/// At the largest admissible sizes.
fn bytes(syms: &Syms, size: usize, shape: &[Dim]) -> u64 {
    let count = shape.iter().fold(Dim::from(1), |n, d| n * d.clone());
    (syms.range(&count).1.max(0) as u64).saturating_mul(size as u64)
}

/// One rectangle per buffer in the arena: bytes, and the first and last launch that touches it.
fn arena(p: &Program) -> Vec<Value> {
    let mut spans: HashMap<u32, (usize, usize)> = HashMap::new();
    for (i, l) in p.launches.iter().enumerate() {
        for b in &l.args {
            spans.entry(b.0).or_insert((i, i)).1 = i;
        }
    }
    let mut out = vec![];
    for (i, b) in p.buffers.iter().enumerate() {
        if let (Place::Arena(at), Some((first, last))) = (&b.place, spans.get(&(i as u32))) {
            let shape = print_shape(&b.shape, &p.syms);
            let bytes = bytes(&p.syms, b.dtype.size(), &b.shape);
            out.push(json!({
                "name": b.name, "ty": format!("{}{shape}", b.dtype), "at": at, "bytes": bytes, "first": first, "last": last,
            }));
        }
    }
    out
}

//! Outlining of repetition: layers of equal structure become one function that is called for each.
//!
//! A function is cut wherever a single computed value crosses from before to after (the residual stream between blocks);
//! what depends on neither parameters nor states is hoisted to the front first. Pieces of equal structure are one kind;
//! kinds that always follow each other are joined; a kind that occurs twice or more becomes a function.

use std::collections::{BTreeMap, HashMap};

use marquetry_ir::graph::{Attr, Builder, Function, Inst, Kind, Module, Op, Ty, TypeError, Value};

use crate::canon::renumber;

/// Outlines the entry function.
///
/// # Errors
/// A type rule that fails, which is a defect of this pass.
pub fn run(m: &Module) -> Result<Module, TypeError> {
    let Some(entry) = m.entry() else { return Ok(m.clone()) };
    let f = hoist(m, entry)?;
    let pieces = join(&f, cut(&f));
    let mut kinds: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut by_key: HashMap<String, usize> = HashMap::new();
    for (i, p) in pieces.iter().enumerate() {
        let kind = *by_key.entry(key(&f, p)).or_insert(i);
        kinds.entry(kind).or_default().push(i);
    }
    let mut out = m.clone();
    let mut names = HashMap::new();
    for (n, members) in kinds.values().filter(|ms| ms.len() > 1).enumerate() {
        let name = format!("{}.layer{n}", entry.name);
        let outlined = extract(m, &f, &pieces[members[0]], &name)?;
        let at = out.functions.len() - 1;
        out.functions.insert(at, outlined);
        names.extend(members.iter().map(|i| (*i, name.clone())));
    }
    let caller = calls(m, &f, &pieces, &names, &out)?;
    if let Some(last) = out.functions.last_mut() {
        *last = caller;
    }
    Ok(out)
}

fn is_leaf(op: Op) -> bool {
    matches!(op, Op::Param | Op::State | Op::Const | Op::Table | Op::Iota)
}

/// For each value: does it depend on parameters or states?
fn computed(f: &Function) -> Vec<bool> {
    let mut deep = vec![false; f.values.len()];
    for inst in &f.insts {
        let d = matches!(inst.op, Op::Param | Op::State) || inst.operands.iter().any(|v| deep[v.0 as usize]);
        inst.results.iter().for_each(|r| deep[r.0 as usize] = d);
    }
    deep
}

/// For each value: is it made of parameters and constants alone, like the numbers of a tied embedding?
fn of_weights(f: &Function) -> Vec<bool> {
    let mut only = vec![false; f.values.len()];
    for inst in &f.insts {
        let yes = inst.op != Op::State && inst.operands.iter().all(|v| only[v.0 as usize]);
        inst.results.iter().for_each(|r| only[r.0 as usize] = yes);
    }
    only
}

/// Moves what depends on inputs only to the front, and leaves to just before their first use.
fn hoist(m: &Module, f: &Function) -> Result<Function, TypeError> {
    let deep = computed(f);
    let defs = f.defs();
    let mut placed = vec![false; f.insts.len()];
    let mut order = vec![];
    for (i, inst) in f.insts.iter().enumerate() {
        if inst.results.iter().all(|r| !deep[r.0 as usize]) {
            place(f, &defs, i, &mut placed, &mut order);
        }
    }
    for (i, inst) in f.insts.iter().enumerate() {
        if !is_leaf(inst.op) {
            place(f, &defs, i, &mut placed, &mut order);
        }
    }
    for (_, v) in &f.results {
        if let Some(i) = defs[v.0 as usize] {
            place(f, &defs, i, &mut placed, &mut order);
        }
    }
    let mut g = f.clone();
    g.insts = order.into_iter().map(|i| f.insts[i].clone()).collect();
    renumber(&m.syms, &g)
}

fn place(f: &Function, defs: &[Option<usize>], i: usize, placed: &mut [bool], order: &mut Vec<usize>) {
    if std::mem::replace(&mut placed[i], true) {
        return;
    }
    for v in &f.insts[i].operands {
        if let Some(d) = defs[v.0 as usize] {
            place(f, defs, d, placed, order);
        }
    }
    order.push(i);
}

/// A run of operations.
#[derive(Clone, Debug)]
struct Piece {
    insts: std::ops::Range<usize>,
}

/// Cuts where at most one computed value crosses, besides what is made of weights alone.
fn cut(f: &Function) -> Vec<Piece> {
    let (deep, weights) = (computed(f), of_weights(f));
    let mut last_use: Vec<usize> = vec![0; f.values.len()];
    for (i, inst) in f.insts.iter().enumerate() {
        inst.operands.iter().for_each(|v| last_use[v.0 as usize] = i);
    }
    f.results.iter().for_each(|(_, v)| last_use[v.0 as usize] = f.insts.len());
    // Constants are repeated where they are used, so they neither cross nor hold a piece open.
    let leaf: Vec<bool> = {
        let mut leaf = vec![false; f.values.len()];
        for inst in f.insts.iter().filter(|i| matches!(i.op, Op::Param | Op::State)) {
            inst.results.iter().for_each(|r| leaf[r.0 as usize] = true);
        }
        leaf
    };
    let mut pieces = vec![];
    let mut start = 0;
    let mut alive: Vec<Value> = vec![];
    for (i, inst) in f.insts.iter().enumerate() {
        for r in &inst.results {
            let crosses = deep[r.0 as usize] || leaf[r.0 as usize];
            if crosses && last_use[r.0 as usize] > i {
                alive.push(*r);
            }
        }
        alive.retain(|v| last_use[v.0 as usize] > i);
        // A weight belongs to the piece that first uses it, so a cut never falls between the two.
        let own = |v: &&Value| leaf[v.0 as usize] || weights[v.0 as usize];
        let open = alive.iter().filter(own).any(|v| !used_by(f, *v, i));
        let crossing = alive.iter().filter(|v| !own(v)).count();
        if crossing <= 1 && !open && !is_leaf(inst.op) {
            pieces.push(Piece { insts: start..i + 1 });
            start = i + 1;
        }
    }
    if start < f.insts.len() {
        pieces.push(Piece { insts: start..f.insts.len() });
    }
    pieces
}

fn used_by(f: &Function, v: Value, upto: usize) -> bool {
    f.insts[..=upto].iter().any(|i| i.operands.contains(&v))
}

/// Joins neighbours that always occur together.
fn join(f: &Function, mut pieces: Vec<Piece>) -> Vec<Piece> {
    loop {
        let keys: Vec<String> = pieces.iter().map(|p| key(f, p)).collect();
        let mut next: HashMap<&str, Option<&str>> = HashMap::new();
        let mut prev: HashMap<&str, Option<&str>> = HashMap::new();
        for w in keys.windows(2) {
            for (map, k, v) in [(&mut next, &w[0], &w[1]), (&mut prev, &w[1], &w[0])] {
                map.entry(k).and_modify(|e| *e = e.filter(|x| *x == v.as_str())).or_insert(Some(v));
            }
        }
        let count = |k: &str| keys.iter().filter(|x| *x == k).count();
        let pair = keys.windows(2).find_map(|w| {
            let together = next.get(w[0].as_str()) == Some(&Some(w[1].as_str()))
                && prev.get(w[1].as_str()) == Some(&Some(w[0].as_str()));
            (together && w[0] != w[1] && count(&w[0]) == count(&w[1])).then(|| (w[0].clone(), w[1].clone()))
        });
        let Some((a, b)) = pair else { return pieces };
        let mut joined: Vec<Piece> = vec![];
        let mut i = 0;
        while i < pieces.len() {
            if i + 1 < pieces.len() && keys[i] == a && keys[i + 1] == b {
                joined.push(Piece { insts: pieces[i].insts.start..pieces[i + 1].insts.end });
                i += 2;
            } else {
                joined.push(pieces[i].clone());
                i += 1;
            }
        }
        pieces = joined;
    }
}

/// The constant that defines a value. Constants are repeated where they are used instead of passed.
fn constant(f: &Function, v: Value) -> Option<&Inst> {
    f.insts.iter().find(|i| matches!(i.op, Op::Const | Op::Table | Op::Iota) && i.results.contains(&v))
}

/// Values a piece takes from outside, in order of first use: its interface.
fn inputs(f: &Function, p: &Piece) -> Vec<Value> {
    let first = f.insts.get(p.insts.start).and_then(|i| i.results.first()).map_or(u32::MAX, |v| v.0);
    let mut seen = vec![];
    for inst in &f.insts[p.insts.clone()] {
        for v in &inst.operands {
            if v.0 < first && !seen.contains(v) && constant(f, *v).is_none() {
                seen.push(*v);
            }
        }
    }
    seen
}

/// Tensors a piece hands on: used after it.
fn outputs(f: &Function, p: &Piece) -> Vec<Value> {
    let later: Vec<Value> = f.insts[p.insts.end..]
        .iter()
        .flat_map(|i| i.operands.iter().copied())
        .chain(f.results.iter().map(|(_, v)| *v))
        .collect();
    let own = f.insts[p.insts.clone()].iter().flat_map(|i| i.results.iter().copied());
    own.filter(|v| later.contains(v) && f.ty(*v).as_tensor().is_some()).collect()
}

/// States a piece works on, in order: first those it takes from outside, then those it reads by name. Each with the version
/// that the piece leaves behind.
fn states(f: &Function, p: &Piece) -> Vec<(Value, Value)> {
    let given = inputs(f, p).into_iter().filter(|v| f.ty(*v).as_tensor().is_none());
    let named = leaves(f, p).into_iter().filter(|i| i.op == Op::State).map(|i| i.results[0]);
    let mut states: Vec<(Value, Value)> = given.chain(named).map(|v| (v, v)).collect();
    for inst in f.insts[p.insts.clone()].iter().filter(|i| matches!(i.op, Op::KvAppend | Op::Call)) {
        let kv = |v: &&Value| f.ty(**v).as_tensor().is_none();
        for (old, new) in inst.operands.iter().filter(kv).zip(inst.results.iter().filter(kv)) {
            if let Some(s) = states.iter_mut().find(|s| s.1 == *old) {
                s.1 = *new;
            }
        }
    }
    states
}

/// The structure of a piece: equal keys mean equal computations up to the parameters and states named. Inputs that are
/// computed (the residual stream) are interchangeable; inputs of the function and hoisted values are not.
fn key(f: &Function, p: &Piece) -> String {
    let deep = computed(f);
    let mut number: HashMap<Value, String> = HashMap::new();
    for (i, v) in inputs(f, p).into_iter().enumerate() {
        let name = if deep[v.0 as usize] { format!("in{i}") } else { format!("g{}", v.0) };
        number.insert(v, format!("{name}:{:?}", f.ty(v)));
    }
    let mut out = String::new();
    for (i, inst) in f.insts[p.insts.clone()].iter().enumerate() {
        for v in &inst.operands {
            if let (false, Some(c)) = (number.contains_key(v), constant(f, *v)) {
                number.insert(*v, format!("{}{:?}", c.op.name(), c.attrs));
            }
        }
        let operands: Vec<&str> = inst.operands.iter().map(|v| number.get(v).map_or("?", String::as_str)).collect();
        let attrs: &[Attr] = if matches!(inst.op, Op::Param | Op::State) { &[] } else { &inst.attrs };
        let tys: Vec<&Ty> = inst.results.iter().map(|r| f.ty(*r)).collect();
        out.push_str(&format!("{}{operands:?}{attrs:?}{tys:?};", inst.op.name()));
        for (j, r) in inst.results.iter().enumerate() {
            number.insert(*r, format!("v{i}.{j}"));
        }
    }
    let results: Vec<String> = outputs(f, p).iter().map(|v| number.get(v).cloned().unwrap_or_default()).collect();
    format!("{out}{results:?}")
}

fn leaves<'a>(f: &'a Function, p: &Piece) -> Vec<&'a Inst> {
    f.insts[p.insts.clone()].iter().filter(|i| matches!(i.op, Op::Param | Op::State)).collect()
}

/// The function that stands for a kind: arguments are inputs, then parameters and states in order of use; results are
/// outputs, then the states.
fn extract(m: &Module, f: &Function, p: &Piece, name: &str) -> Result<Function, TypeError> {
    let mut b = Builder::new(&m.syms, Function::new(name, Kind::Graph));
    let mut map: HashMap<Value, Value> = HashMap::new();
    for (i, v) in inputs(f, p).into_iter().enumerate() {
        b.loc = f.values[v.0 as usize].loc.clone();
        map.insert(v, b.arg(format!("in{i}"), f.ty(v).clone()));
    }
    for (i, inst) in leaves(f, p).into_iter().enumerate() {
        let r = inst.results[0];
        b.loc = f.values[r.0 as usize].loc.clone();
        let kind = if inst.op == Op::Param { "w" } else { "state" };
        let a = b.arg(format!("{kind}{i}"), f.ty(r).clone());
        map.insert(r, a);
    }
    for inst in f.insts[p.insts.clone()].iter().filter(|i| !matches!(i.op, Op::Param | Op::State)) {
        for v in &inst.operands {
            if let (false, Some(c)) = (map.contains_key(v), constant(f, *v)) {
                let copy = b.push(c.op, vec![], c.attrs.clone(), vec![f.ty(*v).clone()]);
                map.insert(*v, copy[0]);
            }
        }
        let operands: Vec<Value> = inst.operands.iter().map(|v| map[v]).collect();
        b.loc = f.values[inst.results[0].0 as usize].loc.clone();
        let tys = inst.results.iter().map(|r| f.ty(*r).clone()).collect();
        let results = b.push(inst.op, operands, inst.attrs.clone(), tys);
        inst.results.iter().zip(results).for_each(|(a, b)| {
            map.insert(*a, b);
        });
    }
    for (i, v) in outputs(f, p).iter().enumerate() {
        b.func.results.push((format!("out{i}"), map[v]));
    }
    for (i, (_, v)) in states(f, p).iter().enumerate() {
        b.func.results.push((format!("state{i}"), map[v]));
    }
    Ok(b.func)
}

/// The entry function with calls in place of outlined pieces.
fn calls(
    m: &Module,
    f: &Function,
    pieces: &[Piece],
    names: &HashMap<usize, String>,
    out: &Module,
) -> Result<Function, TypeError> {
    let mut b = Builder::new(&m.syms, Function::new(f.name.clone(), f.kind));
    let mut map: HashMap<Value, Value> = HashMap::new();
    for (name, v) in &f.args {
        b.loc = f.values[v.0 as usize].loc.clone();
        map.insert(*v, b.arg(name.clone(), f.ty(*v).clone()));
    }
    for (i, p) in pieces.iter().enumerate() {
        let name = names.get(&i);
        for inst in &f.insts[p.insts.clone()] {
            if name.is_some() && !matches!(inst.op, Op::Param | Op::State) {
                continue;
            }
            b.loc = f.values[inst.results[0].0 as usize].loc.clone();
            let operands = inst.operands.iter().map(|v| map[v]).collect();
            let tys = inst.results.iter().map(|r| f.ty(*r).clone()).collect();
            let results = b.push(inst.op, operands, inst.attrs.clone(), tys);
            inst.results.iter().zip(results).for_each(|(a, b)| {
                map.insert(*a, b);
            });
        }
        let Some(callee) = name.and_then(|n| out.function(n)) else { continue };
        let mut operands: Vec<Value> = inputs(f, p).iter().map(|v| map[v]).collect();
        operands.extend(leaves(f, p).iter().map(|l| map[&l.results[0]]));
        let tys = callee.results.iter().map(|(_, v)| callee.ty(*v).clone()).collect();
        let results = b.push(Op::Call, operands, vec![Attr::Str(callee.name.clone())], tys);
        let newest = states(f, p).into_iter().map(|(_, v)| v);
        outputs(f, p).into_iter().chain(newest).zip(results).for_each(|(a, b)| {
            map.insert(a, b);
        });
    }
    for (name, v) in &f.results {
        b.func.results.push((name.clone(), map[v]));
    }
    Ok(b.func)
}

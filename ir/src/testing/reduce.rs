//! Makes a failing module smaller while it keeps failing: delta debugging over results, operations and sizes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::graph::{Attr, Builder, Function, Inst, Module, Op, Ty, Value, verify};
use crate::{Dim, Elem};

/// Most trials of one reduction.
const TRIALS: usize = 600;

/// Operations of a module.
pub fn size(m: &Module) -> usize {
    m.functions.iter().map(|f| f.insts.len()).sum()
}

/// A smaller module for which `fails` still holds; `m` itself must fail. Only the entry function is reduced. Every module that is
/// tried is valid.
pub fn reduce(m: &Module, fails: &mut dyn FnMut(&Module) -> bool) -> Module {
    let mut best = m.clone();
    let mut left = TRIALS;
    loop {
        let before = best.clone();
        for edits in [results, operations, sizes] {
            let mut at = 0;
            // Edits are numbered anew after each one that is taken; the same number is then another edit.
            while let Some(edit) = edits(&best).into_iter().nth(at) {
                let tried = apply(&best, &edit).filter(|n| *n != best && verify(n).is_empty());
                left -= usize::from(tried.is_some());
                if left == 0 {
                    return best;
                }
                match tried.filter(|n| fails(n)) {
                    Some(smaller) => best = smaller,
                    None => at += 1,
                }
            }
        }
        if best == before {
            return best;
        }
    }
}

/// One change of the entry function.
#[derive(Clone, Debug)]
enum Edit {
    /// Keeps these results only.
    Keep(Vec<usize>),
    /// Results of these operations become arguments, or states that were not updated.
    Cut(BTreeSet<usize>),
    /// The result of an operation becomes one of its operands.
    Skip(usize, usize),
    /// A constant extent becomes another.
    Extent(i64, i64),
    /// A symbol gets one value.
    Fix(usize, i64),
}

fn results(m: &Module) -> Vec<Edit> {
    let n = m.entry().map_or(0, |f| f.results.len());
    let alone = (0..n).filter(|_| n > 1).map(|i| Edit::Keep(vec![i]));
    let without = (0..n).filter(|_| n > 2).map(|i| Edit::Keep((0..n).filter(|j| *j != i).collect()));
    let none = (n > 0).then_some(Edit::Keep(vec![]));
    none.into_iter().chain(alone).chain(without).collect()
}

/// Halves, quarters, ... then single operations, the last ones first.
fn operations(m: &Module) -> Vec<Edit> {
    let Some(f) = m.entry() else { return vec![] };
    let n = f.insts.len();
    let mut out = vec![];
    let mut step = n / 2;
    while step > 1 {
        out.extend((0..n).step_by(step).map(|a| Edit::Cut((a..(a + step).min(n)).collect())));
        step /= 2;
    }
    for i in (0..n).rev() {
        let inst = &f.insts[i];
        let same = |v: &Value| inst.results.len() == 1 && f.ty(*v) == f.ty(inst.results[0]);
        out.extend((0..inst.operands.len()).filter(|o| same(&inst.operands[*o])).map(|o| Edit::Skip(i, o)));
        out.push(Edit::Cut(BTreeSet::from([i])));
    }
    out
}

fn sizes(m: &Module) -> Vec<Edit> {
    let mut extents = BTreeSet::new();
    for f in &m.functions {
        for v in &f.values {
            if let Ty::Tensor(t) = &v.ty {
                extents.extend(t.shape.iter().filter_map(Dim::as_const).filter(|d| *d > 1));
            }
        }
    }
    let syms = m.syms.0.iter().enumerate().filter(|(_, d)| d.lo < d.hi);
    let fixed = syms.flat_map(|(i, d)| [d.lo, (d.lo + d.hi) / 2].map(|v| Edit::Fix(i, v)));
    let smaller = extents.into_iter().rev().flat_map(|d| [1, d / 2, d - 1].map(|to| Edit::Extent(d, to)));
    fixed.chain(smaller.filter(|e| !matches!(e, Edit::Extent(_, 0)))).collect()
}

fn apply(m: &Module, edit: &Edit) -> Option<Module> {
    let mut m = m.clone();
    if let Edit::Fix(i, v) = edit {
        let d = &mut m.syms.0[*i];
        let v = v / d.multiple.max(1) * d.multiple.max(1);
        (d.lo, d.hi) = if (d.lo..=d.hi).contains(&v) { (v, v) } else { return None };
        return Some(m);
    }
    if let Edit::Extent(from, to) = edit {
        let change = |t: &mut Ty| *t = extent(t, *from, *to);
        m.params.iter_mut().chain(&mut m.states).for_each(|d| change(&mut d.ty));
        if m.functions.len() > 1 {
            return None;
        }
    }
    let f = m.functions.last()?.clone();
    let new = copy(&m, &f, edit)?;
    let named = |op: Op, name: &str| new.insts.iter().any(|i| i.op == op && i.attrs[0].as_str() == name);
    if m.functions.len() == 1 {
        m.params.retain(|p| named(Op::Param, &p.name));
        m.states.retain(|p| named(Op::State, &p.name));
    }
    *m.functions.last_mut()? = new;
    Some(m)
}

fn dim(d: &Dim, from: i64, to: i64) -> Dim {
    if d.as_const() == Some(from) { to.into() } else { d.clone() }
}

fn extent(t: &Ty, from: i64, to: i64) -> Ty {
    let mut t = t.clone();
    match &mut t {
        Ty::Tensor(t) => t.shape.iter_mut().for_each(|d| *d = dim(d, from, to)),
        Ty::Rows(r) => {
            r.rows = dim(&r.rows, from, to);
            for n in r.shape.iter_mut().filter(|n| **n as i64 == from) {
                *n = to as usize;
            }
        }
        Ty::Kv(k) => {
            k.slots = dim(&k.slots, from, to);
            for n in [&mut k.heads, &mut k.dim].into_iter().filter(|n| **n as i64 == from) {
                *n = to as usize;
            }
        }
    }
    t
}

fn attributes(inst: &Inst, edit: &Edit) -> Vec<Attr> {
    let Edit::Extent(from, to) = edit else { return inst.attrs.clone() };
    let change = |(i, a): (usize, &Attr)| match a {
        Attr::Shape(s) => Attr::Shape(s.iter().map(|d| dim(d, *from, *to)).collect()),
        Attr::Int(v) if inst.op == Op::Slice && i == 2 && v == from => Attr::Int(*to),
        other => other.clone(),
    };
    inst.attrs.iter().enumerate().map(change).collect()
}

/// The function with one edit, without what is then unused; none if a type rule does not hold.
fn copy(m: &Module, f: &Function, edit: &Edit) -> Option<Function> {
    let cut = |i: usize| matches!(edit, Edit::Cut(c) if c.contains(&i));
    let state = |v: Value| f.ty(v).is_state();
    // What stands for a value: itself, or another one.
    let mut alias: HashMap<Value, Value> = HashMap::new();
    for (i, inst) in f.insts.iter().enumerate() {
        match edit {
            Edit::Skip(at, operand) if *at == i => drop(alias.insert(inst.results[0], inst.operands[*operand])),
            Edit::Cut(_) if cut(i) && inst.op == Op::KvAppend => drop(alias.insert(inst.results[0], inst.operands[0])),
            _ => {}
        }
    }
    let stands = |mut v: Value| {
        while let Some(other) = alias.get(&v) {
            v = *other;
        }
        v
    };
    let kept: Vec<&(String, Value)> = match edit {
        Edit::Keep(list) => list.iter().filter_map(|i| f.results.get(*i)).collect(),
        _ => f.results.iter().collect(),
    };
    let mut live: BTreeSet<Value> = kept.iter().map(|(_, v)| stands(*v)).collect();
    let mut keep = vec![false; f.insts.len()];
    for (i, inst) in f.insts.iter().enumerate().rev() {
        let gone =
            inst.results.iter().any(|r| alias.contains_key(r)) || cut(i) && !inst.results.iter().any(|r| state(*r));
        let effect = matches!(inst.op, Op::KvAppend | Op::Call);
        keep[i] = !gone && (effect || inst.results.iter().any(|r| live.contains(r)));
        if keep[i] {
            live.extend(inst.operands.iter().map(|v| stands(*v)));
        }
    }
    let ty = |v: Value| if let Edit::Extent(a, b) = edit { extent(f.ty(v), *a, *b) } else { f.ty(v).clone() };
    let mut b = Builder::new(&m.syms, Function::new(f.name.clone(), f.kind));
    let mut map: BTreeMap<Value, Value> = BTreeMap::new();
    for (name, v) in f.args.iter().filter(|(_, v)| live.contains(v)) {
        map.insert(*v, b.arg(name.clone(), ty(*v)));
    }
    for (i, inst) in f.insts.iter().enumerate().filter(|(i, _)| cut(*i) && !keep[*i]) {
        for r in inst.results.iter().filter(|r| live.contains(r)) {
            let scalar = f.ty(*r).as_tensor().is_some_and(|t| matches!(t.elem, Elem::Scalar(_)));
            scalar.then_some(())?;
            map.insert(*r, b.arg(format!("cut{i}"), ty(*r)));
        }
    }
    for inst in f.insts.iter().enumerate().filter(|(i, _)| keep[*i]).map(|(_, i)| i) {
        let operands = inst.operands.iter().map(|v| map.get(&stands(*v)).copied()).collect::<Option<Vec<_>>>()?;
        let attrs = attributes(inst, edit);
        let new = match inst.op {
            Op::Param | Op::State | Op::Call => {
                b.push(inst.op, operands, attrs, inst.results.iter().map(|r| ty(*r)).collect())
            }
            op => vec![b.emit(op, &operands, attrs).ok()?],
        };
        map.extend(inst.results.iter().copied().zip(new));
    }
    for (name, v) in kept {
        b.func.results.push((name.clone(), *map.get(&stands(*v))?));
    }
    Some(b.func)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{parse_module, print_module};

    #[test]
    fn what_does_not_matter_goes_away() {
        let text = "sym \"n\" in 1..=64
            func @f(%0 \"x\": f32[n, 12], %1 \"y\": f32[n, 12]) {
              %2 = add %0, %1 : f32[n, 12]
              %3 = exp %2 : f32[n, 12]
              %4 = erf %3 : f32[n, 12]
              %5 = tanh %4 : f32[n, 12]
              %6 = mul %5, %1 : f32[n, 12]
              return \"a\" = %3, \"b\" = %6
            }";
        let m = parse_module(text).unwrap();
        let small = reduce(&m, &mut |m| m.functions[0].insts.iter().any(|i| i.op == Op::Erf));
        let want = "sym \"n\" in 1..=1\n\nfunc @f(%0 \"cut1\": f32[n, 1]) {\n  %1 = erf %0 : f32[n, 1]\n  \
                    return \"b\" = %1\n}\n";
        assert_eq!(print_module(&small), want);
    }
}

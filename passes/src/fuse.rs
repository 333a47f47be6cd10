//! Grouping of operations into kernels, after equality saturation has chosen operators and layouts.
//!
//! High-level operators without a lowering of their own are expanded first. Moves and constants cost nothing: they are
//! repeated inside each group that reads through them. Then, deterministically and in this order:
//!
//! 1. a contraction takes the elementwise operations that follow it, while a single value leaves the group, a gated product the
//!    quantization of its result;
//! 2. row operations (reductions along the last axis, quantization) join with each other and with elementwise neighbours over
//!    the same rows;
//! 3. a cache update takes the operations that produce its rows, attention those that produce its queries, and the
//!    quantization of its result;
//! 4. what is left is elementwise: each value that others need takes its private producers.
//!
//! Every group becomes a `fused` function that is called in its place. Groups are convex: nothing outside lies between.

use std::collections::{BTreeSet, HashMap};

use marquetry_ir::graph::{
    Attr, Builder, Class, Function, Inst, Kind, Module, Op, TensorTy, Ty, TypeError, Value, rebuild,
};
use marquetry_ir::loops::micro::Act;
use marquetry_ir::{DType, Dim, Elem, Syms};
use serde::Serialize;

use crate::canon;
use crate::manager::Rewrites;

/// Groups every function, for a target without routines for micro-kernels.
///
/// # Errors
/// A type rule that fails, which is a defect of an expansion.
pub fn run(m: &Module) -> Result<Module, TypeError> {
    run_with(m, false, &Rewrites::default())
}

/// As [`run`], for a target that has routines if `micro`; each group of more than one operation asks `rewrites`, and falls apart where it
/// may not be made.
///
/// # Errors
/// As [`run`].
pub fn run_with(m: &Module, micro: bool, rewrites: &Rewrites) -> Result<Module, TypeError> {
    let mut out = Module { functions: vec![], ..m.clone() };
    for f in &m.functions {
        if f.kernel.is_some() {
            out.functions.push(f.clone());
            continue;
        }
        let expanded = expand(&m.syms, f, micro)?;
        let groups = Grouping::new(&expanded, rewrites).run();
        let (fused, caller) = write(&m.syms, &expanded, &groups)?;
        out.functions.extend(fused);
        out.functions.push(caller);
    }
    Ok(out)
}

/// The kernels that one run of a function starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kernels {
    /// The function.
    pub function: String,
    /// How often the module calls it; 1 for the entry.
    pub calls: usize,
    /// What each kernel is built around, in order, calls of other functions left out.
    pub names: Vec<&'static str>,
}

impl std::fmt::Display for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "@{} x{}: {} kernels: {}", self.function, self.calls, self.names.len(), self.names.join(", "))
    }
}

/// The kernels of each function of a fused module.
pub fn kernels(m: &Module) -> Vec<Kernels> {
    let callee = |i: &Inst| if i.op == Op::Call { m.function(i.attrs[0].as_str()) } else { None };
    let all = || m.functions.iter().flat_map(|f| &f.insts);
    let of = |f: &Function| Kernels {
        function: f.name.clone(),
        calls: all().filter(|i| callee(i).is_some_and(|c| c.name == f.name)).count().max(1),
        names: f.insts.iter().filter_map(callee).filter(|c| c.kind == Kind::Fused).map(anchor).collect(),
    };
    m.functions.iter().filter(|f| f.kind == Kind::Graph).map(of).collect()
}

/// Where a kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// The kernel's name in the program.
    pub kernel: String,
    /// Operators, the one that it is built around first, each once; those that only move are left out.
    pub operators: Vec<&'static str>,
    /// Files and lines of model code, those of that operator first.
    pub places: Vec<String>,
}

/// Where the kernels of a fused module come from.
pub fn origins(m: &Module) -> Vec<Origin> {
    m.functions.iter().filter(|f| f.kind == Kind::Fused).map(origin).collect()
}

fn origin(f: &Function) -> Origin {
    let mut insts: Vec<&Inst> =
        f.insts.iter().filter(|i| !matches!(i.op.class(), Class::Movement | Class::Leaf)).collect();
    if insts.is_empty() {
        insts.extend(&f.insts);
    }
    let first = insts.iter().enumerate().max_by_key(|(_, i)| weight(i.op)).map_or(0, |(at, _)| at);
    insts.rotate_left(first);
    let mut o = Origin { kernel: f.name.clone(), operators: vec![], places: vec![] };
    for i in insts {
        if !o.operators.contains(&i.op.name()) {
            o.operators.push(i.op.name());
        }
        let locs = i.results.iter().filter_map(|v| f.values.get(v.0 as usize)?.loc.as_ref());
        for place in locs.map(|l| format!("{}:{}", l.file, l.line)) {
            if !o.places.contains(&place) {
                o.places.push(place);
            }
        }
    }
    o
}

/// The operator that a group is built around.
fn anchor(f: &Function) -> &'static str {
    f.insts.iter().max_by_key(|i| weight(i.op)).map_or("nothing", |i| i.op.name())
}

/// Operators that have a lowering although they could be expanded.
fn lowered_whole(op: Op) -> bool {
    op.class() == Class::State && op.info().expand.is_some()
}

/// The activation of a gated product that micro-kernels have.
pub(crate) fn gate(attrs: &[Attr]) -> Option<Act> {
    match attrs.first() {
        Some(Attr::Int(0)) => Some(Act::Silu),
        Some(Attr::Int(2)) => Some(Act::Gelu),
        _ => None,
    }
}

fn is(ty: &Ty, elem: Elem) -> bool {
    ty.as_tensor().is_some_and(|t| t.elem == elem)
}

const BF16: Elem = Elem::Scalar(DType::BF16);

/// Is the operation to be expanded? A choice among matrices is a contraction where each is whole row blocks.
fn expands(op: Op, attrs: &[Attr], operands: &[Ty], micro: bool) -> bool {
    let in_blocks = |w: &TensorTy| {
        let rows = attrs.first().and_then(|n| w.shape.first()?.div_exact(n.as_int()));
        matches!(w.elem, Elem::Packed(_) | Elem::Rows8(_)) && rows.is_some_and(|r| r.div_exact(8).is_some())
    };
    let whole = match op {
        Op::ExpertLinear => operands.get(1).and_then(|t| t.as_tensor()).is_some_and(in_blocks),
        // Beside a fast product the activation takes long: a routine computes it, of the kinds that have one.
        Op::GluLinear => {
            let fast = |x: &Ty| is(x, BF16) || micro && is(x, Elem::Act8);
            gate(attrs).is_some() && operands.first().is_some_and(fast)
        }
        op => lowered_whole(op),
    };
    op.info().expand.is_some() && !whole
}

fn expand(syms: &Syms, f: &Function, micro: bool) -> Result<Function, TypeError> {
    let mut f = rebuild(syms, f, &Ty::clone, &mut |b, inst, operands| flat_product(b, inst, operands))?;
    let types = |f: &Function, i: &Inst| i.operands.iter().map(|v| f.ty(*v).clone()).collect::<Vec<_>>();
    while f.insts.iter().any(|i| expands(i.op, &i.attrs, &types(&f, i), micro)) {
        f = rebuild(syms, &f, &Ty::clone, &mut |b: &mut Builder<'_>, inst: &Inst, operands: &[Value]| {
            let types: Vec<Ty> = operands.iter().map(|v| b.func.ty(*v).clone()).collect();
            match inst.op.info().expand {
                Some(e) if expands(inst.op, &inst.attrs, &types, micro) => Ok(Some(vec![e(b, operands, &inst.attrs)?])),
                _ => Ok(None),
            }
        })?;
    }
    let m = Module { syms: syms.clone(), functions: vec![f], ..Module::default() };
    let mut m = canon::run(&m)?;
    m.functions.pop().ok_or(TypeError { code: "E0218", message: "no function".into() })
}

/// A product over two axes, which is what has a lowering.
fn flat_product(b: &mut Builder<'_>, inst: &Inst, operands: &[Value]) -> Result<Option<Vec<Value>>, TypeError> {
    let flat = matches!(inst.op, Op::Linear | Op::GluLinear);
    if !flat || b.shape(operands[0]).len() == 2 {
        return Ok(None);
    }
    let mut shape = b.shape(operands[0]);
    let k = shape.pop().unwrap_or_default();
    let rows = shape.iter().fold(Dim::from(1), |n, d| n * d.clone());
    let x = b.reshape(operands[0], vec![rows, k])?;
    let y = b.emit(inst.op, &[&[x], &operands[1..]].concat(), inst.attrs.clone())?;
    shape.extend(b.shape(y).pop());
    Ok(Some(vec![b.reshape(y, shape)?]))
}

/// How an operation takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Stays where it is: parameters, states, calls, packing.
    Outside,
    /// Repeated in each group that reads through it.
    Free,
    /// Member of exactly one group.
    Real,
}

struct Grouping<'a> {
    f: &'a Function,
    rewrites: &'a Rewrites,
    role: Vec<Role>,
    /// Real or outside operations that each operation reads, through free ones.
    deps: Vec<BTreeSet<usize>>,
    /// The reverse.
    users: Vec<BTreeSet<usize>>,
    /// The value is needed outside of any group: by a call, or as a result.
    wanted: Vec<bool>,
    group: Vec<Option<usize>>,
    groups: Vec<BTreeSet<usize>>,
    defs: Vec<Option<usize>>,
}

fn role(f: &Function, inst: &Inst) -> Role {
    let op = inst.op;
    match (op.class(), op) {
        // Only weights have block formats: the packer writes their numbers.
        (_, Op::Dequant) if matches!(f.ty(inst.operands[0]).as_tensor().map(|t| t.elem), Some(Elem::Gguf(_))) => {
            Role::Outside
        }
        (_, Op::Param | Op::State | Op::Call | Op::Pack | Op::ConcatRows) => Role::Outside,
        (_, Op::Concat) => Role::Real,
        (Class::Movement, _) | (_, Op::Const | Op::Table | Op::Iota) => Role::Free,
        _ => Role::Real,
    }
}

fn is_map(op: Op) -> bool {
    matches!(op.class(), Class::Elementwise | Class::Movement | Class::Gather) || op == Op::Dequant
}

fn is_row(op: Op) -> bool {
    op.class() == Class::Reduce || op == Op::Quantize
}

impl<'a> Grouping<'a> {
    fn new(f: &'a Function, rewrites: &'a Rewrites) -> Grouping<'a> {
        let n = f.insts.len();
        let defs = f.defs();
        let mut role: Vec<Role> = f.insts.iter().map(|i| role(f, i)).collect();
        let mut wanted = vec![false; n];
        let outside = f.insts.iter().zip(&role).filter(|(_, r)| **r == Role::Outside).flat_map(|(i, _)| &i.operands);
        for v in outside.chain(f.results.iter().map(|(_, v)| v)) {
            if let Some(d) = defs[v.0 as usize] {
                wanted[d] = true;
            }
        }
        for i in 0..n {
            if wanted[i] && role[i] == Role::Free {
                role[i] = Role::Real;
            }
        }
        let mut deps: Vec<BTreeSet<usize>> = vec![];
        for inst in &f.insts {
            let mut set = BTreeSet::new();
            for d in inst.operands.iter().filter_map(|v| defs[v.0 as usize]) {
                match role[d] {
                    Role::Free => set.extend(deps[d].iter().copied()),
                    _ => {
                        set.insert(d);
                    }
                }
            }
            deps.push(set);
        }
        let mut users = vec![BTreeSet::new(); n];
        for i in (0..n).filter(|&i| role[i] != Role::Free) {
            for &d in &deps[i] {
                users[d].insert(i);
            }
        }
        Grouping { f, rewrites, role, deps, users, wanted, group: vec![None; n], groups: vec![], defs }
    }

    fn op(&self, i: usize) -> Op {
        self.f.insts[i].op
    }

    fn shape(&self, i: usize) -> Vec<Dim> {
        let t = self.f.ty(self.f.insts[i].results[0]).as_tensor();
        t.map(|t| t.shape.clone()).unwrap_or_default()
    }

    fn open(&self, i: usize) -> bool {
        self.role[i] == Role::Real && self.group[i].is_none()
    }

    /// Does `i` depend on `set` by a path whose last step before `i` is outside of it?
    fn reached(&self, set: &BTreeSet<usize>, i: usize) -> bool {
        let first = set.first().copied().unwrap_or(0);
        let mut stack: Vec<usize> = self.deps[i].iter().copied().filter(|d| !set.contains(d)).collect();
        let mut seen = BTreeSet::new();
        while let Some(d) = stack.pop() {
            if d < first || !seen.insert(d) {
                continue;
            }
            if self.deps[d].iter().any(|x| set.contains(x)) {
                return true;
            }
            // Members of one group stand or fall together.
            if let Some(g) = self.group[d] {
                let fellows = self.groups[g].iter().flat_map(|m| self.deps[*m].iter().copied());
                for x in fellows.filter(|x| !self.groups[g].contains(x)) {
                    if set.contains(&x) {
                        return true;
                    }
                    stack.push(x);
                }
            }
            stack.extend(self.deps[d].iter().copied());
        }
        false
    }

    /// Makes a group; `anchor` is alone where no more rewrites may be made.
    fn close(&mut self, anchor: usize, mut set: BTreeSet<usize>) {
        let ops = || set.iter().map(|&i| self.op(i).name()).collect::<Vec<_>>().join(" + ");
        if set.len() > 1 && !self.rewrites.take(|| format!("fuse @{}: {}", self.f.name, ops())) {
            set = BTreeSet::from([anchor]);
        }
        let g = self.groups.len();
        set.iter().for_each(|&i| self.group[i] = Some(g));
        self.groups.push(set);
    }

    fn run(mut self) -> Vec<BTreeSet<usize>> {
        let n = self.f.insts.len();
        for i in 0..n {
            if self.open(i) && self.op(i).class() == Class::Contract {
                let mut set = self.epilogue(i);
                set.extend(self.quantized(i));
                self.close(i, set);
            }
        }
        let after: HashMap<usize, usize> = (0..n).filter_map(|i| Some((i, self.rounded(i)?))).collect();
        for i in 0..n {
            if self.open(i) && is_row(self.op(i)) && !after.values().any(|q| *q == i) {
                let set = self.rows(i);
                self.close(i, set);
            }
        }
        for i in 0..n {
            if self.open(i) && self.op(i).class() == Class::State {
                // A conversion may have joined the rows that read it.
                let after = after.get(&i).copied().filter(|q| self.open(*q));
                let mut set: BTreeSet<usize> = [i].into_iter().chain(after).collect();
                self.private_producers(&mut set);
                self.close(i, set);
            }
        }
        for i in (0..n).rev() {
            if self.open(i) {
                let mut set = BTreeSet::from([i]);
                self.private_producers(&mut set);
                self.close(i, set);
            }
        }
        self.groups
    }

    /// Values of the set that others need.
    fn leaving(&self, set: &BTreeSet<usize>) -> Vec<usize> {
        set.iter().copied().filter(|&i| self.wanted[i] || self.users[i].iter().any(|u| !set.contains(u))).collect()
    }

    fn epilogue(&self, anchor: usize) -> BTreeSet<usize> {
        let total = |i: usize| self.shape(i).into_iter().fold(Dim::from(1), |a, b| a * b);
        let full = total(anchor);
        // Half as many columns only where gate and up are interleaved by blocks of 8, so that both are in one tile.
        let halves = |i: &Inst, deps: &BTreeSet<usize>| i.op == Op::Slice && *deps == BTreeSet::from([anchor]);
        let interleaved = self.f.insts.iter().zip(&self.deps).filter(|(i, d)| halves(i, d)).all(|(i, _)| {
            let shape = self.f.ty(i.operands[0]).as_tensor().map(|t| t.shape.as_slice());
            shape.is_some_and(|s| s.ends_with(&[Dim::from(2), Dim::from(8)]))
        });
        let sizes = [Some(full.clone()), full.div_exact(2).filter(|_| interleaved)];
        let mut set = BTreeSet::from([anchor]);
        let mut best = set.clone();
        loop {
            let leaving = self.leaving(&set);
            let next: BTreeSet<usize> =
                leaving.iter().flat_map(|&i| self.users[i].iter().copied()).filter(|u| !set.contains(u)).collect();
            // Users that need other users first wait for their turn.
            let ready: BTreeSet<usize> = next.into_iter().filter(|u| !self.reached(&set, *u)).collect();
            let fits = |&u: &usize| {
                let tokens = self.shape(anchor).first().cloned();
                // A tile has 8 columns; where the last one is cut short, positions under another shape are not known.
                let whole = self.shape(anchor).last().and_then(|k| k.div_exact(8)).is_some();
                let stays = |m: &Inst| match m.op {
                    Op::Reshape => {
                        let to = self.f.ty(m.results[0]).as_tensor().and_then(|t| t.shape.first().cloned());
                        whole && to == tokens
                    }
                    op => op == Op::Slice && interleaved,
                };
                // A gated product is stored by a routine, which converts and does nothing else.
                let to_bf16 = is(self.f.ty(self.f.insts[u].results[0]), BF16);
                let converts = self.op(anchor) != Op::GluLinear || self.op(u) == Op::Cast && to_bf16 && set.len() == 1;
                let elementwise = self.open(u) && self.op(u).class() == Class::Elementwise && converts;
                elementwise
                    && self.shape(u).first() == tokens.as_ref()
                    && sizes.contains(&Some(total(u)))
                    && self.moves(&set, u).iter().all(|(_, m)| stays(m))
            };
            if ready.is_empty() || leaving.iter().any(|&i| self.wanted[i]) || !ready.iter().all(fits) {
                return best;
            }
            let grown: BTreeSet<usize> = set.union(&ready).copied().collect();
            set = grown;
            if self.leaving(&set).len() == 1 {
                best = set.clone();
            }
        }
    }

    /// Moves on the way from members of a set to `i`, each with the member that is read through it.
    fn moves(&self, set: &BTreeSet<usize>, i: usize) -> Vec<(usize, &Inst)> {
        let mut out = vec![];
        let mut stack: Vec<Value> = self.f.insts[i].operands.clone();
        while let Some(d) = stack.pop().map(|v| self.defs[v.0 as usize]) {
            if let Some(d) = d.filter(|d| self.role[*d] == Role::Free) {
                out.extend(self.deps[d].iter().filter(|m| set.contains(m)).map(|m| (*m, &self.f.insts[d])));
                stack.extend(&self.f.insts[d].operands);
            }
        }
        out
    }

    fn operand_shape(&self, i: &Inst) -> Vec<Dim> {
        let t = i.operands.first().and_then(|v| self.f.ty(*v).as_tensor());
        t.map(|t| t.shape.clone()).unwrap_or_default()
    }

    fn rows(&self, anchor: usize) -> BTreeSet<usize> {
        let whole = self.operand_shape(&self.f.insts[anchor]);
        let Some((k, row)) = whole.split_last() else { return BTreeSet::from([anchor]) };
        let over_rows = |s: &[Dim]| s.len() == whole.len() && s[..row.len()] == *row;
        let local = |i: usize| {
            let s = self.shape(i);
            over_rows(&s) && (s[row.len()] == *k || s[row.len()] == Dim::from(1))
        };
        let shaped = |i: usize| match is_row(self.op(i)) {
            true => self.operand_shape(&self.f.insts[i]) == whole,
            false => self.op(i).class() == Class::Elementwise && local(i),
        };
        // What is computed once per row is read in that row only: by operations over the same rows, through moves along the row.
        let in_row = |set: &BTreeSet<usize>| {
            let leaving = self.leaving(set);
            let mut once = BTreeSet::new();
            for &i in set {
                if is_row(self.op(i)) || leaving.contains(&i) || self.deps[i].iter().any(|d| once.contains(d)) {
                    once.insert(i);
                }
            }
            let along = |m: &Inst| {
                let to = self.f.ty(m.results[0]).as_tensor().map(|t| t.shape.clone()).unwrap_or_default();
                let axis = m.op != Op::Slice || m.attrs[0].as_int() as usize == row.len();
                matches!(m.op, Op::Broadcast | Op::Slice) && axis && over_rows(&to) && over_rows(&self.operand_shape(m))
            };
            set.iter().all(|&i| {
                let reads = self.deps[i].iter().any(|d| once.contains(d));
                !reads || shaped(i) && self.moves(set, i).iter().all(|(d, m)| !once.contains(d) || along(m))
            })
        };
        let mut set = BTreeSet::from([anchor]);
        let may_join = |set: &BTreeSet<usize>, i: usize| {
            let mut with = set.clone();
            with.insert(i);
            !set.contains(&i) && self.open(i) && !with.iter().any(|m| self.reached(&with, *m)) && in_row(&with)
        };
        loop {
            let producer = |p: usize| {
                let private = self.users[p].iter().all(|u| set.contains(u)) && !self.wanted[p];
                let joins = self.op(p).class() == Class::Elementwise
                    || self.op(p) == Op::Dequant
                    || (private && self.op(p).class() == Class::Gather);
                joins && (private || local(p)) && may_join(&set, p)
            };
            let next = set.iter().find_map(|&i| {
                let before = self.deps[i].iter().copied().find(|p| producer(*p));
                before.or_else(|| self.users[i].iter().copied().find(|u| shaped(*u) && may_join(&set, *u)))
            });
            match next {
                Some(i) => drop(set.insert(i)),
                None => return set,
            }
        }
    }

    /// The one operation that reads `i`, if nothing else needs its value.
    fn reader(&self, i: usize) -> Option<usize> {
        let alone = !self.wanted[i] && self.users[i].len() == 1;
        self.users[i].first().copied().filter(|_| alone)
    }

    /// What alone reads the gated product `i` of 8-bit activations and quantizes it, if its outputs are whole groups.
    fn quantized(&self, i: usize) -> Option<usize> {
        let inst = &self.f.insts[i];
        let gated = inst.op == Op::GluLinear && is(self.f.ty(inst.operands[0]), Elem::Act8);
        let groups = self.shape(i).last().is_some_and(|k| k.div_exact(32).is_some());
        let reads = |q: &usize| self.op(*q) == Op::Quantize && self.f.insts[*q].operands == inst.results;
        self.reader(i).filter(|q| gated && groups && self.open(*q) && reads(q))
    }

    /// What alone reads the attention `i` and rounds it: a quantization, if each head is a whole number of its groups, or a conversion
    /// of whole rows.
    fn rounded(&self, i: usize) -> Option<usize> {
        let attends = lowered_whole(self.op(i)) && self.op(i) != Op::AttendParts;
        let q = self.reader(i).filter(|_| attends)?;
        let head = self.shape(i).last().and_then(Dim::as_const)?;
        let shape = self.shape(q);
        let fits = match self.op(q) {
            Op::Quantize => head % 32 == 0,
            // What is rounded already stays so.
            Op::Cast => {
                (2..=3).contains(&shape.len())
                    && shape[0] == self.shape(i)[0]
                    && !is(self.f.ty(self.f.insts[i].results[0]), BF16)
            }
            _ => false,
        };
        // Reshapes alone keep the order of elements.
        let defs = self.f.defs();
        let mut at = defs[self.f.insts[q].operands[0].0 as usize]?;
        while self.op(at) == Op::Reshape {
            at = defs[self.f.insts[at].operands[0].0 as usize]?;
        }
        (at == i && fits).then_some(q)
    }

    /// Adds elementwise producers that nobody else reads.
    fn private_producers(&self, set: &mut BTreeSet<usize>) {
        loop {
            let producers = set.iter().flat_map(|&i| self.deps[i].iter().copied());
            let next = producers.into_iter().find(|&p| {
                !set.contains(&p)
                    && self.open(p)
                    && is_map(self.op(p))
                    && !self.wanted[p]
                    && self.users[p].iter().all(|u| set.contains(u))
            });
            match next {
                Some(p) => {
                    set.insert(p);
                }
                None => return,
            }
        }
    }
}

/// The fused functions, and the function that calls them.
fn write(syms: &Syms, f: &Function, groups: &[BTreeSet<usize>]) -> Result<(Vec<Function>, Function), TypeError> {
    let mut of = vec![None; f.insts.len()];
    for (g, set) in groups.iter().enumerate() {
        set.iter().for_each(|&i| of[i] = Some(g));
    }
    let mut w = Writer {
        f,
        groups,
        of,
        defs: f.defs(),
        b: Builder::new(syms, Function::new(f.name.clone(), f.kind)),
        map: HashMap::new(),
        fused: vec![],
        done: vec![false; groups.len()],
        syms,
    };
    for (name, v) in &f.args {
        w.b.loc = f.values[v.0 as usize].loc.clone();
        let new = w.b.arg(name.clone(), f.ty(*v).clone());
        w.map.insert(*v, new);
    }
    for (i, inst) in f.insts.iter().enumerate() {
        if role(f, inst) == Role::Outside {
            w.outside(inst)?;
        } else if let (Some(g), Class::State) = (w.of[i], inst.op.class()) {
            // Reads and updates of a state keep their order.
            w.group(g)?;
        }
    }
    for (name, v) in &f.results {
        let v = w.value(*v)?;
        w.b.func.results.push((name.clone(), v));
    }
    Ok((w.fused, w.b.func))
}

struct Writer<'a> {
    syms: &'a Syms,
    f: &'a Function,
    groups: &'a [BTreeSet<usize>],
    of: Vec<Option<usize>>,
    defs: Vec<Option<usize>>,
    b: Builder<'a>,
    map: HashMap<Value, Value>,
    fused: Vec<Function>,
    done: Vec<bool>,
}

impl Writer<'_> {
    fn value(&mut self, v: Value) -> Result<Value, TypeError> {
        if let Some(new) = self.map.get(&v) {
            return Ok(*new);
        }
        let i = self.defs[v.0 as usize];
        match i.and_then(|i| self.of[i]) {
            Some(g) => self.group(g)?,
            None => {
                let inst = i.map(|i| self.f.insts[i].clone());
                let Some(inst) = inst else {
                    return Err(TypeError { code: "E0215", message: "undefined value".into() });
                };
                self.outside(&inst)?;
            }
        }
        self.map.get(&v).copied().ok_or(TypeError { code: "E0215", message: "a group does not give its value".into() })
    }

    fn outside(&mut self, inst: &Inst) -> Result<(), TypeError> {
        if self.map.contains_key(&inst.results[0]) {
            return Ok(());
        }
        let operands = inst.operands.iter().map(|v| self.value(*v)).collect::<Result<_, _>>()?;
        self.b.loc = self.f.values[inst.results[0].0 as usize].loc.clone();
        let tys = inst.results.iter().map(|r| self.f.ty(*r).clone()).collect();
        let new = self.b.push(inst.op, operands, inst.attrs.clone(), tys);
        self.map.extend(inst.results.iter().copied().zip(new));
        Ok(())
    }

    fn group(&mut self, g: usize) -> Result<(), TypeError> {
        if std::mem::replace(&mut self.done[g], true) {
            return Ok(());
        }
        let set = self.groups[g].clone();
        let anchor = set.iter().copied().max_by_key(|&i| weight(self.f.insts[i].op)).unwrap_or(0);
        let name = format!("{}.{}_{}", self.f.name, self.fused.len(), self.f.insts[anchor].op.name());
        let index = self.fused.len();
        self.fused.push(Function::new(name.clone(), Kind::Fused));
        let b = Builder::new(self.syms, Function::new(name.clone(), Kind::Fused));
        let mut body = Body { w: self, set: &set, b, map: HashMap::new(), inputs: vec![] };
        let inputs = body.inputs_of();
        for (i, v) in inputs.iter().enumerate() {
            body.b.loc = body.w.f.values[v.0 as usize].loc.clone();
            let arg = body.b.arg(format!("x{i}"), body.w.f.ty(*v).clone());
            body.map.insert(*v, arg);
        }
        body.inputs = inputs;
        let mut results = vec![];
        for &i in &set {
            let v = body.w.f.insts[i].results[0];
            let new = body.value(v)?;
            let mut uses = body.w.f.insts.iter().enumerate().filter(|(_, u)| u.operands.contains(&v));
            let leaves = uses.any(|(u, _)| !set.contains(&u) && !body.free_inside(u));
            if leaves || body.w.f.results.iter().any(|(_, r)| *r == v) || body.w.f.insts[i].op == Op::KvAppend {
                results.push((v, new));
            }
        }
        let Body { mut b, inputs, .. } = body;
        b.func.results = results.iter().enumerate().map(|(i, (_, new))| (format!("y{i}"), *new)).collect();
        let fused = b.func;
        let operands = inputs.iter().map(|v| self.value(*v)).collect::<Result<_, _>>()?;
        self.b.loc = results.first().and_then(|(v, _)| self.f.values[v.0 as usize].loc.clone());
        let tys = results.iter().map(|(v, _)| self.f.ty(*v).clone()).collect();
        let new = self.b.push(Op::Call, operands, vec![Attr::Str(name)], tys);
        self.map.extend(results.iter().map(|(v, _)| *v).zip(new));
        self.fused[index] = fused;
        Ok(())
    }
}

/// Which operation gives a group its name.
fn weight(op: Op) -> u32 {
    match op.class() {
        Class::Contract => 6,
        Class::State => 5,
        Class::Repr => 4,
        Class::Gather => 3,
        Class::Reduce => 2,
        _ => 1,
    }
}

struct Body<'w, 'a> {
    w: &'w mut Writer<'a>,
    set: &'w BTreeSet<usize>,
    b: Builder<'a>,
    map: HashMap<Value, Value>,
    inputs: Vec<Value>,
}

impl Body<'_, '_> {
    fn is_inside(&self, i: usize) -> bool {
        self.set.contains(&i) || (self.w.of[i].is_none() && role(self.w.f, &self.w.f.insts[i]) == Role::Free)
    }

    /// A free operation all of whose readers are in the group: its value does not leave.
    fn free_inside(&self, i: usize) -> bool {
        if self.w.of[i].is_some() || role(self.w.f, &self.w.f.insts[i]) != Role::Free {
            return false;
        }
        let v = self.w.f.insts[i].results[0];
        let mut users = self.w.f.insts.iter().enumerate().filter(|(_, u)| u.operands.contains(&v));
        users.all(|(u, _)| self.set.contains(&u) || self.free_inside(u))
    }

    /// What the group reads from outside, in order of first use.
    fn inputs_of(&self) -> Vec<Value> {
        let mut inputs = vec![];
        let mut stack: Vec<Value> = vec![];
        let mut seen = BTreeSet::new();
        for &i in self.set {
            stack.extend(self.w.f.insts[i].operands.iter().rev());
            while let Some(v) = stack.pop() {
                match self.w.defs[v.0 as usize] {
                    Some(d) if self.set.contains(&d) => {}
                    Some(d) if self.is_inside(d) => stack.extend(self.w.f.insts[d].operands.iter().rev()),
                    _ if seen.insert(v) => inputs.push(v),
                    _ => {}
                }
            }
        }
        inputs
    }

    fn value(&mut self, v: Value) -> Result<Value, TypeError> {
        if let Some(new) = self.map.get(&v) {
            return Ok(*new);
        }
        let Some(i) = self.w.defs[v.0 as usize].filter(|i| self.is_inside(*i)) else {
            return Err(TypeError { code: "E0215", message: "an input of a group is not listed".into() });
        };
        let inst = self.w.f.insts[i].clone();
        let operands = inst.operands.iter().map(|v| self.value(*v)).collect::<Result<Vec<_>, _>>()?;
        self.b.loc = self.w.f.values[v.0 as usize].loc.clone();
        let new = self.b.emit(inst.op, &operands, inst.attrs.clone())?;
        self.map.insert(v, new);
        Ok(new)
    }
}

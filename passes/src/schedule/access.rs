//! Which elements statements touch, and whether the iterations of a loop can meet.

use std::collections::{HashMap, HashSet};

use marquetry_ir::DType;
use marquetry_ir::loops::{Buf, Expr, Kernel, Node, Scope, Stmt, Var};

use super::linear::{Linear, as_var, gcd, range, range_of};
use super::tree::{Loop, Subst, loads, uses, visit};

/// One load or store.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub buf: Buf,
    /// Indices, with bound integers replaced by their values.
    pub index: Vec<Expr>,
    pub lanes: u16,
    pub store: bool,
}

/// What statements do to memory.
#[derive(Default)]
pub(super) struct Effects {
    pub accesses: Vec<Access>,
    /// Variables bound inside, with the extents of loops where they are constant.
    pub bound: HashMap<Var, Option<i64>>,
    /// Buffers stored to.
    pub stored: HashSet<Buf>,
    lets: Subst,
}

/// An index along one axis: `step * iteration + fixed +` what varies within an iteration.
#[derive(Default)]
struct Axis {
    step: i64,
    /// The same in all iterations.
    fixed: Linear,
    /// Least and largest of what varies.
    span: Option<(i128, i128)>,
    /// What varies is a multiple of the first number plus the second one.
    comb: Option<(i64, i64)>,
}

impl Axis {
    /// Are two indices of different iterations never equal?
    fn apart(&self, o: &Axis, extent: Option<i64>) -> bool {
        if self.step != o.step || !self.fixed.minus(&o.fixed).terms.is_empty() {
            return false;
        }
        let step = i128::from(self.step).abs();
        // Largest distance between iterations, in elements.
        let far = if step == 0 { Some(0) } else { extent.map(|n| step * i128::from(n - 1)) };
        let spans = self.span.zip(o.span).is_some_and(|(x, y)| {
            let (lo, hi) = (x.0 - y.1, x.1 - y.0);
            step > 0 && hi < step && lo > -step || far.is_some_and(|far| lo > far || hi < -far)
        });
        let combs = || {
            let (Some((g, x)), Some((h, y)), Some(n)) = (self.comb, o.comb, extent) else { return false };
            let (g, d) = (i128::from(gcd(g, h)), i128::from(x) - i128::from(y));
            g > 0 && n <= 1024 && (1..i128::from(n)).all(|i| (step * i + d) % g != 0 && (step * i - d) % g != 0)
        };
        spans || combs()
    }
}

impl Effects {
    pub fn of(body: &[Stmt]) -> Effects {
        let mut out = Effects::default();
        out.body(body);
        out
    }

    fn body(&mut self, body: &[Stmt]) {
        for s in body {
            match s {
                Stmt::For { var, extent, body, .. } => {
                    self.expr(extent);
                    self.bound.insert(*var, extent.as_int());
                    self.body(body);
                }
                Stmt::Let { var, value } => {
                    self.expr(value);
                    self.bound.insert(*var, None);
                    bind_index(&mut self.lets, *var, value);
                }
                Stmt::Store { buf, index, value } => {
                    index.iter().for_each(|e| self.expr(e));
                    self.expr(value);
                    self.stored.insert(*buf);
                    self.access(*buf, index, value.lanes(), true);
                }
                Stmt::If { cond, then, other } => {
                    self.expr(cond);
                    self.body(then);
                    self.body(other);
                }
                Stmt::Micro(m) => {
                    m.exprs().for_each(|e| self.expr(e));
                    // Without an index an access may be to any element.
                    for ((buf, _), p) in m.args.iter().zip(m.op.params()) {
                        self.stored.extend(p.written.then_some(*buf));
                        self.access(*buf, &[], 1, p.written);
                    }
                }
            }
        }
    }

    fn expr(&mut self, e: &Expr) {
        let mut found = vec![];
        visit(e, &mut HashSet::new(), &mut |x| {
            if let Node::Load(b, index) = x.node() {
                found.push((*b, index.clone(), x.lanes()));
            }
        });
        found.into_iter().for_each(|(b, index, lanes)| self.access(b, &index, lanes, false));
    }

    fn access(&mut self, buf: Buf, index: &[Expr], lanes: u16, store: bool) {
        let index = index.iter().map(|e| self.lets.expr(e)).collect();
        self.accesses.push(Access { buf, index, lanes, store });
    }

    fn axis(&self, a: &Access, at: usize, v: Var) -> Option<Axis> {
        let mut form = Linear::of(&a.index[at]);
        let mut x = Axis { step: form.take(v), ..Axis::default() };
        let width = if at + 1 == a.index.len() { i128::from(a.lanes) - 1 } else { 0 };
        let start = i128::from(form.constant);
        let mut span = Some((start, start + width));
        let mut own = Linear { constant: form.constant, ..Linear::default() };
        for (atom, k) in &form.terms {
            if uses(atom, |x| x == v) || loads(atom, |b| self.stored.contains(&b)) {
                return None;
            }
            if !uses(atom, |x| self.bound.contains_key(&x)) {
                x.fixed.add_atom(atom, *k);
                continue;
            }
            own.add_atom(atom, *k);
            let k = i128::from(*k);
            span = span.zip(range(atom, &self.bound)).map(|((lo, hi), (a, b))| {
                let (a, b) = (a * k, b * k);
                (lo + a.min(b), hi + a.max(b))
            });
        }
        x.span = span;
        if width == 0 {
            let constant = std::mem::take(&mut own.constant);
            x.comb = Some((own.divisor(), constant));
        }
        Some(x)
    }

    /// Do two accesses to one buffer never meet in different iterations of `v`, which has `extent` ones?
    fn apart(&self, a: &Access, b: &Access, v: Var, extent: Option<i64>) -> bool {
        if extent.is_some_and(|n| n <= 1) {
            return true;
        }
        let apart = |at| match (self.axis(a, at, v), self.axis(b, at, v)) {
            (Some(x), Some(y)) => x.apart(&y, extent),
            _ => false,
        };
        a.index.len() == b.index.len() && (0..a.index.len()).any(apart)
    }

    /// Pairs of accesses to one buffer of which one is a store.
    pub fn conflicts(&self) -> impl Iterator<Item = (&Access, &Access)> {
        let stores = self.accesses.iter().filter(|a| a.store);
        stores.flat_map(|s| self.accesses.iter().filter(move |a| a.buf == s.buf).map(move |a| (s, a)))
    }

    /// A buffer of which different iterations of `v` may touch one element, at least one of them writing.
    pub fn shared(&self, l: &Loop, mut relevant: impl FnMut(Buf) -> bool) -> Option<Buf> {
        self.conflicts()
            .find(|(a, b)| relevant(a.buf) && !self.apart(a, b, l.var, l.extent.as_int()))
            .map(|(a, _)| a.buf)
    }

    /// A buffer of which iterations that differ in both loops may touch one element, at least one of them writing.
    /// `self` are the effects of the inner loop's body.
    pub fn shared_by_both(mut self, outer: &Loop, inner: &Loop) -> Option<Buf> {
        let (o, i) = (outer.extent.as_int(), inner.extent.as_int());
        self.bound.extend([(outer.var, o), (inner.var, i)]);
        self.conflicts()
            .find(|(a, b)| !self.apart(a, b, outer.var, o) && !self.apart(a, b, inner.var, i))
            .map(|(a, _)| a.buf)
    }
}

/// Notes a `let` of an index, so that it can be replaced by its value.
pub(super) fn bind_index(lets: &mut Subst, var: Var, value: &Expr) {
    if value.dtype() == DType::I64 && value.lanes() == 1 && !loads(value, |_| true) {
        let value = lets.expr(value);
        lets.env.insert(var, value);
    }
}

/// A store that has happened in the current iteration.
#[derive(Clone)]
struct Done {
    access: Access,
    /// Loops around the store that have run to their end since.
    swept: HashMap<Var, Option<i64>>,
}

/// Finds loads of `Local` and `Reg` buffers whose value may come from an earlier iteration.
pub(super) struct Carried<'a> {
    k: &'a Kernel,
    lets: Subst,
    /// Loops around the current statement.
    around: HashMap<Var, Option<i64>>,
    done: Vec<Done>,
    found: Option<Buf>,
}

impl Carried<'_> {
    /// A buffer that carries a value from one iteration with this body to the next.
    pub fn find(k: &Kernel, body: &[Stmt]) -> Option<Buf> {
        let mut c = Carried { k, lets: Subst::default(), around: HashMap::new(), done: vec![], found: None };
        c.body(body);
        c.found
    }

    fn body(&mut self, body: &[Stmt]) {
        for s in body {
            match s {
                Stmt::For { var, extent, body, .. } => {
                    self.expr(extent);
                    let before = self.done.len();
                    self.around.insert(*var, extent.as_int());
                    self.body(body);
                    self.around.remove(var);
                    if extent.as_int().is_some_and(|n| n > 0) {
                        self.done[before..].iter_mut().for_each(|d| {
                            d.swept.insert(*var, extent.as_int());
                        });
                    } else {
                        self.done.truncate(before);
                    }
                }
                Stmt::Let { var, value } => {
                    self.expr(value);
                    bind_index(&mut self.lets, *var, value);
                }
                Stmt::Store { buf, index, value } => {
                    index.iter().for_each(|e| self.expr(e));
                    self.expr(value);
                    let index = index.iter().map(|e| self.lets.expr(e)).collect();
                    let access = Access { buf: *buf, index, lanes: value.lanes(), store: true };
                    self.done.push(Done { access, swept: HashMap::new() });
                }
                Stmt::If { cond, then, other } => {
                    self.expr(cond);
                    for branch in [then, other] {
                        let before = self.done.len();
                        self.body(branch);
                        self.done.truncate(before);
                    }
                }
                Stmt::Micro(m) => {
                    m.exprs().for_each(|e| self.expr(e));
                    // How much it covers is not looked at: what it reads counts as carried, what it writes as not written.
                    let local = |b: Buf| matches!(self.k.decl(b).scope, Scope::Local | Scope::Reg);
                    let read = m.args.iter().zip(m.op.params()).find(|((b, _), p)| !p.written && local(*b));
                    self.found = self.found.or(read.map(|((b, _), _)| *b));
                }
            }
        }
    }

    fn expr(&mut self, e: &Expr) {
        let mut found = vec![];
        visit(e, &mut HashSet::new(), &mut |x| {
            if let Node::Load(b, index) = x.node() {
                found.push((*b, index.clone(), x.lanes()));
            }
        });
        for (buf, index, lanes) in found {
            if matches!(self.k.decl(buf).scope, Scope::Local | Scope::Reg) {
                let index = index.iter().map(|e| self.lets.expr(e)).collect();
                let load = Access { buf, index, lanes, store: false };
                if !self.done.iter().any(|d| d.covers(&load, &self.around)) {
                    self.found.get_or_insert(buf);
                }
            }
        }
    }
}

impl Done {
    /// Has it written every element of the load?
    fn covers(&self, load: &Access, around: &HashMap<Var, Option<i64>>) -> bool {
        let s = &self.access;
        let mut swept = HashSet::new();
        s.buf == load.buf
            && s.index.len() == load.index.len()
            && (0..s.index.len()).all(|at| {
                let last = at + 1 == s.index.len();
                let mut fixed = Linear::of(&s.index[at]);
                let mut steps = vec![];
                for (atom, c) in std::mem::take(&mut fixed.terms) {
                    match as_var(&atom).and_then(|v| Some((v, (*self.swept.get(&v)?)?))) {
                        Some((v, n)) => {
                            // The axes are swept independently of each other.
                            if !swept.insert(v) {
                                return false;
                            }
                            steps.push((i128::from(c), i128::from(n)));
                        }
                        None if uses(&atom, |v| self.swept.contains_key(&v)) || loads(&atom, |_| true) => return false,
                        None => fixed.add_atom(&atom, c),
                    }
                }
                // The values without holes: from `lo`, `count` of them.
                let mut count = if last { i128::from(s.lanes) } else { 1 };
                let mut lo = 0;
                steps.sort_by_key(|(c, _)| c.abs());
                for (c, n) in steps {
                    if c.abs() > count {
                        return false;
                    }
                    count += c.abs() * (n - 1);
                    lo += c.min(0) * (n - 1);
                }
                let width = if last { i128::from(load.lanes) - 1 } else { 0 };
                let distance = Linear::of(&load.index[at]).minus(&fixed);
                range_of(&distance, around).is_some_and(|(a, b)| a >= lo && b + width < lo + count)
            })
    }
}

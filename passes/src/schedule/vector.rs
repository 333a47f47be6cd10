//! Primitives that make vectors: `vectorize` and `vectorize_reduce`.

use std::collections::HashMap;

use marquetry_ir::DType;
use marquetry_ir::loops::{BinOp, Buf, Expr, Kernel, LoopKind, Node, Scope, Stmt, Var};

use super::access::Effects;
use super::lane::{self, LANE};
use super::linear::{Linear, as_var};
use super::nest::MAX_UNROLL;
use super::tree::{Loop, Subst, loads, steps, uses};
use super::{ScheduleError, buffer, edit, name};

/// Runs `lanes` iterations of a loop at a time.
///
/// ```text
/// for i in 0..n { let x = a[r, i]; b[r, i] = x * s[r] + c[i] }
///   →  for i in 0..n/L { let x = a[r, i*L]:L; b[r, i*L] = x * splat(s[r]) + c[i*L]:L }
///      for t in 0..n%L { let y = a[r, n/L*L + t]; ... }                   // where n%L is not 0
/// ```
///
/// A loop with `lanes` iterations disappears. Other uses of the variable become `ramp(i*L)`.
///
/// Needs, with `lanes` a power of two from 4 to 64 and at most the extent:
/// * a serial or unrolled loop whose extent loads nothing and is not negative;
/// * scalar statements: stores, bindings, and loops and branches that do not depend on the variable;
/// * each store and each load that uses the variable has index `i + e` on its last axis, and no other axis uses it;
/// * different iterations never touch the same element with one of them storing;
/// * accesses to `Reg` buffers that use the variable are aligned to their width.
pub fn vectorize(k: &mut Kernel, var: Var, lanes: u16) -> Result<(), ScheduleError> {
    edit(k, "vectorize", var, |k, l| {
        let s = check(k, &l, lanes, 1)?;
        let single = s.whole.as_int() == Some(1);
        let first = if single { Expr::idx(0) } else { Expr::var(var) * i64::from(lanes) };
        let body = lane::expand(&l.body, var, first, lanes);
        let lane_loop = Loop { var: LANE, extent: Expr::idx(lanes.into()), kind: l.kind, body: vec![] };
        if let Some(b) = Effects::of(&body).shared(&lane_loop, |_| true) {
            return Err(format!("iterations may meet in {}", buffer(k, b)));
        }
        let mut v = Vectorizer::new(k, lanes);
        let body = v.body(&body)?;
        let kind = v.loop_kind(l.kind, &s.whole)?;
        let mut new = Loop { var, extent: s.whole, kind, body }.flat();
        let mut line = format!("by {lanes}");
        add_tail(k, &l, kind, s.covered, s.rest, &mut new, &mut line);
        Ok((new, line, ()))
    })
}

/// Combines `lanes` iterations of a reduction at a time, in `chains` independent accumulators.
///
/// ```text
/// for i in 0..n { acc[c] = acc[c] + a[i] }
///   →  vec[0]:L = splat(0)
///      for i in 0..n/L { vec[0]:L = vec[0]:L + a[i*L]:L }
///      acc[c] = acc[c] + reduce(add, vec[0]:L)
///      for t in 0..n%L { acc[c] = acc[c] + a[n/L*L + t] }                 // where n%L is not 0
/// ```
///
/// Also for `max`, `min`, `fma(a, b, acc)`, `dot4(acc, w, x)` and sums of several such terms. Sums of floats are computed in
/// another order, which depends on `lanes` and `chains` only; `max` and `min` of NaNs may choose other operands.
///
/// Needs, with `lanes` a power of two from 4 to 64, `lanes * chains` at most the extent, and up to 8 chains:
/// * a serial or unrolled loop whose extent loads nothing and is not negative;
/// * its body is bindings followed by one store to an element whose index does not depend on the loop;
/// * the element's buffer is loaded once, as the operand that is combined;
/// * loads as in [`vectorize`].
pub fn vectorize_reduce(k: &mut Kernel, var: Var, lanes: u16, chains: u16) -> Result<(), ScheduleError> {
    edit(k, "vectorize_reduce", var, |k, l| {
        if !(1..=8).contains(&chains) {
            return Err(format!("{chains} chains"));
        }
        let s = check(k, &l, lanes, chains)?;
        let (op, buf, index) = check_reduction(k, &l)?;
        let dt = k.decl(buf).dtype;
        let identity = identity(op, dt).ok_or_else(|| format!("no reduction of {dt}"))?.splat(lanes);
        let single = s.whole.as_int() == Some(1);
        let mut kind = l.kind;
        let mut new = vec![];
        let sum = if single && chains == 1 {
            let body = lane::expand(&l.body, var, Expr::idx(0), lanes);
            let (lets, value) = parts(&body)?;
            let mut v = Vectorizer::new(k, lanes);
            new.extend(v.body(lets)?);
            match without(value, buf) {
                Some(terms) => v.vector(&terms)?,
                None => {
                    let (_, old, _) = reduction(value, buf).ok_or("the store is no reduction")?;
                    v.set(&old, identity);
                    v.vector(value)?
                }
            }
        } else {
            let shape = vec![i64::from(chains).into(), i64::from(lanes).into()];
            let acc = k.buffer("vec", dt, shape, Scope::Reg);
            let chain = |c: u16| vec![Expr::idx(i64::from(c)), Expr::idx(0)];
            let load = |c: u16| Expr::new(Node::Load(acc, chain(c)), dt, lanes);
            new.extend((0..chains).map(|c| Stmt::Store { buf: acc, index: chain(c), value: identity.clone() }));
            let mut body = vec![];
            for c in 0..chains {
                // Bindings of later chains need names of their own.
                let own = if c == 0 { l.body.clone() } else { Subst::default().copy(k, &l.body) };
                let step = i64::from(lanes) * i64::from(chains);
                let first = if single { Expr::idx(0) } else { Expr::var(var) * step };
                let own = lane::expand(&own, var, first + i64::from(c) * i64::from(lanes), lanes);
                let (lets, value) = parts(&own)?;
                let (_, old, _) = reduction(value, buf).ok_or("the store is no reduction")?;
                let mut v = Vectorizer::new(k, lanes);
                v.set(&old, load(c));
                body.extend(v.body(lets)?);
                body.push(Stmt::Store { buf: acc, index: chain(c), value: v.vector(value)? });
                kind = v.loop_kind(l.kind, &s.whole)?;
            }
            new.extend(Loop { var, extent: s.whole, kind, body }.flat());
            let mut sums: Vec<Expr> = (0..chains).map(load).collect();
            while sums.len() > 1 {
                let pair = |c: &[Expr]| c.iter().cloned().reduce(|a, b| Expr::binary(op, a, b)).expect("a chunk");
                sums = sums.chunks(2).map(pair).collect();
            }
            sums.remove(0)
        };
        let value = Expr::binary(op, k.load(buf, index.clone()), sum.reduce(op));
        new.push(Stmt::Store { buf, index, value });
        let mut line = format!("by {lanes}");
        if chains > 1 {
            line += &format!(" in {chains} chains");
        }
        add_tail(k, &l, kind, s.covered, s.rest, &mut new, &mut line);
        Ok((new, line, ()))
    })
}

/// The bindings of a reduction's body, and the value it stores.
fn parts(body: &[Stmt]) -> Result<(&[Stmt], &Expr), String> {
    match body.split_last() {
        Some((Stmt::Store { value, .. }, lets)) => Ok((lets, value)),
        _ => Err("its last statement is no store".into()),
    }
}

/// Checks that the body is a reduction into one element; gives the operator and the element.
fn check_reduction(k: &Kernel, l: &Loop) -> Result<(BinOp, Buf, Vec<Expr>), String> {
    let Some((Stmt::Store { buf, index, value }, lets)) = l.body.split_last() else {
        return Err("its last statement is no store".into());
    };
    let mut bound = vec![l.var];
    let mut terms = vec![];
    for s in lets {
        let Stmt::Let { var, value } = s else { return Err("there is more than bindings and one store".into()) };
        bound.push(*var);
        terms.push(value.clone());
    }
    if index.iter().any(|e| uses(e, |v| bound.contains(&v)) || loads(e, |b| b == *buf)) {
        return Err("the element stored to depends on the loop".into());
    }
    let none = "the store is no reduction";
    let (op, old, rest) = reduction(value, *buf).ok_or(none)?;
    terms.extend(rest);
    let Node::Load(_, at) = old.node() else { return Err(none.into()) };
    let equal = |(a, b): (&Expr, &Expr)| {
        let d = Linear::of(a).minus(&Linear::of(b));
        d.terms.is_empty() && d.constant == 0
    };
    if at.len() != index.len() || !at.iter().zip(index).all(equal) {
        return Err(format!("it loads another element of {}", buffer(k, *buf)));
    }
    if terms.iter().any(|e| loads(e, |b| b == *buf)) {
        return Err(format!("its terms load from {}", buffer(k, *buf)));
    }
    Ok((op, *buf, index.clone()))
}

/// What both primitives need of the loop itself.
fn check(k: &Kernel, l: &Loop, lanes: u16, chains: u16) -> Result<super::tree::Steps, String> {
    if !lanes.is_power_of_two() || !(4..=64).contains(&lanes) {
        return Err(format!("{lanes} lanes"));
    }
    if l.kind == LoopKind::Parallel {
        return Err("it is parallel".into());
    }
    let step = i64::from(lanes) * i64::from(chains);
    if l.extent.as_int().is_some_and(|n| n < step) {
        return Err(format!("fewer than {step} iterations"));
    }
    steps(k, l, step).ok_or_else(|| "its extent may be negative or change".into())
}

/// The iterations that are left over, as a loop of scalars.
fn add_tail(k: &mut Kernel, l: &Loop, kind: LoopKind, from: Expr, count: Expr, new: &mut Vec<Stmt>, line: &mut String) {
    if count.as_int() == Some(0) {
        return;
    }
    let base = k.vars[l.var.0 as usize].clone();
    let t = k.fresh(&format!("{base}t"));
    let body = Subst::new([(l.var, from + Expr::var(t))]).copy(k, &l.body);
    new.push(Loop { var: t, extent: count, kind, body }.stmt());
    *line += &format!(", tail {}", name(k, t));
}

/// Neutral element of a reduction.
fn identity(op: BinOp, dt: DType) -> Option<Expr> {
    let (lo, hi) = match dt {
        DType::F32 => {
            return Some(Expr::float(match op {
                BinOp::Add => 0.0,
                BinOp::Max => f32::NEG_INFINITY,
                _ => f32::INFINITY,
            }));
        }
        DType::I64 => (i64::MIN, i64::MAX),
        DType::I32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        DType::U32 => (0, i64::from(u32::MAX)),
        DType::I16 => (i64::from(i16::MIN), i64::from(i16::MAX)),
        DType::I8 => (-128, 127),
        DType::U8 => (0, 255),
        DType::F16 | DType::BF16 | DType::Bool => return None,
    };
    Some(Expr::int(
        if op == BinOp::Add {
            0
        } else if op == BinOp::Max {
            lo
        } else {
            hi
        },
        dt,
    ))
}

/// Operator, the load of `buf` that the terms are combined with, and the terms.
fn reduction(e: &Expr, buf: Buf) -> Option<(BinOp, Expr, Vec<Expr>)> {
    let step = |inner: &Expr, want: BinOp, terms: &[&Expr]| {
        let (op, old, mut rest) = match inner.node() {
            Node::Load(b, _) if *b == buf && inner.lanes() == 1 => (want, inner.clone(), vec![]),
            _ => reduction(inner, buf)?,
        };
        rest.extend(terms.iter().copied().cloned());
        (op == want).then_some((op, old, rest))
    };
    match e.node() {
        Node::Binary(op @ (BinOp::Add | BinOp::Max | BinOp::Min), a, b) => {
            step(a, *op, &[b]).or_else(|| step(b, *op, &[a]))
        }
        Node::Binary(BinOp::Sub, a, b) => step(a, BinOp::Add, &[b]),
        Node::Fma(a, b, c) => step(c, BinOp::Add, &[a, b]),
        Node::Dot4 { acc, w, x, .. } => step(acc, BinOp::Add, &[w, x]),
        _ => None,
    }
}

/// The terms of a reduction alone; none if that takes more than leaving out the old value.
fn without(e: &Expr, buf: Buf) -> Option<Expr> {
    let old = |e: &Expr| matches!(e.node(), Node::Load(b, _) if *b == buf);
    match e.node() {
        Node::Binary(BinOp::Add | BinOp::Max | BinOp::Min, a, b) if old(a) => Some(b.clone()),
        Node::Binary(BinOp::Add | BinOp::Max | BinOp::Min, a, b) if old(b) => Some(a.clone()),
        Node::Fma(a, b, c) if old(c) => Some(a.clone() * b.clone()),
        _ => None,
    }
}

/// Rewrites statements of one iteration to `lanes` iterations.
struct Vectorizer<'a> {
    k: &'a Kernel,
    lanes: u16,
    /// The values in lane 0.
    zero: Subst,
    /// Bindings that became vectors.
    vectors: HashMap<Var, Expr>,
    /// Does an expression differ between lanes? By identity; keeps the expression alive.
    varies: HashMap<usize, (Expr, bool)>,
    /// Vectors by the identity of the scalar, which is alive in `varies`.
    done: HashMap<usize, Expr>,
    /// Is a register chosen by the lane?
    registers: bool,
}

impl<'a> Vectorizer<'a> {
    fn new(k: &'a Kernel, lanes: u16) -> Vectorizer<'a> {
        let zero = Subst::new([(LANE, Expr::idx(0))]);
        let (vectors, varies, done) = Default::default();
        Vectorizer { k, lanes, zero, vectors, varies, done, registers: false }
    }

    /// Gives an expression its vector.
    fn set(&mut self, e: &Expr, vector: Expr) {
        self.varies.insert(e.id(), (e.clone(), true));
        self.done.insert(e.id(), vector);
    }

    /// Kind of the loop that remains: registers can only be chosen at compile time.
    fn loop_kind(&self, kind: LoopKind, steps: &Expr) -> Result<LoopKind, String> {
        if !self.registers || steps.as_int() == Some(1) {
            return Ok(kind);
        }
        match steps.as_int() {
            Some(n) if n <= MAX_UNROLL => Ok(LoopKind::Unroll),
            _ => Err("it chooses among too many registers".into()),
        }
    }

    fn varies(&mut self, e: &Expr) -> bool {
        if let Some((_, known)) = self.varies.get(&e.id()) {
            return *known;
        }
        let r = match as_var(e) {
            Some(v) => v == LANE || self.vectors.contains_key(&v),
            None => e.children().into_iter().any(|c| self.varies(c)),
        };
        self.varies.insert(e.id(), (e.clone(), r));
        r
    }

    fn any_vector(&mut self, l: &Linear) -> bool {
        l.terms.iter().any(|(a, _)| self.varies(a))
    }

    fn body(&mut self, body: &[Stmt]) -> Result<Vec<Stmt>, String> {
        body.iter().map(|s| self.stmt(s)).collect()
    }

    fn stmt(&mut self, s: &Stmt) -> Result<Stmt, String> {
        match s {
            Stmt::For { var, extent, kind, body } => {
                if self.varies(extent) {
                    return Err(format!("the extent of {} depends on it", name(self.k, *var)));
                }
                Ok(Stmt::For { var: *var, extent: extent.clone(), kind: *kind, body: self.body(body)? })
            }
            Stmt::If { cond, then, other } => {
                if self.varies(cond) {
                    return Err("a condition depends on it".into());
                }
                Ok(Stmt::If { cond: cond.clone(), then: self.body(then)?, other: self.body(other)? })
            }
            Stmt::Let { var, value } => {
                let new = self.lane_values(value)?;
                if new.lanes() != value.lanes() {
                    self.vectors.insert(*var, Expr::new(Node::Var(*var), new.dtype(), new.lanes()));
                }
                Ok(Stmt::Let { var: *var, value: new })
            }
            Stmt::Store { buf, index, value } => {
                if value.lanes() != 1 {
                    return Err("it stores vectors already".into());
                }
                let index = self
                    .index(*buf, index)?
                    .ok_or_else(|| format!("all iterations store to the same element of {}", buffer(self.k, *buf)))?;
                Ok(Stmt::Store { buf: *buf, index, value: self.vector(value)? })
            }
            Stmt::Micro(m) => Err(format!("`{}` is not a loop", m.op)),
        }
    }

    /// Index of an access that covers all lanes; none if all lanes access the same element.
    fn index(&mut self, buf: Buf, index: &[Expr]) -> Result<Option<Vec<Expr>>, String> {
        let varying: Vec<bool> = index.iter().map(|e| self.varies(e)).collect();
        let Some((last, outer)) = varying.split_last() else { return Ok(None) };
        if outer.contains(&true) {
            return Err(format!("an outer axis of {} depends on it", buffer(self.k, buf)));
        }
        if !last {
            return Ok(None);
        }
        let step = lane::split(&index[outer.len()]).filter(|(_, rest)| !self.any_vector(rest));
        if step.is_none_or(|(c, _)| c != 1) {
            return Err(format!("it does not step through {} one by one", buffer(self.k, buf)));
        }
        let mut index = index.to_vec();
        let at = self.zero.expr(&index[outer.len()]);
        if self.k.decl(buf).scope == Scope::Reg {
            self.registers = true;
            let lanes = i64::from(self.lanes);
            let row = self.k.decl(buf).shape.last().and_then(|d| d.as_const());
            if !Linear::of(&at).multiple_of(lanes) || !outer.is_empty() && row.is_none_or(|n| n % lanes != 0) {
                return Err(format!("accesses to registers {} are not aligned", buffer(self.k, buf)));
            }
        }
        index[outer.len()] = at;
        Ok(Some(index))
    }

    /// The values of all lanes.
    fn vector(&mut self, e: &Expr) -> Result<Expr, String> {
        let v = self.lane_values(e)?;
        Ok(if v.lanes() == 1 { v.splat(self.lanes) } else { v })
    }

    /// The values of all lanes, or one scalar if they are the same.
    fn lane_values(&mut self, e: &Expr) -> Result<Expr, String> {
        if !self.varies(e) {
            return Ok(e.clone());
        }
        if let Some(v) = self.done.get(&e.id()) {
            return Ok(v.clone());
        }
        if e.lanes() != 1 {
            return Err("it computes vectors already".into());
        }
        let steps =
            e.dtype() == DType::I64 && lane::split(e).is_some_and(|(c, rest)| c == 1 && !self.any_vector(&rest));
        let new = match e.node() {
            _ if steps => Expr::new(Node::Ramp(self.zero.expr(e)), e.dtype(), self.lanes),
            Node::Var(v) => self.vectors.get(v).cloned().ok_or("a variable has no value")?,
            Node::Load(b, index) => match self.index(*b, index)? {
                Some(index) => Expr::new(Node::Load(*b, index), e.dtype(), self.lanes),
                None => return Err(format!("no index of {} depends on it", buffer(self.k, *b))),
            },
            Node::Reduce(..) => return Err("it computes vectors already".into()),
            _ => {
                let kids = e.children().into_iter().map(|c| self.lane_values(c)).collect::<Result<Vec<_>, _>>()?;
                e.with_children(kids)
            }
        };
        self.done.insert(e.id(), new.clone());
        Ok(new)
    }
}

//! Primitives that make vectors: `vectorize` and `vectorize_reduce`.

use std::collections::HashMap;

use marquetry_ir::DType;
use marquetry_ir::loops::{BinOp, Buf, Expr, Kernel, LoopKind, Node, Scope, Stmt, Var};

use super::access::{Effects, bind_index};
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
    edit(k, "vectorize", var, |k, mut l| {
        let s = check(k, &l, lanes, 1)?;
        let scalar = l.body.clone();
        l.body = inline_indices(&l.body, var);
        if let Some(b) = Effects::of(&l.body).shared(&l, |_| true) {
            return Err(format!("iterations may meet in {}", buffer(k, b)));
        }
        let single = s.whole.as_int() == Some(1);
        let base = if single { Expr::idx(0) } else { Expr::var(var) * i64::from(lanes) };
        let mut v = Vectorizer::new(k, var, lanes, base);
        let body = v.body(&l.body)?;
        let kind = v.loop_kind(&l, &s.whole)?;
        let mut new = Loop { extent: s.whole, kind, body, ..l }.flat();
        let mut line = format!("by {lanes}");
        add_tail(k, var, kind, &scalar, s.covered, s.rest, &mut new, &mut line);
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
    edit(k, "vectorize_reduce", var, |k, mut l| {
        if !(1..=8).contains(&chains) {
            return Err(format!("{chains} chains"));
        }
        let s = check(k, &l, lanes, chains)?;
        let scalar = l.body.clone();
        l.body = inline_indices(&l.body, var);
        let Some((Stmt::Store { buf, index, value }, lets)) = l.body.split_last() else {
            return Err("its last statement is no store".into());
        };
        if lets.iter().any(|s| !matches!(s, Stmt::Let { .. })) {
            return Err("there is more than one store".into());
        }
        let bound: Vec<Var> =
            lets.iter().filter_map(|s| if let Stmt::Let { var, .. } = s { Some(*var) } else { None }).collect();
        if index.iter().any(|e| uses(e, |v| v == var || bound.contains(&v)) || loads(e, |b| b == *buf)) {
            return Err("the element stored to depends on the loop".into());
        }
        let (op, old, rest) = reduction(value, *buf).ok_or("the store is no reduction")?;
        let Node::Load(_, at) = old.node() else { return Err("the store is no reduction".into()) };
        let equal = |(a, b): (&Expr, &Expr)| {
            let d = Linear::of(a).minus(&Linear::of(b));
            d.terms.is_empty() && d.constant == 0
        };
        if at.len() != index.len() || !at.iter().zip(index).all(equal) {
            return Err(format!("it loads another element of {}", buffer(k, *buf)));
        }
        let values = lets.iter().filter_map(|s| if let Stmt::Let { value, .. } = s { Some(value) } else { None });
        if rest.iter().chain(values).any(|e| loads(e, |b| b == *buf)) {
            return Err(format!("its terms load from {}", buffer(k, *buf)));
        }
        let dt = value.dtype();
        let identity = identity(op, dt).ok_or_else(|| format!("no reduction of {dt}"))?.splat(lanes);
        let rank1 = vec![i64::from(chains).into(), i64::from(lanes).into()];
        let acc = k.buffer("vec", dt, rank1, Scope::Reg);
        let chain = |c: u16| vec![Expr::idx(i64::from(c)), Expr::idx(0)];
        let load = |c: u16| Expr::new(Node::Load(acc, chain(c)), dt, lanes);
        let mut new: Vec<Stmt> =
            (0..chains).map(|c| Stmt::Store { buf: acc, index: chain(c), value: identity.clone() }).collect();

        let single = s.whole.as_int() == Some(1);
        let step = i64::from(lanes) * i64::from(chains);
        let mut body = vec![];
        let mut kind = l.kind;
        for c in 0..chains {
            // Bindings of later chains need names of their own.
            let (lets, value) = if c == 0 {
                (lets.to_vec(), value.clone())
            } else {
                let mut copy = Subst::default();
                (copy.copy(k, lets), copy.expr(value))
            };
            let begin = if single { Expr::idx(0) } else { Expr::var(var) * step };
            let begin = begin + i64::from(c) * i64::from(lanes);
            let old = reduction(&value, *buf).ok_or("the store is no reduction")?.1;
            let mut v = Vectorizer::new(k, var, lanes, begin);
            v.set(&old, load(c));
            body.extend(v.body(&lets)?);
            let value = v.vector(&value)?;
            body.push(Stmt::Store { buf: acc, index: chain(c), value });
            kind = v.loop_kind(&l, &s.whole)?;
        }
        new.extend(Loop { var, extent: s.whole, kind, body }.flat());
        let mut sums: Vec<Expr> = (0..chains).map(load).collect();
        while sums.len() > 1 {
            sums = sums
                .chunks(2)
                .map(|c| c.iter().cloned().reduce(|a, b| Expr::binary(op, a, b)).expect("chunk"))
                .collect();
        }
        let sum = Expr::binary(op, k.load(*buf, index.clone()), sums.remove(0).reduce(op));
        new.push(Stmt::Store { buf: *buf, index: index.clone(), value: sum });
        let mut line = format!("by {lanes}");
        if chains > 1 {
            line += &format!(" in {chains} chains");
        }
        add_tail(k, var, kind, &scalar, s.covered, s.rest, &mut new, &mut line);
        Ok((new, line, ()))
    })
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
#[allow(clippy::too_many_arguments)]
fn add_tail(
    k: &mut Kernel,
    var: Var,
    kind: LoopKind,
    body: &[Stmt],
    from: Expr,
    count: Expr,
    new: &mut Vec<Stmt>,
    line: &mut String,
) {
    if count.as_int() == Some(0) {
        return;
    }
    let base = k.vars[var.0 as usize].clone();
    let t = k.fresh(&format!("{base}t"));
    let body = Subst::new([(var, from + Expr::var(t))]).copy(k, body);
    new.push(Loop { var: t, extent: count, kind, body }.stmt());
    *line += &format!(", tail {}", name(k, t));
}

/// Replaces bindings of integers that depend on the variable by their values, which may occur in indices.
fn inline_indices(body: &[Stmt], var: Var) -> Vec<Stmt> {
    let mut lets = Subst::default();
    inline(body, var, &mut lets);
    let inlined = lets.env.clone();
    drop_lets(&lets.stmts(body), &inlined)
}

fn inline(body: &[Stmt], var: Var, lets: &mut Subst) {
    for s in body {
        if let Stmt::Let { var: x, value } = s
            && uses(value, |v| v == var || lets.env.contains_key(&v))
        {
            bind_index(lets, *x, value);
        }
        super::tree::bodies(s).into_iter().for_each(|b| inline(b, var, lets));
    }
}

fn drop_lets(body: &[Stmt], gone: &HashMap<Var, Expr>) -> Vec<Stmt> {
    let keep = body.iter().filter(|s| !matches!(s, Stmt::Let { var, .. } if gone.contains_key(var)));
    keep.map(|s| match s {
        Stmt::For { var, extent, kind, body } => {
            Stmt::For { var: *var, extent: extent.clone(), kind: *kind, body: drop_lets(body, gone) }
        }
        Stmt::If { cond, then, other } => {
            Stmt::If { cond: cond.clone(), then: drop_lets(then, gone), other: drop_lets(other, gone) }
        }
        s => s.clone(),
    })
    .collect()
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

/// Rewrites statements of one iteration to `lanes` iterations.
struct Vectorizer<'a> {
    k: &'a Kernel,
    var: Var,
    lanes: u16,
    /// The iteration of lane 0.
    first: Subst,
    /// Bindings that became vectors.
    vectors: HashMap<Var, Expr>,
    /// Does an expression differ between iterations? By identity; keeps the expression alive.
    varies: HashMap<usize, (Expr, bool)>,
    /// Vectors by the identity of the scalar, which is alive in `varies`.
    done: HashMap<usize, Expr>,
    /// Is a register chosen by the variable?
    registers: bool,
}

impl<'a> Vectorizer<'a> {
    fn new(k: &'a Kernel, var: Var, lanes: u16, first: Expr) -> Vectorizer<'a> {
        let first = Subst::new([(var, first)]);
        let (vectors, varies, done) = Default::default();
        Vectorizer { k, var, lanes, first, vectors, varies, done, registers: false }
    }

    /// Gives an expression its vector.
    fn set(&mut self, e: &Expr, vector: Expr) {
        self.varies.insert(e.id(), (e.clone(), true));
        self.done.insert(e.id(), vector);
    }

    /// Kind of the loop that remains: registers can only be chosen at compile time.
    fn loop_kind(&self, l: &Loop, steps: &Expr) -> Result<LoopKind, String> {
        if !self.registers || steps.as_int() == Some(1) {
            return Ok(l.kind);
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
            Some(v) => v == self.var || self.vectors.contains_key(&v),
            None => e.children().into_iter().any(|c| self.varies(c)),
        };
        self.varies.insert(e.id(), (e.clone(), r));
        r
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
        let mut rest = Linear::of(&index[outer.len()]);
        let c = rest.take(self.var);
        if c != 1 || rest.terms.iter().any(|(a, _)| self.varies(a)) {
            return Err(format!("it does not step through {} one by one", buffer(self.k, buf)));
        }
        let mut index = index.to_vec();
        let at = self.first.expr(&index[outer.len()]);
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
        let new = match e.node() {
            Node::Var(v) => match self.vectors.get(v) {
                Some(x) => x.clone(),
                None => Expr::new(Node::Ramp(self.first.expr(e)), e.dtype(), self.lanes),
            },
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

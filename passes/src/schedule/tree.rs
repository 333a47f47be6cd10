//! Finding, replacing and copying statements.

use std::collections::{HashMap, HashSet};

use marquetry_ir::DType;
use marquetry_ir::loops::{Buf, Expr, Kernel, LoopKind, Micro, Node, Stmt, Var};

use super::lane;
use super::linear::{Linear, as_var};

/// A loop, taken out of its kernel.
#[derive(Clone, Debug)]
pub(super) struct Loop {
    pub var: Var,
    pub extent: Expr,
    pub kind: LoopKind,
    pub body: Vec<Stmt>,
}

impl Loop {
    pub fn stmt(self) -> Stmt {
        Stmt::For { var: self.var, extent: self.extent, kind: self.kind, body: self.body }
    }

    /// This loop without its frame: the body at iteration 0, if it runs exactly once.
    pub fn flat(self) -> Vec<Stmt> {
        if self.extent.as_int() == Some(1) && self.kind != LoopKind::Parallel {
            return Subst::new([(self.var, Expr::idx(0))]).stmts(&self.body);
        }
        if self.extent.as_int() == Some(0) { vec![] } else { vec![self.stmt()] }
    }
}

/// The statements directly inside a statement.
pub(super) fn bodies(s: &Stmt) -> Vec<&Vec<Stmt>> {
    match s {
        Stmt::For { body, .. } => vec![body],
        Stmt::If { then, other, .. } => vec![then, other],
        Stmt::Let { .. } | Stmt::Store { .. } | Stmt::Micro(_) => vec![],
    }
}

/// Every loop, outer ones first.
pub(super) fn loops(body: &[Stmt]) -> Vec<&Stmt> {
    let mut out = vec![];
    for s in body {
        if matches!(s, Stmt::For { .. }) {
            out.push(s);
        }
        bodies(s).into_iter().for_each(|b| out.extend(loops(b)));
    }
    out
}

/// The loop of a variable.
pub(super) fn find(body: &[Stmt], v: Var) -> Option<Loop> {
    loops(body).into_iter().find_map(|s| match s {
        Stmt::For { var, extent, kind, body } if *var == v => {
            Some(Loop { var: v, extent: extent.clone(), kind: *kind, body: body.clone() })
        }
        _ => None,
    })
}

/// Puts statements in the place of a loop. Was it found?
pub(super) fn replace(body: &mut Vec<Stmt>, v: Var, new: &mut Vec<Stmt>) -> bool {
    if let Some(at) = body.iter().position(|s| matches!(s, Stmt::For { var, .. } if *var == v)) {
        body.splice(at..=at, new.drain(..));
        return true;
    }
    body.iter_mut().any(|s| match s {
        Stmt::For { body, .. } => replace(body, v, new),
        Stmt::If { then, other, .. } => replace(then, v, new) || replace(other, v, new),
        Stmt::Let { .. } | Stmt::Store { .. } | Stmt::Micro(_) => false,
    })
}

/// Visits an expression and its operands, each shared one once.
pub(super) fn visit(e: &Expr, seen: &mut HashSet<usize>, f: &mut impl FnMut(&Expr)) {
    if seen.insert(e.id()) {
        f(e);
        e.children().into_iter().for_each(|c| visit(c, seen, f));
    }
}

/// Does it load from a buffer for which `p` holds?
pub(super) fn loads(e: &Expr, p: impl Fn(Buf) -> bool) -> bool {
    let mut found = false;
    visit(e, &mut HashSet::new(), &mut |x| found |= matches!(x.node(), Node::Load(b, _) if p(*b)));
    found
}

/// Does it use a variable for which `p` holds?
pub(super) fn uses(e: &Expr, p: impl Fn(Var) -> bool) -> bool {
    let mut found = false;
    visit(e, &mut HashSet::new(), &mut |x| found |= as_var(x).is_some_and(&p));
    found
}

/// Replaces variables, each shared expression once.
#[derive(Default)]
pub(super) struct Subst {
    pub env: HashMap<Var, Expr>,
    /// Simplify what becomes simple with this many lanes.
    pub simplify: Option<u16>,
    /// By identity; keeps what it was asked for alive.
    done: HashMap<usize, (Expr, Expr)>,
}

impl Subst {
    pub fn new(env: impl IntoIterator<Item = (Var, Expr)>) -> Subst {
        Subst { env: env.into_iter().collect(), ..Subst::default() }
    }

    pub fn expr(&mut self, e: &Expr) -> Expr {
        if let Some(v) = as_var(e) {
            return self.env.get(&v).unwrap_or(e).clone();
        }
        if let Some((_, d)) = self.done.get(&e.id()) {
            return d.clone();
        }
        let old = e.children();
        let new: Vec<Expr> = old.iter().map(|c| self.expr(c)).collect();
        let same = old.iter().zip(&new).all(|(a, b)| a.id() == b.id());
        let mut r = if same { e.clone() } else { e.with_children(new) };
        if let Some(lanes) = self.simplify.filter(|_| !same) {
            r = lane::simplify(&r, lanes).unwrap_or(r);
        }
        self.done.insert(e.id(), (e.clone(), r.clone()));
        r
    }

    fn exprs(&mut self, e: &[Expr]) -> Vec<Expr> {
        e.iter().map(|e| self.expr(e)).collect()
    }

    /// The statements with variables replaced; what they bind keeps its name.
    pub fn stmts(&mut self, body: &[Stmt]) -> Vec<Stmt> {
        body.iter().map(|s| self.stmt(s, &mut |v, _| v)).collect()
    }

    /// A copy of the statements with variables replaced; what they bind gets fresh names.
    pub fn copy(&mut self, k: &mut Kernel, body: &[Stmt]) -> Vec<Stmt> {
        body.iter()
            .map(|s| {
                self.stmt(s, &mut |v, env: &mut HashMap<Var, Expr>| {
                    let name = k.vars[v.0 as usize].clone();
                    let new = k.fresh(&name);
                    env.insert(v, Expr::var(new));
                    new
                })
            })
            .collect()
    }

    fn stmt(&mut self, s: &Stmt, bind: &mut dyn FnMut(Var, &mut HashMap<Var, Expr>) -> Var) -> Stmt {
        match s {
            Stmt::For { var, extent, kind, body } => {
                let extent = self.expr(extent);
                let var = bind(*var, &mut self.env);
                let body = body.iter().map(|s| self.stmt(s, bind)).collect();
                Stmt::For { var, extent, kind: *kind, body }
            }
            Stmt::Let { var, value } => {
                let value = self.expr(value);
                let new = bind(*var, &mut self.env);
                if new != *var {
                    self.env.insert(*var, Expr::new(Node::Var(new), value.dtype(), value.lanes()));
                }
                Stmt::Let { var: new, value }
            }
            Stmt::Store { buf, index, value } => {
                Stmt::Store { buf: *buf, index: self.exprs(index), value: self.expr(value) }
            }
            Stmt::If { cond, then, other } => {
                let cond = self.expr(cond);
                let then = then.iter().map(|s| self.stmt(s, bind)).collect();
                let other = other.iter().map(|s| self.stmt(s, bind)).collect();
                Stmt::If { cond, then, other }
            }
            Stmt::Micro(m) => {
                let args = m.args.iter().map(|(b, index)| (*b, self.exprs(index))).collect();
                Stmt::Micro(Micro { op: m.op, args, sizes: self.exprs(&m.sizes) })
            }
        }
    }
}

/// An extent in whole steps and what is left.
pub(super) struct Steps {
    /// Number of whole steps.
    pub whole: Expr,
    /// Iterations in them.
    pub covered: Expr,
    /// Iterations left over.
    pub rest: Expr,
}

/// Divides the extent of a loop. None if it may be negative or changes while the loop runs.
pub(super) fn steps(k: &Kernel, l: &Loop, step: i64) -> Option<Steps> {
    let form = Linear::of(&l.extent);
    if form.terms.is_empty() {
        let n = form.constant.max(0);
        return Some(Steps {
            whole: Expr::idx(n / step),
            covered: Expr::idx(n / step * step),
            rest: Expr::idx(n % step),
        });
    }
    let counters: HashSet<Var> = loops(&k.body)
        .into_iter()
        .filter_map(|s| if let Stmt::For { var, .. } = s { Some(*var) } else { None })
        .collect();
    let natural = |e: &Expr| match e.node() {
        Node::Size(_) => true,
        Node::Var(v) => e.dtype() == DType::I64 && counters.contains(v),
        _ => false,
    };
    if form.constant < 0 || !form.terms.iter().all(|(a, c)| *c > 0 && natural(a)) {
        return None;
    }
    if form.multiple_of(step) {
        let mut whole = form.clone();
        whole.constant /= step;
        whole.terms.iter_mut().for_each(|(_, c)| *c /= step);
        return Some(Steps { whole: whole.expr(), covered: l.extent.clone(), rest: Expr::idx(0) });
    }
    let whole = l.extent.clone() / step;
    Some(Steps { covered: whole.clone() * step, rest: l.extent.clone() % step, whole })
}

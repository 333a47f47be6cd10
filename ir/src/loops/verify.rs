//! Checks that a kernel is well formed. Reports every error, not only the first:
//!
//! * buffers: arguments first, unique names, constant shapes of `Local` and `Reg`, no store to `In`;
//! * loops: `i64` extents; a parallel loop only as the sole top-level statement; unrolled extents constant and at most 1024;
//! * variables: bound once, before their use, used with the type they were bound with;
//! * expressions: lanes (1, or a multiple of 4 up to 64) and types of every node, constants of shifts, known symbols;
//! * accesses: one `i64` index per axis; indices of `Reg` buffers constant once loops are unrolled.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::{BinOp, Buf, Expr, Kernel, LoopKind, Micro, Node, Scope, Stmt, UnOp, VTy, Var};
use crate::{DType, Syms};

/// Largest extent of an unrolled loop.
pub const MAX_UNROLL: i64 = 1024;

/// One fault of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyError {
    /// The statement: names of enclosing loops, then what it does.
    pub place: String,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// All faults of a kernel; none if it is well formed.
pub fn verify(k: &Kernel, syms: &Syms) -> Vec<VerifyError> {
    let mut c = Checker {
        k,
        syms,
        errors: vec![],
        path: vec![],
        bound: HashMap::new(),
        ever: HashSet::new(),
        seen: HashSet::new(),
    };
    c.buffers();
    c.body(&k.body);
    c.errors
}

#[derive(Clone, Copy)]
struct Binding {
    ty: VTy,
    /// Constant once loops are unrolled.
    fixed: bool,
}

struct Checker<'a> {
    k: &'a Kernel,
    syms: &'a Syms,
    errors: Vec<VerifyError>,
    path: Vec<String>,
    bound: HashMap<Var, Binding>,
    ever: HashSet<Var>,
    seen: HashSet<usize>,
}

const INDEX: VTy = VTy { dtype: DType::I64, lanes: 1 };

fn show(t: VTy) -> String {
    if t.lanes == 1 { t.dtype.to_string() } else { format!("{}x{}", t.dtype, t.lanes) }
}

fn integer(d: DType) -> bool {
    !d.is_float() && d != DType::Bool
}

impl Checker<'_> {
    fn error(&mut self, what: impl Into<String>) {
        let place = if self.path.is_empty() { self.k.name.clone() } else { self.path.join(" / ") };
        self.errors.push(VerifyError { place, what: what.into() });
    }

    fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.error(what());
        }
    }

    fn name(&self, b: Buf) -> String {
        self.k.buffers.get(b.0 as usize).map_or_else(|| format!("buffer {}", b.0), |d| format!("`{}`", d.name))
    }

    fn var_name(&self, v: Var) -> String {
        self.k.vars.get(v.0 as usize).map_or_else(|| format!("variable {}", v.0), |n| format!("`{n}`"))
    }

    fn buffers(&mut self) {
        let args = self.k.args();
        let mut names = HashSet::new();
        for (i, b) in self.k.buffers.iter().enumerate() {
            self.expect(names.insert(&b.name), || format!("two buffers are called `{}`", b.name));
            let inner = matches!(b.scope, Scope::Local | Scope::Reg);
            self.expect(inner || i < args, || format!("argument `{}` comes after local buffers", b.name));
            for d in &b.shape {
                self.expect(!inner || d.as_const().is_some(), || {
                    format!("shape of `{}` is not constant: {}", b.name, self.syms.show(d))
                });
                self.expect(d.as_const().is_none_or(|c| c >= 0), || format!("negative extent of `{}`", b.name));
                for s in d.syms() {
                    self.expect((s.0 as usize) < self.syms.0.len(), || format!("`{}`: unknown symbol {}", b.name, s.0));
                }
            }
        }
    }

    /// Statements of one body; what they bind ends with it.
    fn body(&mut self, body: &[Stmt]) {
        let outer = self.bound.clone();
        for s in body {
            self.seen.clear();
            self.stmt(s);
        }
        self.bound = outer;
    }

    fn bind(&mut self, v: Var, b: Binding) {
        self.expect((v.0 as usize) < self.k.vars.len(), || format!("variable {} has no name", v.0));
        let first = self.ever.insert(v);
        let name = self.var_name(v);
        self.expect(first, || format!("{name} is bound twice; give one of them another number"));
        self.bound.insert(v, b);
    }

    fn stmt(&mut self, s: &Stmt) {
        let depth = self.path.len();
        match s {
            Stmt::For { var, extent, kind, body } => {
                self.path.push(format!("for {}", self.var_name(*var)));
                self.expr(extent);
                self.typed(extent, INDEX, "extent");
                let fixed = *kind == LoopKind::Unroll;
                if fixed {
                    let constant = self.fixed(extent);
                    self.expect(constant, || "extent of an unrolled loop is not constant; use `for`".into());
                    let n = extent.as_int().unwrap_or(0);
                    self.expect((0..=MAX_UNROLL).contains(&n), || {
                        format!("{n} unrolled iterations; at most {MAX_UNROLL} are expanded")
                    });
                }
                let sole = depth == 0 && self.k.body.len() == 1;
                self.expect(*kind != LoopKind::Parallel || sole, || {
                    "a parallel loop is the only top-level statement".into()
                });
                let before = self.bound.clone();
                self.bind(*var, Binding { ty: INDEX, fixed });
                self.body(body);
                self.bound = before;
            }
            Stmt::Let { var, value } => {
                self.path.push(format!("let {}", self.var_name(*var)));
                self.expr(value);
                let fixed = self.fixed(value);
                self.bind(*var, Binding { ty: value.ty(), fixed });
            }
            Stmt::Store { buf, index, value } => {
                self.path.push(format!("store to {}", self.name(*buf)));
                self.expr(value);
                self.access(*buf, index, value.ty());
                if let Some(d) = self.k.buffers.get(buf.0 as usize) {
                    self.expect(d.scope != Scope::In, || "the buffer is only read; declare it `out` or `inout`".into());
                }
            }
            Stmt::If { cond, then, other } => {
                self.path.push("if".into());
                self.expr(cond);
                self.typed(cond, VTy { dtype: DType::Bool, lanes: 1 }, "condition");
                self.body(then);
                self.body(other);
            }
            Stmt::Micro(m) => {
                self.path.push(format!("micro {}", m.op));
                self.micro(m);
            }
        }
        self.path.truncate(depth);
    }

    fn micro(&mut self, m: &Micro) {
        let (params, sizes) = (m.op.params(), m.op.sizes());
        self.expect(m.args.len() == params.len(), || format!("{} arguments, not {}", params.len(), m.args.len()));
        self.expect(m.sizes.len() == sizes.len(), || format!("the sizes are {}", sizes.join(", ")));
        for ((buf, index), p) in m.args.iter().zip(&params) {
            self.access(*buf, index, VTy { dtype: p.dtype, lanes: 1 });
            let Some(d) = self.k.buffers.get(buf.0 as usize) else { continue };
            let rank = d.shape.len();
            let joined = !p.written && rank > p.rank && d.shape[p.rank..].iter().all(|d| d.as_const().is_some());
            self.expect(rank == p.rank || joined, || format!("`{}` has {rank} axes, not {}", d.name, p.rank));
            self.expect(d.scope != Scope::Reg, || format!("`{}` is in registers, which have no address", d.name));
            let readable = !p.written || d.scope != Scope::In;
            self.expect(readable, || format!("`{}` is only read; declare it `out` or `inout`", d.name));
        }
        for (e, name) in m.sizes.iter().zip(sizes) {
            self.expr(e);
            self.typed(e, INDEX, name);
        }
    }

    fn typed(&mut self, e: &Expr, t: VTy, what: &str) {
        self.expect(e.ty() == t, || format!("{what} is {}, not {}", show(e.ty()), show(t)));
    }

    /// Is it a constant once loops are unrolled?
    fn fixed(&self, e: &Expr) -> bool {
        match e.node() {
            Node::Int(_) => true,
            Node::Var(v) => self.bound.get(v).is_some_and(|b| b.fixed),
            Node::Binary(_, a, b) => e.ty() == INDEX && self.fixed(a) && self.fixed(b),
            _ => false,
        }
    }

    fn access(&mut self, buf: Buf, index: &[Expr], ty: VTy) {
        let Some(d) = self.k.buffers.get(buf.0 as usize) else {
            return self.error(format!("buffer {} does not exist", buf.0));
        };
        self.expect(ty.dtype == d.dtype, || format!("`{}` has elements of {}, not {}", d.name, d.dtype, ty.dtype));
        self.expect(index.len() == d.shape.len(), || {
            format!("`{}` has {} axes, not {}", d.name, d.shape.len(), index.len())
        });
        self.expect(ty.lanes == 1 || !d.shape.is_empty(), || format!("vector access to the scalar `{}`", d.name));
        for e in index {
            self.expr(e);
            self.typed(e, INDEX, "index");
            let ok = d.scope != Scope::Reg || self.fixed(e);
            self.expect(ok, || format!("index of the register buffer `{}` is not constant", d.name));
        }
    }

    fn expr(&mut self, e: &Expr) {
        if !self.seen.insert(e.id()) {
            return;
        }
        let t = e.ty();
        let lanes = t.lanes == 1 || t.lanes.is_multiple_of(4) && (4..=64).contains(&t.lanes);
        self.expect(lanes, || format!("{} lanes; vectors have 4 to 64, a multiple of 4", t.lanes));
        if let Node::Load(buf, index) = e.node() {
            return self.access(*buf, index, t);
        }
        e.children().into_iter().for_each(|c| self.expr(c));
        if let Some(what) = self.fault(e) {
            let types: Vec<String> = e.children().into_iter().map(|c| show(c.ty())).collect();
            self.error(format!("{what} ({} -> {})", types.join(", "), show(t)));
        }
    }

    /// What is wrong with a node whose operands are checked.
    fn fault(&mut self, e: &Expr) -> Option<String> {
        let t = e.ty();
        let same_lanes = |a: &Expr| a.lanes() == t.lanes;
        let (ok, what) = match e.node() {
            Node::Int(_) => (!t.dtype.is_float(), "an integer constant is no float; write `1.0`"),
            Node::Float(_) => (t.dtype == DType::F32, "a float constant is f32; use `cast`"),
            Node::Size(s) => (t == INDEX && (s.0 as usize) < self.syms.0.len(), "a size is i64; use `cast`"),
            Node::Var(v) => match self.bound.get(v) {
                None => return Some(format!("{} is not bound here", self.var_name(*v))),
                Some(b) => (b.ty == t, "the variable is bound with another type"),
            },
            Node::Load(..) => (true, ""),
            Node::Unary(op, a) => {
                let rule = "neg and abs keep a number, not a bool, the others f32";
                (a.ty() == t && unary_ok(*op, t.dtype), rule)
            }
            Node::Binary(op, a, b) => return binary_fault(*op, a, b, t),
            Node::Fma(a, b, c) => {
                ([a, b, c].iter().all(|x| x.ty() == t) && t.dtype == DType::F32, "fma takes three of one type, f32")
            }
            Node::Select(c, a, b) => {
                let rule = "select takes a bool and two of one type, all of the same lanes";
                (c.dtype() == DType::Bool && same_lanes(c) && a.ty() == t && b.ty() == t, rule)
            }
            Node::Cast(a) => (same_lanes(a), "a cast keeps the lanes"),
            Node::Bitcast(a) => {
                let truth = a.dtype() == DType::Bool || t.dtype == DType::Bool;
                (
                    same_lanes(a) && a.dtype().size() == t.dtype.size() && !truth,
                    "a bitcast keeps the lanes and the bits of a number",
                )
            }
            Node::Dot4 { acc, w, x, .. } => {
                let words = w.dtype() == DType::U32 && x.dtype() == DType::U32 && same_lanes(w) && same_lanes(x);
                (words && acc.ty() == t && t.dtype == DType::I32, "dot4 takes i32, u32 and u32 of the same lanes")
            }
            Node::Splat(a) => (a.lanes() == 1 && a.dtype() == t.dtype, "a splat takes one lane of its type"),
            Node::Ramp(a) => (
                a.lanes() == 1 && a.dtype() == t.dtype && integer(t.dtype),
                "a ramp begins at one lane of its integer type",
            ),
            Node::Reduce(op, a) => {
                let known = matches!(op, BinOp::Add | BinOp::Max | BinOp::Min) && a.lanes().is_power_of_two();
                let number = integer(t.dtype) || t.dtype == DType::F32;
                (
                    known && t.lanes == 1 && a.dtype() == t.dtype && number,
                    "reduce takes add, min or max over 2, 4, 8 or more lanes of f32 or integers",
                )
            }
        };
        (!ok).then(|| what.to_string())
    }
}

fn unary_ok(op: UnOp, d: DType) -> bool {
    match op {
        UnOp::Not => d == DType::Bool,
        UnOp::Neg | UnOp::Abs => d == DType::F32 || integer(d),
        _ => d == DType::F32,
    }
}

fn binary_fault(op: BinOp, a: &Expr, b: &Expr, t: VTy) -> Option<String> {
    let d = a.dtype();
    let result = if op.is_compare() { DType::Bool } else { d };
    if a.ty() != b.ty() || t != (VTy { dtype: result, lanes: a.lanes() }) {
        return Some(format!("{op:?} takes two of one type, and gives it or bool"));
    }
    let known = match op {
        BinOp::And | BinOp::Or | BinOp::Xor | BinOp::Eq if d == DType::Bool => true,
        BinOp::And | BinOp::Or | BinOp::Xor | BinOp::Rem | BinOp::Shl | BinOp::Shr => integer(d),
        _ => integer(d) || d == DType::F32,
    };
    if !known {
        return Some(format!("{op:?} is not defined for {d}"));
    }
    if matches!(op, BinOp::Shl | BinOp::Shr) {
        let amount = match b.node() {
            Node::Splat(s) => s.as_int(),
            _ => b.as_int(),
        };
        let width = 8 * d.size() as i64;
        match amount {
            None => return Some("shift by an amount that is not constant".into()),
            Some(n) if !(0..width).contains(&n) => return Some(format!("shift of {width} bits by {n}")),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dim;

    fn texts(k: &Kernel, syms: &Syms) -> Vec<String> {
        verify(k, syms).iter().map(|e| e.to_string()).collect()
    }

    #[test]
    fn accepts_a_good_kernel() {
        let mut syms = Syms::default();
        let n = syms.declare("n", 1, 64, 1);
        let mut k = Kernel::new("k");
        let a = k.buffer("a", DType::F32, vec![n.into(), 8.into()], Scope::In);
        let b = k.buffer("b", DType::F32, vec![n.into()], Scope::Out);
        let r = k.buffer("r", DType::F32, vec![2.into(), 4.into()], Scope::Reg);
        let [i, u, x] = ["i", "u", "x"].map(|v| k.fresh(v));
        let at = vec![Expr::var(u), Expr::idx(0)];
        let load = Expr::new(Node::Load(a, vec![Expr::var(i), Expr::var(u) * 4]), DType::F32, 4);
        let unrolled = Stmt::For {
            var: u,
            extent: Expr::idx(2),
            kind: LoopKind::Unroll,
            body: vec![Stmt::Store { buf: r, index: at, value: load }],
        };
        let first = Expr::new(Node::Load(r, vec![Expr::idx(1), Expr::idx(0)]), DType::F32, 4);
        let bind = Stmt::Let { var: x, value: first.reduce(BinOp::Add) };
        let value = Expr::new(Node::Var(x), DType::F32, 1);
        let body = vec![unrolled, bind, Stmt::Store { buf: b, index: vec![Expr::var(i)], value }];
        k.body = vec![Stmt::For { var: i, extent: Expr::size(n), kind: LoopKind::Parallel, body }];
        assert_eq!(texts(&k, &syms), Vec::<String>::new());
    }

    #[test]
    fn reports_every_fault() {
        let mut syms = Syms::default();
        let n = syms.declare("n", 1, 64, 1);
        let mut k = Kernel::new("k");
        let r = k.buffer("r", DType::F32, vec![Dim::from(n)], Scope::Reg);
        let a = k.buffer("a", DType::F32, vec![8.into()], Scope::In);
        let [i, x] = ["i", "x"].map(|v| k.fresh(v));
        let loop_ = |kind, body| Stmt::For { var: i, extent: Expr::size(n), kind, body };
        let value = Expr::new(Node::Unary(UnOp::Sqrt, Expr::var(x)), DType::F32, 3);
        let store = |buf, index, value| Stmt::Store { buf, index, value };
        let bad_shift = Expr::binary(BinOp::Shl, Expr::var(i), Expr::idx(64)).cast(DType::F32);
        k.body = vec![
            loop_(LoopKind::Parallel, vec![store(r, vec![Expr::var(i)], bad_shift)]),
            loop_(LoopKind::Unroll, vec![]),
            store(a, vec![], value),
            store(Buf(9), vec![], Expr::float(1.0)),
        ];
        assert_eq!(
            texts(&k, &syms),
            [
                "k: shape of `r` is not constant: n",
                "k: argument `a` comes after local buffers",
                "for `i`: a parallel loop is the only top-level statement",
                "for `i` / store to `r`: shift of 64 bits by 64 (i64, i64 -> i64)",
                "for `i` / store to `r`: index of the register buffer `r` is not constant",
                "for `i`: extent of an unrolled loop is not constant; use `for`",
                "for `i`: `i` is bound twice; give one of them another number",
                "store to `a`: 3 lanes; vectors have 4 to 64, a multiple of 4",
                "store to `a`: `x` is not bound here ( -> i64)",
                "store to `a`: neg and abs keep a number, not a bool, the others f32 (i64 -> f32x3)",
                "store to `a`: `a` has 1 axes, not 0",
                "store to `a`: the buffer is only read; declare it `out` or `inout`",
                "store to buffer 9: buffer 9 does not exist",
            ]
        );
    }
}

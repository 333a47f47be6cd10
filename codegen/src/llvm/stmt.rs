//! Statements.

use std::fmt::Write;

use marquetry_ir::DType;
use marquetry_ir::loops::{Buf, Expr, LoopKind, Micro, Scope, Stmt, Var};

use super::func::{Bind, Body, Cx, ScopeKind, Ty, Val};
use super::quoted;
use crate::facts::stored;
use crate::index::{Indices, Poly};
use crate::jit::R;

/// A chunk of a `Reg` buffer.
type Slot = (Buf, usize);

impl Cx<'_> {
    /// Statements in order.
    pub fn block(&mut self, body: &[Stmt]) -> R<()> {
        body.iter().try_for_each(|s| self.stmt(s))
    }

    fn stmt(&mut self, s: &Stmt) -> R<()> {
        self.memo.clear();
        match s {
            Stmt::For { var, extent, kind: LoopKind::Unroll, body } => {
                let Some(n) = self.index(extent)?.as_const() else {
                    return Err(format!("extent of unrolled loop {} is no constant", var.0));
                };
                for i in 0..n {
                    self.env.insert(*var, Bind::Index(Poly::constant(i)));
                    self.block(body)?;
                }
                Ok(())
            }
            Stmt::For { var, kind: LoopKind::Parallel, body, .. } => {
                let (begin, end) = self.range;
                self.guarded_loop(*var, begin, end, body)
            }
            Stmt::For { var, extent, kind: LoopKind::Serial, body } => {
                let n = self.index(extent)?;
                let end = self.sum(&n);
                let zero = self.int(Ty::I64, 0);
                match n.as_const() {
                    Some(..=0) => Ok(()),
                    Some(1) => {
                        self.env.insert(*var, Bind::Index(Poly::constant(0)));
                        self.block(body)
                    }
                    Some(_) => self.repeat(*var, zero, end, body),
                    None => self.guarded_loop(*var, zero, end, body),
                }
            }
            Stmt::Let { var, value } => {
                let bind = if value.dtype() == DType::I64 && value.lanes() == 1 {
                    Bind::Index(self.index(value)?)
                } else {
                    Bind::Value(self.expr(value)?)
                };
                self.env.insert(*var, bind);
                Ok(())
            }
            Stmt::Store { buf, index, value } => self.store_stmt(*buf, index, value),
            Stmt::Micro(m) => self.call_routine(m),
            Stmt::If { cond, then, other } => {
                let c = self.expr(cond)?;
                match self.int_of(c) {
                    Some(0) => self.block(other),
                    Some(_) => self.block(then),
                    None => self.branch(c, |cx| cx.block(then), |cx| cx.block(other), &touched(&[then, other])),
                }
            }
        }
    }

    /// Calls the routine of a micro-kernel, whose symbol is the operation's text.
    fn call_routine(&mut self, m: &Micro) -> R<()> {
        let [args, sizes] = self.call_args(m)?.map(|all| {
            let at = self.alloca(8 * all.len() as u32);
            for (i, v) in all.into_iter().enumerate() {
                let slot = self.local(Ty::PTR, format!("getelementptr i64, {}, i64 {i}", self.typed(at)));
                self.line(&format!("store {}, {}, align 8", self.typed(v), self.typed(slot)));
            }
            at
        });
        let name = quoted(&m.op.to_string());
        self.declares.insert(format!("declare void @{name}(ptr, ptr)"));
        self.line(&format!("call void @{name}({}, {})", self.typed(args), self.typed(sizes)));
        let written = m.args.iter().zip(m.op.params()).filter(|(_, p)| p.written);
        written.for_each(|((buf, _), _)| self.clobber(*buf));
        Ok(())
    }

    fn store_stmt(&mut self, buf: Buf, index: &[Expr], value: &Expr) -> R<()> {
        let v = self.expr(value)?;
        let decl = self.k.decl(buf);
        if value.dtype() != decl.dtype {
            return Err(format!("store of {} to `{}`, which is {}", value.dtype(), decl.name, decl.dtype));
        }
        match decl.scope {
            Scope::Reg => return self.reg_store(buf, index, v),
            Scope::In => return Err(format!("store to `{}`, which is only read", decl.name)),
            _ => {}
        }
        let (at, offset) = self.address(buf, index)?;
        let v = if decl.dtype == DType::Bool { self.cast(v, DType::Bool, DType::U8)? } else { v };
        self.store(buf, v, at, offset);
        Ok(())
    }

    /// A loop that may run not at all.
    fn guarded_loop(&mut self, var: Var, begin: Val, end: Val, body: &[Stmt]) -> R<()> {
        let runs = self.compare("icmp slt", begin, end);
        self.branch(runs, |cx| cx.repeat(var, begin, end, body), |_| Ok(()), &stored(body))
    }

    /// A loop that runs at least once.
    fn repeat(&mut self, var: Var, begin: Val, end: Val, body: &[Stmt]) -> R<()> {
        let stored = stored(body);
        stored.iter().for_each(|b| self.clobber(*b));
        let head = self.fresh_label();
        let before = self.reg_values(&stored);
        self.push(ScopeKind::Loop, head.clone());
        let i = self.forward(Ty::I64);
        self.env.insert(var, Bind::Index(Poly::atom(i)));
        let mut inside = Vec::new();
        for (slot, v) in &before {
            let phi = self.forward(self.ty(*v));
            self.set_reg(*slot, phi);
            inside.push(phi);
        }
        self.block(body)?;
        let one = self.int(Ty::I64, 1);
        let next = self.local(Ty::I64, format!("add nuw nsw {}, {}", self.typed(i), self.name(one)));
        let again = self.local(Ty::BOOL, format!("icmp slt {}, {}", self.typed(next), self.name(end)));
        let exit = self.fresh_label();
        self.line(&format!("br {}, label %{head}, label %{exit}", self.typed(again)));
        let after = self.reg_values(&stored);
        let Body { text, label: latch, .. } = self.pop();

        let from = self.here().label.clone();
        let mut out = format!("  br label %{head}\n{head}:\n");
        let mut phi = |cx: &Cx<'_>, v: Val, first: Val, again: Val| {
            let (ty, first, again) = (cx.ty(v), cx.name(first), cx.name(again));
            let _ = writeln!(out, "  {} = phi {ty} [ {first}, %{from} ], [ {again}, %{latch} ]", cx.name(v));
        };
        phi(self, i, begin, next);
        for ((p, (_, first)), (_, again)) in inside.iter().zip(&before).zip(&after) {
            phi(self, *p, *first, *again);
        }
        let here = self.here();
        here.text.push_str(&out);
        here.text.push_str(&text);
        here.text.push_str(&format!("{exit}:\n"));
        here.label = exit;
        stored.iter().for_each(|b| self.clobber(*b));
        Ok(())
    }

    /// One of two bodies, which store to `touched`.
    fn branch(
        &mut self,
        cond: Val,
        then: impl FnOnce(&mut Self) -> R<()>,
        other: impl FnOnce(&mut Self) -> R<()>,
        touched: &[Buf],
    ) -> R<()> {
        let before = self.reg_values(touched);
        let [yes, no, exit] = [(); 3].map(|()| self.fresh_label());
        self.push(ScopeKind::Branch, yes.clone());
        then(self)?;
        let ends_then = self.reg_values(touched);
        let first = self.pop();
        before.iter().for_each(|(slot, v)| self.set_reg(*slot, *v));
        touched.iter().for_each(|b| self.clobber(*b));
        self.push(ScopeKind::Branch, no.clone());
        other(self)?;
        let ends_other = self.reg_values(touched);
        let second = self.pop();
        touched.iter().for_each(|b| self.clobber(*b));

        let cond = self.typed(cond);
        let mut out = format!("  br {cond}, label %{yes}, label %{no}\n");
        for (label, body) in [(&yes, &first), (&no, &second)] {
            let _ = write!(out, "{label}:\n{}  br label %{exit}\n", body.text);
        }
        let _ = writeln!(out, "{exit}:");
        for ((slot, a), (_, b)) in ends_then.into_iter().zip(ends_other) {
            let v = if a == b { a } else { self.forward(self.ty(a)) };
            if a != b {
                let (ty, a, b) = (self.ty(a), self.name(a), self.name(b));
                let name = self.name(v);
                let _ = writeln!(out, "  {name} = phi {ty} [ {a}, %{} ], [ {b}, %{} ]", first.label, second.label);
            }
            self.set_reg(slot, v);
        }
        let here = self.here();
        here.text.push_str(&out);
        here.label = exit;
        Ok(())
    }

    /// The chunks of `Reg` buffers among these, and their values.
    fn reg_values(&self, bufs: &[Buf]) -> Vec<(Slot, Val)> {
        let mut out = Vec::new();
        for b in bufs {
            if let Some(file) = &self.regs[b.0 as usize] {
                out.extend(file.values.iter().enumerate().map(|(i, v)| ((*b, i), *v)));
            }
        }
        out
    }

    fn set_reg(&mut self, (buf, i): Slot, v: Val) {
        if let Some(file) = &mut self.regs[buf.0 as usize] {
            file.values[i] = v;
        }
    }
}

/// Buffers that any of the bodies stores to.
fn touched(bodies: &[&Vec<Stmt>]) -> Vec<Buf> {
    let mut all: Vec<Buf> = bodies.iter().flat_map(|b| stored(b)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

//! `Reg` buffers: one Cranelift variable per aligned chunk.

use std::collections::{HashMap, HashSet};

use cranelift_codegen::ir::{InstBuilder, Type};
use cranelift_frontend::Variable;
use marquetry_ir::DType;
use marquetry_ir::loops::{Buf, Expr, Node, Stmt};

use super::func::{Cx, R, Val, int_piece, piece_type, scalar_type};

/// The variables of one `Reg` buffer.
pub(super) struct RegFile {
    vars: Vec<Variable>,
    /// Elements per variable; 1 for scalars.
    chunk: usize,
}

/// The narrowest vector access of each buffer, in lanes.
pub(super) fn chunks(body: &[Stmt]) -> HashMap<Buf, usize> {
    let mut found = HashMap::new();
    let mut seen = HashSet::new();
    let mut note = |buf: Buf, lanes: u16| {
        let e = found.entry(buf).or_insert(usize::MAX);
        if lanes > 1 {
            *e = (*e).min(lanes as usize);
        }
    };
    visit(body, &mut seen, &mut note);
    found
}

fn visit(body: &[Stmt], seen: &mut HashSet<usize>, note: &mut impl FnMut(Buf, u16)) {
    for s in body {
        match s {
            Stmt::For { extent, body, .. } => {
                visit_expr(extent, seen, note);
                visit(body, seen, note);
            }
            Stmt::Let { value, .. } => visit_expr(value, seen, note),
            Stmt::Store { buf, index, value } => {
                note(*buf, value.lanes());
                index.iter().for_each(|e| visit_expr(e, seen, note));
                visit_expr(value, seen, note);
            }
            Stmt::If { cond, then, other } => {
                visit_expr(cond, seen, note);
                visit(then, seen, note);
                visit(other, seen, note);
            }
        }
    }
}

fn visit_expr(e: &Expr, seen: &mut HashSet<usize>, note: &mut impl FnMut(Buf, u16)) {
    if !seen.insert(e.id()) {
        return;
    }
    if let Node::Load(buf, _) = e.node() {
        note(*buf, e.lanes());
    }
    e.children().into_iter().for_each(|c| visit_expr(c, seen, note));
}

impl Cx<'_> {
    /// Declares the variables of a `Reg` buffer whose narrowest vector access has `narrowest` lanes.
    pub fn declare_reg(&mut self, buf: Buf, narrowest: Option<usize>) -> R<()> {
        let decl = self.k.decl(buf);
        let len = decl.shape.iter().map(|d| d.as_const()).try_fold(1, |p, d| d.map(|d| p * d));
        let Some(len) = len.filter(|l| (0..=4096).contains(l)) else {
            return Err(format!("register buffer `{}` is too large or has no constant shape", decl.name));
        };
        let per = 16 / decl.dtype.size();
        let chunk = narrowest.filter(|n| *n != usize::MAX).map_or(1, |n| n.min(per));
        let ty = self.reg_type(decl.dtype, chunk);
        let vars = (0..(len as usize).div_ceil(chunk)).map(|_| self.b.declare_var(ty)).collect();
        self.regs[buf.0 as usize] = Some(RegFile { vars, chunk });
        Ok(())
    }

    fn reg_type(&self, dt: DType, chunk: usize) -> Type {
        match (chunk, dt) {
            (1, _) => scalar_type(dt),
            (_, DType::Bool) => int_piece(1),
            _ => piece_type(dt),
        }
    }

    /// First variable of an access and the lane in it.
    fn reg_place(&mut self, buf: Buf, index: &[Expr], lanes: usize) -> R<(usize, usize, usize)> {
        let name = &self.k.decl(buf).name;
        let Some(at) = self.flat(buf, index)?.as_const() else {
            return Err(format!("index of register buffer `{name}` is no constant"));
        };
        let Some(file) = &self.regs[buf.0 as usize] else { return Err(format!("`{name}` has no registers")) };
        let Some(at) = usize::try_from(at).ok().filter(|a| *a < 1 << 32) else {
            return Err(format!("element {at} is outside register buffer `{name}`"));
        };
        let chunk = file.chunk;
        if !at.is_multiple_of(lanes) || !lanes.is_multiple_of(chunk) && lanes != 1 {
            return Err(format!("access of {lanes} lanes at {at} of register buffer `{name}`"));
        }
        if (at + lanes).div_ceil(chunk) > file.vars.len() {
            return Err(format!("element {at} is outside register buffer `{name}`"));
        }
        Ok((at / chunk, at % chunk, chunk))
    }

    fn reg_var(&self, buf: Buf, i: usize) -> Variable {
        self.regs[buf.0 as usize].as_ref().expect("checked by reg_place").vars[i]
    }

    /// Reads registers.
    pub fn reg_load(&mut self, buf: Buf, index: &[Expr], lanes: usize) -> R<Val> {
        let dt = self.k.decl(buf).dtype;
        let (first, lane, chunk) = self.reg_place(buf, index, lanes)?;
        if lanes == 1 {
            let var = self.reg_var(buf, first);
            let mut v = self.b.use_var(var);
            if chunk > 1 {
                v = self.pure().extractlane(v, lane as u8);
                if dt == DType::Bool {
                    v = self.pure().band_imm_u(v, 1);
                }
            }
            return Ok(Val::new(vec![v], 1, dt));
        }
        let p = (first..first + lanes / chunk)
            .map(|i| {
                let var = self.reg_var(buf, i);
                self.b.use_var(var)
            })
            .collect();
        Ok(Val::new(p, lanes, dt))
    }

    /// Writes registers.
    pub fn reg_store(&mut self, buf: Buf, index: &[Expr], value: Val) -> R<()> {
        let (first, lane, chunk) = self.reg_place(buf, index, value.lanes)?;
        if value.lanes == 1 {
            let var = self.reg_var(buf, first);
            let mut v = value.p[0];
            if chunk > 1 {
                let old = self.b.use_var(var);
                if value.dt == DType::Bool {
                    v = self.pure().ineg(v);
                }
                v = self.pure().insertlane(old, v, lane as u8);
            }
            self.b.def_var(var, v);
            return Ok(());
        }
        let value = if value.dt == DType::Bool { self.mask_width(&value, 1)? } else { value };
        for (i, v) in value.p.into_iter().enumerate() {
            let var = self.reg_var(buf, first + i);
            self.b.def_var(var, v);
        }
        Ok(())
    }
}

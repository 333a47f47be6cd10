//! `Reg` buffers: one Cranelift variable per aligned chunk.

use cranelift_codegen::ir::{InstBuilder, Type};
use cranelift_frontend::Variable;
use marquetry_ir::DType;
use marquetry_ir::loops::{Buf, Expr};

use super::func::{Cx, Val, int_piece, piece_type, scalar_type};
use crate::facts::reg_len;
use crate::index::Indices;
use crate::jit::R;

/// The variables of one `Reg` buffer.
pub(super) struct RegFile {
    vars: Vec<Variable>,
    /// Elements per variable; 1 for scalars.
    chunk: usize,
}

impl Cx<'_> {
    /// Declares the variables of a `Reg` buffer whose narrowest vector access has `narrowest` lanes.
    pub fn declare_reg(&mut self, buf: Buf, narrowest: Option<usize>) -> R<()> {
        let decl = self.k.decl(buf);
        let len = reg_len(decl)?;
        let per = 16 / decl.dtype.size();
        let chunk = narrowest.filter(|n| *n != usize::MAX).map_or(1, |n| n.min(per));
        let ty = self.reg_type(decl.dtype, chunk);
        let vars = (0..len.div_ceil(chunk)).map(|_| self.b.declare_var(ty)).collect();
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
    fn chunk_place(&mut self, buf: Buf, index: &[Expr], lanes: usize) -> R<(usize, usize, usize)> {
        let Some(file) = &self.regs[buf.0 as usize] else {
            return Err(format!("`{}` has no registers", self.k.decl(buf).name));
        };
        let (chunks, chunk) = (file.vars.len(), file.chunk);
        let (first, lane) = self.reg_place(buf, index, lanes, (chunks, chunk))?;
        Ok((first, lane, chunk))
    }

    fn reg_var(&self, buf: Buf, i: usize) -> Variable {
        self.regs[buf.0 as usize].as_ref().expect("checked by chunk_place").vars[i]
    }

    /// Reads registers.
    pub fn reg_load(&mut self, buf: Buf, index: &[Expr], lanes: usize) -> R<Val> {
        let dt = self.k.decl(buf).dtype;
        let (first, lane, chunk) = self.chunk_place(buf, index, lanes)?;
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
        let (first, lane, chunk) = self.chunk_place(buf, index, value.lanes)?;
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

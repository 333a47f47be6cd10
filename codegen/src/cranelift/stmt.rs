//! Statements.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    BlockArg, ExtFuncData, ExternalName, FuncRef, InstBuilder, StackSlotData, StackSlotKind, UserExternalName, Value,
    types,
};
use marquetry_ir::DType;
use marquetry_ir::loops::{Buf, Expr, LoopKind, Micro, MicroOp, Scope, Stmt, Var};

use super::func::{Bind, Cx, ScopeKind, Val, mem_flags};
use super::{ROUTINES, call_signature};
use crate::facts::stored;
use crate::index::{Indices, Poly};
use crate::jit::R;

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
                let zero = self.int(DType::I64, 0);
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
            Stmt::Store { buf, index, value } => self.store(*buf, index, value),
            Stmt::If { cond, then, other } => {
                let c = self.expr(cond)?;
                match self.constant_of(c.p[0]) {
                    Some(0) => self.block(other),
                    Some(_) => self.block(then),
                    None => self.branch(c.p[0], then, other),
                }
            }
            Stmt::Micro(m) => self.call(m),
        }
    }

    /// A reference to the routine of a micro-kernel. Code holds its name: the address is put in when the code is placed.
    fn routine(&mut self, op: MicroOp) -> FuncRef {
        let index = self.calls.iter().position(|c| *c == op).unwrap_or_else(|| {
            self.calls.push(op);
            self.calls.len() - 1
        });
        let signature = call_signature(self.b.func.signature.call_conv);
        let signature = self.b.import_signature(signature);
        let name = UserExternalName::new(ROUTINES, index as u32);
        let name = ExternalName::user(self.b.func.declare_imported_user_function(name));
        self.b.import_function(ExtFuncData { name, signature, colocated: false, patchable: false })
    }

    /// Calls the routine of a micro-kernel.
    fn call(&mut self, m: &Micro) -> R<()> {
        let [args, sizes] = self.call_args(m)?.map(|all| {
            let data = StackSlotData::new(StackSlotKind::ExplicitSlot, 8 * all.len() as u32, 3);
            let slot = self.b.create_sized_stack_slot(data);
            let at = self.pure().stack_addr(types::I64, slot, 0);
            for (i, v) in all.into_iter().enumerate() {
                self.b.ins().store(mem_flags(), v, at, 8 * i as i32);
            }
            at
        });
        let routine = self.routine(m.op);
        self.b.ins().call(routine, &[args, sizes]);
        let written = m.args.iter().zip(m.op.params()).filter(|(_, p)| p.written);
        written.for_each(|((buf, _), _)| self.clobber(*buf));
        Ok(())
    }

    /// A loop that may run not at all.
    fn guarded_loop(&mut self, var: Var, begin: Value, end: Value, body: &[Stmt]) -> R<()> {
        let (enter, exit) = (self.b.create_block(), self.b.create_block());
        let runs = self.pure().icmp(IntCC::SignedLessThan, begin, end);
        let jump = self.b.ins().brif(runs, enter, &[], exit, &[]);
        self.b.seal_block(enter);
        self.b.switch_to_block(enter);
        self.push(ScopeKind::Branch, jump);
        self.repeat(var, begin, end, body)?;
        self.pop();
        self.b.ins().jump(exit, &[]);
        self.b.seal_block(exit);
        self.b.switch_to_block(exit);
        Ok(())
    }

    /// A loop that runs at least once.
    fn repeat(&mut self, var: Var, begin: Value, end: Value, body: &[Stmt]) -> R<()> {
        let (head, exit) = (self.b.create_block(), self.b.create_block());
        let i = self.b.append_block_param(head, types::I64);
        let jump = self.b.ins().jump(head, &[BlockArg::Value(begin)]);
        self.b.switch_to_block(head);
        let stored = stored(body);
        stored.iter().for_each(|b| self.clobber(*b));
        self.push(ScopeKind::Loop, jump);
        self.set_level(i);
        self.env.insert(var, Bind::Index(Poly::atom(i)));
        self.block(body)?;
        let next = self.b.ins().iadd_imm_s(i, 1);
        let again = self.b.ins().icmp(IntCC::SignedLessThan, next, end);
        self.b.ins().brif(again, head, &[BlockArg::Value(next)], exit, &[]);
        self.pop();
        self.b.seal_block(head);
        self.b.seal_block(exit);
        self.b.switch_to_block(exit);
        stored.iter().for_each(|b| self.clobber(*b));
        Ok(())
    }

    fn branch(&mut self, cond: Value, then: &[Stmt], other: &[Stmt]) -> R<()> {
        let [yes, no, exit] = [(); 3].map(|()| self.b.create_block());
        let jump = self.b.ins().brif(cond, yes, &[], no, &[]);
        let mut touched = stored(then);
        touched.extend(stored(other));
        for (block, body) in [(yes, then), (no, other)] {
            self.b.seal_block(block);
            self.b.switch_to_block(block);
            self.push(ScopeKind::Branch, jump);
            self.block(body)?;
            self.pop();
            self.b.ins().jump(exit, &[]);
            touched.iter().for_each(|b| self.clobber(*b));
        }
        self.b.seal_block(exit);
        self.b.switch_to_block(exit);
        Ok(())
    }

    fn store(&mut self, buf: Buf, index: &[Expr], value: &Expr) -> R<()> {
        let v = self.expr(value)?;
        let decl = self.k.decl(buf);
        if v.dt != decl.dtype {
            return Err(format!("store of {} to `{}`, which is {}", v.dt, decl.name, decl.dtype));
        }
        match decl.scope {
            Scope::Reg => return self.reg_store(buf, index, v),
            Scope::In => return Err(format!("store to `{}`, which is only read", decl.name)),
            _ => {}
        }
        let (at, offset) = self.address(buf, index)?;
        let v = if v.dt == DType::Bool && v.is_vector() { self.cast(v, DType::U8)? } else { v };
        self.store_pieces(&v, at, offset)?;
        self.clobber(buf);
        Ok(())
    }

    fn store_pieces(&mut self, v: &Val, at: Value, offset: i32) -> R<()> {
        let flags = mem_flags();
        if !v.is_vector() {
            self.b.ins().store(flags, v.p[0], at, offset);
            return Ok(());
        }
        let bytes = v.lanes * v.dt.size();
        for (i, &p) in v.p.iter().enumerate() {
            let o = offset + 16 * i as i32;
            match bytes - 16 * i {
                16.. => {
                    self.b.ins().store(flags, p, at, o);
                }
                rest @ (4 | 8) => {
                    let t = if rest == 4 { types::F32X4 } else { types::F64X2 };
                    let low = self.bits(p, t);
                    let low = self.pure().extractlane(low, 0);
                    self.b.ins().store(flags, low, at, o);
                }
                rest => return Err(format!("store of {} lanes of {} ({rest} bytes)", v.lanes, v.dt)),
            }
        }
        Ok(())
    }
}

//! How indices are spelled.

use cranelift_codegen::ir::{InstBuilder, Value, types};
use marquetry_ir::loops::{BinOp, Buf, Expr, Kernel, Var};
use marquetry_ir::{DType, Sym};

use super::func::{Bind, Cx, Val};
use crate::index::{Indices, Poly};
use crate::jit::R;

impl Indices for Cx<'_> {
    type V = Value;

    fn kernel(&self) -> &Kernel {
        self.k
    }

    fn bound(&self, v: Var) -> Option<Poly<Value>> {
        Some(match self.env.get(&v)? {
            Bind::Index(p) => p.clone(),
            Bind::Value(v) => Poly::atom(v.p[0]),
        })
    }

    fn size(&mut self, s: Sym) -> Value {
        self.size_value(s)
    }

    fn base(&mut self, b: Buf) -> Value {
        self.base_value(b)
    }

    fn opaque(&mut self, e: &Expr) -> R<Value> {
        Ok(self.node(e)?.p[0])
    }

    fn constant(&mut self, c: i64) -> Value {
        self.pure().iconst(types::I64, c)
    }

    fn as_constant(&self, v: Value) -> Option<i64> {
        self.constant_of(v)
    }

    fn level(&self, v: Value) -> usize {
        self.level_of(v)
    }

    fn add(&mut self, a: Value, b: Value) -> Value {
        self.pure().iadd(a, b)
    }

    fn mul(&mut self, a: Value, b: Value) -> Value {
        self.pure().imul(a, b)
    }

    fn times(&mut self, v: Value, c: i64) -> Value {
        match c {
            1 => v,
            -1 => self.pure().ineg(v),
            c if c > 0 && c.count_ones() == 1 => self.pure().ishl_imm_u(v, i64::from(c.trailing_zeros())),
            c => self.pure().imul_imm_s(v, c),
        }
    }

    fn div_rem(&mut self, op: BinOp, a: Value, b: Value) -> Value {
        match (self.constant_of(b), op) {
            (Some(c), BinOp::Div) if c > 0 && c.count_ones() == 1 => {
                self.pure().ushr_imm_u(a, i64::from(c.trailing_zeros()))
            }
            (Some(c), BinOp::Rem) if c > 0 && c.count_ones() == 1 => self.pure().band_imm_u(a, c - 1),
            (Some(c), BinOp::Div) if c != 0 => self.pure().udiv(a, b),
            (Some(c), _) if c != 0 => self.pure().urem(a, b),
            // May trap: stays where it is.
            (_, BinOp::Div) => self.b.ins().udiv(a, b),
            _ => self.b.ins().urem(a, b),
        }
    }
}

impl Cx<'_> {
    /// The value of a scalar `i64` expression.
    pub fn index_value(&mut self, e: &Expr) -> R<Val> {
        let p = self.index(e)?;
        Ok(Val::new(vec![self.sum(&p)], 1, DType::I64))
    }
}

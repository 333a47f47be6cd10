//! How indices are spelled.

use marquetry_ir::Sym;
use marquetry_ir::loops::{BinOp, Buf, Expr, Kernel, Var};

use super::func::{Bind, Cx, Kind, Ty, Val};
use crate::index::{Indices, Poly};
use crate::jit::R;

impl Indices for Cx<'_> {
    type V = Val;

    fn kernel(&self) -> &Kernel {
        self.k
    }

    fn bound(&self, v: Var) -> Option<Poly<Val>> {
        Some(match self.env.get(&v)? {
            Bind::Index(p) => p.clone(),
            Bind::Value(v) => Poly::atom(*v),
        })
    }

    fn size(&mut self, s: Sym) -> Val {
        self.size_value(s)
    }

    fn base(&mut self, b: Buf) -> Val {
        self.base_value(b)
    }

    fn opaque(&mut self, e: &Expr) -> R<Val> {
        self.node(e)
    }

    fn constant(&mut self, c: i64) -> Val {
        self.int(Ty::I64, c)
    }

    fn as_constant(&self, v: Val) -> Option<i64> {
        self.int_of(v)
    }

    fn level(&self, v: Val) -> usize {
        self.level_of(v)
    }

    fn add(&mut self, a: Val, b: Val) -> Val {
        if self.ty(a).kind == Kind::Ptr {
            let text = format!("getelementptr i8, {}, {}", self.typed(a), self.typed(b));
            return self.pure(Ty::PTR, &[a, b], text);
        }
        self.two("add", a, b)
    }

    fn mul(&mut self, a: Val, b: Val) -> Val {
        self.two("mul", a, b)
    }

    fn times(&mut self, v: Val, c: i64) -> Val {
        match c {
            1 => v,
            c => {
                let c = self.int(Ty::I64, c);
                self.two("mul", v, c)
            }
        }
    }

    fn div_rem(&mut self, op: BinOp, a: Val, b: Val) -> Val {
        self.quotient(op, a, b)
    }
}

//! Index arithmetic: polynomials over values, so that constants end up in address offsets and invariant parts outside of loops.

use std::collections::BTreeMap;

use cranelift_codegen::ir::{InstBuilder, Value, types};
use marquetry_ir::loops::{BinOp, Buf, Expr, Node};
use marquetry_ir::{DType, Dim};

use super::func::{Bind, Cx, R, Val};

/// Integer polynomial over values, modulo 2^64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Poly(BTreeMap<Vec<Value>, i64>);

impl Poly {
    pub fn constant(c: i64) -> Poly {
        let mut p = Poly::default();
        p.insert(vec![], c);
        p
    }

    pub fn atom(v: Value) -> Poly {
        Poly(BTreeMap::from([(vec![v], 1)]))
    }

    fn insert(&mut self, m: Vec<Value>, c: i64) {
        let e = self.0.entry(m.clone()).or_insert(0);
        *e = e.wrapping_add(c);
        if *e == 0 {
            self.0.remove(&m);
        }
    }

    pub fn as_const(&self) -> Option<i64> {
        match self.0.len() {
            0 => Some(0),
            1 => self.0.get(&vec![]).copied(),
            _ => None,
        }
    }

    pub fn add(mut self, o: &Poly) -> Poly {
        for (m, c) in &o.0 {
            self.insert(m.clone(), *c);
        }
        self
    }

    pub fn mul(&self, o: &Poly) -> Poly {
        let mut out = Poly::default();
        for (a, x) in &self.0 {
            for (b, y) in &o.0 {
                let mut m = [a.as_slice(), b.as_slice()].concat();
                m.sort_unstable();
                out.insert(m, x.wrapping_mul(*y));
            }
        }
        out
    }

    fn scale(&self, c: i64) -> Poly {
        self.mul(&Poly::constant(c))
    }

    /// Quotient and remainder by a positive constant, where the remainder is a constant.
    fn div_rem(&self, by: i64) -> Option<(Poly, i64)> {
        let (mut q, mut r) = (Poly::default(), 0);
        for (m, &c) in &self.0 {
            if m.is_empty() {
                q.insert(vec![], c.div_euclid(by));
                r = c.rem_euclid(by);
            } else if c % by == 0 {
                q.insert(m.clone(), c / by);
            } else {
                return None;
            }
        }
        Some((q, r))
    }

    fn take_const(&mut self) -> i64 {
        self.0.remove(&vec![]).unwrap_or(0)
    }
}

impl Cx<'_> {
    /// A dim as a polynomial.
    pub fn dim(&mut self, d: &Dim) -> Poly {
        let mut out = Poly::default();
        for (m, c) in d.terms() {
            let mut values: Vec<Value> = m.iter().map(|s| self.size(*s)).collect();
            values.sort_unstable();
            out.insert(values, c);
        }
        out
    }

    /// A scalar `i64` expression as a polynomial.
    pub fn index(&mut self, e: &Expr) -> R<Poly> {
        Ok(match e.node() {
            Node::Int(c) => Poly::constant(*c),
            Node::Size(s) => Poly::atom(self.size(*s)),
            Node::Var(v) => match self.env.get(v) {
                Some(Bind::Index(p)) => p.clone(),
                Some(Bind::Value(v)) => Poly::atom(v.p[0]),
                None => return Err(format!("variable {} is not bound", v.0)),
            },
            Node::Binary(BinOp::Add, a, b) => self.index(a)?.add(&self.index(b)?),
            Node::Binary(BinOp::Sub, a, b) => self.index(a)?.add(&self.index(b)?.scale(-1)),
            Node::Binary(BinOp::Mul, a, b) => {
                let a = self.index(a)?;
                a.mul(&self.index(b)?)
            }
            Node::Binary(op @ (BinOp::Div | BinOp::Rem), a, b) => {
                let (a, b) = (self.index(a)?, self.index(b)?);
                let exact = b.as_const().filter(|c| *c > 0).and_then(|c| a.div_rem(c));
                match (exact, op) {
                    (Some((q, _)), BinOp::Div) => q,
                    (Some((_, r)), _) => Poly::constant(r),
                    (None, _) => {
                        let (a, b) = (self.sum(&a), self.sum(&b));
                        Poly::atom(self.div_rem(*op, a, b))
                    }
                }
            }
            Node::Binary(BinOp::Min | BinOp::Max, a, b) => {
                let (x, y) = (self.index(a)?, self.index(b)?);
                match (x.as_const(), y.as_const(), e.node()) {
                    (Some(x), Some(y), Node::Binary(BinOp::Min, ..)) => Poly::constant(x.min(y)),
                    (Some(x), Some(y), _) => Poly::constant(x.max(y)),
                    _ => Poly::atom(self.opaque(e)?),
                }
            }
            _ => {
                let v = self.opaque(e)?;
                match self.constant(v) {
                    Some(c) => Poly::constant(c),
                    None => Poly::atom(v),
                }
            }
        })
    }

    fn opaque(&mut self, e: &Expr) -> R<Value> {
        Ok(self.node(e)?.p[0])
    }

    /// Quotient or remainder of non-negative integers.
    pub fn div_rem(&mut self, op: BinOp, a: Value, b: Value) -> Value {
        match (self.constant(b), op) {
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

    /// The value of a polynomial.
    pub fn sum(&mut self, p: &Poly) -> Value {
        let mut p = p.clone();
        let c = p.take_const();
        match self.terms(&p, None) {
            None => self.pure().iconst(types::I64, c),
            Some(v) if c == 0 => v,
            Some(v) => self.pure().iadd_imm_s(v, c),
        }
    }

    /// Sum of the terms, outermost level first so that invariant partial sums leave the loops, added to `base`.
    fn terms(&mut self, p: &Poly, base: Option<Value>) -> Option<Value> {
        let mut products: Vec<(usize, Value)> = Vec::new();
        for (m, &c) in &p.0 {
            let mut factors: Vec<(usize, Value)> = m.iter().map(|v| (self.level(*v), *v)).collect();
            factors.sort_unstable();
            let mut product = factors[0].1;
            let inner = factors.len() > 1 && factors[0].0 < factors[factors.len() - 1].0;
            if inner {
                product = self.times(product, c);
            }
            for (_, f) in &factors[1..] {
                product = self.pure().imul(product, *f);
            }
            if !inner {
                product = self.times(product, c);
            }
            products.push((self.level(product), product));
        }
        products.sort_unstable();
        let mut sum = base;
        for (_, v) in products {
            sum = Some(match sum {
                Some(s) => self.pure().iadd(s, v),
                None => v,
            });
        }
        sum
    }

    fn times(&mut self, v: Value, c: i64) -> Value {
        match c {
            1 => v,
            -1 => self.pure().ineg(v),
            c if c > 0 && c.count_ones() == 1 => self.pure().ishl_imm_u(v, i64::from(c.trailing_zeros())),
            c => self.pure().imul_imm_s(v, c),
        }
    }

    /// Flat element index of an access.
    pub fn flat(&mut self, buf: Buf, index: &[Expr]) -> R<Poly> {
        let k = self.k;
        let shape = &k.decl(buf).shape;
        if shape.len() != index.len() {
            return Err(format!("`{}` has {} axes, not {}", k.decl(buf).name, shape.len(), index.len()));
        }
        let mut flat = Poly::default();
        let mut stride = Poly::constant(1);
        for (e, extent) in index.iter().zip(shape).rev() {
            let i = self.index(e)?;
            flat = flat.add(&i.mul(&stride));
            stride = stride.mul(&self.dim(extent));
        }
        Ok(flat)
    }

    /// Address of an access: a value and a constant byte offset.
    pub fn address(&mut self, buf: Buf, index: &[Expr]) -> R<(Value, i32)> {
        let size = self.k.decl(buf).dtype.size() as i64;
        let mut p = self.flat(buf, index)?.scale(size);
        let base = self.base(buf);
        let c = p.take_const();
        // Offsets of later pieces are added to this one.
        match i32::try_from(c) {
            Ok(offset) if offset.unsigned_abs() < 1 << 30 => Ok((self.terms(&p, Some(base)).expect("base"), offset)),
            _ => {
                let at = self.terms(&p, Some(base)).expect("base");
                Ok((self.pure().iadd_imm_s(at, c), 0))
            }
        }
    }

    /// The value of a scalar `i64` expression.
    pub fn index_value(&mut self, e: &Expr) -> R<Val> {
        let p = self.index(e)?;
        Ok(Val::new(vec![self.sum(&p)], 1, DType::I64))
    }
}

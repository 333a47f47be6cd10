//! Index arithmetic of every backend: polynomials over its values, so that constants end up in address offsets and invariant
//! parts outside of loops.

use std::collections::BTreeMap;

use marquetry_ir::loops::{BinOp, Buf, Expr, Kernel, Micro, Node, Var, dim_expr};
use marquetry_ir::{Dim, Sym};

use crate::jit::R;

/// Integer polynomial over values, modulo 2^64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Poly<V>(BTreeMap<Vec<V>, i64>);

impl<V> Default for Poly<V> {
    fn default() -> Poly<V> {
        Poly(BTreeMap::new())
    }
}

impl<V: Copy + Ord> Poly<V> {
    pub fn constant(c: i64) -> Poly<V> {
        let mut p = Poly::default();
        p.insert(vec![], c);
        p
    }

    pub fn atom(v: V) -> Poly<V> {
        Poly(BTreeMap::from([(vec![v], 1)]))
    }

    fn insert(&mut self, m: Vec<V>, c: i64) {
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

    fn add(mut self, o: &Poly<V>) -> Poly<V> {
        for (m, c) in &o.0 {
            self.insert(m.clone(), *c);
        }
        self
    }

    fn mul(&self, o: &Poly<V>) -> Poly<V> {
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

    fn scale(&self, c: i64) -> Poly<V> {
        self.mul(&Poly::constant(c))
    }

    /// Quotient and remainder by a positive constant, where the remainder is a constant.
    fn div_rem(&self, by: i64) -> Option<(Poly<V>, i64)> {
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

/// A translation that computes indices: what a backend gives, and what it gets for it.
pub(crate) trait Indices {
    /// A 64-bit integer in the backend's IR.
    type V: Copy + Ord;

    /// The kernel.
    fn kernel(&self) -> &Kernel;
    /// The value of a loop variable or binding.
    fn bound(&self, v: Var) -> Option<Poly<Self::V>>;
    /// The run-time value of a symbol.
    fn size(&mut self, s: Sym) -> Self::V;
    /// The address of a buffer that lives in memory.
    fn base(&mut self, b: Buf) -> Self::V;
    /// The value of a scalar `i64` by its form alone.
    fn opaque(&mut self, e: &Expr) -> R<Self::V>;
    /// An integer constant.
    fn constant(&mut self, c: i64) -> Self::V;
    /// The constant, if the value is one.
    fn as_constant(&self, v: Self::V) -> Option<i64>;
    /// How deep in loops a value is available.
    fn level(&self, v: Self::V) -> usize;
    /// Sum; the first one may be an address.
    fn add(&mut self, a: Self::V, b: Self::V) -> Self::V;
    /// Product.
    fn mul(&mut self, a: Self::V, b: Self::V) -> Self::V;
    /// Product with a constant.
    fn times(&mut self, v: Self::V, c: i64) -> Self::V;
    /// Quotient or remainder of non-negative integers.
    fn div_rem(&mut self, op: BinOp, a: Self::V, b: Self::V) -> Self::V;

    /// A dim as a polynomial.
    fn dim(&mut self, d: &Dim) -> Poly<Self::V> {
        let mut out = Poly::default();
        for (m, c) in d.terms() {
            let mut values: Vec<Self::V> = m.iter().map(|s| self.size(*s)).collect();
            values.sort_unstable();
            out.insert(values, c);
        }
        out
    }

    /// A scalar `i64` expression as a polynomial.
    fn index(&mut self, e: &Expr) -> R<Poly<Self::V>> {
        Ok(match e.node() {
            Node::Int(c) => Poly::constant(*c),
            Node::Size(s) => Poly::atom(self.size(*s)),
            Node::Var(v) => self.bound(*v).ok_or_else(|| format!("variable {} is not bound", v.0))?,
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
                match self.as_constant(v) {
                    Some(c) => Poly::constant(c),
                    None => Poly::atom(v),
                }
            }
        })
    }

    /// The truth of a comparison of indices that are constants after unrolling.
    fn const_compare(&mut self, op: BinOp, a: &Expr, b: &Expr) -> R<Option<bool>> {
        if !op.is_compare() || a.dtype() != marquetry_ir::DType::I64 || a.lanes() != 1 {
            return Ok(None);
        }
        let (x, y) = (self.index(a)?, self.index(b)?);
        let (Some(x), Some(y)) = (x.as_const(), y.as_const()) else { return Ok(None) };
        Ok(Some(match op {
            BinOp::Lt => x < y,
            BinOp::Le => x <= y,
            _ => x == y,
        }))
    }

    /// The value of a polynomial.
    fn sum(&mut self, p: &Poly<Self::V>) -> Self::V {
        let mut p = p.clone();
        let c = p.take_const();
        match self.terms(&p, None) {
            None => self.constant(c),
            Some(v) if c == 0 => v,
            Some(v) => {
                let c = self.constant(c);
                self.add(v, c)
            }
        }
    }

    /// Sum of the terms, outermost level first so that invariant partial sums leave the loops, added to `base`.
    fn terms(&mut self, p: &Poly<Self::V>, base: Option<Self::V>) -> Option<Self::V> {
        let mut products: Vec<(usize, Self::V)> = Vec::new();
        for (m, &c) in &p.0 {
            let mut factors: Vec<(usize, Self::V)> = m.iter().map(|v| (self.level(*v), *v)).collect();
            factors.sort_unstable();
            let mut product = factors[0].1;
            let inner = factors.len() > 1 && factors[0].0 < factors[factors.len() - 1].0;
            if inner {
                product = self.times(product, c);
            }
            for (_, f) in &factors[1..] {
                product = self.mul(product, *f);
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
                Some(s) => self.add(s, v),
                None => v,
            });
        }
        sum
    }

    /// Flat element index of an access.
    fn flat(&mut self, buf: Buf, index: &[Expr]) -> R<Poly<Self::V>> {
        let decl = self.kernel().decl(buf);
        let shape = decl.shape.clone();
        if shape.len() != index.len() {
            return Err(format!("`{}` has {} axes, not {}", decl.name, shape.len(), index.len()));
        }
        let mut flat = Poly::default();
        let mut stride = Poly::constant(1);
        for (e, extent) in index.iter().zip(&shape).rev() {
            let i = self.index(e)?;
            flat = flat.add(&i.mul(&stride));
            stride = stride.mul(&self.dim(extent));
        }
        Ok(flat)
    }

    /// Address of an access: a value and a constant byte offset.
    fn address(&mut self, buf: Buf, index: &[Expr]) -> R<(Self::V, i32)> {
        let size = self.kernel().decl(buf).dtype.size() as i64;
        let mut p = self.flat(buf, index)?.scale(size);
        let base = self.base(buf);
        let c = p.take_const();
        let at = self.terms(&p, Some(base)).unwrap_or(base);
        // Offsets of later pieces are added to this one.
        match i32::try_from(c) {
            Ok(offset) if offset.unsigned_abs() < 1 << 30 => Ok((at, offset)),
            _ => {
                let c = self.constant(c);
                Ok((self.add(at, c), 0))
            }
        }
    }

    /// What the routine of a micro-kernel is told: addresses of its arguments; sizes, strides and constants.
    fn call_args(&mut self, m: &Micro) -> R<[Vec<Self::V>; 2]> {
        let mut sizes = vec![];
        for e in &m.sizes {
            let p = self.index(e)?;
            sizes.push(self.sum(&p));
        }
        let mut addresses = vec![];
        for (buf, index) in &m.args {
            addresses.push(match self.address(*buf, index)? {
                (at, 0) => at,
                (at, offset) => {
                    let offset = self.constant(offset.into());
                    self.add(at, offset)
                }
            });
            let stride = self.kernel().decl(*buf).shape.iter().skip(1).fold(Dim::from(1), |a, d| a * d.clone());
            let stride = self.index(&dim_expr(&stride))?;
            sizes.push(self.sum(&stride));
        }
        sizes.extend(m.op.constants().into_iter().map(|v| self.constant(v)));
        Ok([addresses, sizes])
    }

    /// First of the chunks that an aligned access of a `Reg` buffer touches, and the lane in it.
    fn reg_place(
        &mut self,
        buf: Buf,
        index: &[Expr],
        lanes: usize,
        (chunks, chunk): (usize, usize),
    ) -> R<(usize, usize)> {
        let flat = self.flat(buf, index)?.as_const();
        let name = &self.kernel().decl(buf).name;
        let Some(at) = flat else { return Err(format!("index of register buffer `{name}` is no constant")) };
        let Some(at) = usize::try_from(at).ok().filter(|a| *a < 1 << 32) else {
            return Err(format!("element {at} is outside register buffer `{name}`"));
        };
        if !at.is_multiple_of(lanes) || !lanes.is_multiple_of(chunk) && lanes != 1 {
            return Err(format!("access of {lanes} lanes at {at} of register buffer `{name}`"));
        }
        if (at + lanes).div_ceil(chunk) > chunks {
            return Err(format!("element {at} is outside register buffer `{name}`"));
        }
        Ok((at / chunk, at % chunk))
    }
}

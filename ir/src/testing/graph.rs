//! Random typed functions: every operator, ranks 0 to 4, symbolic and odd extents, states, weights in every storage type.
//!
//! What a graph computes must be comparable between machines that round differently. So each value has an interval that its
//! numbers stay in, and says whether every machine computes the same bits; comparisons, truncations, rounding to fewer bits
//! and choices read only such values, because a difference in the last bit would become a large one.

use crate::graph::{Attr, Builder, Decl, Function, Kind, KvTy, Module, Op, TensorTy, Ty, Value, rebuild};
use crate::{DType, Dim, Elem, Syms};

use super::Random;

/// Most elements of a tensor at the largest sizes.
const ELEMENTS: i64 = 4096;
/// Largest value of the symbols.
const LARGEST: i64 = 21;

/// What is known about a value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fact {
    /// Its numbers lie in this interval.
    pub range: (f32, f32),
    /// Every machine computes the same bits.
    pub exact: bool,
}

impl Fact {
    pub fn exact(lo: f32, hi: f32) -> Fact {
        Fact { range: (lo, hi), exact: true }
    }

    pub fn rounded(lo: f32, hi: f32) -> Fact {
        Fact { range: (lo, hi), exact: false }
    }

    pub fn size(self) -> f32 {
        self.range.0.abs().max(self.range.1.abs())
    }
}

/// A function under construction.
pub(super) struct Gen<'s, 'r> {
    pub r: &'r mut Random,
    pub b: Builder<'s>,
    pub params: Vec<Decl>,
    /// Declarations, and the newest version of each.
    pub states: Vec<(Decl, Value)>,
    pub facts: Vec<Fact>,
    /// Values to choose operands from.
    pub pool: Vec<Value>,
}

/// A random module of one function with about this many operations.
pub fn module(r: &mut Random, ops: usize) -> Module {
    let mut syms = Syms::default();
    syms.declare("n", 1, LARGEST, 1);
    if r.chance(40) {
        syms.declare("m", 2, 16, 2);
    }
    let mut g = Gen {
        r,
        b: Builder::new(&syms, Function::new("f", Kind::Graph)),
        params: vec![],
        states: vec![],
        facts: vec![],
        pool: vec![],
    };
    let all: Vec<Op> = Op::ALL.to_vec();
    let mut tries = 0;
    while g.b.func.insts.len() < ops && tries < 40 * ops {
        tries += 1;
        if g.r.chance(4) {
            g.layers();
        }
        let op = g.r.pick(&all);
        g.make(op);
    }
    g.results();
    let Gen { b, params, states, .. } = g;
    let f = rebuild(&syms, &b.func, &Ty::clone, &mut |_, _, _| Ok(None)).expect("a function that was typed before");
    Module { params, states: states.into_iter().map(|s| s.0).collect(), functions: vec![f], syms: syms.clone() }
}

impl Gen<'_, '_> {
    /// Adds an operation; none if its type rule refuses or the result is too large.
    pub fn emit(&mut self, op: Op, operands: &[Value], attrs: Vec<Attr>, fact: Fact) -> Option<Value> {
        let tys: Vec<&Ty> = operands.iter().map(|v| self.b.func.ty(*v)).collect();
        let ty = (op.info().infer)(self.b.syms(), &tys, &attrs).ok()?;
        let fits = ty.as_tensor().is_none_or(|t| (1..=ELEMENTS).contains(&self.elements(&t.shape)));
        let v = fits.then(|| self.b.emit(op, operands, attrs).ok())??;
        self.know(v, fact);
        Some(v)
    }

    /// As [`Gen::emit`], of a value that only the caller goes on with.
    pub fn emit_inner(&mut self, op: Op, operands: &[Value], attrs: Vec<Attr>, fact: Fact) -> Option<Value> {
        let v = self.emit(op, operands, attrs, fact)?;
        self.pool.retain(|p| *p != v);
        Some(v)
    }

    fn know(&mut self, v: Value, fact: Fact) {
        self.facts.resize(v.0 as usize + 1, Fact::exact(0.0, 0.0));
        self.facts[v.0 as usize] = fact;
        if self.b.func.ty(v).as_tensor().is_some_and(|t| t.elem.scalar().is_some()) {
            self.pool.push(v);
        }
    }

    pub fn fact(&self, v: Value) -> Fact {
        self.facts[v.0 as usize]
    }

    pub fn ty(&self, v: Value) -> TensorTy {
        self.b.func.ty(v).as_tensor().cloned().unwrap_or(TensorTy { elem: Elem::Act8, shape: vec![] })
    }

    pub fn shape(&self, v: Value) -> Vec<Dim> {
        self.b.shape(v)
    }

    fn elements(&self, shape: &[Dim]) -> i64 {
        shape.iter().fold(1i64, |n, d| n.saturating_mul(self.b.syms().range(d).1))
    }

    pub fn n(&self) -> Dim {
        crate::Sym(0).into()
    }

    /// A constant extent: small ones, odd ones, multiples of vectors and of quantized blocks.
    pub fn extent(&mut self) -> i64 {
        self.r.pick(&[1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 12, 13, 16, 16, 17, 31, 32, 32, 33, 64])
    }

    fn random_shape(&mut self) -> Vec<Dim> {
        loop {
            let rank = self.r.pick(&[0, 1, 1, 2, 2, 2, 3, 3, 4]);
            let shape: Vec<Dim> = (0..rank)
                .map(|axis| match self.r.below(20) {
                    0..=11 if axis == 0 => self.n(),
                    0 if self.b.syms().0.len() > 1 => crate::Sym(1).into(),
                    _ => self.extent().into(),
                })
                .collect();
            if self.elements(&shape) <= ELEMENTS / 2 {
                return shape;
            }
        }
    }

    /// A fresh argument.
    pub fn arg(&mut self, elem: DType, shape: Vec<Dim>) -> Value {
        let name = format!("a{}", self.b.func.args.len());
        let v = self.b.arg(name, Ty::tensor(elem, shape));
        let size = match elem {
            DType::Bool => 1.0,
            _ if elem.is_float() => 4.0,
            _ => 128.0,
        };
        self.know(v, Fact::exact(if matches!(elem, DType::U8 | DType::U32) { 0.0 } else { -size }, size));
        v
    }

    /// A fresh parameter; its shape is constant.
    pub fn param(&mut self, elem: Elem, shape: &[i64]) -> Value {
        let name = format!("w{}", self.params.len());
        let ty = Ty::tensor(elem, shape.iter().map(|d| (*d).into()).collect());
        self.params.push(Decl { name: name.clone(), ty: ty.clone() });
        let v = self.b.declared(Op::Param, &name, ty);
        self.know(v, Fact::exact(-8.0, 8.0));
        v
    }

    pub fn scalar(&mut self, v: f32) -> Option<Value> {
        let attrs = vec![Attr::float(v), Attr::Shape(vec![]), Attr::DType(DType::F32)];
        self.emit(Op::Const, &[], attrs, Fact::exact(v, v))
    }

    /// A value of the pool for which `f` holds; later ones are likelier.
    pub fn find(&mut self, f: impl Fn(&Self, Value) -> bool) -> Option<Value> {
        let fits: Vec<Value> = self.pool.iter().copied().filter(|v| f(self, *v)).collect();
        let (a, b) = (self.r.below(fits.len()), self.r.below(fits.len()));
        fits.get(a.max(b)).copied()
    }

    pub fn is(&self, v: Value, d: DType) -> bool {
        self.ty(v).elem == Elem::Scalar(d)
    }

    /// Any tensor of one type.
    pub fn any(&mut self, d: DType) -> Value {
        let found = if self.r.chance(90) { self.find(|g, v| g.is(v, d)) } else { None };
        found.unwrap_or_else(|| {
            let shape = self.random_shape();
            self.arg(d, shape)
        })
    }

    /// An f32 tensor that every machine computes alike.
    pub fn exact(&mut self) -> Value {
        let found = if self.r.chance(80) { self.find(|g, v| g.is(v, DType::F32) && g.fact(v).exact) } else { None };
        found.unwrap_or_else(|| {
            let shape = self.random_shape();
            self.arg(DType::F32, shape)
        })
    }

    /// A tensor of a type and shape.
    pub fn like(&mut self, d: DType, shape: &[Dim]) -> Value {
        let found = self.find(|g, v| g.is(v, d) && g.shape(v) == shape);
        let constant: Option<Vec<i64>> = shape.iter().map(Dim::as_const).collect();
        match (found, constant) {
            (Some(v), _) if self.r.chance(70) => v,
            (_, Some(c)) if d == DType::F32 && !c.is_empty() && c.len() <= 2 && self.r.chance(60) => {
                self.param(Elem::Scalar(d), &c)
            }
            _ => self.arg(d, shape.to_vec()),
        }
    }

    /// What combines with a tensor by broadcasting: the same shape, some axes of extent 1, or a scalar.
    pub fn partner(&mut self, v: Value) -> Option<Value> {
        let TensorTy { elem, shape } = self.ty(v);
        let d = elem.scalar()?;
        match self.r.below(10) {
            0 if d != DType::Bool => {
                let c = self.r.pick(&[-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0]);
                let c = if d == DType::F32 { c } else { f32::trunc(c).abs() };
                let attrs = vec![Attr::float(c), Attr::Shape(vec![]), Attr::DType(d)];
                matches!(d, DType::F16 | DType::BF16)
                    .then_some(None)
                    .unwrap_or_else(|| self.emit(Op::Const, &[], attrs, Fact::exact(c, c)))
            }
            1 | 2 => {
                let ones =
                    shape.iter().map(|x| if self.r.chance(50) { 1.into() } else { x.clone() }).collect::<Vec<_>>();
                Some(self.like(d, &ones))
            }
            3 => self.find(|g, w| {
                let t = g.ty(w);
                let fits = |(a, b): (&Dim, &Dim)| a == b || *a == 1.into() || *b == 1.into();
                t.elem == elem && t.shape.len() == shape.len() && t.shape.iter().zip(&shape).all(fits)
            }),
            _ => Some(self.like(d, &shape)),
        }
    }

    /// The value within `-by..=by`, exactly where it was there before.
    pub fn tame(&mut self, v: Value, by: f32) -> Option<Value> {
        let Fact { range: (lo, hi), exact } = self.fact(v);
        if lo >= -by && hi <= by {
            return Some(v);
        }
        let (a, b) = (self.scalar(by)?, self.scalar(-by)?);
        let v = self.emit(Op::Min, &[v, a], vec![], Fact { range: (lo.min(by), hi.min(by)), exact })?;
        self.emit(Op::Max, &[v, b], vec![], Fact { range: (lo.clamp(-by, by), hi.clamp(-by, by)), exact })
    }

    /// The value from `least` on.
    pub fn positive(&mut self, v: Value, least: f32) -> Option<Value> {
        let Fact { range: (lo, hi), exact } = self.fact(v);
        let c = self.scalar(least)?;
        self.emit(Op::Max, &[v, c], vec![], Fact { range: (lo.max(least), hi.max(least)), exact })
    }

    /// The newest version of a state of these sizes; for each size a new one now and then.
    pub fn state(&mut self, heads: usize, dim: usize, dtype: DType) -> usize {
        let ty = Ty::Kv(KvTy { slots: 64.into(), heads, dim, dtype });
        let known = self.states.iter().position(|(d, _)| d.ty == ty);
        match known {
            Some(i) if self.r.chance(80) => i,
            _ => {
                let decl = Decl { name: format!("kv{}", self.states.len()), ty: ty.clone() };
                let v = self.b.declared(Op::State, &decl.name, ty);
                self.know(v, Fact::exact(-4.0, 4.0));
                self.states.push((decl, v));
                self.states.len() - 1
            }
        }
    }

    /// The same few operations again and again over weights of their own, as models repeat layers.
    fn layers(&mut self) {
        let k = self.r.pick(&[8, 12, 32]);
        let mut x = self.like(DType::F32, &[self.n(), k.into()]);
        let outer = std::mem::take(&mut self.pool);
        let (start, count) = (self.r.clone(), 2 + self.r.below(3));
        for _ in 0..count {
            *self.r = start.clone();
            self.pool = vec![x];
            for op in [Op::RmsNorm, Op::Linear, Op::Silu, Op::Linear, Op::Mul, Op::Add] {
                self.make(op);
            }
            let shape = self.shape(x);
            let same = self.pool.iter().rev().copied().find(|v| self.is(*v, DType::F32) && self.shape(*v) == shape);
            if let Some(y) = same.and_then(|y| self.tame(y, 8.0)) {
                x = y;
            }
        }
        self.pool = outer;
        self.pool.push(x);
    }

    /// Values that nothing reads, and some others.
    fn results(&mut self) {
        let uses = self.b.func.uses();
        let computed: Vec<Value> = self.b.func.insts.iter().flat_map(|i| i.results.clone()).collect();
        let tensor = |v: &Value| self.pool.contains(v);
        let param = |v: &Value| self.b.func.insts.iter().any(|i| i.op == Op::Param && i.results.contains(v));
        let mut out: Vec<Value> =
            computed.iter().copied().filter(|v| uses[v.0 as usize] == 0 && tensor(v) && !param(v)).collect();
        while out.len() > 6 {
            out.remove(self.r.below(out.len()));
        }
        let others: Vec<Value> = self.pool.clone();
        if out.is_empty() || self.r.chance(20) {
            out.extend((!others.is_empty()).then(|| self.r.pick(&others)));
        }
        self.b.func.results = out.into_iter().enumerate().map(|(i, v)| (format!("y{i}"), v)).collect();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::graph::{parse_module, print_module, verify};
    use crate::testing::{EXCUSED, Numbers, inputs, run};

    /// Every operator of the table is made, or excused with a reason.
    #[test]
    fn every_operator_is_made() {
        let mut made = BTreeSet::new();
        for seed in 0..200 {
            let mut r = Random(seed);
            let m = module(&mut r, 5 + seed as usize % 56);
            assert_eq!(verify(&m), Vec::<String>::new(), "seed {seed}");
            let text = print_module(&m);
            assert!(parse_module(&text).is_ok_and(|back| back == m), "seed {seed} does not read back:\n{text}");
            let i = inputs(&m, &mut r, Numbers::Normal);
            let got = run(&m, &i).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{text}"));
            let finite = |t: &crate::graph::interp::Tensor| t.to_f32().is_ok_and(|v| v.iter().all(|x| x.is_finite()));
            assert!(got.results.iter().all(finite), "seed {seed} is not finite:\n{text}");
            made.extend(m.functions[0].insts.iter().map(|i| i.op));
        }
        let excused: BTreeSet<Op> = EXCUSED.iter().map(|(op, _)| *op).collect();
        let missing: Vec<&str> =
            Op::ALL.iter().filter(|o| !made.contains(o) && !excused.contains(o)).map(|o| o.name()).collect();
        assert!(missing.is_empty(), "`operators.rs` makes no {missing:?}; add them, or excuse them with a reason");
        assert!(made.is_disjoint(&excused), "made although excused");
    }
}

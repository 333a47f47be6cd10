//! How the generator makes each operator.

use crate::graph::{Attr, Op, Value};
use crate::{DType, Dim, Elem, GgufType, Packed};

use super::graph::{Fact, Gen};

/// Operators that the generator does not make, and why.
pub const EXCUSED: &[(Op, &str)] = &[(Op::Call, "`outline` makes calls of the layers that the generator repeats")];

const INTS: [DType; 6] = [DType::I32, DType::I32, DType::I64, DType::U32, DType::I16, DType::U8];

impl Gen<'_, '_> {
    /// Adds an operation of this kind, and what it needs; none if its operands did not fit.
    pub fn make(&mut self, op: Op) -> Option<Value> {
        match op {
            Op::Const | Op::Table | Op::Iota => self.leaf(op),
            Op::Neg if self.r.chance(20) => {
                let d = self.r.pick(&INTS);
                let x = self.any(d);
                self.emit(op, &[x], vec![], whole(d))
            }
            Op::Neg | Op::Exp | Op::Log | Op::Rsqrt | Op::Tanh | Op::Erf | Op::Sin | Op::Cos => self.unary(op),
            Op::Silu | Op::Gelu | Op::Softcap => self.unary(op),
            Op::Add | Op::Sub | Op::Mul | Op::Max | Op::Min | Op::Div => self.binary(op),
            Op::SwiGlu | Op::GeGlu => self.gated(op),
            Op::Lt | Op::Le | Op::And | Op::Select => self.choice(op),
            Op::Cast => self.cast(),
            Op::Reshape | Op::Permute | Op::Broadcast | Op::Slice | Op::Concat => self.movement(op),
            Op::ReduceSum | Op::ReduceMax | Op::Softmax | Op::RmsNorm | Op::LayerNorm => self.rows(op),
            Op::TopK | Op::Pick => self.top(op),
            Op::Linear | Op::QLinear | Op::GluLinear | Op::Quantize => self.contract(op),
            Op::ExpertLinear => self.experts(),
            Op::Gather => self.gather(),
            Op::Param | Op::Dequant | Op::Pack | Op::ConcatRows => {
                let k = self.r.pick(&[32, 64, 7]);
                let x = self.arg(DType::F32, vec![self.n(), k.into()]);
                let w = self.weight(k)?;
                self.emit(Op::Linear, &[x, w], vec![], Fact::rounded(-2000.0, 2000.0))
            }
            Op::State | Op::KvAppend => self.append(),
            Op::KvRead => {
                let s = self.state(1, 4, DType::F32);
                let which = self.r.below(2) as i64;
                self.emit(op, &[self.states[s].1], vec![Attr::Int(which)], Fact::rounded(-100.0, 100.0))
            }
            Op::Attend | Op::AttendSloped => self.attend(op),
            // What pieces hold is for merging.
            Op::AttendParts | Op::AttendMerge => self.attend(Op::AttendParts),
            Op::Rope | Op::RopeTable | Op::RopeApply => self.rope(op),
            _ => None,
        }
    }

    fn leaf(&mut self, op: Op) -> Option<Value> {
        let shape: Vec<Dim> = (0..self.r.below(4)).map(|_| self.extent().into()).collect();
        let d = self.r.pick(&[DType::F32, DType::F32, DType::I32, DType::I64]);
        match op {
            Op::Const => {
                let v = self.r.below(9) as f32 - 4.0;
                self.emit(op, &[], vec![Attr::float(v), Attr::Shape(shape), Attr::DType(d)], Fact::exact(v, v))
            }
            Op::Table => {
                let n = self.extent() as usize;
                let v: Vec<f32> = (0..n).map(|_| self.r.normal()).collect();
                self.emit(op, &[], vec![Attr::floats(&v)], Fact::exact(-4.0, 4.0))
            }
            _ => {
                let axis = self.r.below(shape.len()) as i64;
                let attrs = vec![Attr::Int(axis), Attr::Shape(shape), Attr::DType(d)];
                self.emit(op, &[], attrs, Fact::exact(0.0, 64.0))
            }
        }
    }

    fn unary(&mut self, op: Op) -> Option<Value> {
        let x = self.any(DType::F32);
        let x = match op {
            Op::Exp => self.tame(x, 4.0)?,
            Op::Log | Op::Rsqrt => self.positive(x, 0.25)?,
            Op::Sin | Op::Cos => self.tame(x, 50.0)?,
            _ => self.tame(x, 1e4)?,
        };
        let Fact { range: (lo, hi), exact } = self.fact(x);
        let fact = match op {
            Op::Neg => Fact { range: (-hi, -lo), exact },
            Op::Exp => Fact::rounded(lo.exp(), hi.exp()),
            Op::Log => Fact::rounded(lo.ln(), hi.ln()),
            Op::Rsqrt => Fact::rounded(0.0, 2.0),
            Op::Silu | Op::Gelu => Fact::rounded(-1.0, hi.max(1.0)),
            Op::Softcap => Fact::rounded(-3.0, 3.0),
            _ => Fact::rounded(-1.0, 1.0),
        };
        let attrs = match op {
            Op::Gelu => vec![Attr::Bool(self.r.chance(50))],
            Op::Softcap => vec![Attr::float(self.r.pick(&[0.5, 1.5, 3.0]))],
            _ => vec![],
        };
        self.emit(op, &[x], attrs, fact)
    }

    fn binary(&mut self, op: Op) -> Option<Value> {
        let ints = op != Op::Div && self.r.chance(20);
        let d = if ints { self.r.pick(&INTS) } else { DType::F32 };
        let x = self.any(d);
        let y = self.partner(x)?;
        if ints {
            return self.emit(op, &[x, y], vec![], whole(d));
        }
        let (x, y) = (self.tame(x, 1e3)?, self.tame(y, 1e3)?);
        let y = if op == Op::Div { self.positive(y, 0.5)? } else { y };
        let (x, y) = if op != Op::Div && self.r.chance(30) { (y, x) } else { (x, y) };
        let (a, b) = (self.fact(x), self.fact(y));
        let exact = a.exact && b.exact;
        let ends = |f: fn(f32, f32) -> f32| {
            let all =
                [f(a.range.0, b.range.0), f(a.range.0, b.range.1), f(a.range.1, b.range.0), f(a.range.1, b.range.1)];
            (all.iter().copied().fold(f32::MAX, f32::min), all.iter().copied().fold(f32::MIN, f32::max))
        };
        let range = match op {
            Op::Add => ends(|x, y| x + y),
            Op::Sub => ends(|x, y| x - y),
            Op::Mul => ends(|x, y| x * y),
            Op::Div => ends(|x, y| x / y),
            Op::Max => ends(f32::max),
            _ => ends(f32::min),
        };
        self.emit(op, &[x, y], vec![], Fact { range, exact })
    }

    fn gated(&mut self, op: Op) -> Option<Value> {
        let g = self.any(DType::F32);
        let u = self.partner(g)?;
        let (g, u) = (self.tame(g, 30.0)?, self.tame(u, 30.0)?);
        let attrs = if op == Op::GeGlu { vec![Attr::Bool(self.r.chance(50))] } else { vec![] };
        self.emit(op, &[g, u], attrs, Fact::rounded(-900.0, 900.0))
    }

    fn choice(&mut self, op: Op) -> Option<Value> {
        let truth = Fact::exact(0.0, 1.0);
        match op {
            Op::Lt | Op::Le => {
                let x = if self.r.chance(30) { self.any(DType::I32) } else { self.exact() };
                let y = self.partner(x).filter(|y| self.fact(*y).exact)?;
                self.emit(op, &[x, y], vec![], truth)
            }
            Op::And => {
                let x = self.any(DType::Bool);
                let y = self.partner(x)?;
                self.emit(op, &[x, y], vec![], truth)
            }
            _ => {
                let c = self.any(DType::Bool);
                let d = self.r.pick(&[DType::F32, DType::F32, DType::F32, DType::I32, DType::F16]);
                let shape = self.shape(c);
                let x = self.like(d, &shape);
                let y = self.partner(x)?;
                let (a, b) = (self.fact(x), self.fact(y));
                let range = (a.range.0.min(b.range.0), a.range.1.max(b.range.1));
                self.emit(op, &[c, x, y], vec![], Fact { range, exact: a.exact && b.exact })
            }
        }
    }

    fn cast(&mut self) -> Option<Value> {
        let x = self.find(|g, v| g.fact(v).exact)?;
        let x = if self.is(x, DType::F32) { self.tame(x, 1e4)? } else { x };
        let d = self.r.pick(DType::ALL.as_slice());
        let Fact { range: (lo, hi), .. } = self.fact(x);
        if d.is_float() {
            let narrow = matches!(d, DType::F16 | DType::BF16) && lo.abs().max(hi.abs()) > 6e4;
            return (!narrow).then(|| self.emit(Op::Cast, &[x], vec![Attr::DType(d)], Fact::exact(lo, hi)))?;
        }
        self.emit(Op::Cast, &[x], vec![Attr::DType(d)], whole(d))
    }

    fn movement(&mut self, op: Op) -> Option<Value> {
        let d = self.r.pick(&[DType::F32, DType::F32, DType::F32, DType::I32, DType::Bool, DType::F16]);
        let x = self.any(d);
        let fact = self.fact(x);
        let mut shape = self.shape(x);
        let at = self.r.below(shape.len());
        let attrs = match op {
            Op::Reshape => vec![Attr::Shape(self.other_shape(shape))],
            Op::Permute => {
                let mut perm: Vec<i64> = (0..shape.len() as i64).collect();
                (1..perm.len()).for_each(|i| perm.swap(i, self.r.below(i + 1)));
                vec![Attr::Ints(perm)]
            }
            Op::Broadcast => {
                let n = self.n();
                for (i, d) in shape.iter_mut().enumerate().filter(|(_, d)| **d == 1.into()) {
                    if self.r.chance(70) {
                        *d = if i == 0 { n.clone() } else { self.extent().into() };
                    }
                }
                vec![Attr::Shape(shape)]
            }
            Op::Slice => {
                let len = self.b.syms().range(shape.get(at)?).0 as usize;
                let start = self.r.below(len);
                let len = 1 + self.r.below(len - start);
                [at, start, len].map(|v| Attr::Int(v as i64)).to_vec()
            }
            _ => {
                let mut parts = vec![x];
                for _ in 0..1 + self.r.below(2) {
                    let mut s = shape.clone();
                    if s.get(at)?.as_const().is_some() && self.r.chance(60) {
                        s[at] = self.extent().into();
                    }
                    parts.push(self.like(d, &s));
                }
                let facts: Vec<Fact> = parts.iter().map(|p| self.fact(*p)).collect();
                let low = facts.iter().fold(f32::MAX, |m, f| m.min(f.range.0));
                let high = facts.iter().fold(f32::MIN, |m, f| m.max(f.range.1));
                let fact = Fact { range: (low, high), exact: facts.iter().all(|f| f.exact) };
                return self.emit(op, &parts, vec![Attr::Int(at as i64)], fact);
            }
        };
        self.emit(op, &[x], attrs, fact)
    }

    /// The same number of elements under another shape.
    fn other_shape(&mut self, mut shape: Vec<Dim>) -> Vec<Dim> {
        for _ in 0..1 + self.r.below(2) {
            let at = self.r.below(shape.len());
            let whole = shape.get(at).and_then(Dim::as_const);
            match (self.r.below(4), whole) {
                (0, _) if shape.len() >= 2 && at + 1 < shape.len() => {
                    let next = shape.remove(at + 1);
                    shape[at] = shape[at].clone() * next;
                }
                (1, Some(d)) if shape.len() < 4 => {
                    let divisors: Vec<i64> = (1..=d).filter(|f| d % f == 0).collect();
                    let f = self.r.pick(&divisors);
                    shape[at] = (d / f).into();
                    shape.insert(at + 1, f.into());
                }
                (2, Some(1)) => drop(shape.remove(at)),
                _ if shape.len() < 4 => shape.insert(at, 1.into()),
                _ => {}
            }
        }
        shape
    }

    fn rows(&mut self, op: Op) -> Option<Value> {
        let x = self.any(DType::F32);
        let x = self.tame(x, if op == Op::Softmax { 20.0 } else { 100.0 })?;
        let k = self.b.syms().range(self.shape(x).last()?).1 as f32;
        let Fact { range: (lo, hi), exact } = self.fact(x);
        let fact = match op {
            Op::ReduceSum => Fact::rounded(lo.min(0.0) * k, hi.max(0.0) * k),
            Op::ReduceMax => Fact { range: (lo, hi), exact },
            Op::Softmax => Fact::rounded(0.0, 1.0),
            _ => Fact::rounded(-8.0 * k.sqrt(), 8.0 * k.sqrt()),
        };
        let eps = vec![Attr::float(self.r.pick(&[1e-5, 1e-2, 1.0]))];
        match op {
            Op::RmsNorm => {
                let k = self.shape(x).last()?.as_const()?;
                let w = self.like(DType::F32, &[k.into()]);
                let w = self.tame(w, 8.0)?;
                self.emit(op, &[x, w], eps, fact)
            }
            Op::LayerNorm => self.emit(op, &[x], eps, fact),
            _ => self.emit(op, &[x], vec![], fact),
        }
    }

    fn top(&mut self, op: Op) -> Option<Value> {
        let x = self.exact();
        let (n, lead) = (self.shape(x).last()?.as_const()?, self.shape(x));
        let k = 1 + self.r.below(n.min(4) as usize) as i64;
        let ids = if op == Op::TopK || self.r.chance(50) {
            self.emit(Op::TopK, &[x], vec![Attr::Int(k)], Fact::exact(0.0, n as f32))?
        } else {
            let shape = [&lead[..lead.len() - 1], &[k.into()]].concat();
            self.arg(DType::I32, shape)
        };
        let fact = Fact { exact: false, ..self.fact(x) };
        if op == Op::TopK { Some(ids) } else { self.emit(op, &[x, ids], vec![], fact) }
    }

    /// A packed matrix `[rows, k]`.
    fn packed(&mut self, rows: i64, k: i64, elem: Elem) -> Option<Value> {
        let w = self.param(elem, &[rows, k]);
        let to = match elem {
            Elem::Gguf(t) => Elem::Packed(Packed::for_gguf(t)),
            other => Elem::Rows8(other.scalar()?),
        };
        self.emit(Op::Pack, &[w], vec![Attr::Elem(to)], Fact::exact(-8.0, 8.0))
    }

    /// Storage of a matrix with rows of `k`.
    fn storage(&mut self, k: i64, quantized: bool) -> Elem {
        let blocks: Vec<Elem> =
            GgufType::ALL.into_iter().filter(|t| k % t.block_len() as i64 == 0).map(Elem::Gguf).collect();
        let plain = [DType::F32, DType::F16, DType::BF16].map(Elem::Scalar);
        if !blocks.is_empty() && (quantized || self.r.chance(60)) { self.r.pick(&blocks) } else { self.r.pick(&plain) }
    }

    /// A matrix with rows of `k`, as `linear` takes it: plain, read through `dequant`, packed, or joined.
    fn weight(&mut self, k: i64) -> Option<Value> {
        let elem = self.storage(k, false);
        let rows = self.extent();
        match self.r.below(20) {
            0 => Some(self.like(DType::F32, &[rows.into(), k.into()])),
            1..=4 => self.packed(rows, k, elem),
            5..=7 => {
                let (a, b) = (self.packed(rows * 8, k, elem)?, self.packed(rows.min(4) * 8, k, elem)?);
                self.emit(Op::ConcatRows, &[a, b], vec![Attr::Int(0)], Fact::exact(-8.0, 8.0))
            }
            _ => {
                let w = self.param(elem, &[rows, k]);
                self.dequantized(w)
            }
        }
    }

    /// The numbers of a stored matrix, which other operations read now and then.
    fn dequantized(&mut self, w: Value) -> Option<Value> {
        let v = self.emit(Op::Dequant, &[w], vec![], Fact::exact(-8.0, 8.0))?;
        if self.r.chance(95) {
            self.pool.retain(|x| *x != v && *x != w);
        }
        Some(v)
    }

    fn contract(&mut self, op: Op) -> Option<Value> {
        let x = if op == Op::Linear || self.r.chance(50) { self.any(DType::F32) } else { self.exact() };
        let mut x = self.tame(x, 4.0)?;
        let mut k = self.shape(x).last()?.as_const()?;
        let quantized = matches!(op, Op::QLinear | Op::Quantize) || op == Op::GluLinear && self.r.chance(50);
        let fits = k % 32 == 0 && self.shape(x).len() == 2 && self.fact(x).exact;
        if quantized && !fits {
            k = self.r.pick(&[32, 64, 256]);
            x = self.arg(DType::F32, vec![self.n(), k.into()]);
        }
        let fact = Fact::rounded(-32.0 * k as f32, 32.0 * k as f32);
        if op == Op::Linear {
            let w = self.weight(k)?;
            return self.emit(op, &[x, w], vec![], fact);
        }
        if quantized {
            x = self.emit(Op::Quantize, &[x], vec![], Fact::exact(-4.0, 4.0))?;
        }
        let elem = self.storage(k, quantized);
        if op == Op::GluLinear {
            let rows = 8 * (1 + self.r.below(3)) as i64;
            let (a, b) = (self.packed(rows, k, elem)?, self.packed(rows, k, elem)?);
            let w = self.emit(Op::ConcatRows, &[a, b], vec![Attr::Int(8)], Fact::exact(-8.0, 8.0))?;
            let act = Attr::Int(self.r.below(3) as i64);
            return self.emit(op, &[x, w], vec![act], Fact::rounded(-1e6, 1e6));
        }
        let rows = self.extent();
        let w = self.packed(rows, k, elem)?;
        self.emit(Op::QLinear, &[x, w], vec![], fact)
    }

    fn experts(&mut self) -> Option<Value> {
        let (k, count, rows, j) = (self.r.pick(&[5, 32]), 3, self.r.pick(&[4, 8]), 1 + self.r.below(2) as i64);
        let one = if self.r.chance(50) { 1 } else { j };
        let x = self.like(DType::F32, &[self.n(), one.into(), k.into()]);
        let x = self.tame(x, 4.0)?;
        let elem = self.storage(k, false);
        let w = if self.r.chance(50) {
            self.packed(rows * count, k, elem)?
        } else {
            let w = self.param(elem, &[rows * count, k]);
            self.dequantized(w)?
        };
        let ids = self.arg(DType::I32, vec![self.n(), j.into()]);
        self.emit(Op::ExpertLinear, &[x, w, ids], vec![Attr::Int(count)], Fact::rounded(-2000.0, 2000.0))
    }

    fn gather(&mut self) -> Option<Value> {
        let k = self.r.pick(&[7, 32, 64]);
        let table = if self.r.chance(50) { self.weight(k)? } else { self.any(DType::F32) };
        let shape = [vec![self.n()], vec![self.n(), 2.into()], vec![3.into()]];
        let shape = self.r.pick(&shape);
        let ids = self.arg(DType::I32, shape);
        let fact = self.fact(table);
        self.emit(Op::Gather, &[table, ids], vec![], fact)
    }

    fn heads(&mut self) -> (usize, usize) {
        self.r.pick(&[(1, 4), (2, 8), (2, 6), (1, 16)])
    }

    fn append(&mut self) -> Option<Value> {
        let (h, d) = self.heads();
        let shape = [self.n(), h.into(), d.into()];
        let (k, v) = (self.like(DType::F32, &shape), self.like(DType::F32, &shape));
        let (k, v) = (self.tame(k, 8.0)?, self.tame(v, 100.0)?);
        let slot = self.arg(DType::I32, vec![self.n()]);
        // Rounding of what is not exact depends on the order of sums before it.
        let narrow = self.fact(k).exact && self.fact(v).exact && self.r.chance(50);
        let s = self.state(h, d, if narrow { DType::F16 } else { DType::F32 });
        let new = self.emit(Op::KvAppend, &[self.states[s].1, k, v, slot], vec![], Fact::rounded(-8.0, 8.0))?;
        self.states[s].1 = new;
        Some(new)
    }

    fn attend(&mut self, op: Op) -> Option<Value> {
        let (h, d) = self.heads();
        let dtype = self.r.pick(&[DType::F32, DType::F16]);
        let s = self.state(h, d, dtype);
        let heads = h * (1 + self.r.below(3));
        let q = self.like(DType::F32, &[self.n(), heads.into(), d.into()]);
        let q = self.tame(q, 4.0)?;
        let [pos, seq] = [(); 2].map(|()| self.arg(DType::I32, vec![self.n()]));
        let page = self.r.pick(&[4, 8]);
        let pages = self.arg(DType::I32, vec![2.into(), 4.into()]);
        let mut attrs = vec![
            Attr::float(0.5),
            Attr::Int(self.r.pick(&[0, 1, 3, 16])),
            Attr::float(self.r.pick(&[0.0, 5.0])),
            Attr::Int(page),
        ];
        if op == Op::AttendSloped {
            let slopes: Vec<f32> = (0..heads).map(|_| self.r.normal().abs()).collect();
            attrs.push(Attr::floats(&slopes));
        }
        let (state, fact) = (self.states[s].1, Fact::rounded(-100.0, 100.0));
        if op != Op::AttendParts {
            return self.emit(op, &[q, state, pos, seq, pages], attrs, fact);
        }
        attrs.push(Attr::Int(self.r.pick(&[1, 2, 3, 8])));
        let parts = self.emit_inner(op, &[q, state, pos, seq, pages], attrs, fact)?;
        self.emit(Op::AttendMerge, &[parts], vec![], fact)
    }

    fn rope(&mut self, op: Op) -> Option<Value> {
        let (h, d) = self.heads();
        let x = self.like(DType::F32, &[self.n(), h.into(), d.into()]);
        let x = self.tame(x, 100.0)?;
        let pos = self.arg(DType::I32, vec![self.n()]);
        let freq: Vec<f32> = (0..1 + self.r.below(d / 2)).map(|i| 0.3f32.powi(i as i32)).collect();
        let scale = Attr::float(self.r.pick(&[1.0, 1.25]));
        let kind = Attr::Bool(self.r.chance(50));
        let size = 4.0 * self.fact(x).size();
        let fact = Fact::rounded(-size, size);
        if op == Op::Rope {
            return self.emit(op, &[x, pos], vec![Attr::floats(&freq), scale, kind], fact);
        }
        let table = self.emit(Op::RopeTable, &[pos], vec![Attr::floats(&freq), scale], Fact::rounded(-1.25, 1.25))?;
        if op == Op::RopeTable { Some(table) } else { self.emit(op, &[x, table], vec![kind], fact) }
    }
}

/// The interval of an integer type.
fn whole(d: DType) -> Fact {
    match d {
        DType::Bool => Fact::exact(0.0, 1.0),
        DType::I8 | DType::U8 => Fact::exact(-128.0, 255.0),
        DType::I16 => Fact::exact(-32768.0, 32767.0),
        _ => Fact::exact(-9.3e18, 9.3e18),
    }
}

//! Which elements of its arguments a kernel touches: intervals of indices, and how many values each can take.

use super::super::{BinOp, Buf, Expr, Kernel, Node, Stmt, UnOp, Var};
use super::{Touched, of_type, shapes};
use crate::Sym;

/// Bound of values that nothing is known about; sums and differences of two fit easily.
pub const FAR: i64 = 1 << 48;

/// The values that an integer can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Smallest.
    pub lo: i64,
    /// Largest.
    pub hi: i64,
    /// How many at most.
    pub n: u64,
}

impl Range {
    fn new((lo, hi): (i64, i64), n: u64) -> Range {
        let (lo, hi) = (lo.clamp(-FAR, FAR), hi.clamp(-FAR, FAR));
        Range { lo, hi, n: n.min((hi - lo + 1).max(0) as u64) }
    }
}

/// Elements that one access touches, all its iterations together.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Region {
    axes: Vec<Range>,
    elements: u64,
}

impl Region {
    /// Is every element between the bounds one of the region's?
    fn dense(&self) -> bool {
        product(self.axes.iter().map(|a| (a.hi - a.lo + 1).max(0) as u64)) == self.elements
    }

    fn within(&self, o: &Region) -> bool {
        self.axes.iter().zip(&o.axes).all(|(a, b)| a.lo >= b.lo && a.hi <= b.hi)
    }

    fn meets(&self, o: &Region) -> bool {
        self.axes.iter().zip(&o.axes).all(|(a, b)| a.lo <= b.hi && b.lo <= a.hi)
    }
}

fn product(all: impl Iterator<Item = u64>) -> u64 {
    all.fold(1, u64::saturating_mul)
}

/// Ranges of variables, and what the accesses of a kernel touch.
pub struct Touching<'a> {
    k: &'a Kernel,
    sizes: &'a [i64],
    contents: &'a [Option<&'a [i32]>],
    shapes: Vec<Vec<i64>>,
    vars: Vec<Range>,
    /// By buffer.
    reads: Vec<Vec<Region>>,
    writes: Vec<Vec<Region>>,
    /// What is stored to integer buffers, and where.
    stored: Vec<Vec<(Region, Range)>>,
}

impl<'a> Touching<'a> {
    pub fn new(k: &'a Kernel, sizes: &'a [i64], contents: &'a [Option<&'a [i32]>]) -> Touching<'a> {
        let none = || vec![vec![]; k.buffers.len()];
        let vars = vec![Range { lo: -FAR, hi: FAR, n: 1 }; k.vars.len()];
        let stored = vec![vec![]; k.buffers.len()];
        Touching { k, sizes, contents, shapes: shapes(k, sizes), vars, reads: none(), writes: none(), stored }
    }

    /// Goes through the kernel once.
    pub fn walk(mut self) -> Touching<'a> {
        self.body(&self.k.body);
        self
    }

    /// Bytes of the first `count` buffers.
    pub fn touched(&self, count: usize) -> Vec<Touched> {
        let bytes = |regions: &[Region], i: usize| {
            let elements = union(regions).min(product(self.shapes[i].iter().map(|d| (*d).max(0) as u64)));
            elements.saturating_mul(self.k.buffers[i].dtype.size() as u64)
        };
        (0..count).map(|i| Touched { read: bytes(&self.reads[i], i), written: bytes(&self.writes[i], i) }).collect()
    }

    pub fn shape(&self, b: Buf) -> &[i64] {
        self.shapes.get(b.0 as usize).map_or(&[], |s| s)
    }

    pub fn size(&self, s: Sym) -> Option<i64> {
        self.sizes.get(s.0 as usize).copied()
    }

    pub fn contents(&self, b: Buf) -> Option<&'a [i32]> {
        *self.contents.get(b.0 as usize)?
    }

    /// Most positions that a row of attention sees, by what is stored for it.
    pub fn most_positions(&self, meta: Buf) -> i64 {
        let column = |i: i64| {
            let of = self.stored.get(meta.0 as usize).into_iter().flatten();
            of.filter(move |(at, _)| at.axes.last().is_some_and(|a| a.lo == i && a.hi == i)).map(|(_, value)| *value)
        };
        let last = column(1).map(|v| v.hi).max().unwrap_or(-1);
        last.saturating_add(1).saturating_sub(column(0).map(|v| v.lo).min().unwrap_or(0))
    }

    fn body(&mut self, body: &'a [Stmt]) {
        for s in body {
            match s {
                Stmt::For { var, extent, body, .. } => {
                    self.visit(extent);
                    let n = self.of(extent).hi;
                    if n > 0 {
                        self.set(*var, Range::new((0, n - 1), n as u64));
                        self.body(body);
                    }
                }
                Stmt::Let { var, value } => {
                    self.visit(value);
                    let range = self.of(value);
                    self.set(*var, range);
                }
                Stmt::Store { buf, index, value } => {
                    self.visit(value);
                    index.iter().for_each(|e| self.visit(e));
                    self.store(*buf, index, value);
                }
                Stmt::If { cond, then, other } => {
                    self.visit(cond);
                    self.body(then);
                    self.body(other);
                }
                Stmt::Micro(_) => {}
            }
        }
    }

    fn set(&mut self, v: Var, range: Range) {
        if let Some(slot) = self.vars.get_mut(v.0 as usize) {
            *slot = range;
        }
    }

    fn store(&mut self, buf: Buf, index: &[Expr], value: &Expr) {
        let region = self.region(buf, index, value.lanes());
        let i = buf.0 as usize;
        if !value.dtype().is_float() {
            // What a loop carries has no range after one look at it.
            let range = if loads(value, buf) { Range::new(of_type(value.dtype()), u64::MAX) } else { self.of(value) };
            self.stored[i].push((region.clone(), range));
        }
        self.writes[i].push(region);
    }

    /// Records what is loaded.
    fn visit(&mut self, e: &Expr) {
        if let Node::Load(b, index) = e.node() {
            let region = self.region(*b, index, e.lanes());
            self.reads[b.0 as usize].push(region);
        }
        e.children().into_iter().for_each(|c| self.visit(c));
    }

    fn region(&self, buf: Buf, index: &[Expr], lanes: u16) -> Region {
        let lanes = u64::from(lanes);
        let mut axes = vec![];
        for (i, (e, &d)) in index.iter().zip(self.shape(buf)).enumerate() {
            let r = self.of(e);
            let wide = if i + 1 == index.len() { lanes } else { 1 };
            let (lo, hi) = (r.lo.clamp(0, (d - 1).max(0)), (r.hi + wide as i64 - 1).clamp(0, (d - 1).max(0)));
            axes.push(Range::new((lo, hi), r.n.saturating_mul(wide)));
        }
        let mut vars = vec![];
        index.iter().for_each(|e| variables(e, &mut vars));
        let together = self.combinations(&vars).saturating_mul(lanes);
        let elements = product(axes.iter().map(|a| a.n)).min(together);
        Region { axes, elements }
    }

    fn combinations(&self, vars: &[Var]) -> u64 {
        product(vars.iter().map(|v| self.vars.get(v.0 as usize).map_or(1, |r| r.n)))
    }

    /// The values of an integer.
    pub fn of(&self, e: &Expr) -> Range {
        let mut vars = vec![];
        variables(e, &mut vars);
        Range::new(self.bounds(e), self.combinations(&vars))
    }

    fn bounds(&self, e: &Expr) -> (i64, i64) {
        let any = of_type(e.dtype());
        let (lo, hi) = match e.node() {
            Node::Int(v) => (*v, *v),
            Node::Size(s) => self.size(*s).map_or(any, |v| (v, v)),
            Node::Var(v) => self.vars.get(v.0 as usize).map_or(any, |r| (r.lo, r.hi)),
            Node::Load(b, index) => self.loaded(*b, index, e.lanes()).unwrap_or(any),
            Node::Unary(UnOp::Neg, a) => {
                let (lo, hi) = self.bounds(a);
                (-hi, -lo)
            }
            Node::Cast(a) if !a.dtype().is_float() => self.bounds(a),
            Node::Splat(a) => self.bounds(a),
            Node::Ramp(a) => {
                let (lo, hi) = self.bounds(a);
                (lo, hi + i64::from(e.lanes()) - 1)
            }
            Node::Select(_, a, b) => {
                let (a, b) = (self.bounds(a), self.bounds(b));
                (a.0.min(b.0), a.1.max(b.1))
            }
            Node::Binary(op, a, b) if !a.dtype().is_float() => {
                binary(*op, self.bounds(a), self.bounds(b)).unwrap_or(any)
            }
            _ => any,
        };
        (lo.clamp(-FAR, FAR), hi.clamp(-FAR, FAR))
    }

    fn loaded(&self, b: Buf, index: &[Expr], lanes: u16) -> Option<(i64, i64)> {
        if let Some(all) = self.contents(b) {
            return Some((i64::from(*all.iter().min()?), i64::from(*all.iter().max()?)));
        }
        let at = self.region(b, index, lanes);
        let values = self.stored.get(b.0 as usize)?.iter().filter(|(to, _)| to.meets(&at)).map(|(_, v)| v);
        values
            .fold(None, |all: Option<(i64, i64)>, v| Some(all.map_or((v.lo, v.hi), |a| (a.0.min(v.lo), a.1.max(v.hi)))))
    }
}

/// Elements in any of the regions; those of regions that overlap in part may count twice, up to all between the bounds.
fn union(regions: &[Region]) -> u64 {
    let mut kept: Vec<&Region> = vec![];
    for r in regions {
        if !kept.iter().any(|k| *k == r || (k.dense() && r.within(k))) {
            kept.retain(|k| !(r.dense() && k.within(r)));
            kept.push(r);
        }
    }
    let sum = kept.iter().fold(0u64, |n, r| n.saturating_add(r.elements));
    let axes = kept.first().map_or(0, |r| r.axes.len());
    let hull = product((0..axes).map(|i| {
        let of = || kept.iter().filter_map(|r| r.axes.get(i));
        let (lo, hi) = (of().map(|a| a.lo).min().unwrap_or(0), of().map(|a| a.hi).max().unwrap_or(-1));
        (hi - lo + 1).max(0) as u64
    }));
    sum.min(hull)
}

fn binary(op: BinOp, (a, b): (i64, i64), (c, d): (i64, i64)) -> Option<(i64, i64)> {
    Some(match op {
        BinOp::Add => (a + c, b + d),
        BinOp::Sub => (a - d, b - c),
        BinOp::Mul => {
            let all = [a.saturating_mul(c), a.saturating_mul(d), b.saturating_mul(c), b.saturating_mul(d)];
            (all.into_iter().min()?, all.into_iter().max()?)
        }
        BinOp::Div if a >= 0 && c > 0 => (a / d, b / c),
        BinOp::Rem if a >= 0 && b < c => (a, b),
        BinOp::Rem if c > 0 => (0, d - 1),
        BinOp::Min => (a.min(c), b.min(d)),
        BinOp::Max => (a.max(c), b.max(d)),
        BinOp::And if a >= 0 || c >= 0 => (0, if a >= 0 && c >= 0 { b.min(d) } else { b.max(d) }),
        BinOp::Shl if c == d && (0..48).contains(&c) => (a.saturating_mul(1 << c), b.saturating_mul(1 << c)),
        BinOp::Shr if c == d && (0..64).contains(&c) && a >= 0 => (a >> c, b >> c),
        BinOp::Lt | BinOp::Le | BinOp::Eq => (0, 1),
        _ => return None,
    })
}

/// The variables of an expression, each once.
fn variables(e: &Expr, all: &mut Vec<Var>) {
    if let Node::Var(v) = e.node()
        && !all.contains(v)
    {
        all.push(*v);
    }
    e.children().into_iter().for_each(|c| variables(c, all));
}

fn loads(e: &Expr, buf: Buf) -> bool {
    matches!(e.node(), Node::Load(b, _) if *b == buf) || e.children().into_iter().any(|c| loads(c, buf))
}

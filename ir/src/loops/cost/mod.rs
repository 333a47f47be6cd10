//! What one launch of a kernel computes and touches, from its loops.
//!
//! Operations are those of the loops as they are written, micro-kernels by the loops that define them. How often a statement
//! runs is exact: loops whose variables decide about other loops or branches are walked, all others are multiplied. Bytes are those
//! of distinct elements: what a launch reads twice counts once, as if caches were large enough. Where an index comes from data, the
//! count is an upper bound.

mod touch;

use std::collections::HashMap;

use super::micro::{self, Attend};
use super::{BinOp, Buf, Expr, Kernel, Micro, MicroOp, Node, Stmt, UnOp, Var};
use crate::{DType, Sym};
use touch::Touching;

/// Iterations that are walked at most; loops beyond are multiplied, with the largest extents that they can have.
const MAX_WALKED: u64 = 1 << 18;

/// What one launch of a kernel computes and touches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Operations on floats: a fused multiply-add is two, a function such as `exp` one; moves, casts and comparisons are none.
    pub flops: u64,
    /// Multiplications and additions of 8-bit products.
    pub int8_ops: u64,
    /// One per argument.
    pub args: Vec<Touched>,
}

/// Bytes of distinct elements of an argument.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Those that are read.
    pub read: u64,
    /// Those that are written.
    pub written: u64,
}

/// The cost of one launch at these sizes.
///
/// `contents` are the elements of integer arguments, as far as they are known: positions and page tables decide how much attention
/// reads. The kernel is valid (see [`super::verify`]).
pub fn cost(k: &Kernel, sizes: &[i64], contents: &[Option<&[i32]>]) -> Cost {
    let mut counted = k.clone();
    // The definition of attention goes over the positions twice, which no routine does.
    micro::expand(&mut counted, &|op| !matches!(op, MicroOp::Attend(_)));
    let mut whole = counted.clone();
    micro::expand(&mut whole, &|_| true);
    let ranges = Touching::new(&whole, sizes, contents).walk();
    let mut count = Count {
        ranges: &ranges,
        decides: Decides::new(&counted),
        env: vec![None; counted.vars.len()],
        cells: HashMap::new(),
        memo: HashMap::new(),
        left: MAX_WALKED,
        total: [0; 2],
    };
    count.body(&counted.body, 1);
    let [flops, int8_ops] = count.total;
    Cost { flops, int8_ops, args: ranges.touched(k.args()) }
}

/// Extents of a kernel's buffers.
fn shapes(k: &Kernel, sizes: &[i64]) -> Vec<Vec<i64>> {
    let size = |s: Sym| sizes.get(s.0 as usize).copied().unwrap_or(0);
    k.buffers.iter().map(|b| b.shape.iter().map(|d| d.eval(size)).collect()).collect()
}

/// Variables and buffers that decide how often something runs.
struct Decides {
    vars: Vec<bool>,
    bufs: Vec<bool>,
    changed: bool,
}

impl Decides {
    fn new(k: &Kernel) -> Decides {
        let mut d = Decides { vars: vec![false; k.vars.len()], bufs: vec![false; k.buffers.len()], changed: true };
        while std::mem::take(&mut d.changed) {
            d.body(&k.body);
        }
        d
    }

    fn var(&self, v: Var) -> bool {
        self.vars.get(v.0 as usize).is_some_and(|d| *d)
    }

    fn buf(&self, b: Buf) -> bool {
        self.bufs.get(b.0 as usize).is_some_and(|d| *d)
    }

    fn mark_buf(&mut self, b: Buf) {
        if let Some(d) = self.bufs.get_mut(b.0 as usize) {
            self.changed |= !std::mem::replace(d, true);
        }
    }

    fn mark(&mut self, e: &Expr) {
        match e.node() {
            Node::Var(v) => {
                if let Some(d) = self.vars.get_mut(v.0 as usize) {
                    self.changed |= !std::mem::replace(d, true);
                }
            }
            Node::Load(b, _) => self.mark_buf(*b),
            _ => {}
        }
        e.children().into_iter().for_each(|c| self.mark(c));
    }

    fn body(&mut self, body: &[Stmt]) {
        for s in body {
            match s {
                Stmt::For { extent, body, .. } => {
                    self.mark(extent);
                    self.body(body);
                }
                Stmt::If { cond, then, other } => {
                    self.mark(cond);
                    self.body(then);
                    self.body(other);
                }
                Stmt::Let { var, value } if self.var(*var) => self.mark(value),
                Stmt::Store { buf, index, value } if self.buf(*buf) => {
                    self.mark(value);
                    index.iter().for_each(|e| self.mark(e));
                }
                Stmt::Micro(m) => {
                    m.sizes.iter().for_each(|e| self.mark(e));
                    let (meta, start) = meta(m);
                    self.mark_buf(meta);
                    start.iter().for_each(|e| self.mark(e));
                }
                Stmt::Let { .. } | Stmt::Store { .. } => {}
            }
        }
    }
}

/// The argument of attention that says which positions each row sees.
fn meta(m: &Micro) -> (Buf, &[Expr]) {
    let (buf, start) = &m.args[5];
    (*buf, start)
}

/// Counts operations: `total` is those on floats and those on bytes.
struct Count<'a> {
    ranges: &'a Touching<'a>,
    decides: Decides,
    /// Values of variables that decide, where they are known.
    env: Vec<Option<i64>>,
    /// Elements of local buffers that decide.
    cells: HashMap<(Buf, i64), Option<i64>>,
    /// Operations of one evaluation, by expression.
    memo: HashMap<usize, [u64; 2]>,
    left: u64,
    total: [u64; 2],
}

impl Count<'_> {
    fn body(&mut self, body: &[Stmt], times: u64) {
        if times == 0 {
            return;
        }
        for s in body {
            match s {
                Stmt::For { var, extent, body, .. } => {
                    self.add(extent, times);
                    let known = self.eval(extent).map(|n| n.max(0));
                    let n = known.unwrap_or_else(|| self.ranges.of(extent).hi.max(0)) as u64;
                    if known.is_some() && self.decides.var(*var) && n <= self.left {
                        self.left -= n;
                        for i in 0..n {
                            self.set(*var, Some(i as i64));
                            self.body(body, times);
                        }
                    } else {
                        self.set(*var, None);
                        self.body(body, times.saturating_mul(n));
                    }
                }
                Stmt::Let { var, value } => {
                    self.add(value, times);
                    let known = if self.decides.var(*var) { self.eval(value) } else { None };
                    self.set(*var, known);
                }
                Stmt::Store { buf, index, value } => {
                    self.add(value, times);
                    index.iter().for_each(|e| self.add(e, times));
                    self.store(*buf, index, value);
                }
                Stmt::If { cond, then, other } => {
                    self.add(cond, times);
                    let cond = self.eval(cond);
                    if cond != Some(0) {
                        self.body(then, times);
                    }
                    if matches!(cond, None | Some(0)) {
                        self.body(other, times);
                    }
                }
                Stmt::Micro(m) => {
                    if let MicroOp::Attend(a) = m.op {
                        self.attend(m, a, times);
                    }
                }
            }
        }
    }

    fn set(&mut self, v: Var, value: Option<i64>) {
        if let Some(slot) = self.env.get_mut(v.0 as usize) {
            *slot = value;
        }
    }

    fn store(&mut self, buf: Buf, index: &[Expr], value: &Expr) {
        if !self.decides.buf(buf) {
            return;
        }
        match self.flat(buf, index) {
            Some(at) if value.lanes() == 1 => {
                let value = self.eval(value);
                self.cells.insert((buf, at), value);
            }
            _ => self.cells.retain(|(b, _), _| *b != buf),
        }
    }

    /// One pass over the positions that each row sees.
    fn attend(&mut self, m: &Micro, a: Attend, times: u64) {
        let size = |i: usize| self.eval(&m.sizes[i]).unwrap_or_else(|| self.ranges.of(&m.sizes[i]).hi).max(0);
        let (rows, dim) = (size(0), size(1) as u64);
        let (buf, start) = meta(m);
        let most = self.ranges.most_positions(buf);
        let mut positions = 0u64;
        for r in 0..rows.min(MAX_WALKED as i64) {
            let at = |i: i64| {
                let index = [start[0].clone() + r, start[1].clone() + i];
                self.flat(buf, &index).and_then(|at| *self.cells.get(&(buf, at))?)
            };
            let seen = at(0).zip(at(1)).and_then(|(first, last)| last.checked_add(1)?.checked_sub(first));
            positions = positions.saturating_add(seen.unwrap_or(most).max(0) as u64);
        }
        let each = 4 * dim + if a.cap == 0 { 5 } else { 8 };
        let all = positions.saturating_mul(each).saturating_add(rows as u64 * dim);
        self.total[0] = self.total[0].saturating_add(all.saturating_mul(times));
    }

    /// Adds the operations of evaluating an expression that often.
    fn add(&mut self, e: &Expr, times: u64) {
        let each = self.operations(e);
        for (total, n) in self.total.iter_mut().zip(each) {
            *total = total.saturating_add(n.saturating_mul(times));
        }
    }

    fn operations(&mut self, e: &Expr) -> [u64; 2] {
        if let Some(known) = self.memo.get(&e.id()) {
            return *known;
        }
        let mut sum = own(e);
        for c in e.children() {
            for (s, n) in sum.iter_mut().zip(self.operations(c)) {
                *s = s.saturating_add(n);
            }
        }
        self.memo.insert(e.id(), sum);
        sum
    }

    /// Position of an element, if its index is known and inside the buffer.
    fn flat(&self, buf: Buf, index: &[Expr]) -> Option<i64> {
        let shape = self.ranges.shape(buf);
        let mut at = 0i64;
        for (e, &d) in index.iter().zip(shape) {
            let i = self.eval(e).filter(|i| (0..d).contains(i))?;
            at = at.checked_mul(d)?.checked_add(i)?;
        }
        Some(at)
    }

    /// The value of an integer scalar, if it is known.
    fn eval(&self, e: &Expr) -> Option<i64> {
        if e.lanes() != 1 || e.dtype().is_float() {
            return None;
        }
        match e.node() {
            Node::Int(v) => Some(*v),
            Node::Size(s) => self.ranges.size(*s),
            Node::Var(v) => *self.env.get(v.0 as usize)?,
            Node::Load(b, index) => {
                let at = self.flat(*b, index)?;
                match self.ranges.contents(*b) {
                    Some(all) => all.get(at as usize).map(|v| i64::from(*v)),
                    None => *self.cells.get(&(*b, at))?,
                }
            }
            Node::Cast(a) => self.eval(a),
            Node::Select(c, a, b) => self.eval(if self.eval(c)? != 0 { a } else { b }),
            Node::Binary(op, a, b) => integer(*op, self.eval(a)?, self.eval(b)?),
            _ => None,
        }
    }
}

/// Operations of a node beside those of its operands.
fn own(e: &Expr) -> [u64; 2] {
    let lanes = u64::from(e.lanes());
    let float = |n: u64| [if e.dtype().is_float() { n } else { 0 }, 0];
    match e.node() {
        Node::Unary(UnOp::Not, _) => [0, 0],
        Node::Unary(..) => float(lanes),
        Node::Binary(op, ..) if !op.is_compare() => float(lanes),
        Node::Fma(..) => float(2 * lanes),
        Node::Reduce(_, a) => float(u64::from(a.lanes()).saturating_sub(1)),
        Node::Dot4 { .. } => [0, 8 * lanes],
        _ => [0, 0],
    }
}

fn integer(op: BinOp, a: i64, b: i64) -> Option<i64> {
    Some(match op {
        BinOp::Add => a.checked_add(b)?,
        BinOp::Sub => a.checked_sub(b)?,
        BinOp::Mul => a.checked_mul(b)?,
        BinOp::Div if a >= 0 && b > 0 => a / b,
        BinOp::Rem if a >= 0 && b > 0 => a % b,
        BinOp::Min => a.min(b),
        BinOp::Max => a.max(b),
        BinOp::And => a & b,
        BinOp::Or => a | b,
        BinOp::Lt => (a < b).into(),
        BinOp::Le => (a <= b).into(),
        BinOp::Eq => (a == b).into(),
        _ => return None,
    })
}

/// Smallest and largest value of integers that no analysis knows more about.
fn of_type(d: DType) -> (i64, i64) {
    match d {
        DType::Bool => (0, 1),
        DType::U8 => (0, 255),
        DType::I8 => (-128, 127),
        _ => (-touch::FAR, touch::FAR),
    }
}

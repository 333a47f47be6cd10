//! Random kernels: nested loops, registers, scratch memory, all element types, split parallel ranges.

use std::collections::BTreeSet;

use marquetry_ir::loops::interp::BufData;
use marquetry_ir::loops::legalize::legalize;
use marquetry_ir::loops::{BinOp, Buf, Expr, Kernel, LoopKind, Node, Scope, Stmt, UnOp, Var};
use marquetry_ir::testing::{cases, first_seed};
use marquetry_ir::{DType, Sym};

use crate::harness::{Rng, check};

const ROWS: i64 = 6;
const COLS: i64 = 64;
const TYPES: [DType; 7] = [DType::F32, DType::I32, DType::U32, DType::I16, DType::I8, DType::U8, DType::I64];

struct Gen {
    rng: Rng,
    k: Kernel,
    inputs: Vec<Buf>,
    outputs: Vec<Buf>,
    halves: [Buf; 2],
    local: Buf,
    regs: Vec<Buf>,
    /// Width of all register accesses of this kernel.
    reg_lanes: u16,
    /// Loop variables in scope and their extents.
    loops: Vec<(Var, i64)>,
    /// Loop variables that are constants once unrolled.
    unrolled: Vec<(Var, i64)>,
    lets: Vec<(Var, DType, u16)>,
    row: Option<Var>,
}

impl Gen {
    fn new(seed: u64) -> Gen {
        let mut k = Kernel::new(format!("random{seed}"));
        let shape = vec![ROWS.into(), COLS.into()];
        let inputs = TYPES.map(|d| k.buffer(&format!("in_{d}"), d, shape.clone(), Scope::In)).to_vec();
        let halves = [DType::F16, DType::BF16].map(|d| k.buffer(&format!("in_{d}"), d, shape.clone(), Scope::In));
        let outputs = TYPES.map(|d| k.buffer(&format!("out_{d}"), d, shape.clone(), Scope::InOut)).to_vec();
        let local = k.buffer("local", DType::F32, vec![COLS.into()], Scope::Local);
        let regs = [DType::F32, DType::I32].map(|d| k.buffer("reg", d, vec![2.into(), 16.into()], Scope::Reg)).to_vec();
        let mut rng = Rng(seed.wrapping_mul(77_777) + 1);
        let reg_lanes = [1, 4, 8, 16][rng.below(4)];
        Gen {
            rng,
            k,
            inputs,
            outputs,
            halves,
            local,
            regs,
            reg_lanes,
            loops: vec![],
            unrolled: vec![],
            lets: vec![],
            row: None,
        }
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.rng.below(100) < percent
    }

    /// An index in `0..n`.
    fn index(&mut self, n: i64) -> Expr {
        let fits: Vec<Var> = self.loops.iter().filter(|l| l.1 <= n).map(|l| l.0).collect();
        if !fits.is_empty() && self.chance(60) {
            return Expr::var(fits[self.rng.below(fits.len())]);
        }
        if !self.loops.is_empty() && self.chance(50) {
            let all = self.loops.clone();
            let (a, b) = (all[self.rng.below(all.len())].0, all[self.rng.below(all.len())].0);
            let c = self.rng.below(7) as i64;
            let sum = Expr::var(a) * (c + 1) + Expr::var(b) + c;
            let sum = if self.chance(30) { sum * Expr::size(Sym(0)) } else { sum };
            let sum = if self.chance(30) { sum / 4 } else { sum };
            return sum % n;
        }
        Expr::idx(self.rng.below(n as usize) as i64)
    }

    fn place(&mut self, own_row: bool, lanes: u16) -> Vec<Expr> {
        let row = match self.row {
            Some(v) if own_row => Expr::var(v),
            _ => self.index(ROWS),
        };
        let l = i64::from(lanes);
        let col = if self.chance(70) { self.index(COLS / l) * l } else { self.index(COLS - l + 1) };
        vec![row, col]
    }

    fn load(&mut self, dt: DType, lanes: u16) -> Expr {
        let at = TYPES.iter().position(|t| *t == dt).expect("a type");
        let own = self.chance(40);
        let buf = if own { self.outputs[at] } else { self.inputs[at] };
        let index = self.place(own, lanes);
        let narrow = lanes as usize * dt.size();
        if lanes > 1 && narrow < 16 && ![4, 8].contains(&narrow) {
            return self.constant(dt).splat(lanes);
        }
        Expr::new(Node::Load(buf, index), dt, lanes)
    }

    fn constant(&mut self, dt: DType) -> Expr {
        if dt == DType::F32 {
            return Expr::float(self.rng.float() * 8.0);
        }
        let v = self.rng.next() as i64 >> self.rng.below(63);
        let bits = 8 * dt.size() as u32;
        let v = if bits < 64 { (v << (64 - bits)) >> (64 - bits) } else { v };
        Expr::int(if matches!(dt, DType::U8 | DType::U32) { v & ((1 << bits) - 1) } else { v }, dt)
    }

    fn leaf(&mut self, dt: DType, lanes: u16) -> Expr {
        let bound: Vec<Var> = self.lets.iter().filter(|l| l.1 == dt && l.2 == lanes).map(|l| l.0).collect();
        match self.rng.below(8) {
            0 => self.constant(dt).splat(lanes),
            1 if lanes > 1 => self.load(dt, 1).splat(lanes),
            2 if lanes > 1 && dt != DType::F32 => {
                let base = self.constant(dt);
                Expr::new(Node::Ramp(base), dt, lanes)
            }
            3 | 4 if !bound.is_empty() => Expr::new(Node::Var(bound[self.rng.below(bound.len())]), dt, lanes),
            5 if dt == DType::F32 => {
                let half = self.halves[self.rng.below(2)];
                let index = self.place(false, lanes);
                Expr::new(Node::Load(half, index), self.k.decl(half).dtype, lanes).cast(dt)
            }
            6 if dt == DType::F32 => {
                let index = self.place(false, lanes).remove(1);
                Expr::new(Node::Load(self.local, vec![index]), dt, lanes)
            }
            7 if lanes == self.reg_lanes && matches!(dt, DType::F32 | DType::I32) => self.reg(dt),
            _ => self.load(dt, lanes),
        }
    }

    fn reg_index(&mut self) -> Vec<Expr> {
        let chunks = 16 / i64::from(self.reg_lanes);
        let mut pick = |n: i64| match self.unrolled.iter().find(|u| u.1 <= n) {
            Some(u) if self.rng.below(2) == 0 => Expr::var(u.0),
            _ => Expr::idx(self.rng.below(n as usize) as i64),
        };
        let (a, b) = (pick(2), pick(chunks));
        vec![a, b * i64::from(self.reg_lanes)]
    }

    fn reg(&mut self, dt: DType) -> Expr {
        let buf = self.regs[usize::from(dt == DType::I32)];
        let index = self.reg_index();
        Expr::new(Node::Load(buf, index), dt, self.reg_lanes)
    }

    fn truth(&mut self, lanes: u16, depth: usize) -> Expr {
        if depth > 0 && self.chance(25) {
            let (a, b) = (self.truth(lanes, depth - 1), self.truth(lanes, depth - 1));
            let op = [BinOp::And, BinOp::Or, BinOp::Xor, BinOp::Eq][self.rng.below(4)];
            let e = Expr::binary(op, a, b);
            return if self.chance(30) { Expr::unary(UnOp::Not, e) } else { e };
        }
        let dt = TYPES[self.rng.below(TYPES.len())];
        let (a, b) = (self.expr(dt, lanes, depth), self.expr(dt, lanes, depth));
        Expr::binary([BinOp::Lt, BinOp::Le, BinOp::Eq][self.rng.below(3)], a, b)
    }

    fn expr(&mut self, dt: DType, lanes: u16, depth: usize) -> Expr {
        if depth == 0 {
            return self.leaf(dt, lanes);
        }
        let d = depth - 1;
        match self.rng.below(16) {
            0 | 1 => self.leaf(dt, lanes),
            2 => {
                let from = TYPES[self.rng.below(TYPES.len())];
                self.expr(from, lanes, d).cast(dt)
            }
            3 => {
                let c = self.truth(lanes, d);
                let a = self.expr(dt, lanes, d);
                c.select(a, self.expr(dt, lanes, d))
            }
            4 if dt == DType::I32 => {
                let (mask, w_max) = [(0x0f0f_0f0f, 15), (0x7f7f_7f7f, 127), (0xffff_ffff, 255)][self.rng.below(3)];
                let w = self.expr(DType::U32, lanes, d.min(1)) & mask;
                let acc = self.expr(dt, lanes, d);
                Expr::dot4(acc, w, self.expr(DType::U32, lanes, d.min(1)), w_max)
            }
            5 if lanes == 1 => {
                let op = [BinOp::Add, BinOp::Max, BinOp::Min][self.rng.below(3)];
                let wide = [4, 8, 16][self.rng.below(3)];
                self.expr(dt, wide, d).reduce(op)
            }
            6 => {
                let op = if dt == DType::F32 {
                    [UnOp::Neg, UnOp::Abs, UnOp::Sqrt, UnOp::Floor, UnOp::Round, UnOp::Neg][self.rng.below(6)]
                } else {
                    [UnOp::Neg, UnOp::Abs][self.rng.below(2)]
                };
                Expr::unary(op, self.expr(dt, lanes, d))
            }
            7 if dt == DType::F32 => {
                let (a, b) = (self.expr(dt, lanes, d), self.expr(dt, lanes, d));
                a.fma(b, self.expr(dt, lanes, d))
            }
            8 if dt == DType::F32 && self.chance(40) => {
                let op = [UnOp::Exp, UnOp::Log, UnOp::Sin, UnOp::Cos, UnOp::Tanh, UnOp::Erf][self.rng.below(6)];
                Expr::unary(op, self.expr(dt, lanes, d))
            }
            8 if dt == DType::F32 => self.truth(lanes, d).cast(dt),
            7 if dt != DType::F32 => {
                let by = self.rng.below(8 * dt.size()) as i64;
                let op = [BinOp::Shl, BinOp::Shr][self.rng.below(2)];
                Expr::binary(op, self.expr(dt, lanes, d), Expr::int(by, dt))
            }
            8 => {
                let a = self.expr(dt, lanes, d) & 127;
                let b = (self.expr(dt, lanes, d) & 7) + 1;
                Expr::binary([BinOp::Div, BinOp::Rem][self.rng.below(2)], a, b)
            }
            9 if dt == DType::U32 => self.load(DType::F32, lanes).bitcast(dt),
            10 if dt == DType::I32 => self.expr(DType::U32, lanes, d).bitcast(dt),
            _ => {
                let float = [BinOp::Add, BinOp::Sub, BinOp::Mul, BinOp::Div, BinOp::Min, BinOp::Max];
                let int = [BinOp::Add, BinOp::Sub, BinOp::Mul, BinOp::Min, BinOp::Max, BinOp::And, BinOp::Xor];
                let op = if dt == DType::F32 { float[self.rng.below(6)] } else { int[self.rng.below(7)] };
                let a = self.expr(dt, lanes, d);
                Expr::binary(op, a, self.expr(dt, lanes, d))
            }
        }
    }

    fn lanes(&mut self) -> u16 {
        [1, 4, 8, 16, 32][self.rng.below(5)]
    }

    fn body(&mut self, depth: usize) -> Vec<Stmt> {
        let (bound, n) = (self.lets.len(), 1 + self.rng.below(4));
        let out = (0..n).map(|_| self.stmt(depth)).collect();
        self.lets.truncate(bound);
        out
    }

    fn stmt(&mut self, depth: usize) -> Stmt {
        match self.rng.below(10) {
            0 | 1 if depth > 0 => {
                let var = self.k.fresh("i");
                let unroll = self.chance(40);
                let symbolic = !unroll && self.chance(30);
                // The size is 5.
                let n = if symbolic { 5 } else { [1, 2, 2, 4, 7][self.rng.below(5)] };
                let extent = if symbolic { Expr::size(Sym(0)) } else { Expr::idx(n) };
                self.loops.push((var, n));
                if unroll {
                    self.unrolled.push((var, n));
                }
                let body = self.body(depth - 1);
                self.loops.pop();
                if unroll {
                    self.unrolled.pop();
                }
                Stmt::For { var, extent, kind: if unroll { LoopKind::Unroll } else { LoopKind::Serial }, body }
            }
            2 if depth > 0 => {
                let cond = if self.chance(50) {
                    let (a, b) = (self.index(4), self.index(4));
                    a.lt(b)
                } else {
                    self.truth(1, 1)
                };
                let then = self.body(depth - 1);
                let other = if self.chance(50) { self.body(depth - 1) } else { vec![] };
                Stmt::If { cond, then, other }
            }
            3 | 4 => {
                let (dt, lanes) = (TYPES[self.rng.below(TYPES.len())], self.lanes());
                let value = self.expr(dt, lanes, 2);
                let var = self.k.fresh("v");
                self.lets.push((var, dt, lanes));
                Stmt::Let { var, value }
            }
            5 => {
                let lanes = self.lanes();
                let value = self.expr(DType::F32, lanes, 2);
                let index = vec![self.place(false, lanes).remove(1)];
                Stmt::Store { buf: self.local, index, value }
            }
            6 | 7 => {
                let at = self.rng.below(2);
                let dt = [DType::F32, DType::I32][at];
                let value = self.expr(dt, self.reg_lanes, 3);
                let index = self.reg_index();
                Stmt::Store { buf: self.regs[at], index, value }
            }
            _ => {
                let at = self.rng.below(TYPES.len());
                let (dt, lanes) = (TYPES[at], self.lanes());
                let value = self.expr(dt, lanes, 3);
                let index = self.place(true, lanes);
                Stmt::Store { buf: self.outputs[at], index, value }
            }
        }
    }

    /// Scratch memory and registers hold known values first.
    fn prologue(&mut self) -> Vec<Stmt> {
        let fill = self.k.fresh("fill");
        let zero = Expr::float(0.5).splat(16);
        let store = Stmt::Store { buf: self.local, index: vec![Expr::var(fill) * 16], value: zero };
        let mut out = vec![Stmt::For { var: fill, extent: Expr::idx(4), kind: LoopKind::Serial, body: vec![store] }];
        for (buf, c) in [(self.regs[0], Expr::float(0.25)), (self.regs[1], Expr::int(3, DType::I32))] {
            for r in 0..2 {
                for i in (0..16).step_by(self.reg_lanes as usize) {
                    let value = c.clone().splat(self.reg_lanes);
                    out.push(Stmt::Store { buf, index: vec![Expr::idx(r), Expr::idx(i)], value });
                }
            }
        }
        out
    }
}

/// Names of the forms of statements and expressions that occur.
fn forms(body: &[Stmt], all: &mut BTreeSet<String>) {
    fn value(e: &Expr, all: &mut BTreeSet<String>) {
        let name = match e.node() {
            Node::Unary(op, _) => format!("{op:?}"),
            Node::Binary(op, ..) => format!("{op:?}"),
            Node::Reduce(op, _) => format!("Reduce{op:?}"),
            other => format!("{other:?}").split(['(', ' ']).next().unwrap_or_default().to_string(),
        };
        if let Node::Load(_, index) = e.node() {
            index.iter().for_each(|i| value(i, all));
        }
        all.insert(name);
        e.children().into_iter().for_each(|c| value(c, all));
    }
    for s in body {
        match s {
            Stmt::For { extent, kind, body, .. } => {
                all.insert(format!("{kind:?}"));
                value(extent, all);
                forms(body, all);
            }
            Stmt::Let { value: v, .. } => {
                all.insert("Let".into());
                value(v, all);
            }
            Stmt::Store { index, value: v, .. } => {
                all.insert("Store".into());
                index.iter().chain([v]).for_each(|e| value(e, all));
            }
            Stmt::If { cond, then, other } => {
                all.insert("If".into());
                value(cond, all);
                forms(then, all);
                forms(other, all);
            }
            // Expanded, or called: `micro.rs`.
            Stmt::Micro(_) => {}
        }
    }
}

/// Every form that the loop IR has.
const FORMS: &str = "Serial Parallel Unroll Let Store If Int Float Size Var Load Fma Select Cast Bitcast Dot4 Splat Ramp \
    ReduceAdd ReduceMax ReduceMin Neg Abs Sqrt Floor Round Exp Log Sin Cos Tanh Erf Not Add Sub Mul Div Rem Min Max And Or Xor \
    Shl Shr Lt Le Eq";

/// A random kernel; gives the forms that occur in it.
fn random_kernel(seed: u64, seen: &mut BTreeSet<String>) {
    let mut g = Gen::new(seed);
    let parallel = g.chance(60);
    let row = g.k.fresh("row");
    if parallel {
        g.row = Some(row);
        g.loops.push((row, ROWS));
    }
    let mut body = g.prologue();
    body.extend(g.body(3));
    body.extend((0..2).map(|_| g.stmt(2)));
    g.k.body = if parallel {
        vec![Stmt::For { var: row, extent: Expr::idx(ROWS), kind: LoopKind::Parallel, body }]
    } else {
        body
    };
    let len = (ROWS * COLS) as usize;
    let dtypes: Vec<DType> = g.k.buffers[..g.k.args()].iter().map(|b| b.dtype).collect();
    let args: Vec<BufData> = dtypes.into_iter().map(|d| g.rng.data(d, len)).collect();
    forms(&g.k.body, seen);
    // The bits of the functions that backends expand are those of the expansion.
    legalize(&mut g.k);
    check(&g.k, &[5], args);
}

#[test]
fn random_kernels() {
    let mut seen = BTreeSet::new();
    let first = first_seed();
    (first..first + cases(400)).for_each(|seed| random_kernel(seed, &mut seen));
    let missing: Vec<&str> = FORMS.split_whitespace().filter(|f| !seen.contains(*f)).collect();
    assert!(missing.is_empty(), "no kernel has {missing:?}");
    let unknown: Vec<&String> = seen.iter().filter(|s| !FORMS.split_whitespace().any(|f| f == *s)).collect();
    assert!(unknown.is_empty(), "{unknown:?} are not in the list");
}

//! Random kernels under random schedules. What a primitive accepts must compute the same; what it refuses must leave the
//! kernel as it was.

use std::collections::BTreeMap;

use marquetry_ir::DType;
use marquetry_ir::loops::{BinOp, Buf, Expr, Kernel, LoopKind, Node, Scope, Stmt, UnOp, Var};
use marquetry_ir::testing::{cases, first_seed};
use marquetry_passes::schedule::promote;
use marquetry_passes::schedule::rules::default_schedule;

use crate::harness::Rng;
use crate::steps::{Step, keeps};

const ROWS: i64 = 6;
const COLS: i64 = 48;
/// Value of the run-time size.
const N: i64 = 21;

struct Gen {
    rng: Rng,
    k: Kernel,
    floats: Vec<Buf>,
    words: Vec<Buf>,
    halves: Buf,
    places: Buf,
    row: Buf,
    acc: Buf,
    tile: Buf,
    /// Loops in scope.
    loops: Vec<(Var, i64)>,
    /// Bindings in scope: variable and type; integers are below `COLS`.
    lets: Vec<(Var, DType)>,
}

impl Gen {
    fn new(seed: u64) -> Gen {
        let mut k = Kernel::new(format!("random{seed}"));
        let shape = vec![ROWS.into(), COLS.into()];
        let mut arg = |name: &str, d, scope| k.buffer(name, d, shape.clone(), scope);
        let floats = vec![
            arg("a", DType::F32, Scope::In),
            arg("x", DType::F32, Scope::InOut),
            arg("y", DType::F32, Scope::InOut),
        ];
        let words = vec![
            arg("b", DType::I32, Scope::In),
            arg("u", DType::I32, Scope::InOut),
            arg("v", DType::I32, Scope::InOut),
        ];
        let halves = arg("h", DType::F16, Scope::In);
        let places = k.buffer("at", DType::I64, vec![COLS.into()], Scope::In);
        let row = k.buffer("row", DType::F32, vec![COLS.into()], Scope::Local);
        let acc = k.buffer("acc", DType::F32, vec![2.into()], Scope::Reg);
        // Half of the kernels leave it to `promote` to find registers.
        let scope = if seed.is_multiple_of(2) { Scope::Reg } else { Scope::Local };
        let tile = k.buffer("tile", DType::I32, vec![2.into(), 8.into()], scope);
        let rng = Rng(seed.wrapping_mul(7_919) + 3);
        Gen { rng, k, floats, words, halves, places, row, acc, tile, loops: vec![], lets: vec![] }
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.rng.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.rng.below(all.len())]
    }

    /// An index in `0..n`, most often one that steps with the innermost loop.
    fn index(&mut self, n: i64) -> Expr {
        let fits: Vec<(Var, i64)> = self.loops.iter().copied().filter(|l| l.1 <= n).collect();
        let inner = fits.last().copied();
        let kind = self.rng.below(14);
        if let (0..=6, Some((v, e))) = (kind, inner) {
            let room = n - e;
            let shift = if self.chance(25) { self.rng.below(room as usize + 1) as i64 } else { 0 };
            return Expr::var(v) + shift;
        }
        if fits.is_empty() {
            return Expr::idx(self.rng.below(n as usize) as i64);
        }
        let (v, e) = self.pick(&fits);
        let (w, f) = self.pick(&fits);
        match kind {
            7 if v != w && (f - 1) * e + e - 1 < n => Expr::var(w) * e + Expr::var(v),
            8 => Expr::idx(n - 1) - Expr::var(v),
            9 => {
                let by = self.pick(&[2, 3, 4, 8, 16]);
                (Expr::var(v) + self.pick(&[0, 0, 1, 8])) / by % n
            }
            10 => (Expr::var(v) * self.pick(&[1, 1, 2, 3]) + self.pick(&[0, 1, 4, 8])) % n,
            11 => Expr::var(v) % self.pick(&[4, 8, 16]).min(n),
            12 if n == COLS => {
                let at = vec![self.index(COLS)];
                self.k.load(self.places, at) % n
            }
            13 => {
                let known: Vec<Var> = self.lets.iter().filter(|l| l.1 == DType::I64).map(|l| l.0).collect();
                if known.is_empty() { Expr::var(v) } else { Expr::var(self.pick(&known)) % n }
            }
            _ => Expr::var(v),
        }
    }

    fn place(&mut self) -> Vec<Expr> {
        // The outer loop most often walks the rows.
        let row = match self.loops.first() {
            Some((v, e)) if *e <= ROWS && self.rng.below(4) > 0 => Expr::var(*v),
            _ => self.index(ROWS),
        };
        vec![row, self.index(COLS)]
    }

    fn float(&mut self, depth: usize) -> Expr {
        if depth == 0 || self.chance(25) {
            let bound: Vec<Var> = self.lets.iter().filter(|l| l.1 == DType::F32).map(|l| l.0).collect();
            return match self.rng.below(8) {
                0 => Expr::float(self.rng.below(7) as f32 - 3.0),
                1 | 2 if !bound.is_empty() => Expr::new(Node::Var(self.pick(&bound)), DType::F32, 1),
                3 => {
                    let at = self.place();
                    self.k.load(self.halves, at).cast(DType::F32)
                }
                4 => self.index(COLS).cast(DType::F32),
                5 => {
                    let at = vec![self.index(COLS)];
                    self.k.load(self.row, at)
                }
                _ => {
                    let (b, at) = (self.rng.below(3), self.place());
                    self.k.load(self.floats[b], at)
                }
            };
        }
        let d = depth - 1;
        match self.rng.below(9) {
            0 => {
                let c = self.truth(d);
                let a = self.float(d);
                c.select(a, self.float(d))
            }
            1 => Expr::unary(UnOp::Neg, self.float(d)),
            2 => self.float(d) * Expr::float(self.pick(&[0.5, 2.0, -1.0])),
            3 => {
                let c = Expr::float(self.rng.below(5) as f32 - 2.0);
                self.float(d).fma(c, self.float(d))
            }
            4 => Expr::unary(UnOp::Abs, self.float(d)),
            n => {
                let op = [BinOp::Add, BinOp::Sub, BinOp::Max, BinOp::Min][n % 4];
                Expr::binary(op, self.float(d), self.float(d))
            }
        }
    }

    fn word(&mut self, depth: usize) -> Expr {
        if depth == 0 || self.chance(25) {
            return match self.rng.below(5) {
                0 => Expr::int(self.rng.below(100) as i64 - 50, DType::I32),
                1 => self.index(COLS).cast(DType::I32),
                _ => {
                    let (b, at) = (self.rng.below(3), self.place());
                    self.k.load(self.words[b], at)
                }
            };
        }
        let d = depth - 1;
        match self.rng.below(8) {
            0 => {
                let c = self.truth(d);
                let a = self.word(d);
                c.select(a, self.word(d))
            }
            1 => self.word(d) >> (self.rng.below(8) as i64),
            2 => {
                let w = self.word(d).bitcast(DType::U32) & 0x0f0f_0f0f;
                Expr::dot4(self.word(d), w, self.word(d).bitcast(DType::U32), 15)
            }
            n => {
                let op = [BinOp::Add, BinOp::Sub, BinOp::Mul, BinOp::Max, BinOp::Xor][n % 5];
                Expr::binary(op, self.word(d), self.word(d))
            }
        }
    }

    fn truth(&mut self, depth: usize) -> Expr {
        match self.rng.below(3) {
            0 => self.index(COLS).lt(Expr::idx(self.pick(&[0, 5, 8, 16, 24]))),
            1 => Expr::idx(self.pick(&[4, 8, 13])).le(self.index(COLS)),
            _ => self.float(depth).lt(self.float(depth)),
        }
    }

    fn body(&mut self, depth: usize) -> Vec<Stmt> {
        let bound = self.lets.len();
        let n = 1 + self.rng.below(3);
        let mut all: Vec<Stmt> = (0..n).flat_map(|_| self.stmt(depth)).collect();
        if self.chance(40) {
            all.truncate(1);
        }
        self.lets.truncate(bound);
        if matches!(all.as_slice(), [Stmt::Let { .. }]) { self.elementwise() } else { all }
    }

    fn each(&mut self, extent: i64, f: impl FnOnce(&mut Self) -> Vec<Stmt>) -> Stmt {
        let var = self.k.fresh("i");
        let runtime = extent == N && self.chance(70);
        self.loops.push((var, extent));
        let (bound, body) = (self.lets.len(), f(self));
        self.lets.truncate(bound);
        self.loops.pop();
        let extent = if runtime { Expr::size(marquetry_ir::Sym(0)) } else { Expr::idx(extent) };
        Stmt::For { var, extent, kind: LoopKind::Serial, body }
    }

    fn elementwise(&mut self) -> Vec<Stmt> {
        let index = self.place();
        let b = 1 + self.rng.below(2);
        if self.chance(35) {
            let value = self.word(2);
            return vec![Stmt::Store { buf: self.words[b], index, value }];
        }
        let mut value = self.float(2);
        if self.chance(20) {
            // In place.
            value = value + self.k.load(self.floats[b], index.clone());
        }
        vec![Stmt::Store { buf: self.floats[b], index, value: bounded(value) }]
    }

    fn extent(&mut self) -> i64 {
        self.pick(&[2, 3, 4, 5, 6, 8, 8, 11, 12, 16, 16, 19, N, 24, 32, 40, 48])
    }

    fn stmt(&mut self, depth: usize) -> Vec<Stmt> {
        match self.rng.below(12) {
            0..=3 if depth > 0 => {
                let n = self.extent();
                vec![self.each(n, |g| g.body(depth - 1))]
            }
            // A nest of two for `reorder`.
            4 if depth > 1 => {
                let (n, m) = (self.pick(&[2, 4, 6]), self.pick(&[4, 6, 8]));
                vec![self.each(n, |g| vec![g.each(m, |g| g.elementwise())])]
            }
            5 if depth > 0 => self.reduction(),
            6 if depth > 0 => {
                let row = self.row;
                let part = self.chance(30);
                let n = if part { 40 } else { COLS };
                vec![self.each(n, |g| {
                    let at = Expr::var(g.loops.last().expect("a loop").0);
                    vec![Stmt::Store { buf: row, index: vec![at], value: bounded(g.float(1)) }]
                })]
            }
            7 if depth > 0 => self.registers(),
            8 => {
                let cond = self.index(ROWS).lt(Expr::idx(self.pick(&[1, 3])));
                vec![Stmt::If { cond, then: self.elementwise(), other: vec![] }]
            }
            9 | 10 => {
                let (dt, value) =
                    if self.chance(50) { (DType::F32, self.float(1)) } else { (DType::I64, self.index(COLS)) };
                let var = self.k.fresh("v");
                self.lets.push((var, dt));
                vec![Stmt::Let { var, value }]
            }
            _ => self.elementwise(),
        }
    }

    /// `acc = init; for i { acc = acc op e }; y[..] = acc`.
    fn reduction(&mut self) -> Vec<Stmt> {
        let acc = self.acc;
        let at = vec![Expr::idx(self.rng.below(2) as i64)];
        let first = Stmt::Store { buf: acc, index: at.clone(), value: self.float(0) };
        let n = self.extent();
        let here = at.clone();
        let sum = self.each(n, |g| {
            let old = g.k.load(acc, here.clone());
            let mut all = vec![];
            if g.chance(40) {
                let (var, value) = (g.k.fresh("v"), g.float(1));
                g.lets.push((var, DType::F32));
                all.push(Stmt::Let { var, value });
            }
            let value = match g.rng.below(6) {
                0 => g.float(1).fma(Expr::float(2.0), old),
                1 => Expr::binary(BinOp::Max, old, g.float(1)),
                2 => Expr::binary(BinOp::Min, g.float(1), old),
                3 => old - g.float(1),
                4 => g.float(1) + (old + g.float(0)),
                _ => old + g.float(2),
            };
            all.push(Stmt::Store { buf: acc, index: here, value });
            all
        });
        let value = bounded(self.k.load(acc, at));
        let index = self.place();
        vec![first, sum, Stmt::Store { buf: self.floats[1 + self.rng.below(2)], index, value }]
    }

    /// Loops over registers are unrolled.
    fn tile_loop(&self) -> LoopKind {
        if self.k.decl(self.tile).scope == Scope::Reg { LoopKind::Unroll } else { LoopKind::Serial }
    }

    /// A tile of registers: filled, updated, stored.
    fn registers(&mut self) -> Vec<Stmt> {
        let (tile, t) = (self.tile, Expr::idx(self.rng.below(2) as i64));
        let mut all = vec![];
        for step in 0..3 {
            let t = t.clone();
            let mut s = self.each(8, |g| {
                let r = Expr::var(g.loops.last().expect("a loop").0);
                let at = vec![t, r.clone()];
                let old = g.k.load(tile, at.clone());
                match step {
                    0 => vec![Stmt::Store { buf: tile, index: at, value: g.word(1) }],
                    1 => vec![Stmt::Store { buf: tile, index: at, value: old + g.word(1) }],
                    _ => {
                        let (buf, index) = (g.words[1 + g.rng.below(2)], vec![g.index(ROWS), r + g.pick(&[0, 8, 40])]);
                        vec![Stmt::Store { buf, index, value: old }]
                    }
                }
            });
            if let Stmt::For { kind, .. } = &mut s {
                *kind = self.tile_loop();
            }
            all.push(s);
        }
        all
    }
}

/// A small whole number, so that sums are exact in every order.
fn bounded(e: Expr) -> Expr {
    Expr::unary(UnOp::Floor, e.min(Expr::float(500.0)).max(Expr::float(-500.0)))
}

/// A kernel whose scratch memory holds known values first, so that its results are defined.
fn random_case(seed: u64) -> Gen {
    let mut g = Gen::new(seed);
    let rows = g.pick(&[4, 5, ROWS]);
    g.k.body = if g.chance(70) {
        vec![g.each(rows, |g| {
            let mut all = fill(g);
            if g.chance(30) {
                // Later iterations find what earlier ones left.
                let first = Expr::var(g.loops[0].0).lt(Expr::idx(1));
                all = vec![Stmt::If { cond: first, then: all, other: vec![] }];
            }
            all.extend(g.body(3));
            all.extend(g.stmt(2));
            all
        })]
    } else {
        let mut all = fill(&mut g);
        all.extend(g.body(3));
        all.extend(g.stmt(3));
        all
    };
    g
}

/// As [`random_case`], without its generator.
pub fn random_kernel(seed: u64) -> Kernel {
    random_case(seed).k
}

fn fill(g: &mut Gen) -> Vec<Stmt> {
    let (row, acc, tile) = (g.row, g.acc, g.tile);
    let mut all = vec![g.each(COLS, |g| {
        let at = Expr::var(g.loops.last().expect("a loop").0);
        vec![Stmt::Store { buf: row, index: vec![at.clone()], value: at.cast(DType::F32) }]
    })];
    for i in 0..2 {
        all.push(Stmt::Store { buf: acc, index: vec![Expr::idx(i)], value: Expr::float(2.0) });
    }
    let r = g.k.fresh("r");
    for t in 0..2 {
        let r = if t == 0 { r } else { g.k.fresh("r") };
        let store =
            Stmt::Store { buf: tile, index: vec![Expr::idx(t), Expr::var(r)], value: Expr::int(t + 1, DType::I32) };
        all.push(Stmt::For { var: r, extent: Expr::idx(8), kind: g.tile_loop(), body: vec![store] });
    }
    all
}

/// Records what was applied and refused, and finds what fails.
#[test]
fn random_schedules() {
    let mut applied: BTreeMap<&str, usize> = BTreeMap::new();
    let mut refused = 0;
    for seed in first_seed()..first_seed() + cases(500) {
        let mut g = random_case(seed);
        let mut k = g.k.clone();
        let mut steps = vec![];
        for _ in 0..30 {
            let (old, step) = (k.clone(), Step::random(&mut g.rng));
            match step.apply(&mut k) {
                Ok(false) => {}
                Ok(true) => {
                    *applied.entry(step.name()).or_default() += 1;
                    assert_eq!(k.trace.len(), old.trace.len() + 1);
                    steps.push(step);
                }
                Err(e) => {
                    refused += 1;
                    assert_eq!(k, old, "{e}");
                }
            }
        }
        keeps(&g.k, &steps, N, seed);
        keeps(&g.k, &[Step::Default], N, seed + 1000);
        let mut default = g.k.clone();
        default_schedule(&mut default);
        *applied.entry("default").or_default() += default.trace.len();
        let scheduled = default.trace.len();
        promote(&mut default);
        if default.trace.len() > scheduled {
            *applied.entry("promote").or_default() += 1;
            keeps(&g.k, &[Step::Default, Step::Promote], N, seed + 1000);
        }
    }
    println!("{applied:?}, {refused} refused");
    for name in ["split", "unroll", "reorder", "parallel", "vectorize", "vectorize_reduce", "default", "promote"] {
        assert!(applied.get(name).is_some_and(|n| *n >= 20), "{name}: {applied:?}");
    }
}

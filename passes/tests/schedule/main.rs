//! Schedules keep the meaning of kernels: in the interpreter and compiled.

#[path = "../../../codegen/tests/backends/harness.rs"]
#[allow(dead_code)]
mod harness;
mod primitives;
mod random;
mod refused;
mod replay;
mod rules;
mod steps;
mod wrong;

use harness::Rng;
use marquetry_ir::loops::interp::{BufData, run};
use marquetry_ir::loops::verify::verify;
use marquetry_ir::loops::{Expr, Kernel, LoopKind, Node, Stmt, Var};
use marquetry_ir::text::{parse_kernel, print_kernel};
use marquetry_ir::{DType, Sym, Syms};

/// The only run-time size.
fn syms() -> Syms {
    let mut s = Syms::default();
    s.declare("n", 0, 1 << 20, 1);
    s
}

fn kernel(text: &str) -> Kernel {
    parse_kernel(text, &syms()).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn text(k: &Kernel) -> String {
    print_kernel(k, &syms())
}

/// Random arguments; floats are small whole numbers, so that every order of additions gives the same sum.
fn arguments(k: &Kernel, n: i64, seed: u64) -> Vec<BufData> {
    let mut rng = Rng(seed);
    let args = k.buffers[..k.args()].iter();
    args.map(|b| {
        let len = b.shape.iter().map(|d| d.eval(|_: Sym| n)).product::<i64>() as usize;
        let mut data = rng.data(b.dtype, len);
        match b.dtype {
            DType::F32 => (0..len).for_each(|i| {
                let v = (rng.below(17) as f32 - 8.0).to_le_bytes();
                data.bytes[4 * i..4 * i + 4].copy_from_slice(&v);
            }),
            // Whole numbers of either sign, as bf16 and f16.
            DType::BF16 | DType::F16 => (0..len).for_each(|i| {
                let table: [u16; 4] =
                    if b.dtype == DType::F16 { [0, 0x3c00, 0xc000, 0x4200] } else { [0, 0x3f80, 0xc000, 0x4040] };
                data.bytes[2 * i..2 * i + 2].copy_from_slice(&table[rng.below(4)].to_le_bytes());
            }),
            DType::I64 => (0..len).for_each(|i| {
                let v = rng.below(8) as i64;
                data.bytes[8 * i..8 * i + 8].copy_from_slice(&v.to_le_bytes());
            }),
            _ => {}
        }
        data
    })
    .collect()
}

/// Equal as numbers: zeros of either sign are.
fn equal(a: &BufData, b: &BufData) -> bool {
    match a.dtype {
        DType::F32 => a.to_f32() == b.to_f32(),
        _ => a == b,
    }
}

/// A kernel whose parallel loop runs backwards.
fn backwards(k: &Kernel) -> Kernel {
    let mut k = k.clone();
    if let [Stmt::For { var, extent, kind: LoopKind::Parallel, body }] = k.body.as_mut_slice() {
        let last = extent.clone() - 1 - Expr::var(*var);
        let mut all = vec![];
        for s in body.iter() {
            all.push(subst(s, *var, &last));
        }
        *body = all;
    }
    k
}

fn subst(s: &Stmt, v: Var, by: &Expr) -> Stmt {
    let body = |b: &Vec<Stmt>| b.iter().map(|s| subst(s, v, by)).collect();
    match s {
        Stmt::For { var, extent, kind, body: b } => {
            Stmt::For { var: *var, extent: extent.subst(v, by), kind: *kind, body: body(b) }
        }
        Stmt::Let { var, value } => Stmt::Let { var: *var, value: value.subst(v, by) },
        Stmt::Store { buf, index, value } => {
            Stmt::Store { buf: *buf, index: index.iter().map(|e| e.subst(v, by)).collect(), value: value.subst(v, by) }
        }
        Stmt::If { cond, then, other } => Stmt::If { cond: cond.subst(v, by), then: body(then), other: body(other) },
        Stmt::Micro(m) => Stmt::Micro(m.clone()),
    }
}

/// What shows that two kernels do not compute the same.
#[derive(Clone, Debug, PartialEq)]
enum Fault {
    /// The second one is not well formed.
    Verifier(String),
    /// An access outside of a buffer.
    Bounds(String),
    /// A buffer has other values.
    Values(String),
    /// A buffer has other values when iterations of the parallel loop run in another order, or on their own.
    Parallel(String),
    /// Machine code gives other values.
    Compiled(String),
    /// A step or a comparison panics.
    Panic(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Verifier(what) => write!(f, "verifier: {what}"),
            Fault::Bounds(what) => write!(f, "bounds: {what}"),
            Fault::Values(what) => write!(f, "values: `{what}` differs"),
            Fault::Parallel(what) => write!(f, "parallel: `{what}` differs"),
            Fault::Compiled(what) => write!(f, "compiled: {what}"),
            Fault::Panic(what) => write!(f, "panic: {what}"),
        }
    }
}

/// The extent of a parallel loop at one size.
fn parallel_count(extent: &Expr, n: i64) -> i64 {
    let at = extent.rewrite(&mut |e| matches!(e.node(), Node::Size(_)).then(|| Expr::idx(n)));
    at.as_int().unwrap_or(0)
}

/// Each iteration of the parallel loop on what was there before: all changes together, and how many made each.
fn apart(k: &Kernel, n: i64, args: &[BufData]) -> Result<Option<(Vec<BufData>, bool)>, String> {
    let [Stmt::For { var, extent, kind: LoopKind::Parallel, body }] = k.body.as_slice() else { return Ok(None) };
    let count = parallel_count(extent, n);
    let (mut all, mut twice) = (args.to_vec(), false);
    let mut touched: Vec<Vec<bool>> = args.iter().map(|a| vec![false; a.len()]).collect();
    for i in 0..count {
        let one = Kernel { body: body.iter().map(|s| subst(s, *var, &Expr::idx(i))).collect(), ..k.clone() };
        let mut got = args.to_vec();
        run(&one, &[n], &mut got).map_err(|e| e.to_string())?;
        for (b, (new, old)) in got.iter().zip(args).enumerate() {
            for e in (0..new.len()).filter(|e| new.get(*e) != old.get(*e)) {
                twice |= std::mem::replace(&mut touched[b][e], true);
                all[b].set(e, new.get(e));
            }
        }
    }
    Ok(Some((all, twice)))
}

/// Do two kernels compute the same, the second one also backwards, its parallel iterations apart, and compiled?
fn agree(before: &Kernel, after: &Kernel, n: i64, seed: u64) -> Result<(), Fault> {
    if let Some(first) = verify(after, &syms()).first() {
        return Err(Fault::Verifier(first.to_string()));
    }
    let args = arguments(before, n, seed);
    let interpret = |k: &Kernel| {
        let mut got = args.clone();
        run(k, &[n], &mut got).map(|()| got).map_err(|e| Fault::Bounds(e.to_string()))
    };
    let want = interpret(before)?;
    let differs = |got: &[BufData]| {
        let mut all = want.iter().zip(got).zip(&before.buffers);
        all.find(|((w, g), _)| !equal(w, g)).map(|(_, b)| b.name.clone())
    };
    if let Some(name) = differs(&interpret(after)?) {
        return Err(Fault::Values(name));
    }
    if let Some(name) = differs(&interpret(&backwards(after))?) {
        return Err(Fault::Parallel(name));
    }
    if let Some((all, twice)) = apart(after, n, &args).map_err(Fault::Bounds)? {
        let name = differs(&all).or(twice.then(|| "an element of two iterations".into()));
        name.map_or(Ok(()), |name| Err(Fault::Parallel(name)))?;
    }
    let got = harness::compare(after, &[n], args.clone()).map_err(Fault::Compiled)?;
    differs(&got).map_or(Ok(()), |name| Err(Fault::Compiled(name)))
}

/// As [`agree`], which must hold.
fn same(before: &Kernel, after: &Kernel, n: i64, seed: u64) {
    agree(before, after, n, seed).unwrap_or_else(|f| panic!("{f}\n{}\n{}", text(before), text(after)));
}

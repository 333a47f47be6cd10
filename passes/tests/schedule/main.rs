//! Schedules keep the meaning of kernels: in the interpreter and compiled.

#[path = "../../../codegen/tests/cranelift/harness.rs"]
#[allow(dead_code)]
mod harness;
mod primitives;
mod random;
mod refused;
mod rules;

use harness::Rng;
use marquetry_ir::loops::interp::{BufData, run};
use marquetry_ir::loops::verify::verify;
use marquetry_ir::loops::{Expr, Kernel, LoopKind, Stmt, Var};
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
    }
}

/// Checks that two kernels compute the same, the second one also backwards and compiled.
fn same(before: &Kernel, after: &Kernel, n: i64, seed: u64) {
    let show = || format!("{}\n{}", text(before), text(after));
    let faults = verify(after, &syms());
    assert!(faults.is_empty(), "{faults:?}\n{}", show());
    let args = arguments(before, n, seed);
    let mut want = args.clone();
    run(before, &[n], &mut want).unwrap_or_else(|e| panic!("before: {e}\n{}", show()));
    let mut back = args.clone();
    run(&backwards(after), &[n], &mut back).unwrap_or_else(|e| panic!("after: {e}\n{}", show()));
    let got = harness::check(after, &[n], args);
    for ((w, g), b) in want.iter().zip(&got).zip(&before.buffers) {
        assert!(equal(w, g), "`{}` differs\n{}", b.name, show());
    }
    for ((w, g), b) in want.iter().zip(&back).zip(&before.buffers) {
        assert!(equal(w, g), "`{}` differs backwards\n{}", b.name, show());
    }
}

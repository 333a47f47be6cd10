//! Hand-made kernels with the schedules that matter.

use marquetry_codegen::{Backend, Options, compile};
use marquetry_ir::loops::interp::BufData;
use marquetry_ir::loops::{BinOp, Buf, Expr, Kernel, LoopKind, Node, Scope, Stmt, UnOp, Var, dim_expr};
use marquetry_ir::{DType, Dim, Sym, Syms};

use crate::harness::{Rng, backends, check, execute};

fn var(v: Var) -> Expr {
    Expr::var(v)
}

fn vload(k: &Kernel, b: Buf, index: Vec<Expr>, lanes: u16) -> Expr {
    Expr::new(Node::Load(b, index), k.decl(b).dtype, lanes)
}

fn store(buf: Buf, index: Vec<Expr>, value: Expr) -> Stmt {
    Stmt::Store { buf, index, value }
}

fn for_(var: Var, extent: Expr, kind: LoopKind, body: Vec<Stmt>) -> Stmt {
    Stmt::For { var, extent, kind, body }
}

#[test]
fn elementwise_with_tail() {
    let mut k = Kernel::new("add");
    let n: Dim = Sym(0).into();
    let a = k.buffer("a", DType::F32, vec![n.clone()], Scope::In);
    let b = k.buffer("b", DType::F32, vec![n.clone()], Scope::InOut);
    let (i, t) = (k.fresh("i"), k.fresh("t"));
    let blocks = dim_expr(&n) / 8;
    let at = var(i) * 8;
    let value = vload(&k, a, vec![at.clone()], 8).fma(Expr::float(0.5), vload(&k, b, vec![at.clone()], 8));
    let rest = blocks.clone() * 8 + var(t);
    let tail = k.load(a, vec![rest.clone()]).fma(Expr::float(0.5), k.load(b, vec![rest.clone()]));
    k.body = vec![
        for_(i, blocks, LoopKind::Serial, vec![store(b, vec![at], value)]),
        for_(t, dim_expr(&n) % 8, LoopKind::Serial, vec![store(b, vec![rest], tail)]),
    ];
    let mut rng = Rng(1);
    for n in [1, 7, 8, 9, 31, 64] {
        check(&k, &[n as i64], vec![rng.data(DType::F32, n), rng.data(DType::F32, n)]);
    }
}

#[test]
fn reductions_are_balanced_trees() {
    for (dt, lanes, op) in [
        (DType::F32, 4, BinOp::Add),
        (DType::F32, 16, BinOp::Add),
        (DType::F32, 32, BinOp::Max),
        (DType::F32, 8, BinOp::Min),
        (DType::I32, 8, BinOp::Add),
        (DType::I16, 16, BinOp::Max),
        (DType::I8, 32, BinOp::Min),
        (DType::U8, 16, BinOp::Max),
        (DType::I8, 4, BinOp::Add),
        (DType::I64, 4, BinOp::Max),
    ] {
        let mut k = Kernel::new("reduce");
        let a = k.buffer("a", dt, vec![3.into(), i64::from(lanes).into()], Scope::In);
        let b = k.buffer("b", dt, vec![3.into()], Scope::Out);
        let i = k.fresh("i");
        let value = vload(&k, a, vec![var(i), Expr::idx(0)], lanes).reduce(op);
        k.body = vec![for_(i, Expr::idx(3), LoopKind::Parallel, vec![store(b, vec![var(i)], value)])];
        let mut rng = Rng(2);
        check(&k, &[], vec![rng.data(dt, 3 * lanes as usize), BufData::zeros(dt, 3)]);
    }
}

/// `y[m, n] = x[m, k] w[n, k]ᵀ` with `w` in blocks of 8 rows and a tile of `m` × 8 in registers.
#[test]
fn gemm_rows8() {
    let (m, n8, kk) = (3i64, 5i64, 24i64);
    let mut k = Kernel::new("gemm");
    let x = k.buffer("x", DType::F32, vec![m.into(), kk.into()], Scope::In);
    let w = k.buffer("w", DType::F32, vec![n8.into(), kk.into(), 8.into()], Scope::In);
    let y = k.buffer("y", DType::F32, vec![m.into(), (8 * n8).into()], Scope::Out);
    let acc = k.buffer("acc", DType::F32, vec![m.into(), 8.into()], Scope::Reg);
    let [b, r, p, q, s] = ["b", "r", "p", "q", "s"].map(|v| k.fresh(v));
    let wv = k.fresh("w");
    let zero = Expr::float(0.0).splat(8);
    let wvar = Expr::new(Node::Var(wv), DType::F32, 8);
    let sum = k.load(x, vec![var(q), var(p)]).splat(8).fma(wvar, vload(&k, acc, vec![var(q), Expr::idx(0)], 8));
    let load_w = vload(&k, w, vec![var(b), var(p), Expr::idx(0)], 8);
    let out = vload(&k, acc, vec![var(s), Expr::idx(0)], 8);
    k.body = vec![for_(
        b,
        Expr::idx(n8),
        LoopKind::Parallel,
        vec![
            for_(r, Expr::idx(m), LoopKind::Unroll, vec![store(acc, vec![var(r), Expr::idx(0)], zero)]),
            for_(
                p,
                Expr::idx(kk),
                LoopKind::Serial,
                vec![
                    Stmt::Let { var: wv, value: load_w },
                    for_(q, Expr::idx(m), LoopKind::Unroll, vec![store(acc, vec![var(q), Expr::idx(0)], sum)]),
                ],
            ),
            for_(s, Expr::idx(m), LoopKind::Unroll, vec![store(y, vec![var(s), var(b) * 8], out)]),
        ],
    )];
    let mut rng = Rng(3);
    let args = vec![
        rng.data(DType::F32, (m * kk) as usize),
        rng.data(DType::F32, (n8 * kk * 8) as usize),
        BufData::zeros(DType::F32, (m * n8 * 8) as usize),
    ];
    check(&k, &[], args);
}

/// Quantized matrix times vector: 8 bits, groups of 32, blocks of 8 rows.
pub fn gemv_q8(n8: i64, g: i64, w_max: u8) -> Kernel {
    let mut k = Kernel::new("gemv_q8");
    let w = k.buffer("w", DType::U32, vec![n8.into(), g.into(), 8.into(), 8.into()], Scope::In);
    let scales = k.buffer("scales", DType::F16, vec![n8.into(), g.into(), 8.into()], Scope::In);
    let x = k.buffer("x", DType::U32, vec![g.into(), 8.into()], Scope::In);
    let xs = k.buffer("xs", DType::F32, vec![g.into()], Scope::In);
    let y = k.buffer("y", DType::F32, vec![(8 * n8).into()], Scope::Out);
    let acc = k.buffer("acc", DType::F32, vec![8.into()], Scope::Reg);
    let d = k.buffer("d", DType::I32, vec![8.into()], Scope::Reg);
    let [b, gi, p] = ["b", "g", "p"].map(|v| k.fresh(v));
    let zero = Expr::idx(0);
    let at = |v: Expr| vec![var(b), var(gi), v];
    let words = vload(&k, w, vec![var(b), var(gi), var(p), zero.clone()], 8);
    let dot = Expr::dot4(vload(&k, d, vec![zero.clone()], 8), words, k.load(x, vec![var(gi), var(p)]).splat(8), w_max);
    let scale = vload(&k, scales, at(zero.clone()), 8).cast(DType::F32) * k.load(xs, vec![var(gi)]);
    let sum = vload(&k, d, vec![zero.clone()], 8).cast(DType::F32).fma(scale, vload(&k, acc, vec![zero.clone()], 8));
    let out = vload(&k, acc, vec![zero.clone()], 8);
    let body = vec![
        store(acc, vec![zero.clone()], Expr::float(0.0).splat(8)),
        for_(
            gi,
            Expr::idx(g),
            LoopKind::Serial,
            vec![
                store(d, vec![zero.clone()], Expr::int(0, DType::I32).splat(8)),
                for_(p, Expr::idx(8), LoopKind::Unroll, vec![store(d, vec![zero.clone()], dot)]),
                store(acc, vec![zero.clone()], sum),
            ],
        ),
        store(y, vec![var(b) * 8], out),
    ];
    k.body = vec![for_(b, Expr::idx(n8), LoopKind::Parallel, body)];
    k
}

#[test]
fn gemv_of_bytes() {
    let (n8, g) = (4usize, 3usize);
    for w_max in [255, 127, 15] {
        let k = gemv_q8(n8 as i64, g as i64, w_max);
        let mut rng = Rng(4);
        let mut w = rng.data(DType::U32, n8 * g * 64);
        w.bytes.iter_mut().for_each(|b| *b = (*b).min(w_max));
        // The extremes, where 16-bit sums would saturate.
        w.bytes[..64].fill(w_max);
        let mut x = rng.data(DType::U32, g * 8);
        x.bytes[..8].fill(0x80);
        x.bytes[8..16].fill(0x7f);
        let args =
            vec![w, rng.data(DType::F16, n8 * g * 8), x, rng.data(DType::F32, g), BufData::zeros(DType::F32, n8 * 8)];
        check(&k, &[], args);
    }
}

/// Functions that become arithmetic give the same bits by vectors, by scalars and in the interpreter.
#[test]
fn transcendental_functions() {
    for op in [UnOp::Exp, UnOp::Log, UnOp::Sin, UnOp::Cos, UnOp::Tanh, UnOp::Erf] {
        let mut k = Kernel::new(format!("{op:?}"));
        let a = k.buffer("a", DType::F32, vec![64.into(), 16.into()], Scope::In);
        let b = k.buffer("b", DType::F32, vec![64.into(), 16.into()], Scope::Out);
        let c = k.buffer("c", DType::F32, vec![64.into(), 16.into()], Scope::Out);
        let [i, j] = ["i", "j"].map(|v| k.fresh(v));
        let (at, one) = (vec![var(i), Expr::idx(0)], vec![var(i), var(j)]);
        let wide = Expr::unary(op, vload(&k, a, at.clone(), 16));
        let single = Expr::unary(op, k.load(a, one.clone()));
        let body = vec![store(b, at, wide), for_(j, Expr::idx(16), LoopKind::Serial, vec![store(c, one, single)])];
        k.body = vec![for_(i, Expr::idx(64), LoopKind::Parallel, body)];
        let mut legal = k.clone();
        marquetry_ir::loops::legalize::legalize(&mut legal);
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 88.9, -100.0, 1e-30];
        let values: Vec<f32> = special.into_iter().chain((0..1016).map(|i| (i as f32 - 508.0) * 0.17)).collect();
        let zeros = BufData::zeros(DType::F32, 1024);
        let args = vec![BufData::from_f32(&values), zeros.clone(), zeros];
        let legal_out = check(&legal, &[], args.clone());
        let bits = |b: &BufData| -> Vec<u32> {
            b.to_f32().iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
        };
        assert_eq!(bits(&legal_out[1]), bits(&legal_out[2]));
        // Backends expand them by themselves, too.
        for backend in backends() {
            let m = compile(backend, &[k.clone()], &Syms::default(), &Options::default()).unwrap();
            let mut got = args.clone();
            execute(&m, &k, &[], &mut got);
            assert_eq!(bits(&got[1]), bits(&legal_out[1]), "{backend:?}");
        }
    }
}

/// Rows of floats to signed bytes with one scale each.
#[test]
fn quantize_to_bytes() {
    let (rows, n) = (5i64, 64i64);
    let mut k = Kernel::new("quantize");
    let x = k.buffer("x", DType::F32, vec![rows.into(), n.into()], Scope::In);
    let q = k.buffer("q", DType::I8, vec![rows.into(), n.into()], Scope::Out);
    let s = k.buffer("s", DType::F32, vec![rows.into()], Scope::Out);
    let most = k.buffer("most", DType::F32, vec![8.into()], Scope::Reg);
    let [r, i, j] = ["r", "i", "j"].map(|v| k.fresh(v));
    let [a, inv] = ["a", "inv"].map(|v| k.fresh(v));
    let zero = Expr::idx(0);
    let f = |v: Var| Expr::new(Node::Var(v), DType::F32, 1);
    let more =
        vload(&k, most, vec![zero.clone()], 8).max(Expr::unary(UnOp::Abs, vload(&k, x, vec![var(r), var(i) * 8], 8)));
    let scaled = vload(&k, x, vec![var(r), var(j) * 16], 16) * f(inv);
    let bytes = Expr::unary(UnOp::Round, scaled).cast(DType::I8);
    let amax = vload(&k, most, vec![zero.clone()], 8).reduce(BinOp::Max);
    let positive = Expr::float(0.0).lt(f(a));
    let body = vec![
        store(most, vec![zero.clone()], Expr::float(0.0).splat(8)),
        for_(i, Expr::idx(n / 8), LoopKind::Serial, vec![store(most, vec![zero], more)]),
        Stmt::Let { var: a, value: amax },
        Stmt::Let { var: inv, value: positive.select(Expr::float(127.0) / f(a), Expr::float(0.0)) },
        for_(j, Expr::idx(n / 16), LoopKind::Serial, vec![store(q, vec![var(r), var(j) * 16], bytes)]),
        store(s, vec![var(r)], f(a) / Expr::float(127.0)),
    ];
    k.body = vec![for_(r, Expr::idx(rows), LoopKind::Parallel, body)];
    let mut rng = Rng(5);
    let mut data = rng.data(DType::F32, (rows * n) as usize);
    data.bytes[..256].fill(0);
    let out = vec![data, BufData::zeros(DType::I8, (rows * n) as usize), BufData::zeros(DType::F32, rows as usize)];
    check(&k, &[], out);
}

/// Every f16 (and bf16) value, by vectors and by scalars.
#[test]
fn halves_to_f32() {
    for dt in [DType::F16, DType::BF16] {
        let mut k = Kernel::new("halves");
        let a = k.buffer("a", dt, vec![8192.into(), 8.into()], Scope::In);
        let b = k.buffer("b", DType::F32, vec![8192.into(), 8.into()], Scope::Out);
        let c = k.buffer("c", DType::F32, vec![8192.into(), 8.into()], Scope::Out);
        let [i, j] = ["i", "j"].map(|v| k.fresh(v));
        let at = vec![var(i), Expr::idx(0)];
        let one = vec![var(i), var(j)];
        let body = vec![
            store(b, at.clone(), vload(&k, a, at, 8).cast(DType::F32)),
            for_(j, Expr::idx(8), LoopKind::Serial, vec![store(c, one.clone(), k.load(a, one).cast(DType::F32))]),
        ];
        k.body = vec![for_(i, Expr::idx(8192), LoopKind::Parallel, body)];
        let mut data = BufData::zeros(dt, 65536);
        data.bytes.chunks_mut(2).zip(0..=u16::MAX).for_each(|(c, v)| c.copy_from_slice(&v.to_le_bytes()));
        let out = check(&k, &[], vec![data, BufData::zeros(DType::F32, 65536), BufData::zeros(DType::F32, 65536)]);
        assert_eq!(out[1].to_f32()[0x3f80], if dt == DType::BF16 { 1.0 } else { 1.875 });
    }
}

/// Rounding to 16-bit floats, with values around every boundary.
#[test]
fn f32_to_halves() {
    for dt in [DType::F16, DType::BF16] {
        let mut k = Kernel::new("to_halves");
        let a = k.buffer("a", DType::F32, vec![65536.into(), 8.into()], Scope::In);
        let b = k.buffer("b", dt, vec![65536.into(), 8.into()], Scope::Out);
        let c = k.buffer("c", dt, vec![65536.into()], Scope::Out);
        let i = k.fresh("i");
        let (at, last) = (vec![var(i), Expr::idx(0)], vec![var(i), Expr::idx(7)]);
        let body =
            vec![store(b, at.clone(), vload(&k, a, at, 8).cast(dt)), store(c, vec![var(i)], k.load(a, last).cast(dt))];
        k.body = vec![for_(i, Expr::idx(65536), LoopKind::Parallel, body)];
        let mut rng = Rng(8);
        let mut data = BufData::zeros(DType::F32, 65536 * 8);
        for (n, c) in data.bytes.chunks_mut(4).enumerate() {
            let low = [0, 1, 0xfff, 0x1000, 0x1001, 0x7fff, 0x8000, rng.next() as u32 & 0xffff][n % 8];
            c.copy_from_slice(&(((n / 8) as u32) << 16 | low).to_le_bytes());
        }
        check(&k, &[], vec![data, BufData::zeros(dt, 65536 * 8), BufData::zeros(dt, 65536)]);
    }
}

/// A causal mask by `select`, `if` on a size, and scratch memory.
#[test]
fn masks_branches_and_scratch() {
    let mut k = Kernel::new("mask");
    let n: Dim = Sym(0).into();
    let x = k.buffer("x", DType::F32, vec![n.clone(), 16.into()], Scope::In);
    let y = k.buffer("y", DType::F32, vec![n.clone(), 16.into()], Scope::Out);
    let tmp = k.buffer("tmp", DType::F32, vec![16.into()], Scope::Local);
    let [i, j] = ["i", "j"].map(|v| k.fresh(v));
    let ramp = Expr::new(Node::Ramp(Expr::idx(0).cast(DType::I32)), DType::I32, 16);
    let keep = ramp.le(var(i).cast(DType::I32).splat(16));
    let at = vec![var(i), Expr::idx(0)];
    let masked = keep.select(vload(&k, x, at.clone(), 16), Expr::float(-1e9).splat(16));
    let back = vec![Expr::idx(15) - var(j)];
    let reversed = k.load(tmp, back);
    let body = vec![
        store(tmp, vec![Expr::idx(0)], masked),
        Stmt::If {
            cond: (var(i) % 2).lt(Expr::idx(1)),
            then: vec![for_(j, Expr::idx(16), LoopKind::Serial, vec![store(y, vec![var(i), var(j)], reversed)])],
            other: vec![store(y, at, vload(&k, tmp, vec![Expr::idx(0)], 16))],
        },
    ];
    k.body = vec![for_(i, dim_expr(&n), LoopKind::Parallel, body)];
    let mut rng = Rng(6);
    for n in [1usize, 2, 17] {
        check(&k, &[n as i64], vec![rng.data(DType::F32, 16 * n), BufData::zeros(DType::F32, 16 * n)]);
    }
}

/// Casts between all types that have one, with vectors and scalars.
#[test]
fn casts() {
    let all = [DType::F32, DType::I64, DType::I32, DType::U32, DType::I16, DType::I8, DType::U8, DType::Bool];
    let mut rng = Rng(7);
    let with_halves = || all.into_iter().chain([DType::F16, DType::BF16]);
    for from in with_halves() {
        for to in with_halves() {
            for lanes in [1u16, 4, 8, 16] {
                let mut k = Kernel::new(format!("cast_{from}_{to}_{lanes}"));
                let a = k.buffer("a", from, vec![64.into()], Scope::In);
                let b = k.buffer("b", to, vec![64.into()], Scope::Out);
                let i = k.fresh("i");
                let at = vec![var(i) * i64::from(lanes)];
                let value = vload(&k, a, at.clone(), lanes).cast(to);
                let n = Expr::idx(64 / i64::from(lanes));
                k.body = vec![for_(i, n, LoopKind::Serial, vec![store(b, at, value)])];
                let mut data = rng.data(from, 64);
                if from == DType::F32 {
                    let special = [f32::NAN, f32::INFINITY, -f32::INFINITY, 3e9, -3e9, 1e20, 200.5, -200.5, 0.0, -0.0];
                    for (i, v) in special.iter().enumerate() {
                        data.bytes[4 * i..4 * i + 4].copy_from_slice(&v.to_le_bytes());
                    }
                    for i in 16..64 {
                        data.bytes[4 * i..4 * i + 4].copy_from_slice(&(rng.float() * 40000.0).to_le_bytes());
                    }
                }
                if from != DType::Bool && from != DType::F32 && !from.is_float() {
                    // Small values, too.
                    let n = from.size();
                    for i in 0..32 {
                        let v = (rng.next() as i64 >> 48) >> rng.below(12);
                        data.bytes[n * i..n * i + n].copy_from_slice(&v.to_le_bytes()[..n]);
                    }
                }
                check(&k, &[], vec![data, BufData::zeros(to, 64)]);
            }
        }
    }
}

#[test]
fn many_kernels_on_many_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    let kernels: Vec<Kernel> = (0..40).map(|i| gemv_q8(2 + i % 3, 3, 127)).collect();
    let mut rng = Rng(9);
    let args: Vec<BufData> = kernels[0].buffers[..5]
        .iter()
        .map(|b| rng.data(b.dtype, b.shape.iter().map(|d| d.as_const().unwrap() as usize).product()))
        .collect();
    let args = args.into_iter().enumerate().map(|(i, mut a)| {
        if i == 0 {
            a.bytes.iter_mut().for_each(|b| *b &= 127);
        }
        a
    });
    let args: Vec<BufData> = args.collect();
    let want = check(&kernels[0], &[], args.clone());
    for backend in backends() {
        let opts = Options { threads: 4, ..Options::default() };
        let m = compile(backend, &kernels, &Syms::default(), &opts).unwrap();
        shared(&m);
        assert_eq!(m.len(), 40);
        let mut got = args.clone();
        execute(&m, &kernels[0], &[], &mut got);
        assert_eq!(got, want, "{backend:?}");
    }
}

#[test]
fn errors_name_the_kernel() {
    let mut k = Kernel::new("wrong");
    let a = k.buffer("a", DType::F32, vec![4.into()], Scope::In);
    k.body = vec![store(a, vec![Expr::idx(0)], Expr::float(1.0))];
    let e = |backend, verify| {
        let opts = Options { verify, ..Options::default() };
        compile(backend, std::slice::from_ref(&k), &Syms::default(), &opts).err().map(|e| e.to_string())
    };
    let well_formed =
        "kernel `wrong` is not well formed: store to `a`: the buffer is only read; declare it `out` or `inout`";
    for backend in backends() {
        assert_eq!(e(backend, true).as_deref(), Some(well_formed));
        assert_eq!(e(backend, false).as_deref(), Some("kernel `wrong`: store to `a`, which is only read"));
    }
}

#[test]
fn a_backend_that_is_not_built_says_how_to_build_it() {
    for backend in Backend::ALL {
        let error = compile(backend, &[], &Syms::default(), &Options::default()).err().map(|e| e.to_string());
        assert_eq!(error.is_none(), backend.is_built());
        assert!(error.is_none_or(|e| e.contains("--features llvm") && e.contains("llvm-22-dev")));
    }
}

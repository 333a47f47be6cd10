//! Speed of a 4-bit matrix times vector on one thread: `cargo run --release -p marquetry-codegen --example gemv [asm]`.

use std::time::Instant;

use marquetry_codegen::{Backend, Options, compile};
use marquetry_ir::loops::{Expr, Kernel, LoopKind, Node, Scope, Stmt, Var};
use marquetry_ir::{DType, Syms};

const K: i64 = 576;
const N: i64 = 1536;

fn var(v: Var) -> Expr {
    Expr::var(v)
}

/// `y[n] = Σ_k x[k] w[n, k]` with `w` of 4 bits in groups of 32, blocks of 8 rows, and `x` as bytes with a scale a group.
fn gemv() -> Kernel {
    let (blocks, groups) = (N / 8, K / 32);
    let mut k = Kernel::new("gemv_q4");
    let w = k.buffer("w", DType::U32, vec![blocks.into(), groups.into(), 4.into(), 8.into()], Scope::In);
    let scales = k.buffer("scales", DType::F16, vec![blocks.into(), groups.into(), 8.into()], Scope::In);
    let x = k.buffer("x", DType::U32, vec![groups.into(), 8.into()], Scope::In);
    let xs = k.buffer("xs", DType::F32, vec![groups.into()], Scope::In);
    let y = k.buffer("y", DType::F32, vec![N.into()], Scope::Out);
    let acc = k.buffer("acc", DType::F32, vec![8.into()], Scope::Reg);
    let d = k.buffer("d", DType::I32, vec![8.into()], Scope::Reg);
    let [b, g, p, words] = ["b", "g", "p", "words"].map(|v| k.fresh(v));
    let zero = Expr::idx(0);
    let load = |b, index, dt| Expr::new(Node::Load(b, index), dt, 8);
    let wide = Expr::new(Node::Var(words), DType::U32, 8);
    let dv = load(d, vec![zero.clone()], DType::I32);
    let nibble = |w: Expr| w & 0x0f0f_0f0f;
    let dot = |w: Expr, at: Expr| Expr::dot4(dv.clone(), nibble(w), k.load(x, vec![var(g), at]).splat(8), 15);
    let scale =
        load(scales, vec![var(b), var(g), zero.clone()], DType::F16).cast(DType::F32) * k.load(xs, vec![var(g)]);
    let acc_v = load(acc, vec![zero.clone()], DType::F32);
    let store = |buf, index, value| Stmt::Store { buf, index, value };
    let low = dot(wide.clone(), var(p));
    let high = dot(wide >> 4, var(p) + 4);
    let unrolled = vec![
        Stmt::Let { var: words, value: load(w, vec![var(b), var(g), var(p), zero.clone()], DType::U32) },
        store(d, vec![zero.clone()], low),
        store(d, vec![zero.clone()], high),
    ];
    let per_group = vec![
        store(d, vec![zero.clone()], Expr::int(0, DType::I32).splat(8)),
        Stmt::For { var: p, extent: Expr::idx(4), kind: LoopKind::Unroll, body: unrolled },
        store(acc, vec![zero.clone()], dv.clone().cast(DType::F32).fma(scale, acc_v.clone())),
    ];
    let body = vec![
        store(acc, vec![zero], Expr::float(0.0).splat(8)),
        Stmt::For { var: g, extent: Expr::idx(groups), kind: LoopKind::Serial, body: per_group },
        store(y, vec![var(b) * 8], acc_v),
    ];
    k.body = vec![Stmt::For { var: b, extent: Expr::idx(blocks), kind: LoopKind::Parallel, body }];
    k
}

fn main() {
    let show = std::env::args().any(|a| a == "asm");
    let (n, kk) = (N as usize, K as usize);
    let (w_words, scale_halves) = (n * kk / 8, n * kk / 32);
    let ways =
        [("dot instructions", true, false), ("and finite f16", true, true), ("no dot instructions", false, false)];
    let built = Backend::ALL.into_iter().filter(|b| b.is_built());
    for (backend, (name, dot, finite)) in built.flat_map(|b| ways.map(|w| (b, w))) {
        let opts = Options { dot_instructions: dot, finite_f16: finite, disassemble: show, ..Options::default() };
        let started = Instant::now();
        let m = compile(backend, &[gemv()], &Syms::default(), &opts).expect("compiles");
        let compiled = started.elapsed();
        if show {
            println!("{}", m.asm(0).unwrap_or_default());
        }
        // Several matrices, so that weights come from the outer caches as in a model: 0.9 MB or 44 MB.
        for copies in [2, 100] {
            let mut w = vec![vec![0x1234_5678u32; w_words + 4]; copies];
            let mut scales = vec![vec![0x1c00u16; scale_halves + 8]; copies];
            let mut x = vec![0x0102_0304u32; kk / 4];
            let mut xs = vec![0.5f32; kk / 32];
            let mut y = vec![0f32; n];
            let run = m.kernel(0);
            let mut pass = || {
                for (w, s) in w.iter_mut().zip(&mut scales) {
                    let args: [*mut u8; 5] = [
                        w.as_mut_ptr().cast(),
                        s.as_mut_ptr().cast(),
                        x.as_mut_ptr().cast(),
                        xs.as_mut_ptr().cast(),
                        y.as_mut_ptr().cast(),
                    ];
                    // SAFETY: the buffers have the shapes that the kernel declares.
                    unsafe { run(args.as_ptr(), std::ptr::null(), 0, N / 8) };
                }
            };
            pass();
            let bytes = copies * (4 * w_words + 2 * scale_halves);
            let best = (0..30)
                .map(|_| {
                    let t = Instant::now();
                    let repeat = 200 / copies;
                    (0..repeat).for_each(|_| pass());
                    t.elapsed().as_secs_f64() / repeat as f64
                })
                .fold(f64::MAX, f64::min);
            println!(
                "{}, {name}: {:.1} MB of weights, {:.1} GB/s, {:.1} us a product; compiled in {:.1} ms",
                backend.name(),
                bytes as f64 / 1e6,
                bytes as f64 / best / 1e9,
                best / copies as f64 * 1e6,
                compiled.as_secs_f64() * 1e3
            );
        }
    }
}

//! Micro-kernels: expanded where there is no routine, called with the right arguments where there is one.

use marquetry_codegen::{Options, compile};
use marquetry_ir::loops::interp::{BufData, run};
use marquetry_ir::loops::{Expr, Kernel, LoopKind, Micro, MicroOp, Routine, Scope, Stmt};
use marquetry_ir::{DType, Dim, Syms};

use crate::harness::backends;

/// Blocks 1 and 2 of three, tokens 1.. of `t + 1`, k 5: products of row blocks, one block after the other.
fn kernel(syms: &mut Syms) -> Kernel {
    let t = syms.declare("t", 1, 9, 1);
    let rows = |d: i64| Dim::from(t) * Dim::from(d) + Dim::from(d);
    let mut k = Kernel::new("k");
    let x = k.buffer("x", DType::F32, vec![rows(1), 5.into()], Scope::In);
    let w = k.buffer("w", DType::F32, vec![3.into(), 5.into(), 8.into()], Scope::In);
    let y = k.buffer("y", DType::F32, vec![rows(2), 8.into()], Scope::InOut);
    let b = k.fresh("b");
    let at = |i: Expr, rank: usize| [vec![i], vec![Expr::idx(0); rank - 1]].concat();
    let args = vec![(y, at(Expr::var(b) * Expr::size(t), 2)), (w, at(Expr::var(b) + 1, 3)), (x, at(Expr::idx(1), 2))];
    let call = Micro { op: MicroOp::Fma(DType::F32), args, sizes: vec![Expr::size(t), Expr::idx(1), Expr::idx(5)] };
    k.body = vec![Stmt::For { var: b, extent: Expr::idx(2), kind: LoopKind::Parallel, body: vec![Stmt::Micro(call)] }];
    k
}

/// Computes [`MicroOp::Fma`] plainly, from what it is told.
unsafe extern "C" fn plain(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the call passes three arguments, three sizes and three strides.
    unsafe {
        let size = |i: usize| *sizes.add(i) as usize;
        let (y, w, x): (*mut f32, *const f32, *const f32) =
            ((*args).cast(), (*args.add(1)).cast(), (*args.add(2)).cast());
        for t in 0..size(0) {
            for b in 0..size(1) {
                for r in 0..8 {
                    let terms = (0..size(2)).map(|k| (*x.add(t * size(5) + k), *w.add(b * size(4) + k * 8 + r)));
                    *y.add((t * size(1) + b) * size(3) + r) = terms.fold(0.0, |s, (x, w)| x.mul_add(w, s));
                }
            }
        }
    }
}

#[test]
fn expanded_or_called() {
    let mut syms = Syms::default();
    let k = kernel(&mut syms);
    assert_eq!(marquetry_ir::loops::verify::verify(&k, &syms), vec![]);
    let numbers = |n: usize| BufData::from_f32(&(0..n).map(|i| (i * 37 % 19) as f32 - 9.0).collect::<Vec<_>>());
    let choices = [(|_| None) as fn(&MicroOp) -> Option<Routine>, |_| Some(plain)];
    for (backend, routines) in backends().flat_map(|b| choices.map(|r| (b, r))) {
        let options = Options { routines, verify: true, ..Options::default() };
        let code = compile(backend, std::slice::from_ref(&k), &syms, &options).unwrap();
        for t in [1usize, 2, 9] {
            let mut want = vec![numbers(5 * (t + 1)), numbers(120), numbers(16 * (t + 1))];
            let mut got = want.clone();
            run(&k, &[t as i64], &mut want).unwrap();
            let pointers: Vec<*mut u8> = got.iter_mut().map(|b| b.bytes.as_mut_ptr()).collect();
            // SAFETY: the buffers have the extents that the kernel declares.
            unsafe { code.kernel(0)(pointers.as_ptr(), [t as i64].as_ptr(), 0, 2) };
            assert_eq!(want[2].to_f32(), got[2].to_f32());
        }
    }
}

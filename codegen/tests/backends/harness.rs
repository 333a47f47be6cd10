//! Runs one kernel both ways.

use marquetry_codegen::{Backend, JitModule, Options, compile};
use marquetry_ir::loops::interp::{BufData, run};
use marquetry_ir::loops::{Kernel, Scope};
use marquetry_ir::{DType, Sym, Syms};

/// A small generator of pseudorandom numbers.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = self.0 ^ (self.0 >> 29);
        x.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (x >> 32)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 11) as usize % n
    }

    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn data(&mut self, dtype: DType, len: usize) -> BufData {
        let mut d = BufData::zeros(dtype, len);
        for c in d.bytes.chunks_mut(dtype.size()) {
            let raw = match dtype {
                DType::F32 => u64::from((self.float() * 4.0).to_bits()),
                // Finite, with some subnormal numbers.
                DType::F16 => self.next() & 0x8fff | (self.next() & 0x3000),
                DType::BF16 => u64::from((self.float() * 4.0).to_bits() >> 16),
                DType::Bool => self.next() & 1,
                _ => self.next(),
            };
            c.copy_from_slice(&raw.to_le_bytes()[..c.len()]);
        }
        d
    }
}

/// The backends of this build.
pub fn backends() -> impl Iterator<Item = Backend> {
    Backend::ALL.into_iter().filter(|b| b.is_built())
}

/// The ways of compiling that this build and host offer.
pub fn variants() -> Vec<(Backend, Options)> {
    let o = Options { verify: true, threads: 1, ..Options::default() };
    let of = [o.clone(), Options { dot_instructions: false, ..o.clone() }, Options { host_features: false, ..o }];
    backends().flat_map(|b| of.clone().map(|o| (b, o))).collect()
}

/// Runs compiled code over the parallel range, in pieces.
pub fn execute(m: &JitModule, k: &Kernel, sizes: &[i64], args: &mut [BufData]) {
    let mut copies: Vec<Vec<u128>> = args
        .iter()
        .map(|a| {
            let mut v = vec![0u128; a.bytes.len().div_ceil(16) + 1];
            for (w, c) in v.iter_mut().zip(a.bytes.chunks(16)) {
                let mut raw = [0; 16];
                raw[..c.len()].copy_from_slice(c);
                *w = u128::from_le_bytes(raw);
            }
            v
        })
        .collect();
    let pointers: Vec<*mut u8> = copies.iter_mut().map(|v| v.as_mut_ptr().cast()).collect();
    let call = m.kernel(0);
    let n = match k.parallel_extent() {
        Some(e) => {
            let e = e.rewrite(&mut |e| match e.node() {
                marquetry_ir::loops::Node::Size(Sym(s)) => Some(marquetry_ir::loops::Expr::idx(sizes[*s as usize])),
                _ => None,
            });
            e.as_int().expect("constant parallel extent")
        }
        None => 1,
    };
    let cuts = if k.parallel_extent().is_some() { vec![0, n / 3, n / 3, n - n / 4, n] } else { vec![0, 1] };
    for c in cuts.windows(2) {
        // SAFETY: buffers have the declared sizes, which the interpreter checked on the same arguments.
        unsafe { call(pointers.as_ptr(), sizes.as_ptr(), c[0], c[1]) };
    }
    for (a, v) in args.iter_mut().zip(copies) {
        let bytes: Vec<u8> = v.iter().flat_map(|w| w.to_le_bytes()).collect();
        let len = a.bytes.len();
        a.bytes.copy_from_slice(&bytes[..len]);
        assert!(bytes[len.next_multiple_of(16)..].iter().all(|b| *b == 0), "write past the end");
    }
}

/// The interpreter's result, if every way of compiling gives it bit by bit; else where one differs.
pub fn compare(k: &Kernel, sizes: &[i64], args: Vec<BufData>) -> Result<Vec<BufData>, String> {
    let mut want = args.clone();
    run(k, sizes, &mut want).map_err(|e| format!("interpreter: {e}"))?;
    let mut syms = Syms::default();
    for i in 0..sizes.len() {
        syms.declare(&format!("n{i}"), 0, 1 << 20, 1);
    }
    for (backend, opts) in variants() {
        let m = compile(backend, std::slice::from_ref(k), &syms, &opts).map_err(|e| e.to_string())?;
        let mut got = args.clone();
        execute(&m, k, sizes, &mut got);
        for (i, decl) in k.buffers.iter().take(want.len()).enumerate().filter(|(_, d)| d.scope != Scope::In) {
            for e in 0..want[i].len() {
                let (w, g) = (want[i].get(e), got[i].get(e));
                let nan = |s| matches!(s, marquetry_ir::loops::interp::Scalar::F(f) if f32::is_nan(f));
                let same = want[i].bytes[e * decl.dtype.size()..(e + 1) * decl.dtype.size()]
                    == got[i].bytes[e * decl.dtype.size()..(e + 1) * decl.dtype.size()];
                if !(same || nan(w) && nan(g)) {
                    return Err(format!(
                        "`{}`, element {e}: want {w:?}, got {g:?} by {backend:?} with {opts:?}",
                        decl.name
                    ));
                }
            }
        }
    }
    Ok(want)
}

/// Checks that every way of compiling gives the interpreter's result; returns that result.
pub fn check(k: &Kernel, sizes: &[i64], args: Vec<BufData>) -> Vec<BufData> {
    compare(k, sizes, args).unwrap_or_else(|e| panic!("`{}`: {e}\n{:#?}", k.name, k.body))
}

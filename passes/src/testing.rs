//! Random modules' inputs and comparison, for the tests of passes.

use std::collections::HashMap;
use std::path::PathBuf;

use half::f16;
use marquetry_ir::graph::interp::{Data, Tensor, Val, run_function};
use marquetry_ir::graph::{Module, Ty};
use marquetry_ir::{DType, Elem, GgufType};

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }

    /// Roughly normal, standard deviation near 1.
    pub fn normal(&mut self) -> f32 {
        (0..4).map(|_| self.next() as f32 / (1u64 << 31) as f32 - 0.5).sum::<f32>() * 1.7
    }

    fn tensor(&mut self, elem: Elem, shape: Vec<usize>, rows: u32) -> Tensor {
        let count: usize = shape.iter().product();
        let data = match elem {
            Elem::Scalar(DType::F32) => Data::F32((0..count).map(|_| self.normal()).collect::<Vec<_>>().into()),
            Elem::Scalar(d) if !d.is_float() => {
                Data::Int(d, (0..count).map(|_| i64::from(self.next() % rows)).collect::<Vec<_>>().into())
            }
            Elem::Gguf(t @ GgufType::Q4_1) => {
                let mut bytes = vec![];
                for _ in 0..count / t.block_len() {
                    let (d, m) = (self.normal() * 0.1, self.normal() * 0.5);
                    bytes.extend([d, m].iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()));
                    bytes.extend((0..16).map(|_| self.next() as u8));
                }
                Data::Bytes(elem, bytes.into())
            }
            other => panic!("{other}"),
        };
        Tensor { shape, data }
    }
}

/// Names of states and the bits of their keys and values.
pub type StateBits = Vec<(String, Vec<u32>)>;

/// Results of the entry function on random inputs, and the states it leaves. The same seed gives the same inputs.
pub fn interpret(m: &Module, seed: u64) -> (Vec<Vec<f32>>, StateBits) {
    let mut r = Random(seed);
    let sizes: Vec<i64> = m.syms.0.iter().map(|d| (d.lo + i64::from(r.next() % 5)).min(d.hi)).collect();
    let eval = |d: &marquetry_ir::Dim| d.eval(|s| sizes[s.0 as usize]) as usize;
    let mut value = |ty: &Ty, rows: u32| match ty {
        Ty::Tensor(t) => Val::Tensor(r.tensor(t.elem, t.shape.iter().map(eval).collect(), rows)),
        Ty::Kv(k) => {
            let n = eval(&k.slots) * k.heads * k.dim;
            Val::Kv(
                [0, 1].map(|_| (0..n).map(|_| r.normal()).collect::<Vec<_>>().into()),
                [eval(&k.slots), k.heads, k.dim],
            )
        }
    };
    let mut params = HashMap::new();
    for p in &m.params {
        if let Val::Tensor(t) = value(&p.ty, 4) {
            params.insert(p.name.clone(), t);
        }
    }
    let mut states: HashMap<String, Val> = m.states.iter().map(|s| (s.name.clone(), value(&s.ty, 4))).collect();
    let entry = m.entry().unwrap();
    // Small indices are valid everywhere; the only sequence and the only page are number 0.
    let rows = |name: &str| if matches!(name, "seq" | "pages") { 1 } else { 4 };
    let args = entry.args.iter().map(|(name, v)| value(entry.ty(*v), rows(name))).collect();
    let results = run_function(m, entry, &m.syms, &sizes, args, &mut states, &params).unwrap();
    let results = results.iter().filter_map(|v| match v {
        Val::Tensor(t) => Some(t.to_f32().unwrap().to_vec()),
        Val::Kv(..) => None,
    });
    let results = results.collect();
    let mut left: StateBits = states
        .into_iter()
        .filter_map(|(name, v)| match v {
            Val::Kv([k, v], _) => Some((name, k.iter().chain(v.iter()).map(|x| x.to_bits()).collect())),
            Val::Tensor(_) => None,
        })
        .collect();
    left.sort();
    (results, left)
}

/// Types of the entry function's results.
pub fn result_types(m: &Module) -> Vec<Ty> {
    let f = m.entry().unwrap();
    f.results.iter().map(|(_, v)| f.ty(*v).clone()).collect()
}

/// Largest distance over the standard deviation; infinite if shapes or finiteness differ.
pub fn gap(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    if a.len() != b.len() || a.iter().zip(b).any(|(a, b)| a.len() != b.len()) {
        return f32::INFINITY;
    }
    let scale = |v: &[f32]| (v.iter().map(|x| x * x).sum::<f32>() / v.len() as f32).sqrt().max(1e-20);
    let pairs = a.iter().zip(b).flat_map(|(a, b)| {
        let s = scale(a);
        a.iter().zip(b).map(move |(x, y)| if x.to_bits() == y.to_bits() { 0.0 } else { (x - y).abs() / s })
    });
    pairs.fold(0.0, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) })
}

/// Root mean square of the distance over that of the numbers.
pub fn mean_gap(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let square = |d: f32| f64::from(d) * f64::from(d);
    let pairs = || a.iter().flatten().zip(b.iter().flatten());
    let apart: f64 = pairs().map(|(x, y)| square(x - y)).sum();
    let all: f64 = pairs().map(|(x, _)| square(*x)).sum();
    if gap(a, b).is_finite() { (apart / all.max(1e-30)).sqrt() as f32 } else { f32::INFINITY }
}

/// A file below `tests/data`.
pub fn data(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

/// Compares with a file; `BLESS=1` writes it anew.
pub fn snapshot(path: PathBuf, got: &str) {
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, got).unwrap();
        return;
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(got == want, "{} differs; BLESS=1 writes it anew. It would be:\n{got}", path.display());
}

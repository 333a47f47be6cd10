//! Random inputs: numbers of every element type, and the bounds that keep indices inside what they choose from.

use std::collections::HashMap;

use crate::graph::interp::{Data, Tensor};
use crate::graph::{Function, Module, Op, Ty, Value};
use crate::{DType, Dim, Elem, GgufType};

/// A small generator of pseudorandom numbers: one seed, one sequence, on every machine.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The sequence of a name: the same whatever else is drawn.
    pub fn named(seed: u64, name: &str) -> Random {
        let mix = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
        Random(name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, mix))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number in `0..n`; 0 where `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// True in that many of 100 cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of several, which must not be empty.
    pub fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    /// Roughly normal, standard deviation near 1.
    pub fn normal(&mut self) -> f32 {
        (0..4).map(|_| self.below(1 << 24) as f32 / (1 << 24) as f32 - 0.5).sum::<f32>() * 1.7
    }
}

/// What kind of floats inputs hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Roughly normal.
    Normal,
    /// Each tensor normal at a magnitude of its own, among them zeros of both signs and subnormal numbers.
    Wide,
    /// Everything: also the largest numbers, infinities and NaN.
    All,
}

/// What a value's integers are from 0 up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// They are less than this.
    pub below: i64,
    /// No one twice: places that are written.
    pub distinct: bool,
}

/// The limits that readers of each value set, through moves, conversions and calls.
pub fn limits(m: &Module, f: &Function, sizes: &[i64]) -> Vec<Option<Limit>> {
    let mut all: Vec<Option<Limit>> = vec![None; f.values.len()];
    let eval = |d: &Dim| d.eval(|s| sizes[s.0 as usize]);
    let extent = |v: Value, axis: usize| f.ty(v).as_tensor().and_then(|t| t.shape.get(axis)).map_or(1, eval);
    let slots = |v: Value| if let Ty::Kv(k) = f.ty(v) { eval(&k.slots) } else { 1 };
    fn set(all: &mut [Option<Limit>], v: Value, below: i64, distinct: bool) {
        let old = all[v.0 as usize].unwrap_or(Limit { below: i64::MAX, distinct: false });
        all[v.0 as usize] = Some(Limit { below: old.below.min(below), distinct: old.distinct || distinct });
    }
    let defs = f.defs();
    let def = |v: Value| defs[v.0 as usize].map(|i| &f.insts[i]);
    for inst in f.insts.iter().rev() {
        let x = &inst.operands;
        match inst.op {
            Op::Gather => {
                set(&mut all, x[1], extent(x[0], 0), false);
                if let Some(l) = all[inst.results[0].0 as usize] {
                    set(&mut all, x[0], l.below, l.distinct);
                }
            }
            // A mask by position: there are no positions beyond those that it counts.
            Op::Le => {
                if let (Some(d), Some(t)) = (def(x[0]).filter(|d| d.op == Op::Iota), f.ty(x[0]).as_tensor()) {
                    set(&mut all, x[1], t.shape.get(d.attrs[0].as_int() as usize).map_or(1, eval), false);
                }
            }
            // An index computed as a number times a constant, plus a count.
            Op::Add | Op::Mul => {
                let Some(l) = all[inst.results[0].0 as usize] else { continue };
                let (attrs, shape) = match def(x[1]) {
                    Some(d) => (&d.attrs, f.ty(x[1]).as_tensor().map(|t| &t.shape)),
                    None => continue,
                };
                let below = match (inst.op, def(x[1]).map(|d| d.op), shape) {
                    (Op::Add, Some(Op::Iota), Some(s)) => {
                        l.below.saturating_sub(s.get(attrs[0].as_int() as usize).map_or(1, eval)).saturating_add(1)
                    }
                    (Op::Mul, Some(Op::Const), _) => {
                        let by = (attrs[0].as_f32() as i64).max(1);
                        l.below.saturating_add(by - 1) / by
                    }
                    _ => continue,
                };
                set(&mut all, x[0], below, l.distinct);
            }
            Op::Pick => {
                let last = f.ty(x[0]).as_tensor().map_or(0, |t| t.shape.len().saturating_sub(1));
                set(&mut all, x[1], extent(x[0], last), false);
            }
            Op::KvAppend => set(&mut all, x[3], slots(x[0]), true),
            Op::ExpertLinear => set(&mut all, x[2], inst.attrs[0].as_int(), false),
            Op::Attend | Op::AttendSloped | Op::AttendParts => {
                let page = inst.attrs[3].as_int().max(1);
                set(&mut all, x[2], extent(x[4], 1).saturating_mul(page), false);
                set(&mut all, x[3], extent(x[4], 0), false);
                set(&mut all, x[4], slots(x[1]) / page, false);
            }
            Op::Reshape | Op::Permute | Op::Broadcast | Op::Slice | Op::Concat | Op::Cast => {
                if let Some(l) = all[inst.results[0].0 as usize] {
                    x.iter().for_each(|v| set(&mut all, *v, l.below, l.distinct));
                }
            }
            Op::Call => {
                let Some(callee) = m.function(inst.attrs[0].as_str()) else { continue };
                let inner = limits(m, callee, sizes);
                for (v, (_, a)) in x.iter().zip(&callee.args) {
                    if let Some(l) = inner[a.0 as usize] {
                        set(&mut all, *v, l.below, l.distinct);
                    }
                }
            }
            _ => {}
        }
    }
    all
}

/// A random tensor. Packed layouts are given by their numbers: layout has no meaning for the interpreter.
pub fn tensor(r: &mut Random, elem: Elem, shape: Vec<usize>, limit: Option<Limit>, numbers: Numbers) -> Tensor {
    let n = shape.iter().product();
    let data = data(r, elem, n, limit, numbers);
    Tensor { shape, data }
}

fn data(r: &mut Random, elem: Elem, n: usize, limit: Option<Limit>, numbers: Numbers) -> Data {
    let halves = |v: Vec<f32>, f: fn(f32) -> u16| v.iter().flat_map(|x| f(*x).to_le_bytes()).collect::<Vec<u8>>();
    match elem {
        Elem::Scalar(DType::F32) => Data::F32(floats(r, n, numbers).into()),
        Elem::Scalar(DType::F16) => {
            Data::Bytes(elem, halves(floats(r, n, numbers), |x| half::f16::from_f32(x).to_bits()).into())
        }
        Elem::Scalar(DType::BF16) => {
            Data::Bytes(elem, halves(floats(r, n, numbers), |x| half::bf16::from_f32(x).to_bits()).into())
        }
        Elem::Scalar(d) => Data::Int(d, ints(r, d, n, limit, numbers).into()),
        Elem::Gguf(t) => {
            let blocks = n / t.block_len();
            Data::Bytes(elem, (0..blocks).flat_map(|_| block(r, t)).collect::<Vec<u8>>().into())
        }
        other => Data::Exact(other, floats(r, n, numbers).into()),
    }
}

/// Numbers of a tensor.
pub fn floats(r: &mut Random, n: usize, numbers: Numbers) -> Vec<f32> {
    let scale = match numbers {
        Numbers::Normal => 1.0,
        _ => f32::from_bits((127 - 8 + r.below(17) as u32) << 23),
    };
    (0..n)
        .map(|_| match (numbers, r.below(32)) {
            (Numbers::Normal, _) => r.normal(),
            (_, 0 | 1) => 0.0,
            (_, 2) => -0.0,
            (_, 3) => f32::from_bits(1 + r.below(0x7f_fffe) as u32) * r.pick(&[1.0, -1.0]),
            (Numbers::All, 4) => r.pick(&[f32::MAX, f32::MIN, 1e30, -1e30, f32::MIN_POSITIVE]),
            (Numbers::All, 5) => r.pick(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN]),
            (Numbers::All, 6) => r.pick(&[1.0, -1.0, 2.0, 0.5]),
            _ => r.normal() * scale,
        })
        .collect()
}

fn ints(r: &mut Random, d: DType, n: usize, limit: Option<Limit>, numbers: Numbers) -> Vec<i64> {
    if let Some(Limit { below, distinct }) = limit {
        let below = below.max(1) as usize;
        let mut all: Vec<i64> = (0..n).map(|_| r.below(below) as i64).collect();
        if distinct && n <= below {
            // The first of a shuffled range, of which only what has moved is kept.
            let mut moved: HashMap<usize, usize> = HashMap::new();
            for (i, v) in all.iter_mut().enumerate() {
                let j = i + r.below(below - i);
                let here = moved.get(&i).copied().unwrap_or(i);
                *v = moved.insert(j, here).unwrap_or(j) as i64;
            }
        }
        return all;
    }
    let bits = 8 * d.size() as u32;
    let all = numbers == Numbers::All;
    let unsigned = matches!(d, DType::U8 | DType::U32);
    (0..n)
        .map(|_| match d {
            DType::Bool => r.below(2) as i64,
            _ if all && r.chance(30) => {
                let v = r.bits() as i64;
                if unsigned { ((v as u64) >> (64 - bits)) as i64 } else { v >> (64 - bits) }
            }
            _ if unsigned => r.below(100) as i64,
            _ => r.below(200) as i64 - 100,
        })
        .collect()
}

/// Random bytes with scales of a sensible size.
fn block(r: &mut Random, t: GgufType) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..t.block_bytes()).map(|_| r.bits() as u8).collect();
    let scales: &[(usize, f32)] = match t {
        GgufType::Q4_0 | GgufType::Q5_0 | GgufType::Q8_0 => &[(0, 0.1)],
        GgufType::Q4_1 | GgufType::Q5_1 => &[(0, 0.1), (2, 0.5)],
        GgufType::Q2K => &[(80, 0.05), (82, 0.05)],
        GgufType::Q3K => &[(108, 0.01)],
        GgufType::Q4K | GgufType::Q5K => &[(0, 0.01), (2, 0.01)],
        GgufType::Q6K => &[(208, 0.001)],
    };
    for (at, size) in scales {
        let v = half::f16::from_f32(r.normal() * size);
        bytes[*at..at + 2].copy_from_slice(&v.to_le_bytes());
    }
    bytes
}

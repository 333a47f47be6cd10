//! Random inputs of a module, its interpretation, and how far two results are apart.

use std::collections::HashMap;
use std::sync::Arc;

use super::Random;
use crate::graph::interp::{Data, InterpError, Tensor, Val, run_function};
use crate::graph::{Function, Module, Op, Ty, Value};
use crate::{DType, Elem, GgufType};

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

/// What a module is run on.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Value of each symbol.
    pub sizes: Vec<i64>,
    /// Arguments of the entry function.
    pub args: Vec<Val>,
    /// States by name.
    pub states: HashMap<String, Val>,
    /// Parameters by name.
    pub params: HashMap<String, Tensor>,
}

impl Inputs {
    /// The same with every f32 number changed by at most this part of it.
    pub fn perturbed(&self, r: &mut Random, by: f32) -> Inputs {
        let mut change = |v: &Arc<Vec<f32>>| {
            Arc::new(v.iter().map(|x| x * (1.0 + by * (r.below(2001) as f32 / 1000.0 - 1.0))).collect())
        };
        let mut any = |v: &Val| match v {
            Val::Tensor(Tensor { shape, data: Data::F32(v) }) => {
                Val::Tensor(Tensor { shape: shape.clone(), data: Data::F32(change(v)) })
            }
            Val::Tensor(t) => Val::Tensor(t.clone()),
            Val::Kv([k, v], dims) => Val::Kv([change(k), change(v)], *dims),
            Val::Rows(v, shape) => Val::Rows(change(v), shape.clone()),
        };
        let mut near = self.clone();
        let mut params: Vec<(&String, &mut Tensor)> = near.params.iter_mut().collect();
        params.sort_by_key(|(name, _)| name.as_str());
        for (_, t) in params {
            if let Val::Tensor(new) = any(&Val::Tensor(t.clone())) {
                *t = new;
            }
        }
        let mut states: Vec<(&String, &mut Val)> = near.states.iter_mut().collect();
        states.sort_by_key(|(name, _)| name.as_str());
        near.args.iter_mut().chain(states.into_iter().map(|(_, v)| v)).for_each(|v| *v = any(v));
        near
    }
}

/// What a run left.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Tensors among the results, in order.
    pub results: Vec<Tensor>,
    /// Keys, then values, of each state, by name.
    pub states: Vec<(String, Vec<f32>)>,
}

/// Sizes that symbols take, where bounds and divisors allow.
const SIZES: [i64; 8] = [1, 2, 3, 5, 8, 13, 16, 21];

/// Random inputs of the entry function. Tensors that choose rows, slots, pages or positions stay within them.
pub fn inputs(m: &Module, r: &mut Random, numbers: Numbers) -> Inputs {
    let sizes: Vec<i64> = m
        .syms
        .0
        .iter()
        .map(|d| {
            let by = d.multiple.max(1);
            let fits: Vec<i64> = SIZES.iter().map(|s| s * by).filter(|s| (d.lo..=d.hi).contains(s)).collect();
            if fits.is_empty() { (d.lo + by - 1) / by * by } else { r.pick(&fits) }
        })
        .collect();
    let mut g = Values { r, sizes: &sizes, numbers };
    let params = m.params.iter().filter_map(|p| match g.value(&p.ty, None) {
        Val::Tensor(t) => Some((p.name.clone(), t)),
        Val::Kv(..) | Val::Rows(..) => None,
    });
    let params = params.collect();
    let states = m.states.iter().map(|s| (s.name.clone(), g.value(&s.ty, None))).collect();
    let args = match m.entry() {
        None => vec![],
        Some(f) => {
            let limits = limits(m, f, &sizes);
            f.args.iter().map(|(_, v)| g.value(f.ty(*v), limits[v.0 as usize])).collect()
        }
    };
    Inputs { sizes, args, states, params }
}

/// Interprets the entry function.
///
/// # Errors
/// What the interpreter refuses.
pub fn run(m: &Module, i: &Inputs) -> Result<Outcome, InterpError> {
    let entry = m.entry().ok_or_else(|| InterpError("no function".into()))?;
    let mut states = i.states.clone();
    let values = run_function(m, entry, &m.syms, &i.sizes, i.args.clone(), &mut states, &i.params)?;
    let tensor = |v| if let Val::Tensor(t) = v { Some(t) } else { None };
    let mut left: Vec<(String, Vec<f32>)> = states
        .into_iter()
        .filter_map(|(name, v)| match v {
            Val::Kv([k, v], _) => Some((name, k.iter().chain(v.iter()).copied().collect())),
            Val::Rows(v, _) => Some((name, v.to_vec())),
            Val::Tensor(_) => None,
        })
        .collect();
    left.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(Outcome { results: values.into_iter().filter_map(tensor).collect(), states: left })
}

/// What a value's integers must stay below, and whether they must differ from each other.
#[derive(Clone, Copy, Debug)]
struct Limit {
    below: i64,
    distinct: bool,
}

/// The limits that readers of each value set, through moves and calls.
fn limits(m: &Module, f: &Function, sizes: &[i64]) -> Vec<Option<Limit>> {
    let mut all: Vec<Option<Limit>> = vec![None; f.values.len()];
    let eval = |d: &crate::Dim| d.eval(|s| sizes[s.0 as usize]);
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
                        l.below - s.get(attrs[0].as_int() as usize).map_or(1, eval) + 1
                    }
                    (Op::Mul, Some(Op::Const), _) => {
                        let by = (attrs[0].as_f32() as i64).max(1);
                        (l.below + by - 1) / by
                    }
                    _ => continue,
                };
                set(&mut all, x[0], below, l.distinct);
            }
            Op::KvAppend => set(&mut all, x[3], slots(x[0]), true),
            Op::ExpertLinear => set(&mut all, x[2], inst.attrs[0].as_int(), false),
            Op::Attend | Op::AttendSloped => {
                let page = inst.attrs[3].as_int().max(1);
                set(&mut all, x[2], extent(x[4], 1) * page, false);
                set(&mut all, x[3], extent(x[4], 0), false);
                set(&mut all, x[4], slots(x[1]) / page, false);
            }
            Op::Reshape | Op::Permute | Op::Broadcast | Op::Slice | Op::Concat => {
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

struct Values<'a> {
    r: &'a mut Random,
    sizes: &'a [i64],
    numbers: Numbers,
}

impl Values<'_> {
    fn value(&mut self, ty: &Ty, limit: Option<Limit>) -> Val {
        let eval = |d: &crate::Dim| d.eval(|s| self.sizes[s.0 as usize]).max(0) as usize;
        match ty {
            Ty::Rows(r) => {
                let shape: Vec<usize> = r.extents().iter().map(eval).collect();
                let n = shape.iter().product();
                Val::Rows(Arc::new(self.floats(n)), shape)
            }
            Ty::Kv(k) => {
                let dims = [eval(&k.slots), k.heads, k.dim];
                let n = dims.iter().product();
                Val::Kv([Arc::new(self.floats(n)), Arc::new(self.floats(n))], dims)
            }
            Ty::Tensor(t) => {
                let shape: Vec<usize> = t.shape.iter().map(eval).collect();
                let n = shape.iter().product();
                Val::Tensor(Tensor { shape, data: self.data(t.elem, n, limit) })
            }
        }
    }

    fn data(&mut self, elem: Elem, n: usize, limit: Option<Limit>) -> Data {
        let halves = |v: Vec<f32>, f: fn(f32) -> u16| v.iter().flat_map(|x| f(*x).to_le_bytes()).collect::<Vec<u8>>();
        match elem {
            Elem::Scalar(DType::F32) => Data::F32(self.floats(n).into()),
            Elem::Scalar(DType::F16) => {
                Data::Bytes(elem, halves(self.floats(n), |x| half::f16::from_f32(x).to_bits()).into())
            }
            Elem::Scalar(DType::BF16) => {
                Data::Bytes(elem, halves(self.floats(n), |x| half::bf16::from_f32(x).to_bits()).into())
            }
            Elem::Scalar(d) => Data::Int(d, self.ints(d, n, limit).into()),
            Elem::Gguf(t) => {
                let blocks = n / t.block_len();
                Data::Bytes(elem, (0..blocks).flat_map(|_| self.block(t)).collect::<Vec<u8>>().into())
            }
            // Given by their numbers: layout has no meaning for the interpreter.
            other => Data::Exact(other, self.floats(n).into()),
        }
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        let scale = match self.numbers {
            Numbers::Normal => 1.0,
            _ => f32::from_bits((127 - 8 + self.r.below(17) as u32) << 23),
        };
        (0..n)
            .map(|_| match (self.numbers, self.r.below(32)) {
                (Numbers::Normal, _) => self.r.normal(),
                (_, 0 | 1) => 0.0,
                (_, 2) => -0.0,
                (_, 3) => f32::from_bits(1 + self.r.below(0x7f_fffe) as u32) * self.r.pick(&[1.0, -1.0]),
                (Numbers::All, 4) => self.r.pick(&[f32::MAX, f32::MIN, 1e30, -1e30, f32::MIN_POSITIVE]),
                (Numbers::All, 5) => self.r.pick(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN]),
                (Numbers::All, 6) => self.r.pick(&[1.0, -1.0, 2.0, 0.5]),
                _ => self.r.normal() * scale,
            })
            .collect()
    }

    fn ints(&mut self, d: DType, n: usize, limit: Option<Limit>) -> Vec<i64> {
        if let Some(Limit { below, distinct }) = limit {
            let below = below.max(1) as usize;
            let mut all: Vec<i64> = (0..n).map(|_| self.r.below(below) as i64).collect();
            if distinct && n <= below {
                // The first of a shuffled range.
                let mut pool: Vec<i64> = (0..below as i64).collect();
                for i in 0..n {
                    let j = i + self.r.below(below - i);
                    pool.swap(i, j);
                }
                all.copy_from_slice(&pool[..n]);
            }
            return all;
        }
        let bits = 8 * d.size() as u32;
        let all = self.numbers == Numbers::All;
        let unsigned = matches!(d, DType::U8 | DType::U32);
        (0..n)
            .map(|_| match d {
                DType::Bool => self.r.below(2) as i64,
                _ if all && self.r.chance(30) => {
                    let v = self.r.bits() as i64;
                    if unsigned { ((v as u64) >> (64 - bits)) as i64 } else { v >> (64 - bits) }
                }
                _ if unsigned => self.r.below(100) as i64,
                _ => self.r.below(200) as i64 - 100,
            })
            .collect()
    }

    /// Random bytes with scales of a sensible size.
    fn block(&mut self, t: GgufType) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..t.block_bytes()).map(|_| self.r.bits() as u8).collect();
        let scales: &[(usize, f32)] = match t {
            GgufType::Q4_0 | GgufType::Q5_0 | GgufType::Q8_0 => &[(0, 0.1)],
            GgufType::Q4_1 | GgufType::Q5_1 => &[(0, 0.1), (2, 0.5)],
            GgufType::Q4K | GgufType::Q5K => &[(0, 0.01), (2, 0.01)],
            GgufType::Q6K => &[(208, 0.001)],
        };
        for (at, size) in scales {
            let v = half::f16::from_f32(self.r.normal() * size);
            bytes[*at..at + 2].copy_from_slice(&v.to_le_bytes());
        }
        bytes
    }
}

fn pairs(a: &Outcome, b: &Outcome) -> Option<Vec<(Vec<f32>, Vec<f32>)>> {
    let floats = |t: &Tensor| t.to_f32().ok().map(|v| v.to_vec());
    let ints = |t: &Tensor| if let Data::Int(d, v) = &t.data { Some((*d, v.clone())) } else { None };
    if a.results.len() != b.results.len() || a.states.len() != b.states.len() {
        return None;
    }
    let mut out = vec![];
    for (x, y) in a.results.iter().zip(&b.results) {
        if x.shape != y.shape || ints(x) != ints(y) {
            return None;
        }
        out.push((floats(x)?, floats(y)?));
    }
    for ((name, x), (other, y)) in a.states.iter().zip(&b.states) {
        if name != other || x.len() != y.len() {
            return None;
        }
        out.push((x.clone(), y.clone()));
    }
    Some(out)
}

/// A number that differs in its bits, as a message; none if all are the same. Every NaN equals every other.
pub fn bits_differ(a: &Outcome, b: &Outcome) -> Option<String> {
    let Some(pairs) = pairs(a, b) else { return Some("shapes, integers or the number of results differ".into()) };
    for (i, (x, y)) in pairs.iter().enumerate() {
        let differs = |(_, (p, q)): &(usize, (&f32, &f32))| p.to_bits() != q.to_bits() && !(p.is_nan() && q.is_nan());
        if let Some((at, (p, q))) = x.iter().zip(y).enumerate().find(differs) {
            return Some(format!("value {i}, element {at}: {p:e} and {q:e}"));
        }
    }
    None
}

/// Largest distance of two numbers over the root mean square of the tensor they are in. Infinite if shapes or integers
/// differ, or where one number is not finite and the other is another one.
pub fn gap(a: &Outcome, b: &Outcome) -> f32 {
    let Some(pairs) = pairs(a, b) else { return f32::INFINITY };
    let mut worst = 0f32;
    for (x, y) in &pairs {
        let finite: Vec<f64> = x.iter().filter(|v| v.is_finite()).map(|v| f64::from(*v)).collect();
        let rms = (finite.iter().map(|v| v * v).sum::<f64>() / finite.len().max(1) as f64).sqrt().max(1e-30);
        for (p, q) in x.iter().zip(y) {
            if p.to_bits() != q.to_bits() && !(p.is_nan() && q.is_nan()) {
                let d = ((f64::from(*p) - f64::from(*q)).abs() / rms) as f32;
                worst = if d.is_nan() { f32::INFINITY } else { worst.max(d) };
            }
        }
    }
    worst
}

/// Root mean square of all distances over that of all numbers. Infinite where [`gap`] is.
pub fn mean_gap(a: &Outcome, b: &Outcome) -> f32 {
    let Some(all) = pairs(a, b).filter(|_| gap(a, b).is_finite()) else { return f32::INFINITY };
    let (mut apart, mut size) = (0f64, 0f64);
    for (p, q) in all.iter().flat_map(|(x, y)| x.iter().zip(y)).filter(|(p, _)| p.is_finite()) {
        apart += (f64::from(*p) - f64::from(*q)).powi(2);
        size += f64::from(*p).powi(2);
    }
    (apart / size.max(1e-60)).sqrt() as f32
}

/// What relative changes of 2^-20 of all floats among the inputs do to the results, as [`gap`]. Where a computation cancels, this is
/// large, and no machine can do better.
pub fn sensitivity(m: &Module, i: &Inputs, want: &Outcome, seed: u64) -> f32 {
    let trial = |n: u64| {
        let near = i.perturbed(&mut Random(seed ^ (n << 32)), 2f32.powi(-20));
        run(m, &near).map_or(f32::INFINITY, |o| gap(want, &o))
    };
    // The least of three: one of them may have jumped where the function is not continuous.
    (1..4).map(trial).fold(f32::INFINITY, f32::min)
}

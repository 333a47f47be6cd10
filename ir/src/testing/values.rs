//! Random inputs of a module, its interpretation, and how far two results are apart.

use std::collections::HashMap;
use std::sync::Arc;

use crate::graph::interp::{Data, InterpError, Tensor, Val, run_function};
use crate::graph::{Module, Ty};
use crate::random::{Limit, Numbers, Random, floats, limits, tensor};
use crate::scalars::held;

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
    inputs_of(m, &sizes, r, numbers)
}

/// As [`inputs`], at these sizes. Parameters, and states whose sizes are constant, do not depend on them.
pub fn inputs_of(m: &Module, sizes: &[i64], r: &mut Random, numbers: Numbers) -> Inputs {
    let mut value = |ty: &Ty, limit: Option<Limit>| random_value(r, ty, sizes, limit, numbers);
    let params = m.params.iter().filter_map(|p| match value(&p.ty, None) {
        Val::Tensor(t) => Some((p.name.clone(), t)),
        Val::Kv(..) | Val::Rows(..) => None,
    });
    let params = params.collect();
    let states = m.states.iter().map(|s| (s.name.clone(), value(&s.ty, None))).collect();
    let args = match m.entry() {
        None => vec![],
        Some(f) => {
            let limits = limits(m, f, sizes);
            f.args.iter().map(|(_, v)| value(f.ty(*v), limits[v.0 as usize])).collect()
        }
    };
    Inputs { sizes: sizes.to_vec(), args, states, params }
}

fn random_value(r: &mut Random, ty: &Ty, sizes: &[i64], limit: Option<Limit>, numbers: Numbers) -> Val {
    let eval = |d: &crate::Dim| d.eval(|s| sizes[s.0 as usize]).max(0) as usize;
    match ty {
        Ty::Rows(rows) => {
            let shape: Vec<usize> = rows.extents().iter().map(eval).collect();
            Val::Rows(Arc::new(floats(r, shape.iter().product(), numbers)), shape)
        }
        Ty::Kv(k) => {
            let dims = [eval(&k.slots), k.heads, k.dim];
            let n = dims.iter().product();
            let mut plane = || Arc::new(held(k.dtype, &floats(r, n, numbers)));
            Val::Kv([plane(), plane()], dims)
        }
        Ty::Tensor(t) => Val::Tensor(tensor(r, t.elem, t.shape.iter().map(eval).collect(), limit, numbers)),
    }
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
    // The middle of five: some may have jumped where the function is not continuous, in others changes may cancel.
    let mut all: Vec<f32> = (1..6).map(trial).collect();
    all.sort_by(f32::total_cmp);
    all[2]
}

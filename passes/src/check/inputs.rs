//! Inputs for interpretation: random, or given, at sizes that are fixed once; and running either level on them.

use std::collections::{BTreeMap, HashMap};

use marquetry_ir::graph::interp::{Data, Tensor, Val, run_function};
use marquetry_ir::graph::{Module, Ty};
use marquetry_ir::pack::{pack_weight, packed_len};
use marquetry_ir::program::interp::{Memory, bytes_at, run as run_program};
use marquetry_ir::program::{Place, Program, Weight};
use marquetry_ir::random::{self, Limit, Numbers, Random};
use marquetry_ir::scalars::{decode, encode, held};
use marquetry_ir::{DType, Dim, Elem, Syms};

use super::Outcome;
use crate::manager::Ir;

/// Integers that are parameters.
const PARAMETER: Limit = Limit { below: 4, distinct: false };

/// Most elements of one value.
const MAX_ELEMENTS: u64 = 1 << 28;

/// A plane of a state: `NAME_k` or `NAME_v` of a cache.
#[derive(Clone, Debug)]
struct Plane {
    dtype: DType,
    shape: Vec<usize>,
    data: Vec<f32>,
}

/// Sizes, arguments, parameters and states.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    seed: u64,
    sizes: Vec<(String, i64)>,
    args: BTreeMap<String, Tensor>,
    params: HashMap<String, Tensor>,
    states: BTreeMap<String, Plane>,
}

/// Small values for symbols, within their bounds and divisors.
pub fn pick(syms: &Syms, seed: u64) -> Vec<(String, i64)> {
    let choose = |d: &marquetry_ir::SymDecl| {
        let step = d.multiple.max(1);
        let lo = d.lo.max(0);
        let first = lo.saturating_add((step - lo % step) % step);
        let room = (d.hi - first).max(0) / step;
        let extra = (Random::named(seed, &d.name).below(5) as i64).min(room);
        (d.name.clone(), first + extra * step)
    };
    syms.0.iter().map(choose).collect()
}

impl Inputs {
    /// Random inputs for the entry of a module or for a program.
    ///
    /// # Errors
    /// Values that are too large to interpret.
    pub fn new(ir: &Ir, sizes: &[(String, i64)], seed: u64) -> Result<Inputs, String> {
        let mut made = Inputs { seed, sizes: sizes.to_vec(), ..Inputs::default() };
        match ir {
            Ir::Graph(m) => made.of_module(m)?,
            Ir::Program(p) => made.of_program(p)?,
        }
        Ok(made)
    }

    /// The sizes.
    pub fn sizes(&self) -> &[(String, i64)] {
        &self.sizes
    }

    /// Replaces the arguments, parameters and planes of states that are called so. Tells how many.
    ///
    /// # Errors
    /// A tensor of another shape or type than is expected, or whose name nothing has.
    pub fn replace(&mut self, name: &str, t: Tensor) -> Result<(), String> {
        let old = self.args.get(name).or_else(|| self.params.get(name));
        let refuse = |have: String| Err(format!("`{name}` is {}, expected {have}", described(&t)));
        if let Some(plane) = self.states.get(name) {
            if t.shape != plane.shape {
                return refuse(format!("{}{:?}", plane.dtype, plane.shape));
            }
            let data = t.to_f32().map_err(|e| e.to_string())?.to_vec();
            self.states.insert(name.into(), Plane { data, ..plane.clone() });
            return Ok(());
        }
        match old {
            None => Err(format!("nothing is called `{name}`; there are {}", self.names().join(", "))),
            Some(old) if described(old) != described(&t) => refuse(described(old)),
            Some(_) => {
                let map = self.args.get_mut(name).or_else(|| self.params.get_mut(name));
                map.into_iter().for_each(|slot| *slot = t.clone());
                Ok(())
            }
        }
    }

    /// States of zeros.
    pub fn clear_states(&mut self) {
        self.states.values_mut().for_each(|p| p.data.fill(0.0));
    }

    /// Names of the arguments and parameters.
    pub fn required(&self) -> Vec<String> {
        self.args.keys().chain(self.params.keys()).cloned().collect()
    }

    /// Names of everything that can be replaced.
    pub fn names(&self) -> Vec<String> {
        let mut all: Vec<String> =
            self.args.keys().chain(self.params.keys()).chain(self.states.keys()).cloned().collect();
        all.sort();
        all
    }

    fn values(&self, syms: &Syms) -> Result<Vec<i64>, String> {
        let value = |name: &str| self.sizes.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
        syms.0.iter().map(|d| value(&d.name).ok_or_else(|| format!("size `{}` has no value", d.name))).collect()
    }

    fn of_module(&mut self, m: &Module) -> Result<(), String> {
        let sizes = self.values(&m.syms)?;
        bounded(m, &sizes)?;
        let seed = self.seed;
        let eval = |d: &Dim| d.eval(|s| sizes[s.0 as usize]).max(0) as usize;
        for d in &m.params {
            if let Ty::Tensor(t) = &d.ty {
                let shape = t.shape.iter().map(eval).collect();
                let random = Random::named(seed, &d.name);
                self.params.insert(d.name.clone(), tensor(t.elem, shape, Some(PARAMETER), random)?);
            }
        }
        for d in &m.states {
            let k = match &d.ty {
                Ty::Kv(k) => k,
                Ty::Rows(r) => {
                    let shape = r.extents().iter().map(eval).collect();
                    self.states.insert(d.name.clone(), plane(r.dtype, shape, Random::named(seed, &d.name)));
                    continue;
                }
                Ty::Tensor(_) => return Err(format!("state `{}` is a tensor", d.name)),
            };
            for suffix in ["_k", "_v"] {
                let name = format!("{}{suffix}", d.name);
                let plane = plane(k.dtype, vec![eval(&k.slots), k.heads, k.dim], Random::named(seed, &name));
                self.states.insert(name, plane);
            }
        }
        let entry = m.entry().ok_or("the module has no function")?;
        let limits = random::limits(m, entry, &sizes);
        for (name, v) in &entry.args {
            let limit = limits[v.0 as usize];
            let Ty::Tensor(t) = entry.ty(*v) else { return Err(format!("argument `{name}` is a state")) };
            let shape = t.shape.iter().map(eval).collect();
            self.args.insert(name.clone(), tensor(t.elem, shape, limit, Random::named(seed, name))?);
        }
        Ok(())
    }

    fn of_program(&mut self, p: &Program) -> Result<(), String> {
        let sizes = self.values(&p.syms)?;
        let seed = self.seed;
        let eval = |shape: &[Dim]| shape.iter().map(|d| d.eval(|s| sizes[s.0 as usize]).max(0) as usize).collect();
        for b in &p.buffers {
            bytes_at(b.dtype, &b.shape, &sizes).map_err(|e| e.to_string())?;
            if let Place::Input(name) = &b.place {
                // What indices may reach is not declared at this level; 0 is always there.
                let limit = Some(Limit { below: 1, distinct: false });
                let made = tensor(Elem::Scalar(b.dtype), eval(&b.shape), limit, Random::named(seed, name))?;
                self.args.insert(name.clone(), made);
            }
        }
        for s in &p.states {
            bytes_at(s.dtype, &s.shape, &sizes).map_err(|e| e.to_string())?;
            self.states.insert(s.name.clone(), plane(s.dtype, eval(&s.shape), Random::named(seed, &s.name)));
        }
        for w in &p.weights {
            packed_len(w).map_err(|e| e.to_string())?;
            if let [one] = w.sources.as_slice() {
                let made = tensor(w.from, w.shape.clone(), Some(PARAMETER), Random::named(seed, one))?;
                self.params.insert(one.clone(), made);
            }
        }
        Ok(())
    }

    /// Interprets either level on these inputs: results, then the states that are left.
    ///
    /// # Errors
    /// What the interpreter meets.
    pub fn run(&self, ir: &Ir) -> Result<Outcome, String> {
        let mut out = match ir {
            Ir::Graph(m) => self.run_module(m)?,
            Ir::Program(p) => self.run_program(p)?,
        };
        out.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(out)
    }

    fn run_module(&self, m: &Module) -> Result<Outcome, String> {
        let sizes = self.values(&m.syms)?;
        bounded(m, &sizes)?;
        let entry = m.entry().ok_or("the module has no function")?;
        let arg = |name: &String| self.args.get(name).cloned().ok_or_else(|| format!("argument `{name}` is not given"));
        let args = entry.args.iter().map(|(n, _)| arg(n).map(Val::Tensor)).collect::<Result<Vec<_>, _>>()?;
        let mut states = HashMap::new();
        for d in &m.states {
            if let Some(whole) = self.states.get(&d.name) {
                states.insert(d.name.clone(), Val::Rows(whole.data.clone().into(), whole.shape.clone()));
                continue;
            }
            let get = |suffix: &str| self.states.get(&format!("{}{suffix}", d.name));
            let (Some(k), Some(v)) = (get("_k"), get("_v")) else {
                return Err(format!("state `{}` is not given", d.name));
            };
            let [a, b, c] = k.shape[..] else { return Err(format!("state `{}` has {} axes", d.name, k.shape.len())) };
            let Ty::Kv(ty) = &d.ty else { return Err(format!("state `{}` is no cache", d.name)) };
            let plane = |p: &Plane| held(ty.dtype, &p.data).into();
            states.insert(d.name.clone(), Val::Kv([plane(k), plane(v)], [a, b, c]));
        }
        let results =
            run_function(m, entry, &m.syms, &sizes, args, &mut states, &self.params).map_err(|e| e.to_string())?;
        let mut out = vec![];
        for ((name, _), v) in entry.results.iter().zip(&results) {
            if let Val::Tensor(t) = v {
                out.push((name.clone(), t.to_f32().map_err(|e| e.to_string())?.to_vec()));
            }
        }
        for (name, v) in states {
            match v {
                Val::Kv([k, v], _) => {
                    out.push((format!("{name}_k"), k.to_vec()));
                    out.push((format!("{name}_v"), v.to_vec()));
                }
                Val::Rows(v, _) => out.push((name, v.to_vec())),
                Val::Tensor(_) => {}
            }
        }
        Ok(out)
    }

    /// The memory that a program starts with.
    ///
    /// # Errors
    /// Something that the program needs and these inputs lack.
    pub fn memory(&self, p: &Program) -> Result<Memory, String> {
        let mut memory = Memory::default();
        for b in &p.buffers {
            if let Place::Input(name) = &b.place {
                let t = self.args.get(name).ok_or_else(|| format!("argument `{name}` is not given"))?;
                memory.inputs.insert(name.clone(), bytes(t)?);
            }
        }
        for s in &p.states {
            let plane = self.states.get(&s.name).ok_or_else(|| format!("state `{}` is not given", s.name))?;
            memory.states.push(encode(s.dtype, &plane.data));
        }
        memory.weights = p.weights.iter().map(|w| self.weight(w)).collect::<Result<_, _>>()?;
        Ok(memory)
    }

    fn weight(&self, w: &Weight) -> Result<Vec<u8>, String> {
        let wrong = |e: marquetry_ir::pack::PackError| format!("weight {}: {e}", w.sources.join(" + "));
        let mut out = vec![0; packed_len(w).map_err(wrong)?];
        let given: Option<Vec<&Tensor>> = w.sources.iter().map(|s| self.params.get(s)).collect();
        let parts = match given {
            Some(all) => {
                all.into_iter().map(|t| Ok((bytes(t)?, rows(&t.shape)))).collect::<Result<Vec<_>, String>>()?
            }
            None => {
                let random = Random::named(self.seed, &w.sources.join("+"));
                let t = tensor(w.from, w.shape.clone(), Some(PARAMETER), random)?;
                let all = bytes(&t)?;
                // Which rows are whose is not declared: equal shares, and what is left over for the last.
                let (n, count) = (rows(&w.shape), w.sources.len());
                let share = |i: usize| if i + 1 == count { n - n / count * i } else { n / count };
                let row = all.len() / n.max(1);
                let from = |i: usize| n / count * i * row;
                (0..count).map(|i| (all[from(i)..from(i) + share(i) * row].to_vec(), share(i))).collect()
            }
        };
        let parts: Vec<(&[u8], usize)> = parts.iter().map(|(b, n)| (b.as_slice(), *n)).collect();
        pack_weight(w, &parts, &mut out).map_err(wrong)?;
        Ok(out)
    }

    fn run_program(&self, p: &Program) -> Result<Outcome, String> {
        let mut memory = self.memory(p)?;
        run_program(p, &self.values(&p.syms)?, &mut memory).map_err(|e| e.to_string())?;
        Ok(self.outcome(p, &memory))
    }

    /// The results and states of a memory that a program has run over.
    pub fn outcome(&self, p: &Program, memory: &Memory) -> Outcome {
        let mut out = vec![];
        for (name, data) in &memory.outputs {
            let b = p.buffers.iter().find(|b| b.place == Place::Output(name.clone()));
            out.extend(b.map(|b| (name.clone(), decode(b.dtype, data))));
        }
        for (name, plane) in &self.states {
            let left = p.states.iter().zip(&memory.states).find(|(s, _)| s.name == *name);
            out.push((name.clone(), left.map_or(plane.data.clone(), |(s, data)| decode(s.dtype, data))));
        }
        out.sort_by(|a, b| a.0.cmp(&b.0));
        out
    }

    /// Values of a program's symbols, in order.
    ///
    /// # Errors
    /// A symbol that has none.
    pub fn sizes_of(&self, p: &Program) -> Result<Vec<i64>, String> {
        self.values(&p.syms)
    }
}

fn rows(shape: &[usize]) -> usize {
    if shape.len() < 2 { 1 } else { shape[0] }
}

fn described(t: &Tensor) -> String {
    let elem = match &t.data {
        Data::F32(_) => Elem::Scalar(DType::F32),
        Data::Int(d, _) => Elem::Scalar(*d),
        Data::Bytes(e, _) | Data::Exact(e, _) => *e,
    };
    format!("{elem}{:?}", t.shape)
}

/// Refuses values that are too large to interpret.
fn bounded(m: &Module, sizes: &[i64]) -> Result<(), String> {
    let count = |shape: &[Dim]| {
        let extent = |d: &Dim| u64::try_from(d.eval(|s| sizes[s.0 as usize])).ok();
        shape.iter().try_fold(1u64, |n, d| n.checked_mul(extent(d)?.max(1))).filter(|n| *n <= MAX_ELEMENTS)
    };
    let fits = |ty: &Ty| match ty {
        Ty::Tensor(t) => count(&t.shape).is_some(),
        Ty::Rows(r) => count(&r.extents()).is_some(),
        Ty::Kv(k) => count(&[k.slots.clone(), k.heads.into(), k.dim.into()]).is_some(),
    };
    let decls = m.params.iter().chain(&m.states).map(|d| (d.name.as_str(), &d.ty));
    let values = m.functions.iter().flat_map(|f| f.values.iter().map(|v| (f.name.as_str(), &v.ty)));
    match decls.chain(values).find(|(_, ty)| !fits(ty)) {
        Some((name, _)) => {
            Err(format!("a value of `{name}` has more than {MAX_ELEMENTS} elements, or a negative extent"))
        }
        None => Ok(()),
    }
}

/// As [`random::tensor`], refusing what is too large and what has no bytes.
fn tensor(elem: Elem, shape: Vec<usize>, limit: Option<Limit>, mut r: Random) -> Result<Tensor, String> {
    let count = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64)).filter(|n| *n <= MAX_ELEMENTS);
    count.ok_or_else(|| format!("{elem}{shape:?} is too large"))?;
    match elem {
        Elem::Scalar(_) => {}
        Elem::Gguf(t) => {
            let row = shape.last().copied().unwrap_or(0);
            if !row.is_multiple_of(t.block_len()) {
                return Err(format!("rows of {row} are not whole blocks of {elem}"));
            }
        }
        other => return Err(format!("values of {other} can not be given")),
    }
    Ok(random::tensor(&mut r, elem, shape, limit, Numbers::Normal))
}

fn plane(dtype: DType, shape: Vec<usize>, mut r: Random) -> Plane {
    let count = shape.iter().product();
    let values = random::floats(&mut r, count, Numbers::Normal);
    Plane { dtype, shape, data: held(dtype, &values) }
}

/// Row-major bytes of a tensor.
fn bytes(t: &Tensor) -> Result<Vec<u8>, String> {
    match &t.data {
        Data::F32(v) => Ok(encode(DType::F32, v)),
        Data::Int(d, v) => Ok(v.iter().flat_map(|x| x.to_le_bytes()[..d.size()].to_vec()).collect()),
        Data::Bytes(_, b) => Ok(b.to_vec()),
        Data::Exact(e, _) => Err(format!("{e} has no bytes of its own")),
    }
}

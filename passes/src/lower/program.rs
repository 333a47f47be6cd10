//! The entry function as a program: values bound to buffers, calls to launches, weight expressions to packing instructions.

use std::collections::{HashMap, HashSet};

use marquetry_ir::graph::{Attr, Builder, Function, Inst, Kind, Module, Op, Ty, Value};
use marquetry_ir::program::{Buffer, BufferId, KernelId, Launch, Place, Program, State, Weight};
use marquetry_ir::{DType, Dim, Elem, plane_offsets};

use super::kernel::{self, Lowering, Origin};
use super::read::Lowered;
use crate::params::Params;

/// Lowers the entry function of a fused module. With `micro`, kernels are made of micro-kernels where that is possible; `params` are
/// sizes of tiles.
///
/// # Errors
/// What no lowering covers, with the function it is in.
pub fn lower(m: &Module, micro: bool, params: &Params) -> Result<Program, String> {
    let entry = m.entry().ok_or("the module has no function")?;
    let mut w = Walk {
        m,
        micro,
        params: *params,
        p: empty(m, entry),
        kernels: HashMap::new(),
        weights: HashMap::new(),
        views: HashMap::new(),
        next: 0,
    };
    let mut args = vec![];
    for (name, v) in &entry.args {
        args.push(Bound::Planes(vec![w.input(name, entry.ty(*v))?]));
    }
    let results = w.function(entry, args)?;
    let (mut taken, mut outputs) = (HashSet::new(), vec![]);
    for ((name, v), bound) in entry.results.iter().zip(results) {
        if entry.ty(*v).is_state() {
            continue;
        }
        let at = match w.roots(&bound).as_slice() {
            [Root { place: Place::Arena(at), .. }] if taken.insert(*at) => *at,
            // An input, or another result as well.
            _ => w.copy(name, entry.ty(*v), bound)?,
        };
        outputs.push((at, name));
    }
    for (at, name) in outputs {
        for b in w.p.buffers.iter_mut().filter(|b| b.place == Place::Arena(at)) {
            b.place = Place::Output(name.clone());
        }
    }
    w.p.arena_bytes = w.next;
    Ok(w.p)
}

fn empty(m: &Module, entry: &Function) -> Program {
    Program {
        name: entry.name.clone(),
        syms: m.syms.clone(),
        weights: vec![],
        constants: vec![],
        states: vec![],
        buffers: vec![],
        kernels: vec![],
        launches: vec![],
        arena_bytes: 0,
        own_bytes: 0,
    }
}

/// Most bytes of one buffer, at the largest admissible sizes.
const MAX_BUFFER: u64 = 1 << 44;

/// Storage of one plane.
#[derive(Clone, Debug, PartialEq)]
struct Root {
    name: String,
    place: Place,
}

/// What a graph value is bound to.
#[derive(Clone, Debug)]
enum Bound {
    /// Storage, one per plane.
    Planes(Vec<Root>),
    /// A weight expression.
    Weight(Weight),
}

struct Walk<'a> {
    m: &'a Module,
    micro: bool,
    params: Params,
    p: Program,
    kernels: HashMap<String, (KernelId, Vec<Origin>)>,
    weights: HashMap<Weight, u32>,
    views: HashMap<(String, DType, Vec<Dim>), BufferId>,
    next: u64,
}

impl Walk<'_> {
    fn input(&mut self, name: &str, ty: &Ty) -> Lowered<Root> {
        match ty.as_tensor().map(|t| t.elem) {
            Some(Elem::Scalar(_)) => Ok(Root { name: name.into(), place: Place::Input(name.into()) }),
            _ => Err(format!("input `{name}` is no tensor of scalars")),
        }
    }

    fn function(&mut self, f: &Function, args: Vec<Bound>) -> Lowered<Vec<Bound>> {
        let mut env: HashMap<Value, Bound> = f.args.iter().map(|(_, v)| *v).zip(args).collect();
        for inst in &f.insts {
            let results = self.inst(f, inst, &env).map_err(|e| format!("@{}: `{}`: {e}", f.name, inst.op.name()))?;
            env.extend(inst.results.iter().copied().zip(results));
        }
        f.results.iter().map(|(n, v)| env.get(v).cloned().ok_or_else(|| format!("`{n}` is not bound"))).collect()
    }

    fn inst(&mut self, f: &Function, inst: &Inst, env: &HashMap<Value, Bound>) -> Lowered<Vec<Bound>> {
        let name = inst.attrs.first().map_or("", Attr::as_str);
        let operands: Vec<Bound> = inst.operands.iter().filter_map(|v| env.get(v).cloned()).collect();
        if operands.len() != inst.operands.len() {
            return Err("an operand is not bound".into());
        }
        let ty = f.ty(inst.results[0]);
        match inst.op {
            Op::Param => Ok(vec![Bound::Weight(raw_weight(name, ty)?)]),
            Op::State => Ok(vec![self.state(name, ty)?]),
            Op::Pack | Op::ConcatRows | Op::Dequant => Ok(vec![Bound::Weight(weight(inst, &operands, ty)?)]),
            Op::Call => {
                let callee = self.m.function(name).ok_or_else(|| format!("no function @{name}"))?;
                match callee.kind {
                    Kind::Graph => self.function(callee, operands),
                    Kind::Fused | Kind::Kernel => self.launch(callee, &operands),
                }
            }
            _ => Err("was left outside of every kernel".into()),
        }
    }

    fn state(&mut self, name: &str, ty: &Ty) -> Lowered<Bound> {
        let mut roots = vec![];
        for (suffix, dtype, shape) in kernel::planes(ty, false, false)? {
            let name = format!("{name}{suffix}");
            let at = self.p.states.iter().position(|s| s.name == name).unwrap_or_else(|| {
                self.p.states.push(State { name: name.clone(), dtype, shape });
                self.p.states.len() - 1
            });
            roots.push(Root { name, place: Place::State(at as u32) });
        }
        Ok(Bound::Planes(roots))
    }

    /// A program buffer that views storage as a kernel argument does.
    fn view(&mut self, root: &Root, dtype: DType, shape: &[Dim]) -> BufferId {
        let key = (format!("{:?}", root.place), dtype, shape.to_vec());
        if let Some(id) = self.views.get(&key) {
            return *id;
        }
        let mut name = root.name.clone();
        let taken = |n: &str, p: &Program| p.buffers.iter().any(|b| b.name == n);
        if taken(&name, &self.p) {
            name = format!("{}.{}", root.name, self.p.buffers.len());
        }
        self.p.buffers.push(Buffer { name, dtype, shape: shape.to_vec(), place: root.place.clone() });
        let id = BufferId(self.p.buffers.len() as u32 - 1);
        self.views.insert(key, id);
        id
    }

    /// Storage of its own for one plane, in the arena.
    fn fresh(&mut self, name: &str, dtype: DType, shape: &[Dim]) -> Lowered<Root> {
        let count = shape.iter().fold(Dim::from(1), |a, d| a * d.clone());
        let bytes = (self.p.syms.range(&count).1.max(0) as u64).saturating_mul(dtype.size() as u64);
        if bytes > MAX_BUFFER {
            return Err(format!("a buffer of {bytes} bytes; narrow the bounds of the sizes"));
        }
        let at = self.next;
        self.next = (at + bytes.max(1)).next_multiple_of(64);
        Ok(Root { name: name.into(), place: Place::Arena(at) })
    }

    fn roots(&mut self, bound: &Bound) -> Vec<Root> {
        match bound {
            Bound::Planes(roots) => roots.clone(),
            Bound::Weight(w) => {
                let count = self.weights.len() as u32;
                let index = *self.weights.entry(w.clone()).or_insert(count);
                if index == count {
                    self.p.weights.push(w.clone());
                }
                let (n, k) = match w.shape.as_slice() {
                    [n, k] => (*n, *k),
                    other => (1, other.iter().product()),
                };
                let (offsets, _) = plane_offsets(w.elem, n, k);
                let root = |at: &usize| Root { name: format!("w{index}"), place: Place::Weight(index, *at as u64) };
                offsets.iter().map(root).collect()
            }
        }
    }

    fn launch(&mut self, f: &Function, operands: &[Bound]) -> Lowered<Vec<Bound>> {
        let (id, origins) = self.kernel(f)?;
        let inputs: Vec<Vec<Root>> = operands.iter().map(|b| self.roots(b)).collect();
        let mut results: Vec<Vec<Root>> = vec![];
        let mut states = f.args.iter().enumerate().filter(|(_, (_, a))| f.ty(*a).is_state()).map(|(i, _)| i);
        for (_, v) in &f.results {
            results.push(match f.ty(*v) {
                // An update in place: the result is the state that came in.
                ty if ty.is_state() => {
                    let arg = states.next().ok_or("a state from nowhere")?;
                    inputs[arg].clone()
                }
                ty => kernel::planes(ty, false, true)?
                    .into_iter()
                    .map(|(suffix, dtype, shape)| {
                        self.fresh(&format!("b{}{suffix}", self.p.launches.len()), dtype, &shape)
                    })
                    .collect::<Lowered<Vec<Root>>>()?,
            });
        }
        let mut args = vec![];
        for (i, origin) in origins.iter().enumerate() {
            let decl = self.p.kernels[id.0 as usize].buffers[i].clone();
            let root = match origin {
                Origin::Arg(a, p) => inputs[*a].get(*p).cloned(),
                Origin::Result(r, p) => results[*r].get(*p).cloned(),
                Origin::Table(bits) => Some(self.constant(bits)),
            };
            let root = root.ok_or("a plane is missing")?;
            args.push(self.view(&root, decl.dtype, &decl.shape));
        }
        self.p.launches.push(Launch { kernel: id, args, sync: true });
        Ok(results.into_iter().map(Bound::Planes).collect())
    }

    /// Storage of its own with the same elements.
    fn copy(&mut self, name: &str, ty: &Ty, bound: Bound) -> Lowered<u64> {
        let t = ty.as_tensor().ok_or_else(|| format!("result `{name}` is a state"))?;
        let mut b = Builder::new(&self.m.syms, Function::new(format!("{}.copy_{name}", self.p.name), Kind::Fused));
        let x = b.arg("x0", ty.clone());
        let y = b.reshape(x, t.shape.clone()).map_err(|e| format!("result `{name}`: {e}"))?;
        b.func.results.push(("y0".into(), y));
        match self.launch(&b.func, &[bound])?.as_slice() {
            [Bound::Planes(planes)] => match planes.as_slice() {
                [Root { place: Place::Arena(at), .. }] => Ok(*at),
                _ => Err(format!("result `{name}` has several planes")),
            },
            _ => Err(format!("result `{name}` is not computed")),
        }
    }

    fn constant(&mut self, bits: &[u32]) -> Root {
        let at = self.p.constants.iter().position(|c| c == bits).unwrap_or_else(|| {
            self.p.constants.push(bits.to_vec());
            self.p.constants.len() - 1
        });
        Root { name: format!("c{at}"), place: Place::Constant(at as u32) }
    }

    fn kernel(&mut self, f: &Function) -> Lowered<(KernelId, Vec<Origin>)> {
        if let Some(k) = self.kernels.get(&f.name) {
            return Ok(k.clone());
        }
        let Lowering { kernel, origins } =
            kernel::kernel(&self.m.syms, f, self.micro, &self.params).map_err(|e| format!("@{}: {e}", f.name))?;
        let same = self
            .p
            .kernels
            .iter()
            .position(|k| k.buffers == kernel.buffers && k.body == kernel.body && k.vars == kernel.vars);
        let at = same.unwrap_or_else(|| {
            self.p.kernels.push(kernel);
            self.p.kernels.len() - 1
        });
        let entry = (KernelId(at as u32), origins);
        self.kernels.insert(f.name.clone(), entry.clone());
        Ok(entry)
    }
}

fn constant_shape(ty: &Ty) -> Lowered<(Elem, Vec<usize>)> {
    let t = ty.as_tensor().ok_or("a parameter that is a state")?;
    let dims = t.shape.iter().map(|d| d.as_const().and_then(|d| usize::try_from(d).ok()));
    Ok((t.elem, dims.collect::<Option<Vec<_>>>().ok_or("a parameter of symbolic shape")?))
}

fn raw_weight(name: &str, ty: &Ty) -> Lowered<Weight> {
    let (elem, shape) = constant_shape(ty)?;
    Ok(Weight { sources: vec![name.into()], interleave: 0, from: elem, elem, shape })
}

fn weight(inst: &Inst, operands: &[Bound], ty: &Ty) -> Lowered<Weight> {
    let (elem, shape) = constant_shape(ty)?;
    let parts = operands.iter().map(|b| match b {
        Bound::Weight(w) => Ok(w),
        Bound::Planes(_) => Err("packing of something that is computed at run time"),
    });
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    let interleave = if inst.op == Op::ConcatRows { inst.attrs[0].as_int() as u32 } else { parts[0].interleave };
    if inst.op == Op::ConcatRows && parts.iter().any(|p| p.sources.len() != 1) {
        return Err("a join of joined matrices".into());
    }
    let sources = parts.iter().flat_map(|p| p.sources.iter().cloned()).collect();
    Ok(Weight { sources, interleave, from: parts[0].from, elem, shape })
}

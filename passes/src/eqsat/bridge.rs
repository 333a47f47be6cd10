//! Functions to terms and back.

use std::collections::{BTreeMap, HashMap};
use std::ops::Add;

use egg::Id;
use marquetry_ir::Syms;
use marquetry_ir::graph::{Attr, Builder, Class, Function, Inst, Loc, Module, Op, Ty, TypeError, Value};

use super::cost::{Cost, Target};
use super::extract::node_cost;
use super::facts::{Graph, Types, split};
use super::term::Term;

/// For each function which arguments are weights at every call.
pub fn weight_arguments(m: &Module) -> HashMap<String, Vec<bool>> {
    let mut out: HashMap<String, Vec<bool>> = HashMap::new();
    for f in m.functions.iter().rev() {
        let mut weight = vec![false; f.values.len()];
        if let Some(args) = out.get(&f.name) {
            f.args.iter().zip(args).for_each(|((_, v), w)| weight[v.0 as usize] = *w);
        }
        for inst in &f.insts {
            let is = inst.op == Op::Param;
            inst.results.iter().for_each(|r| weight[r.0 as usize] = is);
            if inst.op == Op::Call {
                let args: Vec<bool> = inst.operands.iter().map(|v| weight[v.0 as usize]).collect();
                out.entry(inst.attrs[0].as_str().to_string())
                    .and_modify(|all| all.iter_mut().zip(&args).for_each(|(a, b)| *a &= b))
                    .or_insert(args);
            }
        }
    }
    out
}

/// A function as an e-graph.
pub struct Region {
    /// The e-graph.
    pub graph: Graph,
    /// Classes whose values the function needs: operands of calls, updates of states, results.
    pub roots: Vec<Id>,
    ids: Vec<Option<Id>>,
    leaves: Vec<Value>,
}

impl Region {
    /// The e-graph of a function. `weights` says which arguments are weights.
    pub fn new(syms: &Syms, f: &Function, weights: &[bool]) -> Region {
        let types = Types { syms: syms.clone(), ..Types::default() };
        let mut r = Region { graph: Graph::new(types), roots: vec![], ids: vec![None; f.values.len()], leaves: vec![] };
        for (i, (_, v)) in f.args.iter().enumerate() {
            r.leaf(f, *v, weights.get(i).copied().unwrap_or(false));
        }
        for inst in &f.insts {
            match inst.op {
                Op::Param | Op::State | Op::Call => {
                    inst.operands.iter().for_each(|v| r.roots.extend(r.ids[v.0 as usize]));
                    inst.results.iter().for_each(|v| r.leaf(f, *v, inst.op == Op::Param));
                }
                _ => {
                    let mut children: Vec<Id> = inst.operands.iter().filter_map(|v| r.ids[v.0 as usize]).collect();
                    children.extend(inst.attrs.iter().map(|a| r.graph.add(Term::Attr(a.clone()))));
                    let id = r.graph.add(Term::Op(inst.op, children));
                    r.ids[inst.results[0].0 as usize] = Some(id);
                    if is_update(f, inst) {
                        r.roots.push(id);
                    }
                }
            }
        }
        f.results.iter().for_each(|(_, v)| r.roots.extend(r.ids[v.0 as usize]));
        r.graph.rebuild();
        r
    }

    fn leaf(&mut self, f: &Function, v: Value, weight: bool) {
        let n = self.leaves.len() as u32;
        self.leaves.push(v);
        self.graph.analysis.leaves.push((f.ty(v).clone(), weight));
        self.ids[v.0 as usize] = Some(self.graph.add(Term::Leaf(n)));
    }

    /// Cost of the function as it came.
    pub fn cost(&self, target: Target) -> Cost {
        let g = &self.graph;
        let cost = g.classes().filter_map(|c| node_cost(g, target, c.id, c.nodes.first()?));
        cost.fold(Cost::default(), Cost::add)
    }

    /// Where each class comes from in the source, as far as it is known.
    pub fn locs(&self, f: &Function) -> HashMap<Id, Loc> {
        let mut locs = HashMap::new();
        for r in f.insts.iter().flat_map(|i| &i.results) {
            if let (Some(id), Some(loc)) = (self.ids[r.0 as usize], &f.values[r.0 as usize].loc) {
                locs.entry(self.graph.find(id)).or_insert_with(|| loc.clone());
            }
        }
        locs
    }

    /// Writes the chosen nodes as a function with the interface of `f`.
    pub fn write(&self, syms: &Syms, f: &Function, chosen: &BTreeMap<Id, Term>) -> Result<Function, TypeError> {
        let mut w = Writer {
            region: self,
            f,
            chosen,
            b: Builder::new(syms, Function::new(f.name.clone(), f.kind)),
            done: HashMap::new(),
            locs: self.locs(f),
            reader: None,
        };
        for (name, v) in &f.args {
            w.b.loc = f.values[v.0 as usize].loc.clone();
            let new = w.b.arg(name.clone(), f.ty(*v).clone());
            w.bind(*v, new);
        }
        for inst in &f.insts {
            match inst.op {
                Op::Param if w.is_done(inst) => {}
                Op::Param | Op::State | Op::Call => w.outside(inst)?,
                _ if is_update(f, inst) => {
                    w.readers(inst)?;
                    w.value(inst.results[0])?;
                }
                _ => {}
            }
        }
        for (name, v) in &f.results {
            let v = w.value(*v)?;
            w.b.func.results.push((name.clone(), v));
        }
        crate::canon::sweep(syms, &w.b.func)
    }
}

/// Does it make a new version of a state?
fn is_update(f: &Function, inst: &Inst) -> bool {
    inst.op.class() == Class::State && inst.results.iter().any(|r| f.ty(*r).is_state())
}

struct Writer<'a, 's> {
    region: &'a Region,
    f: &'a Function,
    chosen: &'a BTreeMap<Id, Term>,
    b: Builder<'s>,
    done: HashMap<Id, Value>,
    locs: HashMap<Id, Loc>,
    /// Place of what is being written: new operands without a place of their own take it.
    reader: Option<Loc>,
}

fn missing(what: &str) -> TypeError {
    TypeError { code: "E0217", message: format!("extraction chose nothing for {what}") }
}

impl Writer<'_, '_> {
    fn bind(&mut self, old: Value, new: Value) {
        if let Some(id) = self.region.ids[old.0 as usize] {
            self.done.insert(self.region.graph.find(id), new);
        }
    }

    fn value(&mut self, old: Value) -> Result<Value, TypeError> {
        let id = self.region.ids[old.0 as usize].ok_or_else(|| missing("a value"))?;
        self.class(id)
    }

    /// Writes what reads the versions of states that `inst` consumes, so that no old version is read.
    fn readers(&mut self, inst: &Inst) -> Result<(), TypeError> {
        let g = &self.region.graph;
        let state = |v: &&Value| self.f.ty(**v).is_state();
        let ids: Vec<Id> = inst
            .operands
            .iter()
            .filter(state)
            .filter_map(|v| self.region.ids[v.0 as usize])
            .map(|i| g.find(i))
            .collect();
        let reads = |n: &Term| match n {
            Term::Op(op, children) => op.class() == Class::State && children.iter().any(|c| ids.contains(&g.find(*c))),
            _ => false,
        };
        let is_kv = |id: Id| g[id].data.ty.as_ref().is_some_and(Ty::is_state);
        let found: Vec<Id> = self.chosen.iter().filter(|(id, n)| !is_kv(**id) && reads(n)).map(|(id, _)| *id).collect();
        found.into_iter().try_for_each(|id| self.class(id).map(drop))
    }

    /// `param`, `state`, `call`: kept as they are, over new operands.
    fn outside(&mut self, inst: &Inst) -> Result<(), TypeError> {
        self.readers(inst)?;
        self.reader = None;
        let operands = inst.operands.iter().map(|v| self.value(*v)).collect::<Result<_, _>>()?;
        self.b.loc = self.f.values[inst.results[0].0 as usize].loc.clone();
        let tys = inst.results.iter().map(|r| self.f.ty(*r).clone()).collect();
        let new = self.b.push(inst.op, operands, inst.attrs.clone(), tys);
        inst.results.iter().zip(new).for_each(|(o, n)| self.bind(*o, n));
        Ok(())
    }

    fn is_done(&self, inst: &Inst) -> bool {
        let ids = inst.results.iter().filter_map(|r| self.region.ids[r.0 as usize]);
        ids.map(|id| self.region.graph.find(id)).all(|id| self.done.contains_key(&id))
    }

    /// A parameter that stands behind what now reads it: a product that it was joined with came first.
    fn early(&mut self, id: Id) -> Result<Value, TypeError> {
        let g = &self.region.graph;
        let is = |r: &Value| self.region.ids[r.0 as usize].is_some_and(|i| g.find(i) == id);
        let f = self.f;
        let found = f.insts.iter().find(|i| i.op == Op::Param && i.results.iter().any(is));
        self.outside(found.ok_or_else(|| missing("a class"))?)?;
        self.done.get(&id).copied().ok_or_else(|| missing("a parameter"))
    }

    fn class(&mut self, id: Id) -> Result<Value, TypeError> {
        let g = &self.region.graph;
        let id = g.find(id);
        if let Some(v) = self.done.get(&id) {
            return Ok(*v);
        }
        let Some(Term::Op(op, children)) = self.chosen.get(&id) else { return self.early(id) };
        let (operands, attrs) = split(*op, children);
        let attrs: Option<Vec<Attr>> = attrs.iter().map(|a| g[*a].data.attr.clone()).collect();
        let loc = self.locs.get(&id).or(self.reader.as_ref()).cloned();
        let reader = std::mem::replace(&mut self.reader, loc.clone());
        let operands = operands.iter().map(|c| self.class(*c)).collect::<Result<Vec<_>, _>>()?;
        self.reader = reader;
        self.b.loc = loc;
        let v = self.b.emit(*op, &operands, attrs.ok_or_else(|| missing("an attribute"))?)?;
        self.done.insert(id, v);
        Ok(v)
    }
}

//! Tokens of which nothing but keys and values is wanted, as all of a prompt but the last: what follows the last update of a cache is computed
//! for the rows that are asked for only.
//!
//! A gather of rows moves up through operations that treat rows alike, as long as nothing else reads what they make.

use std::collections::HashMap;

use marquetry_ir::Dim;
use marquetry_ir::graph::{Attr, Builder, Class, Function, Inst, Module, Op, TypeError, Value, rebuild};

/// Moves gathers of rows up in the entry function.
///
/// # Errors
/// A type rule that does not hold.
pub fn rows(m: &Module) -> Result<Module, TypeError> {
    let mut out = m.clone();
    let syms = out.syms.clone();
    let Some(entry) = out.functions.last_mut() else { return Ok(out) };
    let old = entry.clone();
    let Some(plan) = old.insts.iter().find_map(|i| Plan::of(&old, i)) else { return Ok(out) };
    let mut gathered: HashMap<Value, Value> = HashMap::new();
    *entry = rebuild(&syms, &old, &Clone::clone, &mut |b: &mut Builder<'_>, inst: &Inst, x: &[Value]| {
        if plan.is_gather(inst) && plan.holds(inst.operands[0]) {
            return Ok(Some(vec![x[0]]));
        }
        if !inst.results.iter().any(|v| plan.holds(*v)) {
            return Ok(None);
        }
        let ids = b.func.args[plan.ids].1;
        let mut operands = vec![];
        for (was, now) in inst.operands.iter().zip(x) {
            if plan.holds(*was) || !plan.is_rows(&old, *was) {
                operands.push(*now);
                continue;
            }
            let some = match gathered.get(was) {
                Some(v) => *v,
                None => b.emit(Op::Gather, &[*now, ids], vec![])?,
            };
            gathered.insert(*was, some);
            operands.push(some);
        }
        let rows = b.shape(ids);
        let attrs = inst.attrs.iter().map(|a| shortened(a, &rows)).collect();
        Ok(Some(vec![b.emit(inst.op, &operands, attrs)?]))
    })?;
    Ok(out)
}

/// An attribute of an operation over rows, for fewer of them.
fn shortened(attr: &Attr, rows: &[Dim]) -> Attr {
    match attr {
        Attr::Shape(s) => Attr::Shape(rows.iter().chain(s.iter().skip(1)).cloned().collect()),
        other => other.clone(),
    }
}

/// What is computed for some rows only.
struct Plan {
    /// The argument that says which.
    ids: usize,
    ids_value: Value,
    /// How many rows there are without it, a symbol.
    all: Dim,
    /// Values with fewer rows.
    held: Vec<bool>,
}

impl Plan {
    /// For a gather by an argument of computed rows, if any of them need not be computed.
    fn of(f: &Function, gather: &Inst) -> Option<Plan> {
        if gather.op != Op::Gather {
            return None;
        }
        let ids_value = gather.operands[1];
        let ids = f.args.iter().position(|(_, v)| *v == ids_value)?;
        let all = shape(f, gather.operands[0]).first().filter(|d| d.as_const().is_none())?.clone();
        let mut plan = Plan { ids, ids_value, all, held: vec![false; f.values.len()] };
        let mut users: Vec<Vec<&Inst>> = vec![vec![]; f.values.len()];
        for inst in &f.insts {
            inst.operands.iter().for_each(|v| users[v.0 as usize].push(inst));
        }
        let mut any = false;
        for inst in f.insts.iter().rev() {
            let [v] = inst.results[..] else { continue };
            let wanted = f.results.iter().any(|(_, r)| *r == v) || users[v.0 as usize].is_empty();
            let fewer = |u: &&Inst| plan.is_gather(u) && u.operands[0] == v || u.results.iter().any(|r| plan.holds(*r));
            if !wanted && plan.by_rows(f, inst) && users[v.0 as usize].iter().all(fewer) {
                plan.held[v.0 as usize] = true;
                any = true;
            }
        }
        any.then_some(plan)
    }

    fn is_gather(&self, inst: &Inst) -> bool {
        inst.op == Op::Gather && inst.operands[1] == self.ids_value
    }

    fn holds(&self, v: Value) -> bool {
        self.held[v.0 as usize]
    }

    /// Has the value one row for each token?
    fn is_rows(&self, f: &Function, v: Value) -> bool {
        shape(f, v).first() == Some(&self.all)
    }

    /// Does the operation make each row of its result of the same rows of its operands, and of what has no rows?
    fn by_rows(&self, f: &Function, inst: &Inst) -> bool {
        let axes = |v: Value| shape(f, v).len();
        let (x, y) = (inst.operands.first().copied(), inst.results[0]);
        let operand = x.is_some_and(|x| self.is_rows(f, x));
        let known = match (inst.op, inst.op.class()) {
            (Op::Linear, _) => operand && !self.is_rows(f, inst.operands[1]),
            (Op::Reshape | Op::Rope | Op::RopeTable | Op::RopeApply | Op::Attend | Op::AttendSloped, _) => operand,
            (Op::Permute, _) => operand && matches!(inst.attrs.first(), Some(Attr::Ints(p)) if p.first() == Some(&0)),
            (Op::Slice, _) => operand && inst.attrs[0].as_int() != 0,
            (_, Class::Reduce) => operand && axes(y) > 1,
            (Op::TopK | Op::Pick, _) => false,
            // Of several operands any may have rows; those with fewer axes have none.
            (_, Class::Elementwise) => inst.operands.iter().all(|v| !self.is_rows(f, *v) || axes(*v) == axes(y)),
            _ => false,
        };
        known && self.is_rows(f, y)
    }
}

fn shape(f: &Function, v: Value) -> &[Dim] {
    f.ty(v).as_tensor().map_or(&[], |t| &t.shape)
}

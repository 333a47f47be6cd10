//! Canonical form: one spelling for the same thing, computed once, and nothing that is not used.

use std::collections::HashMap;

use marquetry_ir::graph::{Attr, Builder, Class, Function, Inst, Module, Op, Ty, TypeError, Value, rebuild};
use marquetry_ir::{DType, Elem, Syms};

/// Canonicalises every function.
///
/// * `rope` becomes `rope_table` and `rope_apply`, so that layers share one table;
/// * moves that change nothing disappear, chains of reshapes become one;
/// * equal operations are computed once; unused ones go away.
///
/// # Errors
/// A type rule that fails, which is a defect of this pass.
pub fn run(m: &Module) -> Result<Module, TypeError> {
    let mut out = m.clone();
    for f in out.functions.iter_mut().filter(|f| f.kernel.is_none()) {
        let expanded =
            rebuild(&m.syms, f, &Ty::clone, &mut |b: &mut Builder<'_>, inst: &Inst, operands: &[Value]| match (
                inst.op,
                inst.op.info().expand,
            ) {
                (Op::Rope, Some(expand)) => Ok(Some(vec![expand(b, operands, &inst.attrs)?])),
                _ => Ok(None),
            })?;
        *f = sweep(&m.syms, &simplify(&m.syms, &expanded)?)?;
    }
    Ok(out)
}

/// Local simplification and common subexpressions.
fn simplify(syms: &Syms, f: &Function) -> Result<Function, TypeError> {
    let mut seen: HashMap<(Op, Vec<Value>, Vec<Attr>), Value> = HashMap::new();
    rebuild(syms, f, &Ty::clone, &mut |b, inst, operands| {
        if inst.op == Op::Call {
            return Ok(None);
        }
        let mut operands = operands.to_vec();
        let first = operands.first().copied();
        if let (Op::Reshape, Some(x)) = (inst.op, first) {
            let through = b.func.insts.iter().find(|i| i.results.first() == Some(&x) && i.op == Op::Reshape);
            if let Some(inner) = through {
                operands[0] = inner.operands[0];
            }
        }
        if let Some(x) = operands.first().copied().filter(|x| is_identity(b, inst, *x)) {
            return Ok(Some(vec![x]));
        }
        let key = (inst.op, operands.clone(), inst.attrs.clone());
        if let Some(v) = seen.get(&key) {
            return Ok(Some(vec![*v]));
        }
        let v = match inst.op {
            Op::Param | Op::State => {
                let ty = f.ty(inst.results[0]).clone();
                b.declared(inst.op, inst.attrs[0].as_str(), ty)
            }
            _ => b.emit(inst.op, &operands, inst.attrs.clone())?,
        };
        seen.insert(key, v);
        Ok(Some(vec![v]))
    })
}

fn is_identity(b: &Builder<'_>, inst: &Inst, x: Value) -> bool {
    let Some(t) = b.func.ty(x).as_tensor() else { return false };
    match (inst.op, &inst.attrs[..]) {
        (Op::Reshape | Op::Broadcast, [Attr::Shape(s)]) => t.shape == *s,
        (Op::Permute, [Attr::Ints(p)]) => p.iter().copied().eq(0..p.len() as i64),
        (Op::Dequant, _) => t.elem == Elem::Scalar(DType::F32),
        (Op::Cast, [Attr::DType(d)]) => t.elem == Elem::Scalar(*d),
        (Op::Slice, [Attr::Int(axis), Attr::Int(0), Attr::Int(len)]) => {
            t.shape.get(*axis as usize).and_then(|d| d.as_const()) == Some(*len)
        }
        _ => false,
    }
}

/// Drops operations whose results are not used; state updates always count as used.
pub fn sweep(syms: &Syms, f: &Function) -> Result<Function, TypeError> {
    let mut live = vec![false; f.values.len()];
    for (_, v) in &f.results {
        live[v.0 as usize] = true;
    }
    let mut keep = vec![false; f.insts.len()];
    for (i, inst) in f.insts.iter().enumerate().rev() {
        let effect = inst.op == Op::Call || (inst.op.class() == Class::State && inst.op == Op::KvAppend);
        keep[i] = effect || inst.results.iter().any(|r| live[r.0 as usize]);
        if keep[i] {
            inst.operands.iter().for_each(|v| live[v.0 as usize] = true);
        }
    }
    let mut kept = f.clone();
    let mut it = keep.iter();
    kept.insts.retain(|_| *it.next().unwrap_or(&true));
    renumber(syms, &kept)
}

/// Numbers values in order of definition.
pub fn renumber(syms: &Syms, f: &Function) -> Result<Function, TypeError> {
    rebuild(syms, f, &Ty::clone, &mut |_, _, _| Ok(None))
}

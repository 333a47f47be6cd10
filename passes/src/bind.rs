//! Storage types and sizes: what the weight file and the shape bucket decide, applied to a traced module.

use std::collections::HashMap;

use marquetry_ir::graph::{Attr, Builder, Inst, Module, Op, Ty, TypeError, Value, rebuild};
use marquetry_ir::{DType, Dim, Elem, Sym};

/// Gives parameters the element types of the weight file; their numbers are read through `dequant`.
///
/// # Errors
/// A type rule that fails, which is a defect of this pass.
pub fn storage(m: &Module, elems: &HashMap<String, Elem>) -> Result<Module, TypeError> {
    let mut out = m.clone();
    for p in &mut out.params {
        if let (Ty::Tensor(t), Some(e)) = (&mut p.ty, elems.get(&p.name)) {
            t.elem = *e;
        }
    }
    for f in &mut out.functions {
        *f = rebuild(&m.syms, f, &Ty::clone, &mut |b: &mut Builder<'_>, inst: &Inst, _: &[Value]| {
            let name = inst.attrs.first().map_or("", Attr::as_str);
            let declared = out.params.iter().find(|p| inst.op == Op::Param && p.name == name);
            match declared {
                Some(p) if p.ty.as_tensor().is_some_and(|t| t.elem != Elem::Scalar(DType::F32)) => {
                    let raw = b.declared(Op::Param, name, p.ty.clone());
                    Ok(Some(vec![b.un(Op::Dequant, raw)?]))
                }
                _ => Ok(None),
            }
        })?;
    }
    Ok(out)
}

/// Narrows symbols: `Fixed` puts a constant in place of the symbol, `Range` narrows its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Narrow {
    /// Exactly this value.
    Fixed(i64),
    /// Within these bounds, inclusive.
    Range(i64, i64),
}

/// Narrows the named symbols of a module.
///
/// # Errors
/// A type rule that does not hold at those sizes.
pub fn specialize(m: &Module, sizes: &HashMap<String, Narrow>) -> Result<Module, TypeError> {
    let mut out = m.clone();
    for d in &mut out.syms.0 {
        match sizes.get(&d.name) {
            Some(Narrow::Fixed(v)) => (d.lo, d.hi) = (*v, *v),
            Some(Narrow::Range(lo, hi)) => (d.lo, d.hi) = (*lo, *hi),
            None => {}
        }
    }
    let syms = out.syms.clone();
    let fixed = |s: Sym| match syms.decl(s) {
        d if d.lo == d.hi => Dim::from(d.lo),
        _ => Dim::from(s),
    };
    let dim = |d: &Dim| d.subst(&fixed);
    let retype = |t: &Ty| match t.clone() {
        Ty::Tensor(mut t) => {
            t.shape = t.shape.iter().map(dim).collect();
            Ty::Tensor(t)
        }
        Ty::Kv(mut k) => {
            k.slots = dim(&k.slots);
            Ty::Kv(k)
        }
        Ty::Rows(mut r) => {
            r.rows = dim(&r.rows);
            Ty::Rows(r)
        }
    };
    for d in out.params.iter_mut().chain(&mut out.states) {
        d.ty = retype(&d.ty);
    }
    for f in &mut out.functions {
        for b in f.kernel.iter_mut().flat_map(|k| &mut k.buffers) {
            b.shape = b.shape.iter().map(dim).collect();
        }
        *f = rebuild(&syms, f, &retype, &mut |b: &mut Builder<'_>, inst: &Inst, operands: &[Value]| {
            if !inst.attrs.iter().any(|a| matches!(a, Attr::Shape(_))) {
                return Ok(None);
            }
            let attrs = inst.attrs.iter().map(|a| match a {
                Attr::Shape(s) => Attr::Shape(s.iter().map(dim).collect()),
                other => other.clone(),
            });
            Ok(Some(vec![b.emit(inst.op, operands, attrs.collect())?]))
        })?;
    }
    Ok(out)
}

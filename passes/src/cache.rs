//! The element type of keys and values.

use marquetry_ir::DType;
use marquetry_ir::graph::{Attr, Builder, Inst, Module, Op, Ty, TypeError, Value, rebuild};

/// Names of the element types that a cache can have.
pub const TYPES: &[&str] = &["f32", "f16", "bf16"];

/// Holds keys and values in `dtype`. What is appended is rounded to it; attention computes in f32 all the same.
///
/// # Errors
/// A type rule that does not hold with it.
pub fn hold(m: &Module, dtype: DType) -> Result<Module, TypeError> {
    let retype = |t: &Ty| match t {
        Ty::Kv(k) => Ty::Kv(marquetry_ir::graph::KvTy { dtype, ..k.clone() }),
        other => other.clone(),
    };
    let mut out = m.clone();
    out.states.iter_mut().for_each(|d| d.ty = retype(&d.ty));
    let syms = out.syms.clone();
    for f in &mut out.functions {
        let old = f.clone();
        // What reads a cache directly goes on with the type that it had.
        let mut read = |b: &mut Builder<'_>, inst: &Inst, operands: &[Value]| {
            let Some(was) = old.ty(inst.results[0]).as_tensor().and_then(|t| t.elem.scalar()) else { return Ok(None) };
            if inst.op != Op::KvRead || was == dtype {
                return Ok(None);
            }
            let held = b.emit(inst.op, operands, inst.attrs.clone())?;
            Ok(Some(vec![b.emit(Op::Cast, &[held], vec![Attr::DType(was)])?]))
        };
        *f = rebuild(&syms, f, &retype, &mut read)?;
    }
    Ok(out)
}

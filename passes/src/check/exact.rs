//! What modules mean before activations are rounded to 8 bits.
//!
//! Steps of 8 bits add up over layers, by how much depends on depth and on what cancels. No constant bounds that and still sees a
//! rule that is wrong by as little. So rewriting is checked without the rounding, as closely as with strict numerics, and what the
//! rounding does is measured.

use marquetry_ir::graph::{Attr, Module, Op, Ty, TypeError, rebuild};
use marquetry_ir::{DType, Elem};

/// The module with f32 where it has quantized activations.
///
/// # Errors
/// An operation that takes them and has no form for f32.
pub fn unrounded(m: &Module) -> Result<Module, TypeError> {
    let widen = |ty: &Ty| match ty {
        Ty::Tensor(t) if t.elem == Elem::Act8 => Ty::tensor(DType::F32, t.shape.clone()),
        other => other.clone(),
    };
    let mut out = m.clone();
    for f in out.functions.iter_mut().filter(|f| f.kernel.is_none()) {
        *f = rebuild(&m.syms, f, &widen, &mut |b, inst, operands| match inst.op {
            Op::Quantize => Ok(Some(operands.to_vec())),
            Op::QLinear => Ok(Some(vec![b.emit(Op::Linear, operands, vec![])?])),
            _ => Ok(None),
        })?;
    }
    Ok(out)
}

/// Does it round activations to 8 bits?
pub fn rounds(m: &Module) -> bool {
    m.functions.iter().flat_map(|f| &f.insts).any(|i| i.op == Op::Quantize)
}

/// Does it convert to narrow floats? Rules that approximate may leave out a rounding of these.
pub fn narrows(m: &Module) -> bool {
    let narrow = |a: &Attr| matches!(a, Attr::DType(DType::F16 | DType::BF16));
    m.functions.iter().flat_map(|f| &f.insts).any(|i| i.op == Op::Cast && i.attrs.first().is_some_and(narrow))
}

/// By how much of a number the coarsest cache rounds.
pub fn cache_step(m: &Module) -> f32 {
    let step = |t: &Ty| match t {
        Ty::Kv(k) if k.dtype == DType::F16 => 2f32.powi(-11),
        Ty::Kv(k) if k.dtype == DType::BF16 => 2f32.powi(-8),
        _ => 0.0,
    };
    m.states.iter().map(|d| step(&d.ty)).fold(0.0, f32::max)
}

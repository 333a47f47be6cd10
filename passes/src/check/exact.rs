//! What modules mean before activations are rounded to 8 bits.
//!
//! Steps of 8 bits add up over layers, by how much depends on depth and on what cancels. No constant bounds that and still sees a
//! rule that is wrong by as little. So rewriting is checked without the rounding, as closely as with strict numerics, and what the
//! rounding does is measured.

use marquetry_ir::graph::{Attr, Function, Inst, Module, Op, Ty, TypeError, rebuild};
use marquetry_ir::{DType, Elem};

use crate::eqsat::weight_arguments;

/// The module with f32 where it has quantized activations, and without roundings to bf16.
///
/// # Errors
/// An operation that takes them and has no form for f32.
pub fn unrounded(m: &Module) -> Result<Module, TypeError> {
    let widen = |ty: &Ty| match ty {
        Ty::Tensor(t) if t.elem == Elem::Act8 => Ty::tensor(DType::F32, t.shape.clone()),
        other => other.clone(),
    };
    let is = |ty: &Ty, d: DType| ty.as_tensor().is_some_and(|t| t.elem == Elem::Scalar(d));
    let weights = weight_arguments(m);
    let mut out = m.clone();
    for f in out.functions.iter_mut().filter(|f| f.kernel.is_none()) {
        // What crosses functions is declared: all that is no weight.
        let weight = |i: usize| weights.get(&f.name).is_some_and(|w| w.get(i) == Some(&true));
        let args = f.args.iter().enumerate().filter(|(i, _)| !weight(*i)).map(|(_, (_, v))| *v);
        let results = f.insts.iter().filter(|i| i.op == Op::Call).flat_map(|i| i.results.iter().copied());
        for v in args.chain(results).collect::<Vec<_>>() {
            let ty = &mut f.values[v.0 as usize].ty;
            if let (true, Some(t)) = (is(ty, DType::BF16), ty.as_tensor()) {
                *ty = Ty::tensor(DType::F32, t.shape.clone());
            }
        }
        *f = rebuild(&m.syms, f, &widen, &mut |b, inst, operands| match inst.op {
            Op::Quantize => Ok(Some(operands.to_vec())),
            Op::Cast if inst.attrs == [Attr::DType(DType::BF16)] && is(b.func.ty(operands[0]), DType::F32) => {
                Ok(Some(operands.to_vec()))
            }
            Op::QLinear => Ok(Some(vec![b.emit(Op::Linear, operands, vec![])?])),
            _ => Ok(None),
        })?;
    }
    Ok(out)
}

/// Does it round activations for the sake of speed?
pub fn rounds(m: &Module) -> bool {
    let narrow = |f: &Function, i: &Inst| {
        let queries = i.operands.first().and_then(|q| f.ty(*q).as_tensor());
        i.op == Op::Attend && queries.is_some_and(|t| t.elem == Elem::Scalar(DType::BF16))
    };
    let of = |f: &Function| f.insts.iter().any(|i| matches!(i.op, Op::Quantize | Op::QLinear) || narrow(f, i));
    m.functions.iter().any(of)
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

//! Layouts of weights: the forms that kernels read, one rule per candidate, and the cost model chooses.

use egg::Id;
use marquetry_ir::graph::{Attr, Op, Ty};
use marquetry_ir::{DType, Elem, Packed};

use super::{Bound, rules};
use crate::eqsat::facts::{Graph, add};
use crate::eqsat::term::Term;

rules! {
    /// Blocks of 8 rows in the element type of the file: quantized formats as integers and scales.
    "pack-linear" Fuse Bitwise: "(linear ?x (dequant ?w))" => "(linear ?x (pack ?w layout))"
        if "?w is a matrix as the model file has it",
        |g, b| { let p = pack(g, b)?; add(g, Op::Linear, &[b.id("x")?, p], vec![]) };
    /// The same for weights that are f32 in the file.
    "pack-linear-f32" Fuse Bitwise: "(linear ?x ?w)" => "(linear ?x (pack ?w rows8.f32))"
        if "?w is a matrix as the model file has it",
        |g, b| { let p = pack(g, b)?; add(g, Op::Linear, &[b.id("x")?, p], vec![]) };
    /// A table in the layout of the matrix product that shares it.
    "pack-gather" Fuse Bitwise: "(gather (dequant ?w) ?i)" => "(gather (pack ?w layout) ?i)"
        if "?w is a matrix as the model file has it",
        |g, b| { let p = pack(g, b)?; add(g, Op::Gather, &[p, b.id("i")?], vec![]) };
    /// The same for tables that are f32 in the file.
    "pack-gather-f32" Fuse Bitwise: "(gather ?w ?i)" => "(gather (pack ?w rows8.f32) ?i)"
        if "?w is an f32 matrix as the model file has it", |g, b| {
            b.is_f32(g, "w")?;
            let p = pack(g, b)?;
            add(g, Op::Gather, &[p, b.id("i")?], vec![])
        };
    /// The matrices of several experts in one, each in the layout that kernels read.
    "pack-experts" Fuse Bitwise: "(expert_linear ?x ?w ?i ?n)" => "(expert_linear ?x (concat_rows (pack .. layout)) ?i ?n)"
        if "?w joins matrices as the model file has them", |g, b| {
            let parts = joined(g, b.id("w")?)?;
            let packed = parts.into_iter().map(|w| pack_id(g, w)).collect::<Option<Vec<_>>>()?;
            let w = add(g, Op::ConcatRows, &packed, vec![Attr::Int(0)])?;
            add(g, Op::ExpertLinear, &[b.id("x")?, w, b.id("i")?], vec![b.attr(g, "n")?])
        };
}

/// The matrices whose rows a class joins, before `dequant`.
fn joined(g: &Graph, w: Id) -> Option<Vec<Id>> {
    let operands = |id: Id, op: Op| {
        g[id].nodes.iter().find_map(|n| match n {
            Term::Op(o, c) if *o == op => Some(c.get(..c.len() - op.info().attrs.len())?.to_vec()),
            _ => None,
        })
    };
    let parts = operands(w, Op::ConcatRows)?;
    Some(parts.into_iter().map(|p| operands(p, Op::Dequant).map_or(p, |d| d[0])).collect())
}

/// `pack(?w)` in the layout that kernels read, if `?w` is a weight as the model file has it.
fn pack(g: &mut Graph, b: &Bound<'_>) -> Option<Id> {
    pack_id(g, b.id("w")?)
}

fn pack_id(g: &mut Graph, w: Id) -> Option<Id> {
    let raw = g[w].nodes.iter().any(|n| matches!(n, Term::Leaf(_)));
    let Ty::Tensor(t) = g[w].data.ty.clone()? else { return None };
    if !raw || !g[w].data.weight_only || t.shape.len() != 2 {
        return None;
    }
    let to = match t.elem {
        Elem::Gguf(q) => Elem::Packed(Packed::for_gguf(q)),
        Elem::Scalar(d @ (DType::F32 | DType::F16 | DType::BF16)) => Elem::Rows8(d),
        _ => return None,
    };
    add(g, Op::Pack, &[w], vec![Attr::Elem(to)])
}

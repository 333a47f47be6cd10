//! Layouts of weights: the forms that kernels read, one rule per candidate, and the cost model chooses.

use egg::Id;
use marquetry_ir::graph::{Attr, Op};
use marquetry_ir::{DType, Elem, Packed};

use super::dig::{below, nodes};
use super::{Bound, rules, tensor_of};
use crate::eqsat::facts::{Graph, add};
use crate::eqsat::term::Term;

rules! {
    /// Blocks of 8 rows in the element type of the file: quantized formats as integers and scales.
    "pack-linear" Fuse Bitwise: "(linear ?x (dequant ?w))" => "(linear ?x (pack ?w layout))"
        if "?w is a matrix as the model file has it",
        |g, b| { let p = pack(g, b)?; add(g, Op::Linear, &[b.id("x")?, p], vec![]) };
    /// The numbers themselves, as f32 in blocks of 8 rows: more memory, less arithmetic.
    "pack-linear-wide" Fuse Bitwise: "(linear ?x (dequant ?w))" => "(linear ?x (pack ?w rows8.f32))"
        if "?w is a matrix as the model file has it",
        |g, b| {
            raw_matrix(g, b.id("w")?)?;
            let p = add(g, Op::Pack, &[b.id("w")?], vec![Attr::Elem(Elem::Rows8(DType::F32))])?;
            add(g, Op::Linear, &[b.id("x")?, p], vec![])
        };
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
    let (parts, _) = nodes(g, w, Op::ConcatRows).into_iter().next()?;
    Some(parts.into_iter().map(|p| below(g, p, Op::Dequant).unwrap_or(p)).collect())
}

/// The element type of a matrix of weights as the model file has it.
fn raw_matrix(g: &Graph, w: Id) -> Option<Elem> {
    let raw = g[w].nodes.iter().any(|n| matches!(n, Term::Leaf(_)));
    let t = tensor_of(g, w)?;
    (raw && g[w].data.weight_only && t.shape.len() == 2).then_some(t.elem)
}

/// `pack(?w)` in the smallest layout that kernels read.
fn pack(g: &mut Graph, b: &Bound<'_>) -> Option<Id> {
    pack_id(g, b.id("w")?)
}

fn pack_id(g: &mut Graph, w: Id) -> Option<Id> {
    let to = match raw_matrix(g, w)? {
        Elem::Gguf(q) => Elem::Packed(Packed::for_gguf(q)),
        Elem::Scalar(d @ (DType::F32 | DType::F16 | DType::BF16)) => Elem::Rows8(d),
        _ => return None,
    };
    add(g, Op::Pack, &[w], vec![Attr::Elem(to)])
}

//! One fused function, one kernel.

use std::collections::HashMap;

use marquetry_ir::graph::{Attr, Class, Function, Inst, Op, Ty, Value};
use marquetry_ir::loops::{Buf, Kernel, Scope};
use marquetry_ir::{DType, Dim, Elem, FACTOR_SPAN, Packed, Syms};

use super::read::{Blocks, Cx, Lowered, Planes};
use super::{attend, contract, map, parts, row};
use crate::params::Params;

/// What a kernel argument is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Plane of an argument of the fused function.
    Arg(usize, usize),
    /// Plane of a result.
    Result(usize, usize),
    /// A vector of constants, f32 bits.
    Table(Vec<u32>),
}

/// A kernel and what its arguments are.
pub struct Lowering {
    /// The kernel.
    pub kernel: Kernel,
    /// One per kernel argument.
    pub origins: Vec<Origin>,
}

/// A plane: name suffix, element type as kernels see it, extents.
pub type Plane = (&'static str, DType, Vec<Dim>);

/// The planes of a type. `bytes` views packed words as single bytes; `fresh` is for results.
pub fn planes(ty: &Ty, bytes: bool, fresh: bool) -> Lowered<Vec<Plane>> {
    let t = match ty {
        Ty::Kv(kv) => {
            let shape = vec![kv.slots.clone(), kv.heads.into(), kv.dim.into()];
            return Ok(vec![("_k", kv.dtype, shape.clone()), ("_v", kv.dtype, shape)]);
        }
        Ty::Rows(r) => return Ok(vec![("", r.dtype, r.extents())]),
        Ty::Tensor(t) => t,
    };
    let two = || match t.shape.as_slice() {
        [n, k] => Ok((n.clone(), k.clone())),
        _ => Err("packed tensors have two axes".to_string()),
    };
    let div = |d: &Dim, by: i64| d.div_exact(by).ok_or_else(|| format!("an extent is no multiple of {by}"));
    Ok(match t.elem {
        Elem::Scalar(d) => vec![("", d, t.shape.clone())],
        Elem::Rows8(d) => {
            let (n, k) = two()?;
            let n = n.as_const().ok_or("a symbolic number of rows")?;
            vec![("", d, vec![((n + 7) / 8).into(), k, 8.into()])]
        }
        Elem::Packed(p) => packed(p, two()?, bytes)?,
        Elem::Act8 => {
            let (n, k) = two()?;
            let data = if fresh { (DType::I8, k.clone()) } else { (DType::U32, div(&k, 4)?) };
            vec![
                ("_q", data.0, vec![n.clone(), data.1]),
                ("_scale", DType::F32, vec![n.clone(), div(&k, 32)?]),
                ("_sum", DType::F32, vec![n, div(&k, 16)?]),
            ]
        }
        Elem::Gguf(_) => return Err("a block format that no rule has packed".into()),
    })
}

fn packed(p: Packed, (n, k): (Dim, Dim), bytes: bool) -> Lowered<Vec<Plane>> {
    let n = n.as_const().ok_or("a symbolic number of rows")?;
    let blocks = Dim::from((n + 7) / 8);
    let groups = |by: i64| k.div_exact(by).ok_or_else(|| format!("rows are no multiple of {by}"));
    let mut shape = vec![blocks.clone(), groups(32)?, i64::from(p.bits).into(), 8.into()];
    let mut dtype = DType::U32;
    if bytes {
        shape.push(4.into());
        dtype = DType::U8;
    }
    let side = vec![blocks.clone(), groups(i64::from(p.group))?, 8.into()];
    let mut all = vec![("_q", dtype, shape), ("_scale", p.scale, side.clone())];
    if p.min {
        all.push(("_min", p.scale, side));
    }
    if p.has_factors() {
        let kinds = 1 + i64::from(p.min);
        all.push(("_factor", DType::F16, vec![blocks, groups(FACTOR_SPAN as i64)?, kinds.into(), 8.into()]));
    }
    Ok(all)
}

fn assemble(ty: &Ty, bufs: &[Buf]) -> Lowered<Planes> {
    let elem = ty.as_tensor().map(|t| t.elem);
    Ok(match (elem, bufs) {
        (None, [k, v]) => Planes::Kv([*k, *v]),
        (None, [b]) => Planes::Plain(*b),
        (Some(Elem::Scalar(_)), [b]) => Planes::Plain(*b),
        (Some(Elem::Rows8(_)), [b]) => Planes::Rows8(*b),
        (Some(Elem::Packed(p)), bufs) => Planes::Packed(Blocks::new(p, bufs).ok_or("planes do not fit the layout")?),
        (Some(Elem::Act8), [q, s, m]) => Planes::Act8(*q, *s, *m),
        _ => return Err("planes do not fit the type".into()),
    })
}

/// Is the argument read row by row, by index?
fn is_gathered(f: &Function, v: Value) -> bool {
    f.insts.iter().any(|i| i.op == Op::Gather && i.operands[0] == v)
}

/// The kernel that a function is, and where its arguments come from.
fn given(f: &Function, kernel: &Kernel) -> Lowering {
    let args = (0..f.args.len()).map(|i| Origin::Arg(i, 0));
    let results = f.results.iter().enumerate().filter(|(_, (_, v))| !f.ty(*v).is_state());
    let origins = args.chain(results.map(|(i, _)| Origin::Result(i, 0))).collect();
    Lowering { kernel: Kernel { name: f.name.clone(), ..kernel.clone() }, origins }
}

/// Derives the kernel of a fused function, with `micro`-kernels where it can; that of an external one is there already.
pub fn kernel(syms: &Syms, f: &Function, micro: bool, params: &Params) -> Lowered<Lowering> {
    if let Some(k) = &f.kernel {
        return Ok(given(f, k));
    }
    let mut cx = Cx::new(syms, f, micro, params);
    let mut origins = vec![];
    let updates = f.insts.iter().any(|i| i.op == Op::KvAppend);
    for (i, (name, v)) in f.args.iter().enumerate() {
        let ty = f.ty(*v);
        let scope = if updates && ty.is_state() { Scope::InOut } else { Scope::In };
        let mut bufs = vec![];
        for (p, (suffix, dtype, shape)) in planes(ty, is_gathered(f, *v), false)?.into_iter().enumerate() {
            bufs.push(cx.k.buffer(&format!("{name}{suffix}"), dtype, shape, scope));
            origins.push(Origin::Arg(i, p));
        }
        cx.planes.insert(*v, assemble(ty, &bufs)?);
    }
    let mut results = HashMap::new();
    for (i, (name, v)) in f.results.iter().enumerate() {
        let ty = f.ty(*v);
        if ty.is_state() {
            continue;
        }
        let mut bufs = vec![];
        for (p, (suffix, dtype, shape)) in planes(ty, false, true)?.into_iter().enumerate() {
            bufs.push(cx.k.buffer(&format!("{name}{suffix}"), dtype, shape, Scope::Out));
            origins.push(Origin::Result(i, p));
        }
        results.insert(*v, assemble(ty, &bufs)?);
    }
    for bits in f.insts.iter().filter_map(constants) {
        if !cx.tables.iter().any(|(_, b)| b == bits) {
            let buf = cx.k.buffer("table", DType::F32, vec![bits.len().into()], Scope::In);
            cx.tables.push((buf, bits.clone()));
            origins.push(Origin::Table(bits.clone()));
        }
    }
    body(&mut cx, &results)?;
    Ok(Lowering { kernel: cx.k, origins })
}

/// The vector of constants that an operation reads.
fn constants(inst: &Inst) -> Option<&Vec<u32>> {
    match (inst.op, inst.attrs.as_slice()) {
        (Op::Table, [Attr::Floats(bits)]) | (Op::AttendSloped, [.., Attr::Floats(bits)]) => Some(bits),
        _ => None,
    }
}

fn body(cx: &mut Cx<'_>, results: &HashMap<Value, Planes>) -> Lowered<()> {
    let f = cx.f;
    let one = || match f.results.as_slice() {
        [(_, v)] => results.get(v).map(|planes| (*v, planes)).ok_or("a result is a state".to_string()),
        many => Err(format!("{} results where one is due", many.len())),
    };
    let single = || match one()? {
        (v, Planes::Plain(b)) => Ok((v, *b)),
        _ => Err("a plain result is needed".to_string()),
    };
    let find = |p: &dyn Fn(Op) -> bool| f.insts.iter().find(|i| p(i.op));
    if find(&|o| o.class() == Class::Contract).is_some() {
        let (v, out) = one()?;
        return contract::contract(cx, v, out);
    }
    if let Some(inst) = find(&|o| matches!(o, Op::Attend | Op::AttendSloped)) {
        let out = f.results.first().and_then(|(_, v)| results.get(v)).filter(|_| f.results.len() == 1);
        return attend::attend(cx, inst, out.ok_or("attention has one result")?);
    }
    if let Some(inst) = find(&|o| o == Op::AttendParts) {
        let (_, out) = single()?;
        return parts::parts(cx, inst, out);
    }
    if let Some(inst) = find(&|o| o == Op::AttendMerge) {
        let out = f.results.first().and_then(|(_, v)| results.get(v)).filter(|_| f.results.len() == 1);
        return parts::merge(cx, inst, out.ok_or("attention has one result")?);
    }
    if find(&|o| o.class() == Class::Reduce || o == Op::Quantize).is_some() {
        return row::rows(cx, results);
    }
    if let Some(inst) = find(&|o| o == Op::KvAppend) {
        return map::append(cx, &inst.operands);
    }
    let (v, out) = single()?;
    map::elementwise(cx, v, out)
}

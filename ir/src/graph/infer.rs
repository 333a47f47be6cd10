//! Type rules, one per operator; the builder, the verifier and the e-graph all call these.

use super::{Attr, KvTy, TensorTy, Ty, TypeError};
use crate::{DType, Dim, Elem, Proof, Syms};

type Res = Result<Ty, TypeError>;

fn err<T>(code: &'static str, message: String) -> Result<T, TypeError> {
    Err(TypeError { code, message })
}

fn tensor<'a>(t: &'a Ty, what: &str) -> Result<&'a TensorTy, TypeError> {
    match t {
        Ty::Tensor(t) => Ok(t),
        Ty::Kv(_) | Ty::Rows(_) => err("E0201", format!("{what} must be a tensor, is a state")),
    }
}

fn kv<'a>(t: &'a Ty, what: &str) -> Result<&'a KvTy, TypeError> {
    match t {
        Ty::Kv(k) => Ok(k),
        Ty::Rows(_) => err("E0201", format!("{what} must be a cache, is a recurrent state")),
        Ty::Tensor(_) => err("E0201", format!("{what} must be a state, is a tensor")),
    }
}

fn float(t: &TensorTy, what: &str) -> Result<(), TypeError> {
    match t.elem {
        Elem::Scalar(DType::F32) => Ok(()),
        other => err("E0202", format!("{what} must be f32, is {other}; insert `cast` or `dequant`")),
    }
}

fn int(t: &TensorTy, what: &str) -> Result<(), TypeError> {
    match t.elem {
        Elem::Scalar(DType::I32) => Ok(()),
        other => err("E0202", format!("{what} must be i32, is {other}")),
    }
}

fn show(s: &Syms, shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().map(|d| s.show(d)).collect();
    format!("[{}]", dims.join(", "))
}

fn rank(t: &TensorTy, s: &Syms, n: usize, what: &str) -> Result<(), TypeError> {
    if t.shape.len() == n {
        return Ok(());
    }
    err("E0204", format!("{what} must have {n} axes, has shape {}", show(s, &t.shape)))
}

fn same_dim(s: &Syms, a: &Dim, b: &Dim, what: &str) -> Result<(), TypeError> {
    match s.prove_eq(a, b) {
        Proof::Yes => Ok(()),
        Proof::No => err("E0203", format!("{what}: {} and {} differ", s.show(a), s.show(b))),
        Proof::Unknown => {
            let (a, b) = (s.show(a), s.show(b));
            err("E0205", format!("{what}: cannot show that {a} equals {b}; declare it with `assume_eq`"))
        }
    }
}

/// Shapes combine if equal, or where one has rank 0 or a literal extent of 1.
fn broadcast_shapes(s: &Syms, a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, TypeError> {
    if a.is_empty() {
        return Ok(b.to_vec());
    }
    if b.is_empty() {
        return Ok(a.to_vec());
    }
    if a.len() != b.len() {
        return err("E0204", format!("ranks differ: {} and {}; reshape one side", show(s, a), show(s, b)));
    }
    let one = Dim::from(1);
    let mut out = vec![];
    for (x, y) in a.iter().zip(b) {
        if *x == one {
            out.push(y.clone());
        } else {
            if *y != one {
                same_dim(s, x, y, &format!("needs equal shapes, got {} and {}", show(s, a), show(s, b)))?;
            }
            out.push(x.clone());
        }
    }
    Ok(out)
}

/// Types of `param`, `state` and `call` come from the module; the verifier compares them.
pub fn declared(_: &Syms, _: &[&Ty], _: &[Attr]) -> Res {
    err("E0200", "the type comes from the declaration".into())
}

pub fn constant(_: &Syms, _: &[&Ty], a: &[Attr]) -> Res {
    match &a[2] {
        Attr::DType(d) => Ok(Ty::tensor(*d, a[1].as_shape().to_vec())),
        _ => err("E0206", "dtype expected".into()),
    }
}

pub fn table(_: &Syms, _: &[&Ty], a: &[Attr]) -> Res {
    Ok(Ty::tensor(DType::F32, vec![a[0].as_floats().len().into()]))
}

pub fn iota(s: &Syms, _: &[&Ty], a: &[Attr]) -> Res {
    let shape = a[1].as_shape().to_vec();
    if usize::try_from(a[0].as_int()).is_ok_and(|axis| axis < shape.len()) {
        return constant(s, &[], &[Attr::float(0.0), a[1].clone(), a[2].clone()]);
    }
    err("E0207", format!("axis {} of {}", a[0].as_int(), show(s, &shape)))
}

/// A scalar type with arithmetic.
fn number(elem: Elem, what: &str) -> Result<(), TypeError> {
    match elem {
        Elem::Scalar(d) if d != DType::Bool => Ok(()),
        other => err("E0202", format!("{what} must be numbers, is {other}")),
    }
}

pub fn unary(_: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    number(tensor(t[0], "operand")?.elem, "operand")?;
    Ok(t[0].clone())
}

pub fn unary_float(_: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    float(tensor(t[0], "operand")?, "operand")?;
    Ok(t[0].clone())
}

fn pair(s: &Syms, t: &[&Ty]) -> Result<TensorTy, TypeError> {
    let (a, b) = (tensor(t[0], "left side")?, tensor(t[1], "right side")?);
    if a.elem != b.elem || a.elem.scalar().is_none() {
        return err("E0202", format!("element types {} and {} do not combine; insert `cast`", a.elem, b.elem));
    }
    Ok(TensorTy { elem: a.elem, shape: broadcast_shapes(s, &a.shape, &b.shape)? })
}

pub fn binary(s: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    let p = pair(s, t)?;
    number(p.elem, "operands")?;
    Ok(Ty::Tensor(p))
}

pub fn binary_float(s: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    let p = pair(s, t)?;
    float(&p, "operands")?;
    Ok(Ty::Tensor(p))
}

pub fn compare(s: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    Ok(Ty::tensor(DType::Bool, pair(s, t)?.shape))
}

pub fn logical(s: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    let p = pair(s, t)?;
    match p.elem {
        Elem::Scalar(DType::Bool) => Ok(Ty::Tensor(p)),
        other => err("E0202", format!("operands must be bool, are {other}")),
    }
}

pub fn select(s: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    let c = tensor(t[0], "condition")?;
    if c.elem != Elem::Scalar(DType::Bool) {
        return err("E0202", format!("condition must be bool, is {}", c.elem));
    }
    let b = pair(s, &t[1..])?;
    Ok(Ty::tensor(b.elem, broadcast_shapes(s, &c.shape, &b.shape)?))
}

pub fn cast(_: &Syms, t: &[&Ty], a: &[Attr]) -> Res {
    let x = tensor(t[0], "operand")?;
    match (&a[0], x.elem.scalar()) {
        (Attr::DType(d), Some(_)) => Ok(Ty::tensor(*d, x.shape.clone())),
        _ => err("E0202", format!("{} is not a scalar type; use `dequant`", x.elem)),
    }
}

fn product(shape: &[Dim]) -> Dim {
    shape.iter().fold(Dim::from(1), |p, d| p * d.clone())
}

fn scalar_tensor(t: &Ty) -> Result<&TensorTy, TypeError> {
    let x = tensor(t, "operand")?;
    match x.elem {
        Elem::Scalar(_) => Ok(x),
        other => err("E0202", format!("elements of {other} can not be moved one by one")),
    }
}

pub fn reshape(s: &Syms, t: &[&Ty], a: &[Attr]) -> Res {
    let x = scalar_tensor(t[0])?;
    let shape = a[0].as_shape().to_vec();
    let (from, to) = (product(&x.shape), product(&shape));
    if s.prove_eq(&from, &to) != Proof::Yes {
        let (f, g) = (s.show(&from), s.show(&to));
        return err("E0208", format!("{} has {f} elements, {} has {g}", show(s, &x.shape), show(s, &shape)));
    }
    Ok(Ty::tensor(x.elem, shape))
}

pub fn permute(s: &Syms, t: &[&Ty], a: &[Attr]) -> Res {
    let x = scalar_tensor(t[0])?;
    let Attr::Ints(perm) = &a[0] else { return err("E0206", "list of axes expected".into()) };
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    if sorted.iter().copied().ne(0..x.shape.len() as i64) {
        return err("E0207", format!("{perm:?} does not permute the axes of {}", show(s, &x.shape)));
    }
    Ok(Ty::tensor(x.elem, perm.iter().map(|&i| x.shape[i as usize].clone()).collect()))
}

pub fn broadcast(s: &Syms, t: &[&Ty], a: &[Attr]) -> Res {
    let x = scalar_tensor(t[0])?;
    let shape = a[0].as_shape().to_vec();
    let got = broadcast_shapes(s, &x.shape, &shape)?;
    if got != shape {
        return err("E0203", format!("{} does not repeat to {}", show(s, &x.shape), show(s, &shape)));
    }
    Ok(Ty::tensor(x.elem, shape))
}

fn axis(s: &Syms, x: &TensorTy, a: &Attr) -> Result<usize, TypeError> {
    match usize::try_from(a.as_int()) {
        Ok(i) if i < x.shape.len() => Ok(i),
        _ => err("E0207", format!("axis {} of {}", a.as_int(), show(s, &x.shape))),
    }
}

pub fn slice(s: &Syms, t: &[&Ty], a: &[Attr]) -> Res {
    let x = scalar_tensor(t[0])?;
    let ax = axis(s, x, &a[0])?;
    let (start, len) = (a[1].as_int(), a[2].as_int());
    let end = Dim::from(start) + Dim::from(len);
    if start < 0 || len < 0 || s.prove_le(&end, &x.shape[ax]) != Proof::Yes {
        return err("E0209", format!("{start}..{} of axis {ax} of {}", s.show(&end), show(s, &x.shape)));
    }
    let mut shape = x.shape.clone();
    shape[ax] = len.into();
    Ok(Ty::tensor(x.elem, shape))
}

pub fn concat(s: &Syms, t: &[&Ty], a: &[Attr]) -> Res {
    let first = scalar_tensor(t[0])?;
    let ax = axis(s, first, &a[0])?;
    let mut shape = first.shape.clone();
    for other in &t[1..] {
        let o = scalar_tensor(other)?;
        if o.elem != first.elem || o.shape.len() != shape.len() {
            return err("E0202", format!("{}{} beside {}{}", o.elem, show(s, &o.shape), first.elem, show(s, &shape)));
        }
        for (i, d) in o.shape.iter().enumerate() {
            if i == ax {
                shape[i] = shape[i].clone() + d.clone();
            } else {
                same_dim(s, &shape[i], d, &format!("axis {i}"))?;
            }
        }
    }
    Ok(Ty::tensor(first.elem, shape))
}

pub fn reduce(_: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    let x = tensor(t[0], "operand")?;
    float(x, "operand")?;
    let mut shape = x.shape.clone();
    match shape.last_mut() {
        Some(d) => *d = 1.into(),
        None => return err("E0204", "a scalar has no axis to reduce".into()),
    }
    Ok(Ty::tensor(x.elem, shape))
}

fn contract(s: &Syms, x: &TensorTy, w: &TensorTy) -> Res {
    rank(w, s, 2, "weight")?;
    let Some((k, lead)) = x.shape.split_last() else {
        return err("E0204", "left side must have at least one axis".into());
    };
    same_dim(s, k, &w.shape[1], &format!("inner extents of {} and {}", show(s, &x.shape), show(s, &w.shape)))?;
    let mut shape = lead.to_vec();
    shape.push(w.shape[0].clone());
    Ok(Ty::tensor(DType::F32, shape))
}

pub fn linear(s: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    let (x, w) = (tensor(t[0], "left side")?, tensor(t[1], "weight")?);
    float(x, "left side")?;
    match w.elem {
        Elem::Scalar(DType::F32) | Elem::Packed(_) | Elem::Rows8(_) => contract(s, x, w),
        other => err("E0202", format!("weight must be f32 or packed, is {other}; insert `dequant`")),
    }
}

pub fn qlinear(s: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    let (x, w) = (tensor(t[0], "left side")?, tensor(t[1], "weight")?);
    match (x.elem, w.elem) {
        (Elem::Act8 | NARROW, Elem::Packed(_)) => contract(s, x, w),
        (x, w) => err("E0202", format!("needs act8 or bf16 and a packed weight, got {x} and {w}")),
    }
}

/// Activations beside which `qlinear` rounds weights, too, and `attend` keys and values.
const NARROW: Elem = Elem::Scalar(DType::BF16);

/// Is a product of these a `qlinear`? Else it is a `linear`.
pub fn is_narrow(x: Elem, w: Elem) -> bool {
    x == Elem::Act8 || x == NARROW && matches!(w, Elem::Packed(_))
}

pub fn glu_linear(s: &Syms, t: &[&Ty], a: &[Attr]) -> Res {
    let narrow = is_narrow(tensor(t[0], "left side")?.elem, tensor(t[1], "weight")?.elem);
    let Ty::Tensor(mut y) = (if narrow { qlinear(s, t, a) } else { linear(s, t, a) })? else {
        return err("E0201", "a tensor".into());
    };
    let last = y.shape.len() - 1;
    if s.prove_multiple(&y.shape[last], 16) != Proof::Yes {
        return err("E0210", format!("{} rows are no multiple of 16", s.show(&y.shape[last])));
    }
    if !(0..=2).contains(&a[0].as_int()) {
        return err("E0206", format!("activation {} is not one of 0, 1, 2", a[0].as_int()));
    }
    y.shape[last] = y.shape[last].div_exact(2).unwrap_or_default();
    Ok(Ty::Tensor(y))
}

pub fn gather(_: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    let (table, ids) = (tensor(t[0], "table")?, tensor(t[1], "ids")?);
    int(ids, "ids")?;
    if table.shape.is_empty() {
        return err("E0204", "a scalar has no rows".into());
    }
    let elem = match table.elem {
        Elem::Scalar(d) => d,
        Elem::Packed(_) | Elem::Rows8(_) => DType::F32,
        other => return err("E0202", format!("rows of {other} can not be gathered; insert `dequant`")),
    };
    Ok(Ty::tensor(elem, [&ids.shape, &table.shape[1..]].concat()))
}

pub fn dequant(_: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    let x = tensor(t[0], "operand")?;
    match x.elem {
        Elem::Scalar(d) if !d.is_float() => err("E0202", format!("{d} does not stand for real numbers")),
        Elem::Act8 => err("E0202", "act8 is only read by `qlinear`".into()),
        _ => Ok(Ty::tensor(DType::F32, x.shape.clone())),
    }
}

pub fn pack(s: &Syms, t: &[&Ty], a: &[Attr]) -> Res {
    let w = tensor(t[0], "weight")?;
    rank(w, s, 2, "weight")?;
    let Attr::Elem(to) = a[0] else { return err("E0206", "element type expected".into()) };
    let ok = match (w.elem, to) {
        (Elem::Gguf(t), Elem::Packed(p)) => {
            p == crate::Packed::for_gguf(t) && s.prove_multiple(&w.shape[1], t.block_len() as i64) == Proof::Yes
        }
        (Elem::Gguf(t), Elem::Rows8(DType::F32)) => s.prove_multiple(&w.shape[1], t.block_len() as i64) == Proof::Yes,
        (Elem::Scalar(d), Elem::Rows8(e)) => d.is_float() && (d == e || e == DType::F32),
        _ => false,
    };
    if !ok {
        return err("E0202", format!("{}{} can not be packed as {to}", w.elem, show(s, &w.shape)));
    }
    Ok(Ty::tensor(to, w.shape.clone()))
}

pub fn concat_rows(s: &Syms, t: &[&Ty], a: &[Attr]) -> Res {
    if a[0].as_int() < 0 {
        return err("E0206", format!("interleaved by {}", a[0].as_int()));
    }
    let first = tensor(t[0], "first matrix")?;
    rank(first, s, 2, "first matrix")?;
    let mut rows = first.shape[0].clone();
    for other in &t[1..] {
        let o = tensor(other, "matrix")?;
        rank(o, s, 2, "matrix")?;
        if o.elem != first.elem {
            return err("E0202", format!("element types {} and {} can not share a matrix", first.elem, o.elem));
        }
        same_dim(s, &first.shape[1], &o.shape[1], "row lengths")?;
        if a[0].as_int() > 0 {
            same_dim(s, &first.shape[0], &o.shape[0], "interleaved matrices")?;
        }
        rows = rows + o.shape[0].clone();
    }
    if a[0].as_int() > 0 && s.prove_multiple(&first.shape[0], a[0].as_int()) != Proof::Yes {
        return err("E0210", format!("{} rows are no multiple of {}", s.show(&first.shape[0]), a[0].as_int()));
    }
    Ok(Ty::tensor(first.elem, vec![rows, first.shape[1].clone()]))
}

pub fn quantize(s: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    let x = tensor(t[0], "operand")?;
    float(x, "operand")?;
    rank(x, s, 2, "operand")?;
    if s.prove_multiple(&x.shape[1], 32) != Proof::Yes {
        return err("E0210", format!("rows of {} are no multiple of 32", s.show(&x.shape[1])));
    }
    Ok(Ty::tensor(Elem::Act8, x.shape.clone()))
}

fn heads(s: &Syms, x: &TensorTy, state: &KvTy, what: &str) -> Result<(), TypeError> {
    rank(x, s, 3, what)?;
    same_dim(s, &x.shape[2], &state.dim.into(), &format!("{what}: head size"))
}

pub fn kv_append(s: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    let state = kv(t[0], "cache")?;
    let (k, v, slot) = (tensor(t[1], "keys")?, tensor(t[2], "values")?, tensor(t[3], "slots")?);
    int(slot, "slots")?;
    rank(slot, s, 1, "slots")?;
    for (x, what) in [(k, "keys"), (v, "values")] {
        float(x, what)?;
        heads(s, x, state, what)?;
        same_dim(s, &x.shape[1], &state.heads.into(), &format!("{what}: heads"))?;
        same_dim(s, &x.shape[0], &slot.shape[0], &format!("{what}: tokens"))?;
    }
    Ok(t[0].clone())
}

pub fn kv_read(_: &Syms, t: &[&Ty], a: &[Attr]) -> Res {
    let k = kv(t[0], "cache")?;
    if !(0..=1).contains(&a[0].as_int()) {
        return err("E0206", format!("component {} of a cache is neither 0 (keys) nor 1 (values)", a[0].as_int()));
    }
    Ok(Ty::tensor(k.dtype, vec![k.slots.clone(), k.heads.into(), k.dim.into()]))
}

pub fn rms_norm(s: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    let (x, w) = (tensor(t[0], "operand")?, tensor(t[1], "gain")?);
    float(x, "operand")?;
    float(w, "gain")?;
    rank(w, s, 1, "gain")?;
    let (k, _) = choices(s, x)?;
    same_dim(s, &k.into(), &w.shape[0], "operand and gain")?;
    Ok(t[0].clone())
}

pub fn layer_norm(s: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    choices(s, tensor(t[0], "operand")?)?;
    Ok(t[0].clone())
}

/// A tensor with a last axis of constant extent.
fn choices<'a>(s: &Syms, x: &'a TensorTy) -> Result<(i64, &'a [Dim]), TypeError> {
    float(x, "operand")?;
    match x.shape.split_last() {
        Some((d, lead)) => match d.as_const() {
            Some(d) => Ok((d, lead)),
            None => err("E0216", format!("the last axis of {} must have a constant extent", show(s, &x.shape))),
        },
        None => err("E0204", "operand must have at least one axis".into()),
    }
}

pub fn top_k(s: &Syms, t: &[&Ty], a: &[Attr]) -> Res {
    let (n, lead) = choices(s, tensor(t[0], "operand")?)?;
    let k = a[0].as_int();
    if !(1..=n).contains(&k) {
        return err("E0219", format!("{k} of {n} elements"));
    }
    Ok(Ty::tensor(DType::I32, [lead, &[k.into()]].concat()))
}

pub fn pick(s: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    let (x, ids) = (tensor(t[0], "operand")?, tensor(t[1], "ids")?);
    let (_, lead) = choices(s, x)?;
    int(ids, "ids")?;
    rank(ids, s, x.shape.len(), "ids")?;
    for (a, b) in lead.iter().zip(&ids.shape) {
        same_dim(s, a, b, "leading axes of operand and ids")?;
    }
    Ok(Ty::tensor(DType::F32, ids.shape.clone()))
}

pub fn expert_linear(s: &Syms, t: &[&Ty], a: &[Attr]) -> Res {
    let (x, w, ids) = (tensor(t[0], "left side")?, tensor(t[1], "weights")?, tensor(t[2], "ids")?);
    float(x, "left side")?;
    int(ids, "ids")?;
    rank(x, s, 3, "left side")?;
    rank(w, s, 2, "weights")?;
    rank(ids, s, 2, "ids")?;
    same_dim(s, &x.shape[0], &ids.shape[0], "tokens")?;
    if x.shape[1] != 1.into() {
        same_dim(s, &x.shape[1], &ids.shape[1], "choices")?;
    }
    same_dim(s, &x.shape[2], &w.shape[1], "inner extents")?;
    let rows = w.shape[0].div_exact(a[0].as_int().max(1)).filter(|_| a[0].as_int() > 0);
    let Some(rows) = rows else {
        return err("E0210", format!("{} rows do not divide among {} experts", s.show(&w.shape[0]), a[0].as_int()));
    };
    match w.elem {
        Elem::Scalar(DType::F32) | Elem::Packed(_) | Elem::Rows8(_) => {
            Ok(Ty::tensor(DType::F32, vec![ids.shape[0].clone(), ids.shape[1].clone(), rows]))
        }
        other => err("E0202", format!("weights must be f32 or packed, are {other}; insert `dequant`")),
    }
}

pub fn rope(s: &Syms, t: &[&Ty], a: &[Attr]) -> Res {
    let table = rope_table(s, &t[1..], a)?;
    rope_apply(s, &[t[0], &table], &a[2..])
}

pub fn rope_table(s: &Syms, t: &[&Ty], a: &[Attr]) -> Res {
    let pos = tensor(t[0], "positions")?;
    int(pos, "positions")?;
    rank(pos, s, 1, "positions")?;
    Ok(Ty::tensor(DType::F32, vec![pos.shape[0].clone(), (2 * a[0].as_floats().len()).into()]))
}

pub fn rope_apply(s: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    let (x, table) = (tensor(t[0], "operand")?, tensor(t[1], "table")?);
    float(x, "operand")?;
    float(table, "table")?;
    rank(x, s, 3, "operand")?;
    rank(table, s, 2, "table")?;
    same_dim(s, &x.shape[0], &table.shape[0], "tokens")?;
    let r = table.shape[1].as_const().unwrap_or(-1);
    if r < 2 || r % 2 != 0 || s.prove_le(&r.into(), &x.shape[2]) != Proof::Yes {
        return err("E0211", format!("{r} rotary features do not fit heads of {}", show(s, &x.shape)));
    }
    Ok(t[0].clone())
}

pub fn attend(s: &Syms, t: &[&Ty], a: &[Attr]) -> Res {
    let q = tensor(t[0], "queries")?;
    let state = kv(t[1], "cache")?;
    if q.elem != NARROW {
        float(q, "queries")?;
    }
    heads(s, q, state, "queries")?;
    if state.heads == 0 || s.prove_multiple(&q.shape[1], state.heads as i64) != Proof::Yes {
        return err("E0212", format!("{} query heads over {} key heads", s.show(&q.shape[1]), state.heads));
    }
    for (i, (what, r)) in [("positions", 1), ("sequences", 1), ("page table", 2)].into_iter().enumerate() {
        let x = tensor(t[2 + i], what)?;
        int(x, what)?;
        rank(x, s, r, what)?;
        if r == 1 {
            same_dim(s, &x.shape[0], &q.shape[0], what)?;
        }
    }
    if a[3].as_int() < 1 {
        return err("E0213", format!("page of {} slots", a[3].as_int()));
    }
    Ok(t[0].clone())
}

pub fn attend_parts(s: &Syms, t: &[&Ty], a: &[Attr]) -> Res {
    float(tensor(t[0], "queries")?, "queries")?;
    let ty = attend(s, t, a)?;
    let q = &tensor(&ty, "queries")?.shape;
    let parts = a[4].as_int();
    if !(1..=1 << 16).contains(&parts) {
        return err("E0213", format!("{parts} parts"));
    }
    Ok(Ty::tensor(DType::F32, vec![q[0].clone(), q[1].clone(), parts.into(), q[2].clone() + 2.into()]))
}

pub fn attend_merge(s: &Syms, t: &[&Ty], _: &[Attr]) -> Res {
    let x = tensor(t[0], "parts")?;
    float(x, "parts")?;
    rank(x, s, 4, "parts")?;
    match x.shape[3].as_const() {
        Some(width) if width > 2 => {
            Ok(Ty::tensor(x.elem, vec![x.shape[0].clone(), x.shape[1].clone(), (width - 2).into()]))
        }
        _ => err("E0210", format!("parts have {} numbers, where more than 2 are due", s.show(&x.shape[3]))),
    }
}

pub fn attend_sloped(s: &Syms, t: &[&Ty], a: &[Attr]) -> Res {
    float(tensor(t[0], "queries")?, "queries")?;
    let ty = attend(s, t, a)?;
    let (heads, slopes) = (&tensor(&ty, "queries")?.shape[1], a[4].as_floats().len());
    same_dim(s, heads, &slopes.into(), "query heads and slopes")?;
    Ok(ty)
}

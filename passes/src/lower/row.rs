//! Row kernels: reductions along the last axis, quantization, and the elementwise work around them, row by row.

use std::collections::HashMap;

use marquetry_ir::graph::{Class, Op, Value};
use marquetry_ir::loops::{BinOp, Buf, Expr, LoopKind, Micro, MicroOp, Scope, Stmt, UnOp, micro};
use marquetry_ir::{DType, Dim};

use super::map::leading;
use super::read::{Cx, Lowered, Planes, is_dear};

/// One pass over the operations per row; results are stored as soon as they are known, and read back from there.
pub fn rows(cx: &mut Cx<'_>, results: &HashMap<Value, Planes>) -> Lowered<()> {
    let anchor = cx.f.insts.iter().find(|i| i.op.class() == Class::Reduce || i.op == Op::Quantize);
    let Some(anchor) = anchor else { return Err("no row operation".into()) };
    let mut row = cx.shape(anchor.operands[0]);
    let k = row.pop().ok_or("rows need an axis")?;
    let Some((first, inner)) = row.split_first() else {
        cx.k.body = stages(cx, results, &[], &k)?;
        return Ok(());
    };
    let inner = inner.to_vec();
    cx.k.body = leading(cx, first, |cx, t| over(cx, results, vec![t], &inner, &k))?;
    Ok(())
}

fn over(
    cx: &mut Cx<'_>,
    results: &HashMap<Value, Planes>,
    idx: Vec<Expr>,
    rest: &[Dim],
    k: &Dim,
) -> Lowered<Vec<Stmt>> {
    let Some((d, rest)) = rest.split_first() else { return stages(cx, results, &idx, k) };
    let loop_ = cx.each("h", d, LoopKind::Serial, |cx, h| over(cx, results, [idx, vec![h]].concat(), rest, k))?;
    Ok(vec![loop_])
}

fn at(row: &[Expr], i: Expr) -> Vec<Expr> {
    [row.to_vec(), vec![i]].concat()
}

fn stages(cx: &mut Cx<'_>, results: &HashMap<Value, Planes>, row: &[Expr], k: &Dim) -> Lowered<Vec<Stmt>> {
    let mut all = vec![];
    for inst in &cx.f.insts {
        let v = inst.results[0];
        match inst.op {
            Op::ReduceSum | Op::ReduceMax => {
                let x = inst.operands[0];
                let (body, value) = reduce(cx, inst.op == Op::ReduceMax, k, |cx, i| cx.read(x, &at(row, i)))?;
                all.extend(body);
                cx.bound.insert(v, value);
            }
            Op::Quantize => {
                let Some(Planes::Act8(q, scale, sum)) = results.get(&v).cloned() else {
                    return Err("quantized rows that do not leave their kernel".into());
                };
                all.extend(quantize(cx, inst.operands[0], row, k, [q, scale, sum])?);
            }
            _ => {}
        }
        if let (Some(Planes::Plain(out)), false) = (results.get(&v).cloned(), inst.op == Op::Quantize) {
            let last = cx.shape(v).last().cloned().unwrap_or_default();
            let store = cx.each("i", &last, LoopKind::Serial, |cx, i| {
                let e = cx.read(v, &at(row, i.clone()))?;
                Ok(vec![cx.store(out, at(row, i), e)])
            })?;
            all.push(store);
            cx.bound.remove(&v);
            cx.planes.insert(v, Planes::Plain(out));
            cx.forget();
        }
    }
    Ok(all)
}

/// A reduction of `0..k` into a variable.
fn reduce(
    cx: &mut Cx<'_>,
    max: bool,
    k: &Dim,
    f: impl FnOnce(&mut Cx<'_>, Expr) -> Lowered<Expr>,
) -> Lowered<(Vec<Stmt>, Expr)> {
    let acc = cx.reg("acc", DType::F32, &[1]);
    let zero = || vec![Expr::idx(0)];
    let init = Expr::float(if max { f32::NEG_INFINITY } else { 0.0 });
    let mut all = vec![cx.store(acc, zero(), init)];
    all.push(cx.each("i", k, LoopKind::Serial, |cx, i| {
        let e = f(cx, i)?;
        let old = cx.k.load(acc, zero());
        Ok(vec![cx.store(acc, zero(), Expr::binary(if max { BinOp::Max } else { BinOp::Add }, old, e))])
    })?);
    let (bind, value) = cx.bind("r", cx.k.load(acc, zero()));
    all.push(bind);
    Ok((all, value))
}

/// A row of `x` quantized. Rows that are dear to compute, or that a routine reads, are stored first.
fn quantize(cx: &mut Cx<'_>, x: Value, row: &[Expr], k: &Dim, planes: [Buf; 3]) -> Lowered<Vec<Stmt>> {
    let len = k.as_const().ok_or("rows of symbolic length")?;
    let (first, count) = (Expr::idx(0), len / 32);
    let routine = cx.micro && row.len() == 1;
    let given = routine && cx.f.args.iter().any(|(_, arg)| *arg == x);
    if let (true, Some(Planes::Plain(buf))) = (given, cx.planes.get(&x).cloned()) {
        return Ok(vec![groups(cx, first, count, row, From::Stored(buf, row[0].clone()), planes)?]);
    }
    let probe = cx.read(x, &at(row, Expr::idx(0)))?;
    if !routine && !is_dear(&probe) {
        let get = |cx: &mut Cx<'_>, i: Expr| cx.read(x, &at(row, i));
        return Ok(vec![groups(cx, first, count, row, From::Computed(&get), planes)?]);
    }
    let local = cx.k.buffer("row", DType::F32, vec![1.into(), k.clone()], Scope::Local);
    let stored = cx.each("i", k, LoopKind::Serial, |cx, i| {
        let e = cx.read(x, &at(row, i.clone()))?;
        Ok(vec![cx.store(local, vec![Expr::idx(0), i], e)])
    })?;
    Ok(vec![stored, groups(cx, first, count, row, From::Stored(local, Expr::idx(0)), planes)?])
}

/// What is quantized, by elements counted from its first group.
pub enum From<'g> {
    /// A row of a matrix in memory, its first element the first one.
    Stored(Buf, Expr),
    /// Anything else.
    Computed(Get<'g>),
}

/// Reads an element.
pub type Get<'g> = &'g dyn Fn(&mut Cx<'_>, Expr) -> Lowered<Expr>;

/// Quantizes `count` groups of 32, the first of which is group `first` of the row of the result.
pub fn groups(
    cx: &mut Cx<'_>,
    first: Expr,
    count: i64,
    row: &[Expr],
    from: From<'_>,
    [q, scale, sum]: [Buf; 3],
) -> Lowered<Stmt> {
    if let (true, [row], From::Stored(x, at)) = (cx.micro, row, &from) {
        let to = |b: Buf, each: i64| (b, vec![row.clone(), first.clone() * each]);
        let args = vec![to(q, 32), to(scale, 1), to(sum, 2), (*x, vec![at.clone(), Expr::idx(0)])];
        return Ok(Stmt::Micro(Micro { op: MicroOp::Quantize, args, sizes: vec![Expr::idx(1), Expr::idx(count)] }));
    }
    let get = |cx: &mut Cx<'_>, i: Expr| match &from {
        From::Stored(x, at) => Ok(cx.k.load(*x, vec![at.clone(), i])),
        From::Computed(get) => get(cx, i),
    };
    cx.each("g", &count.into(), LoopKind::Serial, |cx, g| {
        let (base, to) = (g.clone() * 32, first.clone() + g);
        let (mut body, max) =
            reduce(cx, true, &32.into(), |cx, i| Ok(Expr::unary(UnOp::Abs, get(cx, base.clone() + i)?)))?;
        let (s, inv) = micro::group_scale(max);
        let (bind, s) = cx.bind("scale", s);
        body.push(bind);
        let (bind, inv) = cx.bind("inv", inv);
        body.push(bind);
        body.push(cx.store(scale, at(row, to.clone()), s.clone()));
        let rounded = |cx: &mut Cx<'_>, i: Expr| Ok::<_, String>(Expr::unary(UnOp::Round, get(cx, i)? * inv.clone()));
        body.push(cx.each("i", &32.into(), LoopKind::Serial, |cx, i| {
            let e = rounded(cx, base.clone() + i.clone())?.cast(DType::I32).cast(DType::I8);
            Ok(vec![cx.store(q, at(row, to.clone() * 32 + i), e)])
        })?);
        for half in 0..2 {
            let (sums, total) = reduce(cx, false, &16.into(), |cx, i| rounded(cx, base.clone() + half * 16 + i))?;
            body.extend(sums);
            body.push(cx.store(sum, at(row, to.clone() * 2 + half), total * s.clone()));
        }
        Ok(body)
    })
}

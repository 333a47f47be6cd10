//! Attention over pieces of the positions, so that few heads occupy many threads and those that share keys read them once; and
//! what puts the pieces together (Dao et al., "Flash-Decoding for long-context inference").

use marquetry_ir::graph::Inst;
use marquetry_ir::loops::micro::Attend;
use marquetry_ir::loops::{BinOp, Buf, Expr, LoopKind, Scope, Stmt, UnOp, dim_expr};
use marquetry_ir::{DType, Dim};

use super::attend::plain;
use super::map::nest;
use super::read::{Cx, Lowered, Planes};
use super::row::{From, groups};
use super::rows;

/// Positions of a piece are a multiple of this many. No parameter: it decides which positions a piece has, so what two kernels hand each
/// other.
const STEP: i64 = 16;

/// `attend_parts` stored to `out`: one piece of one token for the heads that share keys.
pub fn parts(cx: &mut Cx<'_>, inst: &Inst, out: Buf) -> Lowered<()> {
    let [q, state, pos, seq, pages] = inst.operands[..] else {
        return Err("`attend_parts` takes five operands".into());
    };
    let (Some(Planes::Kv([keys, values])), Some(Planes::Plain(pages))) =
        (cx.planes.get(&state).cloned(), cx.planes.get(&pages).cloned())
    else {
        return Err("the cache or the page table is no argument".into());
    };
    let shape = cx.shape(q);
    let (Some(heads), Some(dim)) = (shape[1].as_const(), shape[2].as_const()) else {
        return Err("symbolic heads".into());
    };
    let kv_heads = cx.k.decl(keys).shape[1].as_const().ok_or("symbolic key heads")?;
    let shared = heads / kv_heads;
    let (window, page, count) = (inst.attrs[1].as_int(), inst.attrs[3].as_int(), inst.attrs[4].as_int());
    let op = Attend {
        narrow: false,
        dtype: cx.k.decl(keys).dtype,
        scale: inst.attrs[0].as_f32().to_bits(),
        cap: inst.attrs[2].as_f32().max(0.0).to_bits(),
        parts: true,
    };
    let local = |cx: &mut Cx<'_>, name: &str, dtype, width: i64| {
        cx.k.buffer(name, dtype, vec![shared.into(), width.into()], Scope::Local)
    };
    let (query, sum) = (local(cx, "query", DType::F32, dim), local(cx, "sum", DType::F32, dim + 2));
    let meta = local(cx, "meta", DType::I64, 3);

    let var = cx.k.fresh("i");
    let i = Expr::var(var);
    let (token, set) = (i.clone() / (count * kv_heads), i % (count * kv_heads));
    let mut body = vec![];
    let mut name = |cx: &mut Cx<'_>, name: &str, e: Expr| {
        let (bind, e) = cx.bind(name, e);
        body.push(bind);
        e
    };
    let token = if shape[0].as_const() == Some(1) { Expr::idx(0) } else { name(cx, "t", token) };
    let part = name(cx, "part", set.clone() / kv_heads);
    let kv_head = name(cx, "kh", set % kv_heads);
    let at = cx.read(pos, std::slice::from_ref(&token))?.cast(DType::I64);
    let at = name(cx, "p", at);
    let s = cx.read(seq, std::slice::from_ref(&token))?.cast(DType::I64);
    let s = name(cx, "s", s);
    let first = if window > 0 { (at.clone() - (window - 1)).max(Expr::idx(0)) } else { Expr::idx(0) };
    let blocks = name(cx, "blocks", (at.clone() - first.clone() + STEP) / STEP);
    let bound = |part: Expr| first.clone() + (part * blocks.clone() + (count - 1)) / count * STEP;
    let begin = name(cx, "begin", bound(part.clone()));
    let end = name(cx, "end", (bound(part.clone() + 1) - 1).min(at));
    let row = |cx: &mut Cx<'_>, f: &mut dyn FnMut(&mut Cx<'_>, Expr) -> Lowered<Vec<Stmt>>| {
        cx.each("h", &shared.into(), LoopKind::Serial, |cx, h| f(cx, h))
    };
    body.push(row(cx, &mut |cx, h| {
        let put = |cx: &Cx<'_>, i: Vec<Expr>, e: Expr| cx.store(query, vec![h.clone(), i[2].clone()], e);
        let head = kv_head.clone() * shared + h.clone();
        let mut all = nest(cx, q, &[token.clone(), head], &vec![Dim::default(); 3], &put)?;
        let range = [begin.clone(), end.clone(), s.clone()];
        all.extend(range.into_iter().zip(0..).map(|(e, i)| cx.store(meta, vec![h.clone(), Expr::idx(i)], e)));
        Ok(all)
    })?);
    body.push(rows::call(op, [sum, query, keys, values, pages, meta], &kv_head, [shared, dim, page].map(Expr::idx)));
    cx.forget();
    body.push(row(cx, &mut |cx, h| {
        let head = kv_head.clone() * shared + h.clone();
        Ok(vec![cx.each("d", &(dim + 2).into(), LoopKind::Serial, |cx, d| {
            let e = cx.k.load(sum, vec![h.clone(), d.clone()]);
            Ok(vec![cx.store(out, vec![token.clone(), head.clone(), part.clone(), d], e)])
        })?])
    })?);
    let extent = dim_expr(&(shape[0].clone() * Dim::from(count * kv_heads)));
    cx.k.body = vec![Stmt::For { var, extent, kind: LoopKind::Parallel, body }];
    Ok(())
}

/// `attend_merge` stored to `out`: plain, in any float type, or quantized per head, whose features are then whole groups.
pub fn merge(cx: &mut Cx<'_>, inst: &Inst, out: &Planes) -> Lowered<()> {
    let x = inst.operands[0];
    let shape = cx.shape(x);
    let constant = |i: usize| shape[i].as_const().ok_or("symbolic heads or parts");
    let (heads, parts, dim) = (constant(1)?, constant(2)?, constant(3)? - 2);
    let sum = cx.k.buffer("sum", DType::F32, vec![1.into(), dim.into()], Scope::Local);
    let weights = cx.k.buffer("weights", DType::F32, vec![parts.into()], Scope::Local);
    let fold = cx.reg("fold", DType::F32, &[1]);
    let zero = || vec![Expr::idx(0)];

    let var = cx.k.fresh("i");
    let i = Expr::var(var);
    let (b1, token) = cx.bind("t", i.clone() / heads);
    let (b2, head) = cx.bind("h", i % heads);
    let read = |cx: &mut Cx<'_>, p: Expr, d: Expr| cx.read(x, &[token.clone(), head.clone(), p, d]);
    let mut body = vec![b1, b2, cx.store(fold, zero(), Expr::float(f32::NEG_INFINITY))];
    body.push(cx.each("j", &parts.into(), LoopKind::Serial, |cx, p| {
        let e = Expr::binary(BinOp::Max, cx.k.load(fold, zero()), read(cx, p, Expr::idx(dim))?);
        Ok(vec![cx.store(fold, zero(), e)])
    })?);
    let (bind, top) = cx.bind("top", cx.k.load(fold, zero()));
    body.extend([bind, cx.store(fold, zero(), Expr::float(0.0))]);
    body.push(cx.each("j", &parts.into(), LoopKind::Serial, |cx, p| {
        let e = Expr::unary(UnOp::Exp, read(cx, p.clone(), Expr::idx(dim))? - top.clone());
        let (bind, w) = cx.bind("w", e);
        let total = w.clone().fma(read(cx, p.clone(), Expr::idx(dim + 1))?, cx.k.load(fold, zero()));
        Ok(vec![bind, cx.store(weights, vec![p], w), cx.store(fold, zero(), total)])
    })?);
    let (bind, scale) = cx.bind("scale", Expr::float(1.0) / cx.k.load(fold, zero()));
    body.push(bind);
    body.push(cx.each("d", &dim.into(), LoopKind::Serial, |cx, d| {
        Ok(vec![cx.store(sum, vec![Expr::idx(0), d], Expr::float(0.0))])
    })?);
    body.push(cx.each("j", &parts.into(), LoopKind::Serial, |cx, p| {
        let (bind, w) = cx.bind("w", cx.k.load(weights, vec![p.clone()]) * scale.clone());
        let add = cx.each("d", &dim.into(), LoopKind::Serial, |cx, d| {
            let e = w.clone().fma(read(cx, p.clone(), d.clone())?, cx.k.load(sum, vec![Expr::idx(0), d.clone()]));
            Ok(vec![cx.store(sum, vec![Expr::idx(0), d], e)])
        })?;
        Ok(vec![bind, add])
    })?);
    body.push(finished(cx, sum, &token, &head, dim, out)?);
    let extent = dim_expr(&(shape[0].clone() * Dim::from(heads)));
    let few = shape[0].as_const() == Some(1) && heads * parts * dim <= cx.params.merge_numbers;
    let kind = if few { LoopKind::Serial } else { LoopKind::Parallel };
    cx.k.body = vec![Stmt::For { var, extent, kind, body }];
    Ok(())
}

/// Stores a head of attention from scratch memory.
fn finished(cx: &mut Cx<'_>, sum: Buf, token: &Expr, head: &Expr, dim: i64, out: &Planes) -> Lowered<Stmt> {
    match out {
        Planes::Plain(out) => {
            let get = |cx: &Cx<'_>, d: Expr| cx.k.load(sum, vec![Expr::idx(0), d]);
            plain(cx, *out, [token, head], dim, &get)
        }
        Planes::Act8(q, scale, total) if dim % 32 == 0 => {
            let (first, from) = (head.clone() * (dim / 32), From::Stored(sum, Expr::idx(0)));
            groups(cx, first, dim / 32, std::slice::from_ref(token), from, [*q, *scale, *total])
        }
        _ => Err("attention gives plain or quantized numbers".into()),
    }
}

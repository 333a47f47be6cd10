//! Attention over the paged cache: one query head per iteration, keys in blocks, softmax on the fly
//! (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135).

use marquetry_ir::graph::{Attr, Inst, Op};
use marquetry_ir::loops::{BinOp, Buf, Expr, LoopKind, Scope, Stmt, UnOp, dim_expr};
use marquetry_ir::{DType, Dim, Elem};

use super::map::nest;
use super::read::{Cx, Lowered, Planes};
use super::row::{From, groups};
use super::rows;

/// `attend` stored to `out`: plain, in any float type, or quantized per head, whose features are then whole groups.
pub fn attend(cx: &mut Cx<'_>, inst: &Inst, out: &Planes) -> Lowered<()> {
    if cx.micro && inst.op == Op::Attend {
        return rows::attend(cx, inst, out);
    }
    let [q, state, pos, seq, pages] = inst.operands[..] else { return Err("`attend` takes five operands".into()) };
    let Some(Planes::Kv([keys, values])) = cx.planes.get(&state).cloned() else {
        return Err("the cache is no argument".into());
    };
    let width = cx.params.attend_block;
    let shape = cx.shape(q);
    let [heads, dim] = [1, 2].map(|i| shape[i].as_const());
    let (heads, dim) = (heads.ok_or("symbolic heads")?, dim.ok_or("symbolic head size")?);
    let kv_heads = cx.k.decl(keys).shape[1].as_const().ok_or("symbolic key heads")?;
    let (scale, window) = (inst.attrs[0].as_f32(), inst.attrs[1].as_int());
    let (cap, page) = (inst.attrs[2].as_f32(), inst.attrs[3].as_int());
    let slopes = match inst.attrs.get(4) {
        Some(Attr::Floats(bits)) => cx.tables.iter().find(|(_, b)| b == bits).map(|(buf, _)| *buf),
        _ => None,
    };
    let narrow = cx.f.ty(q).as_tensor().is_some_and(|t| t.elem == Elem::Scalar(DType::BF16));
    let scores = cx.k.buffer("scores", DType::F32, vec![width.into()], Scope::Local);
    let slots = cx.k.buffer("slots", DType::I64, vec![width.into()], Scope::Local);
    let acc = cx.k.buffer("sum", DType::F32, vec![dim.into()], Scope::Local);
    let stats = cx.reg("stats", DType::F32, &[2, 1]);
    let stat = |i: i64| vec![Expr::idx(i), Expr::idx(0)];

    let var = cx.k.fresh("i");
    let i = Expr::var(var);
    let (token, head) = (i.clone() / heads, i % heads);
    let mut body = vec![];
    let mut name = |cx: &mut Cx<'_>, n: &str, e: Expr| {
        let (stmt, e) = cx.bind(n, e);
        body.push(stmt);
        e
    };
    let token = if shape[0].as_const() == Some(1) { Expr::idx(0) } else { name(cx, "t", token) };
    let head = name(cx, "h", head);
    let kv_head = name(cx, "kh", head.clone() / (heads / kv_heads));
    let p = cx.read(pos, std::slice::from_ref(&token))?.cast(DType::I64);
    let p = name(cx, "p", p);
    let s = cx.read(seq, std::slice::from_ref(&token))?.cast(DType::I64);
    let s = name(cx, "s", s);
    let first = if window > 0 { (p.clone() - (window - 1)).max(Expr::idx(0)) } else { Expr::idx(0) };
    let first = name(cx, "first", first);
    let count = name(cx, "blocks", (p.clone() - first.clone() + width) / width);

    let query = match cx.planes.get(&q) {
        Some(Planes::Plain(_)) => None,
        // Computed on the way: once per head, not once per position.
        _ => {
            let query = cx.k.buffer("query", DType::F32, vec![dim.into()], Scope::Local);
            let put = |cx: &Cx<'_>, at: Vec<Expr>, e: Expr| cx.store(query, at[2..].to_vec(), e.cast(DType::F32));
            body.extend(nest(cx, q, &[token.clone(), head.clone()], &vec![Dim::default(); 3], &put)?);
            Some(query)
        }
    };
    body.push(cx.store(stats, stat(0), Expr::float(f32::NEG_INFINITY)));
    body.push(cx.store(stats, stat(1), Expr::float(0.0)));
    body.push(cx.each("d", &dim.into(), LoopKind::Serial, |cx, d| Ok(vec![cx.store(acc, vec![d], Expr::float(0.0))]))?);

    let block = cx.k.fresh("b");
    let base = first + Expr::var(block) * width;
    let mut inner = vec![];
    let dot = cx.reg("dot", DType::F32, &[1]);
    inner.push(cx.each("j", &width.into(), LoopKind::Serial, |cx, j| {
        let at = base.clone() + j.clone();
        let (b1, seen) = cx.bind("at", at.clone().min(p.clone()));
        let entry = cx.read(pages, &[s.clone(), seen.clone() / page])?.cast(DType::I64);
        let (b2, slot) = cx.bind("slot", entry * page + seen % page);
        let mut all = vec![b1, b2, cx.store(slots, vec![j.clone()], slot.clone())];
        all.push(cx.store(dot, vec![Expr::idx(0)], Expr::float(0.0)));
        all.push(cx.each("d", &dim.into(), LoopKind::Serial, |cx, d| {
            let x = match query {
                Some(query) => cx.k.load(query, vec![d.clone()]),
                None => cx.read(q, &[token.clone(), head.clone(), d.clone()])?.cast(DType::F32),
            };
            let k = cached(cx.k.load(keys, vec![slot.clone(), kv_head.clone(), d]), narrow);
            let old = cx.k.load(dot, vec![Expr::idx(0)]);
            Ok(vec![cx.store(dot, vec![Expr::idx(0)], x.fma(k, old))])
        })?);
        let mut score = cx.k.load(dot, vec![Expr::idx(0)]) * Expr::float(scale);
        if cap > 0.0 {
            score = Expr::unary(UnOp::Tanh, score / Expr::float(cap)) * Expr::float(cap);
        }
        if let Some(slopes) = slopes {
            let behind = (at.clone() - p.clone()).cast(DType::F32);
            score = score + cx.k.load(slopes, vec![head.clone()]) * behind;
        }
        let score = at.le(p.clone()).select(score, Expr::float(f32::NEG_INFINITY));
        all.push(cx.store(scores, vec![j], score));
        Ok(all)
    })?);
    inner.extend(softmax_step(cx, scores, acc, stats, dim)?);
    inner.extend(weighted_sum(cx, (slots, scores, values), (&kv_head, narrow), acc, dim)?);
    body.push(Stmt::For { var: block, extent: count, kind: LoopKind::Serial, body: inner });

    let (bind, total) = cx.bind("total", Expr::float(1.0) / cx.k.load(stats, stat(1)));
    body.push(bind);
    let scaled = |cx: &Cx<'_>, d: Expr| cx.k.load(acc, vec![d]) * total.clone();
    match out {
        Planes::Plain(out) => body.push(plain(cx, *out, [&token, &head], dim, &scaled)?),
        Planes::Act8(q, scale, sum) if dim % 32 == 0 => {
            body.push(cx.each("d", &dim.into(), LoopKind::Serial, |cx, d| {
                let e = scaled(cx, d.clone());
                Ok(vec![cx.store(acc, vec![d], e)])
            })?);
            let get = |cx: &mut Cx<'_>, i: Expr| Ok(cx.k.load(acc, vec![i]));
            let first = head.clone() * (dim / 32);
            body.push(groups(
                cx,
                first,
                dim / 32,
                std::slice::from_ref(&token),
                From::Computed(&get),
                [*q, *scale, *sum],
            )?);
        }
        _ => return Err("attention gives plain or quantized numbers".into()),
    }
    let extent = dim_expr(&(shape[0].clone() * Dim::from(heads)));
    cx.k.body = vec![Stmt::For { var, extent, kind: LoopKind::Parallel, body }];
    Ok(())
}

/// A number of the cache; queries that are `narrow` have it rounded as they are.
fn cached(e: Expr, narrow: bool) -> Expr {
    if narrow { e.cast(DType::BF16).cast(DType::F32) } else { e.cast(DType::F32) }
}

/// Stores a head, by feature, to `[tokens, heads, dim]`, or to the same in two axes, in the element type there.
pub fn plain(
    cx: &mut Cx<'_>,
    out: Buf,
    [token, head]: [&Expr; 2],
    dim: i64,
    get: &dyn Fn(&Cx<'_>, Expr) -> Expr,
) -> Lowered<Stmt> {
    cx.each("d", &dim.into(), LoopKind::Serial, |cx, d| {
        let to = cx.k.decl(out);
        let e = get(cx, d.clone()).cast(to.dtype);
        let inner = if to.shape.len() == 2 { vec![head.clone() * dim + d] } else { vec![head.clone(), d] };
        Ok(vec![cx.store(out, [vec![token.clone()], inner].concat(), e)])
    })
}

/// `acc += Σ_j scores[j] * values[slots[j]]`, a few groups of 8 features at a time, which stay in registers meanwhile.
fn weighted_sum(
    cx: &mut Cx<'_>,
    (slots, scores, values): (Buf, Buf, Buf),
    (kv_head, narrow): (&Expr, bool),
    acc: Buf,
    dim: i64,
) -> Lowered<Vec<Stmt>> {
    let lanes = if dim % 8 == 0 { 8 } else { 1 };
    let groups = [4, 3, 2, 1].into_iter().find(|g| (dim / lanes) % g == 0).unwrap_or(1);
    let part = cx.local("part", DType::F32, &[groups, lanes]);
    let chunk = groups * lanes;
    let width = cx.params.attend_block;
    let outer = cx.each("c", &(dim / chunk).into(), LoopKind::Serial, |cx, c| {
        let feature = |g: i64, l: Expr| c.clone() * chunk + g * lanes + l;
        let each = |cx: &mut Cx<'_>, f: &dyn Fn(&Cx<'_>, i64, Expr) -> Stmt| {
            let loops =
                (0..groups).map(|g| cx.each("l", &lanes.into(), LoopKind::Serial, |cx, l| Ok(vec![f(cx, g, l)])));
            loops.collect::<Lowered<Vec<Stmt>>>()
        };
        let at = |g: i64, l: Expr| vec![Expr::idx(g), l];
        let mut all = each(cx, &|cx, g, l| cx.store(part, at(g, l.clone()), cx.k.load(acc, vec![feature(g, l)])))?;
        all.push(cx.each("j", &width.into(), LoopKind::Serial, |cx, j| {
            let (b1, slot) = cx.bind("slot", cx.k.load(slots, vec![j.clone()]));
            let (b2, weight) = cx.bind("w", cx.k.load(scores, vec![j]));
            let mut body = vec![b1, b2];
            body.extend(each(cx, &|cx, g, l| {
                let v = cx.k.load(values, vec![slot.clone(), kv_head.clone(), feature(g, l.clone())]);
                let v = cached(v, narrow);
                let old = cx.k.load(part, at(g, l.clone()));
                cx.store(part, at(g, l), weight.clone().fma(v, old))
            })?);
            Ok(body)
        })?);
        all.extend(each(cx, &|cx, g, l| cx.store(acc, vec![feature(g, l.clone())], cx.k.load(part, at(g, l))))?);
        Ok(all)
    })?;
    Ok(vec![outer])
}

/// Moves the running maximum, rescales the sums, and turns the scores of a block into weights.
fn softmax_step(cx: &mut Cx<'_>, scores: Buf, acc: Buf, stats: Buf, dim: i64) -> Lowered<Vec<Stmt>> {
    let stat = |i: i64| vec![Expr::idx(i), Expr::idx(0)];
    let fold = cx.reg("fold", DType::F32, &[1]);
    let zero = || vec![Expr::idx(0)];
    let width = cx.params.attend_block;
    let reduce = |cx: &mut Cx<'_>, op: BinOp, init: f32| {
        let start = cx.store(fold, zero(), Expr::float(init));
        let loop_ = cx.each("j", &width.into(), LoopKind::Serial, |cx, j| {
            let e = Expr::binary(op, cx.k.load(fold, zero()), cx.k.load(scores, vec![j]));
            Ok(vec![cx.store(fold, zero(), e)])
        })?;
        let (bind, e) = cx.bind("fold", cx.k.load(fold, zero()));
        Ok::<_, String>((vec![start, loop_, bind], e))
    };
    let (mut all, top) = reduce(cx, BinOp::Max, f32::NEG_INFINITY)?;
    let (b1, max) = cx.bind("max", cx.k.load(stats, stat(0)).max(top));
    let (b2, shrink) = cx.bind("shrink", Expr::unary(UnOp::Exp, cx.k.load(stats, stat(0)) - max.clone()));
    all.extend([b1, b2, cx.store(stats, stat(0), max.clone())]);
    all.push(cx.each("j", &width.into(), LoopKind::Serial, |cx, j| {
        let e = Expr::unary(UnOp::Exp, cx.k.load(scores, vec![j.clone()]) - max.clone());
        Ok(vec![cx.store(scores, vec![j], e)])
    })?);
    let (sums, sum) = reduce(cx, BinOp::Add, 0.0)?;
    all.extend(sums);
    all.push(cx.store(stats, stat(1), cx.k.load(stats, stat(1)).fma(shrink.clone(), sum)));
    all.push(cx.each("d", &dim.into(), LoopKind::Serial, |cx, d| {
        let e = cx.k.load(acc, vec![d.clone()]) * shrink.clone();
        Ok(vec![cx.store(acc, vec![d], e)])
    })?);
    Ok(all)
}

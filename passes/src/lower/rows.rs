//! Attention by a micro-kernel: the queries of some tokens and heads that read the same keys, as rows of one matrix.

use marquetry_ir::graph::Inst;
use marquetry_ir::loops::micro::Attend;
use marquetry_ir::loops::{Buf, Expr, LoopKind, Micro, MicroOp, Node, Scope, Stmt, dim_expr};
use marquetry_ir::{DType, Dim, Elem};

use super::attend::plain;
use super::map::nest;
use super::read::{Cx, Lowered, Planes};
use super::row::{From, groups};

/// `attend` stored to `out`: plain, in any float type, or quantized per head, whose features are then whole groups.
pub fn attend(cx: &mut Cx<'_>, inst: &Inst, out: &Planes) -> Lowered<()> {
    let [q, state, pos, seq, pages] = inst.operands[..] else { return Err("`attend` takes five operands".into()) };
    let Some(Planes::Kv([keys, values])) = cx.planes.get(&state).cloned() else {
        return Err("the cache is no argument".into());
    };
    let Some(Planes::Plain(pages)) = cx.planes.get(&pages).cloned() else {
        return Err("the page table is no argument".into());
    };
    let shape = cx.shape(q);
    let [heads, dim] = [1, 2].map(|i| shape[i].as_const());
    let (heads, dim) = (heads.ok_or("symbolic heads")?, dim.ok_or("symbolic head size")?);
    let kv_heads = cx.k.decl(keys).shape[1].as_const().ok_or("symbolic key heads")?;
    let window = inst.attrs[1].as_int();
    let (cap, page) = (inst.attrs[2].as_f32().max(0.0), inst.attrs[3].as_int());
    let scale = inst.attrs[0].as_f32().to_bits();
    let narrow = cx.f.ty(q).as_tensor().is_some_and(|t| t.elem == Elem::Scalar(DType::BF16));
    let op = Attend { dtype: cx.k.decl(keys).dtype, scale, cap: cap.to_bits(), parts: false, narrow };

    // Heads that share keys, all of them or as many as leave enough iterations.
    let shared = heads / kv_heads;
    let p = cx.params;
    let one = shape[0].as_const() == Some(1);
    let together = if one {
        let enough = |h: &i64| shared % h == 0 && heads / h >= p.attend_spread.min(heads);
        (1..=shared).rev().find(enough).unwrap_or(1)
    } else {
        shared
    };
    let tokens = if one { 1 } else { (p.attend_rows.min(p.attend_numbers / dim.max(1)) / together).max(1) };
    let local = |cx: &mut Cx<'_>, name: &str, dtype, width: i64| {
        cx.k.buffer(name, dtype, vec![(tokens * together).into(), width.into()], Scope::Local)
    };
    let (query, sum) = (local(cx, "query", DType::F32, dim), local(cx, "sum", DType::F32, dim));
    let meta = local(cx, "meta", DType::I64, 3);

    let sets = heads / together;
    let var = cx.k.fresh("i");
    let n = dim_expr(&shape[0]);
    let (tiles, most) = match one {
        true => (Expr::idx(1), 1),
        false => ((n.clone() + (tokens - 1)) / tokens, cx.syms.range(&shape[0]).1 / tokens + 1),
    };
    let mut body = vec![];
    let mut name = |cx: &mut Cx<'_>, name: &str, e: Expr, extent: i64| {
        let (bind, e) = cx.bind(name, e);
        if let Node::Var(v) = e.node() {
            cx.ranges.declare(*v, extent);
        }
        body.push(bind);
        e
    };
    let set = name(cx, "set", Expr::var(var) % sets, sets);
    let kv_head = name(cx, "kh", set.clone() * together / shared, kv_heads);
    let (first, count) = match one {
        true => (Expr::idx(0), Expr::idx(1)),
        false => {
            // Later tokens see more: the last tile, the first one, the last but one, and so on, so that threads have as much to do.
            let turn = Expr::var(var) / sets;
            let (from, last) = (turn.clone() / 2, (turn % 2).lt(Expr::idx(1)));
            let tile = last.select(tiles.clone() - 1 - from.clone(), from);
            let tile = name(cx, "tile", tile, most);
            let first = tile * tokens;
            let count = name(cx, "count", (n - first.clone()).min(Expr::idx(tokens)), tokens + 1);
            (first, count)
        }
    };
    let job = Job { tokens, together, first, count: count.clone(), head: set * together };
    body.push(job.each(cx, |cx, token, head, row| {
        let put = |cx: &Cx<'_>, at: Vec<Expr>, e: Expr| {
            // The micro-kernel rounds them.
            let e = match e.node() {
                Node::Cast(x) if narrow => x.clone(),
                _ => e,
            };
            cx.store(query, vec![row.clone(), at[2].clone()], e.cast(DType::F32))
        };
        let mut all = nest(cx, q, &[token.clone(), head.clone()], &vec![Dim::default(); 3], &put)?;
        let at = |i: i64| vec![row.clone(), Expr::idx(i)];
        let p = cx.read(pos, std::slice::from_ref(&token))?.cast(DType::I64);
        let (bind, p) = cx.bind("p", p);
        let s = cx.read(seq, std::slice::from_ref(&token))?.cast(DType::I64);
        let first = if window > 0 { (p.clone() - (window - 1)).max(Expr::idx(0)) } else { Expr::idx(0) };
        all.extend([bind, cx.store(meta, at(0), first), cx.store(meta, at(1), p), cx.store(meta, at(2), s)]);
        Ok(all)
    })?);
    let sizes = [count * together, Expr::idx(dim), Expr::idx(page)];
    body.push(call(op, [sum, query, keys, values, pages, meta], &kv_head, sizes));
    cx.forget();
    body.push(job.each(cx, |cx, token, head, row| match out {
        Planes::Plain(out) => {
            let get = |cx: &Cx<'_>, d: Expr| cx.k.load(sum, vec![row.clone(), d]);
            Ok(vec![plain(cx, *out, [&token, &head], dim, &get)?])
        }
        Planes::Act8(q, scale, total) if dim % 32 == 0 => {
            let (first, from) = (head.clone() * (dim / 32), From::Stored(sum, row.clone()));
            Ok(vec![groups(cx, first, dim / 32, std::slice::from_ref(&token), from, [*q, *scale, *total])?])
        }
        _ => Err("attention gives plain or quantized numbers".into()),
    })?);
    cx.k.body = vec![Stmt::For { var, extent: tiles * sets, kind: LoopKind::Parallel, body }];
    Ok(())
}

/// The micro-kernel over whole buffers (sums, queries, keys, values, pages, ranges), of a cache one head.
pub fn call(op: Attend, buffers: [Buf; 6], kv_head: &Expr, sizes: [Expr; 3]) -> Stmt {
    let begin = |(i, b): (usize, Buf)| {
        let mut index = vec![Expr::idx(0); 2];
        if matches!(i, 2 | 3) {
            index.insert(1, kv_head.clone());
        }
        (b, index)
    };
    let args = buffers.into_iter().enumerate().map(begin).collect();
    Stmt::Micro(Micro { op: MicroOp::Attend(op), args, sizes: sizes.into() })
}

/// The tokens and heads of a tile.
struct Job {
    tokens: i64,
    together: i64,
    first: Expr,
    count: Expr,
    head: Expr,
}

impl Job {
    /// Statements for each row: of its token, head, and number in the tile.
    fn each<'a>(
        &self,
        cx: &mut Cx<'a>,
        mut f: impl FnMut(&mut Cx<'a>, Expr, Expr, Expr) -> Lowered<Vec<Stmt>>,
    ) -> Lowered<Stmt> {
        let var = cx.k.fresh("t");
        cx.ranges.declare(var, self.tokens);
        let t = if self.tokens == 1 { Expr::idx(0) } else { Expr::var(var) };
        let token = self.first.clone() + t.clone();
        let heads = cx.each("h", &self.together.into(), LoopKind::Serial, |cx, h| {
            let row = t.clone() * self.together + h.clone();
            f(cx, token.clone(), self.head.clone() + h, row)
        })?;
        cx.forget();
        Ok(Stmt::For { var, extent: self.count.clone(), kind: LoopKind::Serial, body: vec![heads] })
    }
}

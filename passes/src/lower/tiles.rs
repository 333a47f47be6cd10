//! Contractions by micro-kernels: a panel of row blocks by as many tokens as fit, the epilogue token by token.

use marquetry_ir::graph::{Op, Value};
use marquetry_ir::loops::micro::Act;
use marquetry_ir::loops::{Buf, Expr, LoopKind, Micro, MicroOp, Node, Scope, Stmt, dim_expr};
use marquetry_ir::{DType, Dim, Packed};

use super::contract::{Job, Out};
use super::read::{Cx, Lowered, Planes, Tile};

/// Where a contraction's operands are.
enum Operands {
    /// Quantized weights and activations.
    Quantized(Packed, Vec<Buf>),
    /// Row blocks of floats.
    Floats(Buf, Buf),
    /// Quantized weights, activations that are not: rows are dequantized to a panel first, of bf16 in pairs where activations are bf16.
    Panel(Packed, Vec<Buf>, Buf, Form),
}

/// What a panel holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Floats,
    Pairs,
}

impl Form {
    /// The buffer for `blocks` of 8 rows.
    fn shape(self, blocks: i64, k: i64) -> (DType, [i64; 3]) {
        match self {
            Form::Floats => (DType::F32, [blocks, k, 8]),
            Form::Pairs => (DType::BF16, [k / 2, blocks * 8, 2]),
        }
    }

    fn bytes(self, blocks: i64, k: i64) -> i64 {
        let (dtype, shape) = self.shape(blocks, k);
        shape.iter().product::<i64>() * dtype.size() as i64
    }

    fn unpack(self, p: Packed) -> MicroOp {
        match self {
            Form::Floats => MicroOp::Unpack(p),
            Form::Pairs => MicroOp::UnpackPairs(p),
        }
    }

    fn product(self) -> MicroOp {
        match self {
            Form::Floats => MicroOp::Fma(DType::F32),
            Form::Pairs => MicroOp::Pairs,
        }
    }
}

/// The loops of a contraction as calls of micro-kernels; none if its operands are not where those need them.
pub fn contract(cx: &mut Cx<'_>, mut job: Job, tokens: &Dim, total: i64) -> Lowered<Option<Stmt>> {
    let Some(operands) = operands(cx, &job) else { return Ok(None) };
    let k = cx.shape(job.x).pop().and_then(|d| d.as_const());
    let Some(k) = k else { return Ok(None) };
    let panel = match &operands {
        Operands::Panel(.., form) => Some(*form),
        _ => None,
    };
    let one = tokens.as_const() == Some(1);
    let p = cx.params;
    let (width, most) = match (&operands, one) {
        (Operands::Quantized(..), true) => (1, p.dot_one_blocks),
        (Operands::Quantized(..), false) => (p.dot_tokens, p.dot_blocks),
        (_, true) => (1, p.fma_one_blocks),
        (Operands::Panel(.., Form::Pairs), false) => (p.pairs_tokens, p.pairs_blocks),
        (_, false) => (p.fma_tokens, p.fma_blocks),
    };
    // Joined rows need whole pairs, and a group to quantize four of them, whatever the most is.
    let least = if matches!(job.out, Out::Quantized(_)) { 8 } else { job.ratio };
    let most = most.max(least);
    let fits =
        |b: &i64| *b <= most && total % b == 0 && b % least == 0 && panel.is_none_or(|f| f.bytes(*b, k) <= p.panel);
    let Some(blocks) = [8, 4, 2, 1].into_iter().find(fits) else { return Ok(None) };
    job.blocks = blocks;
    let op = match &operands {
        Operands::Quantized(p, _) => MicroOp::Dot(*p),
        Operands::Floats(w, _) => MicroOp::Fma(cx.k.decl(*w).dtype),
        Operands::Panel(.., form) => form.product(),
    };
    let acc = cx.k.buffer("acc", DType::F32, vec![(width * blocks).into(), 8.into()], Scope::Local);
    let panel_rows = panel.map(|form| {
        let (dtype, shape) = form.shape(blocks, k);
        cx.k.buffer("panel", dtype, shape.map(Dim::from).to_vec(), Scope::Local)
    });
    let zeros = |n: usize| vec![Expr::idx(0); n];
    let n = dim_expr(tokens);
    let limit = cx.syms.range(tokens).1;
    // Tiles of tokens, the last of which may be smaller.
    let (tiles, most) = ((n.clone() + (width - 1)) / width, limit / width + 1);
    // Products of 8-bit numbers unpack weights for every few tokens anyway: threads take tiles of tokens, which they then find in their own
    // caches. Panels are read beside all activations. Where these are too many for a cache, it is tiles of tokens there, too.
    let by_tokens = match &operands {
        Operands::Quantized(..) => !one,
        Operands::Panel(.., Form::Pairs) => !one && limit * k * 2 > p.pairs_bytes,
        _ => false,
    };
    let line = shared(cx, total / blocks, by_tokens.then_some((&tiles, most)), |cx, b, tile| {
        let first = b.clone() * blocks;
        let at = |rank: usize, i: &Expr| [vec![i.clone()], zeros(rank - 1)].concat();
        let mut body = vec![];
        if let (Operands::Panel(p, planes, _, form), Some(rows)) = (&operands, panel_rows) {
            let mut args = vec![(rows, zeros(3))];
            args.extend(planes.iter().map(|b| (*b, at(cx.k.decl(*b).shape.len(), &first))));
            let sizes = [blocks, k / 32].map(Expr::idx).to_vec();
            body.push(Stmt::Micro(Micro { op: form.unpack(*p), args, sizes }));
        }
        let some = |cx: &mut Cx<'_>, t0: Expr, count: Expr| {
            let args = match &operands {
                Operands::Quantized(_, bufs) => {
                    let planes = bufs.len() - 3;
                    let place = |(i, b): (usize, &Buf)| {
                        let from = if i < planes { &first } else { &t0 };
                        (*b, at(cx.k.decl(*b).shape.len(), from))
                    };
                    bufs.iter().enumerate().map(place).collect()
                }
                Operands::Floats(w, x) => vec![(*w, at(3, &first)), (*x, at(cx.k.decl(*x).shape.len(), &t0))],
                Operands::Panel(_, _, x, _) => {
                    vec![(panel_rows.unwrap_or(acc), zeros(3)), (*x, at(cx.k.decl(*x).shape.len(), &t0))]
                }
            };
            let inner = if matches!(op, MicroOp::Fma(_)) { k } else { k / 32 };
            let sizes = vec![count, Expr::idx(blocks), Expr::idx(inner)];
            let args = [vec![(acc, zeros(2))], args].concat();
            let (origin, weights) = ((t0, first.clone()), first.clone());
            cx.tile = Some(Tile { value: job.y, acc, origin, choice: None, weights, blocks, tokens: width });
            Stmt::Micro(Micro { op, args, sizes })
        };
        if one {
            body.push(some(cx, Expr::idx(0), Expr::idx(1)));
            if let Some(act) = job.gate {
                cx.tile = None;
                body.extend(activated(cx, &job, act, acc, &b, (&Expr::idx(0), &Expr::idx(1)), width));
                return Ok(body);
            }
            body.extend(epilogue(cx, &job, Expr::idx(0), &first)?);
            cx.tile = None;
            cx.forget();
            return Ok(body);
        }
        let outer = cx.k.fresh("t");
        cx.ranges.declare(outer, most);
        let t0 = tile.clone().unwrap_or(Expr::var(outer)) * width;
        let (bind, count) = cx.bind("count", (n.clone() - t0.clone()).min(Expr::idx(width)));
        let call = some(cx, t0.clone(), count.clone());
        let mut all = vec![bind, call];
        match job.gate {
            Some(act) => all.extend(activated(cx, &job, act, acc, &b, (&t0, &count), width)),
            None => {
                let inner = cx.k.fresh("i");
                cx.ranges.declare(inner, width);
                let each = epilogue(cx, &job, t0 + Expr::var(inner), &first)?;
                all.push(Stmt::For { var: inner, extent: count, kind: LoopKind::Serial, body: each });
            }
        }
        cx.tile = None;
        cx.forget();
        match tile {
            Some(_) => body.extend(all),
            None => body.push(Stmt::For { var: outer, extent: tiles.clone(), kind: LoopKind::Serial, body: all }),
        }
        Ok(body)
    })?;
    Ok(Some(line))
}

/// A parallel loop over blocks; with tiles of tokens and how many there are at most, over the blocks of each tile in turn.
fn shared<'a>(
    cx: &mut Cx<'a>,
    blocks: i64,
    tiles: Option<(&Expr, i64)>,
    f: impl FnOnce(&mut Cx<'a>, Expr, Option<Expr>) -> Lowered<Vec<Stmt>>,
) -> Lowered<Stmt> {
    let Some((tiles, most)) = tiles else {
        return cx.each("b", &Dim::from(blocks), LoopKind::Parallel, |cx, b| f(cx, b, None));
    };
    let var = cx.k.fresh("i");
    let mut body = vec![];
    let mut name = |cx: &mut Cx<'_>, name: &str, e: Expr, extent: i64| {
        let (bind, e) = cx.bind(name, e);
        if let Node::Var(v) = e.node() {
            cx.ranges.declare(*v, extent);
        }
        body.push(bind);
        e
    };
    let tile = name(cx, "tile", Expr::var(var) / blocks, most);
    let block = name(cx, "b", Expr::var(var) % blocks, blocks);
    body.extend(f(cx, block, Some(tile))?);
    Ok(Stmt::For { var, extent: tiles.clone() * blocks, kind: LoopKind::Parallel, body })
}

/// Stores tile `b` of a gated product, which has `most` tokens at most.
fn activated(
    cx: &mut Cx<'_>,
    job: &Job,
    act: Act,
    acc: Buf,
    b: &Expr,
    (token, count): (&Expr, &Expr),
    most: i64,
) -> Vec<Stmt> {
    let zeros = || vec![Expr::idx(0); 2];
    // Half of the rows are gates.
    let outputs = job.blocks / 2 * 8;
    let at = |buf: Buf, each: i64| (buf, vec![token.clone(), b.clone() * each]);
    let gate = |cx: &Cx<'_>, (to, index): (Buf, Vec<Expr>)| {
        let op = MicroOp::Gate(act, cx.k.decl(to).dtype);
        let args = vec![(to, index), (acc, zeros())];
        Stmt::Micro(Micro { op, args, sizes: vec![count.clone(), Expr::idx(job.blocks / 2)] })
    };
    match job.out {
        Out::Plain(out) => vec![gate(cx, at(out, outputs))],
        Out::Quantized([q, scale, sums]) => {
            let plain = cx.k.buffer("gated", DType::F32, vec![most.into(), outputs.into()], Scope::Local);
            let groups = outputs / 32;
            let args = vec![at(q, outputs), at(scale, groups), at(sums, 2 * groups), (plain, zeros())];
            let sizes = vec![count.clone(), Expr::idx(groups)];
            vec![gate(cx, (plain, zeros())), Stmt::Micro(Micro { op: MicroOp::Quantize, args, sizes })]
        }
    }
}

fn epilogue(cx: &mut Cx<'_>, job: &Job, token: Expr, first: &Expr) -> Lowered<Vec<Stmt>> {
    let mut all = vec![];
    for b in 0..job.blocks / job.ratio {
        all.extend(job.epilogue(cx, token.clone(), first.clone(), b, &Expr::idx(0))?);
    }
    Ok(all)
}

fn operands(cx: &Cx<'_>, job: &Job) -> Option<Operands> {
    let w = cx.planes.get(&job.w)?;
    if let (Planes::Packed(w), Some(Planes::Act8(x, scale, sum))) = (w, cx.planes.get(&job.x)) {
        return Some(Operands::Quantized(w.layout, [w.bufs(), vec![*x, *scale, *sum]].concat()));
    }
    let x = rows(cx, job.x)?;
    match (w, cx.k.decl(x).dtype) {
        (Planes::Rows8(w), DType::F32) => Some(Operands::Floats(*w, x)),
        (Planes::Packed(w), d) => {
            let form = match (d, job.rounded) {
                (DType::F32, false) => Form::Floats,
                (DType::BF16, true) => Form::Pairs,
                _ => return None,
            };
            Some(Operands::Panel(w.layout, w.bufs(), x, form))
        }
        _ => None,
    }
}

/// The buffer whose first axis are the rows of a value and whose other ones, one after the other, their elements.
fn rows(cx: &Cx<'_>, v: Value) -> Option<Buf> {
    if let Some(Planes::Plain(b)) = cx.planes.get(&v) {
        return Some(*b);
    }
    let inst = cx.def(v).filter(|i| i.op == Op::Reshape)?;
    let (from, to) = (cx.shape(inst.operands[0]), cx.shape(v));
    let fixed = from.iter().skip(1).all(|d| d.as_const().is_some());
    if from.len() >= 2 && fixed && from[0] == to[0] && to.len() == 2 { rows(cx, inst.operands[0]) } else { None }
}

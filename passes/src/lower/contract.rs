//! Contractions over packed weights: register tiles of tokens by row blocks, with the epilogue applied in registers.

use marquetry_ir::graph::{Class, Inst, Op, Value};
use marquetry_ir::loops::micro::{self, Act};
use marquetry_ir::loops::{Buf, Expr, LoopKind, Stmt, dim_expr};
use marquetry_ir::{DType, Dim, FACTOR_SPAN, Packed};

use super::read::{Blocks, Cx, Lowered, Planes, Tile};
use super::tiles;
use crate::fuse::gate;

/// The anchor, then everything up to `result`, stored to its planes.
pub fn contract(cx: &mut Cx<'_>, result: Value, planes: &Planes) -> Lowered<()> {
    let anchor = cx.f.insts.iter().find(|i| i.op.class() == Class::Contract).ok_or("no contraction")?;
    let out = match planes {
        Planes::Plain(out) => Out::Plain(*out),
        Planes::Act8(q, scale, sums) if anchor.op == Op::GluLinear => Out::Quantized([*q, *scale, *sums]),
        _ => return Err("a plain result is needed".into()),
    };
    if anchor.op == Op::ExpertLinear {
        return experts(cx, anchor, result, out);
    }
    let (x, w, y) = (anchor.operands[0], anchor.operands[1], anchor.results[0]);
    let shape = cx.shape(y);
    let [tokens, rows] = shape.as_slice() else { return Err("activations of a contraction have two axes".into()) };
    let rows = rows.as_const().ok_or("a symbolic number of rows")?;
    if anchor.op == Op::GluLinear {
        return gated(cx, anchor, (tokens, rows), result, out);
    }
    let per_token: Dim = cx.shape(result)[1..].iter().fold(Dim::from(1), |a, d| a * d.clone());
    let outputs = per_token.as_const().ok_or("a symbolic number of outputs")?;
    let ratio = rows / outputs.max(1);
    if outputs * ratio != rows || !(1..=2).contains(&ratio) || cx.shape(result)[0] != *tokens {
        return Err("the epilogue does not keep or halve the columns".into());
    }
    let total = rows.div_euclid(8) + i64::from(rows % 8 != 0);
    let is_float = matches!(cx.planes.get(&w), Some(Planes::Rows8(_)));
    // Two blocks give a float tile enough independent sums to hide the latency of its additions.
    let blocks = if ratio == 2 || (is_float && total % 2 == 0) { 2 } else { 1 };
    if total % blocks != 0 {
        return Err("row blocks do not pair up".into());
    }
    let rounded = anchor.op == Op::QLinear && is_narrow(cx, x);
    let job = Job { x, w, rounded, gate: None, y, result, out, rows: outputs, ratio, blocks };
    if cx.micro
        && let Some(body) = tiles::contract(cx, job, tokens, total)?
    {
        cx.k.body = vec![body];
        return Ok(());
    }
    let per_block = Dim::from(total / blocks);
    let tokens = tokens.clone();
    let width = cx.params.loop_tokens;
    let body = cx.each("b", &per_block, LoopKind::Parallel, |cx, b| {
        let first = b * blocks;
        let at = |token: Expr, block: Expr| At { weights: block.clone(), token, block, choice: None };
        if tokens.as_const() == Some(1) {
            return job.tile(cx, 1, at(Expr::idx(0), first));
        }
        let n = dim_expr(&tokens);
        let limit = cx.syms.range(&tokens).1;
        let mut all = vec![];
        let var = cx.k.fresh("t");
        cx.ranges.declare(var, limit / width + 1);
        let main = job.tile(cx, width, at(Expr::var(var) * width, first.clone()))?;
        all.push(Stmt::For { var, extent: n.clone() / width, kind: LoopKind::Serial, body: main });
        let var = cx.k.fresh("t");
        cx.ranges.declare(var, width);
        let (bind, whole) = cx.bind("whole", n.clone() / width * width);
        all.push(bind);
        let rest = job.tile(cx, 1, at(whole + Expr::var(var), first))?;
        all.push(Stmt::For { var, extent: n % width, kind: LoopKind::Serial, body: rest });
        Ok(all)
    })?;
    cx.k.body = vec![body];
    Ok(())
}

/// Are weights beside these activations rounded to bf16, as they are?
fn is_narrow(cx: &Cx<'_>, x: Value) -> bool {
    !matches!(cx.planes.get(&x), Some(Planes::Act8(..)))
}

/// The anchor `glu_linear` over 8-bit or bf16 activations: its activation is a micro-kernel as well.
fn gated(cx: &mut Cx<'_>, anchor: &Inst, (tokens, rows): (&Dim, i64), result: Value, out: Out) -> Lowered<()> {
    let (x, w, y) = (anchor.operands[0], anchor.operands[1], anchor.results[0]);
    if cx.shape(result) != cx.shape(y) {
        return Err("a gated product that is not stored as it is".into());
    }
    let gate = Some(gate(&anchor.attrs).ok_or("an activation without a micro-kernel")?);
    let job = Job { x, w, rounded: is_narrow(cx, x), gate, y, result, out, rows, ratio: 2, blocks: 2 };
    cx.k.body = vec![tiles::contract(cx, job, tokens, rows / 4)?.ok_or("a gated product of other types")?];
    Ok(())
}

/// The anchor `expert_linear` over matrices in row blocks. Threads share the blocks of a matrix; each goes through all tokens, so that
/// those which chose one expert find its rows in a near cache.
fn experts(cx: &mut Cx<'_>, anchor: &Inst, result: Value, out: Out) -> Lowered<()> {
    let (x, w, ids, y) = (anchor.operands[0], anchor.operands[1], anchor.operands[2], anchor.results[0]);
    let shape = cx.shape(y);
    let [tokens, choices, rows] = shape.as_slice() else { return Err("a choice of matrices has three axes".into()) };
    let rows = rows.as_const().filter(|r| r % 8 == 0).ok_or("experts whose rows are no whole blocks")?;
    let total = |s: &[Dim]| s[1..].iter().fold(Dim::from(1), |a, d| a * d.clone());
    let of = cx.shape(result);
    if of.first() != Some(tokens) || total(&of) != total(&shape) {
        return Err("the epilogue does not keep the columns".into());
    }
    let is_float = matches!(cx.planes.get(&w), Some(Planes::Rows8(_)));
    let blocks = if is_float && rows % 16 == 0 { 2 } else { 1 };
    let job = Job { x, w, rounded: false, gate: None, y, result, out, rows, ratio: 1, blocks };
    let body = cx.each("b", &Dim::from(rows / 8 / blocks), LoopKind::Parallel, |cx, b| {
        let block = b * blocks;
        let each_token = cx.each("t", tokens, LoopKind::Serial, |cx, token| {
            let each_choice = cx.each("c", choices, LoopKind::Serial, |cx, choice| {
                let id = cx.read(ids, &[token.clone(), choice.clone()])?.cast(DType::I64);
                let (bind, weights) = cx.bind("w", id * (rows / 8) + block.clone());
                let at = At { token: token.clone(), choice: Some(choice), block: block.clone(), weights };
                Ok([vec![bind], job.tile(cx, 1, at)?].concat())
            })?;
            Ok(vec![each_choice])
        })?;
        Ok(vec![each_token])
    })?;
    cx.k.body = vec![body];
    Ok(())
}

/// Where a tile lies.
struct At {
    token: Expr,
    /// Of the token, where there are several.
    choice: Option<Expr>,
    block: Expr,
    /// Its first block in the weights.
    weights: Expr,
}

/// Where a result goes.
#[derive(Clone, Copy)]
pub enum Out {
    /// As it is.
    Plain(Buf),
    /// Quantized: bytes, scales, sums. Only gated products by micro-kernels have such results.
    Quantized([Buf; 3]),
}

/// A contraction and its epilogue.
#[derive(Clone, Copy)]
pub struct Job {
    /// Activations.
    pub x: Value,
    /// Weight.
    pub w: Value,
    /// Are the weight's numbers rounded to bf16?
    pub rounded: bool,
    /// The activation of a gated product, if it is one.
    pub gate: Option<Act>,
    /// Their product.
    pub y: Value,
    /// What the epilogue makes of it.
    result: Value,
    /// Where that goes.
    pub out: Out,
    /// Outputs per token.
    rows: i64,
    /// Rows of the weight per output: 1, or 2 when gate and up rows are interleaved.
    pub ratio: i64,
    /// Blocks of 8 rows in a tile.
    pub blocks: i64,
}

impl Job {
    fn tile(&self, cx: &mut Cx<'_>, tokens: i64, at: At) -> Lowered<Vec<Stmt>> {
        let acc = cx.local("acc", DType::F32, &[tokens * self.blocks, 8]);
        let mut all = vec![];
        for i in 0..tokens * self.blocks {
            all.push(cx.each("r", &8.into(), LoopKind::Serial, |cx, r| {
                Ok(vec![cx.store(acc, vec![Expr::idx(i), r], Expr::float(0.0))])
            })?);
        }
        let At { token: t0, choice, block: b0, weights } = at;
        let before = choice.clone().map_or(Expr::idx(0), |c| c * self.rows);
        let origin = (t0.clone(), b0.clone());
        let tile = Tile { value: self.y, acc, origin, choice, weights, blocks: self.blocks, tokens };
        all.extend(match (cx.planes.get(&self.w).cloned(), cx.planes.get(&self.x).cloned()) {
            (Some(Planes::Rows8(w)), _) => self.floats(cx, w, true, tokens, &tile)?,
            (Some(Planes::Plain(w)), _) => self.floats(cx, w, false, tokens, &tile)?,
            (Some(Planes::Packed(w)), Some(Planes::Act8(q, xs, sum))) => {
                self.int8(cx, &w, [q, xs, sum], tokens, &tile)?
            }
            (Some(Planes::Packed(w)), _) => self.dequantized(cx, &w, tokens, &tile)?,
            _ => return Err("a weight that no rule has packed".into()),
        });
        cx.tile = Some(tile);
        for t in 0..tokens {
            for b in 0..self.blocks / self.ratio {
                all.extend(self.epilogue(cx, t0.clone() + t, b0.clone(), b, &before)?);
            }
        }
        cx.tile = None;
        cx.forget();
        Ok(all)
    }

    /// Where `x` has the inner index `k` of a tile's token.
    fn input(tile: &Tile, t: i64, k: Expr) -> Vec<Expr> {
        [tile.origin.0.clone() + t].into_iter().chain(tile.choice.clone()).chain([k]).collect()
    }

    /// Stores 8 outputs of one token, which has `before` others before these.
    pub fn epilogue(&self, cx: &mut Cx<'_>, token: Expr, b0: Expr, b: i64, before: &Expr) -> Lowered<Vec<Stmt>> {
        let Out::Plain(out) = self.out else { return Err("an epilogue that quantizes".into()) };
        let shape = cx.shape(self.result);
        let ratio = self.ratio;
        let store = |cx: &mut Cx<'_>, r: Expr| {
            // `b0` counts weight blocks; outputs have 1 / ratio as many.
            let first = if ratio == 2 { cx.ranges.div_rem(&b0, 2).0 } else { b0.clone() };
            let column = (first + b) * 8 + r;
            let mut at = vec![];
            let mut flat = before.clone() + column.clone();
            for d in shape.iter().skip(2).rev() {
                let (q, r) = cx.ranges.div_rem(&flat, d.as_const().unwrap_or(1));
                at.push(r);
                flat = q;
            }
            // Without a second axis there is one column.
            at.extend((shape.len() > 1).then_some(flat));
            at.push(token.clone());
            at.reverse();
            let value = cx.read(self.result, &at)?;
            Ok::<_, String>((column, cx.store(out, at, value)))
        };
        if self.rows % 8 == 0 {
            return Ok(vec![cx.each("r", &8.into(), LoopKind::Serial, |cx, r| Ok(vec![store(cx, r)?.1]))?]);
        }
        let mut all = vec![];
        for r in 0..8 {
            let (column, stmt) = store(cx, Expr::idx(r))?;
            let cond = column.lt(Expr::idx(self.rows));
            all.push(Stmt::If { cond, then: vec![stmt], other: vec![] });
        }
        Ok(all)
    }

    /// f32, f16 or bf16 rows, in f32: in blocks of 8, or plain, where rows beyond the last read the last.
    fn floats(&self, cx: &mut Cx<'_>, w: Buf, blocked: bool, tokens: i64, tile: &Tile) -> Lowered<Vec<Stmt>> {
        let k = cx.shape(self.x).pop().ok_or("no inner axis")?;
        let loop_ = cx.each("k", &k, LoopKind::Serial, |cx, k| {
            let mut body = vec![];
            for t in 0..tokens {
                let x = cx.read(self.x, &Self::input(tile, t, k.clone()))?.cast(DType::F32);
                for b in 0..self.blocks {
                    body.push(cx.each("r", &8.into(), LoopKind::Serial, |cx, r| {
                        let block = tile.weights.clone() + b;
                        let last = self.rows * self.ratio - 1;
                        let at = match blocked {
                            true => vec![block, k.clone(), r.clone()],
                            false if last % 8 == 7 => vec![block * 8 + r.clone(), k.clone()],
                            false => vec![(block * 8 + r.clone()).min(Expr::idx(last)), k.clone()],
                        };
                        let weight = cx.k.load(w, at).cast(DType::F32);
                        Ok(vec![self.add(cx, tile, t, b, r, x.clone(), weight)])
                    })?);
                }
            }
            Ok(body)
        })?;
        Ok(vec![loop_])
    }

    /// `acc += x * w` for one lane.
    #[allow(clippy::too_many_arguments)]
    fn add(&self, cx: &Cx<'_>, tile: &Tile, t: i64, b: i64, r: Expr, x: Expr, w: Expr) -> Stmt {
        let at = vec![Expr::idx(t * self.blocks + b), r];
        let old = cx.k.load(tile.acc, at.clone());
        cx.store(tile.acc, at, x.fma(w, old))
    }

    /// Packed weights as the f32 numbers they stand for.
    fn dequantized(&self, cx: &mut Cx<'_>, w: &Blocks, tokens: i64, tile: &Tile) -> Lowered<Vec<Stmt>> {
        let p = w.layout;
        let k = cx.shape(self.x).pop().and_then(|d| d.as_const()).ok_or("a symbolic inner axis")?;
        let loop_ = cx.each("g", &(k / 32).into(), LoopKind::Serial, |cx, g| {
            let mut body = vec![];
            for b in 0..self.blocks {
                let block = tile.weights.clone() + b;
                for j in 0..32 {
                    let sub = j / i64::from(p.group);
                    let mut xs = vec![];
                    for t in 0..tokens {
                        xs.push(cx.read(self.x, &Self::input(tile, t, g.clone() * 32 + j))?.cast(DType::F32));
                    }
                    body.push(cx.each("r", &8.into(), LoopKind::Serial, |cx, r| {
                        let at = |i| vec![block.clone(), g.clone(), Expr::idx(i), r.clone()];
                        let q = micro::element(p, j, |i| cx.k.load(w.data, at(i)));
                        let value = micro::number(p, q, w.sides(&cx.k, &block, groups(p, &g, sub), &r));
                        let value = if self.rounded { value.cast(DType::BF16).cast(DType::F32) } else { value };
                        let sums = xs.iter().enumerate();
                        Ok(sums
                            .map(|(t, x)| self.add(cx, tile, t as i64, b, r.clone(), x.clone(), value.clone()))
                            .collect())
                    })?);
                }
            }
            Ok(body)
        })?;
        Ok(vec![loop_])
    }

    /// 8-bit activations: exact integer sums per group, scaled in f32.
    fn int8(
        &self,
        cx: &mut Cx<'_>,
        w: &Blocks,
        [q, xs, sum]: [Buf; 3],
        tokens: i64,
        tile: &Tile,
    ) -> Lowered<Vec<Stmt>> {
        let p = w.layout;
        let k = cx.shape(self.x).pop().and_then(|d| d.as_const()).ok_or("a symbolic inner axis")?;
        let subs = 32 / i64::from(p.group);
        let dot = cx.local("dot", DType::I32, &[tokens * self.blocks * subs, 8]);
        let loop_ = cx.each("g", &(k / 32).into(), LoopKind::Serial, |cx, g| {
            let mut body = vec![];
            for b in 0..self.blocks {
                let block = tile.weights.clone() + b;
                body.push(cx.each("r", &8.into(), LoopKind::Serial, |cx, r| {
                    let mut lane = vec![];
                    let mut sums = vec![Expr::int(0, DType::I32); (tokens * subs) as usize];
                    let at = |i| vec![block.clone(), g.clone(), Expr::idx(i), r.clone()];
                    let words: Vec<Expr> = (0..i64::from(p.bits)).map(|i| cx.k.load(w.data, at(i))).collect();
                    // Quads that share a word of nibbles follow each other, so that few words are held at a time.
                    for quad in [0, 4, 1, 5, 2, 6, 3, 7] {
                        let bytes = micro::quad(p, quad, |i| words[i as usize].clone());
                        let sub = quad * 4 / i64::from(p.group);
                        for t in 0..tokens {
                            let x = cx.k.load(q, vec![tile.origin.0.clone() + t, g.clone() * 8 + quad]);
                            let s = &mut sums[(t * subs + sub) as usize];
                            *s = Expr::dot4(s.clone(), bytes.clone(), x, p.max);
                        }
                    }
                    for t in 0..tokens {
                        for sub in 0..subs {
                            let at = vec![Expr::idx((t * self.blocks + b) * subs + sub), r.clone()];
                            lane.push(cx.store(dot, at, sums[(t * subs + sub) as usize].clone()));
                        }
                    }
                    for t in 0..tokens {
                        for sub in 0..subs {
                            lane.push(self.scaled(cx, w, [xs, sum], dot, tile, (t, b, sub), (&g, &r)));
                        }
                    }
                    Ok(lane)
                })?);
            }
            Ok(body)
        })?;
        Ok(vec![loop_])
    }

    /// Adds one group's part, see [`micro::scaled`].
    #[allow(clippy::too_many_arguments)]
    fn scaled(
        &self,
        cx: &Cx<'_>,
        w: &Blocks,
        [xs, sum]: [Buf; 2],
        dot: Buf,
        tile: &Tile,
        (t, b, sub): (i64, i64, i64),
        (g, r): (&Expr, &Expr),
    ) -> Stmt {
        let subs = 32 / i64::from(w.layout.group);
        let token = tile.origin.0.clone() + t;
        let sides = w.sides(&cx.k, &(tile.weights.clone() + b), groups(w.layout, g, sub), r);
        let d = cx.k.load(dot, vec![Expr::idx((t * self.blocks + b) * subs + sub), r.clone()]).cast(DType::F32);
        let x = cx.k.load(xs, vec![token.clone(), g.clone()]);
        let half = |i: i64| cx.k.load(sum, vec![token.clone(), g.clone() * 2 + i]);
        let total = if subs == 2 { half(sub) } else { half(0) + half(1) };
        let at = vec![Expr::idx(t * self.blocks + b), r.clone()];
        let old = cx.k.load(tile.acc, at.clone());
        cx.store(tile.acc, at, micro::scaled(w.layout, sides, d, x, total, old))
    }
}

/// Of 32 elements, where scale number `sub` and its factor are.
fn groups(p: Packed, g: &Expr, sub: i64) -> [Expr; 2] {
    [g.clone() * (32 / i64::from(p.group)) + sub, g.clone() / (FACTOR_SPAN as i64 / 32)]
}

//! Reading a value of a fused function at an index: elementwise operations and moves are evaluated in place.

use std::collections::HashMap;

use marquetry_ir::graph::{Attr, Function, Inst, Op, Ty, Value};
use marquetry_ir::loops::{BinOp, Buf, Expr, Kernel, LoopKind, Node, Scope, Stmt, UnOp, dim_expr, micro};
use marquetry_ir::{DType, Dim, Elem, FACTOR_SPAN, Packed, Syms};

use super::index::{self, Ranges};
use crate::params::Params;

/// What a lowering can not do.
pub type Lowered<T> = Result<T, String>;

/// Buffers of a tensor argument or result.
#[derive(Clone, Debug)]
pub enum Planes {
    /// Scalars.
    Plain(Buf),
    /// Row blocks of floats: `[n / 8, k, 8]`.
    Rows8(Buf),
    /// Quantized blocks.
    Packed(Blocks),
    /// Quantized activations: words (or bytes), scales, sums.
    Act8(Buf, Buf, Buf),
    /// Keys and values of a cache.
    Kv([Buf; 2]),
}

/// Buffers of packed rows.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    /// The layout.
    pub layout: Packed,
    /// Words, or bytes.
    pub data: Buf,
    /// Scales.
    pub scale: Buf,
    /// Minima.
    pub min: Option<Buf>,
    /// Factors of scales and minima.
    pub factor: Option<Buf>,
}

impl Blocks {
    /// The buffers of a layout's planes, in their order.
    pub fn new(layout: Packed, bufs: &[Buf]) -> Option<Blocks> {
        if bufs.len() != layout.planes() {
            return None;
        }
        let mut rest = bufs[2..].iter().copied();
        let min = if layout.min { rest.next() } else { None };
        Some(Blocks { layout, data: bufs[0], scale: bufs[1], min, factor: rest.next() })
    }

    /// In the order of the planes.
    pub fn bufs(&self) -> Vec<Buf> {
        [Some(self.data), Some(self.scale), self.min, self.factor].into_iter().flatten().collect()
    }

    /// Scale and minimum of row `r` of a block in group `g`, which has a share of `span`, the elements of a factor.
    pub fn sides(&self, k: &Kernel, block: &Expr, [g, span]: [Expr; 2], r: &Expr) -> (Expr, Option<Expr>) {
        let at = vec![block.clone(), g, r.clone()];
        let side = |kind: i64, plane: Buf| {
            let at_factor = || vec![block.clone(), span.clone(), Expr::idx(kind), r.clone()];
            micro::side(k.load(plane, at.clone()), self.factor.map(|f| k.load(f, at_factor())))
        };
        (side(0, self.scale), self.min.map(|m| side(1, m)))
    }
}

/// Accumulators of a contraction under way.
#[derive(Clone, Debug)]
pub struct Tile {
    /// The value they hold.
    pub value: Value,
    /// `f32[tokens * blocks, 8]`.
    pub acc: Buf,
    /// First token and first block of the tile.
    pub origin: (Expr, Expr),
    /// The choice of the token, where it passes several matrices.
    pub choice: Option<Expr>,
    /// First block of the weights: that of the tile, or one further on, in the matrix chosen.
    pub weights: Expr,
    /// Blocks of 8 rows.
    pub blocks: i64,
    /// Tokens, or as many as there are at most.
    pub tokens: i64,
}

/// One kernel under construction.
pub struct Cx<'a> {
    /// Symbols of the module.
    pub syms: &'a Syms,
    /// The fused function.
    pub f: &'a Function,
    /// The kernel.
    pub k: Kernel,
    /// Ranges of loop variables.
    pub ranges: Ranges,
    /// Buffers of arguments, and of results already stored.
    pub planes: HashMap<Value, Planes>,
    /// Row results that are bound to a variable.
    pub bound: HashMap<Value, Expr>,
    /// Registers of the anchor.
    pub tile: Option<Tile>,
    /// Vectors of constants that `table` operations became.
    pub tables: Vec<(Buf, Vec<u32>)>,
    defs: Vec<Option<usize>>,
    /// Does the target have routines for micro-kernels?
    pub micro: bool,
    /// Sizes of tiles.
    pub params: Params,
    memo: HashMap<(Value, Vec<Expr>), Expr>,
}

fn extents(f: &Function, v: Value) -> Vec<Dim> {
    f.ty(v).as_tensor().map(|t| t.shape.clone()).unwrap_or_default()
}

impl<'a> Cx<'a> {
    /// An empty kernel for a function.
    pub fn new(syms: &'a Syms, f: &'a Function, micro: bool, params: &Params) -> Cx<'a> {
        let k = Kernel::new(f.name.clone());
        let (planes, bound, memo) = (HashMap::new(), HashMap::new(), HashMap::new());
        Cx {
            syms,
            f,
            k,
            ranges: Ranges::default(),
            planes,
            bound,
            tile: None,
            tables: vec![],
            defs: f.defs(),
            micro,
            params: *params,
            memo,
        }
    }

    /// Extents of a tensor.
    pub fn shape(&self, v: Value) -> Vec<Dim> {
        extents(self.f, v)
    }

    /// The operation that defines a value; none for arguments.
    pub fn def(&self, v: Value) -> Option<&'a Inst> {
        self.defs[v.0 as usize].map(|i| &self.f.insts[i])
    }

    /// A loop over `0..extent`. Its body sees the variable with its range.
    pub fn each(
        &mut self,
        name: &str,
        extent: &Dim,
        kind: LoopKind,
        body: impl FnOnce(&mut Cx<'a>, Expr) -> Lowered<Vec<Stmt>>,
    ) -> Lowered<Stmt> {
        let var = self.k.fresh(name);
        let hi = self.syms.range(extent).1;
        self.ranges.declare(var, hi);
        let body = body(self, Expr::var(var))?;
        self.memo.clear();
        Ok(Stmt::For { var, extent: dim_expr(extent), kind, body })
    }

    /// Binds a scalar for the statements that follow.
    pub fn bind(&mut self, name: &str, value: Expr) -> (Stmt, Expr) {
        let var = self.k.fresh(name);
        let e = Expr::new(Node::Var(var), value.dtype(), 1);
        (Stmt::Let { var, value }, e)
    }

    /// Forgets memoized reads: called when buffers change.
    pub fn forget(&mut self) {
        self.memo.clear();
    }

    /// A register buffer.
    pub fn reg(&mut self, name: &str, dtype: DType, shape: &[i64]) -> Buf {
        self.k.buffer(name, dtype, shape.iter().map(|&d| d.into()).collect(), Scope::Reg)
    }

    /// Scratch memory; the schedule moves it to registers where indices become constant.
    pub fn local(&mut self, name: &str, dtype: DType, shape: &[i64]) -> Buf {
        self.k.buffer(name, dtype, shape.iter().map(|&d| d.into()).collect(), Scope::Local)
    }

    /// Store of a scalar.
    pub fn store(&self, buf: Buf, index: Vec<Expr>, value: Expr) -> Stmt {
        Stmt::Store { buf, index, value }
    }

    /// The element of `v` at an index. Indices of extent-1 axes are ignored.
    pub fn read(&mut self, v: Value, idx: &[Expr]) -> Lowered<Expr> {
        if let Some(e) = self.bound.get(&v) {
            return Ok(e.clone());
        }
        let one = Dim::from(1);
        let shape = self.shape(v);
        if shape.len() != idx.len() {
            return Err(format!("{} indices for {} axes", idx.len(), shape.len()));
        }
        let zeroed = idx.iter().zip(&shape).map(|(i, d)| if *d == one { Expr::idx(0) } else { i.clone() });
        let idx: Vec<Expr> = zeroed.map(|i| self.ranges.simplify(&i)).collect();
        let key = (v, idx.clone());
        if let Some(e) = self.memo.get(&key) {
            return Ok(e.clone());
        }
        let e = self.element(v, &idx)?;
        self.memo.insert(key, e.clone());
        Ok(e)
    }

    fn element(&mut self, v: Value, idx: &[Expr]) -> Lowered<Expr> {
        if let Some(tile) = self.tile.clone().filter(|t| t.value == v) {
            return self.accumulator(&tile, idx);
        }
        if let Some(p) = self.planes.get(&v).cloned() {
            return self.load(&p, idx);
        }
        let Some(inst) = self.def(v) else { return Err(format!("%{} has no buffer", v.0)) };
        let x = inst.operands.clone();
        match inst.op {
            Op::Const => Ok(constant(inst)),
            Op::Table => self.table(inst, idx),
            Op::Iota => self.iota(inst, idx),
            Op::Reshape => {
                let (to, from) = (self.shape(v), self.shape(x[0]));
                let mapped = index::reshape(&self.ranges, idx, &to, &from);
                self.read(x[0], &mapped)
            }
            Op::Slice => {
                let (axis, start) = (inst.attrs[0].as_int() as usize, inst.attrs[1].as_int());
                let mut at = idx.to_vec();
                at[axis] = at[axis].clone() + start;
                self.read(x[0], &at)
            }
            Op::Permute => {
                let Attr::Ints(perm) = &inst.attrs[0] else { return Err("permute without axes".into()) };
                let mut at = vec![Expr::idx(0); idx.len()];
                perm.iter().zip(idx).for_each(|(p, i)| at[*p as usize] = i.clone());
                self.read(x[0], &at)
            }
            Op::Concat => self.concat(inst, idx),
            Op::Gather => self.gather(&x, idx),
            Op::KvRead => match self.planes.get(&x[0]) {
                Some(Planes::Kv(caches)) => Ok(self.k.load(caches[inst.attrs[0].as_int() as usize], idx.to_vec())),
                _ => Err("the cache is no argument".into()),
            },
            Op::Select => {
                let c = self.operand(x[0], idx)?;
                let (a, b) = (self.operand(x[1], idx)?, self.operand(x[2], idx)?);
                Ok(c.select(a, b))
            }
            Op::Cast => Ok(self.operand(x[0], idx)?.cast(dtype(self.f.ty(v))?)),
            Op::Dequant => match self.f.ty(x[0]).as_tensor().map(|t| t.elem) {
                Some(Elem::Scalar(_)) => Ok(self.operand(x[0], idx)?.cast(DType::F32)),
                _ => Err("`dequant` of a block format that no rule has packed".into()),
            },
            Op::Broadcast => self.operand(x[0], idx),
            _ if x.len() == 1 => {
                let a = self.operand(x[0], idx)?;
                unary(inst.op, a)
            }
            _ if x.len() == 2 => {
                let (a, b) = (self.operand(x[0], idx)?, self.operand(x[1], idx)?);
                binary(inst.op, a, b)
            }
            other => Err(format!("`{}` can not be read element by element", other.name())),
        }
    }

    /// An operand under broadcasting: rank-0 operands have no index.
    fn operand(&mut self, v: Value, idx: &[Expr]) -> Lowered<Expr> {
        if self.shape(v).is_empty() { self.read(v, &[]) } else { self.read(v, idx) }
    }

    fn load(&mut self, p: &Planes, idx: &[Expr]) -> Lowered<Expr> {
        match p {
            Planes::Plain(b) => Ok(self.k.load(*b, idx.to_vec())),
            Planes::Rows8(b) => {
                let [row, col] = idx else { return Err("row blocks have two axes".into()) };
                let (block, lane) = self.ranges.div_rem(row, 8);
                Ok(self.k.load(*b, vec![block, col.clone(), lane]).cast(DType::F32))
            }
            Planes::Packed(blocks) => {
                let [row, col] = idx else { return Err("packed matrices have two axes".into()) };
                self.packed(blocks, row, col)
            }
            Planes::Act8(..) | Planes::Kv(_) => Err("not a tensor of numbers".into()),
        }
    }

    /// One element of a packed matrix, by bytes: data `u8[n/8, k/32, words, 8, 4]`.
    fn packed(&mut self, blocks: &Blocks, row: &Expr, col: &Expr) -> Lowered<Expr> {
        let p = blocks.layout;
        let (block, lane) = self.ranges.div_rem(row, 8);
        let (group, within) = self.ranges.div_rem(col, 32);
        let quad = within.clone() / 4;
        let parts = p.parts().map(|part| {
            let width = i64::from(part.width);
            let word = self.ranges.simplify(&(quad.clone() % width + i64::from(part.from)));
            let at = vec![block.clone(), group.clone(), word, lane.clone(), within.clone() % 4];
            let mut q = self.k.load(blocks.data, at).cast(DType::I32);
            // A shift by a variable amount, one binary digit of it after the other.
            let mut by = width;
            while by < 8 {
                let moves = self.ranges.simplify(&(quad.clone() / by % 2));
                q = moves.lt(Expr::idx(1)).select(q.clone(), q >> by);
                by *= 2;
            }
            let q = if width == 8 { q } else { q & i64::from(part.ones()) };
            if part.from == 0 { q } else { q << i64::from(part.from) }
        });
        let q = parts.reduce(|a, b| a | b).ok_or("elements without bits")?;
        let groups = [i64::from(p.group), FACTOR_SPAN as i64].map(|by| self.ranges.div_rem(col, by).0);
        Ok(micro::number(p, q, blocks.sides(&self.k, &block, groups, &lane)))
    }

    fn accumulator(&mut self, tile: &Tile, idx: &[Expr]) -> Lowered<Expr> {
        let (token, col) = match (idx, &tile.choice) {
            ([token, col], None) => (token, col),
            ([token, choice, col], Some(of)) if self.ranges.only(&(choice.clone() - of.clone())) == Some(0) => {
                (token, col)
            }
            _ => return Err("the epilogue reads outside of its tile".into()),
        };
        let (block, lane) = self.ranges.div_rem(col, 8);
        let t = self.ranges.simplify(&(token.clone() - tile.origin.0.clone()));
        let b = self.ranges.simplify(&(block - tile.origin.1.clone()));
        match (self.ranges.of(&t), self.ranges.only(&b)) {
            (Some((0.., last)), Some(b)) if last < tile.tokens && (0..tile.blocks).contains(&b) => {
                let row = self.ranges.simplify(&(t * tile.blocks + b));
                Ok(self.k.load(tile.acc, vec![row, lane]))
            }
            _ => Err("the epilogue reads outside of its tile".into()),
        }
    }

    fn table(&mut self, inst: &Inst, idx: &[Expr]) -> Lowered<Expr> {
        let Attr::Floats(bits) = &inst.attrs[0] else { return Err("table without values".into()) };
        let buf = match self.tables.iter().find(|(_, b)| b == bits) {
            Some((b, _)) => *b,
            None => return Err("a table that is not an argument".into()),
        };
        Ok(self.k.load(buf, idx.to_vec()))
    }

    fn iota(&mut self, inst: &Inst, idx: &[Expr]) -> Lowered<Expr> {
        match &inst.attrs[2] {
            Attr::DType(d) => Ok(idx[inst.attrs[0].as_int() as usize].clone().cast(*d)),
            _ => Err("iota without a type".into()),
        }
    }

    /// Inside an expression, a joined tensor is a chain of selections; indices are clamped into each part.
    fn concat(&mut self, inst: &Inst, idx: &[Expr]) -> Lowered<Expr> {
        let axis = inst.attrs[0].as_int() as usize;
        let mut start = Dim::from(0);
        let mut parts = vec![];
        for v in &inst.operands {
            let n = self.shape(*v)[axis].clone();
            let (least, most) = self.syms.range(&n);
            let local = self.ranges.simplify(&(idx[axis].clone() - dim_expr(&start)));
            start = start + n.clone();
            match self.ranges.of(&local) {
                Some((_, hi)) if hi < 0 => {}
                Some((lo, _)) if lo >= most => {}
                Some((lo, hi)) if lo >= 0 && hi < least => {
                    let mut at = idx.to_vec();
                    at[axis] = local;
                    return self.read(*v, &at);
                }
                _ => {
                    let mut at = idx.to_vec();
                    at[axis] = local.max(Expr::idx(0)).min(dim_expr(&n) - 1);
                    parts.push((start.clone(), self.read(*v, &at)?));
                }
            }
        }
        let (_, mut e) = parts.pop().ok_or("an empty join")?;
        while let Some((end, x)) = parts.pop() {
            e = idx[axis].clone().lt(dim_expr(&end)).select(x, e);
        }
        Ok(e)
    }

    fn gather(&mut self, x: &[Value], idx: &[Expr]) -> Lowered<Expr> {
        let rank = self.shape(x[1]).len();
        let row = self.read(x[1], &idx[..rank])?.cast(DType::I64);
        let mut at = vec![row];
        at.extend(idx[rank..].iter().cloned());
        self.read(x[0], &at)
    }
}

/// The scalar type of a plain tensor.
pub fn dtype(t: &Ty) -> Lowered<DType> {
    t.as_tensor().and_then(|t| t.elem.scalar()).ok_or_else(|| "a tensor of scalars is needed".into())
}

fn constant(inst: &Inst) -> Expr {
    let v = inst.attrs[0].as_f32();
    match inst.attrs[2] {
        Attr::DType(d) if !d.is_float() => Expr::int(v as i64, d),
        _ => Expr::float(v),
    }
}

fn unary(op: Op, a: Expr) -> Lowered<Expr> {
    Ok(match op {
        Op::Neg => Expr::unary(UnOp::Neg, a),
        Op::Exp => Expr::unary(UnOp::Exp, a),
        Op::Log => Expr::unary(UnOp::Log, a),
        Op::Tanh => Expr::unary(UnOp::Tanh, a),
        Op::Erf => Expr::unary(UnOp::Erf, a),
        Op::Sin => Expr::unary(UnOp::Sin, a),
        Op::Cos => Expr::unary(UnOp::Cos, a),
        Op::Rsqrt => Expr::float(1.0) / Expr::unary(UnOp::Sqrt, a),
        other => return Err(format!("`{}` has no scalar form", other.name())),
    })
}

fn binary(op: Op, a: Expr, b: Expr) -> Lowered<Expr> {
    let op = match op {
        Op::Add => BinOp::Add,
        Op::Sub => BinOp::Sub,
        Op::Mul => BinOp::Mul,
        Op::Div => BinOp::Div,
        Op::Max => BinOp::Max,
        Op::Min => BinOp::Min,
        Op::Lt => BinOp::Lt,
        Op::Le => BinOp::Le,
        Op::And => BinOp::And,
        other => return Err(format!("`{}` has no scalar form", other.name())),
    };
    Ok(Expr::binary(op, a, b))
}

/// Does the expression contain a function that costs tens of instructions?
pub fn is_dear(e: &Expr) -> bool {
    let own =
        matches!(e.node(), Node::Unary(UnOp::Exp | UnOp::Log | UnOp::Tanh | UnOp::Erf | UnOp::Sin | UnOp::Cos, _));
    own || e.children().into_iter().any(is_dear)
}

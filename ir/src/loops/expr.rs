//! Scalar and vector expressions of the loop IR: immutable, shared, typed at construction.

use std::ops::{Add, BitAnd, BitOr, Div, Mul, Rem, Shl, Shr, Sub};
use std::sync::Arc;

use crate::{DType, Sym};

/// Type of an expression: a scalar (`lanes == 1`) or a vector of `lanes` scalars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VTy {
    /// Type of each lane.
    pub dtype: DType,
    /// Number of lanes: 1, or a multiple of 4 up to 64.
    pub lanes: u16,
}

/// A loop variable or `let` binding, unique within its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Var(pub u32);

/// A buffer of the kernel, by position in [`super::Kernel::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Buf(pub u32);

/// Operators with one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnOp {
    /// Negation of a number.
    Neg,
    /// Absolute value.
    Abs,
    /// Square root of a float.
    Sqrt,
    /// Largest integer not above a float, as a float.
    Floor,
    /// Nearest integer to a float, ties to even, as a float.
    Round,
    /// `e^x`; expanded by `legalize` before code generation.
    Exp,
    /// Natural logarithm; expanded by `legalize`.
    Log,
    /// Sine of radians; expanded by `legalize`.
    Sin,
    /// Cosine of radians; expanded by `legalize`.
    Cos,
    /// Hyperbolic tangent; expanded by `legalize`.
    Tanh,
    /// Error function; expanded by `legalize`.
    Erf,
    /// Logical negation of a truth value.
    Not,
}

/// Operators with two operands of equal type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BinOp {
    /// Sum; wraps for integers.
    Add,
    /// Difference; wraps for integers.
    Sub,
    /// Product; wraps for integers.
    Mul,
    /// Quotient; for integers the operands are non-negative and the quotient is rounded down.
    Div,
    /// Remainder of non-negative integers.
    Rem,
    /// Smaller operand.
    Min,
    /// Larger operand.
    Max,
    /// Bitwise (or logical) and.
    And,
    /// Bitwise (or logical) or.
    Or,
    /// Bitwise exclusive or.
    Xor,
    /// Shift left; the amount is a constant.
    Shl,
    /// Logical shift right for unsigned, arithmetic for signed; the amount is a constant.
    Shr,
    /// Less than, as a truth value.
    Lt,
    /// Less or equal, as a truth value.
    Le,
    /// Equal, as a truth value.
    Eq,
}

impl BinOp {
    /// Does it yield a truth value?
    pub fn is_compare(self) -> bool {
        matches!(self, BinOp::Lt | BinOp::Le | BinOp::Eq)
    }
}

/// The forms of an expression.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// Integer (or truth value) constant of the expression's dtype.
    Int(i64),
    /// Float constant, by its f32 bits.
    Float(u32),
    /// Run-time size, an `i64` scalar.
    Size(Sym),
    /// Loop variable (`i64`) or `let` binding.
    Var(Var),
    /// `lanes` consecutive elements along the last axis, starting at `index`.
    Load(Buf, Vec<Expr>),
    /// One operand.
    Unary(UnOp, Expr),
    /// Two operands of equal type (comparisons yield `bool` lanes).
    Binary(BinOp, Expr, Expr),
    /// `a * b + c` rounded once.
    Fma(Expr, Expr, Expr),
    /// `if c { a } else { b }` lane by lane; both are evaluated. `c` has `bool` lanes.
    Select(Expr, Expr, Expr),
    /// Conversion by value: floats to integers truncate and saturate; integers to narrower ones saturate.
    Cast(Expr),
    /// Same bits, same lane width.
    Bitcast(Expr),
    /// Per 32-bit lane: `acc + Σ_j w.u8[j] * x.i8[j]`; `w` bytes are at most `w_max`.
    Dot4 {
        /// `i32` lanes.
        acc: Expr,
        /// `u32` lanes, 4 unsigned bytes each.
        w: Expr,
        /// `u32` lanes, 4 signed bytes each.
        x: Expr,
        /// Largest byte that occurs in `w`: lets a backend use 16-bit accumulation.
        w_max: u8,
    },
    /// A scalar in every lane.
    Splat(Expr),
    /// `base, base + 1, ...` from a scalar integer base.
    Ramp(Expr),
    /// Lanes combined to a scalar by `Add`, `Max` or `Min`, as a balanced tree: lane `i` with lane `i + lanes/2`, halving.
    Reduce(BinOp, Expr),
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Inner {
    node: Node,
    ty: VTy,
}

/// A typed expression. Cloning shares it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Expr(Arc<Inner>);

impl Expr {
    /// An expression from its parts. The verifier checks that `ty` fits `node`.
    pub fn new(node: Node, dtype: DType, lanes: u16) -> Expr {
        Expr(Arc::new(Inner { node, ty: VTy { dtype, lanes } }))
    }

    /// The form.
    pub fn node(&self) -> &Node {
        &self.0.node
    }

    /// The type.
    pub fn ty(&self) -> VTy {
        self.0.ty
    }

    /// Type of each lane.
    pub fn dtype(&self) -> DType {
        self.0.ty.dtype
    }

    /// Number of lanes.
    pub fn lanes(&self) -> u16 {
        self.0.ty.lanes
    }

    /// Integer constant of the given type.
    pub fn int(v: i64, dtype: DType) -> Expr {
        Expr::new(Node::Int(v), dtype, 1)
    }

    /// Index constant (`i64`).
    pub fn idx(v: i64) -> Expr {
        Expr::int(v, DType::I64)
    }

    /// `f32` constant.
    pub fn float(v: f32) -> Expr {
        Expr::new(Node::Float(v.to_bits()), DType::F32, 1)
    }

    /// Run-time size.
    pub fn size(s: Sym) -> Expr {
        Expr::new(Node::Size(s), DType::I64, 1)
    }

    /// Loop variable.
    pub fn var(v: Var) -> Expr {
        Expr::new(Node::Var(v), DType::I64, 1)
    }

    /// Address-independent identity, for memo tables that live no longer than the expression.
    pub fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// The integer constant, if it is one.
    pub fn as_int(&self) -> Option<i64> {
        match self.node() {
            Node::Int(v) => Some(*v),
            _ => None,
        }
    }

    /// One-operand operator.
    pub fn unary(op: UnOp, a: Expr) -> Expr {
        let VTy { dtype, lanes } = a.ty();
        Expr::new(Node::Unary(op, a), dtype, lanes)
    }

    /// Two-operand operator; folds index constants and splats a scalar beside a vector.
    pub fn binary(op: BinOp, a: Expr, b: Expr) -> Expr {
        let (a, b) = match (a.lanes(), b.lanes()) {
            (x, y) if x == y => (a, b),
            (1, y) => (a.splat(y), b),
            (x, 1) => (a, b.splat(x)),
            (x, y) => panic!("lanes {x} and {y} do not combine"),
        };
        if let Some(e) = fold_index(op, &a, &b) {
            return e;
        }
        let dtype = if op.is_compare() { DType::Bool } else { a.dtype() };
        let lanes = a.lanes();
        Expr::new(Node::Binary(op, a, b), dtype, lanes)
    }

    /// `self * b + c`, rounded once.
    pub fn fma(self, b: Expr, c: Expr) -> Expr {
        let lanes = self.lanes().max(b.lanes()).max(c.lanes());
        let [a, b, c] = [self, b, c].map(|e| if e.lanes() == lanes { e } else { e.splat(lanes) });
        Expr::new(Node::Fma(a, b, c), DType::F32, lanes)
    }

    /// `if self { a } else { b }`.
    pub fn select(self, a: Expr, b: Expr) -> Expr {
        let lanes = self.lanes().max(a.lanes()).max(b.lanes());
        let [c, a, b] = [self, a, b].map(|e| if e.lanes() == lanes { e } else { e.splat(lanes) });
        let dtype = a.dtype();
        Expr::new(Node::Select(c, a, b), dtype, lanes)
    }

    /// Conversion by value.
    pub fn cast(self, to: DType) -> Expr {
        if self.dtype() == to {
            return self;
        }
        let lanes = self.lanes();
        Expr::new(Node::Cast(self), to, lanes)
    }

    /// Reinterpretation of the bits.
    pub fn bitcast(self, to: DType) -> Expr {
        if self.dtype() == to {
            return self;
        }
        let lanes = self.lanes();
        Expr::new(Node::Bitcast(self), to, lanes)
    }

    /// The scalar in `lanes` lanes.
    pub fn splat(self, lanes: u16) -> Expr {
        if lanes == 1 {
            return self;
        }
        let dtype = self.dtype();
        Expr::new(Node::Splat(self), dtype, lanes)
    }

    /// Lanes combined to a scalar.
    pub fn reduce(self, op: BinOp) -> Expr {
        let dtype = self.dtype();
        if self.lanes() == 1 {
            return self;
        }
        Expr::new(Node::Reduce(op, self), dtype, 1)
    }

    /// Per 32-bit lane dot product of four bytes, see [`Node::Dot4`].
    pub fn dot4(acc: Expr, w: Expr, x: Expr, w_max: u8) -> Expr {
        let lanes = acc.lanes().max(w.lanes()).max(x.lanes());
        let [acc, w, x] = [acc, w, x].map(|e| if e.lanes() == lanes { e } else { e.splat(lanes) });
        Expr::new(Node::Dot4 { acc, w, x, w_max }, DType::I32, lanes)
    }

    /// `min(self, o)`.
    pub fn min(self, o: Expr) -> Expr {
        Expr::binary(BinOp::Min, self, o)
    }

    /// `max(self, o)`.
    pub fn max(self, o: Expr) -> Expr {
        Expr::binary(BinOp::Max, self, o)
    }

    /// `self < o`.
    pub fn lt(self, o: Expr) -> Expr {
        Expr::binary(BinOp::Lt, self, o)
    }

    /// `self <= o`.
    pub fn le(self, o: Expr) -> Expr {
        Expr::binary(BinOp::Le, self, o)
    }

    /// The operands, in order.
    pub fn children(&self) -> Vec<&Expr> {
        match self.node() {
            Node::Int(_) | Node::Float(_) | Node::Size(_) | Node::Var(_) => vec![],
            Node::Load(_, ix) => ix.iter().collect(),
            Node::Unary(_, a) | Node::Cast(a) | Node::Bitcast(a) | Node::Splat(a) | Node::Ramp(a) => vec![a],
            Node::Reduce(_, a) => vec![a],
            Node::Binary(_, a, b) => vec![a, b],
            Node::Fma(a, b, c) | Node::Select(a, b, c) => vec![a, b, c],
            Node::Dot4 { acc, w, x, .. } => vec![acc, w, x],
        }
    }

    /// The same form over other operands (as many as [`Expr::children`] gave). Lanes and folding are recomputed.
    pub fn with_children(&self, mut c: Vec<Expr>) -> Expr {
        let VTy { dtype, lanes } = self.ty();
        let mut next = || c.remove(0);
        match self.node() {
            Node::Int(_) | Node::Float(_) | Node::Size(_) | Node::Var(_) => self.clone(),
            Node::Load(b, _) => Expr::new(Node::Load(*b, c), dtype, lanes),
            Node::Unary(op, _) => Expr::unary(*op, next()),
            Node::Cast(_) => next().cast(dtype),
            Node::Bitcast(_) => next().bitcast(dtype),
            Node::Splat(_) => next().splat(lanes),
            Node::Ramp(_) => Expr::new(Node::Ramp(next()), dtype, lanes),
            Node::Reduce(op, _) => next().reduce(*op),
            Node::Binary(op, ..) => {
                let a = next();
                Expr::binary(*op, a, next())
            }
            Node::Fma(..) => {
                let a = next();
                let b = next();
                a.fma(b, next())
            }
            Node::Select(..) => {
                let a = next();
                let b = next();
                a.select(b, next())
            }
            Node::Dot4 { w_max, .. } => {
                let acc = next();
                let w = next();
                Expr::dot4(acc, w, next(), *w_max)
            }
        }
    }

    /// Rewrites bottom up: `f` sees each node after its operands were rewritten and may replace it.
    pub fn rewrite(&self, f: &mut impl FnMut(&Expr) -> Option<Expr>) -> Expr {
        let kids = self.children();
        let new: Vec<Expr> = kids.iter().map(|c| c.rewrite(f)).collect();
        let same = kids.iter().zip(&new).all(|(a, b)| a.id() == b.id());
        let e = if same { self.clone() } else { self.with_children(new) };
        f(&e).unwrap_or(e)
    }

    /// Replaces a variable.
    pub fn subst(&self, v: Var, by: &Expr) -> Expr {
        self.rewrite(&mut |e| matches!(e.node(), Node::Var(x) if *x == v).then(|| by.clone()))
    }

    /// Does the variable occur?
    pub fn uses(&self, v: Var) -> bool {
        matches!(self.node(), Node::Var(x) if *x == v) || self.children().into_iter().any(|c| c.uses(v))
    }
}

/// Constant folding and unit laws for scalar `i64` index arithmetic only, where they are exact.
fn fold_index(op: BinOp, a: &Expr, b: &Expr) -> Option<Expr> {
    if a.ty() != (VTy { dtype: DType::I64, lanes: 1 }) {
        return None;
    }
    let (x, y) = (a.as_int(), b.as_int());
    if let (Some(x), Some(y)) = (x, y) {
        return Some(Expr::idx(match op {
            BinOp::Add => x.wrapping_add(y),
            BinOp::Sub => x.wrapping_sub(y),
            BinOp::Mul => x.wrapping_mul(y),
            BinOp::Div if y > 0 && x >= 0 => x / y,
            BinOp::Rem if y > 0 && x >= 0 => x % y,
            BinOp::Min => x.min(y),
            BinOp::Max => x.max(y),
            _ => return None,
        }));
    }
    match (op, x, y) {
        (BinOp::Add, Some(0), _) | (BinOp::Mul, Some(1), _) => Some(b.clone()),
        (BinOp::Add | BinOp::Sub, _, Some(0)) | (BinOp::Mul | BinOp::Div, _, Some(1)) => Some(a.clone()),
        (BinOp::Mul, Some(0), _) | (BinOp::Mul, _, Some(0)) | (BinOp::Rem, _, Some(1)) => Some(Expr::idx(0)),
        // (e + c1) + c2 and (e * c1) * c2
        (BinOp::Add | BinOp::Mul, None, Some(c2)) => match a.node() {
            Node::Binary(inner, e, c1) if *inner == op => {
                let c1 = c1.as_int()?;
                let c = if op == BinOp::Add { c1.wrapping_add(c2) } else { c1.wrapping_mul(c2) };
                Some(Expr::binary(op, e.clone(), Expr::idx(c)))
            }
            _ => None,
        },
        _ => None,
    }
}

macro_rules! operator {
    ($($trait:ident $method:ident $op:ident),*) => {$(
        impl $trait for Expr {
            type Output = Expr;
            fn $method(self, o: Expr) -> Expr {
                Expr::binary(BinOp::$op, self, o)
            }
        }
        impl $trait<i64> for Expr {
            type Output = Expr;
            fn $method(self, o: i64) -> Expr {
                let o = Expr::int(o, self.dtype());
                Expr::binary(BinOp::$op, self, o)
            }
        }
    )*};
}
operator!(Add add Add, Sub sub Sub, Mul mul Mul, Div div Div, Rem rem Rem, BitAnd bitand And, BitOr bitor Or, Shl shl Shl, Shr shr Shr);

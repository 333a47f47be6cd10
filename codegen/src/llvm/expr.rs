//! Expressions.

use marquetry_ir::DType;
use marquetry_ir::loops::{BinOp, Buf, Expr, Node, Scope, UnOp};

use super::func::{Bind, Cx, Kind, Ty, Val};
use crate::index::Indices;
use crate::jit::R;

impl Cx<'_> {
    /// The value of an expression.
    pub fn expr(&mut self, e: &Expr) -> R<Val> {
        if let Some(v) = self.memo.get(&e.id()) {
            return Ok(*v);
        }
        let v = if e.dtype() == DType::I64 && e.lanes() == 1 {
            let p = self.index(e)?;
            self.sum(&p)
        } else {
            self.node(e)?
        };
        self.memo.insert(e.id(), v);
        Ok(v)
    }

    /// The value of an expression by its form alone; [`Indices::index`] handles sums of indices before.
    pub fn node(&mut self, e: &Expr) -> R<Val> {
        let (dt, lanes) = (e.dtype(), e.lanes() as usize);
        match e.node() {
            Node::Int(_) if dt.is_float() => Err(format!("integer constant of {dt}")),
            Node::Int(v) => Ok(self.int(Ty::of(dt, lanes), *v)),
            Node::Float(bits) if dt == DType::F32 => Ok(self.float(*bits, lanes)),
            Node::Float(_) => Err(format!("{dt} constant")),
            Node::Size(s) => Ok(self.size_value(*s)),
            Node::Var(v) => match self.env.get(v).cloned() {
                Some(Bind::Index(p)) => Ok(self.sum(&p)),
                Some(Bind::Value(v)) => Ok(v),
                None => Err(format!("variable {} is not bound", v.0)),
            },
            Node::Load(buf, index) => self.load_expr(*buf, index, lanes),
            Node::Unary(op, a) => {
                let a = self.expr(a)?;
                self.unary(*op, a, dt)
            }
            Node::Binary(op, a, b) => {
                if let Some(truth) = self.const_compare(*op, a, b)? {
                    return Ok(self.int(Ty::BOOL, i64::from(truth)));
                }
                let t = a.dtype();
                let (a, b) = (self.expr(a)?, self.expr(b)?);
                self.binary(*op, t, a, b)
            }
            Node::Fma(a, b, c) => {
                let (a, b, c) = (self.expr(a)?, self.expr(b)?, self.expr(c)?);
                Ok(self.intrinsic("llvm.fma", &[a, b, c]))
            }
            Node::Select(c, a, b) => {
                let (c, a, b) = (self.expr(c)?, self.expr(a)?, self.expr(b)?);
                Ok(self.select(c, a, b))
            }
            Node::Cast(a) => {
                let from = a.dtype();
                let a = self.expr(a)?;
                self.cast(a, from, dt)
            }
            Node::Bitcast(a) => {
                let from = a.dtype();
                if from.size() != dt.size() || from == DType::Bool || dt == DType::Bool {
                    return Err(format!("bitcast of {from} to {dt}"));
                }
                let a = self.expr(a)?;
                Ok(self.bitcast(a, Ty::of(dt, lanes)))
            }
            Node::Dot4 { acc, w, x, w_max } => {
                let (acc, w, x) = (self.expr(acc)?, self.expr(w)?, self.expr(x)?);
                Ok(self.dot4(acc, w, x, *w_max))
            }
            Node::Splat(a) => {
                let a = self.expr(a)?;
                Ok(self.splat(a, lanes))
            }
            Node::Ramp(a) => {
                if dt.is_float() || dt == DType::Bool {
                    return Err(format!("ramp of {dt}"));
                }
                let base = self.expr(a)?;
                Ok(self.ramp(base, lanes))
            }
            Node::Reduce(op, a) => {
                let v = self.expr(a)?;
                self.reduce(*op, a.dtype(), v)
            }
        }
    }

    fn load_expr(&mut self, buf: Buf, index: &[Expr], lanes: usize) -> R<Val> {
        let decl = self.k.decl(buf);
        if decl.scope == Scope::Reg {
            return self.reg_load(buf, index, lanes);
        }
        let dt = decl.dtype;
        let (at, offset) = self.address(buf, index)?;
        if dt == DType::Bool {
            let bytes = self.load(buf, Ty::int(8, lanes), at, offset);
            return Ok(self.convert("trunc", bytes, Ty::of(dt, lanes)));
        }
        Ok(self.load(buf, Ty::of(dt, lanes), at, offset))
    }

    /// An instruction with two operands of one type, which its result has.
    pub fn two(&mut self, op: &str, a: Val, b: Val) -> Val {
        let text = format!("{op} {}, {}", self.typed(a), self.name(b));
        self.pure(self.ty(a), &[a, b], text)
    }

    /// A comparison: instruction and condition.
    pub fn compare(&mut self, op: &str, a: Val, b: Val) -> Val {
        let text = format!("{op} {}, {}", self.typed(a), self.name(b));
        self.pure(Ty::int(1, self.ty(a).lanes), &[a, b], text)
    }

    /// A conversion instruction.
    pub fn convert(&mut self, op: &str, a: Val, to: Ty) -> Val {
        let text = format!("{op} {} to {to}", self.typed(a));
        self.pure(to, &[a], text)
    }

    /// The same bits as another type of the same size.
    pub fn bitcast(&mut self, a: Val, to: Ty) -> Val {
        if self.ty(a) == to { a } else { self.convert("bitcast", a, to) }
    }

    /// `c ? a : b` lane by lane.
    pub fn select(&mut self, c: Val, a: Val, b: Val) -> Val {
        let text = format!("select {}, {}, {}", self.typed(c), self.typed(a), self.typed(b));
        self.pure(self.ty(a), &[c, a, b], text)
    }

    /// A function of LLVM that is named after its operands' type, which its result has.
    pub fn intrinsic(&mut self, name: &str, args: &[Val]) -> Val {
        let ty = self.ty(args[0]);
        self.call(&format!("{name}.{}", ty.suffix()), ty, args)
    }

    /// A pure function of LLVM.
    pub fn call(&mut self, name: &str, result: Ty, args: &[Val]) -> Val {
        let types: Vec<String> = args.iter().map(|a| self.ty(*a).to_string()).collect();
        self.declares.insert(format!("declare {result} @{name}({})", types.join(", ")));
        let args_text: Vec<String> = args.iter().map(|a| self.typed(*a)).collect();
        self.pure(result, args, format!("call {result} @{name}({})", args_text.join(", ")))
    }

    fn unary(&mut self, op: UnOp, a: Val, dt: DType) -> R<Val> {
        let ty = self.ty(a);
        Ok(match (op, dt) {
            (UnOp::Neg, DType::F32) => self.pure(ty, &[a], format!("fneg {}", self.typed(a))),
            (UnOp::Abs, DType::F32) => self.intrinsic("llvm.fabs", &[a]),
            (UnOp::Sqrt, DType::F32) => self.intrinsic("llvm.sqrt", &[a]),
            (UnOp::Floor, DType::F32) => self.intrinsic("llvm.floor", &[a]),
            (UnOp::Round, DType::F32) => self.intrinsic("llvm.roundeven", &[a]),
            (UnOp::Not, DType::Bool) => {
                let all = self.int(ty, 1);
                self.two("xor", a, all)
            }
            (UnOp::Neg, d) if !d.is_float() && d != DType::Bool => {
                let zero = self.int(ty, 0);
                self.two("sub", zero, a)
            }
            (UnOp::Abs, d) if d.is_signed_int() => {
                let wraps = self.int(Ty::BOOL, 0);
                self.call(&format!("llvm.abs.{}", ty.suffix()), ty, &[a, wraps])
            }
            (UnOp::Abs, DType::U8 | DType::U32) => a,
            (op, d) => return Err(format!("{op:?} of {d}")),
        })
    }

    /// Operators on operands of one type.
    pub fn binary(&mut self, op: BinOp, dt: DType, a: Val, b: Val) -> R<Val> {
        match dt {
            DType::F32 => self.float_binary(op, a, b),
            DType::F16 | DType::BF16 => Err(format!("{op:?} of {dt}: cast to f32 first")),
            DType::Bool => self.logical(op, a, b),
            _ => Ok(self.int_binary(op, dt.is_signed_int(), a, b)),
        }
    }

    fn float_binary(&mut self, op: BinOp, a: Val, b: Val) -> R<Val> {
        Ok(match op {
            BinOp::Add => self.two("fadd", a, b),
            BinOp::Sub => self.two("fsub", a, b),
            BinOp::Mul => self.two("fmul", a, b),
            BinOp::Div => self.two("fdiv", a, b),
            BinOp::Min => {
                let less = self.compare("fcmp olt", a, b);
                self.select(less, a, b)
            }
            BinOp::Max => {
                let more = self.compare("fcmp ogt", a, b);
                self.select(more, a, b)
            }
            BinOp::Lt => self.compare("fcmp olt", a, b),
            BinOp::Le => self.compare("fcmp ole", a, b),
            BinOp::Eq => self.compare("fcmp oeq", a, b),
            _ => return Err(format!("{op:?} of f32")),
        })
    }

    fn int_binary(&mut self, op: BinOp, signed: bool, a: Val, b: Val) -> Val {
        let either = |s: &'static str, u: &'static str| if signed { s } else { u };
        match op {
            BinOp::Add => self.two("add", a, b),
            BinOp::Sub => self.two("sub", a, b),
            BinOp::Mul => self.two("mul", a, b),
            BinOp::Div | BinOp::Rem => self.quotient(op, a, b),
            BinOp::Min => self.intrinsic(either("llvm.smin", "llvm.umin"), &[a, b]),
            BinOp::Max => self.intrinsic(either("llvm.smax", "llvm.umax"), &[a, b]),
            BinOp::And => self.two("and", a, b),
            BinOp::Or => self.two("or", a, b),
            BinOp::Xor => self.two("xor", a, b),
            BinOp::Shl => self.two("shl", a, b),
            BinOp::Shr => self.two(either("ashr", "lshr"), a, b),
            BinOp::Lt => self.compare(either("icmp slt", "icmp ult"), a, b),
            BinOp::Le => self.compare(either("icmp sle", "icmp ule"), a, b),
            BinOp::Eq => self.compare("icmp eq", a, b),
        }
    }

    /// Quotient or remainder of non-negative integers. It stays where it is unless the divisor is a constant, as it may trap.
    pub fn quotient(&mut self, op: BinOp, a: Val, b: Val) -> Val {
        let op = if op == BinOp::Div { "udiv" } else { "urem" };
        if self.int_of(b).is_some_and(|c| c != 0) {
            return self.two(op, a, b);
        }
        self.local(self.ty(a), format!("{op} {}, {}", self.typed(a), self.name(b)))
    }

    fn logical(&mut self, op: BinOp, a: Val, b: Val) -> R<Val> {
        Ok(match op {
            BinOp::And => self.two("and", a, b),
            BinOp::Or => self.two("or", a, b),
            BinOp::Xor => self.two("xor", a, b),
            BinOp::Eq => self.compare("icmp eq", a, b),
            _ => return Err(format!("{op:?} of bool")),
        })
    }

    /// `base, base + 1, ...`.
    fn ramp(&mut self, base: Val, lanes: usize) -> Val {
        let ty = self.ty(base);
        let steps: Vec<String> = (0..lanes).map(|i| format!("{ty} {i}")).collect();
        let steps = self.literal(format!("<{}>", steps.join(", ")), ty.with_lanes(lanes));
        let base = self.splat(base, lanes);
        self.two("add", base, steps)
    }

    /// A scalar in every lane.
    pub fn splat(&mut self, a: Val, lanes: usize) -> Val {
        let ty = self.ty(a);
        if lanes == 1 {
            return a;
        }
        let wide = ty.with_lanes(lanes);
        if let (Some(c), Kind::Int(_)) = (self.int_of(a), ty.kind) {
            return self.int(wide, c);
        }
        if ty.kind == Kind::Float && self.name(a).starts_with("0x") {
            let text = format!("splat ({})", self.typed(a));
            return self.literal(text, wide);
        }
        let one = self.pure(wide, &[a], format!("insertelement {wide} poison, {}, i64 0", self.typed(a)));
        let text = format!("shufflevector {}, {wide} poison, <{lanes} x i32> zeroinitializer", self.typed(one));
        self.pure(wide, &[one], text)
    }
}

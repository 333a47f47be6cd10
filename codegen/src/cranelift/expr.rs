//! Expressions.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::immediates::Ieee32;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};
use marquetry_ir::DType;
use marquetry_ir::loops::{BinOp, Buf, Expr, Node, Scope, UnOp};

use super::func::{Bind, Cx, LoadKind, Val, int_piece, piece_type, pieces, scalar_type};
use crate::index::Indices;
use crate::jit::R;

impl Cx<'_> {
    /// The value of an expression.
    pub fn expr(&mut self, e: &Expr) -> R<Val> {
        if let Some(v) = self.memo.get(&e.id()) {
            return Ok(v.clone());
        }
        let v = if e.dtype() == DType::I64 && e.lanes() == 1 { self.index_value(e)? } else { self.node(e)? };
        self.memo.insert(e.id(), v.clone());
        Ok(v)
    }

    /// The value of an expression by its form alone; [`Cx::index`] handles sums of indices before.
    pub fn node(&mut self, e: &Expr) -> R<Val> {
        let (dt, lanes) = (e.dtype(), e.lanes() as usize);
        match e.node() {
            Node::Int(v) => {
                let v = self.int(dt, *v);
                self.splat(v, dt, lanes)
            }
            Node::Float(bits) => {
                if dt != DType::F32 {
                    return Err(format!("{dt} constant"));
                }
                let v = self.pure().f32const(Ieee32::with_bits(*bits));
                self.splat(v, dt, lanes)
            }
            Node::Size(s) => Ok(Val::new(vec![self.size_value(*s)], 1, dt)),
            Node::Var(v) => match self.env.get(v).cloned() {
                Some(Bind::Index(p)) => Ok(Val::new(vec![self.sum(&p)], 1, dt)),
                Some(Bind::Value(v)) => Ok(v),
                None => Err(format!("variable {} is not bound", v.0)),
            },
            Node::Load(buf, index) => self.load_expr(*buf, index, lanes),
            Node::Unary(op, a) => {
                let a = self.expr(a)?;
                self.unary(*op, a)
            }
            Node::Binary(op, a, b) => {
                if let Some(truth) = self.const_compare(*op, a, b)? {
                    return Ok(Val::new(vec![self.int(DType::Bool, i64::from(truth))], 1, DType::Bool));
                }
                let a = self.expr(a)?;
                let b = self.expr(b)?;
                self.binary(*op, a, b)
            }
            Node::Fma(a, b, c) => {
                let (a, b, c) = (self.expr(a)?, self.expr(b)?, self.expr(c)?);
                let p = (0..a.p.len()).map(|i| self.pure().fma(a.p[i], b.p[i], c.p[i])).collect();
                Ok(Val::new(p, lanes, dt))
            }
            Node::Select(c, a, b) => {
                let (c, a, b) = (self.expr(c)?, self.expr(a)?, self.expr(b)?);
                self.select(c, a, b)
            }
            Node::Cast(a) => {
                if let Some(v) = self.widening_load(a, dt)? {
                    return Ok(v);
                }
                let a = self.expr(a)?;
                self.cast(a, dt)
            }
            Node::Bitcast(a) => {
                let a = self.expr(a)?;
                if a.dt.size() != dt.size() || a.dt == DType::Bool || dt == DType::Bool {
                    return Err(format!("bitcast of {} to {dt}", a.dt));
                }
                let t = if a.is_vector() { piece_type(dt) } else { scalar_type(dt) };
                Ok(Val::new(a.p.iter().map(|v| self.bits(*v, t)).collect(), lanes, dt))
            }
            Node::Dot4 { acc, w, x, w_max } => {
                let (acc, w, x) = (self.expr(acc)?, self.expr(w)?, self.expr(x)?);
                self.dot4(acc, w, x, *w_max)
            }
            Node::Splat(a) => self.splat_expr(a, dt, lanes),
            Node::Ramp(a) => self.ramp(a, dt, lanes),
            Node::Reduce(op, a) => {
                let a = self.expr(a)?;
                self.reduce(*op, a)
            }
        }
    }

    /// Integer constant.
    pub fn int(&mut self, dt: DType, v: i64) -> Value {
        let t = scalar_type(dt);
        let masked = if t.bits() == 64 { v } else { v & ((1 << t.bits()) - 1) };
        self.pure().iconst(t, masked)
    }

    fn splat_expr(&mut self, a: &Expr, dt: DType, lanes: usize) -> R<Val> {
        // A 32-bit integer from memory goes straight to a vector register.
        if dt.size() == 4
            && let Node::Load(buf, index) = a.node()
            && self.k.decl(*buf).scope != Scope::Reg
            && !self.memo.contains_key(&a.id())
        {
            let (at, offset) = self.address(*buf, index)?;
            let v = self.load(*buf, LoadKind::Plain(types::F32), at, offset);
            let v = self.pure().splat(types::F32X4, v);
            let v = self.bits(v, piece_type(dt));
            return Ok(Val::new(vec![v; pieces(lanes, 4)], lanes, dt));
        }
        let a = self.expr(a)?;
        self.splat(a.p[0], dt, lanes)
    }

    /// A scalar in every lane.
    pub fn splat(&mut self, v: Value, dt: DType, lanes: usize) -> R<Val> {
        if lanes == 1 {
            return Ok(Val::new(vec![v], 1, dt));
        }
        if dt == DType::Bool {
            let v = self.pure().bmask(types::I32, v);
            let v = self.pure().splat(types::I32X4, v);
            return Ok(Val::mask(vec![v; pieces(lanes, 4)], lanes, 4));
        }
        let t = piece_type(dt);
        let v = match self.scalar_bits(v) {
            Some(bits) => {
                let n = dt.size();
                let mut bytes = [0; 16];
                bytes.chunks_mut(n).for_each(|c| c.copy_from_slice(&bits.to_le_bytes()[..n]));
                self.vconst(t, bytes)
            }
            None => self.pure().splat(t, v),
        };
        Ok(Val::new(vec![v; pieces(lanes, dt.size())], lanes, dt))
    }

    /// Bits of a constant.
    fn scalar_bits(&self, v: Value) -> Option<u64> {
        use cranelift_codegen::ir::{InstructionData, Opcode, ValueDef};
        let ValueDef::Result(inst, _) = self.b.func.dfg.value_def(v) else { return None };
        match self.b.func.dfg.insts[inst] {
            InstructionData::UnaryImm { opcode: Opcode::Iconst, imm } => Some(imm.bits() as u64),
            InstructionData::UnaryIeee32 { imm, .. } => Some(u64::from(imm.bits())),
            _ => None,
        }
    }

    fn ramp(&mut self, a: &Expr, dt: DType, lanes: usize) -> R<Val> {
        let base = self.expr(a)?;
        if dt.is_float() || dt == DType::Bool {
            return Err(format!("ramp of {dt}"));
        }
        let splat = self.splat(base.p[0], dt, lanes)?;
        let (n, t) = (dt.size(), piece_type(dt));
        let mut p = Vec::new();
        for (i, v) in splat.p.into_iter().enumerate() {
            let mut bytes = [0; 16];
            for (lane, c) in bytes.chunks_mut(n).enumerate() {
                c.copy_from_slice(&((i * 16 / n + lane) as u64).to_le_bytes()[..n]);
            }
            let steps = self.vconst(t, bytes);
            p.push(self.pure().iadd(v, steps));
        }
        Ok(Val::new(p, lanes, dt))
    }

    fn load_expr(&mut self, buf: Buf, index: &[Expr], lanes: usize) -> R<Val> {
        let decl = self.k.decl(buf);
        let dt = decl.dtype;
        if decl.scope == Scope::Reg {
            return self.reg_load(buf, index, lanes);
        }
        let (at, offset) = self.address(buf, index)?;
        if lanes == 1 {
            return Ok(Val::new(vec![self.load(buf, LoadKind::Plain(scalar_type(dt)), at, offset)], 1, dt));
        }
        let t = piece_type(dt);
        let bytes = lanes * dt.size();
        let mut p = Vec::new();
        for start in (0..bytes).step_by(16) {
            let o = offset + start as i32;
            p.push(match bytes - start {
                16.. => self.load(buf, LoadKind::Plain(t), at, o),
                rest @ (4 | 8) => {
                    let (s, v) = if rest == 4 { (types::F32, types::F32X4) } else { (types::F64, types::F64X2) };
                    let low = self.load(buf, LoadKind::Plain(s), at, o);
                    let low = self.pure().scalar_to_vector(v, low);
                    self.bits(low, t)
                }
                rest => return Err(format!("load of {lanes} lanes of {dt} ({rest} bytes)")),
            });
        }
        let v = Val::new(p, lanes, dt);
        if dt != DType::Bool {
            return Ok(v);
        }
        let zero = self.vconst(t, [0; 16]);
        let p = v.p.iter().map(|x| self.pure().icmp(IntCC::NotEqual, *x, zero)).collect();
        Ok(Val::mask(p, lanes, 1))
    }

    /// Casts of narrow vectors from memory, extended by the load.
    fn widening_load(&mut self, a: &Expr, to: DType) -> R<Option<Val>> {
        let Node::Load(buf, index) = a.node() else { return Ok(None) };
        let (from, lanes) = (a.dtype(), a.lanes() as usize);
        if lanes == 1 || self.k.decl(*buf).scope == Scope::Reg || self.memo.contains_key(&a.id()) {
            return Ok(None);
        }
        let kind = match (from, to) {
            (DType::F16, DType::F32) => LoadKind::S16x4,
            (DType::BF16, DType::F32) => LoadKind::U16x4,
            (DType::I16, DType::F32 | DType::I32) => LoadKind::S16x4,
            (DType::I8, DType::F32 | DType::I32 | DType::I16) if lanes.is_multiple_of(8) => LoadKind::S8x8,
            (DType::U8, DType::F32 | DType::I32 | DType::I16) if lanes.is_multiple_of(8) => LoadKind::U8x8,
            _ => return Ok(None),
        };
        let (at, offset) = self.address(*buf, index)?;
        let p: Vec<Value> =
            (0..lanes * from.size() / 8).map(|i| self.load(*buf, kind, at, offset + 8 * i as i32)).collect();
        Ok(Some(match from {
            DType::F16 => {
                let p = p.into_iter().map(|v| self.f16_to_f32(v)).collect();
                Val::new(p, lanes, to)
            }
            DType::BF16 => {
                let p = p.into_iter().map(|v| self.pure().ishl_imm_u(v, 16)).collect::<Vec<_>>();
                Val::new(p.into_iter().map(|v| self.bits(v, types::F32X4)).collect(), lanes, to)
            }
            DType::I16 => self.cast(Val::new(p, lanes, DType::I32), to)?,
            _ => self.cast(Val::new(p, lanes, DType::I16), to)?,
        }))
    }

    /// `c ? a : b`.
    fn select(&mut self, c: Val, a: Val, b: Val) -> R<Val> {
        if !a.is_vector() {
            return Ok(Val::new(vec![self.pure().select(c.p[0], a.p[0], b.p[0])], 1, a.dt));
        }
        let (a, b) =
            if a.dt == DType::Bool { (self.mask_width(&a, c.width)?, self.mask_width(&b, c.width)?) } else { (a, b) };
        let c = self.mask_width(&c, a.width)?;
        let mut p = Vec::new();
        for i in 0..a.p.len() {
            let (t, m) = (self.ty(a.p[i]), int_piece(a.width));
            let (x, y) = (self.bits(a.p[i], m), self.bits(b.p[i], m));
            let v = self.pure().bitselect(c.p[i], x, y);
            p.push(self.bits(v, t));
        }
        Ok(Val { p, ..a })
    }

    fn unary(&mut self, op: UnOp, a: Val) -> R<Val> {
        let (dt, vector) = (a.dt, a.is_vector());
        let mut p = Vec::new();
        for &v in &a.p {
            p.push(match (op, dt) {
                (UnOp::Neg, DType::F32) => self.pure().fneg(v),
                (UnOp::Abs, DType::F32) => self.pure().fabs(v),
                (UnOp::Sqrt, DType::F32) => self.pure().sqrt(v),
                (UnOp::Floor, DType::F32) => self.pure().floor(v),
                (UnOp::Round, DType::F32) => self.pure().nearest(v),
                (UnOp::Not, DType::Bool) if vector => self.pure().bnot(v),
                (UnOp::Not, DType::Bool) => self.pure().bxor_imm_u(v, 1),
                (UnOp::Neg, d) if !d.is_float() && d != DType::Bool => self.pure().ineg(v),
                (UnOp::Abs, d) if d.is_signed_int() => self.pure().iabs(v),
                (UnOp::Abs, DType::U8 | DType::U32) => v,
                (op, d) => return Err(format!("{op:?} of {d}")),
            });
        }
        Ok(Val { p, ..a })
    }

    /// Operators on operands of one type.
    pub fn binary(&mut self, op: BinOp, a: Val, b: Val) -> R<Val> {
        if a.dt == DType::Bool {
            return self.logical(op, a, b);
        }
        let dt = a.dt;
        if matches!(dt, DType::F16 | DType::BF16) {
            return Err(format!("{op:?} of {dt}: cast to f32 first"));
        }
        if matches!(op, BinOp::Shl | BinOp::Shr) {
            return self.shift(op, a, b);
        }
        let by_lane = match op {
            BinOp::Div | BinOp::Rem => dt != DType::F32,
            BinOp::Mul => dt.size() == 1,
            _ => false,
        };
        if by_lane && a.is_vector() {
            return self.map_lanes(&[&a, &b], dt, |cx, v| cx.binary_piece(op, dt, v[0], v[1]));
        }
        let p = (0..a.p.len()).map(|i| self.binary_piece(op, dt, a.p[i], b.p[i])).collect::<R<Vec<_>>>()?;
        if op.is_compare() && a.is_vector() {
            return Ok(Val::mask(p, a.lanes, dt.size()));
        }
        Ok(Val::new(p, a.lanes, if op.is_compare() { DType::Bool } else { dt }))
    }

    /// Minimum, maximum or sum of two pieces, or any other operator but shifts.
    pub fn binary_piece(&mut self, op: BinOp, dt: DType, x: Value, y: Value) -> R<Value> {
        let t = self.ty(x);
        if dt == DType::F32 {
            return Ok(match op {
                BinOp::Add => self.pure().fadd(x, y),
                BinOp::Sub => self.pure().fsub(x, y),
                BinOp::Mul => self.pure().fmul(x, y),
                BinOp::Div => self.pure().fdiv(x, y),
                // These orders of operands are single instructions on x86.
                BinOp::Min => self.choose(FloatCC::LessThan, x, y, t, false),
                BinOp::Max => self.choose(FloatCC::LessThan, x, y, t, true),
                BinOp::Lt => self.pure().fcmp(FloatCC::LessThan, x, y),
                BinOp::Le => self.pure().fcmp(FloatCC::LessThanOrEqual, x, y),
                BinOp::Eq => self.pure().fcmp(FloatCC::Equal, x, y),
                _ => return Err(format!("{op:?} of {dt}")),
            });
        }
        let signed = dt.is_signed_int();
        let cc = |s, u| if signed { s } else { u };
        Ok(match op {
            BinOp::Add => self.pure().iadd(x, y),
            BinOp::Sub => self.pure().isub(x, y),
            BinOp::Mul => self.pure().imul(x, y),
            BinOp::Div | BinOp::Rem => self.div_rem(op, x, y),
            BinOp::Min | BinOp::Max if t == types::I64X2 => {
                let (a, b) = if op == BinOp::Min { (x, y) } else { (y, x) };
                let less = self.pure().icmp(IntCC::SignedLessThan, a, b);
                self.pure().bitselect(less, x, y)
            }
            BinOp::Min if signed => self.pure().smin(x, y),
            BinOp::Min => self.pure().umin(x, y),
            BinOp::Max if signed => self.pure().smax(x, y),
            BinOp::Max => self.pure().umax(x, y),
            BinOp::And => self.pure().band(x, y),
            BinOp::Or => self.pure().bor(x, y),
            BinOp::Xor => self.pure().bxor(x, y),
            BinOp::Lt => self.pure().icmp(cc(IntCC::SignedLessThan, IntCC::UnsignedLessThan), x, y),
            BinOp::Le => self.pure().icmp(cc(IntCC::SignedLessThanOrEqual, IntCC::UnsignedLessThanOrEqual), x, y),
            BinOp::Eq => self.pure().icmp(IntCC::Equal, x, y),
            BinOp::Shl | BinOp::Shr => return Err("shift of a piece".into()),
        })
    }

    /// `x < y ? x : y`, or `y < x ? x : y`.
    fn choose(&mut self, cc: FloatCC, x: Value, y: Value, t: Type, swap: bool) -> Value {
        let less = if swap { self.pure().fcmp(cc, y, x) } else { self.pure().fcmp(cc, x, y) };
        if t.is_vector() {
            let mask = self.bits(less, t);
            self.pure().bitselect(mask, x, y)
        } else {
            self.pure().select(less, x, y)
        }
    }

    fn shift(&mut self, op: BinOp, a: Val, b: Val) -> R<Val> {
        let amount = if b.is_vector() { self.splat_amount(&b) } else { self.constant_of(b.p[0]) };
        let Some(amount) = amount else { return Err("shift by an amount that is no constant".into()) };
        let mut p = Vec::new();
        for &v in &a.p {
            let by = self.pure().iconst(types::I32, amount);
            p.push(match op {
                BinOp::Shl => self.pure().ishl(v, by),
                _ if a.dt.is_signed_int() => self.pure().sshr(v, by),
                _ => self.pure().ushr(v, by),
            });
        }
        Ok(Val { p, ..a })
    }

    /// The constant in every lane of a vector.
    fn splat_amount(&self, v: &Val) -> Option<i64> {
        use cranelift_codegen::ir::{InstructionData, ValueDef};
        let ValueDef::Result(inst, _) = self.b.func.dfg.value_def(v.p[0]) else { return None };
        let InstructionData::UnaryConst { constant_handle, .. } = self.b.func.dfg.insts[inst] else { return None };
        let bytes = self.b.func.dfg.constants.get(constant_handle).as_slice();
        let lanes = bytes.chunks(v.dt.size()).collect::<Vec<_>>();
        lanes.iter().all(|l| *l == lanes[0]).then(|| i64::from(bytes[0]))
    }

    /// Truth values.
    fn logical(&mut self, op: BinOp, a: Val, b: Val) -> R<Val> {
        let b = if a.is_vector() { self.mask_width(&b, a.width)? } else { b };
        let mut p = Vec::new();
        for i in 0..a.p.len() {
            let (x, y) = (a.p[i], b.p[i]);
            p.push(match op {
                BinOp::And => self.pure().band(x, y),
                BinOp::Or => self.pure().bor(x, y),
                BinOp::Xor => self.pure().bxor(x, y),
                BinOp::Eq if a.is_vector() => self.pure().icmp(IntCC::Equal, x, y),
                BinOp::Eq => {
                    let differ = self.pure().bxor(x, y);
                    self.pure().bxor_imm_u(differ, 1)
                }
                _ => return Err(format!("{op:?} of bool")),
            });
        }
        Ok(Val { p, ..a })
    }
}

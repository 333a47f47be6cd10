//! Vectors: conversions, parts, reductions, and `Reg` buffers as chunks of values.

use marquetry_ir::DType;
use marquetry_ir::loops::{BinOp, Buf, Expr};

use super::func::{Cx, Kind, RegFile, Ty, Val};
use crate::facts::{limits, reg_len};
use crate::index::Indices;
use crate::jit::R;

impl Cx<'_> {
    /// Conversion by value. Types that the target has no instructions for are gone already (`half.rs`).
    pub fn cast(&mut self, a: Val, from: DType, to: DType) -> R<Val> {
        let lanes = self.ty(a).lanes;
        let ty = Ty::of(to, lanes);
        Ok(match (from, to) {
            _ if from == to => a,
            (DType::BF16, _) | (_, DType::BF16) => return Err(format!("cast of {from} to {to}")),
            (DType::F16, _) => {
                let half = self.bitcast(a, Ty { kind: Kind::Half, lanes });
                let a = self.convert("fpext", half, Ty::of(DType::F32, lanes));
                self.cast(a, DType::F32, to)?
            }
            (_, DType::F16) => {
                let a = self.cast(a, from, DType::F32)?;
                let half = self.convert("fptrunc", a, Ty { kind: Kind::Half, lanes });
                self.bitcast(half, ty)
            }
            (DType::F32, DType::Bool) => {
                let zero = self.float(0, lanes);
                self.compare("fcmp une", a, zero)
            }
            (_, DType::Bool) => {
                let zero = self.int(self.ty(a), 0);
                self.compare("icmp ne", a, zero)
            }
            (DType::F32, _) => self.float_to_int(a, to),
            (from, DType::F32) if from.is_signed_int() => self.convert("sitofp", a, ty),
            (_, DType::F32) => self.convert("uitofp", a, ty),
            (DType::Bool, _) => self.convert("zext", a, ty),
            _ if from.size() == to.size() => a,
            _ if from.size() < to.size() => self.convert(if from.is_signed_int() { "sext" } else { "zext" }, a, ty),
            _ => self.narrow(a, from.is_signed_int(), to),
        })
    }

    /// Towards zero, saturating, NaN to 0.
    fn float_to_int(&mut self, a: Val, to: DType) -> Val {
        let lanes = self.ty(a).lanes;
        let (lo, hi) = limits(to);
        let float = |cx: &mut Self, v: f32| cx.float(v.to_bits(), lanes);
        let zero = float(self, 0.0);
        if to.size() < 4 {
            let number = self.compare("fcmp ord", a, a);
            let v = self.select(number, a, zero);
            let (lo, hi) = (float(self, lo as f32), float(self, hi as f32));
            let below = self.compare("fcmp olt", v, hi);
            let v = self.select(below, v, hi);
            let above = self.compare("fcmp ogt", v, lo);
            let v = self.select(above, v, lo);
            let v = self.convert("fptosi", v, Ty::int(32, lanes));
            return self.convert("trunc", v, Ty::of(to, lanes));
        }
        // The upper limit is no float; the next number is.
        let ty = Ty::of(to, lanes);
        let (lo_float, hi_float) = (float(self, lo as f32), float(self, hi as f32));
        let (enough, below) = (self.compare("fcmp oge", a, lo_float), self.compare("fcmp olt", a, hi_float));
        let inside = self.two("and", enough, below);
        let v = self.select(inside, a, zero);
        let v = self.convert(if to.is_signed_int() { "fptosi" } else { "fptoui" }, v, ty);
        let (lo, hi) = (self.int(ty, lo), self.int(ty, hi));
        let large = self.compare("fcmp oge", a, hi_float);
        let v = self.select(large, hi, v);
        let small = self.compare("fcmp olt", a, lo_float);
        self.select(small, lo, v)
    }

    /// Saturating.
    fn narrow(&mut self, a: Val, signed: bool, to: DType) -> Val {
        let ty = self.ty(a);
        let (lo, hi) = limits(to);
        let (lo, hi) = (self.int(ty, lo), self.int(ty, hi));
        let v = if signed {
            let v = self.intrinsic("llvm.smin", &[a, hi]);
            self.intrinsic("llvm.smax", &[v, lo])
        } else {
            self.intrinsic("llvm.umin", &[a, hi])
        };
        self.convert("trunc", v, Ty::of(to, ty.lanes))
    }

    /// Lanes of one or two vectors of a type; lanes of the second one follow those of the first.
    fn shuffle(&mut self, a: Val, b: Option<Val>, lanes: &[usize]) -> Val {
        let ty = self.ty(a);
        let second = b.map_or_else(|| format!("{ty} poison"), |b| self.typed(b));
        let mask: Vec<String> = lanes.iter().map(|l| format!("i32 {l}")).collect();
        let text = format!("shufflevector {}, {second}, <{} x i32> <{}>", self.typed(a), lanes.len(), mask.join(", "));
        let args = [a, b.unwrap_or(a)];
        self.pure(ty.with_lanes(lanes.len()), &args, text)
    }

    /// Neighbouring lanes.
    pub fn slice(&mut self, a: Val, start: usize, lanes: usize) -> Val {
        if self.ty(a).lanes == lanes {
            return a;
        }
        if lanes == 1 {
            let text = format!("extractelement {}, i64 {start}", self.typed(a));
            return self.pure(self.ty(a).with_lanes(1), &[a], text);
        }
        let all: Vec<usize> = (start..start + lanes).collect();
        self.shuffle(a, None, &all)
    }

    /// Vectors one after the other.
    pub fn concat(&mut self, parts: &[Val]) -> Val {
        let mut whole = parts[0];
        for &p in &parts[1..] {
            let (have, more) = (self.ty(whole).lanes, self.ty(p).lanes);
            // Operands of a shuffle have the same lanes.
            let p = if have == more {
                p
            } else {
                let lanes: Vec<usize> = (0..have).map(|i| i.min(more - 1)).collect();
                self.shuffle(p, None, &lanes)
            };
            let lanes: Vec<usize> = (0..have + more).collect();
            whole = self.shuffle(whole, Some(p), &lanes);
        }
        whole
    }

    /// Combines lane `i` with lane `i + lanes / 2` until one is left.
    pub fn reduce(&mut self, op: BinOp, dt: DType, a: Val) -> R<Val> {
        let mut lanes = self.ty(a).lanes;
        if !lanes.is_power_of_two() || dt == DType::Bool {
            return Err(format!("reduce of {lanes} lanes of {dt}"));
        }
        let mut v = a;
        while lanes > 1 {
            lanes /= 2;
            let (low, high) = (self.slice(v, 0, lanes), self.slice(v, lanes, lanes));
            v = self.binary(op, dt, low, high)?;
        }
        Ok(v)
    }

    /// Declares a `Reg` buffer whose narrowest vector access has `narrowest` lanes.
    pub fn declare_reg(&mut self, buf: Buf, narrowest: Option<usize>) -> R<()> {
        let decl = self.k.decl(buf);
        let len = reg_len(decl)?;
        let chunk = narrowest.filter(|n| *n != usize::MAX).unwrap_or(1);
        let zero = match Ty::of(decl.dtype, chunk) {
            ty @ Ty { kind: Kind::Int(_), .. } => self.int(ty, 0),
            ty => self.float(0, ty.lanes),
        };
        self.regs[buf.0 as usize] = Some(RegFile { values: vec![zero; len.div_ceil(chunk)], chunk });
        Ok(())
    }

    fn chunk_place(&mut self, buf: Buf, index: &[Expr], lanes: usize) -> R<(usize, usize, usize)> {
        let Some(file) = &self.regs[buf.0 as usize] else {
            return Err(format!("`{}` has no registers", self.k.decl(buf).name));
        };
        let (chunks, chunk) = (file.values.len(), file.chunk);
        let (first, lane) = self.reg_place(buf, index, lanes, (chunks, chunk))?;
        Ok((first, lane, chunk))
    }

    fn chunks(&mut self, buf: Buf) -> &mut Vec<Val> {
        &mut self.regs[buf.0 as usize].as_mut().expect("checked by chunk_place").values
    }

    /// Reads registers.
    pub fn reg_load(&mut self, buf: Buf, index: &[Expr], lanes: usize) -> R<Val> {
        let (first, lane, chunk) = self.chunk_place(buf, index, lanes)?;
        if lanes == 1 {
            let v = self.chunks(buf)[first];
            return Ok(self.slice(v, lane, 1));
        }
        let parts = self.chunks(buf)[first..first + lanes / chunk].to_vec();
        Ok(self.concat(&parts))
    }

    /// Writes registers.
    pub fn reg_store(&mut self, buf: Buf, index: &[Expr], value: Val) -> R<()> {
        let lanes = self.ty(value).lanes;
        let (first, lane, chunk) = self.chunk_place(buf, index, lanes)?;
        if lanes == 1 && chunk > 1 {
            let old = self.chunks(buf)[first];
            let text = format!("insertelement {}, {}, i64 {lane}", self.typed(old), self.typed(value));
            let v = self.pure(self.ty(old), &[old, value], text);
            self.chunks(buf)[first] = v;
            return Ok(());
        }
        for i in 0..lanes / chunk {
            let v = self.slice(value, i * chunk, chunk);
            self.chunks(buf)[first + i] = v;
        }
        Ok(())
    }
}

//! Printer of kernels and programs; the grammar is described in the module text of [`super`].

use std::collections::HashMap;
use std::fmt::Write;

use super::lexer::{is_ident, quote, sigil};
use super::names::{DEFAULT_VAR, binary_name, infix, scope_name, unary_name};
use super::{print_shape, print_sym};
use crate::loops::{Buf, BufDecl, Expr, Kernel, LoopKind, Node, Stmt, VTy, Var};
use crate::program::{BufferId, Place, Program};
use crate::{DType, Dim, Sym, Syms};

/// A kernel as text, readable by [`super::parse_kernel`] with the same symbols.
///
/// The text is exact for kernels whose buffer names are unique and whose variables and symbols are declared.
pub fn print_kernel(kernel: &Kernel, syms: &Syms) -> String {
    let mut out = String::new();
    Printer::new(kernel, syms).kernel(&mut out, 0);
    out
}

/// A program as text, readable by [`super::parse_program`]; exact for programs whose names are unique.
pub fn print_program(p: &Program) -> String {
    let mut out = String::new();
    let syms = &p.syms;
    let own = if p.own_bytes == 0 { String::new() } else { format!(" own {}", p.own_bytes) };
    line(&mut out, 0, format_args!("program {} arena {}{own} {{", sigil('@', &p.name), p.arena_bytes));
    for s in &syms.0 {
        let name = if is_ident(&s.name) { s.name.clone() } else { quote(&s.name) };
        line(&mut out, 1, format_args!("sym {name} in {}..={} multiple {}", s.lo, s.hi, s.multiple));
    }
    for w in &p.weights {
        let sources: Vec<String> = w.sources.iter().map(|s| quote(s)).collect();
        let how = if w.interleave == 0 { String::new() } else { format!(" interleave {}", w.interleave) };
        let shape: Vec<String> = w.shape.iter().map(usize::to_string).collect();
        let (sources, shape) = (sources.join(", "), shape.join(", "));
        line(&mut out, 1, format_args!("weight [{sources}]{how}: {} -> {}[{shape}]", w.from, w.elem));
    }
    for c in &p.constants {
        let bits: Vec<String> = c.iter().map(|b| format!("{b:#x}")).collect();
        line(&mut out, 1, format_args!("constant [{}]", bits.join(", ")));
    }
    for s in &p.states {
        line(&mut out, 1, format_args!("state {}: {}", sigil('%', &s.name), array(s.dtype, &s.shape, syms)));
    }
    for b in &p.buffers {
        let place = match &b.place {
            Place::Input(n) => format!("input {}", quote(n)),
            Place::Output(n) => format!("output {}", quote(n)),
            Place::State(i) => format!("state {i}"),
            Place::Weight(i, at) => format!("weight {i} + {at}"),
            Place::Constant(i) => format!("constant {i}"),
            Place::Arena(at) => format!("arena {at}"),
            Place::Own(at) => format!("own {at}"),
        };
        line(&mut out, 1, format_args!("buffer {}: {} {place}", sigil('%', &b.name), array(b.dtype, &b.shape, syms)));
    }
    for k in &p.kernels {
        Printer::new(k, syms).kernel(&mut out, 1);
    }
    let buffer = |b: &BufferId| match p.buffers.get(b.0 as usize) {
        Some(b) => sigil('%', &b.name),
        None => format!("%?{}", b.0),
    };
    for l in &p.launches {
        let kernel = match p.kernels.get(l.kernel.0 as usize) {
            Some(k) => sigil('@', &k.name),
            None => format!("@?{}", l.kernel.0),
        };
        let args: Vec<String> = l.args.iter().map(buffer).collect();
        let sync = if l.sync { "sync " } else { "" };
        line(&mut out, 1, format_args!("{sync}launch {kernel}({})", args.join(", ")));
    }
    out.push_str("}\n");
    out
}

fn line(out: &mut String, indent: usize, text: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{:1$}{text}", "", indent * 2);
}

fn array(dtype: DType, shape: &[Dim], syms: &Syms) -> String {
    if shape.is_empty() { dtype.to_string() } else { format!("{dtype}{}", print_shape(shape, syms)) }
}

/// A variable: its name, a dot and its number.
fn var_name(name: &str, v: Var) -> String {
    if is_ident(name) { format!("{name}.{}", v.0) } else { format!("{}.{}", quote(name), v.0) }
}

struct Printer<'a> {
    kernel: &'a Kernel,
    syms: &'a Syms,
    /// Types of the variables bound by the statements printed so far.
    types: HashMap<Var, VTy>,
}

impl<'a> Printer<'a> {
    fn new(kernel: &'a Kernel, syms: &'a Syms) -> Self {
        Printer { kernel, syms, types: HashMap::new() }
    }

    fn kernel(&mut self, out: &mut String, at: usize) {
        let k = self.kernel;
        let decl = |b: &BufDecl| format!("{}: {}", sigil('%', &b.name), array(b.dtype, &b.shape, self.syms));
        let args: Vec<String> =
            k.buffers[..k.args()].iter().map(|b| format!("{} {}", decl(b), scope_name(b.scope))).collect();
        line(out, at, format_args!("kernel {}({}) {{", sigil('@', &k.name), args.join(", ")));
        for b in &k.buffers[k.args()..] {
            line(out, at + 1, format_args!("{} {}", scope_name(b.scope), decl(b)));
        }
        let mut bound = vec![false; k.vars.len()];
        mark_bound(&k.body, &mut bound);
        let unbound = (0u32..).zip(&k.vars).zip(&bound).filter(|(_, bound)| !**bound);
        let unbound: Vec<String> = unbound.map(|((i, name), _)| var_name(name, Var(i))).collect();
        if !unbound.is_empty() {
            line(out, at + 1, format_args!("var {}", unbound.join(", ")));
        }
        for t in &k.trace {
            line(out, at + 1, format_args!("trace {}", quote(t)));
        }
        self.body(out, &k.body, at + 1);
        line(out, at, format_args!("}}"));
    }

    fn body(&mut self, out: &mut String, body: &[Stmt], at: usize) {
        for s in body {
            match s {
                Stmt::For { var, extent, kind, body } => {
                    let word = match kind {
                        LoopKind::Serial => "for",
                        LoopKind::Parallel => "parallel",
                        LoopKind::Unroll => "unroll",
                    };
                    line(out, at, format_args!("{word} {} in 0..{} {{", self.var(*var), self.expr(extent, 0)));
                    self.types.insert(*var, DEFAULT_VAR);
                    self.body(out, body, at + 1);
                    line(out, at, format_args!("}}"));
                }
                Stmt::Let { var, value } => {
                    line(out, at, format_args!("let {} = {}", self.var(*var), self.expr(value, 0)));
                    self.types.insert(*var, value.ty());
                }
                Stmt::Store { buf, index, value } => {
                    let value = self.expr(value, 0);
                    line(out, at, format_args!("store {} = {value}", self.access(*buf, index, 1)));
                }
                Stmt::If { cond, then, other } => {
                    line(out, at, format_args!("if {} {{", self.expr(cond, 0)));
                    self.body(out, then, at + 1);
                    if !other.is_empty() {
                        line(out, at, format_args!("}} else {{"));
                        self.body(out, other, at + 1);
                    }
                    line(out, at, format_args!("}}"));
                }
                Stmt::Micro(m) => {
                    let args: Vec<String> = m.args.iter().map(|(b, index)| self.access(*b, index, 1)).collect();
                    let sizes: Vec<String> = m.sizes.iter().map(|e| self.expr(e, 0)).collect();
                    let op = quote(&m.op.to_string());
                    line(out, at, format_args!("micro {op} ({}; {})", args.join(", "), sizes.join(", ")));
                }
            }
        }
    }

    fn var(&self, v: Var) -> String {
        self.kernel.vars.get(v.0 as usize).map_or_else(|| format!("?.{}", v.0), |n| var_name(n, v))
    }

    fn size(&self, s: Sym) -> String {
        print_sym(s, self.syms)
    }

    fn access(&self, b: Buf, index: &[Expr], lanes: u16) -> String {
        let name = match self.kernel.buffers.get(b.0 as usize) {
            Some(b) => sigil('%', &b.name),
            None => format!("%?{}", b.0),
        };
        let index: Vec<String> = index.iter().map(|e| self.expr(e, 0)).collect();
        let lanes = if lanes == 1 { String::new() } else { format!("; {lanes}") };
        format!("{name}[{}{lanes}]", index.join(", "))
    }

    fn call(&self, name: &str, args: &[&Expr]) -> String {
        let args: Vec<String> = args.iter().map(|e| self.expr(e, 0)).collect();
        format!("{name}({})", args.join(", "))
    }

    /// An expression beside an operator of precedence `outer` (0 for none): in parentheses where it binds less tightly.
    fn expr(&self, e: &Expr, outer: u8) -> String {
        let ty = e.ty();
        let one = |dtype| VTy { dtype, lanes: 1 };
        let lanes_of = |a: &Expr| a.ty().lanes;
        let (text, implied) = match e.node() {
            Node::Int(v) => match (*v, ty.dtype) {
                (0, DType::Bool) => ("false".into(), one(DType::Bool)),
                (1, DType::Bool) => ("true".into(), one(DType::Bool)),
                _ => (v.to_string(), one(DType::I64)),
            },
            Node::Float(bits) => (float(*bits), one(DType::F32)),
            Node::Size(s) => (self.size(*s), one(DType::I64)),
            Node::Var(v) => (self.var(*v), self.types.get(v).copied().unwrap_or(DEFAULT_VAR)),
            Node::Load(b, index) => {
                let dtype = self.kernel.buffers.get(b.0 as usize).map_or(ty.dtype, |b| b.dtype);
                (self.access(*b, index, ty.lanes), VTy { dtype, lanes: ty.lanes })
            }
            Node::Unary(op, a) => (self.call(unary_name(*op), &[a]), a.ty()),
            Node::Binary(op, a, b) => {
                let dtype = if op.is_compare() { DType::Bool } else { a.dtype() };
                let implied = VTy { dtype, lanes: lanes_of(a) };
                let text = match infix(*op) {
                    Some((sign, level)) => {
                        let text = format!("{} {sign} {}", self.expr(a, level), self.expr(b, level + 1));
                        if level < outer || implied != ty { format!("({text})") } else { text }
                    }
                    None => self.call(binary_name(*op), &[a, b]),
                };
                (text, implied)
            }
            Node::Fma(a, b, c) => (self.call("fma", &[a, b, c]), a.ty()),
            Node::Select(c, a, b) => (self.call("select", &[c, a, b]), a.ty()),
            Node::Cast(a) => {
                (self.call(&format!("cast.{}", ty.dtype), &[a]), VTy { dtype: ty.dtype, lanes: lanes_of(a) })
            }
            Node::Bitcast(a) => {
                (self.call(&format!("bitcast.{}", ty.dtype), &[a]), VTy { dtype: ty.dtype, lanes: lanes_of(a) })
            }
            Node::Dot4 { acc, w, x, w_max } => {
                (self.call(&format!("dot4.{w_max}"), &[acc, w, x]), VTy { dtype: DType::I32, lanes: lanes_of(acc) })
            }
            Node::Splat(a) => {
                (self.call(&format!("splat.{}", ty.lanes), &[a]), VTy { dtype: a.dtype(), lanes: ty.lanes })
            }
            Node::Ramp(a) => {
                (self.call(&format!("ramp.{}", ty.lanes), &[a]), VTy { dtype: a.dtype(), lanes: ty.lanes })
            }
            Node::Reduce(op, a) => (self.call(&format!("reduce.{}", binary_name(*op)), &[a]), one(a.dtype())),
        };
        if implied == ty { text } else { format!("{text}:{}", type_name(ty)) }
    }
}

/// `f32`, or `f32x8` for vectors.
pub(super) fn type_name(ty: VTy) -> String {
    if ty.lanes == 1 { ty.dtype.to_string() } else { format!("{}x{}", ty.dtype, ty.lanes) }
}

/// The shortest decimal that reads back to the same bits; `inf`, `nan`, or the bits of other NaNs.
fn float(bits: u32) -> String {
    let v = f32::from_bits(bits);
    let (sign, magnitude) = (if v.is_sign_negative() { "-" } else { "" }, f32::from_bits(bits & 0x7fff_ffff));
    if v.is_infinite() {
        format!("{sign}inf")
    } else if bits == f32::NAN.to_bits() {
        "nan".into()
    } else if v.is_nan() {
        format!("nan({bits:#x})")
    } else {
        format!("{sign}{magnitude:?}")
    }
}

fn mark_bound(body: &[Stmt], bound: &mut [bool]) {
    let mut mark = |v: &Var| {
        if let Some(b) = bound.get_mut(v.0 as usize) {
            *b = true;
        }
    };
    for s in body {
        match s {
            Stmt::For { var, .. } | Stmt::Let { var, .. } => mark(var),
            _ => {}
        }
    }
    for s in body {
        match s {
            Stmt::For { body, .. } => mark_bound(body, bound),
            Stmt::If { then, other, .. } => {
                mark_bound(then, bound);
                mark_bound(other, bound);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_keep_their_bits() {
        for (bits, text) in [
            (1.5f32.to_bits(), "1.5"),
            ((-0.0f32).to_bits(), "-0.0"),
            (1e-45f32.to_bits(), "1e-45"),
            (f32::MAX.to_bits(), "3.4028235e38"),
            (f32::NEG_INFINITY.to_bits(), "-inf"),
            (0x7fc0_0000, "nan"),
            (0xffc0_0001, "nan(0xffc00001)"),
        ] {
            assert_eq!(float(bits), text);
        }
    }

    #[test]
    fn dims_and_shapes_are_shared_with_buffers() {
        let mut syms = Syms::default();
        let n = syms.declare("n", 1, 8, 1);
        assert_eq!(array(DType::F32, &[n.into(), 4.into()], &syms), "f32[n, 4]");
        assert_eq!(array(DType::F32, &[], &syms), "f32");
    }
}

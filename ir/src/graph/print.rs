//! The text form of modules. `parse_module` reads it back to an equal module.

use std::fmt::Write;

use super::{Attr, Function, Inst, Kind, Module, Ty};
use crate::text::{lexer, print_dim, print_kernel};
use crate::{Dim, Syms};

fn shape(s: &Syms, dims: &[Dim]) -> String {
    let dims: Vec<String> = dims.iter().map(|d| print_dim(d, s)).collect();
    format!("[{}]", dims.join(", "))
}

/// A type in text, e.g. `f32[n, 576]`.
pub fn ty(s: &Syms, t: &Ty) -> String {
    match t {
        Ty::Tensor(t) => format!("{}{}", t.elem, shape(s, &t.shape)),
        Ty::Rows(r) => format!("rows.{}{}", r.dtype, shape(s, &r.extents())),
        Ty::Kv(k) => format!("kv.{}[{}, {}, {}]", k.dtype, print_dim(&k.slots, s), k.heads, k.dim),
    }
}

fn float(bits: u32) -> String {
    let v = f32::from_bits(bits);
    match v {
        _ if v.is_finite() => format!("{v:?}"),
        f32::INFINITY => "inf".into(),
        f32::NEG_INFINITY => "-inf".into(),
        _ => format!("nan({bits:#x})"),
    }
}

fn list<T>(items: &[T], f: impl Fn(&T) -> String) -> String {
    let items: Vec<String> = items.iter().map(f).collect();
    format!("[{}]", items.join(", "))
}

fn attr(s: &Syms, a: &Attr) -> String {
    match a {
        Attr::Int(v) => v.to_string(),
        Attr::Float(b) => float(*b),
        Attr::Bool(b) => b.to_string(),
        Attr::Str(v) => lexer::quote(v),
        Attr::Ints(v) => list(v, i64::to_string),
        Attr::Floats(v) => list(v, |b| float(*b)),
        Attr::Shape(v) => shape(s, v),
        Attr::DType(d) => d.to_string(),
        Attr::Elem(e) => e.to_string(),
    }
}

fn inst(s: &Syms, f: &Function, i: &Inst) -> String {
    let names = |vs: &[super::Value]| vs.iter().map(|v| format!("%{}", v.0)).collect::<Vec<_>>().join(", ");
    let mut line = format!("{} = {}", names(&i.results), i.op.name());
    if !i.operands.is_empty() {
        let _ = write!(line, " {}", names(&i.operands));
    }
    if !i.attrs.is_empty() {
        let table = i.op.info().attrs;
        let attrs: Vec<String> =
            i.attrs.iter().zip(table).map(|(a, (name, _))| format!("{name} = {}", attr(s, a))).collect();
        let _ = write!(line, " {{{}}}", attrs.join(", "));
    }
    let tys: Vec<String> = i.results.iter().map(|r| ty(s, f.ty(*r))).collect();
    let _ = write!(line, " : {}", tys.join(", "));
    let loc = i.results.first().map_or(String::new(), |r| place(f, *r));
    line + &loc
}

/// Where a value comes from, if known.
fn place(f: &Function, v: super::Value) -> String {
    let loc = f.values[v.0 as usize].loc.as_ref();
    loc.map_or(String::new(), |l| format!(" at {}:{}", lexer::quote(&l.file), l.line))
}

/// A function in text.
pub fn print_function(s: &Syms, f: &Function) -> String {
    let arg = |(name, v): &(String, super::Value)| {
        format!("%{} {}: {}{}", v.0, lexer::quote(name), ty(s, f.ty(*v)), place(f, *v))
    };
    let args: Vec<String> = f.args.iter().map(arg).collect();
    let kind = match f.kind {
        Kind::Graph => "func",
        Kind::Fused => "fused",
        Kind::Kernel => "extern",
    };
    let mut out = format!("{kind} {}({}) {{\n", lexer::sigil('@', &f.name), args.join(", "));
    if let Some(k) = &f.kernel {
        let result = |(n, v): &(String, super::Value)| {
            format!("%{} {}: {}{}", v.0, lexer::quote(n), ty(s, f.ty(*v)), place(f, *v))
        };
        let results: Vec<String> = f.results.iter().map(result).collect();
        let _ = write!(out, "  return {}\n{}}}\n", results.join(", "), print_kernel(k, s));
        return out;
    }
    for i in &f.insts {
        let _ = writeln!(out, "  {}", inst(s, f, i));
    }
    let results: Vec<String> = f.results.iter().map(|(n, v)| format!("{} = %{}", lexer::quote(n), v.0)).collect();
    let _ = writeln!(out, "  return {}\n}}", results.join(", "));
    out
}

/// A module in text.
pub fn print_module(m: &Module) -> String {
    let s = &m.syms;
    let mut out = String::new();
    for d in &s.0 {
        let _ = write!(out, "sym {} in {}..={}", lexer::quote(&d.name), d.lo, d.hi);
        let _ = writeln!(out, "{}", if d.multiple == 1 { String::new() } else { format!(" multiple {}", d.multiple) });
    }
    for (word, decls) in [("param", &m.params), ("state", &m.states)] {
        for d in decls {
            let _ = writeln!(out, "{word} {}: {}", lexer::quote(&d.name), ty(s, &d.ty));
        }
    }
    for f in &m.functions {
        let _ = write!(out, "\n{}", print_function(s, f));
    }
    out
}

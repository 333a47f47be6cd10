//! Facts about kernels and types that translations need.

use std::collections::{HashMap, HashSet};

use marquetry_ir::DType;
use marquetry_ir::loops::{Buf, BufDecl, Expr, Kernel, Node, Scope, Stmt};

use crate::jit::{MAX_LOCAL, R};

/// Buffers stored to, in order.
pub(crate) fn stored(body: &[Stmt]) -> Vec<Buf> {
    let mut out = Vec::new();
    for s in body {
        match s {
            Stmt::For { body, .. } => out.extend(stored(body)),
            Stmt::Store { buf, .. } => out.push(*buf),
            Stmt::If { then, other, .. } => {
                out.extend(stored(then));
                out.extend(stored(other));
            }
            Stmt::Micro(m) => {
                out.extend(m.args.iter().zip(m.op.params()).filter(|(_, p)| p.written).map(|((buf, _), _)| *buf));
            }
            Stmt::Let { .. } => {}
        }
    }
    out.sort_unstable();
    out.dedup();
    out
}

/// The narrowest vector access of each buffer in lanes; `usize::MAX` if all accesses are scalars.
pub(crate) fn narrowest(body: &[Stmt]) -> HashMap<Buf, usize> {
    let mut found = HashMap::new();
    let mut seen = HashSet::new();
    let mut note = |buf: Buf, lanes: u16| {
        let e = found.entry(buf).or_insert(usize::MAX);
        if lanes > 1 {
            *e = (*e).min(lanes as usize);
        }
    };
    visit(body, &mut seen, &mut note);
    found
}

fn visit(body: &[Stmt], seen: &mut HashSet<usize>, note: &mut impl FnMut(Buf, u16)) {
    for s in body {
        match s {
            Stmt::For { extent, body, .. } => {
                visit_expr(extent, seen, note);
                visit(body, seen, note);
            }
            Stmt::Let { value, .. } => visit_expr(value, seen, note),
            Stmt::Store { buf, index, value } => {
                note(*buf, value.lanes());
                index.iter().for_each(|e| visit_expr(e, seen, note));
                visit_expr(value, seen, note);
            }
            Stmt::If { cond, then, other } => {
                visit_expr(cond, seen, note);
                visit(then, seen, note);
                visit(other, seen, note);
            }
            Stmt::Micro(m) => m.exprs().for_each(|e| visit_expr(e, seen, note)),
        }
    }
}

fn visit_expr(e: &Expr, seen: &mut HashSet<usize>, note: &mut impl FnMut(Buf, u16)) {
    if !seen.insert(e.id()) {
        return;
    }
    if let Node::Load(buf, _) = e.node() {
        note(*buf, e.lanes());
    }
    e.children().into_iter().for_each(|c| visit_expr(c, seen, note));
}

/// Elements of a `Local` or `Reg` buffer.
pub(crate) fn constant_len(decl: &BufDecl) -> R<i64> {
    let len = decl.shape.iter().map(|d| d.as_const()).try_fold(1i64, |p, d| d.map(|d| p.saturating_mul(d)));
    len.ok_or_else(|| format!("shape of `{}` is no constant", decl.name))
}

/// Elements of a `Reg` buffer, which are few.
pub(crate) fn reg_len(decl: &BufDecl) -> R<usize> {
    let len = constant_len(decl).ok().and_then(|l| usize::try_from(l).ok()).filter(|l| *l <= 4096);
    len.ok_or_else(|| format!("register buffer `{}` is too large or has no constant shape", decl.name))
}

/// Bytes of each `Local` buffer, by buffer; zero for others. They fit on a stack.
pub(crate) fn local_bytes(k: &Kernel) -> R<Vec<u32>> {
    let (mut all, mut out) = (0i64, Vec::new());
    for decl in &k.buffers {
        if decl.scope != Scope::Local {
            out.push(0);
            continue;
        }
        let bytes = constant_len(decl)?.saturating_mul(decl.dtype.size() as i64).clamp(0, MAX_LOCAL + 1);
        all += bytes;
        if all > MAX_LOCAL {
            return Err(format!("local buffers take more than {MAX_LOCAL} bytes"));
        }
        out.push(bytes as u32);
    }
    Ok(out)
}

/// Smallest and largest value of an integer type.
pub(crate) fn limits(d: DType) -> (i64, i64) {
    match d {
        DType::I32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        DType::U32 => (0, i64::from(u32::MAX)),
        DType::I16 => (i64::from(i16::MIN), i64::from(i16::MAX)),
        DType::I8 => (-128, 127),
        DType::U8 | DType::Bool => (0, 255),
        _ => (i64::MIN, i64::MAX),
    }
}

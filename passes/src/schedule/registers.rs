//! Moving scratch memory into registers.

use marquetry_ir::loops::{Buf, Expr, Kernel, LoopKind, Node, Scope, Stmt};

/// Most 128-bit registers a buffer may take; the register allocator spills what does not fit.
const MAX_PIECES: i64 = 32;

/// `local %acc` → `reg %acc`, for every `Local` buffer whose accesses are all vectors of one width at constant indices.
///
/// Preconditions, checked per buffer: a constant shape of at most 32 vector registers; every index a constant once unrolled
/// loops are expanded; every access as many lanes as every other, at a multiple of them. Buffers that do not qualify stay.
pub fn promote(k: &mut Kernel) {
    promote_where(k, &mut |_, _| true);
}

/// As [`promote`], for buffers that qualify and that `allow` accepts.
pub(super) fn promote_where(k: &mut Kernel, allow: &mut dyn FnMut(&Kernel, Buf) -> bool) {
    for b in 0..k.buffers.len() {
        if k.buffers[b].scope != Scope::Local {
            continue;
        }
        let mut lanes = None;
        let mut fits = size(k, b).is_some();
        let mut unrolled = vec![];
        accesses(&k.body, Buf(b as u32), &mut unrolled, &mut |index, width, unrolled| {
            fits &= *lanes.get_or_insert(width) == width && width > 1;
            let (last, lead) = match index.split_last() {
                Some(x) => x,
                None => return fits = false,
            };
            fits &= lead.iter().all(|i| constant(i, unrolled));
            fits &= last.as_int().is_some_and(|v| v % i64::from(width) == 0);
        });
        if fits && lanes.is_some() && allow(k, Buf(b as u32)) {
            k.buffers[b].scope = Scope::Reg;
            let line = format!("registers %{}", k.buffers[b].name);
            k.trace.push(line);
        }
    }
}

fn size(k: &Kernel, b: usize) -> Option<i64> {
    let d = &k.buffers[b];
    let count = d.shape.iter().map(|d| d.as_const()).try_fold(1i64, |a, d| a.checked_mul(d?))?;
    Some(count * d.dtype.size() as i64 / 16).filter(|n| *n <= MAX_PIECES)
}

fn constant(e: &Expr, unrolled: &[marquetry_ir::loops::Var]) -> bool {
    match e.node() {
        Node::Int(_) => true,
        Node::Var(v) => unrolled.contains(v),
        Node::Binary(_, a, b) => constant(a, unrolled) && constant(b, unrolled),
        _ => false,
    }
}

type Visit<'a> = dyn FnMut(&[Expr], u16, &[marquetry_ir::loops::Var]) + 'a;

fn accesses(body: &[Stmt], b: Buf, unrolled: &mut Vec<marquetry_ir::loops::Var>, f: &mut Visit<'_>) {
    for s in body {
        match s {
            Stmt::For { var, extent, kind, body } => {
                loads(extent, b, unrolled, f);
                if *kind == LoopKind::Unroll {
                    unrolled.push(*var);
                }
                accesses(body, b, unrolled, f);
                if *kind == LoopKind::Unroll {
                    unrolled.pop();
                }
            }
            Stmt::Let { value, .. } => loads(value, b, unrolled, f),
            Stmt::Store { buf, index, value } => {
                index.iter().for_each(|i| loads(i, b, unrolled, f));
                loads(value, b, unrolled, f);
                if *buf == b {
                    f(index, value.lanes(), unrolled);
                }
            }
            Stmt::If { cond, then, other } => {
                loads(cond, b, unrolled, f);
                accesses(then, b, unrolled, f);
                accesses(other, b, unrolled, f);
            }
            Stmt::Micro(m) => {
                m.exprs().for_each(|e| loads(e, b, unrolled, f));
                // It needs an address, which registers have not.
                m.args.iter().filter(|(x, _)| *x == b).for_each(|_| f(&[], 1, unrolled));
            }
        }
    }
}

fn loads(e: &Expr, b: Buf, unrolled: &[marquetry_ir::loops::Var], f: &mut Visit<'_>) {
    if let Node::Load(x, index) = e.node()
        && *x == b
    {
        f(index, e.lanes(), unrolled);
    }
    e.children().into_iter().for_each(|c| loads(c, b, unrolled, f));
}

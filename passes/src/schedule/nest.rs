//! Primitives that change the shape of a nest: `split`, `unroll`, `reorder`, `parallel`.

use marquetry_ir::loops::{Expr, Kernel, LoopKind, Scope, Stmt, Var};

use super::access::{Carried, Effects};
use super::tree::{Loop, Subst, find, loads, steps, uses};
use super::{ScheduleError, buffer, edit, name};

/// Largest extent that [`unroll`] expands.
pub const MAX_UNROLL: i64 = 64;

/// Splits a loop into a nest of two; gives the outer and the inner variable.
///
/// ```text
/// for i in 0..n { B(i) }   →   for io in 0..n/f { for ii in 0..f { B(io*f + ii) } }
///                              for it in 0..n%f { B(n/f*f + it) }          // with `tail`, where n%f is not 0
/// ```
///
/// Needs: `factor` at least 1 and at most the extent; an extent that is a multiple of `factor`, or `tail`; an extent that is
/// not negative and loads nothing. The loops are of the kind of the old one; of a parallel one only the outer loop is
/// parallel, and there is no tail.
pub fn split(k: &mut Kernel, var: Var, factor: i64, tail: bool) -> Result<(Var, Var), ScheduleError> {
    edit(k, "split", var, |k, l| {
        if factor < 1 || l.extent.as_int().is_some_and(|n| n < factor) {
            return Err(format!("factor {factor} for {} iterations", l.extent.as_int().unwrap_or(0)));
        }
        let s = steps(k, &l, factor).ok_or("its extent may be negative or change")?;
        let exact = s.rest.as_int() == Some(0);
        if !exact && !tail {
            return Err(format!("its extent is not a multiple of {factor}"));
        }
        if !exact && l.kind == LoopKind::Parallel {
            return Err("a parallel loop has no tail".into());
        }
        let base = k.vars[var.0 as usize].clone();
        let (outer, inner) = (k.fresh(&format!("{base}o")), k.fresh(&format!("{base}i")));
        let at = Expr::var(outer) * factor + Expr::var(inner);
        let body = Subst::new([(var, at)]).stmts(&l.body);
        let inner_kind = if l.kind == LoopKind::Parallel { LoopKind::Serial } else { l.kind };
        let inner_loop = Loop { var: inner, extent: Expr::idx(factor), kind: inner_kind, body }.stmt();
        let mut new = vec![Loop { var: outer, extent: s.whole, kind: l.kind, body: vec![inner_loop] }.stmt()];
        let mut line = format!("by {factor} into {}, {}", name(k, outer), name(k, inner));
        if !exact {
            let t = k.fresh(&format!("{base}t"));
            let body = Subst::new([(var, s.covered + Expr::var(t))]).copy(k, &l.body);
            new.push(Loop { var: t, extent: s.rest, kind: l.kind, body }.stmt());
            line += &format!(", tail {}", name(k, t));
        }
        Ok((new, line, (outer, inner)))
    })
}

/// Expands a loop at compile time.
///
/// ```text
/// for i in 0..c { B(i) }   →   unroll i in 0..c { B(i) }
/// ```
///
/// Needs: a serial loop with a constant extent of at most 64.
pub fn unroll(k: &mut Kernel, var: Var) -> Result<(), ScheduleError> {
    edit(k, "unroll", var, |_, l| {
        if l.kind != LoopKind::Serial {
            return Err("it is not serial".into());
        }
        match l.extent.as_int() {
            None => Err("its extent is not constant".into()),
            Some(n) if n > MAX_UNROLL => Err(format!("{n} iterations are more than {MAX_UNROLL}")),
            Some(_) => Ok((vec![Loop { kind: LoopKind::Unroll, ..l }.stmt()], String::new(), ())),
        }
    })
}

/// Exchanges two loops.
///
/// ```text
/// for i in 0..n { for j in 0..m { B(i, j) } }   →   for j in 0..m { for i in 0..n { B(i, j) } }
/// ```
///
/// Needs: `inner` is all there is in `outer`; its extent does not depend on `outer` nor on what the body stores; neither is
/// parallel; and no two iterations that differ in both variables touch the same element with one of them storing. Sums over
/// one of the loops keep their order, sums over both are refused.
pub fn reorder(k: &mut Kernel, outer: Var, inner: Var) -> Result<(), ScheduleError> {
    edit(k, "reorder", outer, |k, o| {
        let i = match o.body.as_slice() {
            [Stmt::For { var, .. }] if *var == inner => find(&o.body, inner).ok_or("no inner loop")?,
            _ => return Err(format!("{} is not all there is in it", name(k, inner))),
        };
        if o.kind == LoopKind::Parallel || i.kind == LoopKind::Parallel {
            return Err("one loop is parallel".into());
        }
        if uses(&i.extent, |v| v == outer) {
            return Err(format!("the extent of {} depends on it", name(k, inner)));
        }
        let effects = Effects::of(&i.body);
        if [&o.extent, &i.extent].iter().any(|e| loads(e, |b| effects.stored.contains(&b))) {
            return Err("an extent may change".into());
        }
        if let Some(b) = effects.shared_by_both(&o, &i) {
            return Err(format!("iterations may meet in {}", buffer(k, b)));
        }
        let line = format!("and {}", name(k, inner));
        let below = Loop { body: i.body.clone(), ..o };
        Ok((vec![Loop { body: vec![below.stmt()], ..i }.stmt()], line, ()))
    })
}

/// Distributes a loop over threads.
///
/// ```text
/// for i in 0..n { B(i) }   →   parallel i in 0..n { B(i) }
/// ```
///
/// Needs: a serial loop that is all there is in the kernel; different iterations never touch the same element of an argument
/// with one of them storing, unless `assume_disjoint` takes the caller's word; and no iteration reads what an earlier one
/// left in a `Local` or `Reg` buffer: each such load comes after a store in the same iteration that surely wrote it.
pub fn parallel(k: &mut Kernel, var: Var, assume_disjoint: bool) -> Result<(), ScheduleError> {
    edit(k, "parallel", var, |k, l| {
        if l.kind != LoopKind::Serial {
            return Err("it is not serial".into());
        }
        if !matches!(k.body.as_slice(), [Stmt::For { var: v, .. }] if *v == var) {
            return Err("it is not all there is in the kernel".into());
        }
        let private = |b| matches!(k.decl(b).scope, Scope::Local | Scope::Reg);
        if !assume_disjoint {
            let effects = Effects::of(&l.body);
            if loads(&l.extent, |b| effects.stored.contains(&b)) {
                return Err("its extent may change".into());
            }
            if let Some(b) = effects.shared(&l, |b| !private(b)) {
                return Err(format!("iterations may meet in {}", buffer(k, b)));
            }
            if let Some(b) = Carried::find(k, &l.body) {
                return Err(format!("{} may carry a value from one iteration to the next", buffer(k, b)));
            }
        }
        let line = if assume_disjoint { "assuming disjoint iterations" } else { "" };
        Ok((vec![Loop { kind: LoopKind::Parallel, ..l }.stmt()], line.into(), ()))
    })
}

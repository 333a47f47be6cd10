//! Iterations as a first one plus a lane, with divisions and comparisons that come out the same in all lanes simplified.

use std::collections::{HashMap, HashSet};

use marquetry_ir::DType;
use marquetry_ir::loops::{BinOp, Expr, Node, Stmt, VTy, Var};

use super::access::bind_index;
use super::linear::{Linear, gcd};
use super::tree::{Subst, bodies, uses};

/// Stands for the lane while a body is rewritten; kernels never have that many variables.
pub(super) const LANE: Var = Var(u32::MAX);

/// The body with `first + lane` for `var`. Bindings of integers that depend on it are replaced by their values, since those
/// may occur in indices.
pub(super) fn expand(body: &[Stmt], var: Var, first: Expr, lanes: u16) -> Vec<Stmt> {
    let mut lets = Subst::default();
    let mut varying = HashSet::from([var]);
    collect(body, &mut varying, &mut lets);
    let gone: HashMap<Var, Expr> = lets.env.clone();
    let body = drop_lets(&lets.stmts(body), &gone);
    let mut at = Subst::new([(var, first + Expr::var(LANE))]);
    at.simplify = Some(lanes);
    at.stmts(&body)
}

/// Finds bindings of integers without loads that depend on the variable.
fn collect(body: &[Stmt], varying: &mut HashSet<Var>, lets: &mut Subst) {
    for s in body {
        if let Stmt::Let { var, value } = s
            && uses(value, |v| varying.contains(&v))
        {
            bind_index(lets, *var, value);
            if lets.env.contains_key(var) {
                varying.insert(*var);
            }
        }
        bodies(s).into_iter().for_each(|b| collect(b, varying, lets));
    }
}

fn drop_lets(body: &[Stmt], gone: &HashMap<Var, Expr>) -> Vec<Stmt> {
    let keep = body.iter().filter(|s| !matches!(s, Stmt::Let { var, .. } if gone.contains_key(var)));
    keep.map(|s| match s {
        Stmt::For { var, extent, kind, body } => {
            Stmt::For { var: *var, extent: extent.clone(), kind: *kind, body: drop_lets(body, gone) }
        }
        Stmt::If { cond, then, other } => {
            Stmt::If { cond: cond.clone(), then: drop_lets(then, gone), other: drop_lets(other, gone) }
        }
        s => s.clone(),
    })
    .collect()
}

/// Coefficient of the lane, and what is added to it; none if the lane occurs in another way.
pub(super) fn split(e: &Expr) -> Option<(i64, Linear)> {
    let mut rest = Linear::of(e);
    let c = rest.take(LANE);
    (!rest.terms.iter().any(|(a, _)| uses(a, |v| v == LANE))).then_some((c, rest))
}

/// Is `c * lane` smaller than the distance between the possible values of `rest`, and of multiples of `by`?
fn within(c: i64, lanes: u16, rest: &Linear, by: i64) -> bool {
    let g = gcd(by, rest.divisor());
    c > 0 && (g == 0 || c.checked_mul(i64::from(lanes) - 1).is_some_and(|most| most < g))
}

/// An expression whose operands are simple:
/// * `(a + c*lane) / d` is `a / d`, and `(a + c*lane) % d` is `a % d + c*lane`,
/// * `a + c*lane < d` is `a < d`, and `d <= a + c*lane` is `d <= a`,
///
/// where `a` and `d` are multiples of something larger than `c * (lanes - 1)`.
pub(super) fn simplify(e: &Expr, lanes: u16) -> Option<Expr> {
    const INDEX: VTy = VTy { dtype: DType::I64, lanes: 1 };
    let Node::Binary(op, a, b) = e.node() else { return None };
    if a.ty() != INDEX {
        return None;
    }
    match op {
        BinOp::Div | BinOp::Rem => {
            let d = b.as_int().filter(|d| *d > 0)?;
            let (c, rest) = split(a)?;
            if !within(c, lanes, &rest, d) {
                return None;
            }
            let same = Expr::binary(*op, rest.expr(), b.clone());
            Some(if *op == BinOp::Div { same } else { same + Expr::var(LANE) * c })
        }
        BinOp::Lt | BinOp::Le => {
            let (low, high) = if *op == BinOp::Lt { (a, b) } else { (b, a) };
            let (x, y) = (split(low)?, split(high)?);
            if !within(x.0 - y.0, lanes, &x.1.minus(&y.1), 0) {
                return None;
            }
            let mut zero = Subst::new([(LANE, Expr::idx(0))]);
            Some(Expr::binary(*op, zero.expr(a), zero.expr(b)))
        }
        _ => None,
    }
}

//! Makes a failing kernel, and a failing list of steps, smaller while they keep failing.

use crate::Syms;
use crate::loops::verify::verify;
use crate::loops::{Buf, Expr, Kernel, LoopKind, Micro, Node, Stmt, Var};

/// Most trials of one reduction.
const TRIALS: usize = 2000;

/// Statements of a kernel.
pub fn statements(body: &[Stmt]) -> usize {
    let below = |s: &Stmt| match s {
        Stmt::For { body, .. } => statements(body),
        Stmt::If { then, other, .. } => statements(then) + statements(other),
        Stmt::Let { .. } | Stmt::Store { .. } | Stmt::Micro(_) => 0,
    };
    body.iter().map(|s| 1 + below(s)).sum()
}

/// The fewest elements, in their order, for which `fails` still holds: halves, quarters and so on are left out, then single ones.
pub fn fewest<T: Clone>(all: &[T], fails: &mut dyn FnMut(&[T]) -> bool) -> Vec<T> {
    let mut best = all.to_vec();
    let mut part = best.len().div_ceil(2);
    while part > 0 {
        let mut at = 0;
        let before = best.len();
        while at < best.len() {
            let end = (at + part).min(best.len());
            let without = [&best[..at], &best[end..]].concat();
            if fails(&without) { best = without } else { at = end }
        }
        part = if part == 1 && best.len() < before { 1 } else { part / 2 };
    }
    best
}

/// A smaller kernel for which `fails` still holds; `k` itself must fail. Every kernel that is tried is valid.
pub fn reduce_kernel(k: &Kernel, syms: &Syms, fails: &mut dyn FnMut(&Kernel) -> bool) -> Kernel {
    let mut best = k.clone();
    let mut left = TRIALS;
    loop {
        let before = best.clone();
        let mut at = 0;
        while at < statements(&best.body) {
            let mut taken = false;
            for edit in EDITS {
                let tried = edited(&best, at, *edit).filter(|n| *n != best && verify(n, syms).is_empty());
                left = left.saturating_sub(usize::from(tried.is_some()));
                if left == 0 {
                    return best;
                }
                if let Some(smaller) = tried.filter(|n| fails(n)) {
                    (best, taken) = (smaller, true);
                    break;
                }
            }
            at += usize::from(!taken);
        }
        if best == before {
            break;
        }
    }
    let bare = without_unused(&best);
    if verify(&bare, syms).is_empty() && fails(&bare) { bare } else { best }
}

/// One change of one statement.
#[derive(Clone, Copy, Debug)]
enum Edit {
    /// It goes away, with what is in it.
    Drop,
    /// What is in it takes its place: the first iteration of a loop, or a branch.
    Open,
    /// A loop of at most so many iterations.
    AtMost(i64),
    /// A loop has half as many iterations, or one less.
    Half,
    Less,
    /// A parallel or unrolled loop becomes serial.
    Serial,
    /// The value becomes a constant.
    Constant,
    /// The value becomes one of its operands of the same type.
    Operand(usize),
}

const EDITS: &[Edit] = &[
    Edit::Drop,
    Edit::Open,
    Edit::Constant,
    Edit::AtMost(1),
    Edit::AtMost(4),
    Edit::Half,
    Edit::Less,
    Edit::Serial,
    Edit::Operand(0),
    Edit::Operand(1),
    Edit::Operand(2),
];

/// The kernel with the statement at a place, counted from the front, changed; none where the edit means nothing there.
fn edited(k: &Kernel, at: usize, edit: Edit) -> Option<Kernel> {
    let mut count = at;
    let body = walk(&k.body, &mut count, edit)?;
    Some(Kernel { body, ..k.clone() })
}

fn walk(body: &[Stmt], left: &mut usize, edit: Edit) -> Option<Vec<Stmt>> {
    for (i, s) in body.iter().enumerate() {
        let with = |new: Vec<Stmt>| Some([&body[..i], &new, &body[i + 1..]].concat());
        if *left == 0 {
            return with(change(s, edit)?);
        }
        *left -= 1;
        let inner = match s {
            Stmt::For { body, .. } => statements(body),
            Stmt::If { then, other, .. } => statements(then) + statements(other),
            Stmt::Let { .. } | Stmt::Store { .. } | Stmt::Micro(_) => 0,
        };
        if *left >= inner {
            *left -= inner;
            continue;
        }
        return match s.clone() {
            Stmt::For { var, extent, kind, body } => {
                with(vec![Stmt::For { var, extent, kind, body: walk(&body, left, edit)? }])
            }
            Stmt::If { cond, then, other } => {
                let first = statements(&then);
                let (then, other) = if *left < first {
                    (walk(&then, left, edit)?, other)
                } else {
                    *left -= first;
                    (then, walk(&other, left, edit)?)
                };
                with(vec![Stmt::If { cond, then, other }])
            }
            Stmt::Let { .. } | Stmt::Store { .. } | Stmt::Micro(_) => None,
        };
    }
    None
}

fn change(s: &Stmt, edit: Edit) -> Option<Vec<Stmt>> {
    let extent_to = |to: &dyn Fn(i64) -> i64| match s {
        Stmt::For { var, extent, kind, body } => {
            let new = extent.as_int().map_or(Some(4), |e| Some(to(e)).filter(|n| *n >= 1 && *n < e))?;
            Some(vec![Stmt::For { var: *var, extent: Expr::idx(new), kind: *kind, body: body.clone() }])
        }
        _ => None,
    };
    let value_to = |to: &dyn Fn(&Expr) -> Option<Expr>| match s {
        Stmt::Let { var, value } => Some(vec![Stmt::Let { var: *var, value: to(value)? }]),
        Stmt::Store { buf, index, value } => {
            Some(vec![Stmt::Store { buf: *buf, index: index.clone(), value: to(value)? }])
        }
        _ => None,
    };
    match (edit, s) {
        (Edit::Drop, _) => Some(vec![]),
        (Edit::Open, Stmt::For { var, body, .. }) => Some(substituted(body, *var, &Expr::idx(0))),
        (Edit::Open, Stmt::If { then, other, .. }) => Some(if then.is_empty() { other.clone() } else { then.clone() }),
        (Edit::AtMost(n), _) => extent_to(&|_| n),
        (Edit::Half, _) => extent_to(&|e| e / 2),
        (Edit::Less, _) => extent_to(&|e| e - 1),
        (Edit::Serial, Stmt::For { var, extent, kind, body }) if *kind != LoopKind::Serial => {
            Some(vec![Stmt::For { var: *var, extent: extent.clone(), kind: LoopKind::Serial, body: body.clone() }])
        }
        (Edit::Constant, _) => value_to(&constant),
        (Edit::Operand(i), _) => value_to(&|v| v.children().get(i).filter(|c| c.ty() == v.ty()).map(|c| (*c).clone())),
        _ => None,
    }
}

fn constant(v: &Expr) -> Option<Expr> {
    let one = if v.dtype().is_float() { Expr::float(1.0) } else { Expr::int(1, v.dtype()) };
    let new = if v.lanes() > 1 { one.splat(v.lanes()) } else { one };
    (new.ty() == v.ty() && !matches!(v.node(), Node::Int(_) | Node::Float(_))).then_some(new)
}

fn substituted(body: &[Stmt], v: Var, by: &Expr) -> Vec<Stmt> {
    mapped(body, &mut |e| e.subst(v, by))
}

/// Every expression replaced.
fn mapped(body: &[Stmt], f: &mut dyn FnMut(&Expr) -> Expr) -> Vec<Stmt> {
    let mut each = |s: &Stmt| match s {
        Stmt::For { var, extent, kind, body } => {
            Stmt::For { var: *var, extent: f(extent), kind: *kind, body: mapped(body, f) }
        }
        Stmt::Let { var, value } => Stmt::Let { var: *var, value: f(value) },
        Stmt::Store { buf, index, value } => {
            Stmt::Store { buf: *buf, index: index.iter().map(&mut *f).collect(), value: f(value) }
        }
        Stmt::If { cond, then, other } => Stmt::If { cond: f(cond), then: mapped(then, f), other: mapped(other, f) },
        Stmt::Micro(m) => {
            let args = m.args.iter().map(|(b, index)| (*b, index.iter().map(&mut *f).collect())).collect();
            Stmt::Micro(Micro { op: m.op, args, sizes: m.sizes.iter().map(&mut *f).collect() })
        }
    };
    body.iter().map(&mut each).collect()
}

/// The kernel without buffers that nothing reads or writes, and without variables that nothing binds.
fn without_unused(k: &Kernel) -> Kernel {
    let (mut bufs, mut vars) = (vec![false; k.buffers.len()], vec![false; k.vars.len()]);
    bound(&k.body, &mut bufs, &mut vars);
    mapped(&k.body, &mut |e| {
        e.rewrite(&mut |n| {
            if let Node::Load(b, _) = n.node() {
                bufs[b.0 as usize] = true;
            }
            None
        })
    });
    let before = |all: &[bool], i: u32| all[..i as usize].iter().filter(|u| **u).count() as u32;
    let (buf, var) = (|b: Buf| Buf(before(&bufs, b.0)), |v: Var| Var(before(&vars, v.0)));
    let body = mapped(&k.body, &mut |e| {
        e.rewrite(&mut |n| {
            let node = match n.node() {
                Node::Load(b, ix) => Node::Load(buf(*b), ix.clone()),
                Node::Var(v) => Node::Var(var(*v)),
                _ => return None,
            };
            Some(Expr::new(node, n.dtype(), n.lanes()))
        })
    });
    let kept = |used: &[bool], i: usize| used.get(i).copied().unwrap_or(true);
    let buffers = k.buffers.iter().enumerate().filter(|(i, _)| kept(&bufs, *i)).map(|(_, b)| b.clone()).collect();
    let names = k.vars.iter().enumerate().filter(|(i, _)| kept(&vars, *i)).map(|(_, v)| v.clone()).collect();
    Kernel { buffers, vars: names, body: renamed(&body, &buf, &var), ..k.clone() }
}

/// Buffers that are written, and variables that are bound.
fn bound(body: &[Stmt], bufs: &mut [bool], vars: &mut [bool]) {
    for s in body {
        match s {
            Stmt::Store { buf, .. } => bufs[buf.0 as usize] = true,
            Stmt::Let { var, .. } => vars[var.0 as usize] = true,
            Stmt::For { var, body, .. } => {
                vars[var.0 as usize] = true;
                bound(body, bufs, vars);
            }
            Stmt::If { then, other, .. } => {
                bound(then, bufs, vars);
                bound(other, bufs, vars);
            }
            Stmt::Micro(m) => m.args.iter().for_each(|(b, _)| bufs[b.0 as usize] = true),
        }
    }
}

/// Stores go to other buffers, and statements bind other variables.
fn renamed(body: &[Stmt], buf: &dyn Fn(Buf) -> Buf, var: &dyn Fn(Var) -> Var) -> Vec<Stmt> {
    let each = |s: &Stmt| match s.clone() {
        Stmt::Store { buf: b, index, value } => Stmt::Store { buf: buf(b), index, value },
        Stmt::Let { var: v, value } => Stmt::Let { var: var(v), value },
        Stmt::For { var: v, extent, kind, body } => {
            Stmt::For { var: var(v), extent, kind, body: renamed(&body, buf, var) }
        }
        Stmt::If { cond, then, other } => {
            Stmt::If { cond, then: renamed(&then, buf, var), other: renamed(&other, buf, var) }
        }
        Stmt::Micro(m) => {
            let args = m.args.into_iter().map(|(b, index)| (buf(b), index)).collect();
            Stmt::Micro(Micro { args, ..m })
        }
    };
    body.iter().map(each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{parse_kernel, print_kernel};

    #[test]
    fn lists_keep_what_matters() {
        let all: Vec<usize> = (0..40).collect();
        let mut trials = 0;
        let small = fewest(&all, &mut |l| {
            trials += 1;
            l.contains(&7) && l.contains(&23)
        });
        assert_eq!(small, [7, 23]);
        assert!(trials < 60, "{trials}");
        assert_eq!(fewest(&all, &mut |_| true), Vec::<usize>::new());
    }

    #[test]
    fn kernels_keep_what_matters() {
        let text = "kernel @k(%a: f32[8, 32] in, %b: f32[8] in, %y: f32[8, 32] inout) {
          local %row: f32[32]
          parallel i.0 in 0..8 {
            for j.1 in 0..32 { store %row[j.1] = %a[i.0, j.1] * 2.0 }
            let v.2 = %b[i.0] + 1.0
            if i.0 < 5 {
              for k.3 in 0..32 { store %y[i.0, k.3] = max(%row[k.3] + v.2, sqrt(%a[i.0, k.3])) * 3.0 }
            }
          }
        }";
        let syms = Syms::default();
        let k = parse_kernel(text, &syms).unwrap();
        let small = reduce_kernel(&k, &syms, &mut |k| print_kernel(k, &syms).contains("sqrt"));
        let want = "kernel @k(%a: f32[8, 32] in, %y: f32[8, 32] inout) {\n  store %y[0, 0] = sqrt(%a[0, 0])\n}";
        assert_eq!(print_kernel(&small, &syms).trim(), want);
        assert_eq!(statements(&small.body), 1);
    }
}

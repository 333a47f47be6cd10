//! The default schedule: vectors wherever they are provably right, short loops expanded.

use marquetry_ir::loops::{Expr, Kernel, LoopKind, Node, Scope, Stmt, Var};

use super::tree::{bodies, find, loops, uses, visit};
use super::{Config, ScheduleError, unroll, vectorize, vectorize_reduce};
use crate::manager::Rewrites;
use crate::params::Params;

/// Vectorizes the innermost loops that allow it, in 16, 8 or 4 lanes, and expands short loops. Other loops stay as they are.
///
/// | loop | becomes |
/// |---|---|
/// | reduction | 16 lanes if the extent is a multiple of 16, else 8, else 4; other extents from 5 with a tail |
/// | elementwise | 8 lanes if the extent is a multiple of 8, else 4; other extents above 8 with a tail |
/// | fewer than 4 iterations, small body | unrolled |
/// | chooses among registers, not vectorized | unrolled, as it must be |
///
/// Loops with run-time extents count as long ones with a tail. Unrolled loops are vectorized only where they choose among
/// registers; they may contain other loops.
pub fn default_schedule(k: &mut Kernel) {
    schedule(k, &Config::default(), &Rewrites::default());
}

/// As [`default_schedule`], within a choice; each step but those that loops over registers need asks `rewrites`.
pub(super) fn schedule(k: &mut Kernel, config: &Config, rewrites: &Rewrites) {
    let mut all: Vec<Var> = loops(&k.body)
        .into_iter()
        .filter_map(|s| if let Stmt::For { var, .. } = s { Some(*var) } else { None })
        .collect();
    // Inner loops first.
    all.reverse();
    for v in all {
        let Some(l) = find(&k.body, v) else { continue };
        let registers = chooses_registers(k, &l.body, v);
        let considered = match l.kind {
            LoopKind::Serial => true,
            LoopKind::Unroll => registers,
            LoopKind::Parallel => false,
        };
        if !considered {
            continue;
        }
        if config.vectorize
            && (registers || loops(&l.body).is_empty())
            && make_vectors(k, v, &l.extent, &config.params, rewrites)
        {
            continue;
        }
        let short = l.extent.as_int().is_some_and(|n| n < 4) && size(&l.body) <= config.params.small;
        if l.kind == LoopKind::Serial && registers {
            // A longer loop over registers stays, and the verifier reports it.
            let _ = unroll(k, v);
        } else if l.kind == LoopKind::Serial && short && config.unroll {
            step(k, rewrites, |k| unroll(k, v));
        }
    }
}

/// Applies a primitive, if another rewrite may be made and its preconditions hold.
fn step<T>(k: &mut Kernel, rewrites: &Rewrites, f: impl FnOnce(&mut Kernel) -> Result<T, ScheduleError>) -> bool {
    let done = rewrites.open() && f(k).is_ok();
    if done {
        rewrites.applied(|| format!("schedule @{}: {}", k.name, k.trace.last().map_or("", |t| t)));
    }
    done
}

fn make_vectors(k: &mut Kernel, v: Var, extent: &Expr, p: &Params, rewrites: &Rewrites) -> bool {
    let (reduce, lanes) = match extent.as_int() {
        None => (16, 8),
        Some(n) if n % 16 == 0 || n > 16 && n % 4 != 0 => (16, 8),
        Some(n) if n % 8 == 0 || n > 8 && n % 4 != 0 => (8, 8),
        Some(n) if n % 4 == 0 => (4, 4),
        Some(5..8) => (4, 0),
        Some(_) => return false,
    };
    let (reduce, lanes) = (reduce.min(p.reduce_lanes), lanes.min(p.lanes));
    // Narrower vectors may still fit where rows are short.
    [16, 8, 4].iter().any(|w| i64::from(*w) <= reduce && step(k, rewrites, |k| vectorize_reduce(k, v, *w, 1)))
        || [8, 4].iter().any(|w| i64::from(*w) <= lanes && step(k, rewrites, |k| vectorize(k, v, *w)))
}

/// Statements after expansion of unrolled loops.
fn size(body: &[Stmt]) -> i64 {
    body.iter()
        .map(|s| {
            let inside: i64 = bodies(s).into_iter().map(|b| size(b)).sum();
            match s {
                Stmt::For { extent, kind: LoopKind::Unroll, .. } => extent.as_int().unwrap_or(1).saturating_mul(inside),
                _ => inside + 1,
            }
        })
        .sum()
}

/// Is the variable part of an index of a `Reg` buffer?
fn chooses_registers(k: &Kernel, body: &[Stmt], v: Var) -> bool {
    let reg = |e: &Expr| {
        let mut found = false;
        visit(e, &mut std::collections::HashSet::new(), &mut |x| {
            if let Node::Load(b, index) = x.node() {
                found |= k.decl(*b).scope == Scope::Reg && index.iter().any(|i| uses(i, |x| x == v));
            }
        });
        found
    };
    body.iter().any(|s| {
        let own = match s {
            Stmt::For { extent, .. } => reg(extent),
            Stmt::Let { value, .. } => reg(value),
            Stmt::If { cond, .. } => reg(cond),
            Stmt::Store { buf, index, value } => {
                let here = k.decl(*buf).scope == Scope::Reg && index.iter().any(|i| uses(i, |x| x == v));
                here || reg(value) || index.iter().any(reg)
            }
            Stmt::Micro(m) => m.exprs().any(reg),
        };
        own || bodies(s).into_iter().any(|b| chooses_registers(k, b, v))
    })
}

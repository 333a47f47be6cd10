//! Extents of parallel loops, evaluated on the host.

use marquetry_ir::loops::{BinOp, Expr, Node};

use crate::RuntimeError;

/// Deepest extent expression accepted.
const MAX_DEPTH: u32 = 64;

/// Checks that an extent is made of sizes, integers and `+ - * / min max` only, so that [`eval_extent`] can evaluate it.
///
/// `symbols` is the number of symbols of the program, `kernel` names the kernel in the error.
pub fn check_extent(e: &Expr, symbols: usize, kernel: &str) -> Result<(), RuntimeError> {
    check(e, symbols, 0).map_err(|why| RuntimeError::Program {
        what: format!(
            "kernel `{kernel}`: the extent of its parallel loop {why}; it may use sizes, integers, + - * / min max"
        ),
    })
}

fn check(e: &Expr, symbols: usize, depth: u32) -> Result<(), &'static str> {
    if depth > MAX_DEPTH {
        return Err("is nested more than 64 levels deep");
    }
    match e.node() {
        Node::Int(_) => Ok(()),
        Node::Size(s) if (s.0 as usize) < symbols => Ok(()),
        Node::Size(_) => Err("uses an undeclared symbol"),
        Node::Binary(BinOp::Add | BinOp::Sub | BinOp::Mul | BinOp::Div | BinOp::Min | BinOp::Max, a, b) => {
            check(a, symbols, depth + 1)?;
            check(b, symbols, depth + 1)
        }
        _ => Err("uses something else"),
    }
}

/// The value of an extent at these sizes. `None` for overflow, a division by zero or of negative numbers, and for anything
/// that [`check_extent`] refuses.
pub fn eval_extent(e: &Expr, sizes: &[i64]) -> Option<i64> {
    match e.node() {
        Node::Int(v) => Some(*v),
        Node::Size(s) => sizes.get(s.0 as usize).copied(),
        Node::Binary(op, a, b) => {
            let (a, b) = (eval_extent(a, sizes)?, eval_extent(b, sizes)?);
            match op {
                BinOp::Add => a.checked_add(b),
                BinOp::Sub => a.checked_sub(b),
                BinOp::Mul => a.checked_mul(b),
                BinOp::Div if a >= 0 && b > 0 => Some(a / b),
                BinOp::Min => Some(a.min(b)),
                BinOp::Max => Some(a.max(b)),
                _ => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use marquetry_ir::Sym;
    use marquetry_ir::loops::Var;

    use super::*;

    #[test]
    fn extents_are_evaluated_or_refused() {
        let n = Expr::size(Sym(0));
        let e = ((n.clone() * 3 + 5) / 4).min(Expr::idx(100)).max(Expr::idx(2)) - 1;
        assert!(check_extent(&e, 1, "k").is_ok());
        assert_eq!(eval_extent(&e, &[9]), Some(7));
        assert_eq!(eval_extent(&e, &[1000]), Some(99));
        assert_eq!(eval_extent(&e, &[i64::MAX]), None);
        assert!(check_extent(&e, 0, "k").is_err());
        let zero = Expr::idx(1) / n;
        assert_eq!(eval_extent(&zero, &[0]), None);
        let v = Expr::var(Var(0)) + 1;
        let message = check_extent(&v, 1, "k").unwrap_err().to_string();
        assert!(message.contains("kernel `k`"), "{message}");
        let deep = (0..100).fold(Expr::size(Sym(0)), |e, _| e * Expr::size(Sym(0)));
        assert!(check_extent(&deep, 1, "k").is_err());
    }
}

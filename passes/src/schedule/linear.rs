//! Linear forms of index expressions, and their ranges.

use std::collections::HashMap;

use marquetry_ir::loops::{BinOp, Expr, Node, Var};

/// `Σ coefficient * atom + constant`. Two forms of one index have the same atoms, in any order.
#[derive(Clone, Debug, Default)]
pub(super) struct Linear {
    /// Atoms with their coefficients, which are not 0.
    pub terms: Vec<(Expr, i64)>,
    /// The constant.
    pub constant: i64,
}

impl Linear {
    /// The form of a scalar `i64` expression.
    pub fn of(e: &Expr) -> Linear {
        let mut out = Linear::default();
        out.add_expr(e, 1);
        out
    }

    fn add_expr(&mut self, e: &Expr, k: i64) {
        match e.node() {
            Node::Int(v) => self.constant = self.constant.wrapping_add(v.wrapping_mul(k)),
            Node::Binary(op @ (BinOp::Add | BinOp::Sub), a, b) => {
                self.add_expr(a, k);
                self.add_expr(b, if *op == BinOp::Add { k } else { k.wrapping_neg() });
            }
            Node::Binary(BinOp::Mul, a, b) => match (a.as_int(), b.as_int()) {
                (_, Some(c)) => self.add_expr(a, k.wrapping_mul(c)),
                (Some(c), _) => self.add_expr(b, k.wrapping_mul(c)),
                _ => self.add_atom(e, k),
            },
            _ => self.add_atom(e, k),
        }
    }

    /// Adds `k * atom`.
    pub fn add_atom(&mut self, atom: &Expr, k: i64) {
        match self.terms.iter_mut().find(|(a, _)| a == atom) {
            Some((_, c)) => *c = c.wrapping_add(k),
            None => self.terms.push((atom.clone(), k)),
        }
        self.terms.retain(|(_, c)| *c != 0);
    }

    /// The difference of two forms.
    pub fn minus(&self, o: &Linear) -> Linear {
        let mut out = self.clone();
        o.terms.iter().for_each(|(a, c)| out.add_atom(a, c.wrapping_neg()));
        out.constant = out.constant.wrapping_sub(o.constant);
        out
    }

    /// Removes the term of a variable and gives its coefficient, 0 if there is none.
    pub fn take(&mut self, v: Var) -> i64 {
        match self.terms.iter().position(|(a, _)| as_var(a) == Some(v)) {
            Some(at) => self.terms.remove(at).1,
            None => 0,
        }
    }

    /// Are all values multiples of `n`?
    pub fn multiple_of(&self, n: i64) -> bool {
        self.divisor() % n == 0
    }

    /// A common divisor of all values; 0 if they are 0.
    pub fn divisor(&self) -> i64 {
        self.terms.iter().fold(gcd(0, self.constant), |g, (a, c)| gcd(g, c.wrapping_mul(divisor(a))))
    }

    /// An equal expression.
    pub fn expr(&self) -> Expr {
        let sum = self.terms.iter().fold(Expr::idx(0), |e, (a, c)| e + a.clone() * *c);
        sum + self.constant
    }
}

/// Greatest common divisor, 0 with 0.
pub(super) fn gcd(a: i64, b: i64) -> i64 {
    let (mut a, mut b) = (a.unsigned_abs(), b.unsigned_abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    i64::try_from(a).unwrap_or(1)
}

/// A common divisor of all values of an atom.
fn divisor(e: &Expr) -> i64 {
    match e.node() {
        Node::Binary(BinOp::Rem, a, m) => gcd(Linear::of(a).divisor(), m.as_int().unwrap_or(1)),
        Node::Binary(BinOp::Mul, a, b) => {
            let product = Linear::of(a).divisor().checked_mul(Linear::of(b).divisor());
            product.unwrap_or(1)
        }
        _ => 1,
    }
}

/// The variable, if the expression is one.
pub(super) fn as_var(e: &Expr) -> Option<Var> {
    match e.node() {
        Node::Var(v) => Some(*v),
        _ => None,
    }
}

/// Smallest and largest value of an index over variables with values `0..extent`; none where it is not known.
pub(super) fn range(e: &Expr, extents: &HashMap<Var, Option<i64>>) -> Option<(i128, i128)> {
    match e.node() {
        Node::Int(v) => Some((i128::from(*v), i128::from(*v))),
        Node::Var(v) => {
            let n = (*extents.get(v)?)?;
            Some((0, i128::from((n - 1).max(0))))
        }
        Node::Binary(BinOp::Rem, _, m) => m.as_int().filter(|m| *m > 0).map(|m| (0, i128::from(m) - 1)),
        Node::Binary(BinOp::Div, a, d) => {
            let (d, (lo, hi)) = (i128::from(d.as_int().filter(|d| *d > 0)?), range(a, extents)?);
            (lo >= 0).then_some((lo / d, hi / d))
        }
        Node::Binary(BinOp::Add | BinOp::Sub | BinOp::Mul, ..) => range_of(&Linear::of(e), extents),
        _ => None,
    }
}

/// [`range`] of a linear form.
pub(super) fn range_of(l: &Linear, extents: &HashMap<Var, Option<i64>>) -> Option<(i128, i128)> {
    let mut sum = (i128::from(l.constant), i128::from(l.constant));
    for (a, c) in &l.terms {
        // A product of two atoms has no linear form.
        let product = matches!(a.node(), Node::Binary(BinOp::Mul, ..));
        let (lo, hi) = if product { None } else { range(a, extents) }?;
        let c = i128::from(*c);
        let (x, y) = if c >= 0 { (lo * c, hi * c) } else { (hi * c, lo * c) };
        sum = (sum.0 + x, sum.1 + y);
    }
    Some(sum)
}

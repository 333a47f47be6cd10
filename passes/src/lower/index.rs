//! Index arithmetic: linear forms with known ranges, so that reshapes cost no divisions where none are needed.

use std::collections::HashMap;

use marquetry_ir::Dim;
use marquetry_ir::loops::{BinOp, Expr, Node, Var, dim_expr};

/// Largest value of each loop variable (the smallest is 0); none where it is not known.
#[derive(Clone, Debug, Default)]
pub struct Ranges(HashMap<Var, i64>);

/// `Σ coefficient * atom + constant`, atoms in order of first appearance.
#[derive(Clone, Debug, Default)]
struct Linear {
    terms: Vec<(Expr, i64)>,
    constant: i64,
}

impl Linear {
    fn add_term(&mut self, atom: &Expr, c: i64) {
        match self.terms.iter_mut().find(|(a, _)| a == atom) {
            Some((_, k)) => *k = k.wrapping_add(c),
            None => self.terms.push((atom.clone(), c)),
        }
        self.terms.retain(|(_, k)| *k != 0);
    }

    fn add(&mut self, o: &Linear, factor: i64) {
        o.terms.iter().for_each(|(a, c)| self.add_term(a, c.wrapping_mul(factor)));
        self.constant = self.constant.wrapping_add(o.constant.wrapping_mul(factor));
    }

    fn expr(&self) -> Expr {
        let mut e = Expr::idx(0);
        for (a, c) in &self.terms {
            e = e + a.clone() * *c;
        }
        e + self.constant
    }
}

fn linear(e: &Expr) -> Linear {
    let mut out = Linear::default();
    match e.node() {
        Node::Int(v) => out.constant = *v,
        Node::Binary(op @ (BinOp::Add | BinOp::Sub), a, b) => {
            out = linear(a);
            out.add(&linear(b), if *op == BinOp::Add { 1 } else { -1 });
        }
        Node::Binary(BinOp::Mul, a, b) => match (a.as_int(), b.as_int()) {
            (_, Some(c)) => out.add(&linear(a), c),
            (Some(c), _) => out.add(&linear(b), c),
            _ => out.add_term(e, 1),
        },
        _ => out.add_term(e, 1),
    }
    out
}

impl Ranges {
    /// Declares a loop variable with values `0..extent`.
    pub fn declare(&mut self, v: Var, extent: i64) {
        self.0.insert(v, extent - 1);
    }

    /// Smallest and largest value of an expression, when known.
    pub fn of(&self, e: &Expr) -> Option<(i64, i64)> {
        match e.node() {
            Node::Int(v) => Some((*v, *v)),
            Node::Var(v) => self.0.get(v).map(|hi| (0, *hi)),
            Node::Binary(BinOp::Rem, _, m) => m.as_int().map(|m| (0, m - 1)),
            Node::Binary(BinOp::Div, a, d) => {
                let (d, (lo, hi)) = (d.as_int().filter(|d| *d > 0)?, self.of(a)?);
                (lo >= 0).then_some((lo / d, hi / d))
            }
            Node::Binary(BinOp::Add | BinOp::Sub | BinOp::Mul, ..) => self.of_linear(&linear(e)),
            _ => None,
        }
    }

    /// The value of an expression that can have one only.
    pub fn only(&self, e: &Expr) -> Option<i64> {
        e.as_int().or_else(|| self.of(e).filter(|(lo, hi)| lo == hi).map(|(lo, _)| lo))
    }

    fn of_linear(&self, l: &Linear) -> Option<(i64, i64)> {
        let mut range = (l.constant, l.constant);
        for (a, c) in &l.terms {
            let is_sum = matches!(a.node(), Node::Binary(BinOp::Add | BinOp::Sub, ..));
            let (lo, hi) = if is_sum { None } else { self.of(a) }?;
            let (x, y) = if *c >= 0 { (lo * c, hi * c) } else { (hi * c, lo * c) };
            range = (range.0.checked_add(x)?, range.1.checked_add(y)?);
        }
        Some(range)
    }

    /// Quotient and remainder of a non-negative index by a positive constant.
    pub fn div_rem(&self, e: &Expr, by: i64) -> (Expr, Expr) {
        let l = linear(e);
        let mut multiple = Linear { constant: l.constant.div_euclid(by) * by, ..Linear::default() };
        let mut rest = Linear { constant: l.constant.rem_euclid(by), ..Linear::default() };
        for (a, c) in &l.terms {
            if c % by == 0 { &mut multiple } else { &mut rest }.add_term(a, *c);
        }
        let mut quotient = Linear { constant: multiple.constant / by, ..Linear::default() };
        multiple.terms.iter().for_each(|(a, c)| quotient.add_term(a, c / by));
        match self.of_linear(&rest) {
            Some((lo, hi)) if lo >= 0 && hi < by => (quotient.expr(), rest.expr()),
            Some((lo, _)) if lo >= 0 => {
                let r = rest.expr();
                (quotient.expr() + r.clone() / by, r % by)
            }
            _ => (l.expr() / by, l.expr() % by),
        }
    }

    /// An equal expression in linear form.
    pub fn simplify(&self, e: &Expr) -> Expr {
        linear(e).expr()
    }
}

/// Maps an index through `reshape`: the index into `from` of the element at `idx` of `to`.
pub fn reshape(ranges: &Ranges, idx: &[Expr], to: &[Dim], from: &[Dim]) -> Vec<Expr> {
    let one = Dim::from(1);
    // Axes of extent 1 have index 0; equal axes at either end keep theirs.
    let wide: Vec<(&Expr, &Dim)> = idx.iter().zip(to).filter(|(_, d)| **d != one).collect();
    let narrow: Vec<&Dim> = from.iter().filter(|d| **d != one).collect();
    let first = wide.iter().zip(&narrow).take_while(|((_, a), b)| a == *b).count();
    let ends = wide[first..].iter().rev().zip(narrow[first..].iter().rev());
    let last = ends.take_while(|((_, a), b)| a == *b).count();
    let extent = |d: &Dim| d.as_const().map_or_else(|| dim_expr(d), Expr::idx);
    let mut flat = Expr::idx(0);
    for (i, d) in &wide[first..wide.len() - last] {
        flat = if flat.as_int() == Some(0) { (*i).clone() } else { flat * extent(d) + (*i).clone() };
    }
    let mut middle = vec![];
    for (n, d) in narrow[first..narrow.len() - last].iter().enumerate().rev() {
        let (q, r) = match (n, d.as_const()) {
            (0, _) => (Expr::idx(0), ranges.simplify(&flat)),
            (_, Some(d)) => ranges.div_rem(&flat, d),
            (_, None) => (flat.clone() / extent(d), flat % extent(d)),
        };
        middle.push(r);
        flat = q;
    }
    let kept = |w: &[(&Expr, &Dim)]| w.iter().map(|(i, _)| (*i).clone()).collect::<Vec<_>>();
    middle.reverse();
    let all = [kept(&wide[..first]), middle, kept(&wide[wide.len() - last..])].concat();
    let mut all = all.into_iter();
    from.iter().map(|d| if *d == one { None } else { all.next() }.unwrap_or(Expr::idx(0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisions_vanish_where_ranges_allow() {
        let mut r = Ranges::default();
        let (h, d) = (Var(0), Var(1));
        r.declare(h, 9);
        r.declare(d, 64);
        let flat = Expr::var(h) * 64 + Expr::var(d) + 576;
        let (q, m) = r.div_rem(&flat, 64);
        assert_eq!(r.simplify(&q), r.simplify(&(Expr::var(h) + 9)));
        assert_eq!(m, r.simplify(&Expr::var(d)));
    }

    #[test]
    fn reshape_keeps_leading_axes() {
        let mut r = Ranges::default();
        let (t, f, x) = (Var(0), Var(1), Var(2));
        r.declare(f, 16);
        r.declare(x, 8);
        let dims = |d: &[i64]| d.iter().map(|&d| Dim::from(d)).collect::<Vec<_>>();
        let idx = [Expr::var(t), Expr::var(f) * 8 + Expr::var(x)];
        let got = reshape(&r, &idx, &dims(&[7, 128]), &dims(&[7, 16, 1, 8]));
        let want = [Expr::var(t), Expr::var(f), Expr::idx(0), Expr::var(x)];
        let simple: Vec<Expr> = got.iter().map(|e| r.simplify(e)).collect();
        assert_eq!(simple, want.iter().map(|e| r.simplify(e)).collect::<Vec<_>>());
    }
}

//! Symbolic dimensions: polynomials with integer coefficients over declared symbols, in one normal form.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Add, Mul, Sub};

use serde::{Deserialize, Serialize};

/// A symbol: an index into the [`Syms`] of the module that owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sym(pub u32);

/// Declaration of a symbol: a positive run-time size with bounds and a divisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SymDecl {
    /// Name in the text IR.
    pub name: String,
    /// Smallest value, inclusive.
    pub lo: i64,
    /// Largest value, inclusive.
    pub hi: i64,
    /// Every value is a multiple of this.
    pub multiple: i64,
}

/// The symbols of a module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Syms(pub Vec<SymDecl>);

/// Answer of a proof attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Holds for all values within the declared bounds.
    Yes,
    /// Fails for all values within the declared bounds.
    No,
    /// Neither could be shown.
    Unknown,
}

impl Syms {
    /// Declares a symbol, or returns the one of that name when its declaration is the same.
    pub fn declare(&mut self, name: &str, lo: i64, hi: i64, multiple: i64) -> Sym {
        let decl = SymDecl { name: name.into(), lo, hi, multiple };
        if let Some(i) = self.0.iter().position(|d| *d == decl) {
            return Sym(i as u32);
        }
        self.0.push(decl);
        Sym(self.0.len() as u32 - 1)
    }

    /// The symbol of that name.
    pub fn find(&self, name: &str) -> Option<Sym> {
        self.0.iter().position(|d| d.name == name).map(|i| Sym(i as u32))
    }

    /// The declaration of a symbol.
    pub fn decl(&self, s: Sym) -> &SymDecl {
        &self.0[s.0 as usize]
    }

    /// Smallest and largest value of `d` by interval arithmetic (sound, not always tight).
    pub fn range(&self, d: &Dim) -> (i64, i64) {
        let mut lo = 0i64;
        let mut hi = 0i64;
        for (monomial, &c) in &d.0 {
            let (mut a, mut b) = (1i64, 1i64);
            for s in monomial {
                a = a.saturating_mul(self.decl(*s).lo);
                b = b.saturating_mul(self.decl(*s).hi);
            }
            let (x, y) = if c >= 0 { (a, b) } else { (b, a) };
            lo = lo.saturating_add(c.saturating_mul(x));
            hi = hi.saturating_add(c.saturating_mul(y));
        }
        (lo, hi)
    }

    /// Is `a == b` for every admissible assignment?
    pub fn prove_eq(&self, a: &Dim, b: &Dim) -> Proof {
        let d = a.clone() - b.clone();
        if d.0.is_empty() {
            return Proof::Yes;
        }
        let (lo, hi) = self.range(&d);
        if lo > 0 || hi < 0 { Proof::No } else { Proof::Unknown }
    }

    /// Is `a <= b` for every admissible assignment?
    pub fn prove_le(&self, a: &Dim, b: &Dim) -> Proof {
        let (lo, hi) = self.range(&(b.clone() - a.clone()));
        if lo >= 0 {
            Proof::Yes
        } else if hi < 0 {
            Proof::No
        } else {
            Proof::Unknown
        }
    }

    /// Is `d` a multiple of `by` for every admissible assignment? `by` is positive.
    pub fn prove_multiple(&self, d: &Dim, by: i64) -> Proof {
        let all = d.0.iter().all(|(m, &c)| {
            let known = m.iter().fold(c, |p, s| p.saturating_mul(self.decl(*s).multiple));
            known % by == 0
        });
        match (all, d.as_const()) {
            (true, _) => Proof::Yes,
            (false, Some(_)) => Proof::No,
            (false, None) => Proof::Unknown,
        }
    }

    /// `d` with symbol names, e.g. `2*n + 1`.
    pub fn show(&self, d: &Dim) -> String {
        d.render(|s| self.0.get(s.0 as usize).map_or_else(|| format!("?{}", s.0), |d| d.name.clone()))
    }
}

/// A polynomial over symbols: sorted monomials with non-zero coefficients. Structural equality is mathematical equality.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dim(BTreeMap<Vec<Sym>, i64>);

impl Dim {
    /// The constant, if no symbol occurs.
    pub fn as_const(&self) -> Option<i64> {
        match self.0.len() {
            0 => Some(0),
            1 => self.0.get(&Vec::new()).copied(),
            _ => None,
        }
    }

    /// The symbols that occur, sorted and without repetition.
    pub fn syms(&self) -> Vec<Sym> {
        let mut all: Vec<Sym> = self.0.keys().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Monomials and their coefficients.
    pub fn terms(&self) -> impl Iterator<Item = (&[Sym], i64)> {
        self.0.iter().map(|(m, &c)| (m.as_slice(), c))
    }

    /// The value under an assignment of symbols; saturates at the ends of `i64`.
    pub fn eval(&self, value: impl Fn(Sym) -> i64) -> i64 {
        self.terms()
            .map(|(m, c)| m.iter().fold(c, |p, &s| p.saturating_mul(value(s))))
            .fold(0i64, |a, b| a.saturating_add(b))
    }

    /// Replaces symbols by dims.
    pub fn subst(&self, f: &impl Fn(Sym) -> Dim) -> Dim {
        let mut out = Dim::default();
        for (m, c) in self.terms() {
            out = out + m.iter().fold(Dim::from(c), |p, &s| p * f(s));
        }
        out
    }

    /// `self / by`, when every coefficient is a multiple of `by`.
    pub fn div_exact(&self, by: i64) -> Option<Dim> {
        if by == 0 || self.0.values().any(|c| c % by != 0) {
            return None;
        }
        Some(Dim(self.0.iter().map(|(m, c)| (m.clone(), c / by)).collect()))
    }

    fn render(&self, name: impl Fn(Sym) -> String) -> String {
        if self.0.is_empty() {
            return "0".into();
        }
        let mut terms: Vec<_> = self.0.iter().collect();
        terms.sort_by_key(|(m, _)| (m.is_empty(), (*m).clone()));
        let mut out = String::new();
        for (i, (m, &c)) in terms.into_iter().enumerate() {
            let sign = if c < 0 { "-" } else { "+" };
            match (i, c < 0) {
                (0, false) => {}
                (0, true) => out.push('-'),
                _ => out.push_str(&format!(" {sign} ")),
            }
            let names: Vec<String> = m.iter().map(|&s| name(s)).collect();
            let c = c.unsigned_abs();
            match (names.is_empty(), c) {
                (true, _) => out.push_str(&c.to_string()),
                (false, 1) => out.push_str(&names.join("*")),
                (false, _) => out.push_str(&format!("{c}*{}", names.join("*"))),
            }
        }
        out
    }
}

impl From<i64> for Dim {
    fn from(c: i64) -> Dim {
        let mut m = BTreeMap::new();
        if c != 0 {
            m.insert(Vec::new(), c);
        }
        Dim(m)
    }
}

impl From<usize> for Dim {
    fn from(c: usize) -> Dim {
        Dim::from(i64::try_from(c).unwrap_or(i64::MAX))
    }
}

impl From<i32> for Dim {
    fn from(c: i32) -> Dim {
        Dim::from(i64::from(c))
    }
}

impl From<Sym> for Dim {
    fn from(s: Sym) -> Dim {
        Dim(BTreeMap::from([(vec![s], 1)]))
    }
}

fn insert(m: &mut BTreeMap<Vec<Sym>, i64>, k: Vec<Sym>, c: i64) {
    let e = m.entry(k.clone()).or_insert(0);
    *e = e.saturating_add(c);
    if *e == 0 {
        m.remove(&k);
    }
}

impl Add for Dim {
    type Output = Dim;
    fn add(mut self, o: Dim) -> Dim {
        for (k, c) in o.0 {
            insert(&mut self.0, k, c);
        }
        self
    }
}

impl Sub for Dim {
    type Output = Dim;
    fn sub(mut self, o: Dim) -> Dim {
        for (k, c) in o.0 {
            insert(&mut self.0, k, c.saturating_neg());
        }
        self
    }
}

impl Mul for Dim {
    type Output = Dim;
    fn mul(self, o: Dim) -> Dim {
        let mut out = BTreeMap::new();
        for (a, x) in &self.0 {
            for (b, y) in &o.0 {
                let mut k = [a.as_slice(), b.as_slice()].concat();
                k.sort_unstable();
                insert(&mut out, k, x.saturating_mul(*y));
            }
        }
        Dim(out)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(|s| format!("${}", s.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syms() -> (Syms, Dim, Dim) {
        let mut s = Syms::default();
        let n = s.declare("n", 1, 2048, 1);
        let m = s.declare("m", 8, 4096, 8);
        (s, n.into(), m.into())
    }

    #[test]
    fn equal_polynomials_have_one_form() {
        let (s, n, m) = syms();
        let a = (n.clone() + 1.into()) * m.clone();
        let b = m.clone() * n.clone() + m.clone();
        assert_eq!(a, b);
        assert_eq!(s.show(&(b - n.clone() * m - 3.into())), "m - 3");
        assert_eq!(s.show(&(n.clone() - n)), "0");
    }

    #[test]
    fn proofs_answer_three_ways() {
        let (s, n, m) = syms();
        assert_eq!(s.prove_eq(&n, &n), Proof::Yes);
        assert_eq!(s.prove_eq(&n, &(n.clone() + 1.into())), Proof::No);
        assert_eq!(s.prove_eq(&n, &m), Proof::Unknown);
        assert_eq!(s.prove_le(&n, &2048.into()), Proof::Yes);
        assert_eq!(s.prove_le(&n, &0.into()), Proof::No);
        assert_eq!(s.prove_le(&n, &100.into()), Proof::Unknown);
        assert_eq!(s.prove_multiple(&(m.clone() * n.clone()), 8), Proof::Yes);
        assert_eq!(s.prove_multiple(&n, 2), Proof::Unknown);
        assert_eq!(s.prove_multiple(&7.into(), 2), Proof::No);
    }
}

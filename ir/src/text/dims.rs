//! Dims in text: sums of products of integers and symbol names, e.g. `2*n*m - n + 1`.

use super::lexer::{Lexer, ParseError, Token, signed};
use super::suggest;
use crate::{Dim, Sym, Syms};

/// Most monomials of a dim, and most factors of a monomial, that a text may ask for.
const MAX_TERMS: usize = 64;

/// Words that are values, not symbols.
const RESERVED: [&str; 4] = ["true", "false", "inf", "nan"];

/// A symbol in text: its name where that is unambiguous, else `$` and its number.
pub fn print_sym(s: Sym, syms: &Syms) -> String {
    let Some(decl) = syms.0.get(s.0 as usize) else { return format!("${}", s.0) };
    let name = decl.name.as_str();
    let plain = super::lexer::is_ident(name) && !name.contains('.') && !RESERVED.contains(&name);
    if plain && syms.find(name) == Some(s) { name.to_string() } else { format!("${}", s.0) }
}

/// A dim in text, as [`parse_dim`] reads it.
pub fn print_dim(d: &Dim, syms: &Syms) -> String {
    let mut terms: Vec<(&[Sym], i64)> = d.terms().collect();
    terms.sort_by_key(|(m, _)| (m.is_empty(), m.to_vec()));
    let mut out = String::new();
    for (i, (monomial, c)) in terms.into_iter().enumerate() {
        out.push_str(match (i, c < 0) {
            (0, false) => "",
            (0, true) => "-",
            (_, false) => " + ",
            (_, true) => " - ",
        });
        let mut factors: Vec<String> = monomial.iter().map(|&s| print_sym(s, syms)).collect();
        if factors.is_empty() || c.unsigned_abs() != 1 {
            factors.insert(0, c.unsigned_abs().to_string());
        }
        out.push_str(&factors.join("*"));
    }
    if out.is_empty() { "0".into() } else { out }
}

/// Reads a symbol: a declared name, or `$` and its number.
pub fn parse_sym(lexer: &mut Lexer<'_>, syms: &Syms) -> Result<Sym, ParseError> {
    let pos = lexer.pos();
    if lexer.eat("$") {
        let i: u32 = lexer.uint_as("the number of a symbol")?;
        return match syms.0.get(i as usize) {
            Some(_) => Ok(Sym(i)),
            None => {
                Err(lexer.error_at(pos, "IR010", format!("symbol `${i}` is not declared; there are {}", syms.0.len())))
            }
        };
    }
    let name = lexer.ident("a symbol")?;
    syms.find(name).ok_or_else(|| {
        let near = suggest(name, syms.0.iter().map(|d| d.name.as_str()));
        lexer.error_at(pos, "IR010", format!("symbol `{name}` is not declared{near}"))
    })
}

/// Reads a dim: integers and symbols with `+`, `-`, `*` and parentheses. At most 64 terms of 8 factors.
pub fn parse_dim(lexer: &mut Lexer<'_>, syms: &Syms) -> Result<Dim, ParseError> {
    let pos = lexer.pos();
    lexer.enter()?;
    let negative = lexer.eat("-");
    let mut sum = product(lexer, syms, negative)?;
    loop {
        let negative = match lexer.peek() {
            Token::Punct("+") => false,
            Token::Punct("-") => true,
            _ => break,
        };
        lexer.next();
        sum = sum + product(lexer, syms, negative)?;
        check_size(lexer, pos, &sum)?;
    }
    lexer.leave();
    Ok(sum)
}

fn check_size(lexer: &Lexer<'_>, pos: super::lexer::Pos, d: &Dim) -> Result<(), ParseError> {
    if d.terms().count() > MAX_TERMS || d.terms().any(|(m, _)| m.len() > 8) {
        let message = format!("the dim has more than {MAX_TERMS} terms, or a term of more than 8 symbols; simplify it");
        return Err(lexer.error_at(pos, "IR002", message));
    }
    Ok(())
}

fn product(lexer: &mut Lexer<'_>, syms: &Syms, negative: bool) -> Result<Dim, ParseError> {
    let pos = lexer.pos();
    let mut p = factor(lexer, syms, negative)?;
    while lexer.eat("*") {
        p = p * factor(lexer, syms, false)?;
        check_size(lexer, pos, &p)?;
    }
    Ok(p)
}

fn factor(lexer: &mut Lexer<'_>, syms: &Syms, negative: bool) -> Result<Dim, ParseError> {
    let pos = lexer.pos();
    let sign = |d: Dim| if negative { Dim::default() - d } else { d };
    match lexer.peek() {
        Token::Int(v) => {
            let v = signed(*v, negative)
                .ok_or_else(|| lexer.error_at(pos, "IR001", "expected a dim that fits 64 bits".to_string()))?;
            lexer.next();
            Ok(v.into())
        }
        Token::Ident(_) | Token::Punct("$") => Ok(sign(parse_sym(lexer, syms)?.into())),
        Token::Punct("(") => {
            lexer.next();
            let d = parse_dim(lexer, syms)?;
            lexer.expect(")")?;
            Ok(sign(d))
        }
        _ => Err(lexer.expected("a dim: an integer, a symbol or `(`")),
    }
}

/// Reads `[dim, dim]`.
pub fn parse_shape(lexer: &mut Lexer<'_>, syms: &Syms) -> Result<Vec<Dim>, ParseError> {
    lexer.list("[", "]", |l| parse_dim(l, syms))
}

/// `[dim, dim]`.
pub fn print_shape(shape: &[Dim], syms: &Syms) -> String {
    let dims: Vec<String> = shape.iter().map(|d| print_dim(d, syms)).collect();
    format!("[{}]", dims.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syms() -> Syms {
        let mut s = Syms::default();
        for name in ["n", "m", "n", "true", "a.b"] {
            let hi = 10 + s.0.len() as i64;
            s.declare(name, 1, hi, 1);
        }
        s
    }

    #[test]
    fn dims_read_back() {
        let s = syms();
        let [n, m, n2, t, ab] = [0, 1, 2, 3, 4].map(|i| Dim::from(Sym(i)));
        for d in [
            Dim::from(0),
            Dim::from(i64::MIN),
            Dim::from(i64::MAX),
            n.clone() * n.clone() * m.clone() * Dim::from(-3) + n.clone() - Dim::from(7),
            Dim::from(i64::MIN) * n.clone() + n2 * t - ab,
            Dim::default() - m,
        ] {
            let text = print_dim(&d, &s);
            let mut l = Lexer::new(&text);
            assert_eq!(parse_dim(&mut l, &s).as_ref(), Ok(&d), "{text}");
            assert_eq!(l.peek(), &Token::End);
        }
        assert_eq!(print_dim(&(n.clone() * 2.into() + 1.into()), &s), "2*n + 1");
        let d = parse_dim(&mut Lexer::new("2*(n + 1)*m - (m)"), &s).unwrap();
        assert_eq!(print_dim(&d, &s), "2*n*m + m");
    }

    #[test]
    fn bad_dims_are_refused() {
        let s = syms();
        let read = |t: &str| parse_dim(&mut Lexer::new(t), &s).unwrap_err().to_string();
        assert_eq!(read("2 + q"), "1:5: IR010: symbol `q` is not declared; known are `n`, `m`, `n`, `true`, `a.b`");
        assert_eq!(read("n *"), "1:4: IR001: expected a dim: an integer, a symbol or `(`, found the end of the text");
        assert!(read(&"(".repeat(100_000)).contains("IR002"));
        assert!(read(&"(n + m + 1)*".repeat(100_000)).contains("IR002"));
        assert!(read("$9").contains("IR010"));
    }
}

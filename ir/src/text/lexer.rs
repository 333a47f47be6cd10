//! Tokens of the text IR, and a cursor over them with one token of lookahead. Shared by the parsers of every level.
//!
//! * identifiers: `[A-Za-z_][A-Za-z0-9_.]*`, where a dot belongs to the identifier only when a letter, digit or `_` follows;
//! * names: `%x` and `@x` with the characters of identifiers (a digit may come first), or quoted: `%"any text"`;
//! * integers: decimal or `0x` hexadecimal, up to 64 bits; the sign is a token of its own;
//! * floats: decimal with a point or an exponent, kept as text so that the reader chooses the precision;
//! * strings with the escapes `\" \\ \n \t \r \u{hex}`; comments run from `//` to the end of the line.

use std::fmt;

/// Deepest nesting of blocks, parentheses and operands that a parser follows.
pub const MAX_DEPTH: u32 = 200;

/// A place in a text: line and column, both from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pos {
    /// Line.
    pub line: u32,
    /// Column.
    pub col: u32,
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.col)
    }
}

/// A text that can not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pos}: {code}: {message}")]
pub struct ParseError {
    /// Where.
    pub pos: Pos,
    /// `IR001` syntax, `IR002` too deep or too large, `IR010` unknown or repeated name, `IR022` bounds of a size.
    pub code: &'static str,
    /// What was expected and what was found.
    pub message: String,
}

impl ParseError {
    /// The message over its line of the text, with the token underlined.
    ///
    /// ```text
    /// no operator `liner`; did you mean `linear`?
    ///   --> f.tir:3:8
    ///  3 |   %1 = liner %0, %0 : f32[4, 4]
    ///    |        ^^^^^
    /// ```
    pub fn render(&self, name: &str, text: &str) -> String {
        render_at(self.pos, &self.message, name, text)
    }
}

/// A message over a line of a text, with the token at a place underlined; see [`ParseError::render`].
pub fn render_at(pos: Pos, message: &str, name: &str, text: &str) -> String {
    let line = text.lines().nth((pos.line as usize).saturating_sub(1)).unwrap_or("");
    let before: String = line.chars().take((pos.col as usize).saturating_sub(1)).collect();
    let mut rest = Lexer::new(&line[before.len()..]);
    rest.next();
    let wide = rest.last_end.col.saturating_sub(1).max(1) as usize;
    underlined(message, &format!("{name}:{pos}"), pos.line, line, &before, wide)
}

/// A message over a line of text, `wide` characters of which are underlined after `before`.
fn underlined(message: &str, place: &str, number: u32, line: &str, before: &str, wide: usize) -> String {
    /// Longest part of a line that is shown.
    const SHOWN: usize = 120;
    let skip = before.chars().count().saturating_sub(SHOWN / 2);
    let skip = if line.chars().count() > SHOWN { skip } else { 0 };
    let clean = |s: &str| s.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    let shown: String = clean(line).chars().skip(skip).take(SHOWN).collect();
    let number = number.to_string();
    let gutter = " ".repeat(number.len());
    let at = " ".repeat(before.chars().count() - skip);
    let marks = "^".repeat(wide.min(SHOWN));
    format!("{message}\n{gutter} --> {place}\n {number} | {}\n {gutter} | {at}{marks}", shown.trim_end())
}

/// A token.
#[derive(Clone, Debug, PartialEq)]
pub enum Token<'a> {
    /// Identifier or keyword.
    Ident(&'a str),
    /// `%name`.
    Percent(String),
    /// `@name`.
    At(String),
    /// Unsigned integer.
    Int(u64),
    /// Float, as written.
    Float(&'a str),
    /// String, unescaped.
    Str(String),
    /// Punctuation.
    Punct(&'static str),
    /// End of the text.
    End,
    /// Not a token; the message says why.
    Bad(String),
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Ident(s) => write!(f, "`{s}`"),
            Token::Percent(s) => write!(f, "`%{s}`"),
            Token::At(s) => write!(f, "`@{s}`"),
            Token::Int(v) => write!(f, "`{v}`"),
            Token::Float(s) => write!(f, "`{s}`"),
            Token::Str(s) => write!(f, "string {s:?}"),
            Token::Punct(s) => write!(f, "`{s}`"),
            Token::End => f.write_str("the end of the text"),
            Token::Bad(m) => f.write_str(m),
        }
    }
}

/// Longest first.
const PUNCT: [&str; 38] = [
    "..=", "..", "->", "=>", "==", "!=", "<=", ">=", "<<", ">>", "&&", "||", "::", "(", ")", "[", "]", "{", "}", "<",
    ">", ",", ";", ":", "=", "+", "-", "*", "/", "%", "&", "|", "^", "!", "?", ".", "#", "$",
];

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn is_dotted(s: &str) -> bool {
    !s.is_empty() && s.split('.').all(|p| !p.is_empty() && p.chars().all(is_word))
}

/// Is `s` one identifier token?
pub fn is_ident(s: &str) -> bool {
    is_dotted(s) && !s.starts_with(|c: char| c.is_ascii_digit())
}

/// A string in quotes, as the lexer reads it.
pub fn quote(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\u{{{:x}}}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A name behind its sigil (`%` or `@`), quoted where needed.
pub fn sigil(sigil: char, name: &str) -> String {
    if is_dotted(name) { format!("{sigil}{name}") } else { format!("{sigil}{}", quote(name)) }
}

/// A cursor over the tokens of a text. A clone is an independent cursor, for further lookahead.
#[derive(Clone, Debug)]
pub struct Lexer<'a> {
    rest: &'a str,
    here: Pos,
    token: Token<'a>,
    pos: Pos,
    /// Where the token before the current one ends.
    last_end: Pos,
    depth: u32,
}

impl<'a> Lexer<'a> {
    /// A cursor at the first token.
    pub fn new(text: &'a str) -> Lexer<'a> {
        let start = Pos { line: 1, col: 1 };
        let mut lexer = Lexer { rest: text, here: start, token: Token::End, pos: start, last_end: start, depth: 0 };
        lexer.next();
        lexer
    }

    /// The current token.
    pub fn peek(&self) -> &Token<'a> {
        &self.token
    }

    /// Place of the current token.
    pub fn pos(&self) -> Pos {
        self.pos
    }

    /// Takes the current token.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Token<'a> {
        self.last_end = self.here;
        self.skip_blank();
        self.pos = self.here;
        let token = self.scan();
        std::mem::replace(&mut self.token, token)
    }

    /// An error at the current token: `expected WHAT, found TOKEN`.
    pub fn expected(&self, what: &str) -> ParseError {
        let message = match &self.token {
            Token::Bad(m) => m.clone(),
            t => format!("expected {what}, found {t}"),
        };
        ParseError { pos: self.pos, code: "IR001", message }
    }

    /// As [`Lexer::expected`], and what to know about it.
    pub fn expected_because(&self, what: &str, why: &str) -> ParseError {
        let mut e = self.expected(what);
        e.message.push_str(why);
        e
    }

    /// An error with a code and message of the caller's.
    pub fn error_at(&self, pos: Pos, code: &'static str, message: impl Into<String>) -> ParseError {
        ParseError { pos, code, message: message.into() }
    }

    /// Is the current token this punctuation?
    pub fn at(&self, punct: &str) -> bool {
        matches!(&self.token, Token::Punct(p) if *p == punct)
    }

    /// Is the current token this identifier?
    pub fn at_word(&self, word: &str) -> bool {
        matches!(&self.token, Token::Ident(w) if *w == word)
    }

    /// Takes this punctuation if it is there.
    pub fn eat(&mut self, punct: &str) -> bool {
        let yes = self.at(punct);
        if yes {
            self.next();
        }
        yes
    }

    /// Takes this identifier if it is there.
    pub fn eat_word(&mut self, word: &str) -> bool {
        let yes = self.at_word(word);
        if yes {
            self.next();
        }
        yes
    }

    /// Takes this punctuation, or fails.
    pub fn expect(&mut self, punct: &str) -> Result<(), ParseError> {
        if self.eat(punct) { Ok(()) } else { Err(self.expected(&format!("`{punct}`"))) }
    }

    /// Takes this identifier, or fails.
    pub fn expect_word(&mut self, word: &str) -> Result<(), ParseError> {
        if self.eat_word(word) { Ok(()) } else { Err(self.expected(&format!("`{word}`"))) }
    }

    /// Takes any identifier; `what` names it in the error.
    pub fn ident(&mut self, what: &str) -> Result<&'a str, ParseError> {
        match self.token {
            Token::Ident(s) => {
                self.next();
                Ok(s)
            }
            _ => Err(self.expected(what)),
        }
    }

    /// Takes a `%name`.
    pub fn percent(&mut self, what: &str) -> Result<String, ParseError> {
        match self.token {
            Token::Percent(_) => match self.next() {
                Token::Percent(s) => Ok(s),
                _ => Err(self.expected(what)),
            },
            _ => Err(self.expected(what)),
        }
    }

    /// Takes an `@name`.
    pub fn at_name(&mut self, what: &str) -> Result<String, ParseError> {
        match self.token {
            Token::At(_) => match self.next() {
                Token::At(s) => Ok(s),
                _ => Err(self.expected(what)),
            },
            _ => Err(self.expected(what)),
        }
    }

    /// Takes a string.
    pub fn string(&mut self, what: &str) -> Result<String, ParseError> {
        match self.token {
            Token::Str(_) => match self.next() {
                Token::Str(s) => Ok(s),
                _ => Err(self.expected(what)),
            },
            _ => Err(self.expected(what)),
        }
    }

    /// Takes an unsigned integer.
    pub fn uint(&mut self, what: &str) -> Result<u64, ParseError> {
        match self.token {
            Token::Int(v) => {
                self.next();
                Ok(v)
            }
            _ => Err(self.expected(what)),
        }
    }

    /// Takes an unsigned integer that fits `T`.
    pub fn uint_as<T: TryFrom<u64>>(&mut self, what: &str) -> Result<T, ParseError> {
        let pos = self.pos;
        let v = self.uint(what)?;
        T::try_from(v)
            .map_err(|_| self.error_at(pos, "IR001", format!("expected {what}, found `{v}`, which is too large")))
    }

    /// Takes an integer with an optional minus sign.
    pub fn int(&mut self, what: &str) -> Result<i64, ParseError> {
        let pos = self.pos;
        let negative = self.eat("-");
        let v = self.uint(what)?;
        signed(v, negative).ok_or_else(|| {
            let sign = if negative { "-" } else { "" };
            self.error_at(pos, "IR001", format!("expected {what}, found `{sign}{v}`, which does not fit 64 bits"))
        })
    }

    /// Reads `open item, item close`; `open` is the current token. A trailing comma is allowed.
    pub fn list<T>(
        &mut self,
        open: &str,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Result<T, ParseError>,
    ) -> Result<Vec<T>, ParseError> {
        self.expect(open)?;
        let mut items = vec![];
        while !self.at(close) {
            items.push(item(self)?);
            if !self.eat(",") && !self.at(close) {
                return Err(self.expected(&format!("`,` or `{close}`")));
            }
        }
        self.next();
        Ok(items)
    }

    /// Goes one level deeper; fails with `IR002` below [`MAX_DEPTH`] levels. Paired with [`Lexer::leave`].
    pub fn enter(&mut self) -> Result<(), ParseError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error_at(
                self.pos,
                "IR002",
                format!("nested more than {MAX_DEPTH} levels deep; bind parts with `let`, or split the loop nest"),
            ));
        }
        Ok(())
    }

    /// Comes back from [`Lexer::enter`].
    pub fn leave(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    fn skip_blank(&mut self) {
        loop {
            let blank = self.rest.len() - self.rest.trim_start().len();
            self.take(blank);
            if !self.rest.starts_with("//") {
                return;
            }
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            self.take(end);
        }
    }

    /// Takes `n` bytes, which end at a character boundary.
    fn take(&mut self, n: usize) -> &'a str {
        let (head, rest) = self.rest.split_at(n);
        for c in head.chars() {
            if c == '\n' {
                self.here.line = self.here.line.saturating_add(1);
                self.here.col = 1;
            } else {
                self.here.col = self.here.col.saturating_add(1);
            }
        }
        self.rest = rest;
        head
    }

    fn scan(&mut self) -> Token<'a> {
        let Some(c) = self.rest.chars().next() else { return Token::End };
        let second = self.rest[c.len_utf8()..].chars().next();
        match c {
            '"' => self.scan_string().map_or_else(Token::Bad, Token::Str),
            '%' | '@' if second.is_some_and(|c| is_word(c) || c == '"') => {
                self.take(1);
                let name = if second == Some('"') {
                    self.scan_string()
                } else {
                    let n = word_len(self.rest);
                    Ok(self.take(n).to_string())
                };
                match name {
                    Ok(s) if c == '%' => Token::Percent(s),
                    Ok(s) => Token::At(s),
                    Err(m) => Token::Bad(m),
                }
            }
            c if c.is_ascii_digit() => self.scan_number(),
            c if is_word(c) => {
                let n = word_len(self.rest);
                Token::Ident(self.take(n))
            }
            _ => match PUNCT.iter().find(|p| self.rest.starts_with(**p)) {
                Some(p) => {
                    self.take(p.len());
                    Token::Punct(p)
                }
                None => {
                    self.take(c.len_utf8());
                    Token::Bad(format!("unexpected character {c:?}; names with it stand in quotes"))
                }
            },
        }
    }

    fn scan_number(&mut self) -> Token<'a> {
        let digits =
            |s: &str, from: usize, f: fn(&u8) -> bool| s.as_bytes()[from..].iter().take_while(|b| f(b)).count();
        if let Some(hex) = self.rest.strip_prefix("0x") {
            let n = digits(hex, 0, u8::is_ascii_hexdigit);
            let text = self.take(2 + n);
            return match u64::from_str_radix(&text[2..], 16) {
                Ok(v) => Token::Int(v),
                Err(_) => Token::Bad(format!("expected 1 to 16 hexadecimal digits, found `{text}`")),
            };
        }
        let s = self.rest;
        let mut n = digits(s, 0, u8::is_ascii_digit);
        let mut float = false;
        let dot = digits(s, (n + 1).min(s.len()), u8::is_ascii_digit);
        if s[n..].starts_with('.') && dot > 0 {
            n += 1 + dot;
            float = true;
        }
        if s[n..].starts_with(['e', 'E']) {
            let sign = usize::from(s[n + 1..].starts_with(['+', '-']));
            let exponent = digits(s, n + 1 + sign, u8::is_ascii_digit);
            if exponent > 0 {
                n += 1 + sign + exponent;
                float = true;
            }
        }
        let text = self.take(n);
        if float {
            return Token::Float(text);
        }
        match text.parse() {
            Ok(v) => Token::Int(v),
            Err(_) => Token::Bad(format!("expected an integer of at most 64 bits, found `{text}`")),
        }
    }

    fn scan_string(&mut self) -> Result<String, String> {
        self.take(1);
        let mut out = String::new();
        loop {
            let Some(c) = self.rest.chars().next() else {
                return Err("the string is not closed; end it with `\"`".into());
            };
            self.take(c.len_utf8());
            match c {
                '"' => return Ok(out),
                '\n' => {
                    return Err(
                        "the string is not closed on its line; end it with `\"`, and write `\\n` for a line break"
                            .into(),
                    );
                }
                '\\' => {
                    let Some(e) = self.rest.chars().next() else {
                        return Err("the string is not closed; end it with `\"`".into());
                    };
                    self.take(e.len_utf8());
                    out.push(match e {
                        '"' | '\\' => e,
                        'n' => '\n',
                        't' => '\t',
                        'r' => '\r',
                        'u' => {
                            let body = self.rest.strip_prefix('{').and_then(|r| r.split_once('}')).map(|(h, _)| h);
                            let c = body
                                .filter(|h| h.len() <= 6)
                                .and_then(|h| u32::from_str_radix(h, 16).ok())
                                .and_then(char::from_u32);
                            let (Some(body), Some(c)) = (body, c) else {
                                return Err("expected a character number as in `\\u{7f}`".into());
                            };
                            self.take(body.len() + 2);
                            c
                        }
                        e => return Err(format!("unknown escape `\\{e}` in a string; there are `\\\"`, `\\\\`, `\\n`, `\\t`, `\\r` and `\\u{{7f}}`")),
                    });
                }
                c => out.push(c),
            }
        }
    }
}

/// `v` or `-v`, if it fits.
pub fn signed(v: u64, negative: bool) -> Option<i64> {
    if negative { 0i64.checked_sub_unsigned(v) } else { i64::try_from(v).ok() }
}

/// Bytes of the dotted word at the start of `s`.
fn word_len(s: &str) -> usize {
    let b = s.as_bytes();
    let word = |i: usize| b.get(i).is_some_and(|&c| is_word(c as char) && c.is_ascii());
    let mut n = 0;
    while word(n) || (b.get(n) == Some(&b'.') && word(n + 1)) {
        n += 1;
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<Token<'_>> {
        let mut l = Lexer::new(text);
        let mut out = vec![];
        loop {
            match l.next() {
                Token::End => return out,
                t => out.push(t),
            }
        }
    }

    #[test]
    fn tokens_are_told_apart() {
        use Token::*;
        assert_eq!(
            all("a.b..0 0..n %x.1 @\"a b\" 1.5e-3 0x1f -> // gone\n\"q\\u{41}\\n\""),
            [
                Ident("a.b"),
                Punct(".."),
                Int(0),
                Int(0),
                Punct(".."),
                Ident("n"),
                Percent("x.1".into()),
                At("a b".into()),
                Float("1.5e-3"),
                Int(31),
                Punct("->"),
                Str("qA\n".into())
            ]
        );
        assert_eq!(all("a % b"), [Ident("a"), Punct("%"), Ident("b")]);
        assert_eq!(all("1e5x 7."), [Float("1e5"), Ident("x"), Int(7), Punct(".")]);
    }

    #[test]
    fn errors_name_the_place() {
        let mut l = Lexer::new("a\n  é");
        l.next();
        let e = l.expect("{").unwrap_err();
        assert_eq!(e.to_string(), "2:3: IR001: unexpected character 'é'; names with it stand in quotes");
        let l = Lexer::new("x");
        assert_eq!(l.expected("`(`").to_string(), "1:1: IR001: expected `(`, found `x`");
        for bad in ["\"abc", "\"\\x\"", "\"\\u{110000}\"", "0x", "99999999999999999999", "\"\\", "%\"a"] {
            assert!(matches!(Lexer::new(bad).next(), Token::Bad(_)), "{bad}");
        }
    }

    #[test]
    fn integers_keep_their_range() {
        assert_eq!(Lexer::new("-9223372036854775808").int("an integer"), Ok(i64::MIN));
        assert!(Lexer::new("9223372036854775808").int("an integer").is_err());
        assert_eq!(Lexer::new("-0").int("an integer"), Ok(0));
    }

    #[test]
    fn quoted_names_read_back() {
        for s in ["", "a", "1", "a b", "a..b", "\"\\\n\u{1}é", ".a", "kv.3.k"] {
            assert_eq!(Lexer::new(&sigil('%', s)).next(), Token::Percent(s.into()));
            assert_eq!(Lexer::new(&quote(s)).next(), Token::Str(s.into()));
        }
    }
}

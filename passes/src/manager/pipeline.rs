//! Pipelines as text.
//!
//! ```text
//! pipeline = [ step { "," step } ]
//! step     = PASS [ "{" [ option { "," option } ] "}" ]
//! option   = NAME "=" VALUE
//! ```
//!
//! Which passes there are, and which options each has, is [`PASSES`].

use std::fmt;

use marquetry_ir::text::suggest;

use super::{PASSES, Pass};
use crate::bind::Narrow;

/// What an option can hold.
#[derive(Clone, Copy, Debug)]
pub enum OptionKind {
    /// A positive integer.
    Count,
    /// One of these numbers.
    OneOf(&'static [i64]),
    /// `true` or `false`.
    Flag,
    /// Names separated by `;`: those that take part, or with `-` before each those that do not. The function lists them.
    Names(fn() -> Vec<&'static str>),
    /// One of these names.
    Choice(&'static [&'static str]),
    /// The name of a file.
    File,
    /// Sizes separated by `;`: `n:1` fixes a symbol, `n:1..=8` narrows it.
    Sizes,
}

/// An option of a pass.
#[derive(Clone, Copy, Debug)]
pub struct OptionDecl {
    /// Name.
    pub name: &'static str,
    /// What it can hold.
    pub kind: OptionKind,
    /// Its value unless given, as text.
    pub default: &'static str,
    /// One line of documentation.
    pub doc: &'static str,
}

/// Which of a list of names take part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    only: Vec<String>,
    not: Vec<String>,
}

impl Names {
    /// Does this one take part?
    pub fn allows(&self, name: &str) -> bool {
        (self.only.is_empty() || self.only.iter().any(|n| n == name)) && !self.not.iter().any(|n| n == name)
    }
}

/// The value of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Count(usize),
    Flag(bool),
    Names(Names),
    Choice(String),
    File(String),
    Sizes(Vec<(String, Narrow)>),
}

/// A pass with its options.
#[derive(Clone)]
pub struct Step {
    /// The pass.
    pub pass: &'static Pass,
    /// One per declared option, in order.
    values: Vec<Value>,
}

impl Step {
    /// A pass with the defaults of its options.
    pub fn new(pass: &'static Pass) -> Step {
        // Defaults are texts of the table, which a test reads.
        let values = pass.options.iter().map(|o| value(o.kind, o.default).unwrap_or(Value::Flag(false)));
        Step { pass, values: values.collect() }
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.pass.options.iter().position(|o| o.name == name).and_then(|i| self.values.get(i))
    }

    /// A count.
    pub fn count(&self, name: &str) -> usize {
        if let Some(Value::Count(n)) = self.value(name) { *n } else { 0 }
    }

    /// A truth value.
    pub fn flag(&self, name: &str) -> bool {
        self.value(name) == Some(&Value::Flag(true))
    }

    /// A choice of names.
    pub fn names(&self, name: &str) -> Names {
        if let Some(Value::Names(n)) = self.value(name) { n.clone() } else { Names::default() }
    }

    /// One of several names; empty if none was chosen.
    pub fn choice(&self, name: &str) -> &str {
        if let Some(Value::Choice(c)) = self.value(name) { c } else { "" }
    }

    /// The name of a file, if one was given.
    pub fn file(&self, name: &str) -> Option<&str> {
        if let Some(Value::File(f)) = self.value(name) {
            Some(f).filter(|f| !f.is_empty()).map(String::as_str)
        } else {
            None
        }
    }

    /// Sizes of symbols.
    pub fn sizes(&self, name: &str) -> &[(String, Narrow)] {
        if let Some(Value::Sizes(s)) = self.value(name) { s } else { &[] }
    }
}

/// A pipeline that can not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct PipelineError {
    /// What is wrong.
    pub message: String,
    /// The whole text.
    pub text: String,
    /// Where, in characters from 1.
    pub column: usize,
    /// How many characters.
    pub width: usize,
}

impl fmt::Display for PipelineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, marks) = (" ".repeat(self.column - 1), "^".repeat(self.width.max(1)));
        let shown: String = self.text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        write!(f, "{}\n  --> pipeline:{}\n  {shown}\n  {at}{marks}", self.message, self.column)
    }
}

/// Reads a pipeline.
///
/// # Errors
/// Syntax, an unknown pass, an unknown, repeated or ill-typed option; with its place.
pub fn parse(text: &str) -> Result<Vec<Step>, PipelineError> {
    let mut r = Reader { text, at: 0 };
    let mut steps = vec![];
    r.blank();
    if r.rest().is_empty() {
        return Ok(steps);
    }
    loop {
        steps.push(r.step()?);
        if r.rest().is_empty() {
            return Ok(steps);
        }
        r.expect(',')?;
    }
}

struct Reader<'a> {
    text: &'a str,
    /// In bytes.
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn blank(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn error(&self, at: usize, width: usize, message: String) -> PipelineError {
        let column = self.text[..at].chars().count() + 1;
        PipelineError { message, text: self.text.into(), column, width }
    }

    /// The text up to one of these characters, trimmed, and where it begins.
    fn until(&mut self, stops: &[char]) -> (&'a str, usize) {
        self.blank();
        let start = self.at;
        self.at += self.rest().find(stops).unwrap_or(self.rest().len());
        (self.text[start..self.at].trim_end(), start)
    }

    fn expect(&mut self, c: char) -> Result<(), PipelineError> {
        self.blank();
        if self.rest().starts_with(c) {
            self.at += c.len_utf8();
            return Ok(());
        }
        let found = self.rest().chars().next().map_or("the end".into(), |c| format!("`{c}`"));
        Err(self.error(self.at, 1, format!("expected `{c}`, found {found}")))
    }

    fn step(&mut self) -> Result<Step, PipelineError> {
        let (name, at) = self.until(&[',', '{', '}', '=']);
        if name.is_empty() {
            return Err(self.error(at, 1, "expected the name of a pass".into()));
        }
        let Some(pass) = PASSES.iter().find(|p| p.name == name) else {
            let near = suggest(name, PASSES.iter().map(|p| p.name));
            return Err(self.error(at, name.chars().count(), format!("no pass `{name}`{near}")));
        };
        let mut step = Step::new(pass);
        let mut given = vec![];
        if self.rest().starts_with('{') {
            self.at += 1;
            self.blank();
            while !self.rest().starts_with('}') {
                self.option(&mut step, &mut given)?;
                self.blank();
                if !self.rest().starts_with('}') {
                    self.expect(',')?;
                    self.blank();
                }
            }
            self.at += 1;
            self.blank();
        }
        Ok(step)
    }

    fn option(&mut self, step: &mut Step, given: &mut Vec<usize>) -> Result<(), PipelineError> {
        let pass = step.pass;
        let (name, at) = self.until(&[',', '{', '}', '=']);
        let wide = name.chars().count();
        let Some(i) = pass.options.iter().position(|o| o.name == name) else {
            let near = suggest(name, pass.options.iter().map(|o| o.name));
            return Err(self.error(at, wide, format!("pass `{}` has no option `{name}`{near}", pass.name)));
        };
        if given.contains(&i) {
            return Err(self.error(at, wide, format!("option `{name}` is given twice; keep one")));
        }
        given.push(i);
        self.expect('=')?;
        let (text, at) = self.until(&[',', '{', '}']);
        let kind = pass.options[i].kind;
        match value(kind, text) {
            Ok(v) => step.values[i] = v,
            Err(why) => return Err(self.error(at, text.chars().count(), format!("option `{name}`: {why}"))),
        }
        Ok(())
    }
}

fn value(kind: OptionKind, text: &str) -> Result<Value, String> {
    let items = || text.split(';').map(str::trim).filter(|t| !t.is_empty());
    match kind {
        OptionKind::Count => match text.parse() {
            Ok(n) if n > 0 => Ok(Value::Count(n)),
            _ => Err(format!("`{text}` is not a positive integer, such as `8`")),
        },
        OptionKind::OneOf(choices) => match text.parse::<i64>() {
            Ok(n) if choices.contains(&n) => usize::try_from(n).map(Value::Count).map_err(|e| e.to_string()),
            _ => {
                let all: Vec<String> = choices.iter().map(|c| format!("`{c}`")).collect();
                Err(format!("`{text}` is none of {}", all.join(", ")))
            }
        },
        OptionKind::Flag => match text {
            "true" => Ok(Value::Flag(true)),
            "false" => Ok(Value::Flag(false)),
            _ => Err(format!("`{text}` is neither `true` nor `false`")),
        },
        OptionKind::Names(list) => {
            let mut names = Names::default();
            for item in items() {
                let (not, name) = item.strip_prefix('-').map_or((false, item), |n| (true, n));
                let known = list();
                if !known.contains(&name) {
                    return Err(format!("no `{name}`{}", suggest(name, known)));
                }
                if not { &mut names.not } else { &mut names.only }.push(name.into());
            }
            Ok(Value::Names(names))
        }
        OptionKind::Choice(known) => match known.contains(&text) || text.is_empty() {
            true => Ok(Value::Choice(text.into())),
            false => Err(format!("no `{text}`{}", suggest(text, known.to_vec()))),
        },
        OptionKind::File => Ok(Value::File(text.into())),
        OptionKind::Sizes => items().map(size).collect::<Result<_, _>>().map(Value::Sizes),
    }
}

fn size(item: &str) -> Result<(String, Narrow), String> {
    let wrong = || format!("`{item}` is not a size, such as `n:1` or `n:1..=8`");
    let (name, range) = item.split_once(':').ok_or_else(wrong)?;
    let number = |t: &str| t.trim().parse::<i64>().ok().filter(|v| *v >= 0).ok_or_else(wrong);
    let narrow = match range.split_once("..=") {
        Some((lo, hi)) => Narrow::Range(number(lo)?, number(hi)?),
        None => Narrow::Fixed(number(range)?),
    };
    match narrow {
        Narrow::Range(lo, hi) if hi < lo => Err(wrong()),
        _ if name.trim().is_empty() => Err(wrong()),
        _ => Ok((name.trim().to_string(), narrow)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_typed() {
        let steps =
            parse(" canon , eqsat{iterations=3, rules=-swiglu;-softcap} ,specialize{sizes=n:1;m:1..=4}").unwrap();
        assert_eq!(steps.iter().map(|s| s.pass.name).collect::<Vec<_>>(), ["canon", "eqsat", "specialize"]);
        let rules = steps[1].names("rules");
        assert!(steps[1].count("iterations") == 3 && rules.allows("silu") && !rules.allows("softcap"));
        let sizes = [("n".to_string(), Narrow::Fixed(1)), ("m".to_string(), Narrow::Range(1, 4))];
        assert_eq!(steps[2].sizes("sizes"), sizes);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn defaults_read() {
        for pass in PASSES {
            for o in pass.options {
                assert!(value(o.kind, o.default).is_ok(), "{} {}", pass.name, o.name);
                assert!(!o.doc.is_empty());
            }
        }
    }

    #[test]
    fn mistakes_are_placed() {
        for (text, column, message) in [
            ("canon,outlin", 7, "no pass `outlin`; did you mean `outline`?"),
            ("eqsat{rounds=3}", 7, "pass `eqsat` has no option `rounds`; known are `iterations`, `nodes`, `rules`"),
            ("eqsat{iteration=3}", 7, "pass `eqsat` has no option `iteration`; did you mean `iterations`?"),
            ("canon{a=1}", 7, "pass `canon` has no option `a`; there are none"),
            ("eqsat{iterations=0}", 18, "option `iterations`: `0` is not a positive integer, such as `8`"),
            ("eqsat{iterations=1,iterations=2}", 20, "option `iterations` is given twice; keep one"),
            ("eqsat{rules=-swiglo}", 13, "option `rules`: no `swiglo`; did you mean `swiglu`?"),
            ("schedule{unroll=1}", 17, "option `unroll`: `1` is neither `true` nor `false`"),
            ("lower{fma_tokens=7}", 18, "option `fma_tokens`: `7` is none of `8`, `16`, `24`, `32`, `64`"),
            ("specialize{sizes=n}", 18, "option `sizes`: `n` is not a size, such as `n:1` or `n:1..=8`"),
            ("specialize{sizes=n:4..=1}", 18, "option `sizes`: `n:4..=1` is not a size, such as `n:1` or `n:1..=8`"),
            ("canon{}outline", 8, "expected `,`, found `o`"),
            ("canon,,outline", 7, "expected the name of a pass"),
            ("canon{", 7, "pass `canon` has no option ``; there are none"),
            ("eqsat{rules", 12, "expected `=`, found the end"),
            ("eqsat{nodes=1", 14, "expected `,`, found the end"),
            ("canon}", 6, "expected `,`, found `}`"),
        ] {
            let Err(e) = parse(text) else { panic!("{text} is read") };
            assert_eq!((e.column, e.message.as_str()), (column, message), "{text}");
        }
    }
}

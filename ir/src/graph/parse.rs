//! Reads the text form of modules. Syntax only: `verify` judges what was read.

use super::{Attr, AttrKind, Decl, Function, Inst, Kind, KvTy, Loc, Module, Op, TensorTy, Ty, Value};
use crate::text::lexer::{Lexer, ParseError, Token};
use crate::text::parse_dim;
use crate::{DType, Dim, Elem, Syms};

type Res<T> = Result<T, ParseError>;

/// Most elements of a list attribute.
const MAX_LIST: usize = 1 << 20;

fn dims(l: &mut Lexer<'_>, s: &Syms) -> Res<Vec<Dim>> {
    l.list("[", "]", |l| parse_dim(l, s))
}

fn ty(l: &mut Lexer<'_>, s: &Syms) -> Res<Ty> {
    let pos = l.pos();
    let word = l.ident("a type")?;
    if let Some(d) = word.strip_prefix("kv.") {
        let dtype: DType = d.parse().map_err(|()| l.error_at(pos, "IR001", format!("`{d}` is not a scalar type")))?;
        l.expect("[")?;
        let slots = parse_dim(l, s)?;
        l.expect(",")?;
        let heads = l.uint_as("heads")?;
        l.expect(",")?;
        let dim = l.uint_as("head size")?;
        l.expect("]")?;
        return Ok(Ty::Kv(KvTy { slots, heads, dim, dtype }));
    }
    let elem: Elem = word.parse().map_err(|()| l.error_at(pos, "IR001", format!("`{word}` is not an element type")))?;
    Ok(Ty::Tensor(TensorTy { elem, shape: dims(l, s)? }))
}

fn float(l: &mut Lexer<'_>) -> Res<u32> {
    let pos = l.pos();
    let negative = l.eat("-");
    let bits = match l.next() {
        Token::Float(t) => t.parse::<f32>().ok().map(f32::to_bits),
        Token::Ident("inf") => Some(f32::INFINITY.to_bits()),
        Token::Ident("nan") => {
            l.expect("(")?;
            let bits = l.uint_as("the bits of a float")?;
            l.expect(")")?;
            Some(bits)
        }
        _ => None,
    };
    match bits {
        Some(b) if negative => Ok(b ^ 0x8000_0000),
        Some(b) => Ok(b),
        None => Err(l.error_at(pos, "IR001", "expected a float, e.g. `1.0` or `inf`")),
    }
}

fn attr(l: &mut Lexer<'_>, s: &Syms, kind: AttrKind) -> Res<Attr> {
    let pos = l.pos();
    let bounded = |l: &Lexer<'_>, n: usize| {
        if n > MAX_LIST {
            Err(l.error_at(pos, "IR002", format!("list of more than {MAX_LIST} elements")))
        } else {
            Ok(())
        }
    };
    Ok(match kind {
        AttrKind::Int => Attr::Int(l.int("an integer")?),
        AttrKind::Float => Attr::Float(float(l)?),
        AttrKind::Bool => match l.ident("`true` or `false`")? {
            "true" => Attr::Bool(true),
            "false" => Attr::Bool(false),
            other => return Err(l.error_at(pos, "IR001", format!("expected `true` or `false`, found `{other}`"))),
        },
        AttrKind::Str => Attr::Str(l.string("a string")?),
        AttrKind::Ints => {
            let v = l.list("[", "]", |l| l.int("an integer"))?;
            bounded(l, v.len())?;
            Attr::Ints(v)
        }
        AttrKind::Floats => {
            let v = l.list("[", "]", float)?;
            bounded(l, v.len())?;
            Attr::Floats(v)
        }
        AttrKind::Shape => Attr::Shape(dims(l, s)?),
        AttrKind::DType | AttrKind::Elem => {
            let word = l.ident("an element type")?;
            let elem: Elem =
                word.parse().map_err(|()| l.error_at(pos, "IR001", format!("`{word}` is not an element type")))?;
            match (kind, elem) {
                (AttrKind::Elem, e) => Attr::Elem(e),
                (_, Elem::Scalar(d)) => Attr::DType(d),
                _ => return Err(l.error_at(pos, "IR001", format!("`{word}` is not a scalar type"))),
            }
        }
    })
}

fn number(l: &mut Lexer<'_>) -> Res<Value> {
    let pos = l.pos();
    let name = l.percent("a value")?;
    name.parse().map(Value).map_err(|_| l.error_at(pos, "IR001", format!("`%{name}` is not a value number")))
}

fn defined(l: &mut Lexer<'_>, f: &Function) -> Res<Value> {
    let pos = l.pos();
    let v = number(l)?;
    if (v.0 as usize) < f.values.len() {
        return Ok(v);
    }
    Err(l.error_at(pos, "IR010", format!("%{} is not defined here", v.0)))
}

fn fresh(l: &mut Lexer<'_>, expected: usize) -> Res<Value> {
    let pos = l.pos();
    let v = number(l)?;
    if v.0 as usize == expected {
        return Ok(v);
    }
    Err(l.error_at(pos, "IR010", format!("values are numbered in order: expected %{expected}, found %{}", v.0)))
}

fn operator(l: &mut Lexer<'_>) -> Res<Op> {
    let pos = l.pos();
    let name = l.ident("an operator")?;
    Op::find(name).ok_or_else(|| {
        let near = Op::ALL.iter().map(|o| o.name()).min_by_key(|o| distance(o, name)).unwrap_or("");
        l.error_at(pos, "IR010", format!("no operator `{name}`; did you mean `{near}`?"))
    })
}

/// Edit distance, for suggestions.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let cost = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], cost);
        }
    }
    row[b.len()]
}

fn inst(l: &mut Lexer<'_>, s: &Syms, f: &mut Function) -> Res<()> {
    let mut results = vec![];
    loop {
        results.push(fresh(l, f.values.len() + results.len())?);
        if !l.eat(",") {
            break;
        }
    }
    l.expect("=")?;
    let op = operator(l)?;
    let mut operands = vec![];
    while matches!(l.peek(), Token::Percent(_)) {
        operands.push(defined(l, f)?);
        if !l.eat(",") {
            break;
        }
    }
    let mut attrs = vec![];
    let table = op.info().attrs;
    if !table.is_empty() {
        l.expect("{")?;
        for (i, (name, kind)) in table.iter().enumerate() {
            if i > 0 {
                l.expect(",")?;
            }
            l.expect_word(name)?;
            l.expect("=")?;
            attrs.push(attr(l, s, *kind)?);
        }
        l.expect("}")?;
    }
    l.expect(":")?;
    let mut tys = vec![ty(l, s)?];
    while l.eat(",") {
        tys.push(ty(l, s)?);
    }
    if tys.len() != results.len() {
        return Err(l.expected(&format!("{} types, found {}", results.len(), tys.len())));
    }
    let loc = place(l)?;
    for t in tys {
        f.value(t, loc.clone());
    }
    f.insts.push(Inst { op, operands, attrs, results });
    Ok(())
}

/// `at "FILE":LINE`, if it follows.
fn place(l: &mut Lexer<'_>) -> Res<Option<Loc>> {
    if !l.eat_word("at") {
        return Ok(None);
    }
    let file = l.string("a file name")?;
    l.expect(":")?;
    Ok(Some(Loc { file, line: l.uint_as("a line")? }))
}

fn function(l: &mut Lexer<'_>, s: &Syms, kind: Kind) -> Res<Function> {
    let mut f = Function::new(l.at_name("a function name")?, kind);
    l.list("(", ")", |l| {
        let v = fresh(l, f.values.len())?;
        let name = l.string("an argument name")?;
        l.expect(":")?;
        let t = ty(l, s)?;
        let loc = place(l)?;
        f.value(t, loc);
        f.args.push((name, v));
        Ok(())
    })?;
    l.expect("{")?;
    while !l.eat_word("return") {
        inst(l, s, &mut f)?;
    }
    while !l.at("}") {
        let name = l.string("a result name")?;
        l.expect("=")?;
        let v = defined(l, &f)?;
        f.results.push((name, v));
        if !l.eat(",") {
            break;
        }
    }
    l.expect("}")?;
    Ok(f)
}

/// Reads a module.
///
/// # Errors
/// `IR001` syntax, `IR002` too deep or too large, `IR010` unknown or repeated name; with line and column.
pub fn parse_module(text: &str) -> Result<Module, ParseError> {
    let mut l = Lexer::new(text);
    let mut m = Module::default();
    loop {
        let pos = l.pos();
        if *l.peek() == Token::End {
            return Ok(m);
        }
        match l.ident("`sym`, `param`, `state`, `func` or `fused`")? {
            "sym" => {
                let name = l.string("a symbol name")?;
                l.expect_word("in")?;
                let lo = l.int("a lower bound")?;
                l.expect("..=")?;
                let hi = l.int("an upper bound")?;
                let multiple = if l.eat_word("multiple") { l.int("a divisor")? } else { 1 };
                if lo < 0 || hi < lo || multiple < 1 {
                    return Err(l.error_at(
                        pos,
                        "IR022",
                        format!("bounds {lo}..={hi} multiple {multiple} of `{name}`"),
                    ));
                }
                m.syms.0.push(crate::SymDecl { name, lo, hi, multiple });
            }
            word @ ("param" | "state") => {
                let name = l.string("a name")?;
                l.expect(":")?;
                let ty = ty(&mut l, &m.syms)?;
                let list = if word == "param" { &mut m.params } else { &mut m.states };
                if list.iter().any(|d| d.name == name) {
                    return Err(l.error_at(pos, "IR010", format!("{word} `{name}` is declared twice")));
                }
                list.push(Decl { name, ty });
            }
            word @ ("func" | "fused") => {
                let kind = if word == "func" { Kind::Graph } else { Kind::Fused };
                let f = function(&mut l, &m.syms, kind)?;
                if m.function(&f.name).is_some() {
                    return Err(l.error_at(pos, "IR010", format!("function @{} is defined twice", f.name)));
                }
                m.functions.push(f);
            }
            other => return Err(l.error_at(pos, "IR001", format!("unexpected `{other}`"))),
        }
    }
}

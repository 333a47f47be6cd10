//! Reads the text form of modules. Syntax only: `verify` judges what was read.

use super::{Attr, AttrKind, Decl, Function, Inst, Kind, KvTy, Loc, Module, Op, RowsTy, TensorTy, Ty, Value};
use crate::text::lexer::{Lexer, ParseError, Pos, Token};
use crate::text::{parse_dim, read_kernel, suggest};
use crate::{DType, Dim, Elem, GgufType, Syms};

type Res<T> = Result<T, ParseError>;

/// Most elements of a list attribute.
const MAX_LIST: usize = 1 << 20;

fn dims(l: &mut Lexer<'_>, s: &Syms) -> Res<Vec<Dim>> {
    l.list("[", "]", |l| parse_dim(l, s))
}

fn no_scalar(word: &str) -> String {
    format!("`{word}` is not a scalar type{}", suggest(word, DType::ALL.iter().map(|d| d.name())))
}

fn no_elem(word: &str) -> String {
    let formats: Vec<String> = GgufType::ALL.iter().map(|t| format!("gguf.{}", t.name())).collect();
    let known = DType::ALL.iter().map(|d| d.name()).chain(["act8"]).chain(formats.iter().map(String::as_str));
    let near = suggest(word, known);
    let near = if near.is_empty() { "; examples are `f32`, `gguf.q4_k` and `rows8.f16`".into() } else { near };
    format!("`{word}` is not an element type{near}")
}

fn ty(l: &mut Lexer<'_>, s: &Syms) -> Res<Ty> {
    let pos = l.pos();
    let word = l.ident("a type")?;
    if let Some(d) = word.strip_prefix("kv.") {
        let dtype: DType = d.parse().map_err(|()| l.error_at(pos, "IR001", no_scalar(d)))?;
        l.expect("[")?;
        let slots = parse_dim(l, s)?;
        l.expect(",")?;
        let heads = l.uint_as("heads")?;
        l.expect(",")?;
        let dim = l.uint_as("head size")?;
        l.expect("]")?;
        return Ok(Ty::Kv(KvTy { slots, heads, dim, dtype }));
    }
    if let Some(d) = word.strip_prefix("rows.") {
        let dtype: DType = d.parse().map_err(|()| l.error_at(pos, "IR001", no_scalar(d)))?;
        l.expect("[")?;
        let rows = parse_dim(l, s)?;
        let mut shape = vec![];
        while l.eat(",") {
            shape.push(l.uint_as("an extent")?);
        }
        l.expect("]")?;
        return Ok(Ty::Rows(RowsTy { rows, shape, dtype }));
    }
    let elem: Elem = word.parse().map_err(|()| l.error_at(pos, "IR001", no_elem(word)))?;
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
            Err(l.error_at(pos, "IR002", format!("list of more than {MAX_LIST} elements; make it a parameter")))
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
            let elem: Elem = word.parse().map_err(|()| l.error_at(pos, "IR001", no_elem(word)))?;
            match (kind, elem) {
                (AttrKind::Elem, e) => Attr::Elem(e),
                (_, Elem::Scalar(d)) => Attr::DType(d),
                _ => return Err(l.error_at(pos, "IR001", no_scalar(word))),
            }
        }
    })
}

fn number(l: &mut Lexer<'_>) -> Res<Value> {
    let pos = l.pos();
    let name = l.percent("a value")?;
    name.parse().map(Value).map_err(|_| {
        l.error_at(pos, "IR001", format!("`%{name}` is not a value number; values are `%0`, `%1` and so on"))
    })
}

fn defined(l: &mut Lexer<'_>, f: &Function) -> Res<Value> {
    let pos = l.pos();
    let v = number(l)?;
    if (v.0 as usize) < f.values.len() {
        return Ok(v);
    }
    let have = match f.values.len() {
        0 => "there are no values yet".into(),
        n => format!("the last value so far is %{}", n - 1),
    };
    Err(l.error_at(pos, "IR010", format!("%{} is not defined here; {have}", v.0)))
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
        let near = suggest(name, Op::ALL.iter().map(|o| o.name()));
        let near = if near.is_empty() { "; docs/ir.md says where all are listed".into() } else { near };
        l.error_at(pos, "IR010", format!("no operator `{name}`{near}"))
    })
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
    let all = || table.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(", ");
    if !table.is_empty() {
        let takes = format!(": `{}` takes the attributes {}, in this order", op.name(), all());
        if !l.eat("{") {
            return Err(l.expected_because("`{`", &takes));
        }
        for (i, (name, kind)) in table.iter().enumerate() {
            if i > 0 && !l.eat(",") {
                return Err(l.expected_because(&format!("`,` and `{name}`"), &takes));
            }
            if !l.eat_word(name) {
                return Err(l.expected_because(&format!("`{name}`"), &takes));
            }
            l.expect("=")?;
            attrs.push(attr(l, s, *kind)?);
        }
        if !l.eat("}") {
            return Err(l.expected_because("`}`", &takes));
        }
    } else if l.at("{") {
        return Err(l.expected_because("`:`", &format!(": `{}` takes no attributes", op.name())));
    }
    l.expect(":")?;
    let pos = l.pos();
    let mut tys = vec![ty(l, s)?];
    while l.eat(",") {
        tys.push(ty(l, s)?);
    }
    if tys.len() != results.len() {
        let message = format!("{} results but {} types; give one type for each", results.len(), tys.len());
        return Err(l.error_at(pos, "IR001", message));
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

fn function(l: &mut Lexer<'_>, s: &Syms, kind: Kind) -> Res<(Function, Places)> {
    let mut places = Places { signature: l.pos(), insts: vec![] };
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
    if kind == Kind::Kernel {
        return Ok((external(l, s, f)?, places));
    }
    while !l.eat_word("return") {
        places.insts.push(l.pos());
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
    Ok((f, places))
}

/// Where a function and its operations are in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The name of the function.
    pub signature: Pos,
    /// The first result of each operation.
    pub insts: Vec<Pos>,
}

/// The rest of a function that is a kernel: its results with their types, and the kernel.
fn external(l: &mut Lexer<'_>, s: &Syms, mut f: Function) -> Res<Function> {
    l.expect_word("return")?;
    while matches!(l.peek(), Token::Percent(_)) {
        let v = fresh(l, f.values.len())?;
        let name = l.string("a result name")?;
        l.expect(":")?;
        let t = ty(l, s)?;
        let loc = place(l)?;
        f.value(t, loc);
        f.results.push((name, v));
        if !l.eat(",") {
            break;
        }
    }
    f.kernel = Some(Box::new(read_kernel(l, s)?));
    l.expect("}")?;
    Ok(f)
}

/// Reads a module.
///
/// # Errors
/// `IR001` syntax, `IR002` too deep or too large, `IR010` unknown or repeated name, `IR022` bounds of a size; with line and
/// column.
pub fn parse_module(text: &str) -> Result<Module, ParseError> {
    parse_placed(text).map(|(m, _)| m)
}

/// Reads a module; beside it, where each of its functions is.
///
/// # Errors
/// As [`parse_module`].
pub fn parse_placed(text: &str) -> Result<(Module, Vec<Places>), ParseError> {
    let mut all = vec![];
    let mut l = Lexer::new(text);
    let mut m = Module::default();
    loop {
        let pos = l.pos();
        if *l.peek() == Token::End {
            return Ok((m, all));
        }
        match l.ident("`sym`, `param`, `state`, `func`, `fused` or `extern`")? {
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
                        format!(
                            "size `{name}` in {lo}..={hi} multiple {multiple}: bounds begin at 0 or above and are in order, \
                             the divisor is 1 or more"
                        ),
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
                    return Err(l.error_at(pos, "IR010", format!("{word} `{name}` is declared twice; remove one")));
                }
                list.push(Decl { name, ty });
            }
            word @ ("func" | "fused" | "extern") => {
                let kind = match word {
                    "func" => Kind::Graph,
                    "fused" => Kind::Fused,
                    _ => Kind::Kernel,
                };
                let (f, places) = function(&mut l, &m.syms, kind)?;
                if m.function(&f.name).is_some() {
                    return Err(l.error_at(pos, "IR010", format!("function @{} is defined twice; rename one", f.name)));
                }
                m.functions.push(f);
                all.push(places);
            }
            other => {
                let near = suggest(other, ["sym", "param", "state", "func", "fused", "extern"]);
                return Err(l.error_at(pos, "IR001", format!("`{other}` begins nothing in a module{near}")));
            }
        }
    }
}

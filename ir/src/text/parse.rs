//! Parser of kernels and programs; the grammar is described in the module text of [`super`].
//!
//! It checks syntax and names only: types, scopes and ranges are the verifier's.

use std::collections::{BTreeMap, HashMap};

use super::lexer::{Lexer, MAX_DEPTH, ParseError, Pos, Token, signed};
use super::names::{DEFAULT_VAR, find_binary, find_infix, find_scope, find_unary, function_names};
use super::{parse_shape, parse_sym, suggest};
use crate::loops::{BinOp, Buf, BufDecl, Expr, Kernel, LoopKind, Micro, MicroOp, Node, Scope, Stmt, VTy, Var};
use crate::program::{Buffer, BufferId, KernelId, Launch, Place, Program, State, Weight};
use crate::{DType, Dim, Elem, SymDecl, Syms};

/// Reads one kernel that uses these symbols.
pub fn parse_kernel(text: &str, syms: &Syms) -> Result<Kernel, ParseError> {
    let mut lexer = Lexer::new(text);
    let kernel = read_kernel(&mut lexer, syms)?;
    end(&lexer)?;
    Ok(kernel)
}

/// Reads one kernel at the cursor, which stays behind its closing brace.
pub fn read_kernel(lexer: &mut Lexer<'_>, syms: &Syms) -> Result<Kernel, ParseError> {
    KernelReader {
        l: lexer,
        syms,
        buffers: vec![],
        names: HashMap::new(),
        vars: BTreeMap::new(),
        types: HashMap::new(),
    }
    .kernel()
}

/// Reads one program.
pub fn parse_program(text: &str) -> Result<Program, ParseError> {
    let mut lexer = Lexer::new(text);
    let program = read_program(&mut lexer)?;
    end(&lexer)?;
    Ok(program)
}

fn end(l: &Lexer<'_>) -> Result<(), ParseError> {
    if *l.peek() == Token::End { Ok(()) } else { Err(l.expected("the end of the text")) }
}

fn dtype(l: &mut Lexer<'_>) -> Result<DType, ParseError> {
    let wrong = l.expected("an element type such as `f32`");
    l.ident("an element type such as `f32`")?.parse().map_err(|()| wrong)
}

fn elem(l: &mut Lexer<'_>) -> Result<Elem, ParseError> {
    let wrong = l.expected("a tensor element type such as `f32` or `gguf.q4_k`");
    l.ident("a tensor element type")?.parse().map_err(|()| wrong)
}

/// `f32[n, 4]`, or `f32` for one element.
fn array(l: &mut Lexer<'_>, syms: &Syms) -> Result<(DType, Vec<Dim>), ParseError> {
    let dtype = dtype(l)?;
    let shape = if l.at("[") { parse_shape(l, syms)? } else { vec![] };
    Ok((dtype, shape))
}

fn repeated(l: &Lexer<'_>, pos: Pos, what: &str, name: &str) -> ParseError {
    l.error_at(pos, "IR010", format!("{what} `{name}` is declared twice; rename one"))
}

fn sorted<'a>(names: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let mut all: Vec<&str> = names.map(String::as_str).collect();
    all.sort_unstable();
    all
}

/// An expression and its depth.
struct Tree {
    e: Expr,
    depth: u32,
}

struct KernelReader<'l, 'a> {
    l: &'l mut Lexer<'a>,
    syms: &'l Syms,
    buffers: Vec<BufDecl>,
    names: HashMap<String, Buf>,
    vars: BTreeMap<u32, String>,
    /// Types of the variables bound by the statements read so far.
    types: HashMap<Var, VTy>,
}

impl KernelReader<'_, '_> {
    fn kernel(mut self) -> Result<Kernel, ParseError> {
        self.l.expect_word("kernel")?;
        let mut kernel = Kernel::new(self.l.at_name("a kernel name such as `@name`")?);
        self.l.expect("(")?;
        while !self.l.at(")") {
            let b = self.buffer()?;
            let what = "`in`, `out` or `inout`";
            let wrong = self.l.expected(what);
            let scope = find_scope(self.l.ident(what)?).ok_or(wrong)?;
            self.buffers.push(BufDecl { scope, ..b });
            if !self.l.eat(",") && !self.l.at(")") {
                return Err(self.l.expected("`,` or `)`"));
            }
        }
        self.l.expect(")")?;
        self.l.expect("{")?;
        loop {
            if self.l.eat_word("trace") {
                kernel.trace.push(self.l.string("a string")?);
            } else if self.l.eat_word("var") {
                self.var()?;
                while self.l.eat(",") {
                    self.var()?;
                }
            } else if let Token::Ident(w) = *self.l.peek()
                && let Some(scope) = find_scope(w)
            {
                self.l.next();
                let b = self.buffer()?;
                self.buffers.push(BufDecl { scope, ..b });
            } else {
                break;
            }
        }
        kernel.body = self.body()?;
        for (i, (&number, name)) in (0u32..).zip(&self.vars) {
            if number != i {
                let message =
                    format!("variable `{name}.{number}` exists but none has the number {i}; declare it: `var x.{i}`");
                return Err(self.l.error_at(self.l.pos(), "IR010", message));
            }
        }
        kernel.vars = self.vars.into_values().collect();
        kernel.buffers = self.buffers;
        Ok(kernel)
    }

    /// `%name: type[shape]`; the scope is filled in by the caller.
    fn buffer(&mut self) -> Result<BufDecl, ParseError> {
        let pos = self.l.pos();
        let name = self.l.percent("a buffer such as `%name`")?;
        self.l.expect(":")?;
        let (dtype, shape) = array(self.l, self.syms)?;
        if self.names.insert(name.clone(), Buf(self.buffers.len() as u32)).is_some() {
            return Err(repeated(self.l, pos, "buffer", &name));
        }
        Ok(BufDecl { name, dtype, shape, scope: Scope::In })
    }

    /// `name.number`, where the name may be quoted.
    fn var(&mut self) -> Result<Var, ParseError> {
        let pos = self.l.pos();
        const WHAT: &str = "a variable such as `i.0`";
        let (name, number) = match self.l.peek() {
            Token::Str(_) => {
                let name = self.l.string(WHAT)?;
                self.l.expect(".")?;
                (name, self.l.uint_as("the number of a variable")?)
            }
            Token::Ident(s) => {
                let split = s.rsplit_once('.').and_then(|(n, i)| Some((n.to_string(), i.parse().ok()?)));
                let var = split.ok_or_else(|| self.l.expected(WHAT))?;
                self.l.next();
                var
            }
            _ => return Err(self.l.expected(WHAT)),
        };
        match self.vars.get(&number) {
            Some(known) if *known != name => {
                let message = format!(
                    "variable number {number} is called both `{known}` and `{name}`; give one of them another number"
                );
                return Err(self.l.error_at(pos, "IR010", message));
            }
            Some(_) => {}
            None => drop(self.vars.insert(number, name)),
        }
        Ok(Var(number))
    }

    /// Statements up to and including `}`.
    fn body(&mut self) -> Result<Vec<Stmt>, ParseError> {
        let mut body = vec![];
        self.l.enter()?;
        while !self.l.eat("}") {
            body.push(self.stmt()?);
        }
        self.l.leave();
        Ok(body)
    }

    fn stmt(&mut self) -> Result<Stmt, ParseError> {
        const WHAT: &str = "a statement (`for`, `parallel`, `unroll`, `let`, `store`, `if`, `micro`) or `}`";
        let Token::Ident(word) = *self.l.peek() else { return Err(self.l.expected(WHAT)) };
        let kind = match word {
            "for" => Some(LoopKind::Serial),
            "parallel" => Some(LoopKind::Parallel),
            "unroll" => Some(LoopKind::Unroll),
            "let" | "store" | "if" | "micro" => None,
            _ => return Err(self.l.expected(WHAT)),
        };
        self.l.next();
        if let Some(kind) = kind {
            let var = self.var()?;
            self.l.expect_word("in")?;
            let wrong = self.l.expected("`0..`");
            if self.l.uint("`0..`")? != 0 {
                return Err(wrong);
            }
            self.l.expect("..")?;
            let extent = self.expr(0)?.e;
            self.l.expect("{")?;
            self.types.insert(var, DEFAULT_VAR);
            return Ok(Stmt::For { var, extent, kind, body: self.body()? });
        }
        match word {
            "let" => {
                let var = self.var()?;
                self.l.expect("=")?;
                let value = self.expr(0)?.e;
                self.types.insert(var, value.ty());
                Ok(Stmt::Let { var, value })
            }
            "store" => {
                let (buf, index, _, _) = self.access()?;
                self.l.expect("=")?;
                Ok(Stmt::Store { buf, index, value: self.expr(0)?.e })
            }
            "micro" => self.micro(),
            _ => {
                let cond = self.expr(0)?.e;
                self.l.expect("{")?;
                let then = self.body()?;
                let mut other = vec![];
                if self.l.eat_word("else") {
                    self.l.expect("{")?;
                    other = self.body()?;
                }
                Ok(Stmt::If { cond, then, other })
            }
        }
    }

    /// `"op" (%a[0, 0], %b[0]; size, size)`.
    fn micro(&mut self) -> Result<Stmt, ParseError> {
        let pos = self.l.pos();
        let name = self.l.string("a micro-kernel such as `\"fma f32\"`")?;
        let Ok(op) = name.parse::<MicroOp>() else {
            return Err(self.l.error_at(pos, "IR010", format!("there is no micro-kernel `{name}`; there are `dot LAYOUT`, `fma TYPE`, `unpack LAYOUT` and `attend TYPE SCALE CAP`")));
        };
        self.l.expect("(")?;
        let (mut args, mut sizes) = (vec![], vec![]);
        while !self.l.eat(";") {
            if !args.is_empty() {
                self.l.expect(",")?;
            }
            let (buf, index, _, _) = self.access()?;
            args.push((buf, index));
        }
        while !self.l.eat(")") {
            if !sizes.is_empty() {
                self.l.expect(",")?;
            }
            sizes.push(self.expr(0)?.e);
        }
        Ok(Stmt::Micro(Micro { op, args, sizes }))
    }

    /// `%name[index, index; lanes]`: buffer, index, lanes and depth of the deepest index.
    fn access(&mut self) -> Result<(Buf, Vec<Expr>, u16, u32), ParseError> {
        let pos = self.l.pos();
        let name = self.l.percent("a buffer such as `%name`")?;
        let Some(&buf) = self.names.get(&name) else {
            let near = suggest(&name, sorted(self.names.keys()));
            return Err(self.l.error_at(pos, "IR010", format!("buffer `%{name}` is not declared{near}")));
        };
        self.l.expect("[")?;
        let (mut index, mut depth, mut lanes) = (vec![], 0, 1);
        loop {
            if self.l.eat(";") {
                lanes = self.l.uint_as("a number of lanes")?;
                self.l.expect("]")?;
                break;
            }
            if self.l.eat("]") {
                break;
            }
            let t = self.expr(0)?;
            depth = depth.max(t.depth);
            index.push(t.e);
            if !self.l.eat(",") && !self.l.at("]") && !self.l.at(";") {
                return Err(self.l.expected("`,`, `;` or `]`"));
            }
        }
        Ok((buf, index, lanes, depth))
    }

    /// An expression of operators of precedence `level` and tighter.
    fn expr(&mut self, level: u8) -> Result<Tree, ParseError> {
        self.l.enter()?;
        let mut left = self.primary()?;
        while let Token::Punct(sign) = *self.l.peek()
            && let Some((op, own)) = find_infix(sign)
            && own >= level
        {
            self.l.next();
            let right = self.expr(own + 1)?;
            let ty = implied_binary(op, &left.e);
            let depth = left.depth.max(right.depth);
            left = self.tree(Node::Binary(op, left.e, right.e), ty, depth)?;
        }
        self.l.leave();
        Ok(left)
    }

    /// A node above operands of that depth.
    fn tree(&self, node: Node, ty: VTy, depth: u32) -> Result<Tree, ParseError> {
        if depth >= MAX_DEPTH {
            let message = format!("the expression is more than {MAX_DEPTH} operators deep; bind parts with `let`");
            return Err(self.l.error_at(self.l.pos(), "IR002", message));
        }
        Ok(Tree { e: Expr::new(node, ty.dtype, ty.lanes), depth: depth + 1 })
    }

    /// `:type`, where the type is not the implied one.
    fn suffix(&mut self) -> Result<Option<VTy>, ParseError> {
        if !self.l.eat(":") {
            return Ok(None);
        }
        const WHAT: &str = "a type such as `f32` or `f32x8`";
        let wrong = self.l.expected(WHAT);
        let name = self.l.ident(WHAT)?;
        let (dtype, lanes) = name.split_once('x').unwrap_or((name, "1"));
        match (dtype.parse(), lanes.parse()) {
            (Ok(dtype), Ok(lanes)) => Ok(Some(VTy { dtype, lanes })),
            _ => Err(wrong),
        }
    }

    fn primary(&mut self) -> Result<Tree, ParseError> {
        let scalar = |dtype| VTy { dtype, lanes: 1 };
        let pos = self.l.pos();
        let (node, ty, depth) = match self.l.peek().clone() {
            Token::Int(_) | Token::Float(_) | Token::Punct("-") => {
                let node = self.number()?;
                let dtype = if matches!(node, Node::Int(_)) { DType::I64 } else { DType::F32 };
                (node, scalar(dtype), 0)
            }
            Token::Percent(_) => {
                let (buf, index, lanes, depth) = self.access()?;
                let dtype = self.buffers[buf.0 as usize].dtype;
                (Node::Load(buf, index), VTy { dtype, lanes }, depth)
            }
            Token::Punct("(") => {
                self.l.next();
                let t = self.expr(0)?;
                self.l.expect(")")?;
                let ty = self.suffix()?.unwrap_or(t.e.ty());
                return Ok(Tree { e: Expr::new(t.e.node().clone(), ty.dtype, ty.lanes), depth: t.depth });
            }
            Token::Str(_) => {
                let v = self.var()?;
                (Node::Var(v), self.types.get(&v).copied().unwrap_or(DEFAULT_VAR), 0)
            }
            Token::Ident(name) => {
                let mut ahead = self.l.clone();
                ahead.next();
                match name {
                    _ if ahead.at("(") => self.call(name, pos)?,
                    "true" | "false" => {
                        self.l.next();
                        (Node::Int(i64::from(name == "true")), scalar(DType::Bool), 0)
                    }
                    "inf" | "nan" => (self.number()?, scalar(DType::F32), 0),
                    _ if name.contains('.') => {
                        let v = self.var()?;
                        (Node::Var(v), self.types.get(&v).copied().unwrap_or(DEFAULT_VAR), 0)
                    }
                    _ => (Node::Size(parse_sym(self.l, self.syms)?), scalar(DType::I64), 0),
                }
            }
            Token::Punct("$") => (Node::Size(parse_sym(self.l, self.syms)?), scalar(DType::I64), 0),
            _ => return Err(self.l.expected("an expression: a number, variable, size, buffer access, call or `(`")),
        };
        let ty = self.suffix()?.unwrap_or(ty);
        self.tree(node, ty, depth)
    }

    /// A number with an optional minus sign, `inf` or `nan`.
    fn number(&mut self) -> Result<Node, ParseError> {
        let pos = self.l.pos();
        let negative = self.l.eat("-");
        let sign = if negative { 1 << 31 } else { 0 };
        let too_large = |l: &Lexer<'_>, s: &str| {
            l.error_at(pos, "IR001", format!("`{s}` is too large a number; it must fit 64 bits, or f32"))
        };
        match self.l.peek().clone() {
            Token::Int(v) => {
                self.l.next();
                signed(v, negative).map(Node::Int).ok_or_else(|| too_large(self.l, &v.to_string()))
            }
            Token::Float(s) => {
                self.l.next();
                match s.parse::<f32>() {
                    Ok(v) if v.is_finite() => Ok(Node::Float(v.to_bits() | sign)),
                    _ => Err(too_large(self.l, s)),
                }
            }
            Token::Ident("inf") => {
                self.l.next();
                Ok(Node::Float(f32::INFINITY.to_bits() | sign))
            }
            Token::Ident("nan") if !negative => {
                self.l.next();
                Ok(Node::Float(f32::NAN.to_bits()))
            }
            _ => Err(self.l.expected("a number")),
        }
    }

    /// `name(...)`.
    fn call(&mut self, name: &str, pos: Pos) -> Result<(Node, VTy, u32), ParseError> {
        self.l.next();
        if name == "nan" {
            self.l.expect("(")?;
            let bits: u32 = self.l.uint_as("the bits of a NaN")?;
            self.l.expect(")")?;
            return Ok((Node::Float(bits), VTy { dtype: DType::F32, lanes: 1 }, 0));
        }
        let mut depth = 0;
        self.l.expect("(")?;
        let mut args = vec![];
        while !self.l.eat(")") {
            let t = self.expr(0)?;
            depth = depth.max(t.depth);
            args.push(t.e);
            if !self.l.eat(",") && !self.l.at(")") {
                return Err(self.l.expected("`,` or `)`"));
            }
        }
        let unknown = || {
            let near = suggest(name.split('.').next().unwrap_or(name), function_names());
            self.l.error_at(pos, "IR010", format!("there is no function `{name}`{near}"))
        };
        let (base, attr) = name.split_once('.').map_or((name, None), |(b, a)| (b, Some(a)));
        let want = match base {
            "cast" | "bitcast" | "splat" | "ramp" | "reduce" => 1,
            "fma" | "select" | "dot4" => 3,
            _ if find_unary(base).is_some() => 1,
            _ if find_binary(base).is_some() => 2,
            _ => return Err(unknown()),
        };
        if args.len() != want {
            let message = format!("expected {want} operands of `{name}`, found {}", args.len());
            return Err(self.l.error_at(pos, "IR001", message));
        }
        let attr_error =
            |what: &str| self.l.error_at(pos, "IR001", format!("expected `{base}.{what}`, found `{name}`"));
        let attr_dtype = || attr.and_then(|a| a.parse::<DType>().ok()).ok_or_else(|| attr_error("TYPE"));
        let attr_lanes = || attr.and_then(|a| a.parse::<u16>().ok()).ok_or_else(|| attr_error("LANES"));
        let ty = args[0].ty();
        let mut args = args.into_iter();
        // The count was checked above.
        let mut next = || args.next().unwrap_or_else(|| Expr::idx(0));
        let node = match base {
            "cast" => {
                let dtype = attr_dtype()?;
                return Ok((Node::Cast(next()), VTy { dtype, ..ty }, depth));
            }
            "bitcast" => {
                let dtype = attr_dtype()?;
                return Ok((Node::Bitcast(next()), VTy { dtype, ..ty }, depth));
            }
            "splat" => {
                let lanes = attr_lanes()?;
                return Ok((Node::Splat(next()), VTy { lanes, ..ty }, depth));
            }
            "ramp" => {
                let lanes = attr_lanes()?;
                return Ok((Node::Ramp(next()), VTy { lanes, ..ty }, depth));
            }
            "reduce" => {
                let op = attr.and_then(find_binary).ok_or_else(|| attr_error("OPERATOR"))?;
                return Ok((Node::Reduce(op, next()), VTy { lanes: 1, ..ty }, depth));
            }
            "dot4" => {
                let w_max = attr.and_then(|a| a.parse().ok()).ok_or_else(|| attr_error("LARGEST_BYTE"))?;
                let node = Node::Dot4 { acc: next(), w: next(), x: next(), w_max };
                return Ok((node, VTy { dtype: DType::I32, ..ty }, depth));
            }
            _ if attr.is_some() => return Err(unknown()),
            "fma" => Node::Fma(next(), next(), next()),
            "select" => {
                let (c, a) = (next(), next());
                let ty = a.ty();
                return Ok((Node::Select(c, a, next()), ty, depth));
            }
            _ => match (find_unary(base), find_binary(base)) {
                (Some(op), _) => Node::Unary(op, next()),
                (_, Some(op)) => {
                    let a = next();
                    let ty = implied_binary(op, &a);
                    return Ok((Node::Binary(op, a, next()), ty, depth));
                }
                _ => return Err(unknown()),
            },
        };
        Ok((node, ty, depth))
    }
}

fn implied_binary(op: BinOp, a: &Expr) -> VTy {
    let VTy { dtype, lanes } = a.ty();
    VTy { dtype: if op.is_compare() { DType::Bool } else { dtype }, lanes }
}

/// Reads one program at the cursor.
fn read_program(l: &mut Lexer<'_>) -> Result<Program, ParseError> {
    l.expect_word("program")?;
    let name = l.at_name("a program name such as `@name`")?;
    l.expect_word("arena")?;
    let mut p = Program {
        name,
        syms: Syms::default(),
        weights: vec![],
        constants: vec![],
        states: vec![],
        buffers: vec![],
        kernels: vec![],
        launches: vec![],
        arena_bytes: l.uint("the bytes of the arena")?,
        own_bytes: if l.eat_word("own") { l.uint("the bytes that each thread has for itself")? } else { 0 },
    };
    let mut buffers: HashMap<String, BufferId> = HashMap::new();
    let mut kernels: HashMap<String, KernelId> = HashMap::new();
    l.expect("{")?;
    while !l.eat("}") {
        let pos = l.pos();
        if l.at_word("kernel") {
            let k = read_kernel(l, &p.syms)?;
            if kernels.insert(k.name.clone(), KernelId(p.kernels.len() as u32)).is_some() {
                return Err(repeated(l, pos, "kernel", &k.name));
            }
            p.kernels.push(k);
        } else if l.eat_word("sym") {
            p.syms.0.push(sym(l)?);
        } else if l.eat_word("weight") {
            p.weights.push(weight(l)?);
        } else if l.eat_word("constant") {
            p.constants.push(l.list("[", "]", |l| l.uint_as("the bits of an f32"))?);
        } else if l.eat_word("state") {
            let name = l.percent("a state such as `%name`")?;
            l.expect(":")?;
            let (dtype, shape) = array(l, &p.syms)?;
            p.states.push(State { name, dtype, shape });
        } else if l.eat_word("buffer") {
            let name = l.percent("a buffer such as `%name`")?;
            l.expect(":")?;
            let (dtype, shape) = array(l, &p.syms)?;
            if buffers.insert(name.clone(), BufferId(p.buffers.len() as u32)).is_some() {
                return Err(repeated(l, pos, "buffer", &name));
            }
            p.buffers.push(Buffer { name, dtype, shape, place: place(l)? });
        } else if l.at_word("sync") || l.at_word("launch") {
            let sync = l.eat_word("sync");
            l.expect_word("launch")?;
            let pos = l.pos();
            let name = l.at_name("a kernel such as `@name`")?;
            let Some(&kernel) = kernels.get(&name) else {
                let near = suggest(&name, sorted(kernels.keys()));
                return Err(l.error_at(pos, "IR010", format!("kernel `@{name}` is not declared{near}")));
            };
            let args = l.list("(", ")", |l| {
                let pos = l.pos();
                let name = l.percent("a buffer such as `%name`")?;
                let known = buffers.get(&name).copied();
                known.ok_or_else(|| {
                    let near = suggest(&name, sorted(buffers.keys()));
                    l.error_at(pos, "IR010", format!("buffer `%{name}` is not declared{near}"))
                })
            })?;
            p.launches.push(Launch { kernel, args, sync });
        } else {
            return Err(l.expected("`sym`, `weight`, `state`, `buffer`, `kernel`, `launch`, `sync` or `}`"));
        }
    }
    Ok(p)
}

fn sym(l: &mut Lexer<'_>) -> Result<SymDecl, ParseError> {
    const WHAT: &str = "the name of a size";
    let name = match l.peek() {
        Token::Str(_) => l.string(WHAT)?,
        _ => l.ident(WHAT)?.to_string(),
    };
    l.expect_word("in")?;
    let lo = l.int("the smallest value of the size")?;
    l.expect("..=")?;
    let hi = l.int("the largest value of the size")?;
    let multiple = if l.eat_word("multiple") { l.int("a divisor of the size")? } else { 1 };
    Ok(SymDecl { name, lo, hi, multiple })
}

fn weight(l: &mut Lexer<'_>) -> Result<Weight, ParseError> {
    let sources = l.list("[", "]", |l| l.string("the name of a parameter, in quotes"))?;
    let interleave = if l.eat_word("interleave") { l.uint_as("a number of rows")? } else { 0 };
    l.expect(":")?;
    let from = elem(l)?;
    l.expect("->")?;
    let elem = elem(l)?;
    let shape = l.list("[", "]", |l| l.uint_as("an extent"))?;
    Ok(Weight { sources, interleave, from, elem, shape })
}

fn place(l: &mut Lexer<'_>) -> Result<Place, ParseError> {
    const WHAT: &str = "a place: `input`, `output`, `state`, `weight`, `constant`, `arena` or `own`";
    let wrong = l.expected(WHAT);
    match l.ident(WHAT)? {
        "input" => Ok(Place::Input(l.string("the name of an input, in quotes")?)),
        "output" => Ok(Place::Output(l.string("the name of an output, in quotes")?)),
        "state" => Ok(Place::State(l.uint_as("the number of a state")?)),
        "constant" => Ok(Place::Constant(l.uint_as("the number of a constant")?)),
        "arena" => Ok(Place::Arena(l.uint("a byte offset")?)),
        "own" => Ok(Place::Own(l.uint("a byte offset")?)),
        "weight" => {
            let i = l.uint_as("the number of a weight")?;
            l.expect("+")?;
            Ok(Place::Weight(i, l.uint("a byte offset")?))
        }
        _ => Err(wrong),
    }
}

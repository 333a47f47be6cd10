//! State of one kernel's translation to text, and the placement of instructions.
//!
//! Nested scopes (loop bodies and branches) have a level and a text each. A pure instruction is written to the scope of its
//! deepest operand, which for a loop invariant is before the loop; one that exists already, at any enclosing level, is used
//! again. `Reg` buffers are values in SSA form. So the text needs no pass of LLVM before instruction selection.

use std::collections::{BTreeSet, HashMap};
use std::fmt::{self, Write};

use marquetry_ir::loops::{Buf, Kernel, Scope, Var};
use marquetry_ir::{DType, Sym};

use super::target::Features;
use crate::index::Poly;

/// What a lane is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Int(u16),
    Half,
    Float,
    Ptr,
}

/// A scalar (one lane) or vector type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ty {
    pub kind: Kind,
    pub lanes: usize,
}

impl Ty {
    pub const PTR: Ty = Ty { kind: Kind::Ptr, lanes: 1 };
    pub const I64: Ty = Ty::int(64, 1);
    pub const BOOL: Ty = Ty::int(1, 1);

    pub const fn int(bits: u16, lanes: usize) -> Ty {
        Ty { kind: Kind::Int(bits), lanes }
    }

    /// Values of an element type; 16-bit floats are their bits.
    pub fn of(d: DType, lanes: usize) -> Ty {
        match d {
            DType::F32 => Ty { kind: Kind::Float, lanes },
            DType::Bool => Ty::int(1, lanes),
            d => Ty::int(8 * d.size() as u16, lanes),
        }
    }

    pub fn with_lanes(self, lanes: usize) -> Ty {
        Ty { lanes, ..self }
    }

    /// The suffix that intrinsics have for it.
    pub fn suffix(self) -> String {
        let lane = match self.kind {
            Kind::Int(n) => format!("i{n}"),
            Kind::Half => "f16".into(),
            Kind::Float => "f32".into(),
            Kind::Ptr => "p0".into(),
        };
        if self.lanes == 1 { lane } else { format!("v{}{lane}", self.lanes) }
    }
}

impl fmt::Display for Ty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lane = match self.kind {
            Kind::Int(n) => format!("i{n}"),
            Kind::Half => "half".into(),
            Kind::Float => "float".into(),
            Kind::Ptr => "ptr".into(),
        };
        if self.lanes == 1 { f.write_str(&lane) } else { write!(f, "<{} x {lane}>", self.lanes) }
    }
}

/// A value of the text, by position in the translation's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Val(u32);

struct Def {
    /// How operands spell it.
    name: String,
    ty: Ty,
    level: usize,
    /// The integer constant that it is.
    int: Option<i64>,
}

/// What a variable stands for.
#[derive(Clone, Debug)]
pub(super) enum Bind {
    /// An index, kept as a polynomial so that constants reach the address.
    Index(Poly<Val>),
    /// Anything else.
    Value(Val),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScopeKind {
    /// Body of a loop that runs at least once; invariants move out of it.
    Loop,
    /// Runs at most once per entry of the enclosing scope; what it needs is computed in it.
    Branch,
}

/// Text of a scope so far.
pub(super) struct Body {
    kind: ScopeKind,
    pub text: String,
    /// The block that the text ends in.
    pub label: String,
    pure: HashMap<String, Val>,
    loads: HashMap<(String, u32), Val>,
}

/// The values of one `Reg` buffer: aligned chunks.
#[derive(Clone)]
pub(super) struct RegFile {
    pub values: Vec<Val>,
    /// Elements per chunk; 1 for scalars.
    pub chunk: usize,
}

/// Translation state of one kernel.
pub(super) struct Cx<'a> {
    pub k: &'a Kernel,
    pub features: &'a Features,
    /// Declarations that the text needs.
    pub declares: &'a mut BTreeSet<String>,
    /// Number of buffers that have metadata.
    pub scopes_declared: usize,
    pub env: HashMap<Var, Bind>,
    /// Values of this statement's expressions, by identity.
    pub memo: HashMap<usize, Val>,
    pub regs: Vec<Option<RegFile>>,
    pub range: (Val, Val),
    pub bases: Vec<Option<Val>>,
    args: Val,
    sizes_at: Val,
    sizes: HashMap<Sym, Val>,
    defs: Vec<Def>,
    constants: HashMap<(String, Ty), Val>,
    scopes: Vec<Body>,
    epochs: Vec<u32>,
    last: u32,
}

impl<'a> Cx<'a> {
    /// Starts the function, whose parameters are `%args, %sizes, %begin, %end`. `buffers` of the module have metadata.
    pub fn new(k: &'a Kernel, features: &'a Features, declares: &'a mut BTreeSet<String>, buffers: usize) -> Cx<'a> {
        let n = k.buffers.len();
        let mut cx = Cx {
            k,
            features,
            declares,
            scopes_declared: buffers,
            env: HashMap::new(),
            memo: HashMap::new(),
            regs: vec![None; n],
            range: (Val(2), Val(3)),
            bases: vec![None; n],
            args: Val(0),
            sizes_at: Val(1),
            sizes: HashMap::new(),
            defs: vec![],
            constants: HashMap::new(),
            scopes: vec![],
            epochs: vec![0; n],
            last: 0,
        };
        for (name, ty) in [("args", Ty::PTR), ("sizes", Ty::PTR), ("begin", Ty::I64), ("end", Ty::I64)] {
            cx.define(format!("%{name}"), ty, 0);
        }
        cx.push(ScopeKind::Branch, "entry".into());
        cx
    }

    fn define(&mut self, name: String, ty: Ty, level: usize) -> Val {
        self.defs.push(Def { name, ty, level, int: None });
        Val(self.defs.len() as u32 - 1)
    }

    pub fn name(&self, v: Val) -> &str {
        &self.defs[v.0 as usize].name
    }

    pub fn ty(&self, v: Val) -> Ty {
        self.defs[v.0 as usize].ty
    }

    /// `type name`, as operands are spelled.
    pub fn typed(&self, v: Val) -> String {
        let d = &self.defs[v.0 as usize];
        format!("{} {}", d.ty, d.name)
    }

    /// The integer constant, if the value is one.
    pub fn int_of(&self, v: Val) -> Option<i64> {
        self.defs[v.0 as usize].int
    }

    /// A constant by its text.
    pub fn literal(&mut self, text: String, ty: Ty) -> Val {
        if let Some(v) = self.constants.get(&(text.clone(), ty)) {
            return *v;
        }
        let v = self.define(text.clone(), ty, 0);
        self.constants.insert((text, ty), v);
        v
    }

    fn top(&self) -> usize {
        self.scopes.len() - 1
    }

    /// Level at which a value is available.
    pub fn level_of(&self, v: Val) -> usize {
        self.defs[v.0 as usize].level.min(self.top())
    }

    /// A name not used yet.
    pub fn fresh_label(&mut self) -> String {
        self.last += 1;
        format!("b{}", self.last)
    }

    pub fn push(&mut self, kind: ScopeKind, label: String) {
        self.scopes.push(Body { kind, text: String::new(), label, pure: HashMap::new(), loads: HashMap::new() });
    }

    /// Ends the innermost scope and gives its text.
    pub fn pop(&mut self) -> Body {
        self.scopes.pop().expect("pairs of push and pop")
    }

    /// The innermost scope.
    pub fn here(&mut self) -> &mut Body {
        self.scopes.last_mut().expect("a scope")
    }

    /// A line that is no value.
    pub fn line(&mut self, line: &str) {
        let text = &mut self.here().text;
        text.push_str("  ");
        text.push_str(line);
        text.push('\n');
    }

    /// A value of the current scope that another text defines.
    pub fn forward(&mut self, ty: Ty) -> Val {
        let (n, top) = (self.defs.len(), self.top());
        self.define(format!("%v{n}"), ty, top)
    }

    fn write(&mut self, level: usize, ty: Ty, text: &str) -> Val {
        let name = format!("%v{}", self.defs.len());
        let _ = writeln!(self.scopes[level].text, "  {name} = {text}");
        self.define(name, ty, level)
    }

    /// A pure instruction: equal ones once, and as far out as its operands allow.
    pub fn pure(&mut self, ty: Ty, args: &[Val], text: String) -> Val {
        if let Some(v) = self.scopes.iter().find_map(|s| s.pure.get(&text)) {
            return *v;
        }
        let top = self.top();
        let mut level = args.iter().map(|v| self.level_of(*v)).max().unwrap_or(0);
        while level < top && self.scopes[level + 1].kind == ScopeKind::Branch {
            level += 1;
        }
        let v = self.write(level, ty, &text);
        self.scopes[level].pure.insert(text, v);
        v
    }

    /// A pure instruction that stays where it is: it may trap, or costs nothing beside its use.
    pub fn local(&mut self, ty: Ty, text: String) -> Val {
        let top = self.top();
        if let Some(v) = self.scopes[top].pure.get(&text) {
            return *v;
        }
        let v = self.write(top, ty, &text);
        self.scopes[top].pure.insert(text, v);
        v
    }

    /// A load at the current position, or the value of an equal one since which the buffer did not change.
    pub fn load(&mut self, buf: Buf, ty: Ty, at: Val, offset: i32) -> Val {
        let align = self.k.decl(buf).dtype.size();
        let key = (format!("{ty} {} {offset}", self.name(at)), self.epochs[buf.0 as usize]);
        if let Some(v) = self.scopes.iter().find_map(|s| s.loads.get(&key)) {
            return *v;
        }
        let at = self.offset(at, offset);
        let text = format!("load {ty}, {}, align {align}{}", self.typed(at), self.aliasing(buf, true));
        let top = self.top();
        let v = self.write(top, ty, &text);
        self.scopes[top].loads.insert(key, v);
        v
    }

    /// A store at the current position.
    pub fn store(&mut self, buf: Buf, value: Val, at: Val, offset: i32) {
        let align = self.k.decl(buf).dtype.size();
        let at = self.offset(at, offset);
        let (value, at) = (self.typed(value), self.typed(at));
        self.line(&format!("store {value}, {at}, align {align}{}", self.aliasing(buf, false)));
        self.clobber(buf);
    }

    fn offset(&mut self, at: Val, offset: i32) -> Val {
        match offset {
            0 => at,
            o => self.local(Ty::PTR, format!("getelementptr i8, {}, i64 {o}", self.typed(at))),
        }
    }

    /// Buffers are apart from each other, and those of scope `In` do not change.
    fn aliasing(&self, buf: Buf, load: bool) -> String {
        let (n, b) = (self.scopes_declared, buf.0 as usize);
        let fixed = if load && self.k.decl(buf).scope == Scope::In {
            format!(", !invariant.load !{}", 3 * n + 1)
        } else {
            String::new()
        };
        format!(", !alias.scope !{}, !noalias !{}{fixed}", 1 + n + b, 1 + 2 * n + b)
    }

    /// Forgets what is known of a buffer's contents.
    pub fn clobber(&mut self, buf: Buf) {
        self.last += 1;
        self.epochs[buf.0 as usize] = self.last;
    }

    /// The run-time value of a symbol, loaded once.
    pub fn size_value(&mut self, s: Sym) -> Val {
        if let Some(v) = self.sizes.get(&s) {
            return *v;
        }
        let v = self.entry_load(Ty::I64, self.sizes_at, s.0);
        self.sizes.insert(s, v);
        v
    }

    /// The address of a buffer that lives in memory, loaded once.
    pub fn base_value(&mut self, buf: Buf) -> Val {
        if let Some(v) = self.bases[buf.0 as usize] {
            return v;
        }
        let v = self.entry_load(Ty::PTR, self.args, buf.0);
        self.bases[buf.0 as usize] = Some(v);
        v
    }

    /// Loads 64 bits of the call's arguments, outside of all loops.
    fn entry_load(&mut self, ty: Ty, at: Val, position: u32) -> Val {
        let at = self.write(0, Ty::PTR, &format!("getelementptr i64, {}, i64 {position}", self.typed(at)));
        let fixed = 3 * self.scopes_declared + 1;
        self.write(0, ty, &format!("load {ty}, {}, align 8, !invariant.load !{fixed}", self.typed(at)))
    }

    /// Memory on the stack.
    pub fn alloca(&mut self, bytes: u32) -> Val {
        self.write(0, Ty::PTR, &format!("alloca [{bytes} x i8], align 64"))
    }

    /// An integer constant in every lane.
    pub fn int(&mut self, ty: Ty, v: i64) -> Val {
        let Kind::Int(bits) = ty.kind else { unreachable!("an integer type") };
        let shift = 64 - u32::from(bits);
        let wrapped = (v << shift) >> shift;
        let lane = if bits == 1 { (v & 1 == 1).to_string() } else { wrapped.to_string() };
        if ty.lanes > 1 {
            return self.literal(format!("splat (i{bits} {lane})"), ty);
        }
        let v = self.literal(lane, ty);
        self.defs[v.0 as usize].int = Some(if bits == 1 { wrapped & 1 } else { wrapped });
        v
    }

    /// A float constant in every lane, by its bits.
    pub fn float(&mut self, bits: u32, lanes: usize) -> Val {
        let ty = Ty { kind: Kind::Float, lanes };
        let v = f32::from_bits(bits);
        // Text has floats as doubles.
        let wide = match v.is_nan() {
            true => u64::from(bits >> 31) << 63 | 0x7ff << 52 | u64::from(bits & 0x7f_ffff) << 29,
            false => f64::from(v).to_bits(),
        };
        let lane = format!("0x{wide:016X}");
        self.literal(if lanes > 1 { format!("splat (float {lane})") } else { lane }, ty)
    }
}

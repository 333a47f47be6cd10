//! The graph IR: functions of single-assignment values over typed tensors and states.

mod build;
pub mod expand;
mod infer;
pub mod interp;
mod ops;
mod parse;
mod print;
mod verify;

pub use build::{Builder, Replace, rebuild};
pub use ops::{Class, Infer, Op, OpInfo};
pub use parse::{Places, parse_module, parse_placed};
pub use print::{print_function, print_module, ty as print_type};
pub use verify::{Violation, verify, violations};

use crate::loops::Kernel;
use crate::{DType, Dim, Elem, Syms};

/// `quantize` makes zeros of a group whose largest magnitude is not above this: its inverse scale would overflow.
pub const QUANTIZE_FLOOR: f32 = 1e-30;

/// Type of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorTy {
    /// Element type.
    pub elem: Elem,
    /// Extent of each axis.
    pub shape: Vec<Dim>,
}

/// Type of a paged key/value cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KvTy {
    /// Number of token slots.
    pub slots: Dim,
    /// Key/value heads.
    pub heads: usize,
    /// Features of each head.
    pub dim: usize,
    /// Element type.
    pub dtype: DType,
}

/// Type of a recurrent state: one record per row. A row belongs to a sequence for as long as it lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RowsTy {
    /// Number of rows.
    pub rows: Dim,
    /// Shape of a record.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: DType,
}

impl RowsTy {
    /// Extents of the whole: the rows, then the record's.
    pub fn extents(&self) -> Vec<Dim> {
        [self.rows.clone()].into_iter().chain(self.shape.iter().map(|&d| d.into())).collect()
    }
}

/// Type of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ty {
    /// A tensor.
    Tensor(TensorTy),
    /// A key/value cache; values of this type are linear: each is consumed by at most one update.
    Kv(KvTy),
    /// A recurrent state; linear as caches are.
    Rows(RowsTy),
}

impl Ty {
    /// A tensor of scalars.
    pub fn tensor(elem: impl Into<Elem>, shape: Vec<Dim>) -> Ty {
        Ty::Tensor(TensorTy { elem: elem.into(), shape })
    }

    /// The tensor type, if it is one.
    pub fn as_tensor(&self) -> Option<&TensorTy> {
        match self {
            Ty::Tensor(t) => Some(t),
            Ty::Kv(_) | Ty::Rows(_) => None,
        }
    }

    /// Is it a state, whose values are linear?
    pub fn is_state(&self) -> bool {
        !matches!(self, Ty::Tensor(_))
    }
}

/// A type rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TypeError {
    /// Stable code.
    pub code: &'static str,
    /// Both sides and what was needed.
    pub message: String,
}

/// Kinds of attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttrKind {
    /// Integer.
    Int,
    /// f32, compared by bits.
    Float,
    /// Truth value.
    Bool,
    /// Text.
    Str,
    /// List of integers.
    Ints,
    /// List of f32.
    Floats,
    /// List of dims.
    Shape,
    /// Scalar type.
    DType,
    /// Element type.
    Elem,
}

/// An attribute.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Attr {
    /// Integer.
    Int(i64),
    /// f32 by its bits.
    Float(u32),
    /// Truth value.
    Bool(bool),
    /// Text.
    Str(String),
    /// List of integers.
    Ints(Vec<i64>),
    /// List of f32 by their bits.
    Floats(Vec<u32>),
    /// List of dims.
    Shape(Vec<Dim>),
    /// Scalar type.
    DType(DType),
    /// Element type.
    Elem(Elem),
}

impl Attr {
    /// The kind.
    pub fn kind(&self) -> AttrKind {
        match self {
            Attr::Int(_) => AttrKind::Int,
            Attr::Float(_) => AttrKind::Float,
            Attr::Bool(_) => AttrKind::Bool,
            Attr::Str(_) => AttrKind::Str,
            Attr::Ints(_) => AttrKind::Ints,
            Attr::Floats(_) => AttrKind::Floats,
            Attr::Shape(_) => AttrKind::Shape,
            Attr::DType(_) => AttrKind::DType,
            Attr::Elem(_) => AttrKind::Elem,
        }
    }

    /// An f32 attribute.
    pub fn float(v: f32) -> Attr {
        Attr::Float(v.to_bits())
    }

    /// A list of f32.
    pub fn floats(v: &[f32]) -> Attr {
        Attr::Floats(v.iter().map(|x| x.to_bits()).collect())
    }

    /// The integer, 0 for another kind (the verifier rules that out).
    pub fn as_int(&self) -> i64 {
        if let Attr::Int(v) = self { *v } else { 0 }
    }

    /// The f32, 0 for another kind.
    pub fn as_f32(&self) -> f32 {
        if let Attr::Float(v) = self { f32::from_bits(*v) } else { 0.0 }
    }

    /// The truth value, false for another kind.
    pub fn as_bool(&self) -> bool {
        matches!(self, Attr::Bool(true))
    }

    /// The text, empty for another kind.
    pub fn as_str(&self) -> &str {
        if let Attr::Str(s) = self { s } else { "" }
    }

    /// The f32 list, empty for another kind.
    pub fn as_floats(&self) -> Vec<f32> {
        if let Attr::Floats(v) = self { v.iter().map(|x| f32::from_bits(*x)).collect() } else { vec![] }
    }

    /// The dims, empty for another kind.
    pub fn as_shape(&self) -> &[Dim] {
        if let Attr::Shape(v) = self { v } else { &[] }
    }
}

/// A value of a function, by position in [`Function::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub u32);

/// Where in the user's source a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Loc {
    /// Source file as the compiler names it.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
}

/// A value's type and origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueData {
    /// Its type.
    pub ty: Ty,
    /// Where it comes from, when known.
    pub loc: Option<Loc>,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inst {
    /// The operator.
    pub op: Op,
    /// Operands.
    pub operands: Vec<Value>,
    /// Attributes in table order.
    pub attrs: Vec<Attr>,
    /// Results: one, except for calls.
    pub results: Vec<Value>,
}

/// What a function stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Part of the model.
    Graph,
    /// A group of operations that becomes one kernel.
    Fused,
    /// A kernel given as loop IR: the function has no operations. The kernel's arguments are the planes of the function's
    /// arguments in order, states in place, then those of its results that are tensors. Results that are states are the
    /// states among the arguments, in order.
    Kernel,
}

/// A function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Name, unique in the module.
    pub name: String,
    /// What it stands for.
    pub kind: Kind,
    /// Arguments: name and value.
    pub args: Vec<(String, Value)>,
    /// Operations in dominance order.
    pub insts: Vec<Inst>,
    /// Results: name and value.
    pub results: Vec<(String, Value)>,
    /// Types of values.
    pub values: Vec<ValueData>,
    /// The body, for [`Kind::Kernel`].
    pub kernel: Option<Box<Kernel>>,
}

impl Function {
    /// An empty function.
    pub fn new(name: impl Into<String>, kind: Kind) -> Function {
        Function { name: name.into(), kind, args: vec![], insts: vec![], results: vec![], values: vec![], kernel: None }
    }

    /// The type of a value.
    pub fn ty(&self, v: Value) -> &Ty {
        &self.values[v.0 as usize].ty
    }

    /// A fresh value.
    pub fn value(&mut self, ty: Ty, loc: Option<Loc>) -> Value {
        self.values.push(ValueData { ty, loc });
        Value(self.values.len() as u32 - 1)
    }

    /// For each value the position of the operation that defines it; none for arguments.
    pub fn defs(&self) -> Vec<Option<usize>> {
        let mut defs = vec![None; self.values.len()];
        for (i, inst) in self.insts.iter().enumerate() {
            for r in &inst.results {
                defs[r.0 as usize] = Some(i);
            }
        }
        defs
    }

    /// For each value the number of uses as operand or result.
    pub fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.values.len()];
        let operands = self.insts.iter().flat_map(|i| &i.operands);
        for v in operands.chain(self.results.iter().map(|(_, v)| v)) {
            uses[v.0 as usize] += 1;
        }
        uses
    }
}

/// Declaration of a parameter or state: a name and a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decl {
    /// Name, unique among its kind.
    pub name: String,
    /// Type.
    pub ty: Ty,
}

/// A module: declarations and functions. The last function is the entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// Symbols.
    pub syms: Syms,
    /// Parameters.
    pub params: Vec<Decl>,
    /// States.
    pub states: Vec<Decl>,
    /// Functions, callees before callers.
    pub functions: Vec<Function>,
}

impl Module {
    /// The entry function.
    pub fn entry(&self) -> Option<&Function> {
        self.functions.last()
    }

    /// The function of that name.
    pub fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|f| f.name == name)
    }

    /// The declared type of a `param` or `state`.
    pub fn declared(&self, op: Op, name: &str) -> Option<&Ty> {
        let list = if op == Op::Param { &self.params } else { &self.states };
        list.iter().find(|d| d.name == name).map(|d| &d.ty)
    }
}

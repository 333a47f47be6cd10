//! The loop IR: one kernel is a nest of loops over typed buffers. Every backend consumes scheduled kernels.
//!
//! * Buffers are row-major arrays; an access names one index per axis, a vector access covers consecutive elements of the
//!   last axis.
//! * A kernel with a parallel loop has it as its only top-level statement; the runtime hands out ranges of its iterations.
//! * `Reg` buffers live in registers: their indices are constants once `unroll` loops are expanded, and vector accesses are
//!   aligned to their own width.
//! * Reading an element before it was written yields an unspecified value.

pub mod cost;
mod expr;
pub mod interp;
pub mod legalize;
pub mod micro;
pub mod verify;

pub use expr::{BinOp, Buf, Expr, Node, UnOp, VTy, Var};
pub use micro::{Micro, MicroOp, Routine};

use crate::{DType, Dim};

/// Where a buffer lives and how it may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Argument, only read.
    In,
    /// Argument, written before it is read.
    Out,
    /// Argument, read and updated in place.
    InOut,
    /// Scratch memory private to one iteration of the parallel loop; its shape is constant.
    Local,
    /// Registers; its shape is constant.
    Reg,
}

/// A buffer of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufDecl {
    /// Name in the text IR, unique in the kernel.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extent of each axis; an empty shape is one element.
    pub shape: Vec<Dim>,
    /// Where it lives.
    pub scope: Scope,
}

/// How a loop runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoopKind {
    /// One iteration after the other.
    Serial,
    /// Iterations are independent and distributed over threads. Only at the top level.
    Parallel,
    /// Expanded at compile time; the extent is a constant.
    Unroll,
}

/// Statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stmt {
    /// `for var in 0..extent`.
    For {
        /// The loop variable.
        var: Var,
        /// Number of iterations, an `i64` scalar.
        extent: Expr,
        /// How it runs.
        kind: LoopKind,
        /// The iterations' statements.
        body: Vec<Stmt>,
    },
    /// Binds a value for the statements that follow in the same body.
    Let {
        /// The name bound.
        var: Var,
        /// Its value.
        value: Expr,
    },
    /// Writes the lanes of `value` to consecutive elements of the last axis, starting at `index`.
    Store {
        /// The buffer written.
        buf: Buf,
        /// One index per axis.
        index: Vec<Expr>,
        /// What is written, of the buffer's element type.
        value: Expr,
    },
    /// Runs `then` where the scalar `cond` holds, `other` elsewhere.
    If {
        /// A `bool` scalar.
        cond: Expr,
        /// Statements for true.
        then: Vec<Stmt>,
        /// Statements for false.
        other: Vec<Stmt>,
    },
    /// A tile of work that the target may have a routine for.
    Micro(Micro),
}

/// One kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Name, unique in its program.
    pub name: String,
    /// Arguments (`In`, `Out`, `InOut`) in argument order, then `Local` and `Reg` buffers.
    pub buffers: Vec<BufDecl>,
    /// Names of the variables, by [`Var`] number; need not be unique.
    pub vars: Vec<String>,
    /// The statements.
    pub body: Vec<Stmt>,
    /// What the schedule did, one step a line, for reports.
    pub trace: Vec<String>,
}

impl Kernel {
    /// An empty kernel.
    pub fn new(name: impl Into<String>) -> Kernel {
        Kernel { name: name.into(), buffers: vec![], vars: vec![], body: vec![], trace: vec![] }
    }

    /// Adds a buffer. Arguments are added before `Local` and `Reg` ones.
    pub fn buffer(&mut self, name: &str, dtype: DType, shape: Vec<Dim>, scope: Scope) -> Buf {
        let mut unique = name.to_string();
        let mut i = 1;
        while self.buffers.iter().any(|b| b.name == unique) {
            unique = format!("{name}_{i}");
            i += 1;
        }
        self.buffers.push(BufDecl { name: unique, dtype, shape, scope });
        Buf(self.buffers.len() as u32 - 1)
    }

    /// A fresh variable.
    pub fn fresh(&mut self, name: &str) -> Var {
        self.vars.push(name.to_string());
        Var(self.vars.len() as u32 - 1)
    }

    /// The declaration of a buffer.
    pub fn decl(&self, b: Buf) -> &BufDecl {
        &self.buffers[b.0 as usize]
    }

    /// Scalar load.
    pub fn load(&self, b: Buf, index: Vec<Expr>) -> Expr {
        Expr::new(Node::Load(b, index), self.decl(b).dtype, 1)
    }

    /// Number of leading buffers that are arguments.
    pub fn args(&self) -> usize {
        self.buffers.iter().take_while(|b| !matches!(b.scope, Scope::Local | Scope::Reg)).count()
    }

    /// Extent of the parallel loop, if there is one.
    pub fn parallel_extent(&self) -> Option<&Expr> {
        match self.body.as_slice() {
            [Stmt::For { extent, kind: LoopKind::Parallel, .. }] => Some(extent),
            _ => None,
        }
    }
}

/// A dim as a scalar index expression.
pub fn dim_expr(d: &Dim) -> Expr {
    let mut sum: Option<Expr> = None;
    for (monomial, c) in d.terms() {
        let mut e: Option<Expr> = None;
        for s in monomial {
            let f = Expr::size(*s);
            e = Some(match e {
                Some(e) => e * f,
                None => f,
            });
        }
        let e = match e {
            Some(e) => e * c,
            None => Expr::idx(c),
        };
        sum = Some(match sum {
            Some(s) => s + e,
            None => e,
        });
    }
    sum.unwrap_or_else(|| Expr::idx(0))
}

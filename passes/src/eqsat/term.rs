//! The e-graph language: operators with their operands, then their attributes, as children.

use std::fmt;

use egg::{FromOp, Id, Language};
use marquetry_ir::graph::{Attr, Op};

/// A node. Its printed operator is that of the text IR.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Term {
    /// An operator: operands first, attributes last.
    Op(Op, Vec<Id>),
    /// An attribute.
    Attr(Attr),
    /// A value that comes from outside the region: argument, parameter, state, result of a call.
    Leaf(u32),
}

impl Language for Term {
    type Discriminant = (u8, u32);

    fn discriminant(&self) -> Self::Discriminant {
        match self {
            Term::Op(op, _) => (0, *op as u32),
            Term::Attr(a) => (1, a.kind() as u32),
            Term::Leaf(i) => (2, *i),
        }
    }

    fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (Term::Op(a, x), Term::Op(b, y)) => a == b && x.len() == y.len(),
            (Term::Attr(a), Term::Attr(b)) => a == b,
            (Term::Leaf(a), Term::Leaf(b)) => a == b,
            _ => false,
        }
    }

    fn children(&self) -> &[Id] {
        match self {
            Term::Op(_, c) => c,
            _ => &[],
        }
    }

    fn children_mut(&mut self) -> &mut [Id] {
        match self {
            Term::Op(_, c) => c,
            _ => &mut [],
        }
    }
}

/// The discriminant of an operator.
pub fn tag(op: Op) -> <Term as Language>::Discriminant {
    (0, op as u32)
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Term::Op(op, _) => f.write_str(op.name()),
            Term::Attr(Attr::Int(v)) => write!(f, "{v}"),
            Term::Attr(Attr::Bool(v)) => write!(f, "{v}"),
            Term::Attr(a) => write!(f, "{a:?}"),
            Term::Leaf(i) => write!(f, "%{i}"),
        }
    }
}

/// A word in a pattern that is neither an operator nor a literal.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an operator with that number of operands and attributes, nor an integer or truth value")]
pub struct BadTerm(String);

impl FromOp for Term {
    type Error = BadTerm;

    fn from_op(op: &str, children: Vec<Id>) -> Result<Term, BadTerm> {
        if let Some(o) = Op::find(op) {
            let info = o.info();
            let fixed = info.operands.len() + info.attrs.len();
            if children.len() == fixed || (o.is_variadic() && children.len() > fixed) {
                return Ok(Term::Op(o, children));
            }
        } else if children.is_empty() {
            if let Ok(v) = op.parse() {
                return Ok(Term::Attr(Attr::Int(v)));
            }
            if let Ok(v) = op.parse() {
                return Ok(Term::Attr(Attr::Bool(v)));
            }
        }
        Err(BadTerm(op.to_string()))
    }
}

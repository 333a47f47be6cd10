//! Spellings shared by printer and parser.

use crate::DType;
use crate::loops::{BinOp, Scope, UnOp, VTy};

/// Type of a variable that no statement before has bound.
pub(super) const DEFAULT_VAR: VTy = VTy { dtype: DType::I64, lanes: 1 };

const UNARY: [(UnOp, &str); 12] = [
    (UnOp::Neg, "neg"),
    (UnOp::Abs, "abs"),
    (UnOp::Sqrt, "sqrt"),
    (UnOp::Floor, "floor"),
    (UnOp::Round, "round"),
    (UnOp::Exp, "exp"),
    (UnOp::Log, "log"),
    (UnOp::Sin, "sin"),
    (UnOp::Cos, "cos"),
    (UnOp::Tanh, "tanh"),
    (UnOp::Erf, "erf"),
    (UnOp::Not, "not"),
];

/// Operator, name, and sign with precedence (larger binds tighter) where it is written between its operands.
type Binary = (BinOp, &'static str, Option<(&'static str, u8)>);

const BINARY: [Binary; 15] = [
    (BinOp::Lt, "lt", Some(("<", 1))),
    (BinOp::Le, "le", Some(("<=", 1))),
    (BinOp::Eq, "eq", Some(("==", 1))),
    (BinOp::Or, "or", Some(("|", 2))),
    (BinOp::Xor, "xor", Some(("^", 3))),
    (BinOp::And, "and", Some(("&", 4))),
    (BinOp::Shl, "shl", Some(("<<", 5))),
    (BinOp::Shr, "shr", Some((">>", 5))),
    (BinOp::Add, "add", Some(("+", 6))),
    (BinOp::Sub, "sub", Some(("-", 6))),
    (BinOp::Mul, "mul", Some(("*", 7))),
    (BinOp::Div, "div", Some(("/", 7))),
    (BinOp::Rem, "rem", Some(("%", 7))),
    (BinOp::Min, "min", None),
    (BinOp::Max, "max", None),
];

const SCOPES: [(Scope, &str); 5] =
    [(Scope::In, "in"), (Scope::Out, "out"), (Scope::InOut, "inout"), (Scope::Local, "local"), (Scope::Reg, "reg")];

fn name_of<T: PartialEq + Copy>(table: &[(T, &'static str)], v: T) -> &'static str {
    table.iter().find(|e| e.0 == v).map_or("?", |e| e.1)
}

fn find<T: Copy>(table: &[(T, &'static str)], name: &str) -> Option<T> {
    table.iter().find(|e| e.1 == name).map(|e| e.0)
}

pub(super) fn unary_name(op: UnOp) -> &'static str {
    name_of(&UNARY, op)
}

pub(super) fn find_unary(name: &str) -> Option<UnOp> {
    find(&UNARY, name)
}

pub(super) fn binary_name(op: BinOp) -> &'static str {
    BINARY.iter().find(|e| e.0 == op).map_or("?", |e| e.1)
}

pub(super) fn find_binary(name: &str) -> Option<BinOp> {
    BINARY.iter().find(|e| e.1 == name).map(|e| e.0)
}

/// Everything that is written as a call.
pub(super) fn function_names() -> impl Iterator<Item = &'static str> {
    let unary = UNARY.iter().map(|e| e.1);
    let binary = BINARY.iter().map(|e| e.1);
    unary.chain(binary).chain(["cast", "bitcast", "splat", "ramp", "reduce", "fma", "select", "dot4"])
}

pub(super) fn infix(op: BinOp) -> Option<(&'static str, u8)> {
    BINARY.iter().find(|e| e.0 == op).and_then(|e| e.2)
}

pub(super) fn find_infix(sign: &str) -> Option<(BinOp, u8)> {
    BINARY.iter().find_map(|e| e.2.filter(|i| i.0 == sign).map(|i| (e.0, i.1)))
}

pub(super) fn scope_name(s: Scope) -> &'static str {
    name_of(&SCOPES, s)
}

pub(super) fn find_scope(name: &str) -> Option<Scope> {
    find(&SCOPES, name)
}

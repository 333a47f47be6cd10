//! Left sides of rules: patterns in the spelling of the text IR, and what they stand for.
//!
//! * `?x` matches a value or an attribute, integers and truth values match themselves;
//! * a number with a point, `0.5`, matches the rank-0 constant of that value;
//! * `unary` and `binary` stand for every elementwise operator of one or two operands that keeps the shape; its attributes, if
//!   any, are bound as well;
//! * operands of commutative operators match in both orders.

use std::fmt;

use egg::Pattern;
use marquetry_ir::DType;
use marquetry_ir::graph::{Attr, AttrKind, Class, Op, Ty};

use super::super::term::Term;

/// A pattern that a left side stands for.
pub struct Form {
    /// The pattern.
    pub pattern: Pattern<Term>,
    /// The operator that stands for `unary` or `binary`.
    pub op: Option<Op>,
    /// Variables that must be rank-0 constants, and their values.
    pub constants: Vec<(String, f32)>,
    /// Operators in it; where one is absent from a graph, nothing matches.
    pub ops: Vec<Op>,
}

#[derive(Clone, PartialEq)]
enum Sexp {
    Atom(String),
    List(Vec<Sexp>),
}

impl fmt::Display for Sexp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sexp::Atom(a) => f.write_str(a),
            Sexp::List(items) => {
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i == 0 { '(' } else { ' ' })?;
                }
                f.write_str(")")
            }
        }
    }
}

fn parse(text: &str) -> Option<Sexp> {
    let spaced = text.replace('(', " ( ").replace(')', " ) ");
    let mut stack: Vec<Vec<Sexp>> = vec![vec![]];
    for word in spaced.split_whitespace() {
        match word {
            "(" => stack.push(vec![]),
            ")" => {
                let list = Sexp::List(stack.pop()?);
                stack.last_mut()?.push(list);
            }
            atom => stack.last_mut()?.push(Sexp::Atom(atom.into())),
        }
    }
    let top = stack.pop().filter(|t| stack.is_empty() && t.len() == 1)?;
    top.into_iter().next()
}

/// `max` and `min` do not: they give the second of two zeros, and the second where one is NaN.
fn commutes(op: Op) -> bool {
    matches!(op, Op::Add | Op::Mul | Op::And)
}

/// Every order of the operands of commutative operators.
fn orders(e: &Sexp) -> Vec<Sexp> {
    let Sexp::List(items) = e else { return vec![e.clone()] };
    let mut all: Vec<Vec<Sexp>> = vec![vec![]];
    for item in items {
        let options = orders(item);
        all = all.iter().flat_map(|head| options.iter().map(|o| [head.clone(), vec![o.clone()]].concat())).collect();
    }
    let swaps = matches!(items.as_slice(), [Sexp::Atom(op), a, b] if a != b && Op::find(op).is_some_and(commutes));
    if swaps {
        let swapped: Vec<Vec<Sexp>> = all.iter().map(|l| vec![l[0].clone(), l[2].clone(), l[1].clone()]).collect();
        all.extend(swapped);
    }
    all.into_iter().map(Sexp::List).collect()
}

/// A value that an attribute of that kind can have in every operator of a class word.
fn sample(kind: AttrKind) -> Option<Attr> {
    match kind {
        AttrKind::Bool => Some(Attr::Bool(true)),
        AttrKind::Float => Some(Attr::float(1.0)),
        AttrKind::DType => Some(Attr::DType(DType::F32)),
        _ => None,
    }
}

/// Elementwise operators of that many operands whose result has the shape of the operands.
pub fn members(operands: usize) -> Vec<Op> {
    let keeps_shape = |op: &&Op| {
        let info = op.info();
        if info.class != Class::Elementwise || info.operands.len() != operands {
            return false;
        }
        let Some(attrs) = info.attrs.iter().map(|(_, k)| sample(*k)).collect::<Option<Vec<_>>>() else { return false };
        let ty = Ty::tensor(DType::F32, vec![2.into(), 3.into()]);
        let tys = vec![&ty; operands];
        let result = (info.infer)(&Default::default(), &tys, &attrs);
        result.is_ok_and(|r| r.as_tensor().is_some_and(|t| t.shape == [2.into(), 3.into()]))
    };
    Op::ALL.iter().filter(keeps_shape).copied().collect()
}

/// Puts an operator in place of a class word, with a variable for each attribute.
fn substitute(e: &Sexp, word: &str, op: Op) -> Sexp {
    let Sexp::List(items) = e else { return e.clone() };
    let mut out: Vec<Sexp> = items.iter().map(|i| substitute(i, word, op)).collect();
    if out.first() == Some(&Sexp::Atom(word.into())) {
        out[0] = Sexp::Atom(op.name().into());
        out.extend((0..op.info().attrs.len()).map(|i| Sexp::Atom(format!("?attr{i}"))));
    }
    Sexp::List(out)
}

/// Puts variables in place of numbers with a point.
fn constants(e: &mut Sexp, found: &mut Vec<(String, f32)>) {
    match e {
        Sexp::List(items) => items.iter_mut().for_each(|i| constants(i, found)),
        Sexp::Atom(a) if a.contains('.') && !a.starts_with('?') => {
            let Ok(v) = a.parse::<f32>() else { return };
            *a = format!("?const{}", found.len());
            found.push((a[1..].to_string(), v));
        }
        Sexp::Atom(_) => {}
    }
}

fn ops(e: &Sexp, out: &mut Vec<Op>) {
    let Sexp::List(items) = e else { return };
    if let Some(Sexp::Atom(a)) = items.first() {
        out.extend(Op::find(a).filter(|o| !out.contains(o)));
    }
    items.iter().for_each(|i| ops(i, out));
}

/// The patterns of a left side.
///
/// # Errors
/// Text that is no pattern.
pub fn forms(lhs: &str) -> Result<Vec<Form>, String> {
    let e = parse(lhs).ok_or_else(|| format!("`{lhs}`: parentheses do not pair up"))?;
    let word = [("unary", 1), ("binary", 2)].into_iter().find(|(w, _)| lhs.contains(&format!("({w} ")));
    let variants: Vec<(Option<Op>, Sexp)> = match word {
        Some((word, n)) => members(n).into_iter().map(|op| (Some(op), substitute(&e, word, op))).collect(),
        None => vec![(None, e)],
    };
    let mut all = vec![];
    for (op, e) in variants {
        for mut form in orders(&e) {
            let (mut found, mut used) = (vec![], vec![]);
            constants(&mut form, &mut found);
            ops(&form, &mut used);
            let pattern = form.to_string().parse().map_err(|e| format!("`{form}`: {e}"))?;
            all.push(Form { pattern, op, constants: found, ops: used });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_words_stand_for_operators_that_keep_the_shape() {
        assert!([Op::Neg, Op::Exp, Op::Silu, Op::Gelu, Op::Softcap, Op::Cast].iter().all(|o| members(1).contains(o)));
        assert!([Op::Add, Op::Sub, Op::Div, Op::SwiGlu, Op::GeGlu].iter().all(|o| members(2).contains(o)));
        let other = [Op::RopeTable, Op::RopeApply, Op::Rope, Op::Softmax, Op::And, Op::Gather];
        assert!(other.iter().all(|o| !members(1).contains(o) && !members(2).contains(o)));
    }

    #[test]
    fn commutative_operands_match_in_every_order() {
        let count = |lhs: &str| forms(lhs).unwrap().len();
        assert_eq!(count("(mul ?x ?x)"), 1);
        assert_eq!(count("(sub ?x ?y)"), 1);
        assert_eq!((count("(max ?x 0.0)"), count("(min ?x ?y)")), (1, 1));
        assert_eq!(count("(mul (add ?x ?y) ?z)"), 4);
        let forms = forms("(add (exp ?x) 1.0)").unwrap();
        assert_eq!(forms[0].constants, [("const0".to_string(), 1.0)]);
        assert_eq!(forms[0].ops, [Op::Add, Op::Exp]);
        assert!(super::forms("(add ?x").is_err() && super::forms("(frob ?x)").is_err());
    }
}

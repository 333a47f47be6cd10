//! Facts about e-classes: types by the verifier's own rules, constants, and what depends on weights alone.

use egg::{Analysis, DidMerge, EGraph, Id, Language};
use marquetry_ir::graph::{Attr, Class, Op, Ty};
use marquetry_ir::{DType, Elem, Syms};

use super::term::Term;

/// The e-graph of a region.
pub type Graph = EGraph<Term, Types>;

/// What the analysis knows from outside.
#[derive(Clone, Debug, Default)]
pub struct Types {
    /// Symbols.
    pub syms: Syms,
    /// Type of each leaf, and whether it is a weight.
    pub leaves: Vec<(Ty, bool)>,
    /// The rule whose product is being united.
    pub rule: &'static str,
    /// Set when a rule united classes that can not be equal, and which: the region must not be used.
    pub poisoned: Option<String>,
}

/// Facts of a class.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Type of the value; none for attributes and for nodes that break a type rule.
    pub ty: Option<Ty>,
    /// The attribute.
    pub attr: Option<Attr>,
    /// Depends on weights and constants only.
    pub weight_only: bool,
    /// The rank-0 f32 constant, by bits.
    pub constant: Option<u32>,
    /// No element is below 0.
    pub nonneg: bool,
    /// Every element is a finite number, whatever the inputs are.
    pub finite: bool,
}

impl Facts {
    const NONE: Facts =
        Facts { ty: None, attr: None, weight_only: false, constant: None, nonneg: false, finite: false };
}

/// The constant that an operator over constants gives, as the interpreter computes it.
fn fold(op: Op, x: &[f32]) -> Option<f32> {
    Some(match (op, x) {
        (Op::Neg, [a]) => -a,
        (Op::Add, [a, b]) => a + b,
        (Op::Sub, [a, b]) => a - b,
        (Op::Mul, [a, b]) => a * b,
        (Op::Div, [a, b]) => a / b,
        _ => return None,
    })
}

/// `nonneg` and `finite` of an operation.
fn range(op: Op, attrs: &[Attr], same: bool, x: &[&Facts]) -> (bool, bool) {
    let all = |f: fn(&Facts) -> bool| x.iter().all(|x| f(x));
    let nonneg = match op {
        Op::Exp | Op::Softmax | Op::Iota => true,
        Op::Const => attrs[0].as_f32() >= 0.0,
        Op::Max => x.iter().any(|x| x.nonneg),
        Op::Mul => same || all(|x| x.nonneg),
        Op::Add | Op::Min | Op::Div | Op::ReduceSum | Op::ReduceMax | Op::Concat => all(|x| x.nonneg),
        Op::Select => x[1].nonneg && x[2].nonneg,
        Op::Gather | Op::Cast => x[0].nonneg,
        _ => op.class() == Class::Movement && all(|x| x.nonneg),
    };
    let finite = match op {
        // NaN stays NaN in all of them.
        Op::Tanh | Op::Erf | Op::Sin | Op::Cos => all(|x| x.finite),
        Op::Iota => true,
        Op::Const => attrs[0].as_f32().is_finite(),
        Op::Neg | Op::Max | Op::Min | Op::Softmax | Op::ReduceMax => all(|x| x.finite),
        Op::Select => x[1].finite && x[2].finite,
        Op::Gather => x[0].finite,
        _ => op.class() == Class::Movement && all(|x| x.finite),
    };
    (nonneg, finite)
}

/// Splits children into operands and attributes.
pub fn split(op: Op, children: &[Id]) -> (&[Id], &[Id]) {
    children.split_at(children.len() - op.info().attrs.len())
}

impl Analysis<Term> for Types {
    type Data = Facts;

    fn make(egraph: &mut Graph, node: &Term, _: Id) -> Facts {
        match node {
            Term::Attr(a) => Facts { attr: Some(a.clone()), ..Facts::NONE },
            Term::Leaf(i) => match egraph.analysis.leaves.get(*i as usize) {
                Some((ty, weight)) => Facts {
                    // Integers have no other values.
                    finite: ty.as_tensor().and_then(|t| t.elem.scalar()).is_some_and(|d| !d.is_float()),
                    ty: Some(ty.clone()),
                    weight_only: *weight,
                    ..Facts::NONE
                },
                None => Facts::NONE,
            },
            Term::Op(op, children) => {
                let (operands, attrs) = split(*op, children);
                let facts: Vec<&Facts> = operands.iter().map(|c| &egraph[*c].data).collect();
                let tys: Option<Vec<&Ty>> = facts.iter().map(|f| f.ty.as_ref()).collect();
                let attrs: Option<Vec<Attr>> = attrs.iter().map(|c| egraph[*c].data.attr.clone()).collect();
                let (Some(tys), Some(attrs)) = (tys, attrs) else { return Facts::NONE };
                let ty = (op.info().infer)(&egraph.analysis.syms, &tys, &attrs).ok();
                let weight_only = *op != Op::KvRead && facts.iter().all(|f| f.weight_only);
                let constant = match (op, &attrs[..]) {
                    (Op::Const, [Attr::Float(v), Attr::Shape(s), _]) if s.is_empty() => Some(*v),
                    _ => {
                        let x: Option<Vec<f32>> = facts.iter().map(|f| f.constant.map(f32::from_bits)).collect();
                        let f32s =
                            ty.as_ref().and_then(Ty::as_tensor).is_some_and(|t| t.elem == Elem::Scalar(DType::F32));
                        x.filter(|_| f32s).and_then(|x| fold(*op, &x)).map(f32::to_bits)
                    }
                };
                let same = matches!(operands, [a, b] if egraph.find(*a) == egraph.find(*b));
                let (nonneg, finite) = range(*op, &attrs, same, &facts);
                Facts { ty, weight_only, constant, nonneg, finite, attr: None }
            }
        }
    }

    fn merge(&mut self, a: &mut Facts, b: Facts) -> DidMerge {
        let number = |f: &Facts| f.constant.map(f32::from_bits);
        if a.ty != b.ty {
            let (a, b) = (show(&self.syms, &a.ty), show(&self.syms, &b.ty));
            self.poisoned.get_or_insert(format!("rule `{}`: {a} united with {b}", self.rule));
        } else if let (Some(x), Some(y)) = (number(a), number(&b))
            && x != y
            && !(x.is_nan() && y.is_nan())
        {
            self.poisoned.get_or_insert(format!("rule `{}`: {x} united with {y}", self.rule));
        }
        let before = a.clone();
        a.weight_only |= b.weight_only;
        a.nonneg |= b.nonneg;
        a.finite |= b.finite;
        a.constant = a.constant.or(b.constant);
        a.attr = a.attr.clone().or(b.attr.clone());
        DidMerge(*a != before, *a != b)
    }

    /// A class that is known to be a constant has it as a node.
    fn modify(egraph: &mut Graph, id: Id) {
        let Some(v) = egraph[id].data.constant else { return };
        let f32s =
            egraph[id].data.ty.as_ref().and_then(Ty::as_tensor).is_some_and(|t| t.elem == Elem::Scalar(DType::F32));
        if !f32s || egraph[id].nodes.iter().any(|n| matches!(n, Term::Op(Op::Const, _))) {
            return;
        }
        let attrs = vec![Attr::Float(v), Attr::Shape(vec![]), Attr::DType(DType::F32)];
        if let Some(c) = add(egraph, Op::Const, &[], attrs) {
            egraph.union_trusted(id, c, "constant");
        }
    }
}

fn show(syms: &Syms, ty: &Option<Ty>) -> String {
    ty.as_ref().map_or("nothing".into(), |t| marquetry_ir::graph::print_type(syms, t))
}

/// Adds an operator applied to classes and attributes; none if its type rule does not hold.
pub fn add(g: &mut Graph, op: Op, operands: &[Id], attrs: Vec<Attr>) -> Option<Id> {
    let mut children = operands.to_vec();
    for a in attrs {
        children.push(g.add(Term::Attr(a)));
    }
    let node = Term::Op(op, children);
    let tys: Option<Vec<Ty>> = operands.iter().map(|c| g[*c].data.ty.clone()).collect();
    let tys = tys?;
    let (_, attr_ids) = split(op, node.children());
    let attrs: Option<Vec<Attr>> = attr_ids.iter().map(|c| g[*c].data.attr.clone()).collect();
    (op.info().infer)(&g.analysis.syms, &tys.iter().collect::<Vec<_>>(), &attrs?).ok()?;
    Some(g.add(node))
}

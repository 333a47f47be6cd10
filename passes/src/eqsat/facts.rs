//! Facts about e-classes: types by the verifier's own rules, constants, and what depends on weights alone.

use egg::{Analysis, DidMerge, EGraph, Id, Language};
use marquetry_ir::Syms;
use marquetry_ir::graph::{Attr, Op, Ty};

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
    /// Set when a rule united classes of different types: the region must not be used.
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
}

/// Splits children into operands and attributes.
pub fn split(op: Op, children: &[Id]) -> (&[Id], &[Id]) {
    children.split_at(children.len() - op.info().attrs.len())
}

impl Analysis<Term> for Types {
    type Data = Facts;

    fn make(egraph: &mut Graph, node: &Term, _: Id) -> Facts {
        let none = Facts { ty: None, attr: None, weight_only: false, constant: None };
        match node {
            Term::Attr(a) => Facts { attr: Some(a.clone()), ..none },
            Term::Leaf(i) => match egraph.analysis.leaves.get(*i as usize) {
                Some((ty, weight)) => Facts { ty: Some(ty.clone()), weight_only: *weight, ..none },
                None => none,
            },
            Term::Op(op, children) => {
                let (operands, attrs) = split(*op, children);
                let tys: Option<Vec<&Ty>> = operands.iter().map(|c| egraph[*c].data.ty.as_ref()).collect();
                let attrs: Option<Vec<Attr>> = attrs.iter().map(|c| egraph[*c].data.attr.clone()).collect();
                let (Some(tys), Some(attrs)) = (tys, attrs) else { return none };
                let ty = (op.info().infer)(&egraph.analysis.syms, &tys, &attrs).ok();
                let weight_only = *op != Op::KvRead && operands.iter().all(|c| egraph[*c].data.weight_only);
                let constant = match (op, &attrs[..]) {
                    (Op::Const, [Attr::Float(v), Attr::Shape(s), _]) if s.is_empty() => Some(*v),
                    _ => None,
                };
                Facts { ty, weight_only, constant, ..none }
            }
        }
    }

    fn merge(&mut self, a: &mut Facts, b: Facts) -> DidMerge {
        if a.ty != b.ty {
            self.poisoned = Some(format!("{:?} united with {:?}", a.ty, b.ty));
        }
        let before = a.clone();
        a.weight_only |= b.weight_only;
        a.constant = a.constant.or(b.constant);
        a.attr = a.attr.clone().or(b.attr.clone());
        DidMerge(*a != before, *a != b)
    }
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

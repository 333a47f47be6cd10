//! The rules, as data: one table per kind of rewrite.

mod algebra;
mod attention;
mod dig;
mod fuse;
pub mod horizontal;
mod layout;
mod movement;
mod recognise;
mod rope;
pub mod template;

use std::sync::LazyLock;

use egg::{Id, SearchMatches, Searcher, Subst, Var};
use marquetry_ir::graph::{Attr, Op, TensorTy, Ty};
use marquetry_ir::{DType, Dim, Elem};

use super::cost::Target;
use super::facts::{Facts, Graph, add};
use super::term::{Term, tag};
use crate::Numerics;
use template::Form;

/// How far the right side's numbers may be from the left side's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exact {
    /// Not at all.
    Bitwise,
    /// The order or the number of roundings may differ.
    Reassociates,
    /// Within a bound that the rule states.
    Approximates,
}

/// What a rule's right side is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Any target.
    Nothing,
    /// One with a matrix unit for bf16.
    Matrix,
}

/// When a rule joins in. Rules of earlier phases stay; each phase saturates before the next begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Finds high-level operators in primitives.
    Recognise,
    /// Algebra and movement.
    Simplify,
    /// Fusion and layout.
    Fuse,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Phase; 3] = [Phase::Recognise, Phase::Simplify, Phase::Fuse];
}

/// Builds the right side; none when the guard does not hold.
pub type Build = fn(&mut Graph, &Bound<'_>) -> Option<Id>;

/// A rule.
#[derive(Clone, Copy)]
pub struct Rule {
    /// Name in reports.
    pub name: &'static str,
    /// One line of documentation.
    pub doc: &'static str,
    /// When it runs.
    pub phase: Phase,
    /// What it does to numbers.
    pub exact: Exact,
    /// What a target must have.
    pub needs: Needs,
    /// What is matched, as `template.rs` says.
    pub lhs: &'static str,
    /// The right side as documentation.
    pub rhs: &'static str,
    /// What must hold beyond the pattern, as documentation; empty if nothing.
    pub guard: &'static str,
    /// The right side, and the guard, as code.
    pub build: Build,
}

/// A place where the left side of a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// Class of the left side.
    pub class: Id,
    /// Class of the right side; none where the guard refuses.
    pub product: Option<Id>,
}

impl Rule {
    /// May it run under these numerics, for this target?
    pub fn allowed(&self, numerics: Numerics, target: Target) -> bool {
        let has = match self.needs {
            Needs::Nothing => true,
            Needs::Matrix => target.matrix,
        };
        has && (numerics == Numerics::Fast || self.exact != Exact::Approximates)
    }

    /// Where the left side fits, before the guard is asked. The graph must be rebuilt.
    pub fn search<'f>(&self, g: &Graph, forms: &'f [Form]) -> Vec<Found<'f>> {
        let present = |f: &&Form| f.ops.iter().all(|o| g.classes_for_op(&tag(*o)).is_some());
        forms.iter().filter(present).flat_map(|f| f.pattern.search(g).into_iter().map(move |m| (f, m))).collect()
    }

    /// Builds the right side of each match. Nothing is united.
    pub fn build(&self, g: &mut Graph, found: Vec<Found<'_>>) -> Vec<Match> {
        let mut all = vec![];
        for (form, m) in found {
            for subst in &m.substs {
                let b = Bound { subst, class: m.eclass, op: form.op };
                if form.constants.iter().all(|(name, v)| b.constant(g, name) == Some(*v)) {
                    all.push(Match { class: m.eclass, product: (self.build)(g, &b) });
                }
            }
        }
        all
    }
}

/// A form and a place where it fits.
pub type Found<'f> = (&'f Form, SearchMatches<'f, Term>);

/// What a match bound.
pub struct Bound<'a> {
    subst: &'a Subst,
    /// The class that matched.
    pub class: Id,
    /// The operator that stands for `unary` or `binary`.
    pub op: Option<Op>,
}

impl Bound<'_> {
    /// The class bound to `?name`.
    pub fn id(&self, name: &str) -> Option<Id> {
        let var: Var = format!("?{name}").parse().ok()?;
        self.subst.get(var).copied()
    }

    fn facts<'g>(&self, g: &'g Graph, name: &str) -> Option<&'g Facts> {
        self.id(name).map(|id| &g[id].data)
    }

    fn constant(&self, g: &Graph, name: &str) -> Option<f32> {
        self.facts(g, name)?.constant.map(f32::from_bits)
    }

    fn attr(&self, g: &Graph, name: &str) -> Option<Attr> {
        self.facts(g, name)?.attr.clone()
    }

    fn int(&self, g: &Graph, name: &str) -> Option<i64> {
        match self.attr(g, name)? {
            Attr::Int(v) => Some(v),
            _ => None,
        }
    }

    /// Attributes of the operator that stands for a class word.
    fn attrs(&self, g: &Graph) -> Option<Vec<Attr>> {
        (0..self.op?.info().attrs.len()).map(|i| self.attr(g, &format!("attr{i}"))).collect()
    }

    fn tensor<'g>(&self, g: &'g Graph, name: &str) -> Option<&'g TensorTy> {
        self.facts(g, name)?.ty.as_ref()?.as_tensor()
    }

    fn shape(&self, g: &Graph, name: &str) -> Option<Vec<Dim>> {
        self.tensor(g, name).map(|t| t.shape.clone())
    }

    /// Is it a tensor of f32?
    fn is_f32(&self, g: &Graph, name: &str) -> Option<()> {
        (self.tensor(g, name)?.elem == Elem::Scalar(DType::F32)).then_some(())
    }

    /// The constant extent of the last axis.
    fn columns(&self, g: &Graph, name: &str) -> Option<i64> {
        self.tensor(g, name)?.shape.last()?.as_const()
    }
}

/// The type of a class, if it is a tensor.
fn tensor_of(g: &Graph, id: Id) -> Option<&TensorTy> {
    g[id].data.ty.as_ref().and_then(Ty::as_tensor)
}

/// A rank-0 f32 constant.
fn scalar(g: &mut Graph, v: f32) -> Option<Id> {
    filled(g, v, vec![])
}

/// An f32 constant of that shape.
fn filled(g: &mut Graph, v: f32, shape: Vec<Dim>) -> Option<Id> {
    add(g, Op::Const, &[], vec![Attr::float(v), Attr::Shape(shape), Attr::DType(DType::F32)])
}

macro_rules! needs {
    () => {
        crate::eqsat::rules::Needs::Nothing
    };
    ($needs:ident) => {
        crate::eqsat::rules::Needs::$needs
    };
}
use needs;

macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $name:literal $phase:ident $exact:ident $(on $needs:ident)?: $lhs:literal => $rhs:literal $(if $guard:literal)?,
        $build:expr;)*) => {
        /// The rules of this kind, in rank order.
        pub static TABLE: &[crate::eqsat::rules::Rule] = &[$(crate::eqsat::rules::Rule {
            name: $name,
            doc: concat!($($doc),+),
            phase: crate::eqsat::rules::Phase::$phase,
            exact: crate::eqsat::rules::Exact::$exact,
            needs: crate::eqsat::rules::needs!($($needs)?),
            lhs: $lhs,
            rhs: $rhs,
            guard: concat!($($guard)?),
            build: $build,
        }),*];
    };
}
use rules;

/// Every rule, in rank order.
pub static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    [
        recognise::TABLE,
        rope::TABLE,
        attention::TABLE,
        algebra::TABLE,
        movement::TABLE,
        layout::TABLE,
        fuse::TABLE,
        horizontal::TABLE,
    ]
    .concat()
});

/// The patterns of every rule, in the order of [`RULES`]. A left side that does not parse has none; a test sees to it.
pub static FORMS: LazyLock<Vec<Vec<Form>>> =
    LazyLock::new(|| RULES.iter().map(|r| template::forms(r.lhs).unwrap_or_default()).collect());

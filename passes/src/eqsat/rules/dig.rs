//! Looking below a match: what guards and right sides ask of classes.

use std::collections::HashMap;

use egg::Id;
use marquetry_ir::graph::{Attr, Builder, Function, Kind, Op, TypeError, Value};

use crate::eqsat::facts::{Graph, add, split};
use crate::eqsat::term::Term;

/// Operands and attributes of the nodes of an operator in a class.
pub fn nodes(g: &Graph, id: Id, op: Op) -> Vec<(Vec<Id>, Vec<Attr>)> {
    let of = |n: &Term| match n {
        Term::Op(o, children) if *o == op => {
            let (operands, attrs) = split(op, children);
            let attrs: Option<Vec<Attr>> = attrs.iter().map(|a| g[*a].data.attr.clone()).collect();
            Some((operands.iter().map(|c| g.find(*c)).collect(), attrs?))
        }
        _ => None,
    };
    g[id].nodes.iter().filter_map(of).collect()
}

/// The first operand of the first node of an operator in a class.
pub fn below(g: &Graph, id: Id, op: Op) -> Option<Id> {
    nodes(g, id, op).first().map(|(x, _)| x[0])
}

/// The class below moves that keep the order of elements, or the class itself.
pub fn unshaped(g: &Graph, id: Id) -> Id {
    below(g, id, Op::Reshape).unwrap_or(id)
}

fn constant(g: &Graph, id: Id) -> Option<f32> {
    g[id].data.constant.map(f32::from_bits)
}

/// Is it the mean of `x²` along the last axis, of `k` elements?
pub fn is_mean_square(g: &Graph, m: Id, x: Id, k: i64) -> bool {
    let square = |s: Id| nodes(g, s, Op::Mul).iter().any(|(f, _)| f[0] == g.find(x) && f[1] == g.find(x));
    mean_of(g, m, k).into_iter().any(square)
}

/// Is it the mean of `x` along the last axis, of `k` elements?
pub fn is_mean(g: &Graph, m: Id, x: Id, k: i64) -> bool {
    mean_of(g, m, k).contains(&g.find(x))
}

/// What a class is the mean of: a sum times `1 / k`, or over `k`.
fn mean_of(g: &Graph, m: Id, k: i64) -> Vec<Id> {
    let inverse = |f: &[Id]| match (constant(g, f[0]), constant(g, f[1])) {
        (_, Some(c)) if c == 1.0 / k as f32 => Some(f[0]),
        (Some(c), _) if c == 1.0 / k as f32 => Some(f[1]),
        _ => None,
    };
    let products = nodes(g, m, Op::Mul).into_iter().filter_map(|(f, _)| inverse(&f));
    let quotients = nodes(g, m, Op::Div).into_iter().filter(|(f, _)| constant(g, f[1]) == Some(k as f32));
    let sums: Vec<Id> = products.chain(quotients.map(|(f, _)| f[0])).collect();
    sums.into_iter().filter_map(|s| below(g, s, Op::ReduceSum)).collect()
}

/// Nesting of sums and products that [`polynomial`] looks through.
const DEPTH: usize = 6;

/// Coefficients of `x⁰..x³` of a class that is a polynomial in `x`.
pub fn polynomial(g: &Graph, id: Id, x: Id) -> Option<[f64; 4]> {
    in_powers(g, id, g.find(x), DEPTH)
}

fn in_powers(g: &Graph, id: Id, x: Id, depth: usize) -> Option<[f64; 4]> {
    if g.find(id) == x {
        return Some([0.0, 1.0, 0.0, 0.0]);
    }
    if let Some(c) = constant(g, id) {
        return Some([f64::from(c), 0.0, 0.0, 0.0]);
    }
    let depth = depth.checked_sub(1)?;
    let both = |f: &[Id]| Some((in_powers(g, f[0], x, depth)?, in_powers(g, f[1], x, depth)?));
    let sum = nodes(g, id, Op::Add).iter().find_map(|(f, _)| both(f));
    if let Some((a, b)) = sum {
        return Some(std::array::from_fn(|i| a[i] + b[i]));
    }
    let product = nodes(g, id, Op::Mul).iter().find_map(|(f, _)| both(f)).or_else(|| {
        let by_constant =
            |f: &[Id]| Some((in_powers(g, f[0], x, depth)?, [1.0 / f64::from(constant(g, f[1])?), 0.0, 0.0, 0.0]));
        nodes(g, id, Op::Div).iter().find_map(|(f, _)| by_constant(f))
    });
    let (a, b) = product?;
    let mut out = [0.0; 4];
    for (i, a) in a.iter().enumerate() {
        for (j, b) in b.iter().enumerate() {
            match out.get_mut(i + j) {
                Some(o) => *o += a * b,
                None if a * b != 0.0 => return None,
                None => {}
            }
        }
    }
    Some(out)
}

/// Equal coefficients, up to the rounding of constants.
pub fn near(a: Option<[f64; 4]>, b: [f64; 4]) -> Option<()> {
    let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6 * b.abs().max(1e-3);
    a.filter(|a| a.iter().zip(&b).all(close)).map(|_| ())
}

/// An operator whose expansion is `class`: then the guess of operands and attributes is proved. If it is not, both are put
/// into the graph and united, being equal by definition, and later rounds may still find them equal to `class`.
pub fn define(g: &mut Graph, class: Id, op: Op, operands: &[Id], attrs: Vec<Attr>) -> Option<Id> {
    let whole = add(g, op, operands, attrs.clone())?;
    let parts = expansion(g, op, operands, &attrs)?;
    if g.find(parts) == g.find(class) {
        return Some(whole);
    }
    g.union_trusted(whole, parts, "definition");
    None
}

fn expansion(g: &mut Graph, op: Op, operands: &[Id], attrs: &[Attr]) -> Option<Id> {
    let expand = op.info().expand?;
    built(g, operands, |b, x| expand(b, x, attrs))
}

/// The class of what `build` makes of operands; none where a type rule does not hold.
pub fn built(
    g: &mut Graph,
    operands: &[Id],
    build: impl FnOnce(&mut Builder<'_>, &[Value]) -> Result<Value, TypeError>,
) -> Option<Id> {
    let syms = g.analysis.syms.clone();
    let mut b = Builder::new(&syms, Function::new("built", Kind::Graph));
    let mut ids: HashMap<Value, Id> = HashMap::new();
    for (i, id) in operands.iter().enumerate() {
        let v = b.arg(i.to_string(), g[*id].data.ty.clone()?);
        ids.insert(v, *id);
    }
    let args: Vec<Value> = b.func.args.iter().map(|(_, v)| *v).collect();
    let result = build(&mut b, &args).ok()?;
    for inst in b.func.insts {
        let operands: Option<Vec<Id>> = inst.operands.iter().map(|v| ids.get(v).copied()).collect();
        ids.insert(inst.results[0], add(g, inst.op, &operands?, inst.attrs)?);
    }
    ids.get(&result).copied()
}

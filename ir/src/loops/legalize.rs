//! Replaces transcendental functions by arithmetic, so that backends need none and every backend computes the same bits.

use std::collections::HashMap;

use super::{BinOp, Expr, Kernel, Node, Stmt, UnOp};
use crate::DType;

/// Expands `Exp`, `Log`, `Sin`, `Cos`, `Tanh` and `Erf` of 32-bit floats, for any number of lanes.
///
/// Errors: `exp`, `log`, `tanh`, `erf` about 2 units in the last place; `sin` and `cos` 2e-7 for arguments up to 1e5. `log`
/// takes subnormal numbers for zero.
pub fn legalize(k: &mut Kernel) {
    rewrite_kernel(k, &expand);
}

/// Rewrites every expression of a kernel bottom up, shared operands once. `f` gives what replaces a node, if anything.
pub fn rewrite_kernel(k: &mut Kernel, f: &impl Fn(&Expr) -> Option<Expr>) {
    k.body.iter_mut().for_each(|s| stmt(s, f));
}

fn stmt(s: &mut Stmt, f: &impl Fn(&Expr) -> Option<Expr>) {
    let expr = |e: &mut Expr| *e = rewrite(e, f, &mut HashMap::new());
    match s {
        Stmt::For { extent, body, .. } => {
            expr(extent);
            body.iter_mut().for_each(|s| stmt(s, f));
        }
        Stmt::Let { value, .. } => expr(value),
        Stmt::Store { index, value, .. } => {
            index.iter_mut().for_each(expr);
            expr(value);
        }
        Stmt::If { cond, then, other } => {
            expr(cond);
            then.iter_mut().chain(other).for_each(|s| stmt(s, f));
        }
        Stmt::Micro(m) => {
            m.args.iter_mut().flat_map(|(_, index)| index).chain(&mut m.sizes).for_each(expr);
        }
    }
}

/// Expands one expression.
pub fn expr(e: &Expr) -> Expr {
    rewrite(e, &expand, &mut HashMap::new())
}

fn rewrite(e: &Expr, f: &impl Fn(&Expr) -> Option<Expr>, done: &mut HashMap<usize, Expr>) -> Expr {
    if let Some(d) = done.get(&e.id()) {
        return d.clone();
    }
    let old = e.children();
    let new: Vec<Expr> = old.iter().map(|c| rewrite(c, f, done)).collect();
    let same = old.iter().zip(&new).all(|(a, b)| a.id() == b.id());
    let r = if same { e.clone() } else { e.with_children(new) };
    let r = f(&r).unwrap_or(r);
    done.insert(e.id(), r.clone());
    r
}

fn expand(e: &Expr) -> Option<Expr> {
    let Node::Unary(op, x) = e.node() else { return None };
    if x.dtype() != DType::F32 {
        return None;
    }
    match op {
        UnOp::Exp => Some(exp(x)),
        UnOp::Log => Some(log(x)),
        UnOp::Sin => Some(sin_cos(x, 0)),
        UnOp::Cos => Some(sin_cos(x, 1)),
        UnOp::Tanh => Some(tanh(x)),
        UnOp::Erf => Some(erf(x)),
        _ => None,
    }
}

fn c(v: f32) -> Expr {
    Expr::float(v)
}

fn bits(x: Expr) -> Expr {
    x.bitcast(DType::I32)
}

fn float(x: Expr) -> Expr {
    x.bitcast(DType::F32)
}

/// Polynomial by Horner's rule, highest power first.
fn horner(x: &Expr, coefficients: &[f32]) -> Expr {
    let (first, rest) = coefficients.split_first().expect("a coefficient");
    rest.iter().fold(c(*first), |p, k| p.fma(x.clone(), c(*k)))
}

/// `1.5 * 2^23`: adding it to a small float rounds to an integer, which its low bits then hold.
const ROUND: f32 = 12_582_912.0;

/// Nearest integer of `x * scale`, as a float and as an integer. Both for magnitudes up to 2^22.
fn nearest(x: &Expr, scale: f32) -> (Expr, Expr) {
    let t = x.clone().fma(c(scale), c(ROUND));
    (t.clone() - c(ROUND), bits(t) - i64::from(ROUND.to_bits()))
}

/// NaN stays NaN: both operators give their second operand when it is one.
fn clamp(x: &Expr, lo: f32, hi: f32) -> Expr {
    Expr::binary(BinOp::Max, c(lo), Expr::binary(BinOp::Min, c(hi), x.clone()))
}

fn exp(x: &Expr) -> Expr {
    // The ends give exactly 0 and infinity.
    let x = clamp(x, -104.0, 89.0);
    let (n, i) = nearest(&x, std::f32::consts::LOG2_E);
    let r = n.clone().fma(c(-std::f32::consts::LN_2), x);
    let r = n.fma(c(1.904_654_2e-9), r);
    let p = horner(&r, &[1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5]);
    let p = (r.clone() * r.clone()).fma(p, r) + c(1.0);
    // In two steps, as 2^128 and powers below 2^-126 are no normal numbers.
    let half = i.clone() >> 1;
    let power = |n: Expr| float((n + 127) << 23);
    p * power(half.clone()) * power(i - half)
}

fn log(x: &Expr) -> Expr {
    const ROOT: i64 = 0x3f35_04f3; // sqrt(1/2)
    let i = bits(x.clone()) - ROOT;
    let e = (i.clone() >> 23).cast(DType::F32);
    let f = float((i & 0x007f_ffff) + ROOT) - c(1.0);
    let z = f.clone() * f.clone();
    let p = [
        7.037_684e-2,
        -0.115_146_1,
        0.116_769_98,
        -0.124_201_41,
        0.142_493_23,
        -0.166_680_58,
        0.200_007_15,
        -0.249_999_94,
        0.333_333_3,
    ];
    let y = horner(&f, &p) * f.clone() * z.clone();
    let y = e.clone().fma(c(-2.121_944_4e-4), y);
    let y = z.fma(c(-0.5), y);
    let y = e.fma(c(0.693_359_4), f + y);
    let y = x.clone().lt(c(f32::INFINITY)).select(y, x.clone());
    let y = x.clone().lt(c(f32::MIN_POSITIVE)).select(c(f32::NEG_INFINITY), y);
    x.clone().lt(c(0.0)).select(c(f32::NAN), y)
}

fn sin_cos(x: &Expr, quarter: i64) -> Expr {
    let (n, q) = nearest(x, std::f32::consts::FRAC_2_PI);
    let r = n.clone().fma(c(-std::f32::consts::FRAC_PI_2), x.clone());
    let r = n.clone().fma(c(4.371_139e-8), r);
    let r = n.fma(c(1.715_124_5e-15), r);
    let q = if quarter == 0 { q } else { q + quarter };
    let z = r.clone() * r.clone();
    let sin = horner(&z, &[-1.951_529_6e-4, 8.332_161e-3, -0.166_666_55]);
    let sin = (sin * z.clone()).fma(r.clone(), r);
    let cos = horner(&z, &[2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2, -0.5]);
    let cos = cos.fma(z, c(1.0));
    let odd = Expr::binary(BinOp::Eq, q.clone() & 1, Expr::int(1, DType::I32));
    let sign = (q & 2) << 30;
    float(Expr::binary(BinOp::Xor, bits(odd.select(cos, sin)), sign))
}

/// The magnitude of `a` with the sign of `x`.
fn with_sign(a: Expr, x: &Expr) -> Expr {
    float(Expr::binary(BinOp::Or, bits(a), bits(x.clone()) & i64::from(i32::MIN)))
}

fn tanh(x: &Expr) -> Expr {
    let a = Expr::unary(UnOp::Abs, x.clone());
    let z = x.clone() * x.clone();
    let p = horner(&z, &[-5.704_988_7e-3, 2.063_909e-2, -5.373_971_6e-2, 0.133_314_42, -0.333_332_8]);
    let small = (p * z).fma(x.clone(), x.clone());
    let e = exp(&(a.clone() * c(2.0)));
    let large = c(1.0) - c(2.0) / (e + c(1.0));
    a.lt(c(0.625)).select(small, with_sign(large, x))
}

fn erf(x: &Expr) -> Expr {
    let s = x.clone() * x.clone();
    let small = [-5.967_617e-4, 4.991_194_2e-3, -2.676_813_5e-2, 0.112_819_925, -0.376_125_34, 0.128_379_17];
    let small = horner(&s, &small).fma(x.clone(), x.clone());
    // erf(4) rounds to 1.
    let t = clamp(&Expr::unary(UnOp::Abs, x.clone()), 0.0, 4.0);
    let u = t.clone().fma(c(-3.883_964_4e-3), c(2.425_462_2e-2));
    let r = t.clone().fma(c(-1.728_534_7e-5), c(3.831_971_3e-4));
    let r = r.fma(t.clone() * t.clone(), u);
    let r = [-0.106_777_88, -0.634_846_7, -0.128_717_51].into_iter().fold(r, |r, k| r.fma(t.clone(), c(k)));
    let r = r.fma(t.clone(), c(0.0) - t.clone());
    let large = with_sign(c(1.0) - exp(&r), x);
    t.lt(c(0.927_734_4)).select(small, large)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loops::Var;
    use crate::loops::interp::{self, Scalar};

    fn apply(op: UnOp, xs: &[f32]) -> Vec<f32> {
        let v = Var(0);
        let e = expr(&Expr::unary(op, Expr::new(Node::Var(v), DType::F32, 4)));
        let mut out = Vec::new();
        for c in xs.chunks(4) {
            let lanes = (0..4).map(|i| Scalar::F(*c.get(i).unwrap_or(&0.0))).collect();
            let r = interp::eval_with(&e, &[(v, lanes)]).unwrap();
            out.extend(r.iter().take(c.len()).map(|s| match s {
                Scalar::F(f) => *f,
                Scalar::I(_) => panic!("an integer"),
            }));
        }
        out
    }

    /// Largest error in units in the last place of the result, with an absolute floor.
    fn worst(op: UnOp, f: fn(f64) -> f64, lo: f32, hi: f32, floor: f64) -> (f64, f32) {
        let n = 40_000;
        let xs: Vec<f32> = (0..=n).map(|i| lo + (hi - lo) * (i as f32 / n as f32)).collect();
        let ys = apply(op, &xs);
        let error = |(x, y): (&f32, f32)| {
            let want = f(f64::from(*x));
            let ulp = (want.abs() * f64::from(f32::EPSILON)).max(floor).max(f64::from(f32::MIN_POSITIVE) * 1.2e-7);
            ((f64::from(y) - want).abs() / ulp, *x)
        };
        xs.iter().zip(ys).map(error).fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a })
    }

    #[test]
    fn exp_is_accurate_and_saturates() {
        for (lo, hi) in [(-87.3, 88.7), (-1.0, 1.0), (-20.0, 0.0)] {
            let w = worst(UnOp::Exp, f64::exp, lo, hi, 0.0);
            assert!(w.0 < 1.5, "{w:?}");
        }
        let y = apply(UnOp::Exp, &[f32::NEG_INFINITY, -200.0, 89.0, f32::INFINITY, 0.0, f32::NAN, 88.8, -0.0]);
        assert_eq!(y[..5], [0.0, 0.0, f32::INFINITY, f32::INFINITY, 1.0]);
        assert!(y[5].is_nan());
        assert_eq!(y[6..], [f32::INFINITY, 1.0]);
    }

    #[test]
    fn log_is_accurate() {
        for (lo, hi) in [(1e-30, 1e-28), (0.01, 4.0), (1.0, 1e6), (1e30, 1e38)] {
            let w = worst(UnOp::Log, f64::ln, lo, hi, 6e-8);
            assert!(w.0 < 2.0, "{w:?}");
        }
        let y = apply(UnOp::Log, &[0.0, 1.0, f32::INFINITY, -1.0, f32::NAN]);
        assert_eq!(y[..3], [f32::NEG_INFINITY, 0.0, f32::INFINITY]);
        assert!(y[3].is_nan() && y[4].is_nan());
    }

    #[test]
    fn sin_and_cos_are_accurate() {
        for (lo, hi) in [(-4.0, 4.0), (-300.0, 300.0), (90_000.0, 100_000.0), (-100_000.0, 0.0)] {
            for (op, f) in [(UnOp::Sin, f64::sin as fn(f64) -> f64), (UnOp::Cos, f64::cos)] {
                let w = worst(op, f, lo, hi, 1e-7);
                assert!(w.0 < 2.0, "{op:?} {w:?}");
            }
        }
        assert_eq!(apply(UnOp::Sin, &[0.0, 1e-20]), [0.0, 1e-20]);
    }

    #[test]
    fn tanh_and_erf_are_accurate() {
        for (lo, hi) in [(-10.0, 10.0), (-1.0, 1.0), (-1e-3, 1e-3), (-1e-30, 1e-30), (5.0, 100.0)] {
            for (op, f) in [(UnOp::Tanh, f64::tanh as fn(f64) -> f64), (UnOp::Erf, interp::erf)] {
                let w = worst(op, f, lo, hi, 0.0);
                assert!(w.0 < 2.5, "{op:?} {w:?}");
            }
        }
        let ends = [f32::INFINITY, f32::NEG_INFINITY];
        assert_eq!(apply(UnOp::Tanh, &ends), [1.0, -1.0]);
        assert_eq!(apply(UnOp::Erf, &ends), [1.0, -1.0]);
        assert!(apply(UnOp::Tanh, &[f32::NAN])[0].is_nan());
    }
}

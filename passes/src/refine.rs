//! Results that are products with quantized weights, such as logits, of activations in two parts.
//!
//! Activations of 8 bits err by up to 1/254 of the largest of their group. Errors within a model are averaged by what follows; those of its
//! results are not. So each of their rows becomes two, what 8 bits hold of it and what they leave: `w·x = w·q(x) + w·(x - q(x))`. One pass
//! over the weights serves both, so that a step that is bound by memory takes as long as before.

use std::collections::HashSet;

use marquetry_ir::graph::{
    Attr, Builder, Class, Function, Inst, Module, Op, QUANTIZE_FLOOR, TypeError, Value, rebuild,
};
use marquetry_ir::{DType, Dim, Elem};

/// Numbers that share a scale.
const GROUP: i64 = 32;

/// Takes the activations of results apart.
///
/// # Errors
/// A type rule that does not hold.
pub fn results(m: &Module) -> Result<Module, TypeError> {
    let mut out = m.clone();
    let syms = out.syms.clone();
    let Some(entry) = out.functions.last_mut() else { return Ok(out) };
    let found = products(entry);
    let old = entry.clone();
    *entry = rebuild(&syms, &old, &Clone::clone, &mut |b: &mut Builder<'_>, inst: &Inst, x: &[Value]| {
        if !found.contains(&inst.results[0]) {
            return Ok(None);
        }
        let rows = b.shape(x[0]).remove(0);
        let both = parts(b, x[0])?;
        let y = b.emit(inst.op, &[both, x[1]], inst.attrs.clone())?;
        Ok(Some(vec![sum(b, y, rows)?]))
    })?;
    Ok(out)
}

/// Products of matrices with quantized weights that are results, but for what is done to each number alone.
fn products(f: &Function) -> HashSet<Value> {
    let defs = f.defs();
    let def = |v: Value| defs[v.0 as usize].map(|i| &f.insts[i]);
    let constant = |v: Value| def(v).is_some_and(|i| i.op == Op::Const);
    let mut found = HashSet::new();
    for (_, result) in &f.results {
        let mut v = *result;
        while let Some(inst) = def(v) {
            let mut varying = inst.operands.iter().filter(|v| !constant(**v));
            match (inst.op, varying.next(), varying.next()) {
                (Op::Linear, ..) => {
                    found.extend(fits(f, inst, &def).then_some(v));
                    break;
                }
                (op, Some(x), None) if op.class() == Class::Elementwise && shape(f, *x) == shape(f, v) => v = *x,
                _ => break,
            }
        }
    }
    found
}

fn shape(f: &Function, v: Value) -> Option<&[Dim]> {
    f.ty(v).as_tensor().map(|t| t.shape.as_slice())
}

/// Has a product two axes, whole groups, and a weight of quantized blocks?
fn fits<'f>(f: &'f Function, inst: &Inst, def: &impl Fn(Value) -> Option<&'f Inst>) -> bool {
    let quantized = |v: Value| f.ty(v).as_tensor().is_some_and(|t| matches!(t.elem, Elem::Gguf(_)));
    let weight = def(inst.operands[1]).is_some_and(|i| i.op == Op::Dequant && quantized(i.operands[0]));
    let groups = shape(f, inst.operands[0]).is_some_and(|s| s.len() == 2 && s[1].div_exact(GROUP).is_some());
    weight && groups
}

/// Rows as 8 bits hold them, then what these leave.
fn parts(b: &mut Builder<'_>, x: Value) -> Result<Value, TypeError> {
    let whole = b.shape(x);
    let groups = whole[1].div_exact(GROUP).unwrap_or_default();
    let g = b.reshape(x, vec![whole[0].clone(), groups, GROUP.into()])?;
    let minus = b.un(Op::Neg, g)?;
    let size = b.bin(Op::Max, g, minus)?;
    let max = b.un(Op::ReduceMax, size)?;
    let max = b.with(Op::Max, max, QUANTIZE_FLOOR)?;
    // Conversions truncate: the largest must not fall below 127, from which `quantize` gets the same scale again.
    let most = b.scalar(127.0001)?;
    let inverse = b.bin(Op::Div, most, max)?;
    let mut q = b.bin(Op::Mul, g, inverse)?;
    for dtype in [DType::I32, DType::F32] {
        q = b.emit(Op::Cast, &[q], vec![Attr::DType(dtype)])?;
    }
    let scale = b.with(Op::Mul, max, 1.0 / 127.0)?;
    let held = b.bin(Op::Mul, q, scale)?;
    let left = b.bin(Op::Sub, g, held)?;
    let [held, left] = [b.reshape(held, whole.clone())?, b.reshape(left, whole)?];
    b.concat(&[held, left], 0)
}

/// The first `rows` of a matrix and the others, added.
fn sum(b: &mut Builder<'_>, y: Value, rows: Dim) -> Result<Value, TypeError> {
    let mut shape = b.shape(y);
    shape[0] = rows;
    shape.insert(0, 2.into());
    let y = b.reshape(y, shape)?;
    let [first, second] = [b.slice(y, 0, 0, 1)?, b.slice(y, 0, 1, 1)?];
    let all = b.bin(Op::Add, first, second)?;
    let mut shape = b.shape(all);
    shape.remove(0);
    b.reshape(all, shape)
}

#[cfg(test)]
mod tests {
    use marquetry_ir::graph::parse_module;
    use marquetry_ir::testing::{Numbers, Outcome, Random, gap, inputs_of, run};

    use crate::Numerics;
    use crate::manager::{self, Ir, Options};

    /// A product with few tokens of a vocabulary that is large enough for 8-bit activations to pay.
    fn meaning(refine: bool, passes: &str) -> (Outcome, String) {
        let text = "sym \"n\" in 1..=8\nparam \"w\": gguf.q8_0[4096, 256]\nfunc @f(%0 \"x\": f32[n, 256]) {
            %1 = param {name = \"w\"} : gguf.q8_0[4096, 256]
            %2 = dequant %1 : f32[4096, 256]
            %3 = linear %0, %2 : f32[n, 4096]
            return \"y\" = %3
        }";
        let m = parse_module(text).unwrap();
        let inputs = inputs_of(&m, &[3], &mut Random(7), Numbers::Normal);
        let options = Options { refine, numerics: Numerics::Fast, ..Options::default() };
        let (ir, _) = manager::run(Ir::Graph(m), passes, &options, &mut |_, _| {}).unwrap();
        let Ir::Graph(g) = &ir else { panic!("a program") };
        (run(g, &inputs).unwrap(), manager::print(&ir))
    }

    #[test]
    fn results_of_activations_in_two_parts_are_nearly_exact() {
        let (exact, _) = meaning(false, "refine");
        let (same, _) = meaning(true, "refine");
        assert!(gap(&exact, &same) < 1e-5, "{}", gap(&exact, &same));
        let passes = "refine,canon,outline,eqsat";
        let [(rough, a), (fine, b)] = [meaning(false, passes), meaning(true, passes)];
        assert!(a.contains("qlinear") && b.contains("qlinear"), "{b}");
        let [rough, fine] = [rough, fine].map(|o| gap(&exact, &o));
        assert!(rough > 5e-3 && fine < rough / 50.0, "{rough} {fine}");
    }
}

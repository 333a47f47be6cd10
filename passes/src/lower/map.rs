//! Kernels without reductions: elementwise groups, moves, gathers, and the update of a cache.

use marquetry_ir::graph::{Op, Value};
use marquetry_ir::loops::{Buf, Expr, LoopKind, Stmt, dim_expr};
use marquetry_ir::{DType, Dim};

use super::read::{Cx, Lowered, Planes};

/// Loops over the remaining axes of `v`, storing each element through `put`. A joined tensor becomes one nest per part.
pub fn nest(
    cx: &mut Cx<'_>,
    v: Value,
    prefix: &[Expr],
    offset: &[Dim],
    put: &dyn Fn(&Cx<'_>, Vec<Expr>, Expr) -> Stmt,
) -> Lowered<Vec<Stmt>> {
    if let Some(inst) = cx.def(v).filter(|i| i.op == Op::Concat) {
        let axis = inst.attrs[0].as_int() as usize;
        if axis >= prefix.len() {
            let mut all = vec![];
            let mut shifted = offset.to_vec();
            for part in &inst.operands {
                all.extend(nest(cx, *part, prefix, &shifted, put)?);
                shifted[axis] = shifted[axis].clone() + cx.shape(*part)[axis].clone();
            }
            return Ok(all);
        }
    }
    if let Some((x, to)) = converted(cx, v) {
        return nest(cx, x, prefix, offset, &|cx, at, e| put(cx, at, e.cast(to)));
    }
    let shape = cx.shape(v);
    fn go(
        cx: &mut Cx<'_>,
        v: Value,
        shape: &[Dim],
        idx: Vec<Expr>,
        offset: &[Dim],
        put: &dyn Fn(&Cx<'_>, Vec<Expr>, Expr) -> Stmt,
    ) -> Lowered<Vec<Stmt>> {
        let Some(d) = shape.get(idx.len()) else {
            let value = cx.read(v, &idx)?;
            let at = idx.iter().zip(offset).map(|(i, o)| i.clone() + dim_expr(o)).collect();
            return Ok(vec![put(cx, at, value)]);
        };
        if d.as_const() == Some(1) {
            return go(cx, v, shape, [idx, vec![Expr::idx(0)]].concat(), offset, put);
        }
        let name = ["t", "h", "d", "e", "f"].get(idx.len()).copied().unwrap_or("i");
        let loop_ =
            cx.each(name, d, LoopKind::Serial, |cx, i| go(cx, v, shape, [idx, vec![i]].concat(), offset, put))?;
        Ok(vec![loop_])
    }
    go(cx, v, &shape, prefix.to_vec(), offset, put)
}

/// What a joined tensor's conversion converts, and to what: each part is converted by itself.
fn converted(cx: &Cx<'_>, v: Value) -> Option<(Value, DType)> {
    let inst = cx.def(v).filter(|i| i.op == Op::Cast)?;
    let x = inst.operands[0];
    let joined = cx.def(x).is_some_and(|i| i.op == Op::Concat) || converted(cx, x).is_some();
    let to = cx.f.ty(v).as_tensor().and_then(|t| t.elem.scalar());
    to.filter(|_| joined).map(|to| (x, to))
}

/// Runs `body` for each index of the leading axis: in parallel when there may be more than one.
pub fn leading(
    cx: &mut Cx<'_>,
    extent: &Dim,
    body: impl FnOnce(&mut Cx<'_>, Expr) -> Lowered<Vec<Stmt>>,
) -> Lowered<Vec<Stmt>> {
    if extent.as_const() == Some(1) {
        return body(cx, Expr::idx(0));
    }
    let var = cx.k.fresh("t");
    cx.ranges.declare(var, cx.syms.range(extent).1);
    let body = body(cx, Expr::var(var))?;
    Ok(vec![Stmt::For { var, extent: dim_expr(extent), kind: LoopKind::Parallel, body }])
}

/// One nest for the single result.
pub fn elementwise(cx: &mut Cx<'_>, result: Value, out: Buf) -> Lowered<()> {
    let shape = cx.shape(result);
    let put = move |cx: &Cx<'_>, at: Vec<Expr>, e: Expr| cx.store(out, at, e);
    cx.k.body = match shape.split_first() {
        None => {
            let e = cx.read(result, &[])?;
            vec![cx.store(out, vec![], e)]
        }
        Some((first, _)) => {
            leading(cx, first, |cx, t| nest(cx, result, &[t], &vec![Dim::default(); shape.len()], &put))?
        }
    };
    Ok(())
}

/// Stores rows of keys and values at their slots.
pub fn append(cx: &mut Cx<'_>, operands: &[Value]) -> Lowered<()> {
    let [state, keys, values, slot] = operands else { return Err("`kv_append` takes four operands".into()) };
    let Some(Planes::Kv(caches)) = cx.planes.get(state).cloned() else { return Err("the cache is no argument".into()) };
    let shape = cx.shape(*keys);
    cx.k.body = leading(cx, &shape[0], |cx, t| {
        let row = cx.read(*slot, std::slice::from_ref(&t))?.cast(DType::I64);
        let (bind, row) = cx.bind("slot", row);
        let mut all = vec![bind];
        for (cache, v) in caches.iter().zip([keys, values]) {
            let (cache, row) = (*cache, row.clone());
            let put = move |cx: &Cx<'_>, at: Vec<Expr>, e: Expr| {
                let e = e.cast(cx.k.decl(cache).dtype);
                cx.store(cache, [vec![row.clone()], at[1..].to_vec()].concat(), e)
            };
            all.extend(nest(cx, *v, std::slice::from_ref(&t), &vec![Dim::default(); 3], &put)?);
        }
        Ok(all)
    })?;
    Ok(())
}

//! Construction of functions: every operation is typed by its rule when it is added.

use super::{Attr, Function, Inst, Loc, Op, Ty, TypeError, Value};
use crate::{DType, Dim, Syms};

/// Adds operations to a function.
pub struct Builder<'s> {
    syms: &'s Syms,
    /// The function under construction.
    pub func: Function,
    /// Origin of the operations that follow.
    pub loc: Option<Loc>,
}

/// Result of adding one operation.
pub type Built = Result<Value, TypeError>;

impl<'s> Builder<'s> {
    /// Continues `func`.
    pub fn new(syms: &'s Syms, func: Function) -> Builder<'s> {
        Builder { syms, func, loc: None }
    }

    /// The symbols that types refer to.
    pub fn syms(&self) -> &'s Syms {
        self.syms
    }

    /// Adds an argument.
    pub fn arg(&mut self, name: impl Into<String>, ty: Ty) -> Value {
        let v = self.func.value(ty, self.loc.clone());
        self.func.args.push((name.into(), v));
        v
    }

    /// Adds an operation with one result, typed by its rule.
    pub fn emit(&mut self, op: Op, operands: &[Value], attrs: Vec<Attr>) -> Built {
        let info = op.info();
        let arity = if op.is_variadic() { operands.len().max(info.operands.len()) } else { info.operands.len() };
        if operands.len() != arity || attrs.len() != info.attrs.len() {
            let (a, b) = (operands.len(), attrs.len());
            return Err(TypeError {
                code: "E0214",
                message: format!("`{}` with {a} operands, {b} attributes", op.name()),
            });
        }
        if let Some((i, (name, kind))) = info.attrs.iter().enumerate().find(|(i, (_, k))| attrs[*i].kind() != *k) {
            let got = attrs[i].kind();
            return Err(TypeError {
                code: "E0206",
                message: format!("attribute `{name}` must be {kind:?}, is {got:?}"),
            });
        }
        let tys: Vec<&Ty> = operands.iter().map(|v| self.func.ty(*v)).collect();
        let ty = (info.infer)(self.syms, &tys, &attrs)?;
        Ok(self.push(op, operands.to_vec(), attrs, vec![ty])[0])
    }

    /// Adds an operation whose types are declared elsewhere: `param`, `state`, `call`.
    pub fn push(&mut self, op: Op, operands: Vec<Value>, attrs: Vec<Attr>, tys: Vec<Ty>) -> Vec<Value> {
        let loc = self.loc.clone();
        let results: Vec<Value> = tys.into_iter().map(|t| self.func.value(t, loc.clone())).collect();
        self.func.insts.push(Inst { op, operands, attrs, results: results.clone() });
        results
    }

    /// Adds a `param` or `state`.
    pub fn declared(&mut self, op: Op, name: &str, ty: Ty) -> Value {
        self.push(op, vec![], vec![Attr::Str(name.into())], vec![ty])[0]
    }

    /// One operand, no attributes.
    pub fn un(&mut self, op: Op, x: Value) -> Built {
        self.emit(op, &[x], vec![])
    }

    /// Two operands, no attributes.
    pub fn bin(&mut self, op: Op, a: Value, b: Value) -> Built {
        self.emit(op, &[a, b], vec![])
    }

    /// A rank-0 f32 constant.
    pub fn scalar(&mut self, v: f32) -> Built {
        self.emit(Op::Const, &[], vec![Attr::float(v), Attr::Shape(vec![]), Attr::DType(DType::F32)])
    }

    /// `op(x, v)` with a rank-0 constant.
    pub fn with(&mut self, op: Op, x: Value, v: f32) -> Built {
        let c = self.scalar(v)?;
        self.bin(op, x, c)
    }

    /// The same elements under another shape.
    pub fn reshape(&mut self, x: Value, shape: Vec<Dim>) -> Built {
        self.emit(Op::Reshape, &[x], vec![Attr::Shape(shape)])
    }

    /// `len` elements from `start` along `axis`.
    pub fn slice(&mut self, x: Value, axis: usize, start: usize, len: usize) -> Built {
        let attrs = [axis, start, len].map(|v| Attr::Int(v as i64)).to_vec();
        self.emit(Op::Slice, &[x], attrs)
    }

    /// Joins along `axis`.
    pub fn concat(&mut self, xs: &[Value], axis: usize) -> Built {
        self.emit(Op::Concat, xs, vec![Attr::Int(axis as i64)])
    }

    /// The shape of a tensor; empty for a state.
    pub fn shape(&self, v: Value) -> Vec<Dim> {
        self.func.ty(v).as_tensor().map(|t| t.shape.clone()).unwrap_or_default()
    }
}

/// What [`rebuild`] asks about each operation and its new operands.
pub type Replace<'f, 's> =
    &'f mut dyn FnMut(&mut Builder<'s>, &Inst, &[Value]) -> Result<Option<Vec<Value>>, TypeError>;

/// Copies a function operation by operation. `f` may add other operations and return what replaces the results; where it
/// returns none the operation is copied and typed anew (declared types are kept).
pub fn rebuild<'s>(
    syms: &'s Syms,
    func: &Function,
    retype: &dyn Fn(&Ty) -> Ty,
    f: Replace<'_, 's>,
) -> Result<Function, TypeError> {
    if func.kernel.is_some() {
        let mut same = func.clone();
        same.values.iter_mut().for_each(|v| v.ty = retype(&v.ty));
        return Ok(same);
    }
    let mut b = Builder::new(syms, Function::new(func.name.clone(), func.kind));
    let mut map: Vec<Option<Value>> = vec![None; func.values.len()];
    for (name, v) in &func.args {
        b.loc = func.values[v.0 as usize].loc.clone();
        map[v.0 as usize] = Some(b.arg(name.clone(), retype(func.ty(*v))));
    }
    let get = |map: &[Option<Value>], v: &Value| {
        map[v.0 as usize]
            .ok_or_else(|| TypeError { code: "E0215", message: format!("%{} is used before it is defined", v.0) })
    };
    for inst in &func.insts {
        let operands = inst.operands.iter().map(|v| get(&map, v)).collect::<Result<Vec<_>, _>>()?;
        b.loc = inst.results.first().and_then(|r| func.values[r.0 as usize].loc.clone());
        let new = match f(&mut b, inst, &operands)? {
            Some(values) => values,
            None if matches!(inst.op, Op::Param | Op::State | Op::Call) => {
                let tys = inst.results.iter().map(|r| retype(func.ty(*r))).collect();
                b.push(inst.op, operands, inst.attrs.clone(), tys)
            }
            None => vec![b.emit(inst.op, &operands, inst.attrs.clone())?],
        };
        for (r, v) in inst.results.iter().zip(new) {
            map[r.0 as usize] = Some(v);
        }
    }
    for (name, v) in &func.results {
        let v = get(&map, v)?;
        b.func.results.push((name.clone(), v));
    }
    Ok(b.func)
}

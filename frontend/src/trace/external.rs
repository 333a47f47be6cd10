//! Operators of the user's own, given as loop IR, and the recurrent states that they may keep.

use std::cell::RefCell;
use std::panic::Location;

use marquetry_ir::graph::{Attr, Decl, Function, Kind, Op, RowsTy, Ty, Value};
use marquetry_ir::loops::{Kernel, Scope};
use marquetry_ir::text::parse_kernel;
use marquetry_ir::{DType, Dim};

use super::{Diagnostic, Step, Tensor, Tracer};

/// A state of one record per sequence and layer, f32. Updates are values underneath; the object keeps the newest of each layer.
pub struct Recurrent<'t> {
    cx: &'t Tracer,
    row: Tensor<'t>,
    layers: RefCell<Vec<Option<Value>>>,
}

impl<'t> Step<'t> {
    /// A recurrent state for each of `layers` layers: a record of `shape` per sequence, which belongs to the row that
    /// [`Recurrent::row`] gives. What a row holds when a sequence begins is left over from another: kernels must not use it at
    /// position 0.
    #[track_caller]
    pub fn recurrent(&self, name: &str, layers: usize, shape: &[usize]) -> Recurrent<'t> {
        let cx = self.tokens.tracer();
        let at = Location::caller();
        let rows = cx.dim("q", 1..=i64::try_from(self.sequences.max(1)).unwrap_or(i64::MAX));
        let ty = Ty::Rows(RowsTy { rows, shape: shape.to_vec(), dtype: DType::F32 });
        let states = (0..layers).map(|i| {
            let name = format!("{name}.{i}");
            cx.states.borrow_mut().push(Decl { name: name.clone(), ty: ty.clone() });
            Some(cx.with(at, |b| b.declared(Op::State, &name, ty.clone())))
        });
        let layers = RefCell::new(states.collect());
        Recurrent { cx, row: self.per_token("row", DType::I32), layers }
    }
}

impl<'t> Recurrent<'t> {
    /// Row of the state that each token's sequence has, i32 `[n]`.
    pub fn row(&self) -> Tensor<'t> {
        self.row
    }

    /// Applies a kernel, whose first argument is the state of a layer, in place; see [`Tracer::external`].
    #[track_caller]
    pub fn update(&self, layer: usize, kernel: &str, operands: &[Tensor<'t>]) -> Vec<Tensor<'t>> {
        let at = Location::caller();
        let mut layers = self.layers.borrow_mut();
        let count = layers.len();
        let Some(state) = layers.get_mut(layer) else {
            let message = format!("layer {layer} of a state with {count} layers");
            self.cx.problem(Diagnostic::new("E0221", "update", message, at, vec![]));
            return vec![];
        };
        let operands: Vec<Option<Value>> = [*state].into_iter().chain(operands.iter().map(|t| t.value())).collect();
        let (states, tensors) = self.cx.call_kernel(kernel, &operands, at);
        *state = states.first().copied().flatten();
        tensors
    }
}

impl Tracer {
    /// An operator of your own: a kernel in the text form of the loop IR. Its `in` buffers take the operands in order, its `out`
    /// buffers are the results; extents may name sizes of the model, such as `n`.
    #[track_caller]
    pub fn external<'t>(&'t self, kernel: &str, operands: &[Tensor<'t>]) -> Vec<Tensor<'t>> {
        let operands: Vec<Option<Value>> = operands.iter().map(|t| t.value()).collect();
        self.call_kernel(kernel, &operands, Location::caller()).1
    }

    /// Results that are states, and those that are tensors. A mistake gives as many poisoned ones.
    fn call_kernel(
        &self,
        text: &str,
        operands: &[Option<Value>],
        at: &Location<'_>,
    ) -> (Vec<Option<Value>>, Vec<Tensor<'_>>) {
        let refuse = |message: String| self.problem(Diagnostic::new("E0224", "external", message, at, vec![]));
        let kernel = match parse_kernel(text, &self.syms.borrow()) {
            Ok(k) => k,
            Err(e) => {
                refuse(format!("the kernel can not be read: {}", e.render("kernel", text)));
                return (vec![], vec![]);
            }
        };
        let results = kernel.buffers.iter().filter(|b| b.scope == Scope::Out).count();
        let poisoned = || (vec![], (0..results).map(|_| Tensor::new(self, None)).collect());
        let Some(values) = operands.iter().copied().collect::<Option<Vec<Value>>>() else { return poisoned() };
        let f = function(kernel, &values, &self.func.borrow());
        let errors = {
            let one = marquetry_ir::graph::Module {
                syms: self.syms.borrow().clone(),
                functions: vec![f.clone()],
                ..Default::default()
            };
            marquetry_ir::graph::verify(&one)
        };
        if !errors.is_empty() {
            refuse(errors.join("\n"));
            return poisoned();
        }
        let mut known = self.externals.borrow_mut();
        match known.iter().find(|k| k.name == f.name) {
            Some(k) if *k == f => {}
            Some(_) => {
                refuse(format!("two different kernels are called @{}", f.name));
                return poisoned();
            }
            None => known.push(f.clone()),
        }
        let tys = f.results.iter().map(|(_, v)| f.ty(*v).clone()).collect();
        let new = self.with(at, |b| b.push(Op::Call, values, vec![Attr::Str(f.name.clone())], tys));
        let (states, tensors): (Vec<_>, Vec<_>) =
            new.into_iter().zip(&f.results).partition(|(_, (_, v))| f.ty(*v).is_state());
        let tensor = |(v, _): (Value, _)| Tensor::new(self, Some(v));
        (states.into_iter().map(|(v, _)| Some(v)).collect(), tensors.into_iter().map(tensor).collect())
    }
}

/// The function that a kernel is, over operands of these types.
fn function(kernel: Kernel, operands: &[Value], caller: &Function) -> Function {
    let mut f = Function::new(kernel.name.clone(), Kind::Kernel);
    for (i, v) in operands.iter().enumerate() {
        let name = kernel.buffers.get(i).map_or(format!("x{i}"), |b| b.name.clone());
        let v = f.value(caller.ty(*v).clone(), None);
        f.args.push((name, v));
    }
    let states: Vec<(String, Ty)> =
        f.args.iter().map(|(n, v)| (n.clone(), f.ty(*v).clone())).filter(|(_, t)| t.is_state()).collect();
    let outs = kernel.buffers.iter().filter(|b| b.scope == Scope::Out);
    let outs: Vec<(String, Vec<Dim>, DType)> = outs.map(|b| (b.name.clone(), b.shape.clone(), b.dtype)).collect();
    for (name, ty) in states.into_iter().chain(outs.into_iter().map(|(n, s, d)| (n, Ty::tensor(d, s)))) {
        let v = f.value(ty, None);
        f.results.push((name, v));
    }
    f.kernel = Some(Box::new(kernel));
    f
}

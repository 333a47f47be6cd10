//! Tracing: a model is plain Rust over [`Tensor`] handles, and running it records a graph.
//!
//! Operations return no `Result`. A mistake is recorded with the place of the user's call and yields a poisoned tensor;
//! operations on poisoned tensors stay silent, so one mistake gives one message. [`trace`] returns all of them.

mod diagnostic;
mod external;
mod step;
mod tensor;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::panic::Location;

use marquetry_ir::graph::{
    Attr, Builder, Decl, Function, Kind, KvTy, Loc, Module as IrModule, Op, Ty, TypeError, Value,
};
use marquetry_ir::{DType, Dim, Syms};

pub use diagnostic::{Diagnostic, Diagnostics};
pub use external::Recurrent;
pub use step::{Cached, KvCache, Limits, Step};
pub use tensor::{Attend, Tensor};

use crate::module::{Module, Param};

/// Records a graph. Everything handed out borrows it.
pub struct Tracer {
    syms: RefCell<Syms>,
    params: RefCell<Vec<Decl>>,
    states: RefCell<Vec<Decl>>,
    func: RefCell<Function>,
    names: HashMap<u64, String>,
    loaded: RefCell<HashMap<u64, Option<Value>>>,
    problems: RefCell<Vec<Diagnostic>>,
    layers: Cell<usize>,
    /// Functions that the user gave as kernels.
    externals: RefCell<Vec<Function>>,
}

/// Traces `f` over the parameters of `model`.
///
/// # Errors
/// Every mistake found, with source places.
pub fn trace(name: &str, model: &impl Module, f: impl FnOnce(&Tracer)) -> Result<IrModule, Diagnostics> {
    let mut names = HashMap::new();
    model.visit("", &mut |path, p| {
        names.entry(p.id()).or_insert_with(|| path.to_string());
    });
    let cx = Tracer {
        syms: RefCell::default(),
        params: RefCell::default(),
        states: RefCell::default(),
        func: RefCell::new(Function::new(name, Kind::Graph)),
        names,
        loaded: RefCell::default(),
        problems: RefCell::default(),
        layers: Cell::new(0),
        externals: RefCell::default(),
    };
    f(&cx);
    let problems = cx.problems.into_inner();
    if !problems.is_empty() {
        return Err(Diagnostics(problems));
    }
    Ok(IrModule {
        syms: cx.syms.into_inner(),
        params: cx.params.into_inner(),
        states: cx.states.into_inner(),
        functions: [cx.externals.into_inner(), vec![cx.func.into_inner()]].concat(),
    })
}

/// Symbols and constants in one list: `dims![n, 3, 2 * k]`.
#[macro_export]
macro_rules! dims {
    ($($d:expr),* $(,)?) => { vec![$($crate::Dim::from($d.clone())),*] };
}

impl Tracer {
    /// A symbolic size within bounds. A name stands for one size: declared again, the bounds must be the same.
    #[track_caller]
    pub fn dim(&self, name: &str, bounds: std::ops::RangeInclusive<i64>) -> Dim {
        let other = self.syms.borrow().0.iter().find(|d| d.name == name).map(|d| (d.lo, d.hi));
        if let Some((lo, hi)) = other.filter(|(lo, hi)| (lo, hi) != (bounds.start(), bounds.end())) {
            let message =
                format!("size `{name}` was declared in {lo}..={hi}, now in {}..={}", bounds.start(), bounds.end());
            self.problem(Diagnostic::new("E0222", "dim", message, Location::caller(), vec![]));
        }
        self.syms.borrow_mut().declare(name, *bounds.start(), *bounds.end(), 1).into()
    }

    /// An input of the function. A name stands for one input: declared again, the type must be the same.
    #[track_caller]
    pub fn input(&self, name: &str, shape: Vec<Dim>, dtype: DType) -> Tensor<'_> {
        let at = Location::caller();
        let declared = self.func.borrow().args.iter().find(|(n, _)| n.as_str() == name).map(|(_, v)| *v);
        if let Some(v) = declared {
            if *self.func.borrow().ty(v) != Ty::tensor(dtype, shape) {
                let message = format!("input `{name}` was declared with another type");
                self.problem(Diagnostic::new("E0223", "input", message, at, vec![]));
            }
            return Tensor::new(self, Some(v));
        }
        let value = self.with(at, |b| b.arg(name, Ty::tensor(dtype, shape)));
        Tensor::new(self, Some(value))
    }

    /// An output of the function. A poisoned tensor is passed over: its mistake is already known.
    pub fn output(&self, name: &str, t: Tensor<'_>) {
        if let Some(v) = t.value() {
            self.func.borrow_mut().results.push((name.into(), v));
        }
    }

    /// The tensor of a parameter; the same for every use.
    #[track_caller]
    pub fn param(&self, p: &Param) -> Tensor<'_> {
        if let Some(v) = self.loaded.borrow().get(&p.id()) {
            return Tensor::new(self, *v);
        }
        let at = Location::caller();
        let value = match self.names.get(&p.id()) {
            Some(name) => {
                let ty = Ty::tensor(DType::F32, p.shape().iter().map(|&d| d.into()).collect());
                self.params.borrow_mut().push(Decl { name: name.clone(), ty: ty.clone() });
                Some(self.with(at, |b| b.declared(Op::Param, name, ty)))
            }
            None => {
                let message = format!("a parameter of shape {:?} is not part of the traced module", p.shape());
                self.problem(Diagnostic::new("E0220", "param", message, at, vec![]));
                None
            }
        };
        self.loaded.borrow_mut().insert(p.id(), value);
        Tensor::new(self, value)
    }

    /// Key/value caches for `layers` layers over the slots of `step`. A layer that is never updated has none.
    #[track_caller]
    pub fn kv_cache<'t>(&'t self, step: &Step<'t>, layers: usize, heads: usize, dim: usize) -> KvCache<'t> {
        let ty = KvTy { slots: step.slots.clone(), heads, dim, dtype: DType::F32 };
        let first = self.layers.replace(self.layers.get() + layers);
        KvCache::new(step.clone(), ty, first, layers)
    }

    /// The first version of a layer's cache.
    fn kv_state(&self, layer: usize, ty: &KvTy, at: &Location<'_>) -> Value {
        let (name, ty) = (format!("kv.{layer}"), Ty::Kv(ty.clone()));
        self.states.borrow_mut().push(Decl { name: name.clone(), ty: ty.clone() });
        self.with(at, |b| b.declared(Op::State, &name, ty))
    }

    fn problem(&self, d: Diagnostic) {
        self.problems.borrow_mut().push(d);
    }

    /// Runs `f` on the function under construction.
    fn with<R>(&self, at: &Location<'_>, f: impl FnOnce(&mut Builder<'_>) -> R) -> R {
        let syms = self.syms.borrow();
        let mut func = self.func.borrow_mut();
        let taken = std::mem::replace(&mut *func, Function::new("", Kind::Graph));
        let mut b = Builder::new(&syms, taken);
        b.loc = Some(Loc { file: at.file().into(), line: at.line() });
        let r = f(&mut b);
        *func = b.func;
        r
    }

    /// Adds an operation; a failed type rule becomes a diagnostic, a poisoned operand a poisoned result.
    fn emit(&self, at: &Location<'_>, op: Op, operands: &[Option<Value>], attrs: Vec<Attr>) -> Option<Value> {
        let values = operands.iter().copied().collect::<Option<Vec<_>>>()?;
        match self.with(at, |b| b.emit(op, &values, attrs)) {
            Ok(v) => Some(v),
            Err(TypeError { code, message }) => {
                let notes = values.iter().zip(op.info().operands).map(|(v, name)| self.describe(name, *v)).collect();
                self.problem(Diagnostic::new(code, op.name(), message, at, notes));
                None
            }
        }
    }

    fn describe(&self, name: &str, v: Value) -> String {
        let func = self.func.borrow();
        let syms = self.syms.borrow();
        let data = &func.values[v.0 as usize];
        let ty = match &data.ty {
            Ty::Tensor(t) => {
                let dims: Vec<String> = t.shape.iter().map(|d| syms.show(d)).collect();
                format!("{}[{}]", t.elem, dims.join(", "))
            }
            Ty::Rows(_) => format!("a recurrent state {}", marquetry_ir::graph::print_type(&syms, &data.ty)),
            Ty::Kv(k) => format!("a cache of {} heads of {}", k.heads, k.dim),
        };
        let def = func.insts.iter().find(|i| i.results.contains(&v));
        let from = match (def, &data.loc) {
            (Some(i), _) if i.op == Op::Param => format!(", parameter `{}`", i.attrs[0].as_str()),
            (Some(i), Some(l)) => format!(", from `{}` at {}:{}", i.op.name(), l.file, l.line),
            (None, Some(l)) => format!(", an input at {}:{}", l.file, l.line),
            _ => String::new(),
        };
        format!("{name} is {ty}{from}")
    }
}

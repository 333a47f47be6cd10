//! Modules: plain structs whose parameters are named by their field paths.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::weights::Stored;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// A parameter: a shape and an identity. Its numbers come from the weight file, its storage type too.
#[derive(Debug)]
pub struct Param {
    id: u64,
    shape: Vec<usize>,
    stored: Option<Stored>,
}

impl Param {
    /// A parameter of that shape.
    pub fn new(shape: &[usize]) -> Param {
        Param { id: NEXT.fetch_add(1, Ordering::Relaxed), shape: shape.to_vec(), stored: None }
    }

    /// Declares how files store it, where that is not under its own name as it is.
    pub fn stored(mut self, stored: Stored) -> Param {
        self.stored = Some(stored);
        self
    }

    /// How files store it; none if under its own name as it is.
    pub fn how_stored(&self) -> Option<&Stored> {
        self.stored.as_ref()
    }

    /// Unique in the process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
}

/// Something with parameters. Derive it: `#[derive(Module)]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no parameters",
    label = "not a module",
    note = "mark a field that holds no parameters with `#[module(skip)]`; derive `Module` for parts of your own"
)]
pub trait Module {
    /// Calls `f` with the path and parameter of each, in declaration order. Tied parameters come more than once; the first
    /// path is their name.
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Param));
}

/// `path.name`, or `name` at the root.
pub fn join(path: &str, name: &str) -> String {
    match (path.is_empty(), name.is_empty()) {
        (true, _) => name.to_string(),
        (_, true) => path.to_string(),
        _ => format!("{path}.{name}"),
    }
}

impl<M: Module + ?Sized> Module for Box<M> {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Param)) {
        (**self).visit(path, f);
    }
}

impl Module for Param {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Param)) {
        f(path, self);
    }
}

impl<M: Module> Module for Vec<M> {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Param)) {
        for (i, m) in self.iter().enumerate() {
            m.visit(&join(path, &i.to_string()), f);
        }
    }
}

impl<M: Module> Module for Option<M> {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Param)) {
        if let Some(m) = self {
            m.visit(path, f);
        }
    }
}

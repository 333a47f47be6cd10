//! The ragged step: tokens of any number of sequences, each with its place, over a paged key/value cache.

use std::cell::RefCell;
use std::panic::Location;

use marquetry_ir::graph::{KvTy, Op, Value};
use marquetry_ir::{DType, Dim};

use super::{Diagnostic, Tensor, Tracer};

/// Largest sizes a step is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens in one step.
    pub tokens: usize,
    /// Sequences in one step.
    pub sequences: usize,
    /// Positions of one sequence.
    pub context: usize,
    /// Slots of a cache page.
    pub page: usize,
}

/// The inputs of one step. Prefill, chunked prefill, decode and batched decode are the same step at other sizes.
#[derive(Clone)]
pub struct Step<'t> {
    /// Token ids, i32 `[n]`.
    pub tokens: Tensor<'t>,
    /// Position of each token in its sequence, i32 `[n]`.
    pub pos: Tensor<'t>,
    /// Sequence of each token, i32 `[n]`: a row of `pages`.
    pub seq: Tensor<'t>,
    /// Cache slot of each token, i32 `[n]`.
    pub slot: Tensor<'t>,
    /// Pages of each sequence, i32 `[s, m]`.
    pub pages: Tensor<'t>,
    /// Tokens whose outputs are wanted, i32 `[r]`.
    pub rows: Tensor<'t>,
    pub(super) slots: Dim,
    pub(super) page: usize,
    /// Sequences in one step, at most.
    pub(super) sequences: usize,
}

impl<'t> Step<'t> {
    /// Length i32 `[n]` that each token's sequence has after this step, or is known to get. An input of the models that ask for
    /// it: those that see ahead, or whose rotation depends on the length.
    #[track_caller]
    pub fn span(&self) -> Tensor<'t> {
        self.per_token("span", DType::I32)
    }

    /// Another input of the model, with one element per token: `[n]`.
    #[track_caller]
    pub fn per_token(&self, name: &str, dtype: DType) -> Tensor<'t> {
        self.tokens.tracer().input(name, self.tokens.shape(), dtype)
    }

    /// Declares the inputs of a step.
    pub fn declare(cx: &'t Tracer, limits: Limits) -> Step<'t> {
        let bound = |v: usize| i64::try_from(v.max(1)).unwrap_or(i64::MAX);
        let n = cx.dim("n", 1..=bound(limits.tokens));
        let s = cx.dim("s", 1..=bound(limits.sequences));
        let m = cx.dim("m", 1..=bound(limits.context.div_ceil(limits.page.max(1))));
        let r = cx.dim("r", 1..=bound(limits.tokens));
        let pages = bound(limits.context.div_ceil(limits.page.max(1)).saturating_mul(limits.sequences));
        let p = cx.dim("p", 1..=pages);
        let vector = |name, d: &Dim| cx.input(name, vec![d.clone()], DType::I32);
        Step {
            tokens: vector("tokens", &n),
            pos: vector("pos", &n),
            seq: vector("seq", &n),
            slot: vector("slot", &n),
            pages: cx.input("pages", vec![s, m], DType::I32),
            rows: vector("rows", &r),
            slots: p * limits.page.into(),
            page: limits.page,
            sequences: limits.sequences,
        }
    }
}

/// The key/value caches of a model's layers. Updates are values underneath; the object keeps the newest of each layer.
pub struct KvCache<'t> {
    step: Step<'t>,
    ty: KvTy,
    /// Number of the first layer among those of all caches.
    first: usize,
    layers: RefCell<Vec<Layer>>,
}

/// The newest version of a layer's cache.
#[derive(Clone, Copy)]
enum Layer {
    Untouched,
    Version(Option<Value>),
}

/// One layer's cache after its update, as attention reads it.
#[derive(Clone)]
pub struct Cached<'t> {
    pub(super) step: Step<'t>,
    pub(super) state: Option<Value>,
    /// The last position that each token sees.
    pub(super) last: Tensor<'t>,
}

impl<'t> Cached<'t> {
    /// Every token sees the whole of its sequence, which must be in one step.
    #[track_caller]
    pub fn bidirectional(mut self) -> Cached<'t> {
        self.last = (self.step.span().to_f32() - 1.0).to_i32();
        self
    }
}

impl<'t> KvCache<'t> {
    pub(super) fn new(step: Step<'t>, ty: KvTy, first: usize, layers: usize) -> KvCache<'t> {
        KvCache { step, ty, first, layers: RefCell::new(vec![Layer::Untouched; layers]) }
    }

    /// The step that this cache serves.
    pub fn step(&self) -> &Step<'t> {
        &self.step
    }

    /// Position of each token, i32 `[n]`.
    pub fn pos(&self) -> Tensor<'t> {
        self.step.pos
    }

    /// Stores this step's keys and values `[n, heads, dim]` of a layer.
    #[track_caller]
    pub fn update(&self, layer: usize, k: Tensor<'t>, v: Tensor<'t>) -> Cached<'t> {
        let at = Location::caller();
        let cx = k.tracer();
        let mut layers = self.layers.borrow_mut();
        let count = layers.len();
        let Some(state) = layers.get_mut(layer) else {
            let message = format!("layer {layer} of a cache with {count} layers");
            cx.problem(Diagnostic::new("E0221", "kv_append", message, at, vec![]));
            return Cached { step: self.step.clone(), state: None, last: self.step.pos };
        };
        let old = match *state {
            Layer::Untouched => Some(cx.kv_state(self.first + layer, &self.ty, at)),
            Layer::Version(v) => v,
        };
        let new = cx.emit(at, Op::KvAppend, &[old, k.value(), v.value(), self.step.slot.value()], vec![]);
        *state = Layer::Version(new);
        Cached { step: self.step.clone(), state: new, last: self.step.pos }
    }
}

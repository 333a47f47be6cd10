//! Feed-forward networks.

use super::Linear;
use crate::weights::Rows;
use crate::{Module, Tensor, dims};

/// Activation functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// `x · sigmoid(x)`
    Silu,
    /// Gaussian error linear unit, exact.
    Gelu,
    /// Gaussian error linear unit by tanh.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
}

impl Act {
    /// Same shape.
    #[track_caller]
    pub fn call(self, x: Tensor<'_>) -> Tensor<'_> {
        match self {
            Act::Silu => x.silu(),
            Act::Gelu => x.gelu(),
            Act::GeluTanh => x.gelu_tanh(),
            Act::Relu => x.relu(),
        }
    }
}

/// `down(act(gate(x)) · up(x))` (Shazeer, arXiv 2002.05202).
#[derive(Debug, Module)]
pub struct GatedMlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    #[module(skip)]
    act: Act,
}

impl GatedMlp {
    /// From `hidden` features through `inner` of them.
    pub fn new(hidden: usize, inner: usize, act: Act) -> GatedMlp {
        let (gate_proj, up_proj) = (Linear::new(hidden, inner), Linear::new(hidden, inner));
        GatedMlp { gate_proj, up_proj, down_proj: Linear::new(inner, hidden), act }
    }

    /// Biases on all three projections when `yes`.
    pub fn with_bias(mut self, yes: bool) -> GatedMlp {
        let [gate, up, down] = [self.gate_proj, self.up_proj, self.down_proj].map(|l| l.with_bias(yes));
        (self.gate_proj, self.up_proj, self.down_proj) = (gate, up, down);
        self
    }

    /// What files call the gate, the other factor, and the projection back.
    pub fn stored_as(mut self, [gate, up, down]: [&str; 3]) -> GatedMlp {
        self.gate_proj = self.gate_proj.stored_as(gate);
        self.up_proj = self.up_proj.stored_as(up);
        self.down_proj = self.down_proj.stored_as(down);
        self
    }

    /// Files store gate and up as rows of one `tensor`, and the projection back as `down`.
    pub fn fused(mut self, tensor: &str, down: &str) -> GatedMlp {
        let inner = self.gate_proj.weight().shape()[0];
        self.gate_proj = self.gate_proj.part_of(tensor, Rows::range(0, inner, 2 * inner));
        self.up_proj = self.up_proj.part_of(tensor, Rows::range(inner, inner, 2 * inner));
        self.down_proj = self.down_proj.stored_as(down);
        self
    }

    /// `[n, hidden]` to `[n, hidden]`.
    #[track_caller]
    pub fn call<'t>(&self, x: Tensor<'t>) -> Tensor<'t> {
        self.down_proj.call(self.act.call(self.gate_proj.call(x)) * self.up_proj.call(x))
    }
}

/// `down(act(up(x)))`, with biases.
#[derive(Debug, Module)]
pub struct Mlp {
    up: Linear,
    down: Linear,
    #[module(skip)]
    act: Act,
}

impl Mlp {
    /// From `hidden` features through `inner` of them; files call the projections by `names`.
    pub fn new(hidden: usize, inner: usize, act: Act, [up, down]: [&str; 2]) -> Mlp {
        let (up, down) = (Linear::new(hidden, inner).stored_as(up), Linear::new(inner, hidden).stored_as(down));
        Mlp { up: up.with_bias(true), down: down.with_bias(true), act }
    }

    /// Keeps the biases only when `yes`.
    pub fn with_bias(mut self, yes: bool) -> Mlp {
        (self.up, self.down) = (self.up.with_bias(yes), self.down.with_bias(yes));
        self
    }

    /// Files store the weights as `[inputs, outputs]`.
    pub fn transposed(mut self) -> Mlp {
        (self.up, self.down) = (self.up.transposed(), self.down.transposed());
        self
    }

    /// `[n, hidden]` to `[n, hidden]`.
    #[track_caller]
    pub fn call<'t>(&self, x: Tensor<'t>) -> Tensor<'t> {
        self.down.call(self.act.call(self.up.call(x)))
    }
}

/// A mixture of gated networks, of which a router chooses some per token (Shazeer et al., arXiv 1701.06538).
#[derive(Debug, Module)]
pub struct Experts {
    gate: Linear,
    experts: Vec<GatedMlp>,
    #[module(skip)]
    chosen: usize,
    #[module(skip)]
    normalise: bool,
}

impl Experts {
    /// `chosen` of `experts` networks. Router probabilities are a softmax over all; with `normalise` those of the chosen are
    /// divided by their sum. `names` are what files call each network's gate, other factor, and projection back.
    pub fn new(
        hidden: usize,
        inner: usize,
        (experts, chosen): (usize, usize),
        normalise: bool,
        names: [&str; 3],
    ) -> Experts {
        let one = |_| GatedMlp::new(hidden, inner, Act::Silu).stored_as(names);
        Experts { gate: Linear::new(hidden, experts), experts: (0..experts).map(one).collect(), chosen, normalise }
    }

    /// `[n, hidden]` to `[n, hidden]`.
    #[track_caller]
    pub fn call<'t>(&self, x: Tensor<'t>) -> Tensor<'t> {
        let probabilities = self.gate.call(x).softmax();
        let ids = probabilities.top_k(self.chosen);
        let mut weights = probabilities.pick(ids);
        if self.normalise {
            weights = weights / weights.sum();
        }
        let all = |f: fn(&GatedMlp) -> &Linear| self.experts.iter().map(|e| f(e).weight()).collect::<Vec<_>>();
        let [n, hidden] = [0, 1].map(|i| x.shape().get(i).cloned().unwrap_or_default());
        let each = x.reshape(dims![n, 1, hidden]);
        let gate = each.expert_linear(&all(|e| &e.gate_proj), ids);
        let up = each.expert_linear(&all(|e| &e.up_proj), ids);
        let y = (gate.silu() * up).expert_linear(&all(|e| &e.down_proj), ids);
        let weighted = y * weights.reshape(dims![n, self.chosen, 1]);
        weighted.permute(&[0, 2, 1]).sum().reshape(dims![n, hidden])
    }
}

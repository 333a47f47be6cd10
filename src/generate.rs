//! From logits to tokens: the loop of sampling and decoding.

use std::collections::BTreeSet;

use marquetry_runtime::sampler::{Sampler, SamplerParams};

use crate::Error;
use crate::engine::{Engine, Rows};

/// When a generation ends.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Most new tokens.
    pub tokens: usize,
    /// Tokens that end it; they are not part of the answer.
    pub stop: BTreeSet<u32>,
}

impl Limits {
    /// A number of tokens and no stop tokens.
    pub fn new(tokens: usize) -> Limits {
        Limits { tokens, stop: BTreeSet::new() }
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token.
    Stop,
    /// The limit of new tokens.
    Length,
    /// The context is full.
    Context,
    /// The caller stopped it.
    Interrupted,
}

impl Finish {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Context => "context",
            Finish::Interrupted => "interrupted",
        }
    }
}

/// What was generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// New tokens, without a stop token.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt that were in the cache already.
    pub reused: usize,
}

/// Continues a prompt. What the cache and the prompt begin with in common is not computed again. `each` gets every new token
/// and says whether to go on.
///
/// # Errors
/// Bad sampling parameters, a prompt longer than the context, or a failure underneath.
pub fn generate(
    engine: &mut Engine,
    prompt: &[u32],
    params: SamplerParams,
    limits: &Limits,
    each: &mut dyn FnMut(u32) -> bool,
) -> Result<Generated, Error> {
    let mut sampler = Sampler::new(params)?;
    sampler.observe(prompt);
    let reused = engine.reuse(prompt)?;
    // Drawing and decoding allocate nothing once they are under way.
    let most = limits.tokens.min(engine.context());
    sampler.reserve(most);
    let mut out = Generated { ids: Vec::with_capacity(most), finish: Finish::Length, reused };
    let mut logits = engine.prefill(&prompt[reused..], Rows::Last)?;
    while out.ids.len() < limits.tokens {
        let token = sampler.sample(&logits)?;
        if limits.stop.contains(&token) {
            out.finish = Finish::Stop;
            break;
        }
        out.ids.push(token);
        if !each(token) {
            out.finish = Finish::Interrupted;
            break;
        }
        if out.ids.len() == limits.tokens {
            break;
        }
        if engine.history().len() == engine.context() {
            out.finish = Finish::Context;
            break;
        }
        logits.copy_from_slice(engine.decode(token)?);
    }
    Ok(out)
}

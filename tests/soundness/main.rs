//! Random modules through every pass and every backend: the graph interpreter judges them all. `docs/soundness.md` says how to
//! run more of them.

#[path = "../support/native.rs"]
mod backends;
mod extremes;
mod pipeline;

//! Runs compiled programs: thread pool, buffers, persistent state, paged KV cache, sampling and the files they come from.
//!
//! `unsafe` lives in [`pool`] (the shared job), [`memory`] (allocation and maps) and [`module`] (kernel calls).

mod error;
pub mod pool;

pub use error::RuntimeError;
pub use pool::{Pool, Worker};

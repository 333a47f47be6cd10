//! Runs compiled programs: thread pool, buffers, persistent state, paged KV cache, sampling and the files they come from.
//!
//! `unsafe` lives in [`pool`] (the shared job), `memory` (allocation), `exec` (kernel calls), `files` (maps), [`micro`] and
//! [`probe`] (vector instructions).

mod error;
mod exec;
mod extent;
pub mod files;
mod governor;
pub mod kv;
mod memory;
pub mod micro;
mod module;
pub mod packs;
pub mod pool;
pub mod probe;
pub mod sampler;
mod states;
mod timeline;

pub use error::RuntimeError;
pub use extent::{check_extent, eval_extent};
pub use memory::{ALIGN, AlignedBytes, Arena, MappedSlice, WeightData};
pub use module::{Code, Function, KERNEL_ALIGN};
pub use pool::{Pool, Worker};
pub use states::States;
pub use timeline::{Span, Timeline};

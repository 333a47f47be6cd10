//! The frontend of Marquetry: readers of model files, tokenizers and chat templates.
//!
//! Everything that reads a file takes it for hostile: errors have stable codes (`GGUF012`), say where and what, and nothing in a
//! file can make a reader panic, loop without end or allocate without bound.

mod bytes;
pub mod config;
pub mod gguf;
mod json;
pub mod safetensors;
mod suggest;
pub mod template;
pub mod tokenizer;
pub mod weights;

extern crate self as marquetry_frontend;

pub mod models;
mod module;
pub mod nn;
mod trace;

pub use marquetry_frontend_derive::Module;
pub use marquetry_ir::{DType, Dim};
pub use module::{Module, Param, join};
pub use trace::{Attend, Cached, Diagnostic, Diagnostics, KvCache, Limits, Recurrent, Step, Tensor, Tracer, trace};

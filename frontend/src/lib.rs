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

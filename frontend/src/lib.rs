//! The frontend of Marquetry: readers of model files, tokenizers and chat templates.
//!
//! Everything that reads a file takes it for hostile: errors have stable codes (`GGUF012`), say where and what, and nothing in a
//! file can make a reader panic, loop without end or allocate without bound.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

mod bytes;
pub mod config;
pub mod gguf;
mod json;
pub mod safetensors;
mod suggest;
pub mod tokenizer;
pub mod weights;

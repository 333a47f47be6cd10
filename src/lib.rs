//! A tensor compiler framework with a language-model frontend.
//!
//! The crates of the framework, re-exported under one name, and what puts them together: [`model`] finds and opens a model,
//! [`engine`] compiles it and runs it over a paged cache, [`generate`] turns logits into text.
//!
//! ```no_run
//! use std::sync::Arc;
//! use marquetry::engine::{Engine, EngineOptions};
//! use marquetry::generate::{Limits, generate};
//! use marquetry::model::{LoadOptions, LoadedModel};
//! use marquetry::runtime::sampler::SamplerParams;
//!
//! let model = Arc::new(LoadedModel::open("model.gguf", &LoadOptions::default(), &mut |line| eprintln!("{line}"))?);
//! let mut engine = Engine::new(model, EngineOptions::default())?;
//! let out = generate(&mut engine, &[1, 2, 3], SamplerParams::greedy(), &Limits::new(16), &mut |_| true)?;
//! println!("{:?}", out.ids);
//! # Ok::<(), marquetry::Error>(())
//! ```
//!
//! # What is cached
//!
//! Under the cache directory (`MARQUETRY_CACHE`, or `marquetry` in the user's cache directory): models fetched from elsewhere,
//! and planned programs as text, under a hash of the model's graph, the options, the CPU's features and the compiler itself.
//! Machine code and packed weights are not cached: both are made again at each start.

// The command line speaks of the library by its name.
extern crate self as marquetry;

pub use marquetry_codegen as codegen;
pub use marquetry_frontend as frontend;
pub use marquetry_ir as ir;
pub use marquetry_passes as passes;
pub use marquetry_runtime as runtime;

pub mod cli;
pub mod engine;
mod error;
pub mod exec;
pub mod generate;
pub mod inspect;
pub mod model;
pub mod profile;
pub mod start;
pub mod tune;
pub mod watch;

pub use error::{CODES, Error, Exit};

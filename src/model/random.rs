//! Models with random weights: a new architecture can be run before there is a checkpoint of it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use marquetry_frontend::config::{ModelConfig, Source};
use marquetry_frontend::models::{CausalLm, TextModel, trace_causal};
use marquetry_frontend::safetensors::Safetensors;
use marquetry_frontend::weights::Weights;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Map, Value};

use super::{LoadedModel, expected, limits};
use crate::Error;

impl LoadedModel {
    /// A model of your own with random f32 weights, made for `settings` (what its `config.json` would say). Equal seeds give
    /// equal weights. `arch` names the model in messages.
    ///
    /// # Errors
    /// Settings that the model refuses, or mistakes in its code.
    pub fn random<M: CausalLm>(arch: &str, settings: Map<String, Value>, seed: u64) -> Result<LoadedModel, Error> {
        let start = Instant::now();
        let config =
            ModelConfig { arch: arch.to_owned(), values: settings, source: Source::HuggingFace, accepted: vec![] };
        let text = trace_causal::<M>(&config, limits(&config))?;
        let weights = Weights::from_safetensors(Safetensors::parse(checkpoint(&text, seed)?)?)?;
        LoadedModel::assemble(PathBuf::from(arch), config, text, weights, start)
    }
}

/// A safetensors file: matrices whose products keep the size of their inputs, vectors near 1.
fn checkpoint(text: &TextModel, seed: u64) -> Result<Vec<u8>, Error> {
    let bad = |e: safetensors::SafeTensorError| Error::usage(e.to_string());
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let params = expected(&text.module);
    let made: Vec<(String, Vec<usize>, Vec<f32>)> = params
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product::<usize>();
            let inputs = shape.last().copied().unwrap_or(1).max(1) as f32;
            let values = (0..count).map(|_| match shape.len() {
                // Uniform numbers in -1..1 have variance 1/3.
                2 => uniform() * (3.0 / inputs).sqrt(),
                _ => 1.0 + 0.1 * uniform(),
            });
            let values = values.collect();
            (name, shape, values)
        })
        .collect();
    let views = made.iter().map(|(name, shape, values)| {
        Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values)).map_err(bad)?))
    });
    let views = views.collect::<Result<HashMap<_, _>, Error>>()?;
    serialize(views, None).map_err(bad)
}

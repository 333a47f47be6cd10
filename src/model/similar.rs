//! Models whose architecture nobody registered, but whose tensors and settings are those of one that is.

use std::path::Path;

use marquetry_frontend::config::ModelConfig;
use marquetry_frontend::models::{ModelError, trace_model};
use marquetry_frontend::weights::Weights;

use super::{LoadOptions, LoadedModel, limits};
use crate::Error;

/// Architectures that share the names of Llama, from the plainest on.
const CANDIDATES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// Opens the model as the first candidate whose settings and tensors fit, all of them. `unknown` is what is said of a model
/// that is like none.
///
/// # Errors
/// `unknown`; or, for tensors named like Llama's, what does not fit the nearest candidate.
pub(super) fn open(
    path: &Path,
    unknown: Error,
    options: &LoadOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<LoadedModel, Error> {
    let weights = Weights::open(path)?;
    let alike = |part: &str| weights.names().any(|n| n.contains(part));
    if !(alike(".self_attn.q_proj.weight") && alike(".mlp.gate_proj.weight")) {
        return Err(unknown);
    }
    let mut nearest: Option<((u8, usize), &str, Error)> = None;
    for arch in CANDIDATES {
        let error = match attempt(path, arch, options) {
            Ok(model) => {
                progress(&format!(
                    "{unknown}\nits settings and tensors are all those of {arch}, and it is run as one: \
                     check that its code is the same"
                ));
                return Ok(model);
            }
            Err(e) => e,
        };
        // One whose settings fit is nearer than one whose settings do not.
        let problems = match &error {
            Error::Weights(all) => (0, all.len()),
            Error::Trace(ModelError::Config(all)) => (1, all.len()),
            _ => return Err(error),
        };
        if nearest.as_ref().is_none_or(|(n, ..)| problems < *n) {
            nearest = Some((problems, arch, error));
        }
    }
    match nearest {
        Some((_, arch, error)) => {
            Err(Error::Unfitting { what: format!("{unknown}\n{arch} is nearest, but:\n{error}") })
        }
        None => Err(unknown),
    }
}

fn attempt(path: &Path, arch: &str, options: &LoadOptions) -> Result<LoadedModel, Error> {
    let start = std::time::Instant::now();
    let config = ModelConfig::open_as(path, arch)?.accept(&options.accepted);
    let text = trace_model(&config, limits(&config))?;
    LoadedModel::assemble(path.to_owned(), config, text, Weights::open(path)?, start)
}

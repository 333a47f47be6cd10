//! A published model with one thing changed: Llama with another activation, its checkpoint loaded as it is.
//! `cargo run --example changed_model -- DIRECTORY`, where the directory holds a Llama (`config.json` and safetensors).

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use marquetry::engine::{Engine, EngineOptions, Rows};
use marquetry::frontend::config::{Common, Defaults, Keys};
use marquetry::frontend::models::{CausalLm, Llama};
use marquetry::frontend::nn::{Act, Attention, Decoder, GatedMlp, Heads, PreNorm, RmsNorm, Rope};
use marquetry::frontend::{KvCache, Module, Tensor};
use marquetry::model::LoadedModel;

/// Llama, but for `Act::Relu`.
#[derive(Module)]
struct ReluLlama {
    #[module(flatten)]
    decoder: Decoder<PreNorm<RmsNorm, GatedMlp>, RmsNorm>,
}

impl CausalLm for ReluLlama {
    fn from_keys(keys: &mut Keys<'_>) -> (ReluLlama, Common) {
        let c = keys.common(&Defaults { max_position_embeddings: Some(2048), ..Defaults::default() });
        // The activation of the checkpoint is what we replace.
        keys.harmless(&["hidden_act"]);
        let eps = keys.float("rms_norm_eps", 1e-30..=1.0, 1e-6);
        let (theta, scaling) = keys.rope(None, 10_000.0, c.head_dim);
        let heads = Heads { query: c.num_attention_heads, kv: c.num_key_value_heads, dim: c.head_dim };
        let norm = || RmsNorm::new(c.hidden_size, eps);
        let block = |_| {
            let attention = Attention::new(c.hidden_size, heads).with_rope(Rope::new(c.head_dim, theta, &scaling));
            PreNorm::new(norm, attention, GatedMlp::new(c.hidden_size, c.intermediate_size, Act::Relu))
        };
        let tied = keys.bool("tie_word_embeddings", false);
        keys.fixed("attention_bias", false);
        keys.fixed("mlp_bias", false);
        (ReluLlama { decoder: Decoder::new(&c, tied, norm(), block) }, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        self.decoder.forward(kv)
    }
}

fn logits<M: CausalLm>(dir: &Path, arch: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let model = Arc::new(LoadedModel::open_as::<M>(dir, arch)?);
    Ok(Engine::new(model, EngineOptions::default())?.prefill(&[1, 2, 3], Rows::Last)?)
}

/// Runs both models over a checkpoint.
pub fn compare(dir: &Path) -> Result<(), Box<dyn Error>> {
    let (published, changed) = (logits::<Llama>(dir, "llama")?, logits::<ReluLlama>(dir, "relu_llama")?);
    let apart = published.iter().zip(&changed).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{} logits; the largest difference that the activation makes is {apart:.3}", changed.len());
    if apart > 0.0 && apart.is_finite() { Ok(()) } else { Err("the activation makes no difference".into()) }
}

/// Runs the example.
pub fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).ok_or("give the directory of a Llama")?;
    compare(Path::new(&dir))
}

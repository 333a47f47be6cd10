//! An operator of your own, given as loop IR: a running average along the sequence, kept across steps in a recurrent state.
//! `cargo run --example own_operator`
//!
//! The kernel is scheduled, compiled and planned as every other; the interpreter runs the same text.

use std::error::Error;
use std::sync::Arc;

use marquetry::engine::{Backend, Engine, EngineOptions, Rows};
use marquetry::frontend::config::{Common, Defaults, Keys};
use marquetry::frontend::models::CausalLm;
use marquetry::frontend::nn::{Embedding, LayerNorm, Linear};
use marquetry::frontend::{KvCache, Module, Tensor};
use marquetry::model::LoadedModel;
use serde_json::json;

/// `mean[t] = (1 - 1/8) mean[t - 1] + 1/8 x[t]` for each feature. Tokens of one sequence come in order; position 0 starts anew,
/// whatever the row of the state holds.
const AVERAGE: &str = "
kernel @average(%mean: f32[q, 64] inout, %x: f32[n, 64] in, %row: i32[n] in, %pos: i32[n] in, %y: f32[n, 64] out) {
  parallel d.0 in 0..64 {
    for t.1 in 0..n {
      let s.2 = cast.i64(%row[t.1])
      let old.3 = select(%pos[t.1] == 0:i32, 0.0, %mean[s.2, d.0])
      let new.4 = fma(0.125, %x[t.1, d.0] - old.3, old.3)
      store %mean[s.2, d.0] = new.4
      store %y[t.1, d.0] = new.4
    }
  }
}";

#[derive(Module)]
struct Averages {
    embed: Embedding,
    norm: LayerNorm,
    mix: Linear,
}

impl CausalLm for Averages {
    fn from_keys(keys: &mut Keys<'_>) -> (Averages, Common) {
        let c = keys.common(&Defaults { max_position_embeddings: Some(4096), ..Defaults::default() });
        // The kernel is written for one width.
        keys.fixed("hidden_size", 64);
        let model = Averages {
            embed: Embedding::new(c.vocab_size, 64),
            norm: LayerNorm::new(64, 1e-5),
            mix: Linear::new(64, 64).with_bias(true),
        };
        (model, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        let step = kv.step();
        let x = self.embed.call(step.tokens);
        let state = step.recurrent("mean", 1, &[64]);
        let averages = state.update(0, AVERAGE, &[self.norm.call(x), state.row(), kv.pos()]);
        let x = x + self.mix.call(averages[0]).silu();
        x.rows(step.rows).linear(&self.embed.weight)
    }
}

/// Runs the example.
pub fn main() -> Result<(), Box<dyn Error>> {
    let settings = json!({
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 50,
    });
    let settings = settings.as_object().cloned().unwrap_or_default();
    let model = Arc::new(LoadedModel::random::<Averages>("averages", settings, 1)?);
    let tokens = [1, 2, 3, 5, 8, 13, 21];
    let engine = |backend| Engine::new(model.clone(), EngineOptions { backend, ..EngineOptions::default() });
    let whole = engine(Backend::Interp)?.prefill(&tokens, Rows::All)?;
    let mut compiled = engine(Backend::Cranelift)?;
    let mut steps = vec![];
    for token in tokens {
        steps.extend_from_slice(compiled.decode(token)?);
    }
    let apart = whole.iter().zip(&steps).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("interpreted at once and compiled step by step are {apart:.1e} apart");
    if apart < 1e-3 { Ok(()) } else { Err("the compiled model differs".into()) }
}

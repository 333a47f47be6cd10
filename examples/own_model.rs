//! A small model from scratch: its parts, its step, its settings. `cargo run --example own_model`
//!
//! Nothing here knows about quantization, batches or caches beyond `kv.update`; the compiler fuses and lays out what it finds.

use std::error::Error;
use std::sync::Arc;

use marquetry::engine::{Backend, Engine, EngineOptions, Rows};
use marquetry::frontend::config::{Common, Defaults, Keys, RopeScaling};
use marquetry::frontend::models::CausalLm;
use marquetry::frontend::nn::{Embedding, Linear, RmsNorm, Rope};
use marquetry::frontend::{Attend, KvCache, Module, Tensor};
use marquetry::model::LoadedModel;
use serde_json::json;

/// Attention and feed-forward side by side: both read one normalised copy.
#[derive(Module)]
struct Layer {
    norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    up: Linear,
    down: Linear,
    #[module(skip)]
    heads: (usize, usize, usize),
    #[module(skip)]
    rope: Rope,
}

impl Layer {
    fn new(c: &Common) -> Layer {
        let (h, dim) = (c.hidden_size, c.head_dim);
        let (q, kv) = (c.num_attention_heads, c.num_key_value_heads);
        Layer {
            norm: RmsNorm::new(h, 1e-6),
            q: Linear::new(h, q * dim),
            k: Linear::new(h, kv * dim),
            v: Linear::new(h, kv * dim),
            o: Linear::new(q * dim, h),
            up: Linear::new(h, c.intermediate_size),
            down: Linear::new(c.intermediate_size, h),
            heads: (q, kv, dim),
            rope: Rope::new(dim, 10_000.0, &RopeScaling::Default),
        }
    }

    fn forward<'t>(&self, x: Tensor<'t>, kv: &KvCache<'t>, layer: usize) -> Tensor<'t> {
        let (q, kv_heads, dim) = self.heads;
        let n = self.norm.call(x);
        let queries = self.rope.call(self.q.call(n).split_heads(q, dim), kv);
        let keys = self.rope.call(self.k.call(n).split_heads(kv_heads, dim), kv);
        let cached = kv.update(layer, keys, self.v.call(n).split_heads(kv_heads, dim));
        let how = Attend { scale: (dim as f32).sqrt().recip(), window: 0, softcap: 0.0 };
        let up = self.up.call(n).relu();
        x + self.o.call(queries.attend(&cached, how).merge_heads()) + self.down.call(up * up)
    }
}

#[derive(Module)]
struct Tiny {
    embed: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
}

impl CausalLm for Tiny {
    fn from_keys(keys: &mut Keys<'_>) -> (Tiny, Common) {
        let c = keys.common(&Defaults { max_position_embeddings: Some(512), ..Defaults::default() });
        let model = Tiny {
            embed: Embedding::new(c.vocab_size, c.hidden_size),
            layers: (0..c.num_hidden_layers).map(|_| Layer::new(&c)).collect(),
            norm: RmsNorm::new(c.hidden_size, 1e-6),
        };
        (model, c)
    }

    fn forward<'t>(&self, kv: &KvCache<'t>) -> Tensor<'t> {
        let mut x = self.embed.call(kv.step().tokens);
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x, kv, i);
        }
        self.norm.call(x).rows(kv.step().rows).linear(&self.embed.weight)
    }
}

/// Runs the example.
pub fn main() -> Result<(), Box<dyn Error>> {
    let settings = json!({
        "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 96,
    });
    let settings = settings.as_object().cloned().unwrap_or_default();
    let model = Arc::new(LoadedModel::random::<Tiny>("tiny", settings, 7)?);
    let tokens = [3, 14, 15, 92, 65, 35];
    let mut logits = vec![];
    for backend in [Backend::Interp, Backend::Cranelift] {
        let mut engine = Engine::new(model.clone(), EngineOptions { backend, ..EngineOptions::default() })?;
        logits.push(engine.prefill(&tokens, Rows::All)?);
    }
    let apart = logits[0].iter().zip(&logits[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{} logits, interpreted and compiled are {apart:.1e} apart", logits[0].len());
    if apart < 1e-3 { Ok(()) } else { Err("the compiled model differs".into()) }
}

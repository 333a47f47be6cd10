//! Prefill and decode speed of candle on a GGUF file, by the protocol of `bench/compare.py`: one prompt from an empty cache,
//! then single tokens, the logits of the last token only, no sampling.
//!
//! usage: bench-candle FILE PROMPT GEN; prints `[prefill tokens/s, decode tokens/s]`. Threads: RAYON_NUM_THREADS.

use std::time::Instant;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Error, Result, Tensor};
use candle_transformers::models::{quantized_gemma3, quantized_llama};

enum Model {
    Llama(quantized_llama::ModelWeights),
    Gemma3(quantized_gemma3::ModelWeights),
}

impl Model {
    fn open(path: &str, device: &Device) -> Result<Model> {
        let mut file = std::fs::File::open(path)?;
        let content = Content::read(&mut file)?;
        let arch = content.metadata.get("general.architecture").map(|v| v.to_string()).transpose()?.cloned();
        match arch.as_deref() {
            Some("llama") => Ok(Model::Llama(quantized_llama::ModelWeights::from_gguf(content, &mut file, device)?)),
            Some("gemma3") => Ok(Model::Gemma3(quantized_gemma3::ModelWeights::from_gguf(content, &mut file, device)?)),
            other => Err(Error::Msg(format!("architecture {other:?} is not one of those compared: llama, gemma3"))),
        }
    }

    /// Feeds tokens at a position; position 0 empties the cache.
    fn feed(&mut self, tokens: &[u32], position: usize) -> Result<f32> {
        let x = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let logits = match self {
            Model::Llama(m) => m.forward(&x, position)?,
            Model::Gemma3(m) => m.forward(&x, position)?,
        };
        logits.flatten_all()?.get(0)?.to_scalar()
    }
}

fn measure(path: &str, prompt: usize, count: usize) -> Result<(f64, f64)> {
    let mut model = Model::open(path, &Device::Cpu)?;
    let ids: Vec<u32> = (0..prompt as u32).map(|i| 100 + i % 1000).collect();
    model.feed(&ids[..prompt.min(32)], 0)?;
    let start = Instant::now();
    model.feed(&ids, 0)?;
    let prefill = prompt as f64 / start.elapsed().as_secs_f64();
    let start = Instant::now();
    for i in 0..count {
        model.feed(&ids[i % prompt..][..1], prompt + i)?;
    }
    Ok((prefill, count as f64 / start.elapsed().as_secs_f64()))
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let parsed = match args.as_slice() {
        [path, prompt, count] => prompt.parse().ok().zip(count.parse().ok()).map(|(p, g): (usize, usize)| (path, p, g)),
        _ => None,
    };
    let Some((path, prompt, count)) = parsed.filter(|(_, p, g)| *p > 0 && *g > 0) else {
        eprintln!("usage: bench-candle FILE PROMPT GEN");
        std::process::exit(2);
    };
    match measure(path, prompt, count) {
        Ok((prefill, decode)) => println!("[{prefill}, {decode}]"),
        Err(e) => {
            eprintln!("{path}: {e}");
            std::process::exit(1);
        }
    }
}

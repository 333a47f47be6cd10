//! `perplexity`: how well a model predicts a text.

use std::fs;
use std::path::PathBuf;

use marquetry::Error;
use marquetry::engine::{Engine, Rows};
use serde_json::json;

use super::options::{EngineArgs, ModelArgs, stats_json, stats_text, with_explanation};
use super::ui::Ui;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text.
    #[arg(long)]
    text: PathBuf,
    /// Tokens of a window; each starts from an empty cache, its first token is not scored.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..=1_048_576))]
    window: u32,
    /// Print JSON: `mean_nll`, `perplexity`, and `nll` with null where a token is not scored.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

pub fn run(args: &Args, ui: &Ui) -> Result<(), Error> {
    let text = fs::read_to_string(&args.text).map_err(Error::file("read", &args.text))?;
    let mut engine = args.engine.engine(&args.model, ui)?;
    let ids = engine.model().tokenizer()?.encode(&text, true, true);
    let mut nll = Vec::with_capacity(ids.len());
    for window in ids.chunks(args.window as usize) {
        engine.reset()?;
        nll.extend(score(&mut engine, window)?);
        ui.progress(&format!("{} of {} tokens, mean {:.4}", nll.len(), ids.len(), mean(&nll)));
    }
    ui.progress(&stats_text(&engine));
    if nll.iter().flatten().next().is_none() {
        return Err(Error::input(&args.text, format!("{} tokens; at least 2 are needed", ids.len())));
    }
    let mean = mean(&nll);
    match args.json {
        true => ui.json(&with_explanation(json!({
            "mean_nll": mean, "perplexity": mean.exp(), "tokens": ids.len(), "nll": nll, "stats": stats_json(&engine),
        }), &engine)),
        false => ui.line(&format!("mean nll {mean:.4}, perplexity {:.3}, {} tokens", mean.exp(), ids.len())),
    }
}

fn mean(nll: &[Option<f64>]) -> f64 {
    let count = nll.iter().flatten().count();
    nll.iter().flatten().sum::<f64>() / count.max(1) as f64
}

/// Negative log likelihood of each token of a window but the first.
fn score(engine: &mut Engine, window: &[u32]) -> Result<Vec<Option<f64>>, Error> {
    let vocab = engine.model().text.vocab.max(1);
    let mut nll = vec![None];
    engine.prefill_with(window, Rows::All, &mut |logits| {
        for row in logits.chunks(vocab) {
            if let Some(&token) = window.get(nll.len()) {
                nll.push(Some(surprise(row, token)));
            }
        }
        Ok(())
    })?;
    Ok(nll)
}

/// Negative log of the probability of a token.
fn surprise(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&v| f64::from(v - max).exp()).sum();
    let own = logits.get(token as usize).map_or(f64::NEG_INFINITY, |&v| f64::from(v - max));
    sum.ln() - own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surprise_is_the_log_of_the_odds() {
        let even = [1.5f32; 8];
        assert!((surprise(&even, 3) - 8f64.ln()).abs() < 1e-12);
        assert!(surprise(&[100.0, -100.0], 0) < 1e-12);
        assert!((surprise(&[100.0, -100.0], 1) - 200.0).abs() < 1e-9);
        assert_eq!(mean(&[None, Some(1.0), Some(3.0)]), 2.0);
    }
}

//! `tune`: parameters of kernels with which a model runs faster on this machine.

use std::time::Duration;

use marquetry::Error;
use marquetry::engine::Engine;
use marquetry::tune::{TuneOptions, Tuned, store::Store, tune};
use serde_json::json;

use super::options::{EngineArgs, ModelArgs};
use super::ui::Ui;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// How long, about, such as `60s` or `5m`.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    time: Duration,
    /// Decides the order of candidates, and the random inputs that they are checked on.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

pub fn run(args: &Args, ui: &Ui) -> Result<(), Error> {
    if args.engine.tune.is_some() {
        return Err(Error::usage("--tune is for other verbs; here --time says how long"));
    }
    let mut engine = args.engine.engine(&args.model, ui)?;
    let all = tuned(&mut engine, TuneOptions { time: args.time, seed: args.seed }, ui)?;
    let kept = engine.options().cache.as_deref().map(|dir| Store::new(dir).path().display().to_string());
    if args.json {
        return ui.json(&json!({ "tuned": all.iter().map(Tuned::json).collect::<Vec<_>>(), "file": kept }));
    }
    all.iter().try_for_each(|t| ui.line(&t.to_string()))
}

/// Tunes an engine, and speaks of it.
pub fn tuned(engine: &mut Engine, options: TuneOptions, ui: &Ui) -> Result<Vec<Tuned>, Error> {
    let all = tune(engine, &options, &mut |line| ui.progress(line))?;
    let defects: usize = all.iter().map(|t| t.defects.len()).sum();
    if defects > 0 {
        ui.progress(&format!("{defects} candidates computed wrong numbers and were left out: please report them"));
    }
    Ok(all)
}

/// Reads `90`, `90s`, `2m` or `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => 0,
    };
    let all = number.parse::<u64>().ok().and_then(|n| n.checked_mul(seconds)).filter(|n| (1..=86_400).contains(n));
    all.map(Duration::from_secs).ok_or_else(|| "not a time of 1s to 24h, such as `60s`, `5m` or `1h`".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("2m", 120), ("1h", 3600)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "s", "0s", "-1s", "1.5s", "1d", "99999999999999999999", "25h", "18446744073709551615h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}

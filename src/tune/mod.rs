//! The tuner: finds parameters of kernels ([`Params`]) with which a model runs faster on this machine.
//!
//! A coordinate search over the parameters that change kernels which take time, for decoding and for prefill. A candidate's kernels are
//! compared with the interpreter before they are timed (`check`); what wins is kept for later starts ([`store`]).

mod check;
pub mod presets;
mod search;
pub mod store;
mod subject;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use marquetry_passes::params::Params;
use serde_json::{Value, json};

use crate::Error;
use crate::engine::{Bucket, Engine};
use search::{Limits, search};
use store::{Entry, Store};
use subject::OfEngine;

/// How to tune.
#[derive(Clone, Copy, Debug)]
pub struct TuneOptions {
    /// How long, about: compiling and checking included.
    pub time: Duration,
    /// Decides the order of candidates, and the random inputs that they are checked on.
    pub seed: u64,
}

impl Default for TuneOptions {
    fn default() -> TuneOptions {
        TuneOptions { time: Duration::from_secs(60), seed: 0 }
    }
}

/// What tuning found for a bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuned {
    /// The bucket.
    pub bucket: Bucket,
    /// The best parameters; the defaults where nothing was faster.
    pub params: Params,
    /// Time of a step with the defaults over that with these.
    pub gain: f64,
    /// Candidates that were timed.
    pub timed: usize,
    /// Candidates whose results were wrong, each with what differs: defects of Marquetry.
    pub defects: Vec<String>,
    /// Did the search end before the time did?
    pub complete: bool,
}

impl Tuned {
    /// As data.
    pub fn json(&self) -> Value {
        let params: serde_json::Map<String, Value> =
            self.params.changed().into_iter().map(|(p, v)| (p.name.to_string(), json!(v))).collect();
        json!({
            "bucket": self.bucket.name(), "params": params, "gain": self.gain, "timed": self.timed,
            "defects": self.defects, "complete": self.complete,
        })
    }
}

impl std::fmt::Display for Tuned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Tuned { bucket, params, gain, timed, complete, .. } = self;
        let end = if *complete { "" } else { ", out of time" };
        write!(f, "{}: {params}, {gain:.2} times as fast ({timed} candidates timed{end})", bucket.name())
    }
}

/// Tunes an engine, leaves it with the best functions, and keeps what won where the engine has a cache. `progress` hears of each
/// candidate. The engine's sequence is empty afterwards.
///
/// # Errors
/// An engine that compiles nothing, a model that has no steps to time, or a failure underneath. A database that can not be written is none:
/// `progress` hears of it.
pub fn tune(engine: &mut Engine, options: &TuneOptions, progress: &mut dyn FnMut(&str)) -> Result<Vec<Tuned>, Error> {
    let start = Instant::now();
    let buckets = engine.buckets();
    let mut all = vec![];
    for (i, bucket) in buckets.iter().enumerate() {
        // What earlier buckets left is shared.
        let left = options.time.saturating_sub(start.elapsed()) / (buckets.len() - i) as u32;
        let limits = Limits { until: Instant::now() + left, seed: options.seed, bitwise: engine.is_strict() };
        let mut subject = OfEngine::new(engine, *bucket, options.seed)?;
        let found = search(&mut subject, &limits, &mut |line| progress(&format!("{}: {line}", bucket.name())))?;
        subject.keep(found.best)?;
        let tuned = Tuned {
            bucket: *bucket,
            params: found.params,
            gain: found.gain,
            timed: found.timed,
            defects: found.defects,
            complete: found.complete,
        };
        progress(&tuned.to_string());
        if let Err(e) = keep(engine, &tuned) {
            progress(&format!("not kept: {e}"));
        }
        all.push(tuned);
    }
    engine.reset()?;
    Ok(all)
}

/// Stores what won; removes what is stored where the defaults did.
fn keep(engine: &mut Engine, tuned: &Tuned) -> Result<(), Error> {
    let (Some(cache), Some(key)) = (engine.options().cache.clone(), engine.tuning_key(tuned.bucket)) else {
        return Ok(());
    };
    let name = engine.model().path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let entry = (tuned.params != Params::default()).then(|| Entry {
        key: key.clone(),
        model: name,
        bucket: tuned.bucket.name().into(),
        threads: engine.options().threads,
        params: tuned.params,
        gain: tuned.gain,
    });
    Store::new(&cache).put(&key, entry)
}

//! Weights in the layouts that kernels read, each packed once, shared by all functions, and kept for the next start.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use marquetry_ir::pack::packed_len;
use marquetry_ir::program::Weight;
use marquetry_runtime::packs::Sink;
use marquetry_runtime::{AlignedBytes, WeightData};

use super::packs::Store;
use super::pieces::{pack, wrong};
use crate::Error;
use crate::model::LoadedModel;

/// Packed weights by what they are made of.
pub(super) struct PackedWeights {
    ready: HashMap<Weight, Arc<WeightData>>,
    cache: Option<PathBuf>,
    /// Opened when the first weights are wanted; `None` where there is no cache, or it does not work.
    store: Option<Store>,
    cached: usize,
}

impl PackedWeights {
    /// None yet. `cache` is where they are kept.
    pub fn new(cache: Option<PathBuf>) -> PackedWeights {
        PackedWeights { ready: HashMap::new(), cache, store: None, cached: 0 }
    }

    /// The packed bytes of each weight, in order. Those that are not there yet are mapped from the cache, or else packed on that
    /// many threads. A cache that does not work is passed over.
    pub fn get(
        &mut self,
        model: &LoadedModel,
        wanted: &[Weight],
        threads: usize,
    ) -> Result<Vec<Arc<WeightData>>, Error> {
        if let Some(cache) = self.cache.take() {
            self.store = Store::open(&cache, model);
        }
        let before = self.ready.len();
        self.map(model, wanted);
        self.cached += self.ready.len() - before;
        if self.add(model, wanted, threads).is_none() {
            self.pack(model, wanted, threads)?;
        }
        // What was read of the files to get here is not read again.
        model.weights.release_all();
        let ready = |w: &Weight| self.ready.get(w).cloned().ok_or_else(|| wrong(w, "it was not packed"));
        wanted.iter().map(ready).collect()
    }

    /// Bytes of all packed weights.
    pub fn bytes(&self) -> usize {
        self.ready.values().map(|w| w.len()).sum()
    }

    /// Number of weights that the cache had.
    pub fn cached(&self) -> usize {
        self.cached
    }

    fn missing<'a>(&self, wanted: &'a [Weight]) -> Vec<&'a Weight> {
        wanted.iter().filter(|w| !self.ready.contains_key(*w)).collect()
    }

    /// Takes weights that the cache has.
    fn map(&mut self, model: &LoadedModel, wanted: &[Weight]) {
        let Some(store) = &self.store else { return };
        for w in self.missing(wanted) {
            let Some((key, len)) = Store::key(model, w).zip(packed_len(w).ok()) else { continue };
            if let Some(data) = store.get(&key, len) {
                self.ready.insert(w.clone(), data);
            }
        }
    }

    /// Packs what is missing into a file of the cache. `None` where there is none, or anything goes wrong.
    fn add(&mut self, model: &LoadedModel, wanted: &[Weight], threads: usize) -> Option<()> {
        let missing = self.missing(wanted);
        let store = self.store.as_mut()?;
        if !missing.is_empty() {
            let place = |w: &&Weight| Some((Store::key(model, w)?, packed_len(w).ok()?));
            let places = missing.iter().map(place).collect::<Option<Vec<_>>>()?;
            let fill = |sink: &Sink<'_>| {
                let put = |weight: usize, at: usize, bytes: &[u8]| {
                    sink.put(weight, at, bytes).map_err(|e| wrong(missing[weight], e))
                };
                pack(model, &missing, threads, &put).map_err(io::Error::other)
            };
            store.add(model, &places, &fill).ok()?;
            self.map(model, wanted);
        }
        self.missing(wanted).is_empty().then_some(())
    }

    /// Packs what is missing into memory.
    fn pack(&mut self, model: &LoadedModel, wanted: &[Weight], threads: usize) -> Result<(), Error> {
        let missing = self.missing(wanted);
        let room =
            |w: &&Weight| Ok(Mutex::new(AlignedBytes::dense(packed_len(w).map_err(|e| wrong(w, e))?, "a weight")?));
        let room = missing.iter().map(room).collect::<Result<Vec<_>, Error>>()?;
        let put = |weight: usize, at: usize, bytes: &[u8]| {
            let mut all = room[weight].lock().unwrap_or_else(PoisonError::into_inner);
            let outside = || wrong(missing[weight], "a piece lies outside");
            all.get_mut(at..at + bytes.len()).ok_or_else(outside)?.copy_from_slice(bytes);
            Ok(())
        };
        pack(model, &missing, threads, &put)?;
        for (w, bytes) in missing.into_iter().zip(room) {
            let bytes = bytes.into_inner().unwrap_or_else(PoisonError::into_inner);
            self.ready.insert(w.clone(), Arc::new(WeightData::Owned(bytes)));
        }
        Ok(())
    }
}

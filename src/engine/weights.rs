//! Weights in the layouts that kernels read, each packed once and shared by all functions.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use marquetry_ir::pack::{pack_weight, packed_len};
use marquetry_ir::program::Weight;
use marquetry_runtime::{AlignedBytes, WeightData};

use crate::Error;
use crate::model::LoadedModel;

/// Packed weights by what they are made of.
#[derive(Default)]
pub(super) struct PackedWeights {
    ready: HashMap<Weight, Arc<WeightData>>,
}

impl PackedWeights {
    /// The packed bytes of each weight, in order. Those that are not there yet are packed on that many threads.
    pub fn get(
        &mut self,
        model: &LoadedModel,
        wanted: &[Weight],
        threads: usize,
    ) -> Result<Vec<Arc<WeightData>>, Error> {
        let mut missing: Vec<&Weight> = wanted.iter().filter(|w| !self.ready.contains_key(*w)).collect();
        // The large ones first, so that no thread ends with one alone.
        missing.sort_by_key(|w| std::cmp::Reverse(w.shape.iter().product::<usize>()));
        let next = AtomicUsize::new(0);
        let done = Mutex::new(vec![]);
        let work = || {
            while let Some(w) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let packed = pack_one(model, w);
                done.lock().unwrap_or_else(PoisonError::into_inner).push((*w, packed));
            }
        };
        std::thread::scope(|s| {
            for _ in 1..threads.min(missing.len()) {
                s.spawn(work);
            }
            work();
        });
        for (w, packed) in done.into_inner().unwrap_or_else(PoisonError::into_inner) {
            self.ready.insert(w.clone(), Arc::new(packed?));
        }
        let ready = |w: &Weight| self.ready.get(w).cloned().ok_or_else(|| wrong(w, "it was not packed"));
        wanted.iter().map(ready).collect()
    }

    /// Bytes of all packed weights.
    pub fn bytes(&self) -> usize {
        self.ready.values().map(|w| w.len()).sum()
    }
}

fn wrong(w: &Weight, what: impl ToString) -> Error {
    Error::Pack { name: w.sources.join(" + "), what: what.to_string() }
}

fn pack_one(model: &LoadedModel, w: &Weight) -> Result<WeightData, Error> {
    let source = |name: &String| -> Result<(Cow<'_, [u8]>, usize), Error> {
        let view = model.weights.get(name).ok_or_else(|| wrong(w, format!("`{name}` is not in the model")))?;
        if view.elem != w.from {
            return Err(wrong(w, format!("`{name}` is {}, the program expects {}", view.elem, w.from)));
        }
        let rows = if view.shape.len() < 2 { 1 } else { view.shape[0] };
        Ok((view.data(), rows))
    };
    let sources = w.sources.iter().map(source).collect::<Result<Vec<_>, _>>()?;
    let parts: Vec<(&[u8], usize)> = sources.iter().map(|(bytes, rows)| (bytes.as_ref(), *rows)).collect();
    let mut out = AlignedBytes::new(packed_len(w).map_err(|e| wrong(w, e))?, "a weight")?;
    pack_weight(w, &parts, &mut out).map_err(|e| wrong(w, e))?;
    Ok(WeightData::Owned(out))
}

//! What tells the weights of a model from those of others, and giving back the memory that reading them took.

use std::io;
use std::ops::Range;

use super::{WeightSource, Weights, names};
use crate::bytes::Bytes;

/// Bytes of a sample.
const SAMPLE: usize = 64;

impl Weights {
    /// Gives `each` everything that tells these files from others: for each file its length, times and number in the file system,
    /// then all bytes before its first tensor, and three samples of every tensor. Paths do not count.
    ///
    /// # Errors
    /// Weights that are not in files, and those of the system.
    pub fn identify(&self, each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let places: Vec<_> = (0..).map_while(|i| self.place(i)).collect();
        for (i, file) in self.files().iter().enumerate() {
            let tensors = || places.iter().filter(|(part, _)| *part == i).map(|(_, range)| range);
            each(file.stamp()?.as_bytes());
            let header = tensors().map(|r| r.start).min().unwrap_or(file.len());
            each(file.get(..header).unwrap_or_default());
            for range in tensors() {
                let last = range.end.saturating_sub(SAMPLE).max(range.start);
                for at in [range.start, range.start.midpoint(last), last] {
                    let end = at.saturating_add(SAMPLE).min(range.end);
                    each(file.get(at..end).unwrap_or_default());
                }
                file.release(range.clone());
            }
        }
        Ok(())
    }

    /// How a tensor is made from the files, as text for a hash.
    pub fn origin(&self, name: &str) -> Option<String> {
        self.names.get(names::canonical(name).as_str()).map(|l| format!("{l:?}"))
    }

    /// Gives back the memory that reading some of a tensor's `of` rows took; they are read from the file again where that is needed.
    pub fn release(&self, name: &str, rows: Range<usize>, of: usize) {
        let Some(located) = self.names.get(names::canonical(name).as_str()) else { return };
        let Some((part, all)) = self.place(located.place) else { return };
        let row = all.len().checked_div(of).unwrap_or(0);
        let at = |i: usize| all.start + i.min(of) * row;
        if let Some(file) = self.files().get(part) {
            file.release(at(rows.start)..at(rows.end));
        }
    }

    /// Gives back the memory that reading the files took.
    pub fn release_all(&self) {
        self.files().iter().for_each(|f| f.release(0..f.len()));
    }

    fn files(&self) -> &[Bytes] {
        match &self.source {
            WeightSource::Gguf(file) => file.files(),
            WeightSource::Safetensors(file) => file.files(),
        }
    }

    /// File and range of a tensor of the source's list.
    fn place(&self, i: usize) -> Option<(usize, Range<usize>)> {
        Some(match &self.source {
            WeightSource::Gguf(file) => file.tensors().get(i).map(|t| (t.part, t.bytes.clone()))?,
            WeightSource::Safetensors(file) => file.tensors().get(i).map(|t| (t.shard, t.bytes.clone()))?,
        })
    }
}

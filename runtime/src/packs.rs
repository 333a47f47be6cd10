//! Files of packed weights, which are mapped instead of being made again at every start.
//!
//! A file is a header, a table and the weights:
//!
//! | bytes | |
//! |---|---|
//! | 0..8 | `MARQPACK` |
//! | 8..12, 12..16 | version, number of weights |
//! | 16..24 | length of the file |
//! | 24..32 | zero |
//! | 32..64 | owner: what the weights were made from, and by which build |
//! | 64..96 | blake3 hash of bytes 0..64 and of the table |
//! | 96..128 | zero |
//! | 128.. | the table: for each weight its key (32 bytes), offset, length and sum (8 each), 8 bytes of zero |
//! | rest | weights, each at a multiple of 64 |
//!
//! Numbers are little-endian. Opening reads header and table, and checks every place in it; it reads no weight.
//! [`Packs::damaged`] reads all of them. A file gets its header last and its name when it is synced, so that one which was left half
//! written is none.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::Mmap;

use crate::files::{Key, map_file, publish_file};
use crate::memory::ALIGN;
use crate::{RuntimeError, WeightData};

const MAGIC: [u8; 8] = *b"MARQPACK";
const VERSION: u32 = 1;
const HEADER: usize = 128;
/// Bytes of the header that its hash covers.
const HASHED: usize = 64;
/// The owner's place in the header.
const OWNER: Range<usize> = 32..64;
/// Bytes that a sum takes at a time.
const WORD: usize = 8;
/// Bytes of a row of the table.
const ROW: usize = 64;
/// A huge page. What is first written as a whole one becomes one in the system's cache of files, where a file system can.
const HUGE: usize = 2 << 20;

/// An open file of packed weights.
pub struct Packs {
    map: Arc<Mmap>,
    places: HashMap<Key, Place>,
}

/// Where a weight lies.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    len: usize,
    sum: u64,
}

impl Packs {
    /// Maps a file. `None` if there is none, or it is damaged, of another version or of another owner.
    ///
    /// The condition of [`map_file`] holds for it.
    pub fn open(path: &Path, owner: &Key) -> Option<Packs> {
        Packs::of_any(path).filter(|p| p.map[OWNER] == *owner)
    }

    /// As [`Packs::open`], whoever owns it.
    pub fn of_any(path: &Path) -> Option<Packs> {
        let map = map_file(path).ok()?;
        let places = table(&map)?;
        #[cfg(target_os = "linux")]
        // Weights are read whole; systems that keep files in small pages pass this over.
        let _ = map.advise(memmap2::Advice::HugePage);
        Some(Packs { map, places })
    }

    /// The weight of that key.
    pub fn get(&self, key: &Key) -> Option<WeightData> {
        let p = self.places.get(key)?;
        WeightData::mapped(self.map.clone(), p.start, p.len).ok()
    }

    /// Number of weights.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> usize {
        self.map.len()
    }

    /// Are there no weights?
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Reads all weights; gives the number of those that are not what was written.
    pub fn damaged(&self) -> usize {
        let other = |p: &&Place| self.map.get(p.start..p.start + p.len).is_none_or(|bytes| sum(0, bytes) != p.sum);
        self.places.values().filter(other).count()
    }

    /// Makes a file of weights, each given by its key and length. `fill` writes them; `check` is asked when it is done whether they
    /// may be kept.
    ///
    /// # Errors
    /// Those of the system, of `fill` and of `check`; no file is left then.
    pub fn write(
        path: &Path,
        owner: &Key,
        weights: &[(Key, usize)],
        fill: &dyn Fn(&Sink<'_>) -> io::Result<()>,
        check: &dyn Fn() -> io::Result<()>,
    ) -> Result<(), RuntimeError> {
        publish_file(path, |file| {
            let (places, total) = lay_out(weights)?;
            file.set_len(total as u64)?;
            let sink = Sink {
                file: Mutex::new(Open { file, total, begun: vec![false; total.div_ceil(HUGE)] }),
                places: &places,
                sums: weights.iter().map(|_| AtomicU64::new(0)).collect(),
            };
            fill(&sink)?;
            check()?;
            let mut rows = Vec::with_capacity(weights.len() * ROW);
            for (((key, len), place), sum) in weights.iter().zip(&places).zip(&sink.sums) {
                rows.extend(key);
                for v in [place.start as u64, *len as u64, sum.load(Ordering::Relaxed), 0] {
                    rows.extend(v.to_le_bytes());
                }
            }
            let mut head = Vec::with_capacity(HEADER);
            head.extend(MAGIC);
            head.extend(VERSION.to_le_bytes());
            head.extend((weights.len() as u32).to_le_bytes());
            head.extend((total as u64).to_le_bytes());
            head.extend([0; 8]);
            head.extend(owner);
            head.extend(hash_of(&head, &rows));
            head.resize(HEADER, 0);
            // The rows first: a file without its header is none.
            sink.write(HEADER, &rows)?;
            sink.write(0, &head)
        })
    }
}

/// A file that is being filled, from any number of threads.
pub struct Sink<'a> {
    file: Mutex<Open<'a>>,
    places: &'a [Range<usize>],
    sums: Vec<AtomicU64>,
}

impl Sink<'_> {
    /// Writes bytes of a weight, from byte `at` on, a multiple of 8. Every byte is zero until it is written, once.
    ///
    /// # Errors
    /// Bytes outside the weight, and those of the system.
    pub fn put(&self, weight: usize, at: usize, bytes: &[u8]) -> io::Result<()> {
        let place = self.places.get(weight).filter(|p| at.checked_add(bytes.len()).is_some_and(|end| end <= p.len()));
        let (Some(place), true) = (place, at.is_multiple_of(WORD)) else {
            let what = format!("{} bytes at byte {at} of weight {weight} lie outside", bytes.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        };
        self.sums[weight].fetch_add(sum(at, bytes), Ordering::Relaxed);
        self.write(place.start + at, bytes)
    }

    /// Writing in turn costs nothing: the system takes one writer of a file at a time.
    fn write(&self, at: usize, bytes: &[u8]) -> io::Result<()> {
        let mut open = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        for page in at / HUGE..(at + bytes.len()).div_ceil(HUGE) {
            open.begin(page)?;
        }
        open.file.seek(SeekFrom::Start(at as u64))?;
        open.file.write_all(bytes)
    }
}

struct Open<'a> {
    file: &'a mut File,
    total: usize,
    /// Has anything of each huge page been written?
    begun: Vec<bool>,
}

impl Open<'_> {
    /// Writes a huge page of zeros in one call, if nothing of it was written yet.
    fn begin(&mut self, page: usize) -> io::Result<()> {
        static ZEROS: [u8; HUGE] = [0; HUGE];
        if !std::mem::replace(&mut self.begun[page], true) {
            let start = page * HUGE;
            self.file.seek(SeekFrom::Start(start as u64))?;
            self.file.write_all(&ZEROS[..HUGE.min(self.total - start)])?;
        }
        Ok(())
    }
}

/// Sum of the 8-byte words of a piece of a weight that begins at byte `at`, each times an odd number of its place. Pieces add up in any
/// order, and every change within one word changes the sum.
fn sum(at: usize, bytes: &[u8]) -> u64 {
    let term = |i: usize, word: [u8; WORD]| {
        // The odd factor is the place, scrambled by the finalizer of SplitMix64.
        let mut z = (at / WORD + i) as u64;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u64::from_le_bytes(word).wrapping_mul(z ^ (z >> 31) | 1)
    };
    let (words, rest) = bytes.as_chunks::<WORD>();
    let mut last = [0; WORD];
    last[..rest.len()].copy_from_slice(rest);
    let all = words.iter().chain([&last]).enumerate();
    all.fold(0, |sum, (i, word)| sum.wrapping_add(term(i, *word)))
}

fn hash_of(head: &[u8], rows: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(head).update(rows).finalize().as_bytes()
}

/// The place of each weight, and the length of the file.
fn lay_out(weights: &[(Key, usize)]) -> io::Result<(Vec<Range<usize>>, usize)> {
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "too many weights for a file");
    u32::try_from(weights.len()).map_err(|_| too_long())?;
    let mut end = HEADER + weights.len() * ROW;
    let mut places = Vec::with_capacity(weights.len());
    for (_, len) in weights {
        let start = end.checked_next_multiple_of(ALIGN).ok_or_else(too_long)?;
        end = start.checked_add(*len).ok_or_else(too_long)?;
        places.push(start..end);
    }
    Ok((places, end))
}

/// The checked table of a file.
fn table(file: &[u8]) -> Option<HashMap<Key, Place>> {
    let head = file.first_chunk::<HEADER>()?;
    let word = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let known = head.starts_with(&MAGIC) && word(8)? == VERSION && long(head, 16)? == file.len();
    if !known || head[24..32] != [0; 8] || head[96..] != [0; 32] {
        return None;
    }
    let end = usize::try_from(word(12)?).ok()?.checked_mul(ROW)?.checked_add(HEADER)?;
    let rows = file.get(HEADER..end)?;
    if head[64..96] != hash_of(&head[..HASHED], rows) {
        return None;
    }
    let mut places = HashMap::new();
    for row in rows.as_chunks::<ROW>().0 {
        let (start, len) = (long(row, 32)?, long(row, 40)?);
        let inside = start.checked_add(len).is_some_and(|end| end <= file.len());
        if !inside || start < end || !start.is_multiple_of(ALIGN) {
            return None;
        }
        let sum = u64::from_le_bytes(*row[48..].first_chunk()?);
        places.insert(*row.first_chunk()?, Place { start, len, sum });
    }
    Some(places)
}

fn long(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok()
}

#[cfg(test)]
#[path = "packs_tests.rs"]
mod tests;

//! Packing piece by piece: large matrices are packed some rows at a time, so that neither they nor what they are made from need
//! memory at once, and all threads share them.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use marquetry_ir::pack::{pack_weight, packed_len};
use marquetry_ir::plane_offsets;
use marquetry_ir::program::Weight;
use marquetry_runtime::AlignedBytes;

use crate::Error;
use crate::model::LoadedModel;

/// Rows of a piece are a multiple of this: planes of pieces are then whole blocks of rows, and whole multiples of 64 bytes.
const ROWS: usize = 512;
/// Bytes that a piece has at most, about.
const PIECE: usize = 4 << 20;

/// Takes bytes of a weight, by its position and the first byte's.
pub(super) type Put<'a> = dyn Fn(usize, usize, &[u8]) -> Result<(), Error> + Sync + 'a;

/// Some rows of a weight, all but in the middle of large matrices.
struct Piece {
    weight: usize,
    start: usize,
    rows: usize,
}

/// Packs weights on some threads. What is read of the model's files on the way goes back to the system.
pub(super) fn pack(model: &LoadedModel, weights: &[&Weight], threads: usize, put: &Put<'_>) -> Result<(), Error> {
    let mut pieces = vec![];
    for (i, w) in weights.iter().enumerate() {
        let (rows, each) = (rows(w), piece_rows(model, w)?);
        let starts = (0..rows.max(1)).step_by(each);
        pieces.extend(starts.map(|start| Piece { weight: i, start, rows: each.min(rows - start.min(rows)) }));
    }
    // Large ones first, so that no thread ends with one alone.
    pieces.sort_by_key(|p| std::cmp::Reverse(p.rows * columns(weights[p.weight])));
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let work = || {
        let mut scratch = Scratch::default();
        while let Some(p) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(e) = pack_piece(model, weights[p.weight], p, &mut scratch, put) {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                next.store(pieces.len(), Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|s| {
        for _ in 1..threads.min(pieces.len()) {
            s.spawn(work);
        }
        work();
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

pub(super) fn wrong(w: &Weight, what: impl ToString) -> Error {
    Error::Pack { name: w.sources.join(" + "), what: what.to_string() }
}

/// Memory that a thread packs into, again and again.
#[derive(Default)]
struct Scratch(Option<AlignedBytes>);

impl Scratch {
    fn take(&mut self, len: usize) -> Result<&mut [u8], Error> {
        let held = self.0.take().filter(|b| b.len() >= len);
        let bytes = held.map_or_else(|| AlignedBytes::new(len, "packing a weight"), Ok)?;
        Ok(&mut self.0.insert(bytes)[..len])
    }
}

/// Rows of a matrix; anything else has one.
fn rows(w: &Weight) -> usize {
    if let [n, _] = w.shape.as_slice() { *n } else { 1 }
}

fn columns(w: &Weight) -> usize {
    w.shape.iter().skip(usize::from(w.shape.len() == 2)).product()
}

/// Rows of the pieces of a weight: all, unless it is a large matrix whose sources are had from the file as they are.
fn piece_rows(model: &LoadedModel, w: &Weight) -> Result<usize, Error> {
    let (len, rows) = (packed_len(w).map_err(|e| wrong(w, e))?, rows(w).max(1));
    // Sources that take turns are cut between two rounds.
    let round = (w.interleave as usize).saturating_mul(w.sources.len()).max(1);
    let unit = (ROWS >> round.trailing_zeros().min(ROWS.trailing_zeros())).saturating_mul(round);
    let each = (PIECE / (len / rows).max(1)).max(1).checked_next_multiple_of(unit).unwrap_or(rows);
    let plain = |name: &String| model.weights.get(name).is_some_and(|v| v.is_plain() && v.shape.len() == 2);
    Ok(if each < rows && w.sources.iter().all(plain) { each } else { rows })
}

/// The rows of each source, of that many, that a piece has.
fn source_rows(w: &Weight, p: &Piece, sources: &[usize]) -> Vec<Range<usize>> {
    let (start, end) = (p.start, p.start + p.rows);
    if w.interleave > 0 {
        let n = sources.len().max(1);
        return sources.iter().map(|_| start / n..end / n).collect();
    }
    let mut before = 0;
    let mut one = |rows: &usize| {
        let first = before;
        before += rows;
        start.clamp(first, before) - first..end.clamp(first, before) - first
    };
    sources.iter().map(&mut one).collect()
}

fn pack_piece(model: &LoadedModel, w: &Weight, p: &Piece, scratch: &mut Scratch, put: &Put<'_>) -> Result<(), Error> {
    let source = |name: &String| -> Result<(Cow<'_, [u8]>, usize), Error> {
        let view = model.weights.get(name).ok_or_else(|| wrong(w, format!("`{name}` is not in the model")))?;
        if view.elem != w.from {
            return Err(wrong(w, format!("`{name}` is {}, the program expects {}", view.elem, w.from)));
        }
        Ok((view.data(), if view.shape.len() < 2 { 1 } else { view.shape[0] }))
    };
    let sources = w.sources.iter().map(source).collect::<Result<Vec<_>, _>>()?;
    let counts: Vec<usize> = sources.iter().map(|s| s.1).collect();
    let (piece, ranges) = match p.rows == rows(w) {
        true => (Cow::Borrowed(w), counts.iter().map(|n| 0..*n).collect()),
        false => {
            let piece = Weight { shape: vec![p.rows, columns(w)], ..w.clone() };
            (Cow::Owned(piece), source_rows(w, p, &counts))
        }
    };
    let parts = sources.iter().zip(&ranges).map(|((bytes, rows), range)| cut(bytes, *rows, range));
    let parts = parts.collect::<Option<Vec<_>>>();
    let parts = parts.ok_or_else(|| wrong(w, "its rows are not all there"))?;
    let out = scratch.take(packed_len(&piece).map_err(|e| wrong(w, e))?)?;
    pack_weight(&piece, &parts, out).map_err(|e| wrong(w, e))?;
    for (at, bytes) in planes(w, p, out) {
        put(p.weight, at, bytes)?;
    }
    for ((name, range), rows) in w.sources.iter().zip(ranges).zip(counts) {
        model.weights.release(name, range, rows);
    }
    Ok(())
}

/// A range of the rows of a matrix, and their number.
fn cut<'a>(bytes: &'a [u8], rows: usize, range: &Range<usize>) -> Option<(&'a [u8], usize)> {
    let row = bytes.len() / rows.max(1);
    Some((bytes.get(range.start * row..range.end * row)?, range.len()))
}

/// The planes of a packed piece, and where they belong in the weight.
fn planes<'a>(w: &Weight, p: &Piece, packed: &'a [u8]) -> impl Iterator<Item = (usize, &'a [u8])> {
    let of = |rows: usize| {
        let (starts, end) = plane_offsets(w.elem, rows, columns(w));
        let ends: Vec<usize> = starts.iter().copied().skip(1).chain([end]).collect();
        starts.into_iter().zip(ends).map(|(start, end)| start..end)
    };
    let places = of(rows(w)).zip(of(p.start)).map(|(all, before)| all.start + before.len());
    places.zip(of(p.rows)).map(|(at, range)| (at, &packed[range])).filter(|(_, bytes)| !bytes.is_empty())
}

#[cfg(test)]
mod tests {
    use marquetry_ir::{DType, Elem, GgufType, Packed};

    use super::*;

    /// Pieces of a matrix, packed by themselves, are the packed matrix: in every layout, of one source or several.
    #[test]
    fn pieces_make_the_whole() {
        let quantized = GgufType::ALL.into_iter().flat_map(|t| {
            let from = Elem::Gguf(t);
            let all = [Elem::Packed(Packed::for_gguf(t)), from, Elem::Rows8(DType::F32), DType::F32.into()];
            all.map(|elem| (from, elem))
        });
        let floats = [DType::F32, DType::F16, DType::BF16];
        let plain =
            floats.into_iter().flat_map(|d| [d.into(), Elem::Rows8(d), DType::F32.into()].map(|e| (d.into(), e)));
        let k = 256;
        for (from, elem) in quantized.chain(plain) {
            for (counts, interleave, each) in [
                (vec![2 * ROWS + 13], 0, ROWS),
                (vec![ROWS + 5, 9, 2 * ROWS], 0, ROWS),
                (vec![ROWS + 8; 2], 8, ROWS),
                (vec![ROWS + 8; 3], 8, 3 * ROWS),
            ] {
                if from == elem && counts.len() > 1 && from.scalar().is_none() {
                    continue;
                }
                let n: usize = counts.iter().sum();
                let sources = (0..counts.len()).map(|i| i.to_string()).collect();
                let w = Weight { sources, interleave, from, elem, shape: vec![n, k] };
                let row = plane_offsets(from, ROWS, k).1 / ROWS;
                let byte = |source: usize| move |i: usize| ((i * 31 + source * 7) % 113) as u8;
                let bytes: Vec<Vec<u8>> =
                    counts.iter().enumerate().map(|(s, n)| (0..n * row).map(byte(s)).collect()).collect();
                let parts: Vec<(&[u8], usize)> = bytes.iter().map(Vec::as_slice).zip(counts.iter().copied()).collect();
                let mut want = vec![1; packed_len(&w).unwrap()];
                pack_weight(&w, &parts, &mut want).unwrap();
                let mut got = vec![2; want.len()];
                for start in (0..n).step_by(each) {
                    let p = Piece { weight: 0, start, rows: each.min(n - start) };
                    let cut = source_rows(&w, &p, &counts);
                    let parts: Vec<(&[u8], usize)> =
                        bytes.iter().zip(cut).map(|(b, r)| (&b[r.start * row..r.end * row], r.len())).collect();
                    let piece = Weight { shape: vec![p.rows, k], ..w.clone() };
                    let mut out = vec![3; packed_len(&piece).unwrap()];
                    pack_weight(&piece, &parts, &mut out).unwrap();
                    for (at, plane) in planes(&w, &p, &out) {
                        got[at..at + plane.len()].copy_from_slice(plane);
                    }
                }
                assert!(got == want, "{from} as {elem}, {counts:?} by {interleave}");
            }
        }
    }
}

//! Packing: the rows of weights as a model file has them, joined and laid out as kernels read them.
//!
//! [`pack`] writes the layouts that [`Packed`] and [`Elem::Rows8`] document, at the offsets of [`plane_offsets`]; [`unpack`] reads
//! the numbers of any of them back, slowly, for tests. No value changes: what `unpack` gives is what
//! [`dequantize`](crate::quant::dequantize) gives, bit for bit.

use half::{bf16, f16};

use crate::program::Weight;
use crate::quant::{self, Sides, decode_block};
use crate::{DType, Elem, FACTOR_SPAN, GgufType, Packed, Part, plane_offsets};

/// Rows of a block of the packed layouts.
const LANES: usize = 8;
/// Elements along k that share their data words.
const SPAN: usize = 32;

/// Why a weight cannot be packed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// There is no way from one element type to the other.
    #[error("{from} cannot be packed as {to}")]
    Unsupported {
        /// Type in the file.
        from: Elem,
        /// Layout asked for.
        to: Elem,
    },
    /// A row is not a whole number of blocks.
    #[error("rows of {k} elements are not whole blocks of {of}")]
    Ragged {
        /// Elements in a row.
        k: usize,
        /// Element type with blocks.
        of: Elem,
    },
    /// A source, or the output, has another length than its shape says.
    #[error("{what} has {found} bytes, expected {expected}")]
    Length {
        /// `source N` or `output`.
        what: String,
        /// Bytes there.
        found: usize,
        /// Bytes due.
        expected: usize,
    },
    /// Sources cannot be interleaved.
    #[error("sources of {rows:?} rows cannot be interleaved by {interleave}")]
    Interleave {
        /// Rows of each source.
        rows: Vec<usize>,
        /// Rows per turn.
        interleave: usize,
    },
    /// Sizes beyond what an address can hold.
    #[error("the size of the matrix overflows")]
    Overflow,
}

/// Bytes of one row of `k` elements.
fn row_bytes(elem: Elem, k: usize) -> Result<usize, PackError> {
    match elem {
        Elem::Scalar(d) => k.checked_mul(d.size()).ok_or(PackError::Overflow),
        Elem::Gguf(t) if !k.is_multiple_of(t.block_len()) => Err(PackError::Ragged { k, of: elem }),
        Elem::Gguf(t) => (k / t.block_len()).checked_mul(t.block_bytes()).ok_or(PackError::Overflow),
        _ => Err(PackError::Unsupported { from: elem, to: elem }),
    }
}

/// The rows of the joined matrix, in order.
fn joined<'a>(sources: &[(&'a [u8], usize)], row: usize, interleave: usize) -> Result<Vec<&'a [u8]>, PackError> {
    for (i, (bytes, rows)) in sources.iter().enumerate() {
        let expected = rows.checked_mul(row).ok_or(PackError::Overflow)?;
        if bytes.len() != expected {
            return Err(PackError::Length { what: format!("source {i}"), found: bytes.len(), expected });
        }
    }
    let split = |i: usize| sources[i].0.chunks_exact(row.max(1));
    if interleave == 0 || row == 0 {
        return Ok((0..sources.len()).flat_map(split).collect());
    }
    let first = sources.first().map_or(0, |s| s.1);
    if sources.iter().any(|s| s.1 != first) || !first.is_multiple_of(interleave) {
        return Err(PackError::Interleave { rows: sources.iter().map(|s| s.1).collect(), interleave });
    }
    let turns = 0..first / interleave;
    let parts = turns.flat_map(|turn| (0..sources.len()).map(move |i| (turn, i)));
    Ok(parts.flat_map(|(turn, i)| split(i).skip(turn * interleave).take(interleave)).collect())
}

/// Joins the rows of `sources` and writes them in the layout `elem`.
///
/// Each source is the bytes and the number of rows of a matrix of `from` with `k` columns. Rows follow one another source by
/// source, or, when `interleave` is not 0, are taken in turn, `interleave` rows from each source. `out` must have the size that
/// [`plane_offsets`] gives for the joined matrix; whatever it held is overwritten, padding becomes zero.
///
/// `from` and `elem` are equal (a plain copy), or a block format and its [`Packed::for_gguf`], or a scalar type and its
/// [`Elem::Rows8`]; and everything that stands for real numbers can be written as f32, plain or in row blocks.
///
/// # Errors
/// Another pair of types, lengths that do not fit the shape, or sources that cannot be interleaved.
pub fn pack(
    from: Elem,
    elem: Elem,
    interleave: usize,
    sources: &[(&[u8], usize)],
    k: usize,
    out: &mut [u8],
) -> Result<(), PackError> {
    let row = row_bytes(from, k).map_err(|e| match e {
        PackError::Unsupported { .. } => PackError::Unsupported { from, to: elem },
        other => other,
    })?;
    let rows = joined(sources, row, interleave)?;
    let n = sources.iter().try_fold(0usize, |n, s| n.checked_add(s.1)).ok_or(PackError::Overflow)?;
    // No layout needs more than 16 bytes per element; past this check the sizes below cannot overflow.
    n.checked_add(LANES).and_then(|n| n.checked_mul(k)?.checked_mul(16)).ok_or(PackError::Overflow)?;
    let (at, size) = plane_offsets(elem, n, k);
    if out.len() != size {
        return Err(PackError::Length { what: "output".into(), found: out.len(), expected: size });
    }
    out.fill(0);
    match (from, elem) {
        (a, b) if a == b => {
            for (to, row) in out.chunks_exact_mut(row.max(1)).zip(&rows) {
                to.copy_from_slice(row);
            }
            Ok(())
        }
        (Elem::Scalar(d), Elem::Rows8(to)) if d == to => {
            match d.size() {
                1 => rows8::<1>(&rows, k, out),
                2 => rows8::<2>(&rows, k, out),
                4 => rows8::<4>(&rows, k, out),
                _ => rows8::<8>(&rows, k, out),
            }
            Ok(())
        }
        (Elem::Gguf(t), Elem::Packed(p)) if p == Packed::for_gguf(t) => {
            let (data, rest) = out.split_at_mut(at[1]);
            let (scale, rest) = rest.split_at_mut(at[2] - at[1]);
            let (min, factor) = rest.split_at_mut(at[3] - at[2]);
            by_bits(t, &rows, k, [data, scale, min, factor]);
            Ok(())
        }
        (_, Elem::Scalar(DType::F32) | Elem::Rows8(DType::F32)) => {
            let mut numbers = vec![0f32; k];
            for (i, row) in rows.iter().enumerate() {
                widen(from, row, &mut numbers).ok_or(PackError::Unsupported { from, to: elem })?;
                let out = out.as_chunks_mut::<4>().0;
                match elem {
                    Elem::Rows8(_) => {
                        store(&numbers, out[i / LANES * LANES * k + i % LANES..].iter_mut().step_by(LANES))
                    }
                    _ => store(&numbers, out[i * k..].iter_mut()),
                }
            }
            Ok(())
        }
        _ => Err(PackError::Unsupported { from, to: elem }),
    }
}

fn store<'a>(numbers: &[f32], out: impl Iterator<Item = &'a mut [u8; 4]>) {
    out.zip(numbers).for_each(|(to, v)| *to = v.to_le_bytes());
}

/// The numbers of a row; none for a type without.
fn widen(from: Elem, row: &[u8], out: &mut [f32]) -> Option<()> {
    let halves = row.as_chunks::<2>().0;
    match from {
        Elem::Gguf(t) => quant::dequantize(t, row, out).ok(),
        Elem::Scalar(DType::F16) => {
            out.iter_mut().zip(halves).for_each(|(to, b)| *to = f16::from_le_bytes(*b).to_f32());
            Some(())
        }
        Elem::Scalar(DType::BF16) => {
            out.iter_mut().zip(halves).for_each(|(to, b)| *to = bf16::from_le_bytes(*b).to_f32());
            Some(())
        }
        _ => None,
    }
}

/// Bytes of a weight as kernels read it.
///
/// # Errors
/// A shape that is absurdly large.
pub fn packed_len(w: &Weight) -> Result<usize, PackError> {
    let (n, k) = rows_and_columns(w)?;
    n.checked_add(LANES).and_then(|n| n.checked_mul(k)?.checked_mul(16)).ok_or(PackError::Overflow)?;
    Ok(plane_offsets(w.elem, n, k).1)
}

/// Packs a weight from the bytes and rows of each of its sources, into `out` of [`packed_len`] bytes.
///
/// # Errors
/// As [`pack`].
pub fn pack_weight(w: &Weight, parts: &[(&[u8], usize)], out: &mut [u8]) -> Result<(), PackError> {
    match parts {
        [(bytes, _)] if w.elem == w.from && bytes.len() <= out.len() => {
            let (head, rest) = out.split_at_mut(bytes.len());
            head.copy_from_slice(bytes);
            rest.fill(0);
            Ok(())
        }
        _ => pack(w.from, w.elem, w.interleave as usize, parts, rows_and_columns(w)?.1, out),
    }
}

/// Matrices have two axes; anything else is one row.
fn rows_and_columns(w: &Weight) -> Result<(usize, usize), PackError> {
    match w.shape.as_slice() {
        [n, k] => Ok((*n, *k)),
        other => Ok((1, other.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).ok_or(PackError::Overflow)?)),
    }
}

/// `[n / 8, k, 8]` from rows of elements of `S` bytes.
fn rows8<const S: usize>(rows: &[&[u8]], k: usize, out: &mut [u8]) {
    for (block, out) in rows.chunks(LANES).zip(out.chunks_exact_mut((k * LANES * S).max(1))) {
        for (lane, row) in block.iter().enumerate() {
            let lanes = out.as_chunks_mut::<S>().0.iter_mut().skip(lane).step_by(LANES);
            for (to, from) in lanes.zip(row.as_chunks::<S>().0) {
                *to = *from;
            }
        }
    }
}

/// The data words of 32 integers of `B` bits.
#[inline(always)]
fn words<const B: usize>(q: &[u8; SPAN]) -> [u32; B] {
    let mut words = [0; B];
    part::<B, 8>(q, &mut words);
    part::<B, 4>(q, &mut words);
    part::<B, 2>(q, &mut words);
    part::<B, 1>(q, &mut words);
    words
}

/// Their part of width `W`, if there is one.
#[inline(always)]
fn part<const B: usize, const W: u8>(q: &[u8; SPAN], words: &mut [u32; B]) {
    let Some(part) = (const { Part::of(B as u8, W) }) else { return };
    let ones = u32::from(part.ones()) * 0x0101_0101;
    for (quad, bytes) in q.as_chunks::<4>().0.iter().enumerate() {
        let bits = u32::from_le_bytes(*bytes) >> part.from & ones;
        words[part.word(quad)] |= bits << part.bit(quad);
    }
}

/// The planes of rows of GGUF blocks.
fn by_bits(t: GgufType, rows: &[&[u8]], k: usize, planes: [&mut [u8]; 4]) {
    match Packed::for_gguf(t).bits {
        2 => blocks::<2>(t, rows, k, planes),
        3 => blocks::<3>(t, rows, k, planes),
        4 => blocks::<4>(t, rows, k, planes),
        5 => blocks::<5>(t, rows, k, planes),
        6 => blocks::<6>(t, rows, k, planes),
        _ => blocks::<8>(t, rows, k, planes),
    }
}

fn blocks<const B: usize>(t: GgufType, rows: &[&[u8]], k: usize, planes: [&mut [u8]; 4]) {
    let p = Packed::for_gguf(t);
    let spans = t.block_len() / SPAN;
    let [data, mut sides @ ..] = planes;
    let data = data.as_chunks_mut::<4>().0;
    let mut q = [0u8; 256];
    for (i, row) in rows.iter().enumerate() {
        let (block, lane) = (i / LANES, i % LANES);
        for (j, bytes) in row.chunks_exact(t.block_bytes()).enumerate() {
            let found = decode_block(t, bytes, &mut q);
            let block = block * (k / t.block_len()) + j;
            let out = data[block * spans * B * LANES + lane..].chunks_mut(B * LANES);
            for (out, q) in out.zip(q[..t.block_len()].as_chunks().0) {
                put(out, &words::<B>(q));
            }
            put_sides(p, &found, t.block_len(), &mut sides, block, lane);
        }
    }
    // Rows that pad the last block: scale (and minimum) are zero already, integers are the zero point.
    let padding = rows.len()..rows.len().next_multiple_of(LANES);
    let zero = words::<B>(&[p.zero; SPAN]);
    for i in padding {
        let at = i / LANES * (k / SPAN) * B * LANES + i % LANES;
        data[at..].chunks_mut(B * LANES).take(k / SPAN).for_each(|out| put(out, &zero));
    }
}

/// Writes what a block of `len` elements has in the planes of scales, minima and factors, as number `block` of a matrix.
fn put_sides(p: Packed, found: &Sides, len: usize, planes: &mut [&mut [u8]; 3], block: usize, lane: usize) {
    let [scales, mins, factors] = planes;
    let groups = len / usize::from(p.group);
    let first = block * groups * LANES + lane;
    if !p.has_factors() {
        let side = |plane: &mut [u8], factor: f16| {
            plane.as_chunks_mut::<2>().0[first..].iter_mut().step_by(LANES).take(groups).for_each(|to| {
                *to = factor.to_le_bytes();
            });
        };
        side(scales, found.factor[0]);
        if p.min {
            side(mins, found.factor[1]);
        }
        return;
    }
    for (to, scale) in scales[first..].iter_mut().step_by(LANES).zip(&found.scale[..groups]) {
        // The same bits, whether there is a sign or not.
        *to = *scale as u8;
    }
    if p.min {
        for (to, min) in mins[first..].iter_mut().step_by(LANES).zip(&found.min[..groups]) {
            *to = *min;
        }
    }
    let kinds = 1 + usize::from(p.min);
    let at = block * kinds * LANES + lane;
    for (to, factor) in factors.as_chunks_mut::<2>().0[at..].iter_mut().step_by(LANES).zip(&found.factor[..kinds]) {
        *to = factor.to_le_bytes();
    }
}

/// Writes one row's words of a span, from the row's first word on.
fn put(out: &mut [[u8; 4]], words: &[u32]) {
    for (to, word) in out.iter_mut().step_by(LANES).zip(words) {
        *to = word.to_le_bytes();
    }
}

/// The numbers of an `[n, k]` matrix in any layout that [`pack`] writes, row major. The reference reader: slow and plain.
///
/// # Errors
/// A length that does not fit the shape, or a type without a layout of its own.
pub fn unpack(elem: Elem, n: usize, k: usize, bytes: &[u8]) -> Result<Vec<f32>, PackError> {
    n.checked_add(LANES).and_then(|n| n.checked_mul(k)?.checked_mul(16)).ok_or(PackError::Overflow)?;
    if let Elem::Gguf(_) = elem {
        row_bytes(elem, k)?;
    }
    let (at, size) = plane_offsets(elem, n, k);
    if bytes.len() != size {
        return Err(PackError::Length { what: "matrix".into(), found: bytes.len(), expected: size });
    }
    let pairs = (0..n).flat_map(|i| (0..k).map(move |j| (i, j)));
    match elem {
        Elem::Scalar(d) => pairs.map(|(i, j)| number(elem, d, bytes, i * k + j)).collect(),
        Elem::Rows8(d) => pairs.map(|(i, j)| number(elem, d, bytes, (i / 8 * k + j) * 8 + i % 8)).collect(),
        Elem::Gguf(t) => {
            let mut out = vec![0.0; n * k];
            let held = n * k / t.block_len() * t.block_bytes();
            quant::dequantize(t, &bytes[..held], &mut out).map_err(|_| PackError::Ragged { k, of: elem })?;
            Ok(out)
        }
        Elem::Packed(p) => {
            let group = usize::from(p.group);
            if !k.is_multiple_of(SPAN) || !(1..=8).contains(&p.bits) || ![16, 32].contains(&group) {
                return Err(PackError::Ragged { k, of: elem });
            }
            let value = |(i, j): (usize, usize)| {
                let (block, lane, quad) = (i / 8, i % 8, j % SPAN / 4);
                let span = block * (k / SPAN) + j / SPAN;
                let q = p.parts().fold(0, |q, part| {
                    let byte = bytes[((span * usize::from(p.bits) + part.word(quad)) * 8 + lane) * 4 + j % 4];
                    q | (byte >> part.bit(quad) & part.ones()) << part.from
                });
                let g = (block * (k / group) + j / group) * 8 + lane;
                let side = |plane: usize| {
                    let side = number(elem, p.scale, &bytes[at[1 + plane]..], g)?;
                    if !p.has_factors() {
                        return Ok(side);
                    }
                    let span = block * k.div_ceil(FACTOR_SPAN) + j / FACTOR_SPAN;
                    let kinds = 1 + usize::from(p.min);
                    let factor = number(elem, DType::F16, &bytes[at[3]..], (span * kinds + plane) * 8 + lane)?;
                    Ok(factor * side)
                };
                let scale = side(0)?;
                Ok(match p.min {
                    true => scale * f32::from(q) + side(1)?,
                    false => scale * (f32::from(q) - f32::from(p.zero)),
                })
            };
            pairs.map(value).collect()
        }
        Elem::Act8 => Err(PackError::Unsupported { from: elem, to: elem }),
    }
}

/// Element `i` of scalars.
fn number(elem: Elem, d: DType, bytes: &[u8], i: usize) -> Result<f32, PackError> {
    let b = &bytes[i * d.size()..];
    Ok(match d {
        DType::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        DType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
        DType::BF16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        DType::U8 => f32::from(b[0]),
        DType::I8 => f32::from(b[0] as i8),
        _ => return Err(PackError::Unsupported { from: elem, to: Elem::Scalar(DType::F32) }),
    })
}

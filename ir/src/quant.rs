//! Exact decoding of the GGUF block formats.
//!
//! [`decode_block`] splits a block into unsigned integers, scales and minima in the terms of [`Packed::for_gguf`];
//! [`dequantize_block`] and [`dequantize`] turn blocks into f32. Results equal ggml's bit for bit: each product and each sum is
//! rounded to f32 once, in ggml's order, and nothing is contracted into a fused multiply-add.

use half::f16;

use crate::{GgufType, Packed};

/// Why a run of blocks cannot be dequantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantError {
    /// The byte length is not that of a whole number of blocks.
    #[error("{bytes} bytes are not a whole number of {} blocks of {} bytes", .format.name(), .format.block_bytes())]
    Ragged {
        /// Block format.
        format: GgufType,
        /// Bytes given.
        bytes: usize,
    },
    /// The output has another length than the blocks hold.
    #[error("{} blocks hold {held} elements, the output has room for {room}", .format.name())]
    Length {
        /// Block format.
        format: GgufType,
        /// Elements in the blocks.
        held: usize,
        /// Elements in the output.
        room: usize,
    },
}

fn half(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Splits nibbles: the low ones fill the first half of `q`, the high ones the second half.
fn nibbles(packed: &[u8], q: &mut [u8]) {
    let (low, high) = q.split_at_mut(packed.len());
    for ((&byte, low), high) in packed.iter().zip(low).zip(high) {
        *low = byte & 15;
        *high = byte >> 4;
    }
}

/// Splits pairs of bits: of 32 bytes, those that are lowest fill the first 32 elements of `q`, and so on.
fn pairs(packed: &[u8], q: &mut [u8]) {
    for (packed, q) in packed.chunks_exact(32).zip(q.chunks_exact_mut(128)) {
        for (part, q) in q.chunks_exact_mut(32).enumerate() {
            for (&byte, q) in packed.iter().zip(q) {
                *q = byte >> (2 * part) & 3;
            }
        }
    }
}

/// Adds bit `j` of `bits` as the fifth bit of `q[j]`.
fn fifth_bits(bits: &[u8], q: &mut [u8]) {
    for (&byte, q) in bits.iter().zip(q.chunks_exact_mut(8)) {
        for (j, q) in q.iter_mut().enumerate() {
            *q |= (byte >> j & 1) << 4;
        }
    }
}

/// Scales and minima of a block as its format has them: factors, and what each group multiplies them by.
///
/// The scale of group `g` is `factor[0] * scale[g]` and its minimum `factor[1] * min[g]`, both exact in f32. Where a block has one scale,
/// that is the factor, and the group's part is 1.
#[derive(Clone, Copy, Debug)]
pub struct Sides {
    /// Of scales, and of minima.
    pub factor: [f16; 2],
    /// One per group; 8 bits, with a sign or without as [`Packed::scale`] says.
    pub scale: [i16; 16],
    /// One per group.
    pub min: [u8; 16],
}

impl Sides {
    /// The scale of a group.
    pub fn scale(&self, g: usize) -> f32 {
        self.factor[0].to_f32() * f32::from(self.scale[g])
    }

    /// The minimum of a group.
    pub fn min(&self, g: usize) -> f32 {
        self.factor[1].to_f32() * f32::from(self.min[g])
    }

    /// One number for all groups.
    fn whole(scale: f16, min: f16) -> Sides {
        Sides { factor: [scale, min], scale: [1; 16], min: [1; 16] }
    }

    /// The eight 6-bit scales and minima of a K block, and its two factors.
    fn six_bits(block: &[u8]) -> Sides {
        let mut sides = Sides::whole(half(block, 0), -half(block, 2));
        let s = &block[4..16];
        for j in 0..8 {
            let (scale, min) = match j {
                0..4 => (s[j] & 63, s[j + 4] & 63),
                _ => (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4),
            };
            (sides.scale[j], sides.min[j]) = (scale.into(), min);
        }
        sides
    }
}

/// Splits one block into integers, in the order of the elements, and scales and minima.
///
/// With `p = Packed::for_gguf(t)` and `n = t.block_len()`: `block` has `t.block_bytes()` bytes, `q` takes `n` integers in
/// `0..=p.max`. The value of element `i` of group `g`, of `p.group` elements each, is `scale(g) * (q[i] - p.zero)`, or, if `p.min`,
/// `scale(g) * q[i] + min(g)`, as ggml computes it.
///
/// # Panics
/// If a slice is shorter than stated.
pub fn decode_block(t: GgufType, block: &[u8], q: &mut [u8]) -> Sides {
    let block = &block[..t.block_bytes()];
    let q = &mut q[..t.block_len()];
    match t {
        GgufType::Q4_0 => {
            nibbles(&block[2..], q);
            Sides::whole(half(block, 0), f16::ZERO)
        }
        GgufType::Q4_1 => {
            nibbles(&block[4..], q);
            Sides::whole(half(block, 0), half(block, 2))
        }
        GgufType::Q5_0 => {
            nibbles(&block[6..], q);
            fifth_bits(&block[2..6], q);
            Sides::whole(half(block, 0), f16::ZERO)
        }
        GgufType::Q5_1 => {
            nibbles(&block[8..], q);
            fifth_bits(&block[4..8], q);
            Sides::whole(half(block, 0), half(block, 2))
        }
        GgufType::Q8_0 => {
            for (q, &byte) in q.iter_mut().zip(&block[2..]) {
                *q = byte ^ 0x80;
            }
            Sides::whole(half(block, 0), f16::ZERO)
        }
        GgufType::Q2K => {
            let mut sides = Sides::whole(half(block, 80), -half(block, 82));
            for ((scale, min), &s) in sides.scale.iter_mut().zip(&mut sides.min).zip(&block[..16]) {
                (*scale, *min) = (i16::from(s & 15), s >> 4);
            }
            pairs(&block[16..80], q);
            sides
        }
        GgufType::Q3K => {
            let (mut sides, s) = (Sides::whole(half(block, 108), f16::ZERO), &block[96..108]);
            for (j, scale) in sides.scale.iter_mut().enumerate() {
                let low = s[j % 8] >> (j / 8 * 4) & 15;
                let high = s[8 + j % 4] >> (j / 4 * 2) & 3;
                *scale = i16::from(high << 4 | low) - 32;
            }
            pairs(&block[32..96], q);
            for (part, q) in q.chunks_exact_mut(32).enumerate() {
                for (&byte, q) in block[..32].iter().zip(q) {
                    *q |= (byte >> part & 1) << 2;
                }
            }
            sides
        }
        GgufType::Q4K => {
            for (packed, q) in block[16..].chunks_exact(32).zip(q.chunks_exact_mut(64)) {
                nibbles(packed, q);
            }
            Sides::six_bits(block)
        }
        GgufType::Q5K => {
            let high = &block[16..48];
            for (i, (packed, q)) in block[48..].chunks_exact(32).zip(q.chunks_exact_mut(64)).enumerate() {
                nibbles(packed, q);
                let (first, second) = q.split_at_mut(32);
                for ((&byte, first), second) in high.iter().zip(first).zip(second) {
                    *first |= (byte >> (2 * i) & 1) << 4;
                    *second |= (byte >> (2 * i + 1) & 1) << 4;
                }
            }
            Sides::six_bits(block)
        }
        GgufType::Q6K => {
            let mut sides = Sides::whole(half(block, 208), f16::ZERO);
            for (scale, &s) in sides.scale.iter_mut().zip(&block[192..208]) {
                *scale = i16::from(s as i8);
            }
            let halves = block[..128].chunks_exact(64).zip(block[128..192].chunks_exact(32));
            for ((low, high), q) in halves.zip(q.chunks_exact_mut(128)) {
                nibbles(low, q);
                for (part, q) in q.chunks_exact_mut(32).enumerate() {
                    for (&byte, q) in high.iter().zip(q) {
                        *q |= (byte >> (2 * part) & 3) << 4;
                    }
                }
            }
            sides
        }
    }
}

/// Values of one block: `t.block_bytes()` bytes to `t.block_len()` f32, equal to ggml's bit for bit.
///
/// # Panics
/// If a slice is shorter than stated.
pub fn dequantize_block(t: GgufType, block: &[u8], out: &mut [f32]) {
    let mut q = [0u8; 256];
    let sides = decode_block(t, block, &mut q);
    let p = Packed::for_gguf(t);
    let group = usize::from(p.group);
    let out = &mut out[..t.block_len()];
    for (g, (out, q)) in out.chunks_exact_mut(group).zip(q.chunks_exact(group)).enumerate() {
        let (scale, min) = (sides.scale(g), sides.min(g));
        for (out, &q) in out.iter_mut().zip(q) {
            *out = match p.min {
                true => scale * f32::from(q) + min,
                false => scale * (f32::from(q) - f32::from(p.zero)),
            };
        }
    }
}

/// Values of a run of blocks, such as a row of a matrix or a whole tensor.
///
/// # Errors
/// If `bytes` is not a whole number of blocks, or `out` has not exactly their number of elements.
pub fn dequantize(t: GgufType, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    let blocks = bytes.chunks_exact(t.block_bytes());
    if !blocks.remainder().is_empty() {
        return Err(QuantError::Ragged { format: t, bytes: bytes.len() });
    }
    let held = blocks.len() * t.block_len();
    if held != out.len() {
        return Err(QuantError::Length { format: t, held, room: out.len() });
    }
    for (block, out) in blocks.zip(out.chunks_exact_mut(t.block_len())) {
        dequantize_block(t, block, out);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! case {
        ($t:expr, $name:literal) => {
            (
                $t,
                include_bytes!(concat!("../../tests/oracles/quantization/", $name, ".raw")).as_slice(),
                include_bytes!(concat!("../../tests/oracles/quantization/", $name, ".f32")).as_slice(),
            )
        };
    }

    /// Random blocks and their values by PyPI's gguf 0.19.
    fn cases() -> [(GgufType, &'static [u8], &'static [u8]); 10] {
        [
            case!(GgufType::Q4_0, "q4_0"),
            case!(GgufType::Q4_1, "q4_1"),
            case!(GgufType::Q5_0, "q5_0"),
            case!(GgufType::Q5_1, "q5_1"),
            case!(GgufType::Q8_0, "q8_0"),
            case!(GgufType::Q2K, "q2_k"),
            case!(GgufType::Q3K, "q3_k"),
            case!(GgufType::Q4K, "q4_k"),
            case!(GgufType::Q5K, "q5_k"),
            case!(GgufType::Q6K, "q6_k"),
        ]
    }

    #[test]
    fn dequantizes_like_the_reference_bit_for_bit() {
        for (t, raw, expected) in cases() {
            let expected: Vec<u32> =
                expected.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
            let mut out = vec![0f32; expected.len()];
            dequantize(t, raw, &mut out).unwrap();
            assert!(expected.len() >= 96);
            for (i, (out, expected)) in out.iter().zip(expected).enumerate() {
                assert_eq!(out.to_bits(), expected, "{} element {i}: {out}", t.name());
            }
        }
    }

    #[test]
    fn integers_stay_within_the_declared_bound() {
        for (t, raw, _) in cases() {
            let p = Packed::for_gguf(t);
            let mut seen = 0;
            for block in raw.chunks_exact(t.block_bytes()) {
                let mut q = vec![0; t.block_len()];
                decode_block(t, block, &mut q);
                seen = seen.max(q.into_iter().max().unwrap());
            }
            assert!(seen <= p.max && seen > p.max / 4 * 3, "{}: {seen}", t.name());
        }
    }

    #[test]
    fn lengths_are_checked() {
        let t = GgufType::Q4_0;
        assert_eq!(dequantize(t, &[0; 17], &mut [0.0; 32]), Err(QuantError::Ragged { format: t, bytes: 17 }));
        let err = dequantize(t, &[0; 36], &mut [0.0; 32]).unwrap_err();
        assert_eq!(err.to_string(), "q4_0 blocks hold 64 elements, the output has room for 32");
    }
}

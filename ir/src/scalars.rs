//! Numbers in memory.

use half::{bf16, f16};

use crate::DType;

/// Numbers as scalars of a type, the nearest ones, in little-endian order.
pub fn encode(d: DType, values: &[f32]) -> Vec<u8> {
    let each = |v: &f32| -> Vec<u8> {
        match d {
            DType::F32 => v.to_le_bytes().to_vec(),
            DType::F16 => f16::from_f32(*v).to_le_bytes().to_vec(),
            DType::BF16 => bf16::from_f32(*v).to_le_bytes().to_vec(),
            d => (*v as i64).to_le_bytes()[..d.size()].to_vec(),
        }
    };
    values.iter().flat_map(each).collect()
}

/// The numbers that scalars of a type hold in their place.
pub fn held(d: DType, values: &[f32]) -> Vec<f32> {
    if d == DType::F32 { values.to_vec() } else { decode(d, &encode(d, values)) }
}

/// Scalars of a type as numbers: the reverse of [`encode`].
pub fn decode(d: DType, bytes: &[u8]) -> Vec<f32> {
    let each = |b: &[u8]| {
        let mut raw = [0u8; 8];
        raw[..b.len()].copy_from_slice(b);
        let u = u64::from_le_bytes(raw);
        let shift = 64 - 8 * b.len() as u32;
        match d {
            DType::F32 => f32::from_bits(u as u32),
            DType::F16 => f16::from_bits(u as u16).to_f32(),
            DType::BF16 => bf16::from_bits(u as u16).to_f32(),
            DType::I64 | DType::I32 | DType::I16 | DType::I8 => (((u << shift) as i64) >> shift) as f32,
            DType::U32 | DType::U8 | DType::Bool => u as f32,
        }
    };
    bytes.chunks_exact(d.size()).map(each).collect()
}

//! Activations in 8 bits.

use core::arch::aarch64::*;

use marquetry_ir::graph::QUANTIZE_FLOOR;

use super::super::Call;
use super::super::activations::rows;

/// [`MicroOp::Quantize`](marquetry_ir::loops::MicroOp::Quantize).
pub unsafe extern "C" fn quantize(args: *const *mut u8, sizes: *const i64) {
    // SAFETY: the caller passes what `MicroOp::Quantize` says.
    unsafe {
        for row in rows(Call { args, sizes }) {
            for g in 0..row.groups {
                *row.scale.add(g) = group(row.x.add(32 * g), row.q.add(32 * g), row.sums.add(2 * g));
            }
        }
    }
}

/// One group of 32; returns its scale.
#[inline(always)]
unsafe fn group(x: *const f32, q: *mut i8, sums: *mut f32) -> f32 {
    unsafe {
        let mut top = vdupq_n_f32(0.0);
        for i in 0..8 {
            top = vmaxnmq_f32(top, vabsq_f32(vld1q_f32(x.add(4 * i))));
        }
        let max = vmaxnmvq_f32(top);
        let inverse = vdupq_n_f32(if max > QUANTIZE_FLOOR { 127.0 / max } else { 0.0 });
        let scale = max * (1.0 / 127.0);
        for half in 0..2 {
            let mut words = [vdup_n_s16(0); 4];
            for (i, words) in words.iter_mut().enumerate() {
                let v = vld1q_f32(x.add(16 * half + 4 * i));
                // Ties to even.
                *words = vqmovn_s32(vcvtnq_s32_f32(vmulq_f32(v, inverse)));
            }
            let [a, b, c, d] = words;
            let bytes = vqmovn_high_s16(vqmovn_s16(vcombine_s16(a, b)), vcombine_s16(c, d));
            vst1q_s8(q.add(16 * half), bytes);
            *sums.add(half) = f32::from(vaddlvq_s8(bytes)) * scale;
        }
        scale
    }
}

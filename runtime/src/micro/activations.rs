//! Rows of activations that are to be 8 bits.

use super::Call;

/// A row of [`MicroOp::Quantize`](marquetry_ir::loops::MicroOp::Quantize).
#[derive(Clone, Copy)]
pub struct Row {
    pub q: *mut i8,
    pub scale: *mut f32,
    pub sums: *mut f32,
    pub x: *const f32,
    pub groups: usize,
}

/// The rows of a call.
///
/// # Safety
/// The call is one of `MicroOp::Quantize`.
pub unsafe fn rows(c: Call) -> impl Iterator<Item = Row> {
    // SAFETY: the call's arguments and sizes are those of the operation.
    let [rows, groups] = [0, 1].map(|i| unsafe { c.size(i) });
    (0..rows).map(move |r| unsafe {
        let stride = |arg: usize| r * c.size(2 + arg);
        Row {
            q: c.arg::<i8>(0).add(stride(0)),
            scale: c.arg::<f32>(1).add(stride(1)),
            sums: c.arg::<f32>(2).add(stride(2)),
            x: c.arg::<f32>(3).add(stride(3)),
            groups,
        }
    })
}

//! Memory that kernels read and write: aligned allocations, mapped weights and the arena.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use marquetry_ir::{DType, Dim, Sym};
use memmap2::{Mmap, MmapMut};

use crate::RuntimeError;

/// Alignment of every allocation and of mapped weights, in bytes: one cache line.
pub const ALIGN: usize = 64;

/// Allocations of this many bytes and more are maps of their own: their pages take memory once they are written, and go back to the
/// system with them.
const MAPPED: usize = 1 << 20;
/// A huge page.
const HUGE: usize = 2 << 20;

/// Zeroed bytes, aligned to [`ALIGN`].
pub struct AlignedBytes {
    ptr: NonNull<u8>,
    len: usize,
    /// Owns the memory, if it is large.
    map: Option<MmapMut>,
}

// SAFETY: the allocation is owned and reached only through `&self`/`&mut self`, or through raw pointers whose users answer
// for their own ordering.
unsafe impl Send for AlignedBytes {}
// SAFETY: as above.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    fn layout(len: usize) -> Option<Layout> {
        Layout::from_size_align(len.max(1), ALIGN).ok()
    }

    /// `len` zero bytes; `what` names their use in the error.
    pub fn new(len: usize, what: &str) -> Result<AlignedBytes, RuntimeError> {
        let fail = || RuntimeError::Memory { what: what.into(), bytes: len as u64 };
        let layout = Self::layout(len).ok_or_else(fail)?;
        if len >= MAPPED {
            let mut map = MmapMut::map_anon(len).map_err(|_| fail())?;
            let ptr = NonNull::new(map.as_mut_ptr()).ok_or_else(fail)?;
            return Ok(AlignedBytes { ptr, len, map: Some(map) });
        }
        // SAFETY: the layout has a non-zero size.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(fail)?;
        Ok(AlignedBytes { ptr, len, map: None })
    }

    /// As [`AlignedBytes::new`], for bytes that are all going to be written and then read often: in huge pages where the system has
    /// them for who asks.
    pub fn dense(len: usize, what: &str) -> Result<AlignedBytes, RuntimeError> {
        let room = if len < MAPPED { 0 } else { HUGE };
        let mut bytes = AlignedBytes::new(len.saturating_add(room), what)?;
        if let Some(map) = &bytes.map {
            let skip = bytes.ptr.as_ptr().align_offset(HUGE).min(room);
            // SAFETY: `len` bytes follow, as the map has `room` more.
            bytes.ptr = unsafe { bytes.ptr.add(skip) };
            bytes.len = len;
            // Small pages hold the same, also what is less than a huge page at the end.
            #[cfg(target_os = "linux")]
            let _ = map.advise_range(memmap2::Advice::HugePage, skip, len);
            #[cfg(not(target_os = "linux"))]
            let _ = map;
        }
        Ok(bytes)
    }

    /// A copy of `bytes`.
    pub fn copy(bytes: &[u8], what: &str) -> Result<AlignedBytes, RuntimeError> {
        let mut a = AlignedBytes::new(bytes.len(), what)?;
        a.copy_from_slice(bytes);
        Ok(a)
    }

    /// The first byte, for kernels. Valid for reads and writes of `len` bytes while `self` lives.
    pub fn base(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        if let (None, Some(layout)) = (&self.map, Self::layout(self.len)) {
            // SAFETY: allocated with this layout in `new`.
            unsafe { dealloc(self.ptr.as_ptr(), layout) }
        }
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes are owned.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: `len` initialised bytes are owned, and borrowed uniquely.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

/// The bytes of one packed weight, aligned to [`ALIGN`].
pub enum WeightData {
    /// In memory.
    Owned(AlignedBytes),
    /// In a mapped file.
    Mapped(MappedSlice),
}

/// A range of a mapped file.
pub struct MappedSlice {
    map: Arc<Mmap>,
    start: usize,
    len: usize,
}

impl WeightData {
    /// A copy of `bytes`.
    pub fn copy(bytes: &[u8]) -> Result<WeightData, RuntimeError> {
        AlignedBytes::copy(bytes, "a weight").map(WeightData::Owned)
    }

    /// `len` bytes from `start` of a mapped file. `start` is a multiple of [`ALIGN`], the range lies inside the map.
    pub fn mapped(map: Arc<Mmap>, start: usize, len: usize) -> Result<WeightData, RuntimeError> {
        let inside = start.checked_add(len).is_some_and(|end| end <= map.len());
        if !inside || !(map.as_ptr() as usize).wrapping_add(start).is_multiple_of(ALIGN) {
            let what = format!(
                "weight at byte {start}, {len} bytes long: must be aligned to {ALIGN} and lie in a file of {} bytes",
                map.len()
            );
            return Err(RuntimeError::Bounds { what });
        }
        Ok(WeightData::Mapped(MappedSlice { map, start, len }))
    }
}

impl Deref for WeightData {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            WeightData::Owned(a) => a,
            WeightData::Mapped(m) => &m.map[m.start..m.start + m.len],
        }
    }
}

/// Scratch memory of a step, with room for inputs and outputs that the caller did not align. One arena serves any number of
/// functions, one after the other; it grows to the largest.
#[derive(Default)]
pub struct Arena {
    bytes: Option<AlignedBytes>,
    own: Option<AlignedBytes>,
    staging: Option<AlignedBytes>,
}

impl Arena {
    /// An arena of that size; it grows when a function needs more.
    pub fn new(bytes: u64) -> Result<Arena, RuntimeError> {
        let mut a = Arena::default();
        a.reserve(bytes)?;
        Ok(a)
    }

    /// Grows to at least `bytes`. The contents are lost when it grows.
    pub fn reserve(&mut self, bytes: u64) -> Result<(), RuntimeError> {
        grow(&mut self.bytes, bytes, "the arena")
    }

    /// Bytes held, without staging.
    pub fn len(&self) -> usize {
        self.bytes.as_ref().map_or(0, |b| b.len())
    }

    /// Is nothing held?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.bytes.as_ref().map_or(NonNull::<u8>::dangling().as_ptr(), AlignedBytes::base)
    }

    /// What threads have for themselves, `bytes` in all. The contents are lost when it grows.
    pub(crate) fn own(&mut self, bytes: u64) -> Result<*mut u8, RuntimeError> {
        grow(&mut self.own, bytes, "the memory of each thread")?;
        Ok(self.own.as_ref().map_or(NonNull::<u8>::dangling().as_ptr(), AlignedBytes::base))
    }

    pub(crate) fn staging(&mut self, bytes: u64) -> Result<*mut u8, RuntimeError> {
        grow(&mut self.staging, bytes, "staging of inputs and outputs")?;
        Ok(self.staging.as_ref().map_or(NonNull::<u8>::dangling().as_ptr(), AlignedBytes::base))
    }
}

fn grow(slot: &mut Option<AlignedBytes>, bytes: u64, what: &str) -> Result<(), RuntimeError> {
    let len = usize::try_from(bytes).map_err(|_| RuntimeError::Memory { what: what.into(), bytes })?;
    if slot.as_ref().map_or(0, |b| b.len()) < len {
        *slot = None;
        *slot = Some(AlignedBytes::new(len, what)?);
    }
    Ok(())
}

/// The value of a dim; `None` where it is negative or leaves `i64`.
pub(crate) fn eval_dim(d: &Dim, sizes: &[i64]) -> Option<u64> {
    let mut sum = 0i128;
    for (monomial, c) in d.terms() {
        let mut p = i128::from(c);
        for &Sym(s) in monomial {
            p = p.checked_mul(i128::from(*sizes.get(s as usize)?))?;
        }
        sum = sum.checked_add(p)?;
    }
    i64::try_from(sum).ok().and_then(|v| u64::try_from(v).ok())
}

/// Bytes of an array of that shape at these sizes.
pub(crate) fn eval_bytes(dtype: DType, shape: &[Dim], sizes: &[i64]) -> Option<u64> {
    let n = shape.iter().try_fold(1u64, |p, d| p.checked_mul(eval_dim(d, sizes)?))?;
    n.checked_mul(dtype.size() as u64).filter(|&b| i64::try_from(b).is_ok())
}

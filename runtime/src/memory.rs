//! Memory that kernels read and write: aligned allocations, mapped weights, persistent states and the arena.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use marquetry_ir::program::State;
use marquetry_ir::{DType, Dim, Sym};
use memmap2::{Mmap, MmapMut};

use crate::RuntimeError;

/// Alignment of every allocation and of mapped weights, in bytes: one cache line.
pub const ALIGN: usize = 64;

/// Allocations of this many bytes and more are maps of their own: their pages take memory once they are written, and go back to the
/// system with them.
const MAPPED: usize = 1 << 20;

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
        let bytes = AlignedBytes::new(len, what)?;
        #[cfg(target_os = "linux")]
        if let Some(map) = &bytes.map {
            // Small pages hold the same.
            let _ = map.advise(memmap2::Advice::HugePage);
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

struct StateSlot {
    name: String,
    dtype: DType,
    shape: Vec<u64>,
    data: AlignedBytes,
}

/// Storage of a program's persistent tensors, e.g. the keys and values of a cache. Serves every function that declares the
/// same list of states, such as the prefill and the decode variant of one model.
pub struct States {
    id: u64,
    slots: Vec<StateSlot>,
}

impl States {
    /// Zeroed storage for `states` at these sizes (the values of the program's symbols, in declaration order).
    pub fn new(states: &[State], sizes: &[i64]) -> Result<States, RuntimeError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut slots = Vec::with_capacity(states.len());
        for s in states {
            let bad =
                || RuntimeError::Bounds { what: format!("state `{}` has no valid shape at sizes {sizes:?}", s.name) };
            let shape: Option<Vec<u64>> = s.shape.iter().map(|d| eval_dim(d, sizes)).collect();
            let shape = shape.ok_or_else(bad)?;
            let bytes = eval_bytes(s.dtype, &s.shape, sizes).and_then(|b| usize::try_from(b).ok()).ok_or_else(bad)?;
            let data = AlignedBytes::new(bytes, &format!("state `{}`", s.name))?;
            slots.push(StateSlot { name: s.name.clone(), dtype: s.dtype, shape, data });
        }
        Ok(States { id: NEXT.fetch_add(1, Ordering::Relaxed), slots })
    }

    /// Sets every state to zero.
    pub fn reset(&mut self) {
        self.slots.iter_mut().for_each(|s| s.data.fill(0));
    }

    /// Number of states.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Are there no states?
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Bytes of all states together.
    pub fn bytes(&self) -> u64 {
        self.slots.iter().map(|s| s.data.len() as u64).sum()
    }

    /// Name, element type, shape and contents (row major) of every state.
    pub fn iter(&self) -> impl Iterator<Item = (&str, DType, &[u64], &[u8])> {
        self.slots.iter().map(|s| (s.name.as_str(), s.dtype, s.shape.as_slice(), &*s.data))
    }

    /// Contents of the state of that name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.slots.iter().find(|s| s.name == name).map(|s| &*s.data)
    }

    /// Contents of the state of that name, to overwrite.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut [u8]> {
        self.slots.iter_mut().find(|s| s.name == name).map(|s| &mut *s.data)
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn base(&self, i: usize) -> *mut u8 {
        self.slots[i].data.base()
    }

    /// Checks that these are the states of a program at these sizes.
    pub(crate) fn check(&self, states: &[State], sizes: &[i64]) -> Result<(), RuntimeError> {
        if states.len() != self.slots.len() {
            let what = format!("{} states given, the program has {}", self.slots.len(), states.len());
            return Err(RuntimeError::Binding { what });
        }
        for (want, have) in states.iter().zip(&self.slots) {
            let same = want.name == have.name
                && want.dtype == have.dtype
                && want.shape.len() == have.shape.len()
                && want.shape.iter().zip(&have.shape).all(|(d, &n)| eval_dim(d, sizes) == Some(n));
            if !same {
                let shape: Vec<_> = want.shape.iter().map(|d| eval_dim(d, sizes)).collect();
                let what = format!(
                    "state `{}` is {}{:?}, the program has `{}` {}{shape:?}",
                    have.name, have.dtype, have.shape, want.name, want.dtype
                );
                return Err(RuntimeError::Binding { what });
            }
        }
        Ok(())
    }
}

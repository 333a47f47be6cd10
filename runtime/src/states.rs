//! Persistent tensors, such as the keys and values of a cache.

use std::sync::atomic::{AtomicU64, Ordering};

use marquetry_ir::DType;
use marquetry_ir::program::State;

use crate::RuntimeError;
use crate::memory::{ALIGN, AlignedBytes, eval_bytes, eval_dim};

/// States share blocks of at least so many bytes, if there are as many: blocks are in huge pages, of which attention, which reads some
/// of every layer's states, needs fewer than there are entries for small ones in a processor.
const BLOCK: usize = 8 << 20;

struct StateSlot {
    name: String,
    dtype: DType,
    shape: Vec<u64>,
    block: usize,
    start: usize,
    len: usize,
}

/// Storage of a program's persistent tensors, e.g. the keys and values of a cache. Serves every function that declares the
/// same list of states, such as the prefill and the decode variant of one model.
pub struct States {
    id: u64,
    slots: Vec<StateSlot>,
    blocks: Vec<AlignedBytes>,
}

/// A number that no other states have had.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl States {
    /// Zeroed storage for `states` at these sizes (the values of the program's symbols, in declaration order).
    pub fn new(states: &[State], sizes: &[i64]) -> Result<States, RuntimeError> {
        let (slots, lens) = lay_out(states, sizes)?;
        Ok(States { id: next_id(), slots, blocks: allocate(&lens)? })
    }

    /// Gives the states of these sizes, which differ in the first axis only. Elements keep their places and values along it; those that
    /// are new are 0. Needs little more memory than the larger ones of both take.
    ///
    /// # Errors
    /// Sizes that differ in more, or for which there is no memory; nothing is changed then.
    pub fn resize(&mut self, states: &[State], sizes: &[i64]) -> Result<(), RuntimeError> {
        let (slots, lens) = lay_out(states, sizes)?;
        let alike = |(a, b): (&StateSlot, &StateSlot)| {
            (&a.name, a.dtype, a.shape.get(1..)) == (&b.name, b.dtype, b.shape.get(1..))
        };
        if slots.len() != self.slots.len() || !slots.iter().zip(&self.slots).all(alike) {
            return Err(RuntimeError::Binding { what: "states can only grow or shrink along the first axis".into() });
        }
        // Maps take no memory before they are written.
        let mut blocks = allocate(&lens)?;
        let mut old: Vec<Option<AlignedBytes>> = std::mem::take(&mut self.blocks).into_iter().map(Some).collect();
        for (i, (from, to)) in self.slots.iter().zip(&slots).enumerate() {
            if let Some(block) = &old[from.block] {
                let kept = from.len.min(to.len);
                blocks[to.block][to.start..][..kept].copy_from_slice(&block[from.start..][..kept]);
            }
            if self.slots.get(i + 1).is_none_or(|next| next.block != from.block) {
                old[from.block] = None;
            }
        }
        (self.id, self.slots, self.blocks) = (next_id(), slots, blocks);
        Ok(())
    }

    /// Sets every state to zero.
    pub fn reset(&mut self) {
        self.blocks.iter_mut().for_each(|b| b.fill(0));
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
        self.slots.iter().map(|s| s.len as u64).sum()
    }

    /// Name, element type, shape and contents (row major) of every state.
    pub fn iter(&self) -> impl Iterator<Item = (&str, DType, &[u64], &[u8])> {
        self.slots.iter().map(|s| (s.name.as_str(), s.dtype, s.shape.as_slice(), self.contents(s)))
    }

    /// Contents of the state of that name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.slots.iter().find(|s| s.name == name).map(|s| self.contents(s))
    }

    /// Contents of the state of that name, to overwrite.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut [u8]> {
        let s = self.slots.iter().find(|s| s.name == name)?;
        Some(&mut self.blocks[s.block][s.start..][..s.len])
    }

    fn contents(&self, s: &StateSlot) -> &[u8] {
        &self.blocks[s.block][s.start..][..s.len]
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The first byte of a state, for kernels.
    pub(crate) fn base(&self, i: usize) -> *mut u8 {
        let s = &self.slots[i];
        self.blocks[s.block].base().wrapping_add(s.start)
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

/// Where each state lies, in which blocks of how many bytes.
fn lay_out(states: &[State], sizes: &[i64]) -> Result<(Vec<StateSlot>, Vec<usize>), RuntimeError> {
    let (mut slots, mut lens): (Vec<StateSlot>, Vec<usize>) = (Vec::with_capacity(states.len()), vec![]);
    for s in states {
        let bad = || RuntimeError::Bounds { what: format!("state `{}` has no valid shape at sizes {sizes:?}", s.name) };
        let shape: Option<Vec<u64>> = s.shape.iter().map(|d| eval_dim(d, sizes)).collect();
        let shape = shape.ok_or_else(bad)?;
        let len = eval_bytes(s.dtype, &s.shape, sizes).and_then(|b| usize::try_from(b).ok()).ok_or_else(bad)?;
        if lens.last().is_none_or(|&l| l >= BLOCK) {
            lens.push(0);
        }
        let block = lens.len() - 1;
        let start = lens[block];
        // A line apart, so that the same positions of different states do not compete for the same lines of a cache.
        let end = len.checked_next_multiple_of(ALIGN).and_then(|l| l.checked_add(ALIGN)?.checked_add(start));
        lens[block] = end.ok_or_else(bad)?;
        slots.push(StateSlot { name: s.name.clone(), dtype: s.dtype, shape, block, start, len });
    }
    Ok((slots, lens))
}

fn allocate(lens: &[usize]) -> Result<Vec<AlignedBytes>, RuntimeError> {
    lens.iter().map(|&len| AlignedBytes::dense(len, "states")).collect()
}

#[cfg(test)]
mod tests {
    use marquetry_ir::{Dim, Sym};

    use super::*;

    fn states() -> Vec<State> {
        let p = Dim::from(Sym(0));
        let state = |name: &str, dtype, shape: Vec<Dim>| State { name: name.into(), dtype, shape };
        let mut all = vec![state("fixed", DType::F32, vec![3.into(), 5.into()])];
        for i in 0..9 {
            all.push(state(&format!("k{i}"), DType::F16, vec![p.clone() * Dim::from(32), 3.into(), 64.into()]));
        }
        all
    }

    /// What state `i` has at byte `at`.
    fn byte(i: usize, at: usize) -> u8 {
        (at / 7 * 31 + i * 17) as u8
    }

    #[test]
    fn growing_and_shrinking_keep_what_there_is() {
        let list = states();
        let mut all = States::new(&list, &[3]).unwrap();
        let ids = [all.id()];
        for (i, s) in list.iter().enumerate() {
            let data = all.get_mut(&s.name).unwrap();
            assert!(data.iter().all(|b| *b == 0) && (data.as_ptr() as usize).is_multiple_of(ALIGN));
            data.iter_mut().enumerate().for_each(|(at, b)| *b = byte(i, at));
        }
        // One block, then several, then one.
        for (pages, blocks) in [(3, 1), (200, 3), (5, 1)] {
            all.resize(&list, &[pages]).unwrap();
            assert_eq!(all.blocks.len(), blocks);
            assert!(all.check(&list, &[pages]).is_ok() && all.check(&list, &[pages + 1]).is_err());
            assert!(!ids.contains(&all.id()));
            for (i, (name, _, shape, data)) in all.iter().enumerate() {
                let kept = if i == 0 { data.len() } else { 3 * 32 * 3 * 64 * 2 };
                assert_eq!(data.len(), shape.iter().product::<u64>() as usize * if i == 0 { 4 } else { 2 });
                let right = |(at, b): (usize, &u8)| *b == if at < kept { byte(i, at) } else { 0 };
                assert!(data.iter().enumerate().all(right), "{name} at {pages} pages");
            }
        }
    }

    #[test]
    fn what_can_not_be_had_changes_nothing() {
        let list = states();
        let mut all = States::new(&list, &[1]).unwrap();
        all.get_mut("k3").unwrap()[5] = 9;
        let mut other = list.clone();
        other[2].shape[1] = 4.into();
        assert!(all.resize(&other, &[2]).is_err() && all.resize(&list[1..], &[2]).is_err());
        assert!(matches!(all.resize(&list, &[i64::MAX]), Err(RuntimeError::Bounds { .. })));
        assert!(matches!(all.resize(&list, &[1 << 40]), Err(RuntimeError::Memory { .. })));
        assert!(all.check(&list, &[1]).is_ok() && all.get("k3").unwrap()[5] == 9);
    }
}

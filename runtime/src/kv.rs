//! Bookkeeping of a paged key/value cache: which physical slots hold the tokens of which sequence.
//!
//! The cache memory itself is state of a program: `pages * page_size` slots, numbered from 0. A sequence owns a table of pages;
//! its token at position `p` is in slot `table[p / page_size] * page_size + p % page_size`. Pages may be shared after
//! [`PagedKv::fork`]; a shared page is full and never written again.

use crate::RuntimeError;

/// A sequence of a [`PagedKv`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(u32);

impl SeqId {
    /// The number of the sequence; numbers of ended sequences are used again.
    pub fn number(self) -> u32 {
        self.0
    }
}

#[derive(Clone, Debug, Default)]
struct Sequence {
    len: usize,
    pages: Vec<u32>,
}

/// Page tables of the live sequences.
#[derive(Clone, Debug)]
pub struct PagedKv {
    page_size: usize,
    context: usize,
    /// Number of sequences that hold each page; 0 for a free one.
    holders: Vec<u32>,
    free: Vec<u32>,
    sequences: Vec<Option<Sequence>>,
}

/// The inputs of a ragged step, for the tokens of [`PagedKv::append`] in order.
///
/// Reused from step to step; [`PagedKv::step`] fills it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepInputs {
    /// `i32[n]`: position of each token in its sequence.
    pub pos: Vec<i32>,
    /// `i32[n]`: row of `pages` that belongs to each token's sequence.
    pub seq: Vec<i32>,
    /// `i32[n]`: physical slot that takes each token's keys and values.
    pub slot: Vec<i32>,
    /// `i32[nseq, max_pages]`: page table of each sequence, filled up with 0.
    pub pages: Vec<i32>,
    /// Number of rows of `pages`.
    pub nseq: usize,
    /// Number of columns of `pages`.
    pub max_pages: usize,
}

/// Tokens of one copied page: `from` and `to` are first slots, `len` the number of slots.
///
/// The caller copies them in every cache tensor before the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotCopy {
    /// First slot to read.
    pub from: usize,
    /// First slot to write.
    pub to: usize,
    /// Number of slots.
    pub len: usize,
}

impl PagedKv {
    /// Tables for a cache of `pages` pages of `page_size` tokens, and sequences of at most `context` tokens.
    ///
    /// `page_size` is at least 1, and every slot number fits an `i32`.
    pub fn new(pages: usize, page_size: usize, context: usize) -> Result<PagedKv, RuntimeError> {
        let slots = pages.checked_mul(page_size).filter(|&s| i32::try_from(s).is_ok());
        if page_size == 0 || slots.is_none() || i32::try_from(context).is_err() {
            let what = format!(
                "a cache of {pages} pages of {page_size} tokens for {context} tokens of context: pages must hold at least 1 \
                 token, and slots and positions must fit 31 bits"
            );
            return Err(RuntimeError::Bounds { what });
        }
        let memory = || RuntimeError::Memory { what: "cache page tables".into(), bytes: 8 * pages as u64 };
        let mut holders = Vec::new();
        holders.try_reserve_exact(pages).map_err(|_| memory())?;
        holders.resize(pages, 0);
        let mut free = Vec::new();
        free.try_reserve_exact(pages).map_err(|_| memory())?;
        free.extend((0..pages as u32).rev());
        Ok(PagedKv { page_size, context, holders, free, sequences: vec![] })
    }

    /// Tokens per page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Largest number of tokens of one sequence.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Number of pages, free or not.
    pub fn pages(&self) -> usize {
        self.holders.len()
    }

    /// Number of free pages.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// Starts an empty sequence, with room to name all pages that it may get: going on with it allocates nothing.
    pub fn start(&mut self) -> SeqId {
        let pages = Vec::with_capacity(self.context.div_ceil(self.page_size).min(self.holders.len()));
        self.insert(Sequence { len: 0, pages })
    }

    fn insert(&mut self, s: Sequence) -> SeqId {
        let i = self.sequences.iter().position(Option::is_none).unwrap_or_else(|| {
            self.sequences.push(None);
            self.sequences.len() - 1
        });
        self.sequences[i] = Some(s);
        SeqId(i as u32)
    }

    fn get(&self, id: SeqId) -> Result<&Sequence, RuntimeError> {
        let s = self.sequences.get(id.0 as usize).and_then(Option::as_ref);
        s.ok_or_else(|| RuntimeError::Sequence { what: format!("sequence {} is not in use", id.0) })
    }

    fn get_mut(&mut self, id: SeqId) -> Result<&mut Sequence, RuntimeError> {
        let s = self.sequences.get_mut(id.0 as usize).and_then(Option::as_mut);
        s.ok_or_else(|| RuntimeError::Sequence { what: format!("sequence {} is not in use", id.0) })
    }

    /// Number of tokens of a sequence.
    pub fn len(&self, id: SeqId) -> Result<usize, RuntimeError> {
        self.get(id).map(|s| s.len)
    }

    /// Has no sequence any tokens?
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.holders.len()
    }

    /// Slot of the token at `position` of a sequence; `None` when there is no such token.
    pub fn slot(&self, id: SeqId, position: usize) -> Option<usize> {
        let s = self.get(id).ok().filter(|s| position < s.len)?;
        Some(s.pages[position / self.page_size] as usize * self.page_size + position % self.page_size)
    }

    /// Makes room for `n` more tokens. Nothing changes when it fails: with [`RuntimeError::Context`] when the sequence would
    /// outgrow the context, with [`RuntimeError::Pages`] when too few pages are free.
    pub fn append(&mut self, id: SeqId, n: usize) -> Result<(), RuntimeError> {
        let s = self.get(id)?;
        let asked = s.len.saturating_add(n);
        if asked > self.context {
            return Err(RuntimeError::Context { context: self.context, asked });
        }
        let needed = asked.div_ceil(self.page_size).saturating_sub(s.pages.len());
        let free = self.free.len();
        if needed > free {
            return Err(RuntimeError::Pages { needed, free, total: self.holders.len() });
        }
        for _ in 0..needed {
            let p = self.take_page()?;
            self.get_mut(id)?.pages.push(p);
        }
        self.get_mut(id)?.len = asked;
        Ok(())
    }

    /// Takes back the tokens from position `len` on. `len` is at most the present length.
    ///
    /// When the sequence then ends inside a page that it shares with another, the page's remaining tokens move to a page of
    /// its own and the copy to make is returned; that fails with [`RuntimeError::Pages`] when no page is free.
    pub fn truncate(&mut self, id: SeqId, len: usize) -> Result<Option<SlotCopy>, RuntimeError> {
        let size = self.page_size;
        let s = self.get(id)?;
        if len > s.len {
            let what = format!("sequence {} has {} tokens and can not be cut to {len}", id.0, s.len);
            return Err(RuntimeError::Sequence { what });
        }
        let keep = len.div_ceil(size);
        let shared = (!len.is_multiple_of(size)).then(|| s.pages[keep - 1]).filter(|&p| self.holders[p as usize] > 1);
        let cut = s.pages[keep..].to_vec();
        let mut copy = None;
        if let Some(old) = shared {
            // Pages that the cut frees may serve for the copy.
            let spare = self.free.is_empty() && !cut.iter().any(|&p| self.holders[p as usize] == 1);
            if spare {
                return Err(RuntimeError::Pages { needed: 1, free: 0, total: self.holders.len() });
            }
            self.release(&cut);
            let new = self.take_page()?;
            self.release(&[old]);
            copy = Some(SlotCopy { from: old as usize * size, to: new as usize * size, len: len % size });
            self.get_mut(id)?.pages[keep - 1] = new;
        } else {
            self.release(&cut);
        }
        let s = self.get_mut(id)?;
        s.pages.truncate(keep);
        s.len = len;
        Ok(copy)
    }

    fn take_page(&mut self) -> Result<u32, RuntimeError> {
        let none = RuntimeError::Pages { needed: 1, free: 0, total: self.holders.len() };
        let p = self.free.pop().ok_or(none)?;
        self.holders[p as usize] = 1;
        Ok(p)
    }

    fn release(&mut self, pages: &[u32]) {
        for &p in pages.iter().rev() {
            let h = &mut self.holders[p as usize];
            *h -= 1;
            if *h == 0 {
                self.free.push(p);
            }
        }
    }

    /// Ends a sequence and gives back its pages.
    pub fn free(&mut self, id: SeqId) -> Result<(), RuntimeError> {
        let pages = std::mem::take(&mut self.get_mut(id)?.pages);
        self.release(&pages);
        self.sequences[id.0 as usize] = None;
        Ok(())
    }

    /// Starts a sequence with the first `len` tokens of another. Full pages are shared; the copy to make of a part of a page
    /// is returned.
    pub fn fork(&mut self, id: SeqId, len: usize) -> Result<(SeqId, Option<SlotCopy>), RuntimeError> {
        let size = self.page_size;
        let s = self.get(id)?;
        if len > s.len {
            let what = format!("sequence {} has {} tokens, {len} can not be shared", id.0, s.len);
            return Err(RuntimeError::Sequence { what });
        }
        let mut pages = s.pages[..len / size].to_vec();
        let partial = (!len.is_multiple_of(size)).then(|| s.pages[len / size]);
        let mut copy = None;
        if let Some(old) = partial {
            let new = self.take_page()?;
            copy = Some(SlotCopy { from: old as usize * size, to: new as usize * size, len: len % size });
            pages.push(new);
        }
        for &p in &pages[..len / size] {
            self.holders[p as usize] += 1;
        }
        Ok((self.insert(Sequence { len, pages }), copy))
    }

    /// Fills the inputs of a step over the last `n` tokens of each given sequence, in this order. The sequences differ.
    ///
    /// `max_pages` is the width of the page tables; it fails with [`RuntimeError::Bounds`] when a sequence has more pages.
    pub fn step(&self, batch: &[(SeqId, usize)], max_pages: usize, out: &mut StepInputs) -> Result<(), RuntimeError> {
        let StepInputs { pos, seq, slot, pages, nseq, max_pages: width } = out;
        [&mut *pos, seq, slot, pages].into_iter().for_each(|v| v.clear());
        *nseq = batch.len();
        *width = max_pages;
        for (row, &(id, n)) in batch.iter().enumerate() {
            let s = self.get(id)?;
            if n > s.len || batch[..row].iter().any(|b| b.0 == id) {
                let what =
                    format!("sequence {} has {} tokens: a step over {n} of them, once, was asked for", id.0, s.len);
                return Err(RuntimeError::Sequence { what });
            }
            if s.pages.len() > max_pages {
                let what = format!("sequence {} has {} pages, the step has room for {max_pages}", id.0, s.pages.len());
                return Err(RuntimeError::Bounds { what });
            }
            for p in s.len - n..s.len {
                pos.push(p as i32);
                seq.push(row as i32);
                slot.push((s.pages[p / self.page_size] as usize * self.page_size + p % self.page_size) as i32);
            }
            pages.extend(s.pages.iter().map(|&p| p as i32));
            pages.resize((row + 1) * max_pages, 0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_step_names_slots_and_pages() {
        let mut kv = PagedKv::new(8, 4, 20).unwrap();
        let (a, b) = (kv.start(), kv.start());
        kv.append(a, 5).unwrap();
        kv.append(b, 1).unwrap();
        kv.append(a, 1).unwrap();
        let mut s = StepInputs::default();
        kv.step(&[(b, 1), (a, 3)], 3, &mut s).unwrap();
        let want = StepInputs {
            pos: vec![0, 3, 4, 5],
            seq: vec![0, 1, 1, 1],
            slot: vec![8, 3, 4, 5],
            pages: vec![2, 0, 0, 0, 1, 0],
            nseq: 2,
            max_pages: 3,
        };
        assert_eq!(s, want);
        assert!(kv.step(&[(a, 1)], 1, &mut s).is_err());
        assert!(kv.step(&[(a, 7)], 3, &mut s).is_err());
        assert!(kv.step(&[(a, 1), (a, 1)], 3, &mut s).is_err());
    }

    #[test]
    fn overflow_names_both_numbers_and_changes_nothing() {
        let mut kv = PagedKv::new(2, 16, 40).unwrap();
        let a = kv.start();
        kv.append(a, 20).unwrap();
        let e = kv.append(a, 21).unwrap_err().to_string();
        assert!(e.contains("holds 40 tokens, 41 were asked for"), "{e}");
        let e = kv.append(a, 20).unwrap_err().to_string();
        assert!(e.contains("1 cache pages are needed, 0 of 2 are free"), "{e}");
        assert_eq!(kv.len(a).unwrap(), 20);
        kv.append(a, usize::MAX).unwrap_err();
        kv.free(a).unwrap();
        assert!(kv.free(a).is_err() && kv.len(a).is_err() && kv.append(a, 1).is_err());
        assert!(kv.is_empty());
        assert!(PagedKv::new(1 << 40, 16, 1).is_err());
        assert!(PagedKv::new(1, 0, 1).is_err());
    }

    #[derive(Clone, Debug)]
    enum Op {
        Start,
        Append(usize, usize),
        Truncate(usize, usize),
        Free(usize),
        Fork(usize, usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            1 => Just(Op::Start),
            5 => (0..6usize, 0..30usize).prop_map(|(s, n)| Op::Append(s, n)),
            3 => (0..6usize, 0..60usize).prop_map(|(s, n)| Op::Truncate(s, n)),
            1 => (0..6usize).prop_map(Op::Free),
            2 => (0..6usize, 0..60usize).prop_map(|(s, n)| Op::Fork(s, n)),
        ]
    }

    proptest! {
        /// The model: every slot's content is a token number; a live token must always be found in its slot.
        #[test]
        fn no_slot_is_given_to_two_live_tokens(ops in prop::collection::vec(op(), 0..80), size in 1..9usize) {
            let mut kv = PagedKv::new(14, size, 50).unwrap();
            let mut memory = vec![0u32; 14 * size];
            let mut live: Vec<(SeqId, Vec<u32>)> = vec![];
            let mut next = 1;
            let copy = |memory: &mut Vec<u32>, c: Option<SlotCopy>| {
                if let Some(c) = c {
                    memory.copy_within(c.from..c.from + c.len, c.to);
                }
            };
            for op in ops {
                match op {
                    Op::Start => live.push((kv.start(), vec![])),
                    Op::Append(s, n) => if let Some((id, tokens)) = live.get_mut(s) && kv.append(*id, n).is_ok() {
                        let mut inputs = StepInputs::default();
                        kv.step(&[(*id, n)], 50, &mut inputs).unwrap();
                        for (&slot, &pos) in inputs.slot.iter().zip(&inputs.pos) {
                            prop_assert_eq!(pos as usize, tokens.len());
                            memory[slot as usize] = next;
                            tokens.push(next);
                            next += 1;
                        }
                    },
                    Op::Truncate(s, n) => if let Some((id, tokens)) = live.get_mut(s) {
                        match kv.truncate(*id, n) {
                            Ok(c) => {
                                copy(&mut memory, c);
                                tokens.truncate(n);
                            }
                            Err(RuntimeError::Pages { .. }) => prop_assert!(kv.free_pages() == 0),
                            Err(_) => prop_assert!(n > tokens.len()),
                        }
                    },
                    Op::Free(s) => if s < live.len() {
                        let (id, _) = live.remove(s);
                        kv.free(id).unwrap();
                    },
                    Op::Fork(s, n) => if let Some((id, tokens)) = live.get(s) && let Ok((new, c)) = kv.fork(*id, n) {
                        copy(&mut memory, c);
                        let tokens = tokens[..n].to_vec();
                        live.push((new, tokens));
                    },
                }
                let mut held = HashMap::new();
                for (id, tokens) in &live {
                    prop_assert_eq!(kv.len(*id).unwrap(), tokens.len());
                    for (p, t) in tokens.iter().enumerate() {
                        let slot = kv.slot(*id, p).unwrap();
                        prop_assert_eq!(memory[slot], *t);
                        prop_assert_eq!(*held.entry(slot).or_insert(*t), *t);
                    }
                }
            }
            for (id, _) in live {
                kv.free(id).unwrap();
            }
            prop_assert_eq!(kv.free_pages(), kv.pages());
        }
    }
}

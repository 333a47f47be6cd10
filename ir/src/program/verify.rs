//! The program verifier. It reports every violation of:
//!
//! 1. sizes have bounds in order and a positive divisor, and shapes use declared ones;
//! 2. names of kernels and of buffers are unique;
//! 3. every place exists: inside the arena, a state, a constant or a packed weight, at an aligned offset, for all sizes
//!    that interval arithmetic can decide;
//! 4. a launch gives its kernel one buffer per argument, of the same element type and not provably smaller, and lets it
//!    write only what can be written;
//! 5. a launch that writes memory of each thread's own has no parallel loop and writes nothing else;
//! 6. every kernel is well formed (see [`crate::loops::verify`]).

use std::collections::HashSet;

use super::{Buffer, Place, Program, State};
use crate::loops::{Scope, verify::verify as verify_kernel};
use crate::pack::packed_len;
use crate::{DType, Dim, Proof};

/// Alignment of every buffer in its storage, in bytes.
pub const ALIGN: u64 = 16;

/// Every violation, with its place.
pub fn verify(p: &Program) -> Vec<String> {
    let mut v = Verifier { p, errors: vec![] };
    v.declarations();
    p.buffers.iter().for_each(|b| v.buffer(b));
    for k in &p.kernels {
        for e in verify_kernel(k, &p.syms) {
            let place = if e.place == k.name { String::new() } else { format!(" {}", e.place) };
            v.errors.push(format!("@{}{place}: {}", k.name, e.what));
        }
    }
    (0..p.launches.len()).for_each(|i| v.launch(i));
    v.errors
}

struct Verifier<'a> {
    p: &'a Program,
    errors: Vec<String>,
}

impl Verifier<'_> {
    fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.errors.push(what());
        }
    }

    fn shape(&mut self, shape: &[Dim], who: &str) -> bool {
        let count = self.p.syms.0.len();
        let unknown = shape.iter().flat_map(Dim::syms).find(|s| s.0 as usize >= count);
        self.expect(unknown.is_none(), || format!("{who} uses a size that is not declared"));
        unknown.is_none()
    }

    fn declarations(&mut self) {
        let p = self.p;
        for d in &p.syms.0 {
            self.expect(d.lo <= d.hi && d.multiple > 0, || {
                format!("size `{}` has the bounds {}..={} and the divisor {}", d.name, d.lo, d.hi, d.multiple)
            });
        }
        let mut names = HashSet::new();
        for k in &p.kernels {
            self.expect(names.insert(("kernel", &k.name)), || format!("two kernels are called `{}`", k.name));
        }
        for b in &p.buffers {
            self.expect(names.insert(("buffer", &b.name)), || format!("two buffers are called `{}`", b.name));
        }
        for s in &p.states {
            self.shape(&s.shape, &format!("state `{}`", s.name));
            self.expect(names.insert(("state", &s.name)), || format!("two states are called `{}`", s.name));
        }
        for (i, w) in p.weights.iter().enumerate() {
            self.expect(!w.sources.is_empty(), || format!("weight {i} has no source"));
            self.expect(packed_len(w).is_ok(), || format!("weight {i} of shape {:?} is too large", w.shape));
        }
    }

    /// Smallest and largest number of bytes, where interval arithmetic gives one.
    fn bytes(&self, dtype: DType, shape: &[Dim]) -> Option<(u64, u64)> {
        let mut range = (dtype.size() as u64, dtype.size() as u64);
        for d in shape {
            let (lo, hi) = self.p.syms.range(d);
            let hi = u64::try_from(hi).ok().filter(|h| *h < i64::MAX as u64)?;
            range = (range.0.checked_mul(u64::try_from(lo).ok()?)?, range.1.checked_mul(hi)?);
        }
        Some(range)
    }

    fn buffer(&mut self, b: &Buffer) {
        let p = self.p;
        let who = format!("buffer `{}`", b.name);
        if !self.shape(&b.shape, &who) {
            return;
        }
        let (at, room, of) = match &b.place {
            Place::Input(_) | Place::Output(_) => return,
            Place::State(i) => match p.states.get(*i as usize) {
                Some(s) => return self.view(&who, b, s),
                None => return self.errors.push(format!("{who} is state {i} of {}", p.states.len())),
            },
            Place::Arena(at) => (*at, p.arena_bytes, "the arena".to_string()),
            Place::Own(at) => (*at, p.own_bytes, "each thread's own memory".to_string()),
            Place::Constant(i) => match p.constants.get(*i as usize) {
                Some(c) => (0, 4 * c.len() as u64, format!("constant {i}")),
                None => return self.errors.push(format!("{who} is constant {i} of {}", p.constants.len())),
            },
            Place::Weight(i, at) => match p.weights.get(*i as usize) {
                Some(w) => (*at, packed_len(w).unwrap_or(usize::MAX) as u64, format!("weight {i}")),
                None => return self.errors.push(format!("{who} is weight {i} of {}", p.weights.len())),
            },
        };
        self.expect(at.is_multiple_of(ALIGN), || format!("{who} at byte {at} of {of} is not aligned to {ALIGN} bytes"));
        let needs = self.bytes(b.dtype, &b.shape).map_or(0, |r| r.0);
        self.expect(at.checked_add(needs).is_some_and(|end| end <= room), || {
            format!("{who} takes {needs} bytes or more at byte {at} of {of}, which has {room}")
        });
    }

    fn view(&mut self, who: &str, b: &Buffer, s: &State) {
        let same = b.dtype == s.dtype;
        self.expect(same, || format!("{who} is {}, its state `{}` is {}", b.dtype, s.name, s.dtype));
        let (have, want) = (elements(&b.shape), elements(&s.shape));
        let syms = &self.p.syms;
        let differ = have.zip(want).is_some_and(|(a, b)| syms.prove_eq(&a, &b) == Proof::No);
        self.expect(!differ, || format!("{who} has another number of elements than its state `{}`", s.name));
    }

    fn launch(&mut self, at: usize) {
        let p = self.p;
        let l = &p.launches[at];
        let Some(k) = p.kernels.get(l.kernel.0 as usize) else {
            return self.errors.push(format!("launch {at} is of kernel {} of {}", l.kernel.0, p.kernels.len()));
        };
        let who = format!("launch {at} of @{}", k.name);
        if l.args.len() != k.args() {
            return self.errors.push(format!("{who} gives {} buffers for {} arguments", l.args.len(), k.args()));
        }
        let own = l.is_own(p);
        self.expect(!own || k.parallel_extent().is_none(), || {
            format!("{who} writes each thread's own memory in a parallel loop")
        });
        for (id, decl) in l.args.iter().zip(&k.buffers) {
            let Some(b) = p.buffers.get(id.0 as usize) else {
                self.errors.push(format!("{who} is given buffer {} of {}", id.0, p.buffers.len()));
                continue;
            };
            let who = format!("{who}: argument `{}`", decl.name);
            self.expect(decl.dtype == b.dtype, || {
                format!("{who} is {}, buffer `{}` is {}", decl.dtype, b.name, b.dtype)
            });
            let read_only = matches!(b.place, Place::Input(_) | Place::Weight(..) | Place::Constant(_));
            let writes = decl.scope != Scope::In;
            self.expect(!(writes && read_only), || format!("{who} is written, buffer `{}` is only read", b.name));
            self.expect(!(own && writes) || matches!(b.place, Place::Own(_)), || {
                format!("{who} is written by every thread, buffer `{}` is there once", b.name)
            });
            let fits =
                elements(&decl.shape).zip(elements(&b.shape)).is_none_or(|(a, b)| p.syms.prove_le(&a, &b) != Proof::No);
            self.expect(fits, || format!("{who} has more elements than buffer `{}`", b.name));
        }
    }
}

/// Number of elements as a polynomial, where it stays small.
pub fn elements(shape: &[Dim]) -> Option<Dim> {
    let mut p = Dim::from(1);
    for d in shape {
        if p.terms().count() * d.terms().count() > 256 {
            return None;
        }
        p = p * d.clone();
    }
    Some(p)
}

//! Counting of rewrites, so that a wrong one can be found by bisection.

use std::cell::{Cell, RefCell};

/// Counts what passes change step by step: rule firings, groups of the fuser, schedule steps. Past a limit nothing more is
/// applied; what the last one was is kept.
#[derive(Debug, Default)]
pub struct Rewrites {
    limit: Option<u64>,
    count: Cell<u64>,
    last: RefCell<Option<String>>,
}

impl Rewrites {
    /// At most this many; none for any number.
    pub fn new(limit: Option<u64>) -> Rewrites {
        Rewrites { limit, ..Rewrites::default() }
    }

    /// May another one be applied?
    pub fn open(&self) -> bool {
        self.limit.is_none_or(|most| self.count.get() < most)
    }

    /// One was applied; `what` says which.
    pub fn applied(&self, what: impl FnOnce() -> String) {
        self.count.set(self.count.get() + 1);
        if Some(self.count.get()) == self.limit {
            self.last.replace(Some(what()));
        }
    }

    /// Counts one that is about to be applied, unless there were enough.
    pub fn take(&self, what: impl FnOnce() -> String) -> bool {
        let open = self.open();
        if open {
            self.applied(what);
        }
        open
    }

    /// How many were applied.
    pub fn count(&self) -> u64 {
        self.count.get()
    }

    /// The one that reached the limit.
    pub fn last(&self) -> Option<String> {
        self.last.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_and_the_last_is_known() {
        let r = Rewrites::new(Some(2));
        let taken: Vec<bool> = ["a", "b", "c"].iter().map(|w| r.take(|| w.to_string())).collect();
        assert_eq!((taken, r.count(), r.last().as_deref()), (vec![true, true, false], 2, Some("b")));
        assert!(Rewrites::default().open() && !Rewrites::new(Some(0)).open());
    }
}

//! When kernels ran: stamps that threads leave during a run, and what they say together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Begin and end of every launch on every thread, nanoseconds after `start`.
pub(crate) struct Stamps {
    start: Instant,
    launches: usize,
    /// By thread, launch, and begin or end: each thread writes a range of its own.
    at: Vec<AtomicU64>,
}

impl Stamps {
    pub fn new(threads: usize, launches: usize) -> Stamps {
        let at = (0..threads * launches * 2).map(|_| AtomicU64::new(0)).collect();
        Stamps { start: Instant::now(), launches, at }
    }

    pub fn set(&self, thread: usize, launch: usize, end: usize) {
        let now = self.start.elapsed().as_nanos() as u64;
        self.at[(thread * self.launches + launch) * 2 + end].store(now, Ordering::Relaxed);
    }

    pub fn timeline(self, kernels: Vec<u32>) -> Timeline {
        let total = self.start.elapsed().as_nanos() as u64;
        let times: Vec<u64> = self.at.into_iter().map(AtomicU64::into_inner).collect();
        let spans = times.as_chunks::<2>().0.iter().map(|[begin, end]| Span { begin: *begin, end: *end }).collect();
        Timeline { start: self.start, total, kernels, spans }
    }
}

/// A stretch of time, nanoseconds after the start of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// When it began.
    pub begin: u64,
    /// When it ended.
    pub end: u64,
}

/// When each launch of a run was worked on by each thread.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeline {
    /// When the run began.
    pub start: Instant,
    /// Nanoseconds of the whole run, waking threads and binding buffers included.
    pub total: u64,
    /// The kernel of each launch, by position in the program.
    pub kernels: Vec<u32>,
    /// By thread, then launch.
    spans: Vec<Span>,
}

impl Timeline {
    /// A timeline from its parts; `spans` are those of the first thread for every launch, then of the second one, and so on.
    pub fn new(start: Instant, total: u64, kernels: Vec<u32>, spans: Vec<Span>) -> Timeline {
        Timeline { start, total, kernels, spans }
    }

    /// The spans of one thread, by launch.
    pub fn threads(&self) -> impl Iterator<Item = &[Span]> {
        self.spans.chunks_exact(self.kernels.len().max(1))
    }

    /// Nanoseconds of each launch: from when the first thread began it to when the first one began the next, or to the end of the
    /// run. What threads wait for each other belongs to the launch before the barrier, and all launches together to the run.
    pub fn times(&self) -> Vec<u64> {
        let first = |i: usize| self.threads().filter_map(|t| t.get(i)).map(|s| s.begin).min().unwrap_or(self.total);
        let begins: Vec<u64> = (0..self.kernels.len()).map(first).chain([self.total]).collect();
        begins.windows(2).map(|w| w[1].saturating_sub(w[0])).collect()
    }

    /// Nanoseconds that threads spent inside of each launch, all threads together.
    pub fn busy(&self) -> Vec<u64> {
        let of = |i: usize| self.threads().filter_map(|t| t.get(i)).map(|s| s.end.saturating_sub(s.begin)).sum();
        (0..self.kernels.len()).map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_belongs_to_the_launch_before() {
        let span = |begin, end| Span { begin, end };
        let spans = vec![span(10, 50), span(80, 90), span(12, 79), span(81, 95)];
        let t = Timeline::new(Instant::now(), 100, vec![0, 1], spans);
        assert_eq!(t.times(), [70, 20]);
        assert_eq!(t.busy(), [40 + 67, 10 + 14]);
        assert_eq!(t.threads().count(), 2);
    }

    #[test]
    fn a_run_of_nothing_has_no_launches() {
        let t = Stamps::new(2, 0).timeline(vec![]);
        assert_eq!((t.times(), t.busy(), t.threads().count()), (vec![], vec![], 0));
    }
}

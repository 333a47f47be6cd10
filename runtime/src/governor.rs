//! How many threads take part in a step, found by measuring steps.
//!
//! A thread that loses its core to another process while it computes holds up all the others at the next barrier, so that on a
//! busy machine fewer threads are faster. Steps are timed in windows. Where the mean of late is far from the fastest step, the next
//! window runs with one thread less, and the better of the two numbers is kept; from time to time one more is tried.

use std::time::Duration;

/// Least steps and seconds of a window: several time slices.
const WINDOW: (u32, f64) = (4, 0.04);
/// Steps are disturbed if their mean is above the fastest one of a window by this factor.
const DISTURBED: f64 = 1.2;
/// Steps are long from so many seconds on: their launches are long as well, so that threads which have a core do what is left of a
/// disturbed one's share instead of waiting for it. That they differ says nothing: pieces of a prompt cost the more the later they come.
const LONG: f64 = 0.05;
/// Weight of the last window in the mean.
const RECENT: f64 = 0.25;
/// Windows between trials of another number: at first, and at most.
const PATIENCE: [u32; 2] = [8, 64];

/// Times steps of one function and says how many threads the next one gets.
#[derive(Clone, Debug)]
pub(crate) struct Governor {
    most: usize,
    /// Iterations of the steps that are compared.
    work: i64,
    active: usize,
    /// Number of threads before the trial that is under way.
    trial: Option<usize>,
    /// Mean seconds of late, outside of trials.
    mean: Option<f64>,
    steps: u32,
    sum: f64,
    fastest: f64,
    /// Windows until the next trial of fewer, and of more threads; and how many then, if that trial fails.
    fewer: Pause,
    more: Pause,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    left: u32,
    next: u32,
}

impl Pause {
    const NONE: Pause = Pause { left: 0, next: PATIENCE[0] };

    fn again(&mut self) {
        self.left = self.next;
        self.next = (self.next * 2).min(PATIENCE[1]);
    }
}

impl Governor {
    /// For steps on up to `most` threads; all take part at first.
    pub fn new(most: usize) -> Governor {
        let more = Pause { left: PATIENCE[0], next: PATIENCE[0] };
        Governor {
            most,
            work: 0,
            active: most,
            trial: None,
            mean: None,
            steps: 0,
            sum: 0.0,
            fastest: f64::MAX,
            fewer: Pause::NONE,
            more,
        }
    }

    /// Threads of the next step: at least 1.
    pub fn active(&self) -> usize {
        self.active
    }

    /// The next steps are for up to `most` threads and have `work` iterations: only steps with as many are compared.
    pub fn prepare(&mut self, most: usize, work: i64) {
        if most != self.most {
            *self = Governor::new(most);
        } else if work != self.work {
            self.active = self.trial.take().unwrap_or(self.active);
            (self.mean, self.steps, self.sum, self.fastest) = (None, 0, 0.0, f64::MAX);
        }
        self.work = work;
    }

    /// Takes note of a step.
    pub fn ran(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.steps += 1;
        self.sum += seconds;
        self.fastest = self.fastest.min(seconds);
        if self.steps < WINDOW.0 || self.sum < WINDOW.1 || self.most < 2 {
            return;
        }
        let (now, fastest) = (self.sum / f64::from(self.steps), self.fastest);
        (self.steps, self.sum, self.fastest) = (0, 0.0, f64::MAX);
        if fastest > LONG {
            *self = Governor { work: self.work, ..Governor::new(self.most) };
            return;
        }
        match (self.trial.take(), self.mean) {
            (Some(before), Some(mean)) => self.judge(before, mean, now),
            (_, mean) => {
                let mean = mean.map_or(now, |m| m + (now - m) * RECENT);
                self.mean = Some(mean);
                self.decide(mean > fastest * DISTURBED);
            }
        }
    }

    /// Ends a trial: whichever number was faster stays.
    fn judge(&mut self, before: usize, mean: f64, now: f64) {
        let [this, other] = match self.active < before {
            true => [&mut self.fewer, &mut self.more],
            false => [&mut self.more, &mut self.fewer],
        };
        if now < mean {
            *this = Pause { left: 0, next: (this.next / 2).max(PATIENCE[0]) };
            other.left = other.left.max(PATIENCE[0]);
            self.mean = Some(now);
        } else {
            this.again();
            self.active = before;
        }
    }

    /// Begins a trial if it is time for one.
    fn decide(&mut self, disturbed: bool) {
        for pause in [&mut self.fewer, &mut self.more] {
            pause.left = pause.left.saturating_sub(1);
        }
        let next = if disturbed && self.active > 1 && self.fewer.left == 0 {
            self.active - 1
        } else if self.active < self.most && self.more.left == 0 {
            self.active + 1
        } else {
            return;
        };
        self.trial = Some(self.active);
        self.active = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs steps that take `time(threads, step)` milliseconds; how often each number of threads was used in the second half.
    fn shares(most: usize, steps: usize, time: impl Fn(usize, usize) -> f64) -> Vec<f64> {
        let mut g = Governor::new(most);
        let mut used = vec![0.0; most + 1];
        for i in 0..steps {
            let n = g.active();
            assert!((1..=most).contains(&n));
            if i >= steps / 2 {
                used[n] += 2.0 / steps as f64;
            }
            g.ran(Duration::from_secs_f64(time(n, i) / 1000.0));
        }
        used
    }

    #[test]
    fn all_threads_on_a_quiet_machine() {
        assert!(shares(4, 4000, |n, _| 8.0 / n as f64)[4] > 0.999);
        // A step in fifty is late.
        assert!(shares(4, 4000, |n, i| 8.0 / n as f64 + if i % 50 == 0 { 4.0 } else { 0.0 })[4] > 0.95);
        assert!(shares(1, 100, |_, i| i as f64)[1] > 0.999);
    }

    #[test]
    fn fewer_where_one_core_is_taken() {
        // With all threads every second step waits for a time slice.
        let busy = |n: usize, i: usize| if n == 2 && i.is_multiple_of(2) { 20.0 } else { 8.0 / n as f64 };
        assert!(shares(2, 4000, busy)[1] > 0.9);
        let two_taken = |n: usize, i: usize| if n > 6 && i.is_multiple_of(3) { 10.0 } else { 8.0 / n as f64 };
        assert!(shares(8, 8000, two_taken)[6] > 0.85);
    }

    #[test]
    fn all_again_when_it_is_free() {
        let busy = |n: usize, i: usize| if i < 3000 && n == 2 && i.is_multiple_of(2) { 20.0 } else { 8.0 / n as f64 };
        assert!(shares(2, 10000, busy)[2] > 0.99);
    }

    #[test]
    fn other_sizes_start_anew() {
        let mut g = Governor::new(2);
        for i in 0..1000 {
            // Steps of two kinds in turn: neither looks like the other one disturbed.
            g.prepare(2, i / 3 % 2);
            assert_eq!(g.active(), 2);
            g.ran(Duration::from_millis(if i / 3 % 2 == 0 { 90 } else { 9 }));
        }
        g.prepare(4, 0);
        assert_eq!(g.active(), 4);
    }

    #[test]
    fn long_steps_get_all_threads() {
        // Four pieces of a prompt, each with more before it.
        assert!(shares(2, 400, |n, i| (100.0 + 60.0 * (i % 4) as f64) * 2.0 / n as f64)[2] > 0.999);
        // Also after short ones that were disturbed.
        let busy = |n: usize, i: usize| if n == 2 && i.is_multiple_of(2) { 20.0 } else { 8.0 / n as f64 };
        assert!(shares(2, 2000, |n, i| if i < 900 { busy(n, i) } else { 200.0 / n as f64 })[2] > 0.99);
    }

    #[test]
    fn noise_that_fewer_threads_do_not_cure() {
        assert!(shares(4, 8000, |n, i| 8.0 / n as f64 * if i.is_multiple_of(2) { 2.0 } else { 1.0 })[4] > 0.95);
    }
}

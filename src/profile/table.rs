//! A profile for people.

use marquetry_runtime::probe::Peaks;

use super::{KernelProfile, Profile, Work, percent};

const COLUMNS: &str = "       ms  share   calls  idle        MB  %read      Mops  %peak  kernel";

impl Profile {
    /// A table of the `top` most expensive kernels, the rest in one line, and all.
    pub fn table(&self, peaks: &Peaks, top: usize) -> String {
        let launches: f64 = self.kernels.iter().map(|k| k.calls).sum();
        let mut out = format!(
            "{}: {} x {:.0} tokens on {} threads, {:.3} ms each, {launches:.0} launches of {} kernels\n{COLUMNS}\n",
            self.bucket,
            self.runs,
            self.tokens,
            self.threads,
            self.seconds * 1e3,
            self.kernels.len(),
        );
        let shown = self.kernels.len().min(top);
        for k in &self.kernels[..shown] {
            out += &self.row(peaks, k.seconds, k.calls, Some(k.idle), &k.work, &name(k));
        }
        let (mut rest, mut seconds, mut calls) = (Work::default(), 0.0, 0.0);
        for k in &self.kernels[shown..] {
            rest.add(k.work);
            seconds += k.seconds;
            calls += k.calls;
        }
        if shown < self.kernels.len() {
            out += &self.row(peaks, seconds, calls, None, &rest, &format!("{} others", self.kernels.len() - shown));
        }
        out += &self.row(peaks, self.outside, 0.0, None, &Work::default(), "outside of kernels");
        out + &self.row(peaks, self.seconds, launches, None, &self.work, "all")
    }

    fn row(&self, peaks: &Peaks, seconds: f64, calls: f64, idle: Option<f64>, w: &Work, name: &str) -> String {
        let idle = idle.map_or(String::new(), |i| format!("{:.0}%", i * 100.0));
        let arithmetic = w.least_seconds(peaks).map_or(String::new(), |s| format!("{:.0}%", percent(s, seconds)));
        let line = format!(
            "{:9.3} {:5.1}% {calls:7.0} {idle:>5} {:9.3} {:5.0}% {:9.2} {arithmetic:>6}  {name}",
            seconds * 1e3,
            percent(seconds, self.seconds),
            w.bytes() / 1e6,
            percent(w.memory_bytes() / peaks.read, seconds),
            (w.flops + w.int8_ops) / 1e6,
        );
        format!("{}\n", line.trim_end())
    }
}

/// The kernel's name and where it comes from.
fn name(k: &KernelProfile) -> String {
    let Some(o) = &k.origin else { return k.name.clone() };
    let operators = o.operators.iter().take(4).copied().collect::<Vec<_>>().join(" ");
    let more = if o.operators.len() > 4 { " .." } else { "" };
    let places: Vec<&str> = o.places.iter().take(2).map(String::as_str).collect();
    format!("{}: {operators}{more}; {}", k.name, places.join(" "))
}

//! Choosing the next token from logits.
//!
//! The order is fixed: logit bias, penalties, temperature, top-k, top-p, min-p, draw. Each filter works on the tokens that the
//! filters before it left, with probabilities normalised over those. Tokens of equal logit are ordered by id, lowest first.
//! At temperature 0 the token of the largest logit after bias and penalties is taken.
//!
//! Randomness is xoshiro256++ (Blackman and Vigna, "Scrambled Linear Pseudorandom Number Generators", 2021), seeded through
//! splitmix64: the same seed and logits give the same tokens on every machine.

use std::cmp::Ordering;
use std::collections::HashMap;

use crate::RuntimeError;

/// How to sample.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerParams {
    /// Divisor of the logits, `0..=100`; 0 always takes the most likely token.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest most likely tokens whose probabilities reach `top_p`, `0..=1`; at least one is kept.
    pub top_p: f32,
    /// Keep tokens of at least `min_p` times the largest probability, `0..=1`.
    pub min_p: f32,
    /// Positive logits of seen tokens are divided by this, negative ones multiplied, `0.01..=100`; 1 does nothing (Keskar et
    /// al., "CTRL", 2019).
    pub repetition_penalty: f32,
    /// Subtracted from the logits of seen tokens, `-100..=100`.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a seen token once per occurrence, `-100..=100`.
    pub frequency_penalty: f32,
    /// How many of the last tokens count as seen; 0 counts all.
    pub penalty_window: usize,
    /// Added to the logits of these tokens before anything else; any finite number, or negative infinity to forbid a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Start of the random sequence.
    pub seed: u64,
}

impl Default for SamplerParams {
    /// Plain sampling: temperature 1, no filter, no penalty, seed 0.
    fn default() -> SamplerParams {
        SamplerParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: 0,
            logit_bias: vec![],
            seed: 0,
        }
    }
}

impl SamplerParams {
    /// Always the most likely token.
    pub fn greedy() -> SamplerParams {
        SamplerParams { temperature: 0.0, ..SamplerParams::default() }
    }

    /// Checks every range; the error names the parameter, its value and what is allowed.
    pub fn check(&self) -> Result<(), RuntimeError> {
        let ranges = [
            ("temperature", self.temperature, 0.0, 100.0, "0..=100"),
            ("top_p", self.top_p, 0.0, 1.0, "0..=1"),
            ("min_p", self.min_p, 0.0, 1.0, "0..=1"),
            ("repetition_penalty", self.repetition_penalty, 0.01, 100.0, "0.01..=100"),
            ("presence_penalty", self.presence_penalty, -100.0, 100.0, "-100..=100"),
            ("frequency_penalty", self.frequency_penalty, -100.0, 100.0, "-100..=100"),
        ];
        for (name, v, lo, hi, allowed) in ranges {
            if !(lo..=hi).contains(&v) {
                return Err(RuntimeError::Parameter { name, value: v.to_string(), allowed });
            }
        }
        match self.logit_bias.iter().find(|(_, b)| b.is_nan() || *b == f32::INFINITY) {
            Some((token, b)) => Err(RuntimeError::Parameter {
                name: "logit_bias",
                value: format!("{b} for token {token}"),
                allowed: "a finite number or -inf",
            }),
            None => Ok(()),
        }
    }
}

/// xoshiro256++.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

impl Rng {
    /// The generator of a seed, its state filled by splitmix64.
    pub fn new(mut seed: u64) -> Rng {
        Rng([(); 4].map(|()| {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = seed;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.0;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Uniform in `0..1`, a multiple of 2^-53.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Draws tokens for one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplerParams,
    rng: Rng,
    history: Vec<u32>,
    logits: Vec<f32>,
    kept: Vec<(u32, f32)>,
    weights: Vec<f64>,
}

impl Sampler {
    /// A sampler; fails when a parameter is out of its range.
    pub fn new(params: SamplerParams) -> Result<Sampler, RuntimeError> {
        params.check()?;
        let rng = Rng::new(params.seed);
        Ok(Sampler { params, rng, history: vec![], logits: vec![], kept: vec![], weights: vec![] })
    }

    /// The parameters.
    pub fn params(&self) -> &SamplerParams {
        &self.params
    }

    /// Adds tokens that penalties count as seen: the prompt, or tokens that were not drawn here.
    pub fn observe(&mut self, tokens: &[u32]) {
        self.history.extend_from_slice(tokens);
    }

    /// Makes room for so many more tokens. Drawing them then allocates nothing after the first, unless there are penalties, which count
    /// tokens each time.
    pub fn reserve(&mut self, tokens: usize) {
        self.history.reserve(tokens);
    }

    /// Draws a token from `logits` (one per token id) and counts it as seen.
    ///
    /// Fails when there are no logits, one is NaN or positive infinity, all are negative infinity, or a bias names no token.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, RuntimeError> {
        self.filter(logits)?;
        let token = if self.kept.len() == 1 {
            self.kept[0].0
        } else {
            let total: f64 = self.weights.iter().sum();
            let mut left = self.rng.uniform() * total;
            let drawn = self.weights.iter().position(|w| {
                left -= w;
                left < 0.0
            });
            // Rounding may leave a rest after the last one.
            self.kept[drawn.unwrap_or(self.kept.len() - 1)].0
        };
        self.history.push(token);
        Ok(token)
    }

    /// The tokens that can be drawn and their probabilities, most likely first. Draws nothing.
    pub fn distribution(&mut self, logits: &[f32]) -> Result<Vec<(u32, f64)>, RuntimeError> {
        self.filter(logits)?;
        let total: f64 = self.weights.iter().sum();
        Ok(self.kept.iter().zip(&self.weights).map(|(&(t, _), w)| (t, w / total)).collect())
    }

    /// Leaves in `kept` the tokens that may be drawn, most likely first, and in `weights` their relative probabilities.
    fn filter(&mut self, logits: &[f32]) -> Result<(), RuntimeError> {
        let fail = |what: String| Err(RuntimeError::Logits { what });
        if logits.is_empty() || u32::try_from(logits.len()).is_err() {
            return fail(format!("{} logits can not be sampled", logits.len()));
        }
        // Without a way out, the first pass takes several at a time.
        let bad = |v: &f32| v.is_nan() || *v == f32::INFINITY;
        if logits.iter().fold(false, |any, v| any | bad(v))
            && let Some(i) = logits.iter().position(bad)
        {
            return fail(format!("the logit of token {i} is {}", logits[i]));
        }
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        let p = &self.params;
        for &(token, bias) in &p.logit_bias {
            match self.logits.get_mut(token as usize) {
                Some(v) => *v += bias,
                None => return fail(format!("logit_bias names token {token}, there are {}", logits.len())),
            }
        }
        if p.repetition_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0 {
            penalise(p, &self.history, &mut self.logits);
        }

        let kept = &mut self.kept;
        kept.clear();
        self.weights.clear();
        let best = largest(&self.logits);
        if best.1 == f32::NEG_INFINITY {
            return fail("no token is possible: every logit is -inf".into());
        }
        // An infinite maximum can only come from bias or penalties on huge logits.
        if p.temperature == 0.0 || p.top_k == 1 || best.1 == f32::INFINITY {
            kept.push((best.0 as u32, best.1));
            self.weights.push(1.0);
            return Ok(());
        }
        // Tokens far below the best have a weight that is 0 in f64.
        let scale = f64::from(p.temperature);
        let weight = |v: f32| ((f64::from(v) - f64::from(best.1)) / scale).exp();
        kept.reserve(logits.len());
        self.weights.reserve(logits.len());
        kept.extend(self.logits.iter().enumerate().map(|(i, &v)| (i as u32, v)).filter(|&(_, v)| weight(v) > 0.0));
        let order =
            |a: &(u32, f32), b: &(u32, f32)| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0));
        if p.top_k > 0 && p.top_k < kept.len() {
            kept.select_nth_unstable_by(p.top_k - 1, order);
            kept.truncate(p.top_k);
        }
        kept.sort_unstable_by(order);
        self.weights.extend(kept.iter().map(|&(_, v)| weight(v)));
        if p.top_p < 1.0 {
            let goal = self.weights.iter().sum::<f64>() * f64::from(p.top_p);
            let mut sum = 0.0;
            let reached = self.weights.iter().position(|w| {
                sum += w;
                sum >= goal
            });
            self.weights.truncate(reached.map_or(usize::MAX, |i| i + 1));
        }
        if p.min_p > 0.0 {
            // The largest weight is 1.
            let n = self.weights.iter().take_while(|&&w| w >= f64::from(p.min_p)).count();
            self.weights.truncate(n.max(1));
        }
        kept.truncate(self.weights.len());
        Ok(())
    }
}

/// Lowers the logits of seen tokens.
fn penalise(p: &SamplerParams, history: &[u32], logits: &mut [f32]) {
    let window = if p.penalty_window == 0 { history.len() } else { p.penalty_window.min(history.len()) };
    let mut counts: HashMap<u32, u32> = HashMap::new();
    for &t in &history[history.len() - window..] {
        *counts.entry(t).or_insert(0) += 1;
    }
    for (t, n) in counts {
        let Some(v) = logits.get_mut(t as usize).filter(|v| v.is_finite()) else { continue };
        *v = if *v > 0.0 { *v / p.repetition_penalty } else { *v * p.repetition_penalty };
        *v -= p.presence_penalty + p.frequency_penalty * n as f32;
    }
}

/// The largest of numbers and where it is, at first; NaN is passed over. -inf if there is none above.
pub fn largest(values: &[f32]) -> (usize, f32) {
    const BLOCK: usize = 512;
    let above = |a: f32, b: f32| if b > a { b } else { a };
    let mut best = (0, f32::NEG_INFINITY);
    for (i, block) in values.chunks(BLOCK).enumerate() {
        let (vectors, rest) = block.as_chunks::<16>();
        let mut top = [f32::NEG_INFINITY; 16];
        for v in vectors {
            for (top, v) in top.iter_mut().zip(v) {
                *top = above(*top, *v);
            }
        }
        let top = top.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| above(a, *b));
        if top > best.1 {
            best = (i * BLOCK, top);
        }
    }
    let after = values[best.0..].iter().position(|v| *v == best.1);
    (best.0 + after.unwrap_or(0), best.1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Rng, *};

    fn sampler(f: impl FnOnce(&mut SamplerParams)) -> Sampler {
        let mut p = SamplerParams::default();
        f(&mut p);
        Sampler::new(p).unwrap()
    }

    #[test]
    fn the_largest_is_the_first_of_equals() {
        let mut r = Rng::new(5);
        for n in (0..70).chain([511, 512, 513, 1023, 1040, 2000]) {
            for kinds in [2, 5, 1000] {
                let mut v: Vec<f32> = (0..n).map(|_| (r.bits() % kinds) as f32 - 3.0).collect();
                v.iter_mut().step_by(7).for_each(|v| *v = f32::NAN);
                let by_one = |b: (usize, f32), (i, v): (usize, &f32)| if *v > b.1 { (i, *v) } else { b };
                let want = v.iter().enumerate().fold((0, f32::NEG_INFINITY), by_one);
                assert_eq!(largest(&v).1, want.1, "{n}");
                assert!(want.1 == f32::NEG_INFINITY || largest(&v).0 == want.0, "{n}");
            }
        }
        assert_eq!(largest(&[f32::NEG_INFINITY; 600]), (0, f32::NEG_INFINITY));
        assert_eq!(largest(&[]), (0, f32::NEG_INFINITY));
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        let mut s = sampler(|p| p.temperature = 0.0);
        assert_eq!(s.sample(&[1.0, 3.0, 3.0, f32::NEG_INFINITY]).unwrap(), 1);
        let mut s = sampler(|p| p.top_k = 1);
        assert_eq!(s.sample(&[-1.0, -1.0, -2.0]).unwrap(), 0);
    }

    #[test]
    fn the_generator_is_the_published_one() {
        // First outputs of splitmix64 from seed 0 as state, then xoshiro256++ of that state.
        let mut r = Rng::new(0);
        assert_eq!(r.0[0], 0xe220_a839_7b1d_cdaf);
        assert_eq!(r.0[1], 0x6e78_9e6a_a1b9_65f4);
        assert_eq!(r.bits(), 0x5317_5d61_490b_23df);
        let mut r = Rng([1, 2, 3, 4]);
        assert_eq!([r.bits(), r.bits(), r.bits()], [41_943_041, 58_720_359, 3_588_806_011_781_223]);
    }

    #[test]
    fn bad_parameters_and_logits_are_errors() {
        type Edit = fn(&mut SamplerParams);
        let cases: [(Edit, &str); 8] = [
            (|p| p.temperature = -1.0, "temperature = -1, allowed 0..=100"),
            (|p| p.temperature = f32::NAN, "temperature = NaN"),
            (|p| p.top_p = 1.5, "top_p = 1.5, allowed 0..=1"),
            (|p| p.min_p = -0.1, "min_p"),
            (|p| p.repetition_penalty = 0.0, "repetition_penalty = 0, allowed 0.01..=100"),
            (|p| p.presence_penalty = f32::INFINITY, "presence_penalty"),
            (|p| p.frequency_penalty = 1e9, "frequency_penalty"),
            (|p| p.logit_bias = vec![(7, f32::NAN)], "logit_bias = NaN for token 7"),
        ];
        for (edit, message) in cases {
            let mut p = SamplerParams::default();
            edit(&mut p);
            let e = Sampler::new(p).unwrap_err().to_string();
            assert!(e.contains(message), "{e}");
        }
        let mut s = sampler(|_| {});
        for bad in [&[][..], &[0.0, f32::NAN], &[f32::INFINITY], &[f32::NEG_INFINITY; 2]] {
            assert!(matches!(s.sample(bad), Err(RuntimeError::Logits { .. })), "{bad:?}");
        }
        let mut s = sampler(|p| p.logit_bias = vec![(2, 0.0)]);
        assert!(s.sample(&[0.0, 1.0]).is_err());
    }

    #[test]
    fn penalties_and_bias_act_before_the_filters() {
        let logits = [2.0, 1.9, -1.0];
        let mut s = sampler(|p| (p.temperature, p.repetition_penalty) = (0.0, 1.2));
        s.observe(&[0]);
        assert_eq!(s.sample(&logits).unwrap(), 1);
        // Both seen now: 2 / 1.2 > 1.9 / 1.2.
        assert_eq!(s.sample(&logits).unwrap(), 0);
        let mut s = sampler(|p| (p.temperature, p.frequency_penalty, p.penalty_window) = (0.0, 0.06, 3));
        s.observe(&[0, 0]);
        assert_eq!(s.sample(&logits).unwrap(), 1);
        let mut s = sampler(|p| (p.temperature, p.presence_penalty) = (0.0, -5.0));
        s.observe(&[2, 9999]);
        assert_eq!(s.sample(&logits).unwrap(), 2);
        let mut s = sampler(|p| (p.top_k, p.logit_bias) = (1, vec![(0, f32::NEG_INFINITY), (2, 3.0)]));
        assert_eq!(s.sample(&logits).unwrap(), 2);
    }

    #[test]
    fn filters_follow_their_definitions() {
        // Probabilities 0.5, 0.25, 0.15, 0.1.
        let logits = [0.1f32, 0.5, 0.15, 0.25].map(f32::ln);
        let ids = |s: &mut Sampler| s.distribution(&logits).unwrap().iter().map(|d| d.0).collect::<Vec<_>>();
        assert_eq!(ids(&mut sampler(|_| {})), [1, 3, 2, 0]);
        assert_eq!(ids(&mut sampler(|p| p.top_k = 2)), [1, 3]);
        assert_eq!(ids(&mut sampler(|p| p.top_p = 0.74)), [1, 3]);
        assert_eq!(ids(&mut sampler(|p| p.top_p = 0.76)), [1, 3, 2]);
        assert_eq!(ids(&mut sampler(|p| p.top_p = 0.0)), [1]);
        assert_eq!(ids(&mut sampler(|p| p.min_p = 0.29)), [1, 3, 2]);
        // After top-k 2 the first token has 2/3 of the mass.
        assert_eq!(ids(&mut sampler(|p| (p.top_k, p.top_p) = (2, 0.6))), [1]);
        assert_eq!(ids(&mut sampler(|p| (p.temperature, p.min_p) = (0.01, 0.01))), [1]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits: Vec<f32> = (0..20).map(|i| ((i * 7) % 11) as f32 * 0.3).collect();
        for seed in 0..3 {
            let mut s = sampler(|p| (p.seed, p.temperature, p.top_k) = (seed, 0.8, 15));
            let want = s.distribution(&logits).unwrap();
            let n = 40_000;
            let mut counts = vec![0u32; logits.len()];
            (0..n).for_each(|_| counts[s.sample(&logits).unwrap() as usize] += 1);
            let chi: f64 = want
                .iter()
                .map(|&(t, p)| (f64::from(counts[t as usize]) - p * f64::from(n)).powi(2) / (p * f64::from(n)))
                .sum();
            // 14 degrees of freedom: 36.1 is exceeded once in 1000.
            assert!(chi < 36.1, "chi-square {chi}");
            assert_eq!(want.iter().map(|&(t, _)| counts[t as usize]).sum::<u32>(), n);
        }
    }

    proptest! {
        #[test]
        fn distributions_are_sound(
            logits in prop::collection::vec(-30f32..30.0, 1..60),
            temperature in 0.05f32..3.0, top_k in 0..70usize, top_p in 0f32..=1.0, min_p in 0f32..=1.0, seed in any::<u64>(),
        ) {
            let make = || sampler(|p| *p = SamplerParams { temperature, top_k, top_p, min_p, seed, ..SamplerParams::default() });
            let (mut a, mut b) = (make(), make());
            let d = a.distribution(&logits).unwrap();
            prop_assert!((d.iter().map(|x| x.1).sum::<f64>() - 1.0).abs() < 1e-9);
            prop_assert!(d.windows(2).all(|w| w[0].1 >= w[1].1));
            if top_k > 0 {
                prop_assert!(d.len() <= top_k);
            }
            prop_assert!(d.iter().all(|x| x.1 >= d[0].1 * f64::from(min_p) * 0.999_999));
            for _ in 0..5 {
                let t = a.sample(&logits).unwrap();
                prop_assert_eq!(t, b.sample(&logits).unwrap());
                prop_assert!(d.iter().any(|x| x.0 == t));
            }
        }

        #[test]
        fn any_logits_give_a_token_or_an_error(
            bits in prop::collection::vec(any::<u32>(), 0..20), penalty in 0.01f32..100.0, temperature in 0f32..100.0,
        ) {
            let logits: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let mut s = sampler(|p| (p.repetition_penalty, p.temperature, p.logit_bias) = (penalty, temperature, vec![(0, f32::MAX)]));
            s.observe(&[0, 1, 2, 3]);
            if let Ok(t) = s.sample(&logits) {
                prop_assert!((t as usize) < logits.len());
            }
        }
    }
}

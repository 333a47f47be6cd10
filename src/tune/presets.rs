//! What to start from on a family of CPUs, before anything was tuned on the machine itself.

use marquetry_passes::params::Params;
use marquetry_runtime::micro::Level;

use crate::engine::Bucket;

/// A family of CPUs.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// What its routines are written for.
    pub level: Level,
    /// Where its values come from.
    pub source: &'static str,
    /// Parameters of a bucket that are not the defaults.
    pub params: &'static [(Bucket, &'static str, i64)],
}

/// All families.
pub static PRESETS: [Preset; 6] = [
    // Attention by tiles was measured with queries of this many numbers only.
    Preset { level: Level::Amx, source: "tuning on a Xeon", params: &[(Bucket::Prefill, "attend_numbers", 8192)] },
    Preset { level: Level::Avx512, source: "the defaults; tuning on Zen 5 kept them", params: &[] },
    Preset { level: Level::AvxVnni, source: "the defaults; tuning on Zen 5 kept them", params: &[] },
    Preset { level: Level::Avx2, source: "the defaults; tuning on Zen 5 kept them", params: &[] },
    Preset { level: Level::Dotprod, source: "not measured: the defaults", params: &[] },
    Preset { level: Level::Neon, source: "not measured: the defaults", params: &[] },
];

/// The family of CPUs that run the routines of a level.
pub fn preset(level: Level) -> &'static Preset {
    &PRESETS[match level {
        Level::Amx => 0,
        Level::Avx512 => 1,
        Level::AvxVnni => 2,
        Level::Avx2 => 3,
        Level::Dotprod => 4,
        Level::Neon => 5,
    }]
}

impl Preset {
    /// Its parameters for a bucket.
    pub fn params(&self, bucket: Bucket) -> Params {
        let mine = self.params.iter().filter(|(b, ..)| *b == bucket);
        mine.fold(Params::default(), |all, (_, name, value)| all.with(name, *value).unwrap_or(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_told_apart_and_their_parameters_exist() {
        for p in &PRESETS {
            assert_eq!(preset(p.level).level, p.level);
        }
        for (_, name, value) in PRESETS.iter().flat_map(|p| p.params) {
            assert!(Params::default().with(name, *value).is_some(), "{name}={value}");
        }
    }
}

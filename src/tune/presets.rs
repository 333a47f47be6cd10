//! What to start from on a family of CPUs, before anything was tuned on the machine itself.

use marquetry_passes::params::Params;

use crate::engine::Bucket;

/// A family of CPUs.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// Features that it has; see [`crate::engine::cpu_features`].
    pub features: &'static [&'static str],
    /// Where its values come from.
    pub source: &'static str,
    /// Parameters of a bucket that are not the defaults.
    pub params: &'static [(Bucket, &'static str, i64)],
}

/// All families, the most particular first. The defaults of the parameters were found on the first one.
pub static PRESETS: &[Preset] = &[
    Preset {
        name: "AVX-512 VNNI",
        features: &["avx512f", "avx512vnni"],
        source: "the defaults, which were chosen on Zen 5",
        params: &[],
    },
    Preset { name: "AVX2", features: &["avx2", "fma"], source: "not measured: the defaults", params: &[] },
    Preset { name: "NEON", features: &["neon"], source: "not measured: the defaults", params: &[] },
];

/// The family of a CPU with these features.
pub fn preset(features: &[&str]) -> Option<&'static Preset> {
    PRESETS.iter().find(|p| p.features.iter().all(|f| features.contains(f)))
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
        let name = |f: &[&str]| preset(f).map(|p| p.name);
        assert_eq!(name(&["avx2", "fma", "avx512f", "avx512vnni"]), Some("AVX-512 VNNI"));
        assert_eq!(name(&["avx2", "fma"]), Some("AVX2"));
        assert_eq!(name(&["neon", "dotprod"]), Some("NEON"));
        assert_eq!(name(&[]), None);
        for (_, name, value) in PRESETS.iter().flat_map(|p| p.params) {
            assert!(Params::default().with(name, *value).is_some(), "{name}={value}");
        }
    }
}

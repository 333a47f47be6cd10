//! What converters to GGUF do to each architecture, as a table: names, settings, and changes to numbers.

mod table;

pub(crate) use table::FORMATS;

use super::{Gguf, GgufError};

/// What the converter did to a tensor, beside renaming it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Rows of each query head were reordered for rotation of neighbouring pairs.
    QueryRows,
    /// As `QueryRows`, for key heads.
    KeyRows,
    /// One was added to norm weights.
    OneAdded,
    /// The last two axes were exchanged.
    Turned,
    /// Queries, keys and values that alternated by head were put one after the other.
    Joined,
    /// A matrix of one row became a vector.
    Flattened,
}

/// The value of a setting that the metadata do not give.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Known {
    Bool(bool),
    Int(u64),
    Float(f64),
    Text(&'static str),
    /// Is there such a tensor?
    Has(&'static str),
    /// Is there none?
    Lacks(&'static str),
    /// The head size; for models of so many layers hidden size / heads.
    QueryScale {
        unless_layers: u64,
    },
    /// The first extent of a tensor.
    Rows(&'static str),
    /// Are there so many layers?
    Layers(u64),
    /// Has the vocabulary so many tokens?
    Vocabulary(u64),
}

/// Which features of a head are rotated, and so what `rope.dimension_count` must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rotated {
    /// All.
    Whole,
    /// Half of them.
    Half,
    /// As many as the metadata say.
    Given,
}

/// GGUF name and Hugging Face name, both without the part for the layer and without `.weight` or `.bias`.
///
/// A GGUF name with `.weight` stands for a name without. `{}` in the other name stands for the index on the first axis of a stack
/// of tensors, letters in braces for what to write at each.
pub(crate) type Name = (&'static str, &'static str);

/// How models of one architecture are kept in GGUF files.
#[derive(Debug)]
pub(crate) struct Format {
    /// `general.architecture`.
    pub gguf: &'static str,
    /// The name in the table of models.
    pub model: &'static str,
    /// Does the file have experts? Tells models of one `general.architecture` apart.
    pub experts: Option<bool>,
    /// What stands before the number of a layer, for `blk.`.
    pub layers: &'static str,
    /// Names outside layers.
    pub top: &'static [Name],
    /// Names in layers.
    pub parts: &'static [&'static [Name]],
    /// Rules by the end of the GGUF name without `.weight` or `.bias`.
    pub rules: &'static [(&'static str, Rule)],
    /// Metadata keys below the architecture's prefix and the settings they are, before those that all share; an empty setting
    /// changes nothing.
    pub keys: &'static [(&'static str, &'static str)],
    /// Settings that the metadata do not give.
    pub known: &'static [(&'static str, Known)],
    /// Rotated features.
    pub rotated: Rotated,
}

/// A tensor's name in Hugging Face spelling, and which of how many on the first axis it is, if it is one of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meaning {
    pub name: String,
    pub slice: Option<(usize, usize)>,
}

impl Format {
    /// The format of a file: by `general.architecture` and whether there are experts.
    pub fn of(name: &str, file: &Gguf) -> Result<Option<&'static Format>, GgufError> {
        let experts = file.unsigned(&format!("{name}.expert_count"))?.is_some_and(|n| n > 0);
        Ok(FORMATS.iter().find(|f| f.gguf == name && f.experts.is_none_or(|e| e == experts)))
    }

    /// What a tensor is called elsewhere, one name for each that it stacks; none if the table has no such name. `first` is its
    /// extent on the first axis.
    pub fn meanings(&self, name: &str, first: usize) -> Vec<Meaning> {
        let Some((layer, rest)) = split(name, "blk.") else { return vec![] };
        let rows = || self.rows(layer.is_some());
        let (stem, kind) = rest.rsplit_once('.').unwrap_or((rest, ""));
        let found = rows().find(|(g, _)| *g == rest).map(|(_, hf)| (*hf).to_owned());
        let found = found.or_else(|| rows().find(|(g, _)| *g == stem).map(|(_, hf)| format!("{hf}.{kind}")));
        let Some(found) = found else { return vec![] };
        let full = match layer {
            Some(layer) => format!("{}{layer}.{found}", self.layers),
            None => found,
        };
        let Some((before, (inside, after))) =
            full.split_once('{').and_then(|(b, rest)| Some((b, rest.split_once('}')?)))
        else {
            return vec![Meaning { name: full, slice: None }];
        };
        let stack =
            |label: String, i: usize| Meaning { name: format!("{before}{label}{after}"), slice: Some((i, first)) };
        match inside {
            "" if first <= MAX_STACK => (0..first).map(|i| stack(i.to_string(), i)).collect(),
            letters if letters.chars().count() == first => {
                letters.chars().enumerate().map(|(i, c)| stack(c.to_string(), i)).collect()
            }
            _ => vec![],
        }
    }

    /// The rule for a tensor by its GGUF name.
    pub fn rule(&self, name: &str) -> Option<Rule> {
        let (_, rest) = split(name, "blk.")?;
        let stem = rest.rsplit_once('.').map_or(rest, |(stem, _)| stem);
        self.rules.iter().find(|(end, _)| stem.ends_with(end)).map(|(_, rule)| *rule)
    }

    /// The GGUF name of a tensor by its Hugging Face name, for messages.
    pub fn gguf_name(&self, name: &str) -> Option<String> {
        let (layer, rest) = split(name, self.layers)?;
        let (stem, kind) = rest.rsplit_once('.')?;
        let mut rows = self.rows(layer.is_some());
        let gguf = rows.find_map(|(gguf, hf)| match () {
            () if *hf == stem => Some(format!("{gguf}.{kind}")),
            () if *hf == rest => Some((*gguf).to_owned()),
            () => {
                let (before, rest) = hf.split_once('{')?;
                let (_, after) = rest.split_once('}')?;
                let middle = stem.strip_prefix(before)?.strip_suffix(after)?;
                (!middle.contains('.')).then(|| format!("{gguf}.{kind}"))
            }
        })?;
        Some(match layer {
            Some(layer) => format!("blk.{layer}.{gguf}"),
            None => gguf,
        })
    }

    fn rows(&self, in_layer: bool) -> impl Iterator<Item = &'static Name> {
        let (top, parts) = if in_layer { (&[][..], self.parts) } else { (self.top, &[][..]) };
        top.iter().chain(parts.iter().copied().flatten())
    }
}

/// Most tensors in a stack.
const MAX_STACK: usize = 4096;

/// `blk.3.attn_q.weight` to `(Some("3"), "attn_q.weight")`; none for something else after `layers` than a number.
fn split<'a>(name: &'a str, layers: &str) -> Option<(Option<&'a str>, &'a str)> {
    let Some(rest) = name.strip_prefix(layers) else { return Some((None, name)) };
    let (layer, rest) = rest.split_once('.')?;
    let digits = !layer.is_empty() && layer.len() <= 6 && layer.bytes().all(|b| b.is_ascii_digit());
    digits.then_some((Some(layer), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(model: &str) -> &'static Format {
        FORMATS.iter().find(|f| f.model == model).unwrap()
    }

    #[track_caller]
    fn both_ways(model: &str, gguf: &str, hf: &str, rule: Option<Rule>) {
        let f = format(model);
        assert_eq!(f.meanings(gguf, 7), [Meaning { name: hf.to_owned(), slice: None }]);
        assert_eq!(f.gguf_name(hf).as_deref(), Some(gguf));
        assert_eq!(f.rule(gguf), rule);
    }

    #[test]
    fn names_go_both_ways() {
        let q = "model.layers.11.self_attn.q_proj.weight";
        both_ways("llama", "blk.11.attn_q.weight", q, Some(Rule::QueryRows));
        both_ways("qwen2", "blk.11.attn_q.weight", q, None);
        let norm = "model.layers.0.post_attention_layernorm.weight";
        both_ways("llama", "blk.0.ffn_norm.weight", norm, None);
        both_ways("gemma3", "blk.0.post_attention_norm.weight", norm, Some(Rule::OneAdded));
        both_ways("gemma3", "output_norm.weight", "model.norm.weight", Some(Rule::OneAdded));
        both_ways("rwkv6", "blk.1.time_mix_lerp_x.weight", "rwkv.blocks.1.attention.time_maa_x", None);
        both_ways("gpt2", "blk.1.attn_qkv.bias", "transformer.h.1.attn.c_attn.bias", Some(Rule::Turned));
        assert!(format("llama").meanings("blk.x.attn_q.weight", 7).is_empty());
        assert!(format("llama").meanings("blk.1.attn_qq.weight", 7).is_empty());
    }

    #[test]
    fn stacks_are_named_one_by_one() {
        let all = format("mixtral").meanings("blk.2.ffn_up_exps.weight", 3);
        assert_eq!(all[2].name, "model.layers.2.block_sparse_moe.experts.2.w3.weight");
        assert_eq!((all.len(), all[2].slice), (3, Some((2, 3))));
        let up = format("mixtral").gguf_name(&all[1].name);
        assert_eq!(up.as_deref(), Some("blk.2.ffn_up_exps.weight"));
        let lerp = format("rwkv6").meanings("blk.0.time_mix_lerp_fused.weight", 5);
        assert_eq!(lerp[3].name, "rwkv.blocks.0.attention.time_maa_r");
        assert!(format("rwkv6").meanings("blk.0.time_mix_lerp_fused.weight", 4).is_empty());
        assert!(format("mixtral").meanings("blk.2.ffn_up_exps.weight", usize::MAX).is_empty());
    }

    /// Tensors that the gguf package lists for an architecture, and that only relatives of our model have.
    const NOT_OURS: [&str; 5] =
        ["bert output_norm", "bert blk.0.attn_qkv", "bert cls", "bert cls.output", "phi2 blk.0.ffn_norm"];

    /// Names by the gguf package, written by `tests/tools/gguf_recipes.py`.
    #[test]
    fn names_are_those_of_the_converter() {
        let text = include_str!("../../../../tests/oracles/gguf/names.txt");
        let mut seen = std::collections::BTreeSet::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            if let [arch, "*", gguf] = words[..] {
                let known = |f: &Format| {
                    let all = [".weight", ".bias"].map(|kind| f.meanings(&format!("{gguf}{kind}"), 5));
                    all.iter().any(|m| !m.is_empty()) || NOT_OURS.contains(&format!("{arch} {gguf}").as_str())
                };
                let read_elsewhere = gguf.starts_with("rope_f") || gguf.ends_with("attn_rot_embd");
                assert!(read_elsewhere || FORMATS.iter().any(|f| f.gguf == arch && known(f)), "{line}");
                continue;
            }
            let [arch, model, gguf, hf, ref rest @ ..] = words[..] else { panic!("{line}") };
            let format = FORMATS.iter().find(|f| f.gguf == arch && f.experts.is_none_or(|e| e == (model == "mixtral")));
            let format = format.unwrap_or_else(|| panic!("{line}"));
            seen.insert(format.model);
            let i: usize = rest.first().map_or(0, |i| i.parse().unwrap());
            let meanings = format.meanings(gguf, 5);
            let name = &meanings.get(i).unwrap_or_else(|| panic!("{line}")).name;
            assert_eq!(meanings.len() > 1, !rest.is_empty(), "{line}");
            // Projections that published files join, and the converter takes apart, are parameters of their own.
            let parent = |n: &str| n.rsplitn(3, '.').last().unwrap_or_default().to_owned();
            let apart = ["W_pack", "wqkv"].iter().any(|j| hf.contains(j)) && parent(hf) == parent(name);
            let canonical = crate::weights::canonical;
            assert!(canonical(name) == canonical(hf) || apart, "{line}: {name}");
        }
        let all: std::collections::BTreeSet<_> = FORMATS.iter().map(|f| f.model).collect();
        assert_eq!(seen, all);
    }

    #[test]
    fn every_format_is_of_a_known_model_and_plain() {
        for f in FORMATS {
            assert!(crate::models::ARCHITECTURES.iter().any(|a| a.name == f.model), "{}", f.model);
            for layer in [false, true] {
                let names: Vec<_> = f.rows(layer).map(|n| n.0).collect();
                let unique: std::collections::BTreeSet<_> = names.iter().collect();
                assert_eq!(names.len(), unique.len(), "{}", f.model);
            }
        }
    }
}

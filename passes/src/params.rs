//! Parameters of lowering, schedules and execution: numbers that change how fast kernels are, never what they compute.
//!
//! Each belongs to a class of kernels and to the pass that reads it, as an option: `lower{fma_tokens=16}`. Decoding and prefill are
//! compiled apart, so that a pipeline's options are those of one shape bucket.

use serde::{Deserialize, Serialize};

use crate::eqsat::Exact;
use crate::manager::{OptionDecl, OptionKind, Step};

/// Who reads a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The pass `lower`.
    Lower,
    /// The pass `schedule`.
    Schedule,
    /// The runtime, when a function is loaded.
    Runtime,
}

impl Reader {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Reader::Lower => "lower",
            Reader::Schedule => "schedule",
            Reader::Runtime => "runtime",
        }
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Its name, also as an option.
    pub name: &'static str,
    /// Who reads it.
    pub reader: Reader,
    /// Kernels that it is for.
    pub class: &'static str,
    /// What it counts.
    pub unit: &'static str,
    /// All values that it may have.
    pub choices: &'static [i64],
    /// The value unless given, as text.
    pub default: &'static str,
    /// What another value may do to numbers.
    pub numbers: Exact,
    /// One line of documentation.
    pub doc: &'static str,
}

macro_rules! params {
    ($($name:ident: $reader:ident, $class:literal, $unit:literal, [$($choice:literal),+], $default:literal, $numbers:ident, $doc:literal;)+) => {
        /// A value for each parameter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Params {
            $(#[doc = $doc] pub $name: i64,)+
        }

        impl Default for Params {
            fn default() -> Params {
                Params { $($name: $default),+ }
            }
        }

        impl Params {
            fn slot(&mut self, name: &str) -> Option<&mut i64> {
                match name {
                    $(stringify!($name) => Some(&mut self.$name),)+
                    _ => None,
                }
            }
        }

        /// Every parameter.
        pub const TABLE: &[Param] = &[$(Param {
            name: stringify!($name),
            reader: Reader::$reader,
            class: $class,
            unit: $unit,
            choices: &[$($choice),+],
            default: stringify!($default),
            numbers: Exact::$numbers,
            doc: $doc,
        }),+];
    };
}

params! {
    dot_tokens: Lower, "8-bit product, many tokens", "tokens", [8, 16, 24, 32, 64], 32, Reassociates,
        "tokens whose sums are kept at once";
    dot_blocks: Lower, "8-bit product, many tokens", "blocks of 8 rows", [1, 2, 4], 4, Reassociates,
        "row blocks of a tile, at most; 8 where a gated product is quantized";
    dot_one_blocks: Lower, "8-bit product, one token", "blocks of 8 rows", [1, 2, 4], 4, Reassociates,
        "row blocks of a tile, at most; 8 where a gated product is quantized";
    fma_tokens: Lower, "float product, many tokens", "tokens", [8, 16, 24, 32, 64], 32, Bitwise,
        "tokens whose sums are kept at once";
    fma_blocks: Lower, "float product, many tokens", "blocks of 8 rows", [1, 2, 4], 4, Bitwise,
        "row blocks of a tile, at most";
    fma_one_blocks: Lower, "float product, one token", "blocks of 8 rows", [1, 2, 4], 4, Bitwise,
        "row blocks of a tile, at most";
    pairs_tokens: Lower, "bf16 product, many tokens", "tokens", [32, 64, 128, 256], 256, Reassociates,
        "tokens whose sums are kept at once";
    pairs_blocks: Lower, "bf16 product, many tokens", "blocks of 8 rows", [2, 4, 8], 4, Reassociates,
        "row blocks of a tile, at most";
    pairs_bytes: Lower, "bf16 product, many tokens", "bytes", [262144, 524288, 786432, 1572864], 786432, Bitwise,
        "most bytes of activations that are read for each panel of weights; they should stay in a second-level cache";
    panel: Lower, "float product of quantized weights", "bytes", [65536, 131072, 262144, 393216, 786432], 393216, Bitwise,
        "most bytes of a panel of dequantized rows; it should stay in a second-level cache";
    loop_tokens: Lower, "product without routines, many tokens", "tokens", [1, 2, 4, 8], 4, Bitwise,
        "tokens that share one pass over a block of weights";
    attend_rows: Lower, "attention, many tokens", "rows", [8, 16, 32, 64], 64, Reassociates,
        "queries of a tile, at most: more share what is read of the cache, fewer are spread better over threads";
    attend_numbers: Lower, "attention, many tokens", "numbers", [2048, 4096, 8192, 16384], 16384, Reassociates,
        "numbers of a tile's queries, at most: they are read again for every few positions";
    attend_spread: Lower, "attention, one token", "iterations", [1, 2, 4, 8, 16, 32], 8, Reassociates,
        "iterations that a step of one token should have, to occupy some threads";
    merge_numbers: Lower, "attention, one token", "numbers", [1, 2048, 4096, 8192, 16384], 4096, Bitwise,
        "numbers of all pieces, at most, that each thread puts together for itself, instead of waiting for the others' share";
    attend_block: Lower, "attention without routines", "positions", [8, 16, 32, 64], 16, Reassociates,
        "positions whose scores are formed before the running maximum moves";
    lanes: Schedule, "all generated loops", "lanes", [4, 8], 8, Bitwise,
        "most lanes of elementwise vectors";
    reduce_lanes: Schedule, "all generated loops", "lanes", [4, 8, 16], 16, Reassociates,
        "most lanes of the vectors that a reduction is summed in";
    small: Schedule, "all generated loops", "statements", [1, 4, 8, 16, 32], 8, Bitwise,
        "most statements of a loop of fewer than 4 iterations that is expanded";
    chunks: Runtime, "all parallel loops", "chunks", [1, 2, 4, 8, 16], 4, Bitwise,
        "chunks of a thread's share of a parallel loop, about: more even out disturbed threads, fewer cost less";
}

/// How many parameters a reader has.
pub(crate) const fn count(reader: Reader) -> usize {
    let (mut i, mut n) = (0, 0);
    while i < TABLE.len() {
        n += (TABLE[i].reader as u8 == reader as u8) as usize;
        i += 1;
    }
    n
}

/// Options of a pass: its `own`, then its parameters. `N` is how many there are together.
pub(crate) const fn options<const N: usize>(own: &[OptionDecl], reader: Reader) -> [OptionDecl; N] {
    let mut all = [OptionDecl { name: "", kind: OptionKind::Flag, default: "", doc: "" }; N];
    let (mut i, mut n) = (0, own.len());
    while i < n {
        all[i] = own[i];
        i += 1;
    }
    i = 0;
    while i < TABLE.len() {
        let Param { name, choices, default, doc, .. } = TABLE[i];
        if TABLE[i].reader as u8 == reader as u8 {
            all[n] = OptionDecl { name, kind: OptionKind::OneOf(choices), default, doc };
            n += 1;
        }
        i += 1;
    }
    all
}

impl Params {
    /// The value of a parameter.
    pub fn get(mut self, name: &str) -> Option<i64> {
        self.slot(name).copied()
    }

    /// With another value of one parameter; none where that is not one of its choices, or there is no such parameter.
    pub fn with(mut self, name: &str, value: i64) -> Option<Params> {
        TABLE.iter().find(|p| p.name == name && p.choices.contains(&value))?;
        *self.slot(name)? = value;
        Some(self)
    }

    /// Those that a step of a pipeline gives; the others have their defaults.
    pub(crate) fn of(step: &Step) -> Params {
        let given = step.pass.options.iter().filter_map(|o| Some((o.name, i64::try_from(step.count(o.name)).ok()?)));
        given.fold(Params::default(), |p, (name, value)| p.with(name, value).unwrap_or(p))
    }

    /// Parameters that differ from the defaults, with their values.
    pub fn changed(self) -> Vec<(&'static Param, i64)> {
        let differs = |p: &'static Param| Some((p, self.get(p.name)?)).filter(|(p, v)| v.to_string() != p.default);
        TABLE.iter().filter_map(differs).collect()
    }

    /// The first parameter whose value is none of its choices: its name, and the value.
    pub fn out_of_range(self) -> Option<(&'static str, i64)> {
        let wrong = |p: &Param| Some((p.name, self.get(p.name)?)).filter(|(_, v)| !p.choices.contains(v));
        TABLE.iter().find_map(wrong)
    }

    /// These, but for what may change the bits of results.
    pub fn bitwise(self) -> Params {
        let loose = self.changed().into_iter().filter(|(p, _)| p.numbers != Exact::Bitwise);
        loose.fold(self, |all, (p, _)| all.with(p.name, Params::default().get(p.name).unwrap_or(0)).unwrap_or(all))
    }

    /// A pipeline of passes without options, with these parameters as options of the passes that read them.
    pub fn pipeline(self, passes: &str) -> String {
        let of = |pass: &str| {
            let mine = self.changed().into_iter().filter(|(p, _)| p.reader.name() == pass);
            let options: Vec<String> = mine.map(|(p, v)| format!("{}={v}", p.name)).collect();
            if options.is_empty() { pass.to_string() } else { format!("{pass}{{{}}}", options.join(",")) }
        };
        passes.split(',').map(of).collect::<Vec<_>>().join(",")
    }
}

impl std::fmt::Display for Params {
    /// What differs from the defaults, as `name=value name=value`; `defaults` if nothing does.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all: Vec<String> = self.changed().iter().map(|(p, v)| format!("{}={v}", p.name)).collect();
        f.write_str(&if all.is_empty() { "defaults".into() } else { all.join(" ") })
    }
}

/// Identifies the table: values that were found with another one mean nothing.
pub fn version() -> String {
    let row = |p: &Param| format!("{}:{}:{:?}:{}", p.name, p.reader.name(), p.choices, p.default);
    TABLE.iter().map(row).collect::<Vec<_>>().join(" ")
}

/// The table for the documentation.
pub fn documentation() -> String {
    let mut out = String::from(
        "| parameter | read by | kernels | unit | values | default | numbers | meaning |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for p in TABLE {
        let values = p.choices.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        let (numbers, reader) = (format!("{:?}", p.numbers).to_lowercase(), p.reader.name());
        let Param { name, class, unit, default, doc, .. } = p;
        out += &format!("| {name} | {reader} | {class} | {unit} | {values} | {default} | {numbers} | {doc} |\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::{PASSES, default_pipeline, parse_pipeline};
    use crate::testing::{data, snapshot};

    #[test]
    fn rows_are_consistent() {
        for p in TABLE {
            let value = Params::default().get(p.name).unwrap();
            assert!(p.choices.contains(&value) && value.to_string() == p.default, "{}", p.name);
            assert!(p.choices.is_sorted() && p.choices[0] > 0, "{}", p.name);
            let reader = PASSES.iter().find(|x| x.name == p.reader.name());
            let option = reader.map(|x| x.options.iter().filter(|o| o.name == p.name).count());
            assert_eq!(option, (p.reader != Reader::Runtime).then_some(1), "{}", p.name);
        }
        assert_eq!(Params::default().out_of_range(), None);
    }

    #[test]
    fn pipelines_carry_them() {
        assert_eq!(Params::default().pipeline(&default_pipeline()), default_pipeline());
        let tuned = Params::default().with("fma_tokens", 16).unwrap().with("lanes", 4).unwrap();
        let tuned = tuned.with("dot_blocks", 2).unwrap().with("chunks", 8).unwrap();
        let text = tuned.pipeline("lower,schedule,plan");
        assert_eq!(text, "lower{dot_blocks=2,fma_tokens=16},schedule{lanes=4},plan");
        let steps = parse_pipeline(&text).unwrap();
        let read = |i: usize| Params::of(&steps[i]);
        assert_eq!((read(0).fma_tokens, read(0).dot_blocks, read(0).lanes, read(1).lanes), (16, 2, 8, 4));
        assert_eq!(tuned.to_string(), "dot_blocks=2 fma_tokens=16 lanes=4 chunks=8");
        assert_eq!(tuned.bitwise().to_string(), "fma_tokens=16 lanes=4 chunks=8");
        assert!(Params::default().with("lanes", 5).is_none() && Params::default().with("lane", 4).is_none());
        assert_eq!(Params { lanes: 5, ..Params::default() }.out_of_range(), Some(("lanes", 5)));
    }

    /// The table in `docs/tuning.md`. `BLESS=1` writes it anew.
    #[test]
    fn the_documented_table_is_up_to_date() {
        let path = data("../../../docs/tuning.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let (head, rest) = page.split_once("| parameter |").expect("the page has the table");
        let tail = rest.split_once("\n\n").map_or("", |(_, tail)| tail);
        snapshot(path, &format!("{head}{}\n{tail}", documentation()));
    }
}

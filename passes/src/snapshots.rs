//! Passes on small modules: `tests/data/passes/NAME.tir` names its pipeline, `NAME.out` is what comes of it. `BLESS=1` writes
//! the latter anew. Each result is verified, read back, and interpreted beside what it came from.

use std::fs;

use marquetry_ir::graph::{Loc, Module, parse_module, print_module, verify};
use marquetry_ir::testing::gap;

use crate::Numerics;
use crate::manager::{self, Ir, Options};
use crate::testing::{both, data, result_types, snapshot};

#[test]
fn passes_give_what_is_written_down_and_keep_every_number() {
    let mut files: Vec<_> = fs::read_dir(data("passes")).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "tir"));
    files.sort();
    assert!(files.len() >= 5);
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let pipeline = text.lines().next().and_then(|l| l.strip_prefix("// pipeline: ")).unwrap();
        let before = parse_module(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(verify(&before), Vec::<String>::new(), "{name}");
        let options = Options { numerics: Numerics::Strict, ..Options::default() };
        let (ir, _) = manager::run(Ir::Graph(before.clone()), pipeline, &options, &mut |_, _| {}).unwrap();
        let Ir::Graph(after) = ir else { panic!("{name}: a program") };
        assert_eq!(verify(&after), Vec::<String>::new(), "{name}");
        let printed = print_module(&after);
        assert!(parse_module(&printed).unwrap() == after, "{name} does not read back");
        assert_eq!(result_types(&before), result_types(&after), "{name}");
        assert_eq!(places(&before), places(&after), "{name}");
        for seed in 0..16 {
            let [a, b] = both(&before, &after, seed);
            assert!(gap(&a, &b) < 1e-5, "{name}, seed {seed}: {}", gap(&a, &b));
            assert_eq!(a.states, b.states, "{name}, seed {seed}: states");
        }
        snapshot(path.with_extension("out"), &printed);
    }
}

/// Places of the entry's arguments.
fn places(m: &Module) -> Vec<Option<Loc>> {
    let f = m.entry().unwrap();
    f.args.iter().map(|(_, v)| f.values[v.0 as usize].loc.clone()).collect()
}

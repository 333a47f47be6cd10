//! What the tests of passes share: inputs by seed, files with expected text.

use std::path::PathBuf;

use marquetry_ir::graph::{Module, Ty};
use marquetry_ir::testing::{self, Inputs, Numbers, Outcome, Random};

/// Inputs of a module. The same module and seed give the same.
pub fn inputs(m: &Module, seed: u64, numbers: Numbers) -> Inputs {
    testing::inputs(m, &mut Random(seed), numbers)
}

/// Results of two modules of one interface on the same roughly normal inputs.
pub fn both(a: &Module, b: &Module, seed: u64) -> [Outcome; 2] {
    let i = inputs(a, seed, Numbers::Normal);
    [a, b].map(|m| testing::run(m, &i).unwrap_or_else(|e| panic!("{e}")))
}

/// Types of the entry function's results.
pub fn result_types(m: &Module) -> Vec<Ty> {
    let f = m.entry().unwrap();
    f.results.iter().map(|(_, v)| f.ty(*v).clone()).collect()
}

/// A file below `tests/data`.
pub fn data(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

/// Compares with a file; `BLESS=1` writes it anew.
pub fn snapshot(path: PathBuf, got: &str) {
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, got).unwrap();
        return;
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(got == want, "{} differs; BLESS=1 writes it anew. It would be:\n{got}", path.display());
}

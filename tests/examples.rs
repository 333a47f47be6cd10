//! The examples run, and what they say about themselves holds.

// The scaffold's test speaks of its crate by name.
extern crate self as template;
pub use scaffold::Template;

#[path = "../examples/changed_model.rs"]
#[allow(dead_code, reason = "its `main` reads the command line")]
mod changed_model;
#[path = "../examples/own_model.rs"]
mod own_model;
#[path = "../examples/own_operator.rs"]
mod own_operator;

#[test]
fn a_model_from_scratch() {
    own_model::main().unwrap();
}

#[test]
fn an_operator_as_loops() {
    own_operator::main().unwrap();
}

#[test]
fn a_model_with_another_activation() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracles/llama/base");
    changed_model::compare(&dir).unwrap();
}

/// What `new-model` writes compiles here under its own name, and its test runs.
#[path = "../templates/new-model/src/lib.rs"]
mod scaffold;
#[path = "../templates/new-model/tests/model.rs"]
mod template_test;

#[test]
fn a_scaffold_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("made");
    let at = at.to_str().unwrap();
    let sources = env!("CARGO_MANIFEST_DIR");
    let make = |name: &str| marquetry::cli::captured(&["new-model", name, "-o", at, "--sources", sources]);
    assert_eq!(make("Bad-Name").status, 2);
    let made = make("my_model");
    assert_eq!((made.status, made.stderr.as_str()), (0, ""));
    let read = |path: &str| std::fs::read_to_string(dir.path().join("made").join(path)).unwrap();
    assert!(read("Cargo.toml").contains("name = \"my_model\"") && read("Cargo.toml").contains("path = "));
    assert!(
        read("src/lib.rs").contains("pub struct MyModel") && read("tests/model.rs").contains("use my_model::MyModel;")
    );
    assert!(!read("src/lib.rs").to_lowercase().contains("template"));
    assert!(make("my_model").stderr.contains("it is there already"));
}

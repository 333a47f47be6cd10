//! The examples run, and what they say about themselves holds.

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

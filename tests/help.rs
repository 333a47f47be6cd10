//! Texts for people, as they are: help of the verbs that work on IR, explanations of codes, the report of rewriting, answers to
//! mistakes. `INSTA_UPDATE=always` writes them anew.

use marquetry::CODES;
use marquetry::cli::captured;

#[test]
fn help_of_the_verbs_on_ir() {
    for verb in ["opt", "exec", "inspect"] {
        let help = captured(&[verb, "--help"]);
        assert_eq!(help.status, 0);
        // The name of the program in front is the caller's.
        insta::assert_snapshot!(verb, help.stdout);
    }
}

/// The name of the program in front of a message of the command line is the caller's.
fn said(args: &[&str]) -> String {
    let out = captured(args);
    format!("$ {}\nexit {}\n{}{}", args.join(" "), out.status, out.stdout, out.stderr)
}

#[test]
fn what_is_said_of_every_code() {
    let list = captured(&["explain"]);
    assert_eq!((list.status, list.stderr.as_str()), (0, ""));
    let each = CODES.iter().map(|(code, ..)| said(&["explain", code])).collect::<Vec<_>>();
    insta::assert_snapshot!("codes", format!("{}\n{}", list.stdout, each.join("\n")));
    insta::assert_snapshot!("code_unknown", said(&["explain", "NOPE1"]));
}

/// What rewriting did to a small network with quantized weights.
#[test]
fn the_report_of_rewriting() {
    let file = "passes/tests/data/eqsat/merge-linears.tir";
    for numerics in ["strict", "fast"] {
        let out =
            captured(&["opt", file, "--pipeline", "canon,outline,eqsat,fuse", "--numerics", numerics, "--explain"]);
        assert_eq!(out.status, 0, "{}", out.stderr);
        insta::assert_snapshot!(format!("report_{numerics}"), out.stderr);
    }
}

/// Mistakes in calls of the verbs on IR and on models, each with something to try. The system's reasons are those of Unix.
#[cfg(unix)]
#[test]
fn what_mistakes_are_answered_with() {
    let file = "passes/tests/data/passes/whole.tir";
    let calls: &[&[&str]] = &[
        &["opt", "no/such.tir"],
        &["opt", "README.md"],
        &["opt", file, "--pipeline", "canon,fly"],
        &["opt", file, "--pipeline", "canon{x=1}"],
        &["opt", file, "--from-stage", "lops", "--compile-to", "plan"],
        &["opt", file, "--from-stage", "fused", "--compile-to", "canon"],
        &["opt", file, "--pipeline", "plan"],
        &["opt", "passes/tests/data/passes", "--from-stage", "eqsat"],
        &[
            "opt",
            "tests/files/passes/manager/check-fails.tir",
            "--pipeline",
            "eqsat",
            "--numerics",
            "fast",
            "--check-tolerance",
            "0.001",
        ],
        &["exec", file, "--size", "n=0"],
        &["exec", file, "--size", "q=4"],
        &["exec", file, "--args", "no/such.safetensors"],
        &["inspect", "no/such/model"],
        &["inspect", "tests/oracles/llama/base", "--compile-from", "x"],
        &["generate", "tests/oracles/llama/base", "--tokens", "1", "--compile-from", "passes", "-q"],
        &["generate", "tests/oracles/llama/base", "--tokens", "99999", "-q"],
        &["generate", "tests/oracles/llama/base", "--tokens", "1", "--top-p", "2"],
        &["eval", "tests/oracles/llama/base", "--tokens", "1,2,3", "--context", "2", "-q"],
        &["chat", "tests/oracles/llama/base", "-q"],
    ];
    let all: Vec<String> = calls.iter().map(|c| said(c)).collect();
    insta::assert_snapshot!("mistakes", all.join("\n"));
}

//! Texts for people, as they are: help of the verbs that work on IR. `INSTA_UPDATE=always` writes them anew.

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

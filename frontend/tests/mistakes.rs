//! Mistakes that the compiler of Rust catches, with what it says. `BLESS=1` writes the answers anew.

#[test]
fn beginners_mistakes_are_explained() {
    if std::env::var_os("BLESS").is_some() {
        // SAFETY: this test is alone in its process.
        unsafe { std::env::set_var("TRYBUILD", "overwrite") };
    }
    trybuild::TestCases::new().compile_fail("tests/mistakes/*.rs");
}

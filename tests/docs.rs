//! The documentation of the representations: its examples are valid, its grammar has no word that no text uses, and the table
//! of operators is the table of operators.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use marquetry::ir::graph::{AttrKind, Op};
use marquetry::passes::manager::{parse, print, verify};

fn fences<'a>(text: &'a str, kind: &str) -> Vec<&'a str> {
    let open = format!("```{kind}\n");
    text.split(open.as_str()).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn examples_are_valid() {
    let mut count = 0;
    for entry in fs::read_dir("docs").unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for example in fences(&text, "tir") {
            let ir = parse(example).unwrap_or_else(|e| panic!("{}", e.render(&path.display().to_string(), example)));
            assert_eq!(verify(&ir), Vec::<String>::new(), "{}:\n{example}", path.display());
            assert!(parse(&print(&ir)).unwrap() == ir);
            count += 1;
        }
    }
    assert!(count >= 3, "{count}");
}

/// Words and signs in quotes.
fn terminals(grammar: &str) -> BTreeSet<&str> {
    grammar.split('"').skip(1).step_by(2).collect()
}

#[test]
fn every_terminal_of_the_grammar_is_used() {
    let page = fs::read_to_string("docs/ir.md").unwrap();
    let [grammar] = fences(&page, "ebnf")[..] else { panic!("one grammar") };
    // Texts that parse: the examples, and what files print.
    let mut valid: String = fences(&page, "tir").concat();
    let mut stack = vec![Path::new("tests/files").to_path_buf(), Path::new("passes/tests/data").to_path_buf()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                stack.push(path);
            } else if path.extension().is_some_and(|e| e == "tir") {
                let text = fs::read_to_string(&path).unwrap();
                if parse(&text).is_ok() {
                    valid.push_str(&text);
                }
            }
        }
    }
    let words: BTreeSet<&str> = valid.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let terminals = terminals(grammar);
    assert!(terminals.len() > 60, "{terminals:?}");
    for t in terminals {
        let word = t.trim_end_matches('.');
        let used = if t.chars().all(|c| c.is_alphanumeric() || c == '.') && !t.starts_with('0') {
            words.contains(word)
        } else {
            valid.contains(t)
        };
        assert!(used || t == "x", "no text that parses has `{t}`");
    }
}

/// `docs/operators.md` is the table. `BLESS=1` writes it anew.
#[test]
fn the_documented_operators_are_up_to_date() {
    let mut out = String::from(
        "# Operators\n\nGenerated from the table in `ir/src/graph/ops.rs` (`BLESS=1 cargo test --test docs`). `xs` stands for one or \
         more operands. Operators\nthat are not primitive have an expansion into smaller ones, which is their meaning.\n\n| operator | operands | \
         attributes | class | primitive | meaning |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for op in Op::ALL {
        let info = op.info();
        let kind = |k: &AttrKind| format!("{k:?}").to_lowercase();
        let attrs: Vec<String> = info.attrs.iter().map(|(n, k)| format!("{n}: {}", kind(k))).collect();
        let primitive = if info.expand.is_none() { "yes" } else { "" };
        let class = format!("{:?}", info.class).to_lowercase();
        let doc = info.doc.trim().replace('|', "\\|");
        let (name, operands) = (info.name, info.operands.join(", "));
        out.push_str(&format!("| {name} | {operands} | {} | {class} | {primitive} | {doc} |\n", attrs.join(", ")));
    }
    if std::env::var_os("BLESS").is_some() {
        fs::write("docs/operators.md", &out).unwrap();
    }
    assert!(
        fs::read_to_string("docs/operators.md").unwrap_or_default() == out,
        "BLESS=1 writes docs/operators.md anew"
    );
}

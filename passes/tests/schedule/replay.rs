//! Traces that are applied again, edited ones, and wrong ones; the page of primitives.

use marquetry_ir::loops::Kernel;
use marquetry_passes::schedule::rules::default_schedule;
use marquetry_passes::schedule::{PRIMITIVES, promote, replay};

use crate::{kernel, same, text};

/// A kernel for each primitive, and the line that is applied to it.
const EXAMPLES: &[(&str, &str, &str)] = &[
    (
        "split",
        "split %i.0 by 8",
        "kernel @k(%a: f32[20] in, %y: f32[20] out) {
          for i.0 in 0..20 {
            store %y[i.0] = %a[i.0] * 2.0
          }
        }",
    ),
    (
        "unroll",
        "unroll %i.0",
        "kernel @k(%a: f32[3] in, %y: f32[3] out) {
          for i.0 in 0..3 {
            store %y[i.0] = %a[i.0] * 2.0
          }
        }",
    ),
    (
        "reorder",
        "reorder %i.0 and %j.1",
        "kernel @k(%a: f32[4, 6] in, %y: f32[6, 4] out) {
          for i.0 in 0..4 {
            for j.1 in 0..6 {
              store %y[j.1, i.0] = %a[i.0, j.1]
            }
          }
        }",
    ),
    (
        "parallel",
        "parallel %t.0",
        "kernel @k(%a: f32[n, 8] in, %y: f32[n, 8] out) {
          for t.0 in 0..n {
            for i.1 in 0..8 {
              store %y[t.0, i.1] = %a[t.0, i.1] + 1.0
            }
          }
        }",
    ),
    (
        "vectorize",
        "vectorize %i.0 by 8",
        "kernel @k(%a: f32[16] in, %s: f32[1] in, %y: f32[16] out) {
          for i.0 in 0..16 {
            store %y[i.0] = %a[i.0] * %s[0]
          }
        }",
    ),
    (
        "vectorize_reduce",
        "vectorize_reduce %i.0 by 4 in 2 chains",
        "kernel @k(%a: f32[24] in, %y: f32[1] out) {
          store %y[0] = 0.0
          for i.0 in 0..24 {
            store %y[0] = %y[0] + %a[i.0]
          }
        }",
    ),
    (
        "registers",
        "registers %acc",
        "kernel @k(%a: f32[2, 8] in, %y: f32[2, 8] out) {
          local %acc: f32[2, 8]
          store %acc[0, 0] = splat.8(0.0)
          for i.0 in 0..2 {
            store %acc[0, 0] = %acc[0, 0; 8] + %a[i.0, 0; 8]
          }
          store %y[0, 0] = %acc[0, 0; 8]
          store %y[1, 0] = %acc[0, 0; 8]
        }",
    ),
];

fn applied(before: &Kernel, lines: &[&str]) -> Kernel {
    let mut k = before.clone();
    let lines: Vec<String> = lines.iter().map(|l| l.to_string()).collect();
    replay(&mut k, &lines).unwrap_or_else(|e| panic!("{e}\n{}", text(before)));
    k
}

/// `docs/schedules.md` shows what primitives make of real kernels. `BLESS=1` writes it anew.
#[test]
fn the_documented_primitives_are_up_to_date() {
    let mut page = String::from(
        "# Schedules\n\nGenerated from `passes/src/schedule/replay.rs` and `passes/tests/schedule/replay.rs` (`BLESS=1 cargo test -p \
         marquetry-passes --test schedule`).\n\nA schedule is a list of primitives, each a rewrite of one kernel that keeps its meaning. The \
         pass `schedule` chooses them\nby rules (`passes/src/schedule/rules.rs`); what it applied is the kernel's trace. A trace is text that can \
         be changed and applied again:\n\n```\nmarquetry opt FILE.tir --compile-to scheduled --traces > steps\nmarquetry opt FILE.tir --pipeline \
         'schedule{trace=steps}'\n```\n\nThe file has a line `kernel @NAME` for a kernel and its steps below; `#` begins a comment. Kernels that it \
         does not name get the\ndefault schedule. A loop is named as in the text of the IR, a number behind its name. Every step checks what it \
         needs, as it\ndoes in the pass: a step that does not hold is refused with its line, and nothing is scheduled. What a step says of names that \
         it\nmakes may be left out; where it is there, it has to be what comes out.\n",
    );
    for p in PRIMITIVES {
        let (_, line, source) = EXAMPLES.iter().find(|(name, ..)| *name == p.name).expect("an example");
        let before = kernel(source);
        let after = applied(&before, &[line]);
        for (n, seed) in [(0, 1), (1, 2), (7, 3)] {
            same(&before, &after, n, seed);
        }
        page += &format!("\n## {}\n\n`{}`\n\n{} Needs: {}\n\n", p.name, p.form, p.doc, p.needs);
        page += &format!(
            "```\n{}\n```\n\n`{line}` makes of it:\n\n```\n{}\n```\n",
            text(&before).trim(),
            text(&after).trim()
        );
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schedules.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(page == want, "docs/schedules.md differs; BLESS=1 writes it anew");
}

const ROWS: &str = "kernel @k(%x: f32[n, 37] in, %y: f32[n, 37] out) {
  local %acc: f32[1, 8]
  parallel t.0 in 0..n {
    for r.1 in 0..8 {
      store %acc[0, r.1] = %x[t.0, r.1]
    }
    for i.2 in 0..37 {
      store %y[t.0, i.2] = %x[t.0, i.2] * %acc[0, 0]
    }
  }
}";

#[test]
fn a_trace_gives_what_it_was_taken_from() {
    let sources = EXAMPLES.iter().map(|(.., source)| *source).chain([ROWS]);
    for before in sources.map(kernel) {
        let mut scheduled = before.clone();
        default_schedule(&mut scheduled);
        promote(&mut scheduled);
        let lines: Vec<&str> = scheduled.trace.iter().map(String::as_str).collect();
        assert_eq!(text(&applied(&before, &lines)), text(&scheduled));
    }
}

#[test]
fn an_edited_trace_works() {
    let before = kernel(ROWS);
    let mut default = before.clone();
    default_schedule(&mut default);
    assert_eq!(default.trace, ["vectorize %i.2 by 8, tail %it.3", "vectorize %r.1 by 8"]);
    for lines in [
        &["vectorize %i.2 by 4, tail %it.3", "vectorize %r.1 by 4"][..],
        &["vectorize %i.2 by 16", "vectorize %r.1 by 8"],
        &["split %i.2 by 6", "vectorize %r.1 by 4"],
        &["  unroll   %r.1"],
        &[],
    ] {
        let after = applied(&before, lines);
        assert!(text(&after) != text(&default));
        for (n, seed) in [(0, 1), (1, 2), (5, 3)] {
            same(&before, &after, n, seed);
        }
    }
}

#[test]
fn wrong_steps_are_refused_with_their_line() {
    for (lines, number, why) in [
        (&["vectorise %r.1 by 8"][..], 1, "no primitive `vectorise`; did you mean `vectorize`?"),
        (&["unroll %r.1", "unroll %s.1"], 2, "no loop `%s.1`; did you mean"),
        (&["unroll r.1"], 1, "no loop `r.1`; did you mean `%r.1`"),
        (&["vectorize %r.1 by 6"], 1, "6 lanes"),
        (&["vectorize %r.1 by 16"], 1, "fewer than 16 iterations"),
        (&["vectorize %r.1"], 1, "not of the form `vectorize %LOOP by LANES[, tail %TAIL]`"),
        (&["vectorize %r.1 by 4 please"], 1, "not of the form"),
        (
            &["vectorize %i.2 by 8, tail %it.9"],
            1,
            "what it makes is `vectorize %i.2 by 8, tail %it.3`; correct this line",
        ),
        (&["vectorize %r.1 by 8", "vectorize %r.1 by 8"], 2, "no loop `%r.1`"),
        (&["vectorize_reduce %i.2 by 8"], 1, "the element stored to depends on the loop"),
        (&["split %i.2 by 0"], 1, "`0` is no number of 1 to 1048576"),
        (&["split %i.2 by 99999999999999999999"], 1, "is no number of 1 to"),
        (&["unroll %t.0"], 1, "it is not serial"),
        (&["parallel %t.0 assuming disjoint iterations"], 1, "nothing vouches for that in a file"),
        (&["registers %acc"], 1, "it is too large, or not every access is a vector"),
        (&["registers %x"], 1, "`x` is not local"),
        (&["registers %ac"], 1, "no buffer `ac`; did you mean `acc`?"),
        (&["reorder %t.0 and %r.1"], 1, "%r.1 is not all there is in it"),
        (&[""], 1, "an empty step"),
    ] {
        let mut k = kernel(ROWS);
        let lines: Vec<String> = lines.iter().map(|l| l.to_string()).collect();
        let e = replay(&mut k, &lines).expect_err(&lines.join("; "));
        assert!(e.line == number && e.why.contains(why), "{e}");
        assert!(e.to_string().starts_with(&format!("line {number}: `{}`: ", lines[number - 1])), "{e}");
    }
}

/// Steps that add a copy of much, over and over, and arbitrary text.
#[test]
fn hostile_traces_end() {
    let stores: String = (0..500).map(|i| format!("    store %y[i.0, {i}] = 1.0\n")).collect();
    let mut k =
        kernel(&format!("kernel @k(%y: f32[1048575, 500] out) {{\n  for i.0 in 0..1048575 {{\n{stores}  }}\n}}"));
    let mut outer = "%i.0".to_string();
    let refused = (0..30).find_map(|_| {
        let failed = replay(&mut k, &[format!("split {outer} by 2")]).err();
        outer = k.trace.last().and_then(|t| t.split([' ', ',']).nth(5)).unwrap_or_default().to_string();
        failed
    });
    let refused = refused.expect("there is a limit").to_string();
    assert!(refused.contains("the kernel has more than 8192 statements then"), "{refused}");
    let words =
        ["split", "%r.1", "by", "4", "into", "tail", ",", "in", "chains", "registers", "%", "kernel", "\u{1f600}"];
    for seed in 0..4000usize {
        let pick = |i: usize| words[(seed * 31 + i * i * 7 + seed / (i + 1)) % words.len()];
        let line: Vec<&str> = (0..seed % 7).map(pick).collect();
        let _ = replay(&mut kernel(ROWS), &[line.join(" ")]);
    }
}

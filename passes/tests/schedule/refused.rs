//! Schedules that would change what a kernel computes are refused.

use marquetry_ir::loops::{Kernel, Var};
use marquetry_passes::schedule::{ScheduleError, parallel, reorder, split, unroll, vectorize, vectorize_reduce};

use crate::kernel;

fn refuse<T: std::fmt::Debug>(body: &str, why: &str, f: impl FnOnce(&mut Kernel) -> Result<T, ScheduleError>) {
    let before = kernel(&format!(
        "kernel @k(%a: f32[64] in, %m: f32[8, 64] in, %at: i64[64] in, %y: f32[64] inout, %z: f32[8, 64] inout) {{
          local %row: f32[8]
          reg %acc: f32[2, 12]
          {body}
        }}"
    ));
    let mut k = before.clone();
    let e = f(&mut k).expect_err("refused");
    assert!(e.why.contains(why), "{e}");
    assert_eq!(k, before);
}

#[test]
fn split_refuses() {
    let l = "for i.0 in 0..10 { store %y[i.0] = 0.0 }";
    refuse(l, "not a multiple of 4", |k| split(k, Var(0), 4, false));
    refuse(l, "factor 0", |k| split(k, Var(0), 0, true));
    refuse(l, "factor 11", |k| split(k, Var(0), 11, true));
    refuse("parallel i.0 in 0..10 { store %y[i.0] = 0.0 }", "no tail", |k| split(k, Var(0), 4, true));
    refuse("for i.0 in 0..n - 4 { store %y[i.0] = 0.0 }", "negative", |k| split(k, Var(0), 4, true));
    refuse("for i.0 in 0..%at[0] { store %y[i.0] = 0.0 }", "change", |k| split(k, Var(0), 4, true));
}

#[test]
fn unroll_refuses() {
    refuse("for i.0 in 0..n { store %y[i.0] = 0.0 }", "not constant", |k| unroll(k, Var(0)));
    refuse("for i.0 in 0..65 { store %y[0] = 0.0 }", "65 iterations", |k| unroll(k, Var(0)));
    refuse("parallel i.0 in 0..4 { store %y[i.0] = 0.0 }", "not serial", |k| unroll(k, Var(0)));
}

#[test]
fn reorder_refuses() {
    let nest = |s: &str| format!("for i.0 in 0..8 {{ for j.1 in 0..8 {{ {s} }} }}");
    let both = |k: &mut Kernel| reorder(k, Var(0), Var(1));
    // A sum over both loops would be added in another order.
    refuse(&nest("store %y[0] = %y[0] + %m[i.0, j.1]"), "may meet in `y`", both);
    // The last write to each element would be another one.
    refuse(&nest("store %y[i.0 + j.1] = %m[i.0, j.1]"), "may meet in `y`", both);
    // Reads what an earlier row wrote further right.
    refuse(&nest("store %z[i.0, j.1] = %z[i.0 - 1, j.1 + 1]"), "may meet in `z`", both);
    refuse(&nest("store %z[%at[i.0], %at[j.1]] = 1.0"), "may meet in `z`", both);
    refuse("for i.0 in 0..8 { for j.1 in 0..i.0 { store %z[i.0, j.1] = 0.0 } }", "depends on it", both);
    refuse("for i.0 in 0..8 { store %y[0] = 0.0\n for j.1 in 0..8 { store %z[i.0, j.1] = 0.0 } }", "not all", both);
    refuse("parallel i.0 in 0..8 { for j.1 in 0..8 { store %z[i.0, j.1] = 0.0 } }", "parallel", both);
}

#[test]
fn parallel_refuses() {
    let rows = |s: &str| format!("for i.0 in 0..8 {{ {s} }}");
    let run = |k: &mut Kernel| parallel(k, Var(0), false);
    refuse(&rows("store %y[0] = %a[i.0]"), "may meet in `y`", run);
    refuse(&rows("store %y[i.0] = %y[i.0 + 1]"), "may meet in `y`", run);
    refuse(&rows("store %y[i.0 / 2] = %a[i.0]"), "may meet in `y`", run);
    refuse(&rows("store %y[%at[i.0]] = %a[i.0]"), "may meet in `y`", run);
    // Blocks of 8 with a stride of 4 overlap.
    refuse(&rows("for j.1 in 0..8 { store %y[i.0 * 4 + j.1] = %a[j.1] }"), "may meet in `y`", run);
    // A running sum.
    let sum = "store %acc[0, 0] = %acc[0, 0] + %a[i.0]\n store %y[i.0] = %acc[0, 0]";
    refuse(&rows(sum), "`acc` may carry", run);
    // Only half of the row is written in each iteration.
    let half = "for j.1 in 0..4 { store %row[j.1] = %m[i.0, j.1] }
      for j.2 in 0..8 { store %z[i.0, j.2] = %row[j.2] }";
    refuse(&rows(half), "`row` may carry", run);
    // Written in some iterations only.
    let some = "if i.0 < 4 { store %row[0] = %a[i.0] }\n store %y[i.0] = %row[0]";
    refuse(&rows(some), "`row` may carry", run);
    // Even places only.
    let even = "for j.1 in 0..4 { store %row[j.1 * 2] = 0.0 }\n for j.2 in 0..7 { store %z[i.0, j.2] = %row[j.2] }";
    refuse(&rows(even), "`row` may carry", run);
    // The diagonal only.
    let diagonal = "for j.1 in 0..2 { store %acc[j.1, j.1] = 0.0 }\n store %y[i.0] = %acc[0, 1]";
    refuse("store %y[0] = 1.0\n for i.0 in 0..8 { store %y[i.0] = 0.0 }", "not all there is", run);
    refuse(&rows(&diagonal.replace("for j.1", "unroll j.1")), "`acc` may carry", run);
}

#[test]
fn vectorize_refuses() {
    let each = |s: &str| format!("for i.0 in 0..16 {{ {s} }}");
    let run = |k: &mut Kernel| vectorize(k, Var(0), 8);
    // Each iteration reads what the one before wrote.
    refuse(&each("store %y[i.0 + 1] = %y[i.0]"), "may meet in `y`", run);
    refuse(&each("store %y[i.0] = %y[i.0 + 7]"), "may meet in `y`", run);
    refuse(&each("store %y[i.0] = %y[0]"), "may meet in `y`", run);
    // The second store would overwrite what the first one of the next iteration wrote.
    refuse(&each("store %y[i.0] = 1.0\n store %y[i.0 + 1] = 2.0"), "may meet in `y`", run);
    // One element takes all values.
    refuse(&each("store %y[0] = %a[i.0]"), "may meet in `y`", run);
    refuse(&each("store %row[0] = %a[i.0]\n store %y[i.0] = %row[0]"), "may meet in `row`", run);
    refuse(&each("store %y[i.0 * 2] = %a[i.0]"), "one by one", run);
    refuse(&each("store %y[i.0] = %a[i.0 * 2]"), "one by one", run);
    refuse(&each("store %y[15 - i.0] = %a[i.0]"), "one by one", run);
    refuse(&each("store %y[i.0] = %a[%at[i.0]]"), "one by one", run);
    refuse(&each("store %y[i.0] = %a[i.0 / 4]"), "one by one", run);
    let four = "for i.0 in 0..4 { store %y[i.0] = %a[i.0 / 3] }";
    refuse(four, "one by one", |k| vectorize(k, Var(0), 4));
    refuse(&each("store %y[i.0] = %a[(i.0 + 4) % 16]"), "one by one", run);
    refuse(&each("store %y[i.0] = %m[i.0 / 4, 0]"), "outer axis of `m`", run);
    refuse("for i.0 in 0..8 { store %z[i.0, i.0] = 0.0 }", "outer axis of `z`", run);
    refuse(&each("if i.0 < 5 { store %y[i.0] = 0.0 }"), "condition", run);
    refuse(&each("for j.1 in 0..i.0 { store %y[i.0] = %a[i.0] }"), "extent of %j.1", run);
    refuse(&each("store %y[i.0] = reduce.add(%a[i.0; 4])"), "vectors already", run);
    refuse("for i.0 in 0..7 { store %y[i.0] = 0.0 }", "fewer than 8", run);
    refuse("parallel i.0 in 0..8 { store %y[i.0] = 0.0 }", "it is parallel", run);
    refuse(&each("store %y[i.0] = 0.0"), "6 lanes", |k| vectorize(k, Var(0), 6));
    // Rows of 12 registers: the second one is not aligned.
    refuse("unroll i.0 in 0..8 { store %acc[1, i.0] = 0.0 }", "not aligned", run);
    refuse("unroll i.0 in 0..8 { store %acc[0, i.0 + 4] = 0.0 }", "not aligned", run);
}

#[test]
fn vectorize_reduce_refuses() {
    let each = |s: &str| format!("for i.0 in 0..16 {{ {s} }}");
    let run = |k: &mut Kernel| vectorize_reduce(k, Var(0), 8, 1);
    let old = "%acc[0, 0]";
    let sum = |e: &str| each(&format!("store %acc[0, 0] = {e}"));
    refuse(&sum(&format!("{old} * %a[i.0]")), "no reduction", run);
    refuse(&sum(&format!("%a[i.0] - {old}")), "no reduction", run);
    refuse(&sum(&format!("max({old} + %a[i.0], 0.0)")), "no reduction", run);
    refuse(&sum(&format!("fma({old}, %a[i.0], 1.0)")), "no reduction", run);
    refuse(&sum("%a[i.0]"), "no reduction", run);
    refuse(&sum("%acc[1, 0] + %a[i.0]"), "another element of `acc`", run);
    refuse(&sum(&format!("{old} + {old} * %a[i.0]")), "its terms load from `acc`", run);
    refuse(&sum(&format!("{old} + %a[i.0 * 2]")), "one by one", run);
    refuse(&each("store %y[i.0] = %y[i.0] + %a[i.0]"), "depends on the loop", run);
    refuse(&each("store %row[0] = 0.0\n store %y[0] = %y[0] + %a[i.0]"), "more than bindings", run);
    refuse(&each("let j.1 = %at[i.0]\n store %y[j.1:i64] = %y[j.1:i64] + %a[i.0]"), "depends on the loop", run);
    refuse(&sum(&format!("{old} + %a[i.0]")), "fewer than 32", |k| vectorize_reduce(k, Var(0), 8, 4));
    refuse(&sum(&format!("{old} + %a[i.0]")), "9 chains", |k| vectorize_reduce(k, Var(0), 8, 9));
}

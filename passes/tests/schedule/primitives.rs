//! Each primitive: the text it makes of a kernel, and that the numbers stay.

use marquetry_ir::loops::{Kernel, Var};
use marquetry_passes::schedule::{ScheduleError, parallel, reorder, split, unroll, vectorize, vectorize_reduce};

use crate::{kernel, same, text};

/// Applies a primitive and compares the result; gives the lines of its body and the trace.
fn check(before: &str, f: impl FnOnce(&mut Kernel) -> Result<(), ScheduleError>) -> String {
    let before = kernel(before);
    let mut after = before.clone();
    f(&mut after).unwrap_or_else(|e| panic!("{e}"));
    for (n, seed) in [(0, 1), (1, 2), (7, 3), (24, 4), (37, 5)] {
        same(&before, &after, n, seed);
    }
    let all = text(&after);
    all.lines().skip(1).filter(|l| !l.trim_start().starts_with("var ")).collect::<Vec<_>>().join("\n")
}

/// Compares line by line, without indentation and closing braces.
fn assert_text(got: &str, want: &str) {
    let plain = |s: &str| {
        let lines = s.lines().map(str::trim).filter(|l| !l.is_empty() && *l != "}");
        lines.map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(plain(got), plain(want), "\n{got}");
}

const SCALE: &str = "kernel @k(%a: f32[24] in, %y: f32[24] out) {
  for i.0 in 0..24 {
    store %y[i.0] = %a[i.0] * 2.0
  }
}";

#[test]
fn split_exact() {
    let got = check(SCALE, |k| {
        let (o, i) = split(k, Var(0), 6, false)?;
        assert_eq!((o, i), (Var(1), Var(2)));
        Ok(())
    });
    assert_text(
        &got,
        r#"trace "split %i.0 by 6 into %io.1, %ii.2"
        for io.1 in 0..4 {
          for ii.2 in 0..6 {
            store %y[io.1 * 6 + ii.2] = %a[io.1 * 6 + ii.2] * 2.0"#,
    );
}

#[test]
fn split_with_tail() {
    let got = check(SCALE, |k| split(k, Var(0), 7, true).map(|_| ()));
    assert_text(
        &got,
        r#"trace "split %i.0 by 7 into %io.1, %ii.2, tail %it.3"
        for io.1 in 0..3 {
          for ii.2 in 0..7 {
            store %y[io.1 * 7 + ii.2] = %a[io.1 * 7 + ii.2] * 2.0
        for it.3 in 0..3 {
          store %y[21 + it.3] = %a[21 + it.3] * 2.0"#,
    );
}

#[test]
fn split_of_a_runtime_extent() {
    let got = check(
        "kernel @k(%a: i32[n] in, %y: i32[n] out) {
          for i.0 in 0..n {
            let x.1 = %a[i.0]
            store %y[i.0] = x.1:i32 + x.1:i32
          }
        }",
        |k| split(k, Var(0), 4, true).map(|_| ()),
    );
    assert_text(
        &got,
        r#"trace "split %i.0 by 4 into %io.2, %ii.3, tail %it.4"
        for io.2 in 0..n / 4 {
          for ii.3 in 0..4 {
            let x.1 = %a[io.2 * 4 + ii.3]
            store %y[io.2 * 4 + ii.3] = x.1 + x.1
        for it.4 in 0..n % 4 {
          let x.5 = %a[n / 4 * 4 + it.4]
          store %y[n / 4 * 4 + it.4] = x.5 + x.5"#,
    );
}

#[test]
fn split_of_a_multiple() {
    let got = check(
        "kernel @k(%a: i32[8*n] in, %y: i32[8*n] out) {
          parallel i.0 in 0..n * 8 {
            store %y[i.0] = %a[i.0]
          }
        }",
        |k| split(k, Var(0), 4, false).map(|_| ()),
    );
    assert_text(
        &got,
        r#"trace "split %i.0 by 4 into %io.1, %ii.2"
        parallel io.1 in 0..n * 2 {
          for ii.2 in 0..4 {
            store %y[io.1 * 4 + ii.2] = %a[io.1 * 4 + ii.2]"#,
    );
}

#[test]
fn unroll_expands() {
    let got = check(SCALE, |k| unroll(k, Var(0)));
    assert_text(&got, "trace \"unroll %i.0\"\nunroll i.0 in 0..24 {\nstore %y[i.0] = %a[i.0] * 2.0");
}

#[test]
fn reorder_keeps_sums() {
    let got = check(
        "kernel @k(%a: f32[6, 8] in, %y: f32[8] inout) {
          for i.0 in 0..6 {
            for j.1 in 0..8 {
              store %y[j.1] = %y[j.1] * 0.5 + %a[i.0, j.1]
            }
          }
        }",
        |k| reorder(k, Var(0), Var(1)),
    );
    assert_text(
        &got,
        r#"trace "reorder %i.0 and %j.1"
        for j.1 in 0..8 {
          for i.0 in 0..6 {
            store %y[j.1] = %y[j.1] * 0.5 + %a[i.0, j.1]"#,
    );
}

#[test]
fn reorder_of_a_split_loop() {
    check(SCALE, |k| {
        let (o, i) = split(k, Var(0), 8, false)?;
        reorder(k, o, i)?;
        parallel(k, i, false)
    });
}

#[test]
fn parallel_rows() {
    let got = check(
        "kernel @k(%a: f32[6, 8] in, %y: f32[48] out) {
          local %row: f32[8]
          for i.0 in 0..6 {
            for j.1 in 0..8 {
              store %row[j.1] = %a[i.0, j.1]
            }
            for j.2 in 0..8 {
              store %y[i.0 * 8 + j.2] = %row[7 - j.2]
            }
          }
        }",
        |k| parallel(k, Var(0), false),
    );
    assert!(got.contains("trace \"parallel %i.0\"") && got.contains("parallel i.0 in 0..6"), "{got}");
}

#[test]
fn parallel_by_assumption() {
    let got = check(
        "kernel @k(%a: f32[6] in, %at: i64[6] in, %y: f32[8] inout) {
          for i.0 in 0..6 {
            store %y[i.0 + (%at[i.0] & 0)] = 1.0
          }
        }",
        |k| parallel(k, Var(0), true),
    );
    assert!(got.contains("trace \"parallel %i.0 assuming disjoint iterations\""), "{got}");
}

#[test]
fn vectorize_exact() {
    let got = check(SCALE, |k| vectorize(k, Var(0), 8));
    assert_text(
        &got,
        r#"trace "vectorize %i.0 by 8"
        for i.0 in 0..3 {
          store %y[i.0 * 8] = %a[i.0 * 8; 8] * splat.8(2.0)"#,
    );
}

#[test]
fn vectorize_with_tail_bindings_and_casts() {
    let got = check(
        "kernel @k(%a: f16[2, 21] in, %b: u8[21] in, %s: f32[2] in, %y: f32[2, 21] out, %z: bool[21] out) {
          for r.0 in 0..2 {
            for i.1 in 0..21 {
              let x.2 = cast.f32(%a[r.0, i.1])
              let c.3 = %s[r.0] * 0.5
              let j.4 = i.1 * 2 + 1
              store %y[r.0, i.1] = fma(x.2:f32, c.3:f32, cast.f32(%b[i.1])) + cast.f32(j.4)
              store %z[i.1] = 0.0 < x.2:f32
            }
          }
        }",
        |k| vectorize(k, Var(1), 16),
    );
    assert_text(
        &got,
        r#"trace "vectorize %i.1 by 16, tail %it.5"
        for r.0 in 0..2 {
          let x.2 = cast.f32(%a[r.0, 0; 16])
          let c.3 = %s[r.0] * 0.5
          store %y[r.0, 0] = fma(x.2, splat.16(c.3), cast.f32(%b[0; 16])) + cast.f32(ramp.16(0) * splat.16(2) + splat.16(1))
          store %z[0] = splat.16(0.0) < x.2
          for it.5 in 0..5 {
            let x.6 = cast.f32(%a[r.0, 16 + it.5])
            let c.7 = %s[r.0] * 0.5
            let j.8 = (16 + it.5) * 2 + 1
            store %y[r.0, 16 + it.5] = fma(x.6, c.7, cast.f32(%b[16 + it.5])) + cast.f32(j.8)
            store %z[16 + it.5] = 0.0 < x.6"#,
    );
}

#[test]
fn vectorize_of_a_runtime_extent() {
    let got = check(
        "kernel @k(%a: f32[n + 1] in, %y: f32[n + 1] out) {
          for i.0 in 0..n + 1 {
            store %y[i.0] = abs(%a[i.0])
          }
        }",
        |k| vectorize(k, Var(0), 4),
    );
    assert_text(
        &got,
        r#"trace "vectorize %i.0 by 4, tail %it.1"
        for i.0 in 0..(n + 1) / 4 {
          store %y[i.0 * 4] = abs(%a[i.0 * 4; 4])
        for it.1 in 0..(n + 1) % 4 {
          store %y[(n + 1) / 4 * 4 + it.1] = abs(%a[(n + 1) / 4 * 4 + it.1])"#,
    );
}

/// Halves of a head in place, as in rotary embeddings; and rows found by division.
#[test]
fn vectorize_through_divisions() {
    let got = check(
        "kernel @k(%a: f32[4, 16] in, %s: f32[2] in, %y: f32[4, 16] inout) {
          for b.0 in 0..8 {
            for r.1 in 0..8 {
              let d.2 = b.0 * 8 + r.1
              let other.3 = %a[d.2 / 16, (d.2 + 8) % 16]
              let turned.4 = select(d.2 % 16 < 8, neg(other.3:f32), other.3:f32)
              store %y[d.2 / 16, d.2 % 16] = %y[d.2 / 16, d.2 % 16] * %s[d.2 / 32] + turned.4:f32
            }
          }
        }",
        |k| vectorize(k, Var(1), 8),
    );
    assert_text(
        &got,
        r#"trace "vectorize %r.1 by 8"
        for b.0 in 0..8 {
          let other.3 = %a[b.0 * 8 / 16, (b.0 * 8 + 8) % 16; 8]
          let turned.4 = select(splat.8(b.0 * 8 % 16 < 8), neg(other.3), other.3)
          store %y[b.0 * 8 / 16, b.0 * 8 % 16] = %y[b.0 * 8 / 16, b.0 * 8 % 16; 8] * splat.8(%s[b.0 * 8 / 32]) + turned.4"#,
    );
}

#[test]
fn vectorize_in_place_halves() {
    check(
        "kernel @k(%c: f32[32] in, %y: f32[3, 32] inout) {
          for r.0 in 0..3 {
            for i.1 in 0..16 {
              let a.2 = %y[r.0, i.1]
              let b.3 = %y[r.0, i.1 + 16]
              store %y[r.0, i.1] = a.2:f32 * %c[i.1] - b.3:f32
              store %y[r.0, i.1 + 16] = b.3:f32 * %c[i.1 + 16] + a.2:f32
            }
          }
        }",
        |k| vectorize(k, Var(1), 8),
    );
}

#[test]
fn vectorize_around_other_loops() {
    let got = check(
        "kernel @k(%w: f32[2, 8] in, %x: f32[3, 2] in, %y: f32[3, 8] out) {
          reg %acc: f32[3, 8]
          unroll r.0 in 0..8 {
            unroll t.1 in 0..3 {
              store %acc[t.1, r.0] = 0.0
              unroll k.2 in 0..2 {
                store %acc[t.1, r.0] = fma(%x[t.1, k.2], %w[k.2, r.0], %acc[t.1, r.0])
              }
              store %y[t.1, r.0] = %acc[t.1, r.0]
            }
          }
        }",
        |k| vectorize(k, Var(0), 8),
    );
    assert_text(
        &got,
        r#"reg %acc: f32[3, 8]
        trace "vectorize %r.0 by 8"
        unroll t.1 in 0..3 {
          store %acc[t.1, 0] = splat.8(0.0)
          unroll k.2 in 0..2 {
            store %acc[t.1, 0] = fma(splat.8(%x[t.1, k.2]), %w[k.2, 0; 8], %acc[t.1, 0; 8])
          store %y[t.1, 0] = %acc[t.1, 0; 8]"#,
    );
}

const SUM: &str = "kernel @k(%a: f32[2, 40] in, %b: f16[40] in, %y: f32[2] out) {
  reg %acc: f32[1]
  for r.0 in 0..2 {
    store %acc[0] = 1.0
    for i.1 in 0..40 {
      let b.2 = cast.f32(%b[i.1])
      store %acc[0] = fma(%a[r.0, i.1], b.2:f32, %acc[0])
    }
    store %y[r.0] = %acc[0]
  }
}";

#[test]
fn vectorize_reduce_with_tail() {
    let got = check(SUM, |k| vectorize_reduce(k, Var(1), 16, 1));
    assert_text(
        &got,
        r#"reg %acc: f32[1]
        reg %vec: f32[1, 16]
        trace "vectorize_reduce %i.1 by 16, tail %it.3"
        for r.0 in 0..2 {
          store %acc[0] = 1.0
          store %vec[0, 0] = splat.16(0.0)
          for i.1 in 0..2 {
            let b.2 = cast.f32(%b[i.1 * 16; 16])
            store %vec[0, 0] = fma(%a[r.0, i.1 * 16; 16], b.2, %vec[0, 0; 16])
          store %acc[0] = %acc[0] + reduce.add(%vec[0, 0; 16])
          for it.3 in 0..8 {
            let b.4 = cast.f32(%b[32 + it.3])
            store %acc[0] = fma(%a[r.0, 32 + it.3], b.4, %acc[0])
          store %y[r.0] = %acc[0]"#,
    );
}

#[test]
fn vectorize_reduce_in_chains() {
    let got = check(SUM, |k| vectorize_reduce(k, Var(1), 4, 3));
    assert!(got.contains("by 4 in 3 chains, tail %it.5"), "{got}");
    assert!(got.contains("let b.4 = cast.f32(%b[i.1 * 12 + 8; 4])"), "{got}");
    let sum = "reduce.add(%vec[0, 0; 4] + %vec[1, 0; 4] + %vec[2, 0; 4])";
    assert!(got.contains(sum), "{got}");
}

#[test]
fn vectorize_reduce_of_one_vector() {
    let got = check(
        "kernel @k(%a: i32[3, 16] in, %y: i32[3] inout) {
          for r.0 in 0..3 {
            for i.1 in 0..16 {
              store %y[r.0] = max(%y[r.0], %a[r.0, i.1])
            }
          }
        }",
        |k| vectorize_reduce(k, Var(1), 16, 1),
    );
    assert_text(
        &got,
        r#"trace "vectorize_reduce %i.1 by 16"
        for r.0 in 0..3 {
          store %y[r.0] = max(%y[r.0], reduce.max(%a[r.0, 0; 16]))"#,
    );
}

#[test]
fn vectorize_reduce_of_every_kind() {
    for (dt, term) in [
        ("i32", "dot4.255(%acc[0], %u[i.0], %v[i.0])"),
        ("i32", "dot4.16(dot4.15(%acc[0], %u[i.0] & 252645135:u32, %v[i.0]), %v[i.0] & 16:u32, %u[i.0])"),
        ("i32", "%acc[0] - bitcast.i32(%u[i.0])"),
        ("u32", "min(%u[i.0], %acc[0])"),
        ("u32", "max(%acc[0], %v[i.0])"),
        ("u32", "%u[3] + %acc[0]"),
        ("f32", "%f[i.0] + (%acc[0] - %f[i.0 + 1] * 0.5)"),
        ("f32", "min(%acc[0], %f[i.0 + 1])"),
        ("f32", "max(%f[i.0], %acc[0])"),
        ("f32", "fma(%f[i.0], cast.f32(i.0), %acc[0])"),
        ("i64", "%acc[0] + (i.0 * i.0 + n)"),
    ] {
        let first = if dt == "f32" { "3.0".to_string() } else { format!("3:{dt}") };
        let kernel = format!(
            "kernel @k(%u: u32[31] in, %v: u32[31] in, %f: f32[31] in, %y: {dt}[1] out) {{
              reg %acc: {dt}[1]
              store %acc[0] = {first}
              for i.0 in 0..30 {{
                store %acc[0] = {term}
              }}
              store %y[0] = %acc[0]
            }}"
        );
        check(&kernel, |k| vectorize_reduce(k, Var(0), 8, 1));
        check(&kernel, |k| vectorize_reduce(k, Var(0), 4, 2));
        check(&kernel, |k| vectorize_reduce(k, Var(0), 16, 1));
    }
}

#[test]
fn failures_leave_the_kernel_alone() {
    let before = kernel(SUM);
    let mut k = before.clone();
    let e = vectorize_reduce(&mut k, Var(0), 4, 1).unwrap_err();
    assert_eq!(e.to_string(), "vectorize_reduce %r.0: fewer than 4 iterations");
    assert_eq!(k, before);
    assert_eq!(split(&mut k, Var(9), 2, false).unwrap_err().to_string(), "split %?.9: no such loop");
}

//! The default schedule on kernels as the lowering makes them.

use marquetry_passes::schedule::rules::default_schedule;

use crate::{kernel, same, text};

fn check(source: &str) -> Vec<String> {
    let before = kernel(source);
    let mut after = before.clone();
    default_schedule(&mut after);
    same(&before, &after, 3, 7);
    same(&before, &after, 37, 8);
    assert_eq!(after, kernel(&text(&after)));
    after.trace
}

/// Tiles of 8 rows and 2 tokens over words of 4-bit weights.
#[test]
fn packed_product() {
    let trace = check(
        "kernel @k(%w: u32[3, 4, 4, 8] in, %s: f16[3, 4, 8] in, %x: u32[2, 32] in, %xs: f32[2, 4] in, %y: f32[2, 24] out) {
          reg %acc: f32[2, 8]
          reg %dot: i32[2, 8]
          parallel b.0 in 0..3 {
            unroll t.1 in 0..2 {
              for r.2 in 0..8 {
                store %acc[t.1, r.2] = 0.0
              }
            }
            for g.3 in 0..4 {
              unroll t.4 in 0..2 {
                for r.5 in 0..8 {
                  store %dot[t.4, r.5] = 0:i32
                }
              }
              unroll p.6 in 0..4 {
                unroll t.7 in 0..2 {
                  for r.8 in 0..8 {
                    let low.9 = %w[b.0, g.3, p.6, r.8] & 252645135:u32
                    let high.10 = (%w[b.0, g.3, p.6, r.8] >> 4:u32) & 252645135:u32
                    store %dot[t.7, r.8] = dot4.15(%dot[t.7, r.8], low.9:u32, %x[t.7, g.3 * 8 + p.6])
                    store %dot[t.7, r.8] = dot4.15(%dot[t.7, r.8], high.10:u32, %x[t.7, g.3 * 8 + 4 + p.6])
                  }
                }
              }
              for r.11 in 0..8 {
                let s.12 = cast.f32(%s[b.0, g.3, r.11])
                unroll t.13 in 0..2 {
                  store %acc[t.13, r.11] = fma(cast.f32(%dot[t.13, r.11]) * %xs[t.13, g.3], s.12:f32, %acc[t.13, r.11])
                }
              }
            }
            unroll t.14 in 0..2 {
              for r.15 in 0..8 {
                store %y[t.14, b.0 * 8 + r.15] = %acc[t.14, r.15]
              }
            }
          }
        }",
    );
    let want = [
        "vectorize %r.15 by 8",
        "vectorize %r.11 by 8",
        "vectorize %r.8 by 8",
        "vectorize %r.5 by 8",
        "vectorize %r.2 by 8",
    ];
    assert_eq!(trace, want);
}

#[test]
fn row_norm() {
    let trace = check(
        "kernel @k(%x: f32[n, 40] in, %w: bf16[40] in, %y: f32[n, 40] out) {
          reg %acc: f32[1]
          parallel t.0 in 0..n {
            store %acc[0] = 0.0
            for i.1 in 0..40 {
              let x.2 = %x[t.0, i.1]
              store %acc[0] = fma(x.2:f32, x.2:f32, %acc[0])
            }
            let r.3 = 1.0 / sqrt(%acc[0] + 1.0)
            for i.4 in 0..40 {
              store %y[t.0, i.4] = %x[t.0, i.4] * r.3:f32 * cast.f32(%w[i.4])
            }
          }
        }",
    );
    assert_eq!(trace, ["vectorize %i.4 by 8", "vectorize_reduce %i.1 by 8"]);
}

#[test]
fn widths_follow_extents() {
    for (n, reduce, each) in [
        (3, "unroll %i.1", "unroll %i.2"),
        (4, "vectorize_reduce %i.1 by 4", "vectorize %i.2 by 4"),
        (6, "vectorize_reduce %i.1 by 4, tail %it.3", ""),
        (8, "vectorize_reduce %i.1 by 8", "vectorize %i.2 by 8"),
        (12, "vectorize_reduce %i.1 by 4", "vectorize %i.2 by 4"),
        (13, "vectorize_reduce %i.1 by 8, tail %it.4", "vectorize %i.2 by 8, tail %it.3"),
        (16, "vectorize_reduce %i.1 by 16", "vectorize %i.2 by 8"),
        (24, "vectorize_reduce %i.1 by 8", "vectorize %i.2 by 8"),
        (50, "vectorize_reduce %i.1 by 16, tail %it.4", "vectorize %i.2 by 8, tail %it.3"),
    ] {
        let trace = check(&format!(
            "kernel @k(%x: f32[n, 64] in, %y: f32[n, 64] out) {{
              reg %acc: f32[1]
              parallel t.0 in 0..n {{
                store %acc[0] = 0.0
                for i.1 in 0..{n} {{
                  store %acc[0] = %acc[0] + %x[t.0, i.1]
                }}
                for i.2 in 0..{n} {{
                  store %y[t.0, i.2] = %x[t.0, i.2] + %acc[0]
                }}
              }}
            }}"
        ));
        let want: Vec<&str> = [each, reduce].into_iter().filter(|s| !s.is_empty()).collect();
        assert_eq!(trace, want, "{n}");
    }
}

/// Bytes of one word lie next to each other.
#[test]
fn packed_bytes_go_four_at_a_time() {
    let trace = check(
        "kernel @k(%w: u8[3, 2, 4, 8, 4] in, %s: f32[3, 2, 8] in, %at: i64[n] in, %y: f32[n, 64] out) {
          parallel t.0 in 0..n {
            let row.1 = %at[t.0]
            for d.2 in 0..64 {
              let q.3 = %w[row.1:i64 / 8, d.2 / 32, d.2 % 16 / 4, row.1:i64 % 8, d.2 % 4]
              store %y[t.0, d.2] = cast.f32(q.3:u8) * %s[row.1:i64 / 8, d.2 / 32, row.1:i64 % 8]
            }
          }
        }",
    );
    assert_eq!(trace, ["vectorize %d.2 by 4"]);
}

/// Columns are not next to each other.
#[test]
fn strides_stay() {
    let trace = check(
        "kernel @k(%x: f32[64, 8] in, %y: f32[n, 64] out) {
          parallel t.0 in 0..n {
            for d.1 in 0..64 {
              store %y[t.0, d.1] = %x[d.1, t.0 % 8]
            }
          }
        }",
    );
    assert_eq!(trace, Vec::<String>::new());
}

/// Rows of 8: sixteen do not lie in one of them.
#[test]
fn narrower_where_rows_are_short() {
    let trace = check(
        "kernel @k(%x: f32[n, 12, 8] in, %y: f32[n, 6] out) {
          reg %acc: f32[1]
          parallel t.0 in 0..n {
            for g.1 in 0..6 {
              store %acc[0] = 0.0
              for i.2 in 0..16 {
                store %acc[0] = max(%acc[0], %x[t.0, (g.1 * 16 + i.2) / 8, (g.1 * 16 + i.2) % 8])
              }
              store %y[t.0, g.1] = %acc[0]
            }
          }
        }",
    );
    assert_eq!(trace, ["vectorize_reduce %i.2 by 8"]);
}

/// A loop that chooses registers and can not be vectorized is expanded.
#[test]
fn registers_are_chosen_at_compile_time() {
    let trace = check(
        "kernel @k(%x: f32[6, 4] in, %y: f32[6] out) {
          reg %acc: f32[6]
          for i.0 in 0..6 {
            store %acc[i.0] = %x[i.0, 0]
          }
          for i.1 in 0..6 {
            store %y[i.1] = %acc[5 - i.1]
          }
        }",
    );
    assert_eq!(trace, ["unroll %i.1", "unroll %i.0"]);
}

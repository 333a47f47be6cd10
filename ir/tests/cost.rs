//! Operations and bytes of kernels, against figures computed by hand.

use marquetry_ir::loops::cost::{Cost, Touched, cost};
use marquetry_ir::text::parse_program;

/// The cost of the only kernel of a program with the symbol `n`.
fn of(kernel: &str, n: i64, contents: &[Option<&[i32]>]) -> Cost {
    let text = format!("program @p arena 0 {{\n  sym n in 1..=4096 multiple 1\n{kernel}\n}}\n");
    let p = parse_program(&text).unwrap_or_else(|e| panic!("{}", e.render("kernel", &text)));
    cost(&p.kernels[0], &[n], contents)
}

fn read(bytes: u64) -> Touched {
    Touched { read: bytes, written: 0 }
}

fn written(bytes: u64) -> Touched {
    Touched { read: 0, written: bytes }
}

#[test]
fn elementwise_with_vectors_and_a_tail() {
    let k = "kernel @k(%x: f32[n, 64] in, %w: f16[64] in, %y: f32[n, 32] out) {
        parallel t.0 in 0..n {
          for i.1 in 0..4 {
            store %y[t.0, i.1 * 8] = fma(%x[t.0, i.1 * 8; 8], cast.f32(%w[i.1 * 8; 8]), %x[t.0, i.1 * 8 + 32; 8]) / splat.8(2.0)
          }
        }
      }";
    // 3 operations for each of 32 outputs a row; the second half of %w is never read.
    let c = of(k, 10, &[]);
    assert_eq!((c.flops, c.int8_ops), (10 * 32 * 3, 0));
    assert_eq!(c.args, [read(10 * 64 * 4), read(32 * 2), written(10 * 32 * 4)]);
}

#[test]
fn rows_taken_by_index_are_what_is_touched() {
    let k = "kernel @k(%x: i32[n] in, %table: u8[1000, 8, 4] in, %y: f32[n, 32] out) {
        parallel t.0 in 0..n {
          for i.1 in 0..8 {
            store %y[t.0, i.1 * 4] = cast.f32(cast.i32(%table[cast.i64(%x[t.0]), i.1, 0; 4]))
          }
        }
      }";
    let known = of(k, 3, &[Some(&[7, 900, 8])]);
    assert_eq!(known.args, [read(3 * 4), read(3 * 32), written(3 * 128)]);
    // Which rows is not needed for how many.
    assert_eq!(of(k, 3, &[]), known);
    // Of 1000 rows no more can be touched.
    assert_eq!(of(k, 4096, &[]).args[1], read(1000 * 32));
}

#[test]
fn products_of_quantized_rows() {
    let k = "kernel @k(%x_q: u32[n, 32] in, %x_scale: f32[n, 4] in, %x_sum: f32[n, 8] in, %w: u32[16, 4, 4, 8] in, %w_scale: f16[16, 4, 8] in, %y: f32[n, 128] out) {
        local %acc: f32[64, 8]
        parallel b.0 in 0..8 {
          for t.1 in 0..(n + 31) / 32 {
            let count.2 = min(n - t.1 * 32, 32)
            micro \"dot pack.b4g32f16z8x15\" (%acc[0, 0], %w[b.0 * 2, 0, 0, 0], %w_scale[b.0 * 2, 0, 0], %x_q[t.1 * 32, 0], %x_scale[t.1 * 32, 0], %x_sum[t.1 * 32, 0]; count.2, 2, 4)
            for i.3 in 0..count.2 {
              store %y[t.1 * 32 + i.3, b.0 * 16] = %acc[i.3 * 2, 0; 8]
            }
          }
        }
      }";
    for n in [1u64, 32, 33, 100] {
        let c = of(k, n as i64, &[]);
        // 128 rows of 128 numbers; a group of 32 ends with a product of scales, the zero point (2 and 1), and a fused step.
        assert_eq!(c.int8_ops, 2 * 128 * 128 * n, "{n}");
        let groups = 128 * 4 * n;
        assert_eq!(c.flops % groups, 0, "{n}");
        assert!((4..=8).contains(&(c.flops / groups)), "{n}: {}", c.flops / groups);
        let y = Touched { read: 0, written: n * 64 * 4 };
        let sides = [read(n * 32 * 4), read(n * 4 * 4), read(n * 8 * 4)];
        assert_eq!(c.args, [sides[0], sides[1], sides[2], read(128 * 64), read(128 * 4 * 2), y], "{n}");
    }
}

#[test]
fn float_products() {
    let k = "kernel @k(%x: f32[n, 48] in, %w: bf16[5, 48, 8] in, %y: f32[n, 40] out) {
        local %acc: f32[1, 8]
        parallel b.0 in 0..5 {
          for t.1 in 0..n {
            micro \"fma bf16\" (%acc[0, 0], %w[b.0, 0, 0], %x[t.1, 0]; 1, 1, 48)
            store %y[t.1, b.0 * 8] = %acc[0, 0; 8]
          }
        }
      }";
    let c = of(k, 7, &[]);
    assert_eq!((c.flops, c.int8_ops), (2 * 7 * 40 * 48, 0));
    assert_eq!(c.args, [read(7 * 48 * 4), read(40 * 48 * 2), written(7 * 40 * 4)]);
}

/// Two heads that share keys, over pages of 16 positions; with a window, the first position depends on the last one.
fn attention(first: &str) -> String {
    format!(
        "kernel @k(%q: f32[n, 2, 64] in, %keys: f32[1024, 1, 64] in, %values: f32[1024, 1, 64] in, %pos: i32[n] in, %pages: i32[1, 64] in, %y: f32[n, 2, 64] out) {{
        local %query: f32[2, 64]
        local %sum: f32[2, 64]
        local %meta: i64[2, 3]
        parallel t.0 in 0..n {{
          let last.1 = cast.i64(%pos[t.0])
          for h.2 in 0..2 {{
            for d.3 in 0..64 {{
              store %query[h.2, d.3] = %q[t.0, h.2, d.3]
            }}
            store %meta[h.2, 0] = {first}
            store %meta[h.2, 1] = last.1
            store %meta[h.2, 2] = 0
          }}
          micro \"attend f32 3e000000 00000000\" (%sum[0, 0], %query[0, 0], %keys[0, 0, 0], %values[0, 0, 0], %pages[0, 0], %meta[0, 0]; 2, 64, 16)
          for h.4 in 0..2 {{
            for d.5 in 0..64 {{
              store %y[t.0, h.4, d.5] = %sum[h.4, d.5]
            }}
          }}
        }}
      }}"
    )
}

#[test]
fn attention_by_the_positions_that_are_seen() {
    let pages: Vec<i32> = (0..64).rev().collect();
    let each = 4 * 64 + 5;
    let check = |k: &str, pos: &[i32], seen: u64, keys: u64| {
        let n = pos.len() as u64;
        let c = of(k, n as i64, &[None, None, None, Some(pos), Some(&pages), None]);
        assert_eq!((c.flops, c.int8_ops), (2 * (seen * each + n * 64), 0), "{pos:?}");
        assert_eq!((c.args[1], c.args[2]), (read(keys * 64 * 4), read(keys * 64 * 4)), "{pos:?}");
        assert_eq!((c.args[0], c.args[5]), (read(n * 512), written(n * 512)), "{pos:?}");
    };
    let full = attention("0");
    check(&full, &[40], 41, 41);
    check(&full, &[0, 1, 2, 3, 4], 1 + 2 + 3 + 4 + 5, 5);
    let window = attention("max(last.1 - 7, 0)");
    check(&window, &[40], 8, 8);
    check(&window, &[5, 6, 7, 8, 9], 6 + 7 + 8 + 8 + 8, 10);
}

#[test]
fn branches_are_taken_as_the_sizes_say() {
    let k = "kernel @k(%x: f32[n] in, %y: f32[n] out) {
        parallel b.0 in 0..(n + 7) / 8 {
          if b.0 * 8 + 8 <= n {
            store %y[b.0 * 8] = %x[b.0 * 8; 8] * splat.8(2.0)
          } else {
            for i.1 in 0..n - b.0 * 8 {
              store %y[b.0 * 8 + i.1] = (%x[b.0 * 8 + i.1] + 1.0) * 2.0
            }
          }
        }
      }";
    let c = of(k, 21, &[]);
    assert_eq!(c.flops, 16 + 2 * 5);
    assert_eq!(c.args, [read(84), written(84)]);
}

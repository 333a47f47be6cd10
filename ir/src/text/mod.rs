//! The text form (`.tir`) of the intermediate representations.
//!
//! Printing and parsing are inverse: what is printed reads back equal, and prints the same again. A kernel:
//!
//! ```text
//! kernel @scale(%x: f32[n, 64] in, %y: f32[n, 64] out) {
//!   reg %acc: f32[8]
//!   trace "vectorize j by 8"
//!   parallel i.0 in 0..n {
//!     for j.1 in 0..8 {
//!       let t.2 = %x[i.0, j.1 * 8; 8]
//!       store %y[i.0, j.1 * 8] = fma(t.2, splat.8(2.0), splat.8(0.5))
//!     }
//!   }
//! }
//! ```
//!
//! * A variable is `name.number`; its number is its [`crate::loops::Var`]. Variables that no statement binds are listed after
//!   `var`. Names that are not identifiers stand in quotes: `%"a b"`, `@"a b"`, `"a b".3`.
//! * `%x[i, j]` is one element, `%x[i, j; 8]` are 8 along the last axis.
//! * Infix operators, loosest first: `< <= ==`, `|`, `^`, `&`, `<< >>`, `+ -`, `* / %`; they associate to the left. The others are
//!   calls: `min(a, b)`, `fma(a, b, c)`, `select(c, a, b)`, `neg(a)`, `cast.f32(a)`, `bitcast.u32(a)`, `splat.8(a)`,
//!   `ramp.8(a)`, `reduce.add(a)`, `dot4.15(acc, w, x)` where 15 is the largest byte of `w`.
//! * Integers are `i64` and floats `f32`; `true` and `false` are `bool`. Any other type follows a colon: `7:u8`, `1.5:f16`,
//!   `(a + b):f32x8`. Other expressions take theirs from their operands, and say so in the same way where it differs.
//!   `nan(0xffc00001)` gives the bits of a NaN.
//!
//! A program lists its sizes, weights, states and buffers, its kernels, and the launches in order:
//!
//! ```text
//! program @decode arena 4096 {
//!   sym n in 1..=2048 multiple 1
//!   weight ["q.weight", "k.weight"]: gguf.q4_k -> pack.b4g32u8z0mx15[768, 576]
//!   state %kv.0.k: f16[4096, 192]
//!   buffer %x: f32[n, 64] input "x"
//!   buffer %t: f32[n, 64] arena 0
//!   buffer %w: u32[96, 18, 4, 8] weight 0 + 0
//!   kernel @scale(...) { ... }
//!   launch @scale(%x, %t)
//!   sync launch @scale(%t, %y)
//! }
//! ```

mod dims;
pub mod lexer;
mod names;
mod nearest;
mod parse;
mod print;

pub use dims::{parse_dim, parse_shape, parse_sym, print_dim, print_shape, print_sym};
pub use lexer::{Lexer, ParseError};
pub use nearest::{nearest, suggest};
pub use parse::{parse_kernel, parse_program, read_kernel};
pub use print::{print_kernel, print_program};

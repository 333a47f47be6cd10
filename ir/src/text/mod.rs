//! The text form (`.tir`) of the intermediate representations.

mod dims;
pub mod lexer;

pub use dims::{parse_dim, parse_shape, parse_sym, print_dim, print_shape, print_sym};
pub use lexer::ParseError;

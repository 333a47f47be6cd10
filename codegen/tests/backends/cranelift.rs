//! What Cranelift makes of kernels.

use marquetry_codegen::cranelift::assembly;
use marquetry_codegen::{Backend, Options, compile};
use marquetry_ir::Syms;

use crate::kernels::gemv_q8;

#[test]
fn dot_products_are_single_instructions() {
    let opts = Options { disassemble: true, finite_f16: true, ..Options::default() };
    let m = compile(Backend::Cranelift, &[gemv_q8(4, 3, 255)], &Syms::default(), &opts).unwrap();
    let asm = m.asm(0).unwrap();
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avxvnni")
        || std::is_x86_feature_detected!("avx512vnni") && std::is_x86_feature_detected!("avx512vl")
    {
        assert_eq!(asm.matches("vpdpbusd").count(), 16, "{asm}");
        for leftover in ["pmaddwd", "pmullw", "punpck", "phaddd"] {
            assert!(!asm.contains(leftover), "{leftover} in {asm}");
        }
    }
    assert!(!asm.is_empty());
}

#[test]
fn dot_products_on_aarch64() {
    let opts = Options::default();
    let asm =
        |w_max, features: &[&str]| assembly(&gemv_q8(4, 3, w_max), "aarch64-unknown-linux", features, &opts).unwrap();
    assert_eq!(asm(127, &["has_dotprod"]).matches("sdot").count(), 16);
    assert_eq!(asm(255, &["has_dotprod", "has_i8mm"]).matches("usdot").count(), 16);
    assert!(!asm(255, &["has_dotprod"]).contains("dot"));
    assert!(asm(15, &[]).contains("smull"));
}

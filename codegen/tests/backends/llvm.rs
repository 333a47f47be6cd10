//! What LLVM makes of kernels, for this and for other machines.

use std::process::Command;

use marquetry_codegen::Options;
use marquetry_codegen::llvm::{Target, assembly, object, symbol, text};
use marquetry_ir::DType;
use marquetry_ir::loops::{Expr, Kernel, LoopKind, Node, Scope, Stmt};

use crate::kernels::gemv_q8;

fn target(triple: &str, cpu: &str, features: &str) -> Target {
    Target { triple: triple.into(), cpu: cpu.into(), features: features.into() }
}

fn asm(k: &Kernel, triple: &str, cpu: &str, features: &str) -> String {
    assembly(std::slice::from_ref(k), &target(triple, cpu, features), &Options::default()).unwrap()
}

/// `c[i] = a[i] * b[i] + 1` on `8 * n` floats in vectors of 8, the parallel loop over vectors; with `fused`, rounded once.
fn multiply_add(n: i64, fused: bool) -> Kernel {
    let mut k = Kernel::new("multiply_add");
    let a = k.buffer("a", DType::F32, vec![(8 * n).into()], Scope::In);
    let b = k.buffer("b", DType::F32, vec![(8 * n).into()], Scope::In);
    let c = k.buffer("c", DType::F32, vec![(8 * n).into()], Scope::Out);
    let i = k.fresh("i");
    let at = vec![Expr::var(i) * 8];
    let load = |buf| Expr::new(Node::Load(buf, at.clone()), DType::F32, 8);
    let one = Expr::float(1.0);
    let value = if fused { load(a).fma(load(b), one) } else { load(a) * load(b) + one };
    let body = vec![Stmt::Store { buf: c, index: at.clone(), value }];
    k.body = vec![Stmt::For { var: i, extent: Expr::idx(n), kind: LoopKind::Parallel, body }];
    k
}

const X86: &str = "x86_64-unknown-linux-gnu";
const ARM: &str = "aarch64-unknown-linux-gnu";

#[test]
fn vectors_have_the_width_of_the_schedule() {
    let k = multiply_add(4, false);
    assert!(asm(&k, X86, "x86-64-v3", "").contains("%ymm"));
    assert!(!asm(&k, X86, "x86-64", "").contains("%ymm"));
}

#[test]
fn products_and_sums_are_fused_only_where_the_loops_say_so() {
    assert!(!asm(&multiply_add(4, false), X86, "x86-64-v3", "").contains("vfm"));
    assert!(asm(&multiply_add(4, true), X86, "x86-64-v3", "").contains("vfm"));
    assert!(!asm(&multiply_add(4, false), ARM, "generic", "").contains("fml"));
    assert!(asm(&multiply_add(4, true), ARM, "generic", "").contains("fml"));
    let all = text(&[multiply_add(4, false), gemv_q8(4, 3, 255)], &target(X86, "x86-64-v4", "")).unwrap();
    for flag in ["fast", "contract", "reassoc", "afn", "nnan"] {
        assert!(!all.contains(flag), "{flag} in {all}");
    }
}

#[test]
fn products_of_bytes_are_the_instructions_of_the_target() {
    let count = |text: &str, name: &str| text.matches(name).count();
    let q8 = |w_max| gemv_q8(4, 3, w_max);
    let vnni = asm(&q8(255), X86, "x86-64-v3", "+avxvnni");
    assert_eq!((count(&vnni, "vpdpbusd"), count(&vnni, "vpmaddubsw")), (8, 0), "{vnni}");
    let pairs = asm(&q8(127), X86, "x86-64-v3", "");
    assert_eq!((count(&pairs, "vpmaddubsw"), count(&pairs, "vpmaddwd")), (8, 8), "{pairs}");
    assert_eq!(count(&asm(&q8(255), X86, "x86-64-v3", ""), "vpmaddubsw"), 16);
    assert_eq!(count(&asm(&q8(127), ARM, "generic", "+dotprod"), "\tsdot"), 16);
    assert_eq!(count(&asm(&q8(255), ARM, "generic", "+dotprod,+i8mm"), "\tusdot"), 16);
    assert_eq!(count(&asm(&q8(255), ARM, "generic", "+dotprod"), "dot\t"), 0);
}

#[test]
fn halves_are_converted_by_instructions() {
    let k = gemv_q8(4, 3, 127);
    assert!(asm(&k, X86, "x86-64-v3", "").contains("vcvtph2ps"));
    assert!(asm(&k, ARM, "generic", "").contains("fcvtl"));
    // Elsewhere by arithmetic: the only library called is that of C, for `fma`.
    let plain = asm(&k, X86, "x86-64", "");
    assert!(plain.lines().filter(|l| l.contains("call")).all(|l| l.contains("fmaf@PLT")), "{plain}");
}

#[test]
fn objects_are_those_of_the_target() {
    let make = |triple, cpu| object(&[multiply_add(4, true)], &target(triple, cpu, ""), &Options::default());
    let machine = |bytes: &[u8]| u16::from_le_bytes([bytes[18], bytes[19]]);
    for (triple, cpu, want) in
        [(X86, "x86-64-v3", 62), (ARM, "generic", 183), ("aarch64-linux-android24", "generic", 183)]
    {
        let bytes = make(triple, cpu).unwrap();
        assert_eq!((&bytes[..4], machine(&bytes)), (&b"\x7fELF"[..], want), "{triple}");
    }
    assert_eq!(make("arm64-apple-ios15", "generic").unwrap()[..4], [0xcf, 0xfa, 0xed, 0xfe]);
    let e = make("sparc-sun-solaris", "generic").unwrap_err().to_string();
    assert!(e.starts_with("no code generator for this machine: sparc-sun-solaris: "), "{e}");
}

/// An object of this machine, called from a program in C.
#[cfg(unix)]
#[test]
fn objects_link_and_run() {
    let k = multiply_add(4, true);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let opts = Options::default();
    std::fs::write(at("k.o"), object(std::slice::from_ref(&k), &Target::host(&opts), &opts).unwrap()).unwrap();
    let name = symbol(&k);
    let program = format!(
        "#include <stdio.h>\n#include <stdint.h>\n\
         void {name}(void *const *args, const int64_t *sizes, int64_t begin, int64_t end);\n\
         int main(void) {{\n  _Alignas(64) float a[32], b[32], c[32] = {{0}};\n\
         for (int i = 0; i < 32; i++) {{ a[i] = i; b[i] = 2; }}\n\
         void *args[] = {{a, b, c}};\n  {name}(args, 0, 1, 3);\n\
         for (int i = 0; i < 32; i++) printf(\"%g \", c[i]);\n}}\n"
    );
    std::fs::write(at("main.c"), program).unwrap();
    let cc = Command::new("cc").current_dir(dir.path()).args(["main.c", "k.o", "-o", "main"]).output().unwrap();
    assert!(cc.status.success(), "{}", String::from_utf8_lossy(&cc.stderr));
    let out = Command::new(at("main")).output().unwrap();
    let want: String =
        (0..32).map(|i| if (8..24).contains(&i) { format!("{} ", 2 * i + 1) } else { "0 ".into() }).collect();
    assert_eq!(String::from_utf8_lossy(&out.stdout), want);
}

//! Kernels over rows: norms, softmax, reductions, quantization, and rows that are gathered.

use marquetry::ir::{DType, Elem, GgufType};

use super::{Case, check};

/// Norms of rows, and products of what they leave, which fast numerics quantize.
#[test]
fn norms() {
    let case = |k: i64, formula: &str| {
        let text = format!(
            "sym \"n\" in 1..=128\nparam \"g\": f32[{k}]\nparam \"w\": gguf.q4_0[24, {k}]\n\nfunc @f(%0 \"x\": f32[n, {k}], \
             %1 \"r\": f32[n, {k}]) {{\n  %2 = add %0, %1 : f32[n, {k}]\n  %3 = param {{name = \"g\"}} : f32[{k}]\n  \
             %4 = {formula} : f32[n, {k}]\n  %5 = param {{name = \"w\"}} : gguf.q4_0[24, {k}]\n  %6 = dequant %5 : f32[24, {k}]\n  \
             %7 = linear %4, %6 : f32[n, 24]\n  return \"y\" = %7, \"x\" = %2\n}}\n"
        );
        let micro = ["unpack pack.b4", "dot pack.b4"].map(|m| vec![m.to_owned()]);
        Case::new(format!("{formula} of {k}"), text, micro)
    };
    let rms = "rms_norm %2, %3 {eps = 1e-5}";
    let mut cases = [32, 96, 288, 576, 1152].map(|k| case(k, rms)).to_vec();
    cases.extend([96, 576].map(|k| case(k, "layer_norm %2 {eps = 1e-5}")));
    check(&cases);
}

/// Lengths that are whole vectors, one short, one more, and shorter than one.
#[test]
fn reductions() {
    let case = |k: i64| {
        let (x, one) = (format!("f32[n, 3, {k}]"), "f32[n, 3, 1]");
        let text = format!(
            "sym \"n\" in 1..=128\nparam \"g\": f32[{k}]\n\nfunc @f(%0 \"x\": {x}) {{\n  %1 = param {{name = \"g\"}} : f32[{k}]\n  \
             %2 = softmax %0 : {x}\n  %3 = reduce_sum %0 : {one}\n  %4 = reduce_max %0 : {one}\n  \
             %5 = rms_norm %0, %1 {{eps = 1e-5}} : {x}\n  %6 = layer_norm %0 {{eps = 1e-5}} : {x}\n  %7 = sub %0, %4 : {x}\n  \
             %8 = exp %7 : {x}\n  %9 = reduce_sum %8 : {one}\n  \
             return \"a\" = %2, \"b\" = %3, \"c\" = %4, \"d\" = %5, \"e\" = %6, \"f\" = %9\n}}\n"
        );
        Case::new(format!("reductions of {k}"), text, [vec![], vec![]])
    };
    check(&[1, 7, 8, 9, 15, 33, 100].map(case));
}

#[test]
fn gathered_rows() {
    let case = |elem: Elem, rows: i64, k: i64| {
        let of = format!("{elem}[{rows}, {k}]");
        let plain = elem == Elem::Scalar(DType::F32);
        let table = if plain { String::new() } else { format!("  %2 = dequant %1 : f32[{rows}, {k}]\n") };
        let [from, y, z] = if plain { [1, 2, 3] } else { [2, 3, 4] };
        let text = format!(
            "sym \"n\" in 1..=128\nparam \"t\": {of}\n\nfunc @f(%0 \"i\": i32[n]) {{\n  %1 = param {{name = \"t\"}} : {of}\n{table}  \
             %{y} = gather %{from}, %0 : f32[n, {k}]\n  %{z} = exp %{y} : f32[n, {k}]\n  return \"y\" = %{y}, \"z\" = %{z}\n}}\n"
        );
        Case::new(format!("rows of {of}"), text, [vec![], vec![]])
    };
    let rows = [1, 7, 8, 9, 24, 100].into_iter().cycle();
    let mut all: Vec<(Elem, i64)> = [DType::F32, DType::F16, DType::BF16].map(|d| (Elem::Scalar(d), 33)).to_vec();
    all.extend(GgufType::ALL.map(|t| (Elem::Gguf(t), if t.block_len() == 256 { 512 } else { 96 })));
    let cases: Vec<Case> = all.into_iter().zip(rows).map(|((e, k), rows)| case(e, rows, k)).collect();
    check(&cases);
}

//! Products: quantized weights of every packed layout, float weights, gated pairs.

use std::fmt::Write;

use marquetry::ir::{DType, Elem, GgufType, Packed};

use super::{Case, check};

/// Rows of weights: below a block of 8, a block and its neighbours, several blocks, an odd number of them.
const ROWS: [i64; 6] = [1, 7, 8, 9, 24, 100];
/// Inner extents of formats with blocks of 32 and of 256.
const INNER: [i64; 5] = [32, 96, 288, 576, 1152];
const INNER_K: [i64; 3] = [256, 512, 768];

/// A function of one product for each number of rows, each of activations of its own. `inner` gives the extents in turn, and every
/// other product is added to something.
fn products(elem: Elem, inner: impl Fn(usize) -> i64) -> String {
    let (mut head, mut args, mut body, mut results) =
        (String::from("sym \"n\" in 1..=128\n"), vec![], String::new(), vec![]);
    let (mut v, count) = (ROWS.len() + ROWS.len() / 2, ROWS.len());
    let mut added = count;
    for (i, rows) in ROWS.into_iter().enumerate() {
        let k = inner(i);
        writeln!(head, "param \"w{i}\": {elem}[{rows}, {k}]").unwrap();
        args.push(format!("%{i} \"x{i}\": f32[n, {k}]"));
        writeln!(body, "  %{v} = param {{name = \"w{i}\"}} : {elem}[{rows}, {k}]").unwrap();
        let mut w = v;
        v += 1;
        if elem != Elem::Scalar(DType::F32) {
            writeln!(body, "  %{v} = dequant %{w} : f32[{rows}, {k}]").unwrap();
            w = v;
            v += 1;
        }
        writeln!(body, "  %{v} = linear %{i}, %{w} : f32[n, {rows}]").unwrap();
        v += 1;
        if i % 2 == 1 {
            writeln!(body, "  %{v} = add %{added}, %{} : f32[n, {rows}]", v - 1).unwrap();
            (v, added) = (v + 1, added + 1);
        }
        results.push(format!("\"y{i}\" = %{}", v - 1));
    }
    let beside = (0..count / 2).map(|i| format!("%{} \"z{i}\": f32[n, {}]", count + i, ROWS[2 * i + 1]));
    args.extend(beside);
    format!("{head}\nfunc @f({}) {{\n{body}  return {}\n}}\n", args.join(", "), results.join(", "))
}

fn quantized(t: GgufType, turn: usize) -> Case {
    let elem = Elem::Gguf(t);
    let all: &[i64] = if t.block_len() == 256 { &INNER_K } else { &INNER };
    let text = products(elem, |i| all[(i + turn) % all.len()]);
    let packed = Elem::Packed(Packed::for_gguf(t));
    let micro = [vec![format!("unpack {packed}"), "fma f32".into()], vec![format!("dot {packed}")]];
    Case::new(format!("{elem} products, turn {turn}"), text, micro)
}

/// Every layout with every pair of rows and inner extent, in turn over the formats that share code.
#[test]
fn quantized_products() {
    let all = GgufType::ALL.into_iter().enumerate();
    let cases: Vec<Case> = all.flat_map(|(i, t)| [quantized(t, i), quantized(t, i + 2)]).collect();
    check(&cases);
}

#[test]
fn float_products() {
    let odd = [1, 5, 33, 96, 100, 576];
    let case = |d: DType, turn: usize| {
        let text = products(Elem::Scalar(d), |i| odd[(i + turn) % odd.len()]);
        let micro = vec![format!("fma {d}")];
        Case::new(format!("{d} products, turn {turn}"), text, [micro.clone(), micro])
    };
    check(&[case(DType::F32, 0), case(DType::F32, 4), case(DType::F16, 1), case(DType::F16, 3), case(DType::BF16, 2)]);
}

/// A gated pair of products. Rows that are no multiple of 8 stay two products.
fn gated(elem: Elem, activation: (&str, &str), rows: i64, k: i64) -> Case {
    let ty = format!("{elem}[{rows}, {k}]");
    let y = format!("f32[n, {rows}]");
    let (mut body, mut at) = (String::new(), 0);
    for name in ["g", "u"] {
        at += 1;
        writeln!(body, "  %{at} = param {{name = \"{name}\"}} : {ty}").unwrap();
        if elem != Elem::Scalar(DType::F32) {
            at += 1;
            writeln!(body, "  %{at} = dequant %{} : f32[{rows}, {k}]", at - 1).unwrap();
        }
        at += 1;
        writeln!(body, "  %{at} = linear %0, %{} : {y}", at - 1).unwrap();
    }
    let (operator, attributes) = activation;
    writeln!(body, "  %{} = {operator} %{}, %{at} {attributes}: {y}", at + 1, at / 2).unwrap();
    let text = format!(
        "sym \"n\" in 1..=128\nparam \"g\": {ty}\nparam \"u\": {ty}\n\nfunc @f(%0 \"x\": f32[n, {k}]) {{\n{body}  \
         return \"y\" = %{}\n}}\n",
        at + 1
    );
    let micro = match elem {
        Elem::Gguf(t) => {
            let packed = Elem::Packed(Packed::for_gguf(t));
            [vec![format!("unpack {packed}")], vec![format!("dot {packed}")]]
        }
        other => [vec![format!("fma {other}")], vec![format!("fma {other}")]],
    };
    Case::new(format!("{elem} pair of {rows} x {k}, {operator} {attributes}"), text, micro)
}

#[test]
fn gated_products() {
    let activations = [("swiglu", ""), ("geglu", "{tanh = true} "), ("geglu", "{tanh = false} ")];
    let elems = [Elem::Gguf(GgufType::Q4_0), Elem::Gguf(GgufType::Q8_0), Elem::Gguf(GgufType::Q5_1)];
    let floats = [Elem::Scalar(DType::F32), Elem::Scalar(DType::F16)];
    let sizes = [(8, 96), (24, 288), (100, 32), (40, 576), (9, 96)];
    let pairs = elems.into_iter().chain(floats).zip(sizes).enumerate();
    let mut cases: Vec<Case> = pairs.map(|(i, (e, (rows, k)))| gated(e, activations[i % 3], rows, k)).collect();
    cases.extend([(GgufType::Q4K, 0), (GgufType::Q6K, 1)].map(|(t, a)| gated(Elem::Gguf(t), activations[a], 72, 256)));
    cases.extend(activations.map(|a| gated(Elem::Gguf(GgufType::Q4_1), a, 56, 96)));
    check(&cases);
}

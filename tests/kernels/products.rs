//! Products: quantized weights of every packed layout, float weights, gated pairs.

use std::fmt::Write;

use marquetry::codegen::{Backend, Options};
use marquetry::ir::graph::{Module, parse_module};
use marquetry::ir::testing::bits_differ;
use marquetry::ir::{DType, Elem, GgufType, Packed};
use marquetry::passes::Numerics;

use super::native::Native;
use super::{Case, POOLS, check, compile, inputs, ways};

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

/// An activation as the function has it: operator, attributes, and what its micro-kernel is called, if it has one.
type Activation = (&'static str, &'static str, Option<&'static str>);

const ACTIVATIONS: [Activation; 3] = [
    ("swiglu", "", Some("gate silu f32")),
    ("geglu", "{tanh = true} ", Some("gate gelu f32")),
    ("geglu", "{tanh = false} ", None),
];

/// A gated pair of products, and with `down` a product of what it gives. Rows that are no multiple of 8 stay two products.
fn gated(elem: Elem, activation: Activation, (rows, k): (i64, i64), down: Option<Elem>) -> Case {
    let (mut head, mut body, mut at) = (String::from("sym \"n\" in 1..=128\n"), String::new(), 0);
    let mut product = |name: &str, elem: Elem, x: usize, [rows, k]: [i64; 2]| {
        let ty = format!("{elem}[{rows}, {k}]");
        writeln!(head, "param \"{name}\": {ty}").unwrap();
        writeln!(body, "  %{} = param {{name = \"{name}\"}} : {ty}", at + 1).unwrap();
        at += 1;
        if elem != Elem::Scalar(DType::F32) {
            writeln!(body, "  %{} = dequant %{at} : f32[{rows}, {k}]", at + 1).unwrap();
            at += 1;
        }
        writeln!(body, "  %{} = linear %{x}, %{at} : f32[n, {rows}]", at + 1).unwrap();
        at += 1;
        if name == "u" {
            let (operator, attributes, _) = activation;
            writeln!(body, "  %{} = {operator} %{}, %{at} {attributes}: f32[n, {rows}]", at + 1, at / 2).unwrap();
            at += 1;
        }
        at
    };
    product("g", elem, 0, [rows, k]);
    let mut y = product("u", elem, 0, [rows, k]);
    if let Some(elem) = down {
        y = product("d", elem, y, [24, rows]);
    }
    let text = format!("{head}\nfunc @f(%0 \"x\": f32[n, {k}]) {{\n{body}  return \"y\" = %{y}\n}}\n");
    let mut micro = [elem].into_iter().chain(down).fold([vec![], vec![]], |[mut strict, mut fast], elem| {
        match elem {
            Elem::Gguf(t) => {
                let packed = Elem::Packed(Packed::for_gguf(t));
                strict.push(format!("unpack {packed}"));
                fast.push(format!("dot {packed}"));
            }
            other => [&mut strict, &mut fast].into_iter().for_each(|m| m.push(format!("fma {other}"))),
        }
        [strict, fast]
    });
    let whole = matches!(elem, Elem::Gguf(_)) && rows % 8 == 0;
    micro[1].extend(activation.2.filter(|_| whole).map(str::to_owned));
    let (operator, attributes, _) = activation;
    let then = down.map(|d| format!(", then {d}")).unwrap_or_default();
    Case::new(format!("{elem} pair of {rows} x {k}, {operator} {attributes}{then}"), text, micro)
}

#[test]
fn gated_products() {
    let elems = [Elem::Gguf(GgufType::Q4_0), Elem::Gguf(GgufType::Q8_0), Elem::Gguf(GgufType::Q5_1)];
    let floats = [Elem::Scalar(DType::F32), Elem::Scalar(DType::F16)];
    let sizes = [(8, 96), (24, 288), (100, 32), (40, 576), (9, 96)];
    let pairs = elems.into_iter().chain(floats).zip(sizes).enumerate();
    let mut cases: Vec<Case> = pairs.map(|(i, (e, size))| gated(e, ACTIVATIONS[i % 3], size, None)).collect();
    let k = [(GgufType::Q4K, 0), (GgufType::Q6K, 1)];
    cases.extend(k.map(|(t, a)| gated(Elem::Gguf(t), ACTIVATIONS[a], (72, 256), None)));
    cases.extend(ACTIVATIONS.map(|a| gated(Elem::Gguf(GgufType::Q4_1), a, (56, 96), None)));
    check(&cases);
}

/// What a gated pair gives, multiplied once more: quantized for it if that is by 8-bit numbers.
fn network(pair: GgufType, down: Elem, activation: usize, size: (i64, i64)) -> Case {
    gated(Elem::Gguf(pair), ACTIVATIONS[activation], size, Some(down))
}

/// Networks whose pair quantizes its result.
fn whole_networks() -> [Case; 4] {
    [
        network(GgufType::Q4_0, Elem::Gguf(GgufType::Q4_0), 0, (32, 96)),
        network(GgufType::Q4_1, Elem::Gguf(GgufType::Q4_1), 1, (96, 32)),
        network(GgufType::Q8_0, Elem::Gguf(GgufType::Q5_0), 0, (160, 64)),
        network(GgufType::Q4K, Elem::Gguf(GgufType::Q6K), 1, (256, 256)),
    ]
}

#[test]
fn gated_networks() {
    check(&whole_networks());
    check(&[
        network(GgufType::Q5_1, Elem::Gguf(GgufType::Q8_0), 2, (64, 64)),
        network(GgufType::Q4_0, Elem::Scalar(DType::F16), 0, (56, 96)),
        network(GgufType::Q5_0, Elem::Scalar(DType::BF16), 1, (40, 32)),
    ]);
}

/// Where something else reads the gated product, it is quantized by a kernel of its own: one launch more, and the same bits.
#[test]
fn quantized_in_the_same_kernel_or_by_another() {
    for case in whole_networks() {
        let gated = case.text.lines().find(|l| l.contains("glu ")).and_then(|l| l.split_whitespace().next()).unwrap();
        let apart = Case { text: case.text.replace("\n}\n", &format!(", \"h\" = {gated}\n}}\n")), ..case.clone() };
        let modules = [&case, &apart].map(|c| parse_module(&c.text).unwrap());
        for (way, run) in ways().into_iter().filter(|w| w.1 && !w.3).flat_map(|w| case.runs.iter().map(move |r| (w, r)))
        {
            let what = format!("{}, {}, {} tokens", case.name, way.0, run.tokens);
            let given = inputs(&modules[0], run);
            let ran = |c: &Case, m: &Module| {
                let (_, p) = compile(c, m, Numerics::Fast, run.tokens == 1, (true, false));
                let options = Options { verify: true, finite_f16: true, routines: way.2, ..Options::default() };
                let mut made = Native::new(Backend::Cranelift, &options, &p, &given.params).unwrap();
                (made.run(m, &given, &POOLS[1]).unwrap(), p.launches.len())
            };
            let ((one, launches), (mut two, more)) = (ran(&case, &modules[0]), ran(&apart, &modules[1]));
            two.results.truncate(1);
            assert_eq!(bits_differ(&one, &two), None, "{what}");
            assert_eq!(launches + 1, more, "{what}");
        }
    }
}

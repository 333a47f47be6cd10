//! Traced models against outputs of independent implementations, interpreted as traced and after every pass.

mod support;

use std::collections::HashMap;
use std::sync::Arc;

use half::f16;
use marquetry_ir::graph::interp::{Data, Tensor};
use marquetry_ir::graph::{Module, Op, parse_module, print_module, verify};
use marquetry_ir::{Elem, GgufType};
use marquetry_passes::manager::{self, Ir, Options};
use marquetry_passes::{Numerics, bind};
use support::{CASES, Case, Session, Token, deviation, distance};

/// Every module that the passes make on the way, with the name of the pass. Each is verified, printed and read back.
fn stages(traced: &Module, numerics: Numerics) -> Vec<(String, Module)> {
    let mut out = vec![("trace".to_string(), traced.clone())];
    let options = Options { numerics, ..Options::default() };
    manager::run(Ir::Graph(traced.clone()), "canon,outline,eqsat,fuse", &options, &mut |name, ir| {
        let Ir::Graph(m) = ir else { panic!("{name} gives a program") };
        out.push((name.to_string(), m.clone()));
    })
    .unwrap();
    for (name, m) in &out {
        assert_eq!(verify(m), Vec::<String>::new(), "{name}");
        let text = print_module(m);
        let back = parse_module(&text).unwrap_or_else(|e| panic!("{name}: {e}\n{text}"));
        assert!(print_module(&back) == text, "{name}: printed again, the text differs");
        assert!(back == *m, "{name}: what is read differs from what was printed");
    }
    out
}

fn agrees_with_the_reference(name: &str) {
    let case = Case::load(name);
    for (stage, m) in stages(&case.module, Numerics::Strict) {
        for (which, p) in [("short", &case.short), ("long", &case.long)] {
            let whole = Session::new(&m, &case.params).prompt(&p.ids, &[p.ids.len()]);
            let d = distance(&whole, &p.logits);
            assert!(d <= case.tolerance, "{name} {stage} {which}: {d} beyond {}", case.tolerance);
            let steps = Session::new(&m, &case.params).prompt(&p.ids, &vec![1; p.ids.len()]);
            let d = distance(&steps, &p.logits);
            assert!(d <= case.tolerance, "{name} {stage} {which} step by step: {d} beyond {}", case.tolerance);
        }
    }
}

macro_rules! cases {
    ($($test:ident $path:literal;)*) => {$(
        #[test]
        fn $test() {
            agrees_with_the_reference($path);
        }
    )*};
}
reference_cases!(cases);

fn best(logits: &[f32]) -> i32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as i32
}

#[test]
fn greedy_continuations_are_the_reference_ones() {
    for name in CASES {
        let case = Case::load(name);
        let (_, m) = stages(&case.module, Numerics::Strict).pop().unwrap();
        let mut session = Session::new(&m, &case.params);
        let mut ids = case.short.ids.clone();
        let logits = session.prompt(&ids, &[ids.len()]);
        ids.push(best(&logits[logits.len() - case.text.vocab..]));
        while ids.len() < case.short.ids.len() + case.greedy.len() {
            let pos = ids.len() - 1;
            let logits = session.step(&[Token { id: ids[pos], pos, seq: 0 }], &[0]);
            ids.push(best(&logits));
        }
        assert_eq!(ids[case.short.ids.len()..], case.greedy, "{name}");
    }
}

/// Families that differ in what could leak: rotation, windows, learned positions, slopes, experts, lengths, recurrences.
const FAMILIES: [&str; 8] = [
    "llama/base",
    "gemma3/text",
    "gpt2/prefixed",
    "baichuan/baichuan2-13b-alibi",
    "mixtral/e4k2",
    "phi3/longrope",
    "qwen/logn-ntk",
    "rwkv6/base",
];

#[test]
fn sequences_in_one_step_do_not_see_each_other() {
    for name in FAMILIES {
        let case = Case::load(name);
        for (stage, m) in stages(&case.module, Numerics::Strict) {
            let mut alone = vec![];
            let mut together: Vec<Token> = vec![];
            for (seq, p) in [&case.short, &case.long].into_iter().enumerate() {
                alone.extend(Session::new(&m, &case.params).prompt(&p.ids, &[p.ids.len()]));
                together.extend(p.ids.iter().enumerate().map(|(pos, &id)| Token { id, pos, seq }));
            }
            let rows: Vec<usize> = (0..together.len()).collect();
            let one = Session::new(&m, &case.params).step(&together, &rows);
            assert!(one == alone, "{name} {stage}");
            // Tokens of both taken in turn, and some of the rows, in another order.
            let (a, b) = together.split_at(case.short.ids.len());
            let mixed: Vec<Token> = b.iter().zip(a).flat_map(|(x, y)| [*x, *y]).chain(b[a.len()..].to_vec()).collect();
            let wanted = [mixed.len() - 1, 2 * a.len() - 1, 0];
            let some = Session::new(&m, &case.params).step(&mixed, &wanted);
            let row = |r: usize| &alone[r * case.text.vocab..][..case.text.vocab];
            let expected = [row(together.len() - 1), row(a.len() - 1), row(a.len())].concat();
            assert!(some == expected, "{name} {stage}");
        }
    }
}

#[test]
fn decoding_of_two_sequences_in_one_batch_equals_each_alone() {
    let case = Case::load("gemma3/text");
    let (_, m) = stages(&case.module, Numerics::Strict).pop().unwrap();
    let mut batch = Session::new(&m, &case.params);
    let (a, b) = (&case.short.ids, &case.long.ids);
    let alone = [a, b].map(|ids| Session::new(&m, &case.params).prompt(ids, &[ids.len()]));
    let vocab = case.text.vocab;
    for pos in 0..a.len() {
        let tokens = [Token { id: b[pos], pos, seq: 1 }, Token { id: a[pos], pos, seq: 0 }];
        let logits = batch.step(&tokens, &[0, 1]);
        assert_eq!(logits[..vocab], alone[1][pos * vocab..][..vocab]);
        assert_eq!(logits[vocab..], alone[0][pos * vocab..][..vocab]);
    }
}

#[test]
fn chunked_prefill_equals_whole_prefill() {
    for name in ["llama/llama3-rope-tied-bf16", "gemma3/text-linear-rope-bf16"].into_iter().chain(FAMILIES) {
        let case = Case::load(name);
        let all = stages(&case.module, Numerics::Strict);
        let last = all.len() - 1;
        for (i, (stage, m)) in all.into_iter().enumerate() {
            let whole = Session::new(&m, &case.params).prompt(&case.long.ids, &[40]);
            // At every place, after all passes.
            for first in (1..40).filter(|_| i == last) {
                let chunked = Session::new(&m, &case.params).prompt(&case.long.ids, &[first, 40 - first]);
                assert!(chunked == whole, "{name} {stage} after {first}");
            }
            for pieces in [&[1, 39][..], &[39, 1], &[7, 16, 17], &[16, 16, 8], &[20, 1, 1, 18]] {
                let chunked = Session::new(&m, &case.params).prompt(&case.long.ids, pieces);
                assert!(chunked == whole, "{name} {stage} in {pieces:?}");
            }
        }
    }
}

/// Quantizes rows plainly: enough for a test, no search for good scales.
fn quantize(t: GgufType, values: &[f32]) -> Vec<u8> {
    let mut out = vec![];
    for block in values.chunks_exact(32) {
        let (lo, hi) = block.iter().fold((f32::MAX, f32::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
        match t {
            GgufType::Q8_0 => {
                let d = f16::from_f32(lo.abs().max(hi.abs()) / 127.0);
                out.extend(d.to_le_bytes());
                out.extend(block.iter().map(|v| (v / d.to_f32()).round_ties_even() as i8 as u8));
            }
            GgufType::Q4_1 => {
                let (d, m) = (f16::from_f32((hi - lo) / 15.0), f16::from_f32(lo));
                out.extend(d.to_le_bytes());
                out.extend(m.to_le_bytes());
                let q = |v: f32| ((v - m.to_f32()) / d.to_f32()).round_ties_even().clamp(0.0, 15.0) as u8;
                out.extend((0..16).map(|i| q(block[i]) | q(block[i + 16]) << 4));
            }
            other => panic!("{other:?}"),
        }
    }
    out
}

/// The case with its matrices stored in a block format.
fn quantized(case: &Case, t: GgufType) -> (Module, HashMap<String, Tensor>) {
    let mut params = case.params.clone();
    let mut elems = HashMap::new();
    for (name, p) in &mut params {
        let elem = match &p.data {
            _ if p.shape.len() == 2 && p.shape[1] % 32 == 0 => {
                p.data = Data::Bytes(Elem::Gguf(t), Arc::new(quantize(t, &p.to_f32().unwrap())));
                Elem::Gguf(t)
            }
            Data::Bytes(e, _) => *e,
            _ => continue,
        };
        elems.insert(name.clone(), elem);
    }
    (bind::storage(&case.text.module, &elems).unwrap(), params)
}

fn has(m: &Module, op: Op) -> bool {
    m.functions.iter().any(|f| f.insts.iter().any(|i| i.op == op))
}

#[test]
fn quantized_weights_keep_their_numbers_when_strict_and_are_close_when_fast() {
    for (name, t) in [
        ("llama/base", GgufType::Q8_0),
        ("llama/llama3-rope-tied-bf16", GgufType::Q4_1),
        ("gemma3/text", GgufType::Q4_1),
        ("gemma3/text-linear-rope-bf16", GgufType::Q8_0),
    ] {
        let case = Case::load(name);
        let (module, params) = quantized(&case, t);
        let ids = &case.long.ids;
        let reference = Session::new(&module, &params).prompt(ids, &[ids.len()]);
        let std = deviation(&reference);
        if t == GgufType::Q8_0 {
            let gap: Vec<f32> = reference.iter().zip(&case.long.logits).map(|(a, b)| a - b).collect();
            let d = deviation(&gap);
            assert!(d < 0.1 * std, "{name}: 8-bit weights are {d} away in the mean, std {std}");
        }
        for numerics in [Numerics::Strict, Numerics::Fast] {
            let stages = stages(&module, numerics);
            let last = &stages.last().unwrap().1;
            assert_eq!(has(last, Op::QLinear), numerics == Numerics::Fast, "{name} {numerics:?}");
            for (stage, m) in &stages {
                let exact = numerics == Numerics::Strict || !matches!(stage.as_str(), "eqsat" | "fuse");
                let bound = if exact { 1e-4 * std } else { 0.1 * std };
                let whole = Session::new(m, &params).prompt(ids, &[ids.len()]);
                let gap: Vec<f32> = whole.iter().zip(&reference).map(|(a, b)| a - b).collect();
                let d = if exact { distance(&whole, &reference) } else { deviation(&gap) };
                assert!(d <= bound, "{name} {numerics:?} {stage}: {d} beyond {bound}, std {std}");
                let chunked = Session::new(m, &params).prompt(ids, &[16, 1, 23]);
                assert!(chunked == whole, "{name} {numerics:?} {stage} in chunks");
            }
        }
    }
}

#[test]
fn specialized_sizes_give_the_same_numbers() {
    use bind::Narrow::{Fixed, Range};
    for name in ["llama/new-style-config", "gemma3/nested-text"] {
        let case = Case::load(name);
        let whole = Session::new(&case.module, &case.params).prompt(&case.short.ids, &[12]);
        let one = [("n", Fixed(1)), ("r", Fixed(1)), ("s", Fixed(1))];
        let few = [("n", Range(2, 8)), ("s", Fixed(1))];
        for (sizes, pieces) in [(&one[..], vec![1; 12]), (&few[..], vec![2, 8, 2])] {
            let sizes = sizes.iter().map(|(n, s)| (n.to_string(), *s)).collect();
            let m = bind::specialize(&case.module, &sizes).unwrap();
            for (stage, m) in stages(&m, Numerics::Strict) {
                let d = distance(&Session::new(&m, &case.params).prompt(&case.short.ids, &pieces), &whole);
                assert!(d <= case.tolerance, "{name} {stage} {sizes:?}: {d}");
            }
        }
    }
}

#[test]
fn layers_become_one_function_and_kernels_are_few() {
    for name in CASES {
        let case = Case::load(name);
        let stages = stages(&case.module, Numerics::Strict);
        let calls = |m: &Module| m.entry().unwrap().insts.iter().filter(|i| i.op == Op::Call).count();
        let outlined = &stages.iter().find(|s| s.0 == "outline").unwrap().1;
        assert!(outlined.functions.len() > 1, "{name}: nothing outlined");
        assert!(calls(outlined) >= 2, "{name}");
        let fused = &stages.last().unwrap().1;
        let kernels = fused.functions.iter().filter(|f| f.kind == marquetry_ir::graph::Kind::Fused).count();
        assert!(kernels < 60, "{name}: {kernels} kernels");
    }
}

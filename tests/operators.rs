//! The operator table: every row is complete, every expansion means what the operator's documentation says, and nothing in a
//! module's text can make a type rule panic.

mod support;

use std::collections::HashMap;

use marquetry_ir::graph::interp::{Tensor, Val, run_function};
use marquetry_ir::graph::{
    Attr, AttrKind, Builder, Decl, Function, Inst, Kind, KvTy, Module, Op, Ty, Value, parse_module, print_module,
    verify,
};
use marquetry_ir::{DType, Dim, Elem, GgufType, Packed, Sym, Syms};
use proptest::prelude::*;
use proptest::strategy::Union;
use support::distance;

/// Runs a module of one function without parameters.
fn run(f: &Function, syms: &Syms, sizes: &[i64], args: Vec<Val>) -> Vec<Val> {
    run_function(&Module::default(), f, syms, sizes, args, &mut HashMap::new(), &HashMap::new()).unwrap()
}

/// Evaluates one operator over f32 tensors.
fn eval(op: Op, args: &[(&[usize], &[f32])], attrs: Vec<Attr>) -> Vec<f32> {
    let syms = Syms::default();
    let mut b = Builder::new(&syms, Function::new("f", Kind::Graph));
    let values: Vec<Value> = args
        .iter()
        .map(|(shape, _)| b.arg("x", Ty::tensor(DType::F32, shape.iter().map(|&d| d.into()).collect())))
        .collect();
    let y = b.emit(op, &values, attrs).unwrap();
    b.func.results.push(("y".into(), y));
    let args = args.iter().map(|(shape, v)| Val::Tensor(Tensor::f32(shape, v.to_vec()))).collect();
    match &run(&b.func, &syms, &[], args)[..] {
        [Val::Tensor(t)] => t.to_f32().unwrap().to_vec(),
        other => panic!("{} results", other.len()),
    }
}

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 40) as f32 / (1 << 24) as f32
    };
    (0..n).map(|_| (next() + next() + next() - 1.5) * 3.0).collect()
}

#[test]
fn every_row_is_complete() {
    let mut names: Vec<&str> = Op::ALL.iter().map(|o| o.name()).collect();
    for op in Op::ALL {
        let info = op.info();
        assert!(!info.doc.trim().is_empty(), "{} has no documentation", info.name);
        assert!(info.doc.trim().ends_with(['.', '`']), "{}: {}", info.name, info.doc);
        assert_eq!(Op::find(info.name), Some(*op));
        let mut attrs: Vec<&str> = info.attrs.iter().map(|a| a.0).collect();
        attrs.dedup();
        assert_eq!(attrs.len(), info.attrs.len());
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Op::ALL.len());
}

/// Every operator with an expansion has a test below that computes it in another way.
#[test]
fn every_expansion_is_covered() {
    let covered = [
        "glu_linear",
        "silu",
        "gelu",
        "swiglu",
        "geglu",
        "softcap",
        "rms_norm",
        "softmax",
        "rope",
        "rope_table",
        "rope_apply",
        "attend",
        "attend_sloped",
        "attend_merge",
        "layer_norm",
        "top_k",
        "pick",
        "expert_linear",
    ];
    let expanded: Vec<&str> = Op::ALL.iter().filter(|o| o.info().expand.is_some()).map(|o| o.name()).collect();
    for name in &expanded {
        assert!(covered.contains(name), "the expansion of `{name}` is not tested");
    }
    assert_eq!(covered.len(), expanded.len());
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

/// The normal distribution's integral by Simpson's rule.
fn gelu(x: f64) -> f64 {
    let n = 2000;
    let h = x / f64::from(n);
    let f = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let inner: f64 = (1..n).map(|i| f(h * f64::from(i)) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    x * (0.5 + h / 3.0 * (f(0.0) + inner + f(x)))
}

fn close(got: &[f32], want: &[f64], tolerance: f32, what: &str) {
    let want: Vec<f32> = want.iter().map(|v| *v as f32).collect();
    let d = distance(got, &want);
    assert!(d <= tolerance, "{what}: {d}");
}

fn each(x: &[f32], f: impl Fn(f64) -> f64) -> Vec<f64> {
    x.iter().map(|v| f(f64::from(*v))).collect()
}

fn both(x: &[f32], y: &[f32], f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    x.iter().zip(y).map(|(a, b)| f(f64::from(*a), f64::from(*b))).collect()
}

#[test]
fn activations_follow_their_formulas() {
    let (x, u) = (numbers(64, 1), numbers(64, 2));
    let one: (&[usize], &[f32]) = (&[64], &x);
    let two = [one, (&[64][..], &u[..])];
    close(&eval(Op::Silu, &[one], vec![]), &each(&x, silu), 1e-6, "silu");
    close(&eval(Op::Gelu, &[one], vec![Attr::Bool(true)]), &each(&x, gelu_tanh), 2e-6, "gelu by tanh");
    close(&eval(Op::Gelu, &[one], vec![Attr::Bool(false)]), &each(&x, gelu), 2e-6, "gelu");
    close(&eval(Op::SwiGlu, &two, vec![]), &both(&x, &u, |a, b| silu(a) * b), 1e-5, "swiglu");
    let z = eval(Op::GeGlu, &two, vec![Attr::Bool(true)]);
    close(&z, &both(&x, &u, |a, b| gelu_tanh(a) * b), 1e-5, "geglu by tanh");
    close(&eval(Op::GeGlu, &two, vec![Attr::Bool(false)]), &both(&x, &u, |a, b| gelu(a) * b), 1e-5, "geglu");
    let z = eval(Op::Softcap, &[one], vec![Attr::float(1.5)]);
    close(&z, &each(&x, |v| 1.5 * (v / 1.5).tanh()), 1e-6, "softcap");
}

#[test]
fn row_operators_follow_their_formulas() {
    let (x, w) = (numbers(3 * 40, 3), numbers(40, 4));
    let mut norm = vec![];
    let mut soft = vec![];
    for row in x.chunks(40) {
        let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 40.0;
        norm.extend(both(row, &w, |a, b| a / (mean + 0.25).sqrt() * b));
        let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
        soft.extend(each(row, |v| v.exp() / sum));
    }
    close(&eval(Op::RmsNorm, &[(&[3, 40], &x), (&[40], &w)], vec![Attr::float(0.25)]), &norm, 1e-5, "rms_norm");
    close(&eval(Op::Softmax, &[(&[3, 40], &x)], vec![]), &soft, 1e-6, "softmax");
    let huge = [f32::MAX, f32::MAX, -f32::MAX];
    assert_eq!(eval(Op::Softmax, &[(&[1, 3], &huge)], vec![]), [0.5, 0.5, 0.0]);
}

#[test]
fn layer_norm_has_no_mean_and_unit_variance() {
    let x = numbers(3 * 40, 11);
    let mut want = vec![];
    for row in x.chunks(40) {
        let mean = row.iter().map(|v| f64::from(*v)).sum::<f64>() / 40.0;
        let var = row.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / 40.0;
        want.extend(row.iter().map(|v| (f64::from(*v) - mean) / (var + 0.25).sqrt()));
    }
    close(&eval(Op::LayerNorm, &[(&[3, 40], &x)], vec![Attr::float(0.25)]), &want, 1e-5, "layer_norm");
}

#[test]
fn experts_are_chosen_by_rank_and_applied_by_index() {
    let (n, experts, k, width, rows) = (4, 5, 3, 6, 2);
    let mut p = numbers(n * experts, 12);
    p[1] = p[3];
    let (x, w) = (numbers(n * k * width, 13), numbers(experts * rows * width, 14));
    let syms = Syms::default();
    let mut b = Builder::new(&syms, Function::new("f", Kind::Graph));
    let mut arg = |shape: &[usize]| b.arg("x", Ty::tensor(DType::F32, shape.iter().map(|&d| d.into()).collect()));
    let (pv, xv, wv) = (arg(&[n, experts]), arg(&[n, k, width]), arg(&[experts * rows, width]));
    let ids = b.emit(Op::TopK, &[pv], vec![Attr::Int(k as i64)]).unwrap();
    let picked = b.emit(Op::Pick, &[pv, ids], vec![]).unwrap();
    let y = b.emit(Op::ExpertLinear, &[xv, wv, ids], vec![Attr::Int(experts as i64)]).unwrap();
    b.func.results = [ids, picked, y].map(|v| ("y".to_string(), v)).to_vec();
    let shapes: [(&[usize], &[f32]); 3] = [(&[n, experts], &p), (&[n, k, width], &x), (&[experts * rows, width], &w)];
    let args = shapes.map(|(shape, v)| Val::Tensor(Tensor::f32(shape, v.to_vec()))).to_vec();
    let results = run(&b.func, &syms, &[], args);
    let [Val::Tensor(ids), Val::Tensor(picked), Val::Tensor(y)] = &results[..] else { panic!() };
    let mut want = (vec![], vec![], vec![]);
    for (t, row) in p.chunks(experts).enumerate() {
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
        for (j, e) in order.into_iter().take(k).enumerate() {
            want.0.push(e as i64);
            want.1.push(row[e]);
            let x = &x[(t * k + j) * width..][..width];
            let dot = |r: &[f32]| r.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            want.2.extend(w.chunks(width).skip(e * rows).take(rows).map(dot));
        }
    }
    assert_eq!(ids.ints().unwrap().to_vec(), want.0);
    assert_eq!(picked.to_f32().unwrap().to_vec(), want.1);
    close(&y.to_f32().unwrap(), &want.2, 1e-5, "expert_linear");
}

#[test]
fn rotary_embedding_turns_pairs() {
    let freq = [1.0f32, 0.1, 0.01];
    let (n, heads, dim) = (4, 2, 8);
    let x = numbers(n * heads * dim, 5);
    let pos = [0, 3, 100, 7];
    for interleaved in [false, true] {
        let syms = Syms::default();
        let mut b = Builder::new(&syms, Function::new("f", Kind::Graph));
        let q = b.arg("x", Ty::tensor(DType::F32, vec![n.into(), heads.into(), dim.into()]));
        let p = b.arg("pos", Ty::tensor(DType::I32, vec![n.into()]));
        let attrs = vec![Attr::floats(&freq), Attr::float(1.25), Attr::Bool(interleaved)];
        let whole = b.emit(Op::Rope, &[q, p], attrs).unwrap();
        let table = b.emit(Op::RopeTable, &[p], vec![Attr::floats(&freq), Attr::float(1.25)]).unwrap();
        let applied = b.emit(Op::RopeApply, &[q, table], vec![Attr::Bool(interleaved)]).unwrap();
        b.func.results = [whole, table, applied].map(|v| ("y".to_string(), v)).to_vec();
        let args = vec![Val::Tensor(Tensor::f32(&[n, heads, dim], x.clone())), Val::Tensor(Tensor::i32(&[n], &pos))];
        let got: Vec<Vec<f32>> = run(&b.func, &syms, &[], args)
            .iter()
            .map(|v| match v {
                Val::Tensor(t) => t.to_f32().unwrap().to_vec(),
                Val::Kv(..) | Val::Rows(..) => panic!(),
            })
            .collect();
        let mut want = x.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        let mut turns = vec![0.0; n * 6];
        for t in 0..n {
            for (i, f) in freq.iter().enumerate() {
                let angle = f64::from(pos[t] as f32 * f);
                (turns[t * 6 + i], turns[t * 6 + 3 + i]) = (angle.cos() * 1.25, angle.sin() * 1.25);
                for h in 0..heads {
                    let at = (t * heads + h) * dim;
                    let (a, b) = if interleaved { (at + 2 * i, at + 2 * i + 1) } else { (at + i, at + 3 + i) };
                    let (p, q) = (f64::from(x[a]), f64::from(x[b]));
                    want[a] = (p * angle.cos() - q * angle.sin()) * 1.25;
                    want[b] = (q * angle.cos() + p * angle.sin()) * 1.25;
                }
            }
        }
        close(&got[0], &want, 1e-5, "rope");
        close(&got[1], &turns, 1e-6, "rope_table");
        assert_eq!(got[0], got[2], "rope_apply");
    }
}

#[test]
fn gated_products_equal_two_products() {
    let (n, k, rows) = (3, 24, 16);
    let (x, gate, up) = (numbers(n * k, 6), numbers(rows * k, 7), numbers(rows * k, 8));
    let mut joined = vec![];
    for (g, u) in gate.chunks(8 * k).zip(up.chunks(8 * k)) {
        joined.extend_from_slice(g);
        joined.extend_from_slice(u);
    }
    let product = |w: &[f32]| eval(Op::Linear, &[(&[n, k], &x), (&[rows, k], w)], vec![]);
    let (g, u) = (product(&gate), product(&up));
    for (act, f) in [silu as fn(f64) -> f64, gelu, gelu_tanh].into_iter().enumerate() {
        let attrs = vec![Attr::Int(act as i64)];
        let got = eval(Op::GluLinear, &[(&[n, k], &x), (&[2 * rows, k], &joined)], attrs);
        close(&got, &both(&g, &u, |a, b| f(a) * b), 3e-4, "glu_linear");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// `attend` itself, its expansion and its pieces put together, over pages in any order and slots that hold NaN.
    #[test]
    fn attention_equals_its_expansion(
        n in 1usize..6,
        kv_heads in 1usize..3,
        group in 1usize..4,
        dim in 1usize..6,
        page in 1usize..5,
        window in 0i64..9,
        capped: bool,
        seed: u64,
        sloped: bool,
        parts in 1i64..5,
        shuffle in Just((0..12).collect::<Vec<i32>>()).prop_shuffle(),
        lengths in proptest::collection::vec(1usize..12, 2),
    ) {
        let columns = lengths.iter().max().unwrap().div_ceil(page);
        prop_assume!(columns <= 6);
        let pages = &shuffle[..2 * columns];
        let heads = kv_heads * group;
        let slots = 12 * page;
        let row = kv_heads * dim;
        let (mut k, mut v) = (vec![f32::NAN; slots * row], vec![f32::NAN; slots * row]);
        for (s, len) in lengths.iter().enumerate() {
            for j in 0..*len {
                let at = (pages[s * columns + j / page] as usize * page + j % page) * row;
                k[at..at + row].copy_from_slice(&numbers(row, seed ^ (at as u64 + 1)));
                v[at..at + row].copy_from_slice(&numbers(row, seed ^ (at as u64 + 100_000)));
            }
        }
        let seq: Vec<i32> = (0..n).map(|t| ((seed >> t) & 1) as i32).collect();
        let pos: Vec<i32> =
            seq.iter().enumerate().map(|(t, s)| ((seed >> (3 * t)) as usize % lengths[*s as usize]) as i32).collect();
        let syms = Syms::default();
        let mut b = Builder::new(&syms, Function::new("f", Kind::Graph));
        let q = b.arg("q", Ty::tensor(DType::F32, vec![n.into(), heads.into(), dim.into()]));
        let state = KvTy { slots: slots.into(), heads: kv_heads, dim, dtype: DType::F32 };
        let state = b.arg("state", Ty::Kv(state));
        let ints: Vec<Value> = [vec![n], vec![n], vec![2, columns]]
            .into_iter()
            .map(|s| b.arg("i", Ty::tensor(DType::I32, s.into_iter().map(Dim::from).collect())))
            .collect();
        let operands = [&[q, state][..], &ints].concat();
        let cap = if capped { 2.0 } else { 0.0 };
        let attrs = vec![Attr::float(0.7), Attr::Int(window), Attr::float(cap), Attr::Int(page as i64)];
        let (op, slopes) = match sloped {
            true => (Op::AttendSloped, vec![Attr::floats(&numbers(heads, seed ^ 3))]),
            false => (Op::Attend, vec![]),
        };
        let pieces = b.emit(Op::AttendParts, &operands, [&attrs[..], &[Attr::Int(parts)]].concat()).unwrap();
        let merge = Op::AttendMerge.info().expand.unwrap()(&mut b, &[pieces], &[]).unwrap();
        let attrs = [attrs, slopes].concat();
        let direct = b.emit(op, &operands, attrs.clone()).unwrap();
        let expanded = op.info().expand.unwrap()(&mut b, &operands, &attrs).unwrap();
        b.func.results = vec![("a".into(), direct), ("b".into(), expanded), ("c".into(), merge)];
        let args = vec![
            Val::Tensor(Tensor::f32(&[n, heads, dim], numbers(n * heads * dim, seed))),
            Val::Kv([k.into(), v.into()], [slots, kv_heads, dim]),
            Val::Tensor(Tensor::i32(&[n], &pos)),
            Val::Tensor(Tensor::i32(&[n], &seq)),
            Val::Tensor(Tensor::i32(&[2, columns], pages)),
        ];
        let results = run(&b.func, &syms, &[], args);
        let [Val::Tensor(a), Val::Tensor(b), Val::Tensor(c)] = &results[..] else { panic!() };
        let (a, b, c) = (a.to_f32().unwrap(), b.to_f32().unwrap(), c.to_f32().unwrap());
        prop_assert!(a.iter().all(|v| v.is_finite()));
        prop_assert!(distance(&a, &b) < 1e-5, "{}", distance(&a, &b));
        if !sloped {
            prop_assert!(distance(&a, &c) < 1e-5, "pieces: {}", distance(&a, &c));
        }
    }
}

fn elems() -> impl Strategy<Value = Elem> {
    let mut all: Vec<Elem> =
        DType::ALL.into_iter().flat_map(|d| [Elem::Scalar(d), Elem::Scalar(d), Elem::Rows8(d)]).collect();
    all.extend([Elem::Scalar(DType::F32); 20]);
    all.extend([Elem::Scalar(DType::I32); 6]);
    all.extend(GgufType::ALL.into_iter().flat_map(|t| [Elem::Gguf(t), Elem::Packed(Packed::for_gguf(t))]));
    all.push(Elem::Act8);
    proptest::sample::select(all)
}

fn dims() -> impl Strategy<Value = Dim> {
    let sizes = proptest::sample::select(vec![1i64, 1, 2, 3, 8, 16, 32, 64, 256]).prop_map(Dim::from);
    let symbols = (0u32..3, 0i64..3, -1i64..3).prop_map(|(s, a, b)| Dim::from(Sym(s)) * Dim::from(a) + Dim::from(b));
    let odd = any::<i64>().prop_map(Dim::from);
    prop_oneof![8 => sizes, 3 => symbols, 1 => odd]
}

fn shapes() -> impl Strategy<Value = Vec<Dim>> {
    proptest::collection::vec(dims(), 0..4)
}

fn tys() -> impl Strategy<Value = Ty> {
    let kv = (dims(), 0usize..5, 0usize..5)
        .prop_map(|(slots, heads, dim)| Ty::Kv(KvTy { slots, heads, dim, dtype: DType::F32 }));
    prop_oneof![8 => (elems(), shapes()).prop_map(|(e, s)| Ty::tensor(e, s)), 1 => kv]
}

fn attr(kind: AttrKind) -> BoxedStrategy<Attr> {
    let ints = || prop_oneof![6 => -2i64..5, 1 => any::<i64>(), 2 => proptest::sample::select(vec![8i64, 16, 32])];
    let floats =
        || prop_oneof![any::<f32>(), any::<u32>().prop_map(f32::from_bits), Just(1.0), Just(f32::NEG_INFINITY)];
    match kind {
        AttrKind::Int => ints().prop_map(Attr::Int).boxed(),
        AttrKind::Float => floats().prop_map(Attr::float).boxed(),
        AttrKind::Bool => any::<bool>().prop_map(Attr::Bool).boxed(),
        AttrKind::Str => ".{0,8}".prop_map(Attr::Str).boxed(),
        AttrKind::Ints => proptest::collection::vec(ints(), 0..4).prop_map(Attr::Ints).boxed(),
        AttrKind::Floats => proptest::collection::vec(floats(), 0..4).prop_map(|v| Attr::floats(&v)).boxed(),
        AttrKind::Shape => shapes().prop_map(Attr::Shape).boxed(),
        AttrKind::DType => proptest::sample::select(DType::ALL.to_vec()).prop_map(Attr::DType).boxed(),
        AttrKind::Elem => elems().prop_map(Attr::Elem).boxed(),
    }
}

/// An operator with operands and attributes of the right number and kind, and nothing else right about them.
fn operations() -> impl Strategy<Value = (Op, Vec<Ty>, Vec<Attr>)> {
    let any = Op::ALL.iter().map(|&op| {
        let info = op.info();
        let operands = match op.is_variadic() {
            true => proptest::collection::vec(tys(), 1..4),
            false => proptest::collection::vec(tys(), info.operands.len()),
        };
        let attrs: Vec<BoxedStrategy<Attr>> = info.attrs.iter().map(|(_, k)| attr(*k)).collect();
        (Just(op), operands, attrs).boxed()
    });
    Union::new(any.collect::<Vec<_>>())
}

fn syms() -> Syms {
    let mut s = Syms::default();
    s.declare("n", 1, 64, 1);
    s.declare("m", 8, 512, 8);
    s.declare("odd name", 0, i64::MAX, 1);
    s
}

/// A module with that operation, typed by its rule where the rule accepts it, or as its first operand (or f32) where not.
fn module(op: Op, operands: &[Ty], attrs: &[Attr]) -> (Module, bool) {
    let syms = syms();
    let mut f = Function::new("f", Kind::Graph);
    for (i, t) in operands.iter().enumerate() {
        let v = f.value(t.clone(), None);
        f.args.push((format!("x{i}"), v));
    }
    let given = (op.info().infer)(&syms, &operands.iter().collect::<Vec<_>>(), attrs);
    let fits = given.is_ok();
    let ty = given.unwrap_or_else(|_| operands.first().cloned().unwrap_or(Ty::tensor(DType::F32, vec![])));
    let args: Vec<Value> = f.args.iter().map(|(_, v)| *v).collect();
    let y = f.value(ty, None);
    f.insts.push(Inst { op, operands: args, attrs: attrs.to_vec(), results: vec![y] });
    f.results.push(("y".into(), y));
    (Module { syms, functions: vec![f], ..Module::default() }, fits)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_operation_prints_reads_and_is_judged_without_panic((op, operands, attrs) in operations()) {
        let (m, fits) = module(op, &operands, &attrs);
        let text = print_module(&m);
        let back = parse_module(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert!(back == m, "{text}\n{}", print_module(&back));
        let errors = verify(&back);
        if fits {
            prop_assert!(errors.is_empty(), "{text}{errors:?}");
        } else if !matches!(op, Op::Param | Op::State | Op::Call) {
            prop_assert!(!errors.is_empty(), "{text}");
        }
        // What the rule accepts can be expanded, unless the expansion needs constant sizes.
        if let (true, Some(expand)) = (fits, op.info().expand) {
            let f = &back.functions[0];
            let mut b = Builder::new(&back.syms, Function::new("g", Kind::Graph));
            let args: Vec<Value> = f.args.iter().map(|(n, v)| b.arg(n.clone(), f.ty(*v).clone())).collect();
            if let Ok(y) = expand(&mut b, &args, &attrs) {
                prop_assert_eq!(b.func.ty(y), f.ty(f.results[0].1), "{}", text);
            }
        }
    }
}

#[test]
fn declarations_are_checked() {
    let ty = Ty::tensor(DType::F32, vec![4.into()]);
    let (mut m, _) = module(Op::Param, &[], &[Attr::Str("w".into())]);
    m.functions[0].values[0].ty = ty.clone();
    assert!(verify(&m)[0].contains("`w` is not declared"));
    m.params.push(Decl { name: "w".into(), ty });
    assert_eq!(verify(&m), Vec::<String>::new());
}

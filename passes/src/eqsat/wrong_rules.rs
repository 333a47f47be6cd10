//! The harness is tested: each of these rules is wrong in one detail and must be caught, through the entry that real rules
//! take. A harness that misses one is broken.

use egg::Id;
use marquetry_ir::DType;
use marquetry_ir::graph::{Attr, Op, parse_module, verify};

use super::facts::{Graph, add};
use super::rules::{Bound, Build, Needs, Rule};
use super::soundness::check;
use super::{Exact, Phase};

struct Wrong {
    name: &'static str,
    exact: Exact,
    lhs: &'static str,
    build: Build,
    /// Declarations before the function.
    decls: &'static str,
    /// Arguments and body.
    body: &'static str,
    /// What shows it, see `Fault::kind`.
    by: &'static str,
}

fn attr(g: &Graph, b: &Bound<'_>, name: &str) -> Option<Attr> {
    g[b.id(name)?].data.attr.clone()
}

fn ints(g: &Graph, b: &Bound<'_>, name: &str) -> Option<Vec<i64>> {
    if let Attr::Ints(v) = attr(g, b, name)? { Some(v) } else { None }
}

fn scalar(g: &mut Graph, v: f32) -> Option<Id> {
    add(g, Op::Const, &[], vec![Attr::float(v), Attr::Shape(vec![]), Attr::DType(DType::F32)])
}

fn shape(dims: &[i64]) -> Attr {
    Attr::Shape(dims.iter().map(|d| (*d).into()).collect())
}

const MEAN: &str = "%2 = mul %0, %0 : f32[n, 8]
    %3 = reduce_sum %2 : f32[n, 1]
    %4 = const {value = 0.125, shape = [], dtype = f32} : f32[]
    %5 = mul %3, %4 : f32[n, 1]
    %6 = const {value = 0.1, shape = [], dtype = f32} : f32[]
    %7 = add %5, %6 : f32[n, 1]
    %8 = rsqrt %7 : f32[n, 1]
    %9 = mul %0, %8 : f32[n, 8]";

const N: &str = "sym \"n\" in 1..=16";

#[rustfmt::skip]
const WRONG: &[Wrong] = &[
    Wrong {
        name: "truncation moved over a product", exact: Exact::Bitwise,
        lhs: "(mul (cast ?x ?i) ?c)",
        build: |g, b| {
            let two = scalar(g, 2.0)?;
            let y = add(g, Op::Mul, &[b.id("x")?, two], vec![])?;
            add(g, Op::Cast, &[y], vec![attr(g, b, "i")?])
        },
        decls: N,
        body: "(%0 \"x\": f32[n, 4]) {
            %1 = cast %0 {to = i32} : i32[n, 4]
            %2 = const {value = 2.0, shape = [], dtype = i32} : i32[]
            %3 = mul %1, %2 : i32[n, 4]
            return \"y\" = %3", by: "bits",
    },
    Wrong {
        name: "min distributed over a negative factor", exact: Exact::Bitwise,
        lhs: "(mul (min ?a ?b) ?c)",
        build: |g, b| {
            let c = b.id("c")?;
            let (x, y) = (add(g, Op::Mul, &[b.id("a")?, c], vec![])?, add(g, Op::Mul, &[b.id("b")?, c], vec![])?);
            add(g, Op::Min, &[x, y], vec![])
        },
        decls: N,
        body: "(%0 \"a\": f32[n], %1 \"b\": f32[n]) {
            %2 = min %0, %1 : f32[n]
            %3 = const {value = -2.0, shape = [], dtype = f32} : f32[]
            %4 = mul %2, %3 : f32[n]
            return \"y\" = %4", by: "bits",
    },
    Wrong {
        name: "norm gain moved over a bias", exact: Exact::Reassociates,
        lhs: "(linear (add (mul ?n ?g) ?b) ?w)",
        build: |g, b| {
            let x = add(g, Op::Add, &[b.id("n")?, b.id("b")?], vec![])?;
            let w = add(g, Op::Mul, &[b.id("w")?, b.id("g")?], vec![])?;
            add(g, Op::Linear, &[x, w], vec![])
        },
        decls: "sym \"n\" in 1..=16\nparam \"g\": f32[1, 8]\nparam \"b\": f32[1, 8]\nparam \"w\": f32[4, 8]",
        body: "(%0 \"x\": f32[n, 8]) {
            %1 = param {name = \"g\"} : f32[1, 8]
            %2 = param {name = \"b\"} : f32[1, 8]
            %3 = param {name = \"w\"} : f32[4, 8]
            %4 = mul %0, %1 : f32[n, 8]
            %5 = add %4, %2 : f32[n, 8]
            %6 = linear %5, %3 : f32[n, 4]
            return \"y\" = %6", by: "bound",
    },
    Wrong {
        name: "softmax over the wrong axis", exact: Exact::Reassociates,
        lhs: "(permute (softmax (permute ?x ?p)) ?q)",
        build: |g, b| add(g, Op::Softmax, &[b.id("x")?], vec![]),
        decls: N,
        body: "(%0 \"x\": f32[n, 4]) {
            %1 = permute %0 {perm = [1, 0]} : f32[4, n]
            %2 = softmax %1 : f32[4, n]
            %3 = permute %2 {perm = [1, 0]} : f32[n, 4]
            return \"y\" = %3", by: "bound",
    },
    Wrong {
        name: "transposed concat keeps its axis", exact: Exact::Bitwise,
        lhs: "(concat (permute ?a ?p) (permute ?b ?p) ?x)",
        build: |g, b| {
            let c = add(g, Op::Concat, &[b.id("a")?, b.id("b")?], vec![attr(g, b, "x")?])?;
            add(g, Op::Permute, &[c], vec![attr(g, b, "p")?])
        },
        decls: "",
        body: "(%0 \"a\": f32[4, 4], %1 \"b\": f32[4, 4]) {
            %2 = permute %0 {perm = [1, 0]} : f32[4, 4]
            %3 = permute %1 {perm = [1, 0]} : f32[4, 4]
            %4 = concat %2, %3 {axis = 0} : f32[8, 4]
            return \"y\" = %4", by: "types",
    },
    Wrong {
        name: "concat in the other order", exact: Exact::Bitwise,
        lhs: "(concat ?a ?b ?x)",
        build: |g, b| add(g, Op::Concat, &[b.id("b")?, b.id("a")?], vec![attr(g, b, "x")?]),
        decls: N,
        body: "(%0 \"a\": f32[n, 2], %1 \"b\": f32[n, 3]) {
            %2 = concat %0, %1 {axis = 1} : f32[n, 5]
            return \"y\" = %2", by: "bits",
    },
    Wrong {
        name: "heads repeated as a whole instead of one by one", exact: Exact::Bitwise,
        lhs: "(reshape (broadcast (reshape ?k ?a) ?b) ?c)",
        build: |g, b| {
            let dims = attr(g, b, "a")?.as_shape().to_vec();
            let wide = attr(g, b, "b")?.as_shape().to_vec();
            let swap = |d: &[marquetry_ir::Dim]| {
                Attr::Shape(vec![d[0].clone(), d[2].clone(), d[1].clone(), d[3].clone()])
            };
            let k = add(g, Op::Reshape, &[b.id("k")?], vec![swap(&dims)])?;
            let k = add(g, Op::Broadcast, &[k], vec![swap(&wide)])?;
            add(g, Op::Reshape, &[k], vec![attr(g, b, "c")?])
        },
        decls: N,
        body: "(%0 \"k\": f32[n, 2, 4]) {
            %1 = reshape %0 {shape = [n, 2, 1, 4]} : f32[n, 2, 1, 4]
            %2 = broadcast %1 {shape = [n, 2, 3, 4]} : f32[n, 2, 3, 4]
            %3 = reshape %2 {shape = [n, 6, 4]} : f32[n, 6, 4]
            return \"y\" = %3", by: "bits",
    },
    Wrong {
        name: "rotary kinds swapped", exact: Exact::Bitwise,
        lhs: "(rope_apply ?x ?t false)",
        build: |g, b| add(g, Op::RopeApply, &[b.id("x")?, b.id("t")?], vec![Attr::Bool(true)]),
        decls: N,
        body: "(%0 \"x\": f32[n, 2, 8], %1 \"t\": f32[n, 8]) {
            %2 = rope_apply %0, %1 {interleaved = false} : f32[n, 2, 8]
            return \"y\" = %2", by: "bits",
    },
    Wrong {
        name: "casts through a narrower type joined", exact: Exact::Bitwise,
        lhs: "(cast (cast ?x ?a) ?b)",
        build: |g, b| add(g, Op::Cast, &[b.id("x")?], vec![attr(g, b, "b")?]),
        decls: N,
        body: "(%0 \"x\": f32[n, 4]) {
            %1 = cast %0 {to = f16} : f16[n, 4]
            %2 = cast %1 {to = f32} : f32[n, 4]
            return \"y\" = %2", by: "bits",
    },
    Wrong {
        name: "slice of concat off by one", exact: Exact::Bitwise,
        lhs: "(slice (concat ?a ?b ?x) ?x ?s ?l)",
        build: |g, b| {
            let part = [attr(g, b, "x")?, Attr::Int(attr(g, b, "s")?.as_int() - 3), attr(g, b, "l")?];
            add(g, Op::Slice, &[b.id("b")?], part.to_vec())
        },
        decls: N,
        body: "(%0 \"a\": f32[n, 4], %1 \"b\": f32[n, 6]) {
            %2 = concat %0, %1 {axis = 1} : f32[n, 10]
            %3 = slice %2 {axis = 1, start = 4, len = 5} : f32[n, 5]
            return \"y\" = %3", by: "bits",
    },
    Wrong {
        name: "permutations composed the wrong way round", exact: Exact::Bitwise,
        lhs: "(permute (permute ?x ?p) ?q)",
        build: |g, b| {
            let (p, q) = (ints(g, b, "p")?, ints(g, b, "q")?);
            let both = p.iter().map(|i| q[*i as usize]).collect();
            add(g, Op::Permute, &[b.id("x")?], vec![Attr::Ints(both)])
        },
        decls: "",
        body: "(%0 \"x\": f32[3, 3, 3]) {
            %1 = permute %0 {perm = [1, 2, 0]} : f32[3, 3, 3]
            %2 = permute %1 {perm = [1, 0, 2]} : f32[3, 3, 3]
            return \"y\" = %2", by: "bits",
    },
    Wrong {
        name: "relu by comparison keeps NaN", exact: Exact::Bitwise,
        lhs: "(max ?x ?z)",
        build: |g, b| {
            g[b.id("z")?].data.constant?;
            let below = add(g, Op::Lt, &[b.id("x")?, b.id("z")?], vec![])?;
            add(g, Op::Select, &[below, b.id("z")?, b.id("x")?], vec![])
        },
        decls: N,
        body: "(%0 \"x\": f32[n, 8]) {
            %1 = const {value = 0.0, shape = [], dtype = f32} : f32[]
            %2 = max %0, %1 : f32[n, 8]
            return \"y\" = %2", by: "bits",
    },
    Wrong {
        name: "eps outside of the root", exact: Exact::Reassociates,
        lhs: "(mul ?x (rsqrt (add ?m ?e)))",
        build: |g, b| {
            let r = add(g, Op::Rsqrt, &[b.id("m")?], vec![])?;
            let r = add(g, Op::Add, &[r, b.id("e")?], vec![])?;
            add(g, Op::Mul, &[b.id("x")?, r], vec![])
        },
        decls: N,
        body: "MEAN
            return \"y\" = %9", by: "bound",
    },
    Wrong {
        name: "gain along the wrong axis", exact: Exact::Bitwise,
        lhs: "(mul (mul ?x ?r) (reshape ?w ?s))",
        build: |g, b| add(g, Op::RmsNorm, &[b.id("x")?, b.id("w")?], vec![Attr::float(0.1)]),
        decls: "",
        body: "(%0 \"x\": f32[8, 8], %1 \"w\": f32[8]) {
            %2 = mul %0, %0 : f32[8, 8]
            %3 = reduce_sum %2 : f32[8, 1]
            %4 = const {value = 0.125, shape = [], dtype = f32} : f32[]
            %5 = mul %3, %4 : f32[8, 1]
            %6 = const {value = 0.1, shape = [], dtype = f32} : f32[]
            %7 = add %5, %6 : f32[8, 1]
            %8 = rsqrt %7 : f32[8, 1]
            %9 = mul %0, %8 : f32[8, 8]
            %10 = reshape %1 {shape = [8, 1]} : f32[8, 1]
            %11 = mul %9, %10 : f32[8, 8]
            return \"y\" = %11", by: "bits",
    },
    Wrong {
        name: "softcap with two caps", exact: Exact::Bitwise,
        lhs: "(mul (tanh (div ?x ?a)) ?b)",
        build: |g, b| {
            let cap = g[b.id("a")?].data.constant?;
            add(g, Op::Softcap, &[b.id("x")?], vec![Attr::Float(cap)])
        },
        decls: N,
        body: "(%0 \"x\": f32[n, 8]) {
            %1 = const {value = 2.0, shape = [], dtype = f32} : f32[]
            %2 = div %0, %1 : f32[n, 8]
            %3 = tanh %2 : f32[n, 8]
            %4 = const {value = 2.5, shape = [], dtype = f32} : f32[]
            %5 = mul %3, %4 : f32[n, 8]
            return \"y\" = %5", by: "bits",
    },
    Wrong {
        name: "gelu kinds swapped", exact: Exact::Reassociates,
        lhs: "(gelu ?x false)",
        build: |g, b| add(g, Op::Gelu, &[b.id("x")?], vec![Attr::Bool(true)]),
        decls: N,
        body: "(%0 \"x\": f32[n, 8]) {
            %1 = gelu %0 {tanh = false} : f32[n, 8]
            return \"y\" = %1", by: "bound",
    },
    Wrong {
        name: "rounding of activations dropped", exact: Exact::Reassociates,
        lhs: "(qlinear (quantize ?x) ?w)",
        build: |g, b| add(g, Op::Linear, &[b.id("x")?, b.id("w")?], vec![]),
        decls: "sym \"n\" in 1..=16\nparam \"w\": gguf.q8_0[8, 64]",
        body: "(%0 \"x\": f32[n, 64]) {
            %1 = param {name = \"w\"} : gguf.q8_0[8, 64]
            %2 = pack %1 {elem = pack.b8g32f16z128x255} : pack.b8g32f16z128x255[8, 64]
            %3 = quantize %0 : act8[n, 64]
            %4 = qlinear %3, %2 : f32[n, 8]
            return \"y\" = %4", by: "bound",
    },
    Wrong {
        name: "division by 3 as an exact product", exact: Exact::Bitwise,
        lhs: "(div ?x ?c)",
        build: |g, b| {
            let c = f32::from_bits(g[b.id("c")?].data.constant?);
            let inverse = scalar(g, 1.0 / c)?;
            add(g, Op::Mul, &[b.id("x")?, inverse], vec![])
        },
        decls: N,
        body: "(%0 \"x\": f32[n, 8]) {
            %1 = const {value = 3.0, shape = [], dtype = f32} : f32[]
            %2 = div %0, %1 : f32[n, 8]
            return \"y\" = %2", by: "bits",
    },
    Wrong {
        name: "window one position too long", exact: Exact::Bitwise,
        lhs: "(attend ?q ?s ?p ?e ?g ?a ?w ?c ?n)",
        build: |g, b| {
            let operands = ["q", "s", "p", "e", "g"].map(|v| b.id(v)).into_iter().collect::<Option<Vec<_>>>()?;
            let window = attr(g, b, "w")?.as_int();
            (window == 3).then_some(())?;
            let attrs = vec![attr(g, b, "a")?, Attr::Int(window + 1), attr(g, b, "c")?, attr(g, b, "n")?];
            add(g, Op::Attend, &operands, attrs)
        },
        decls: "sym \"n\" in 1..=16\nstate \"kv\": kv.f32[32, 1, 4]",
        body: "(%0 \"q\": f32[n, 2, 4], %1 \"pos\": i32[n], %2 \"seq\": i32[n], %3 \"pages\": i32[1, 4]) {
            %4 = state {name = \"kv\"} : kv.f32[32, 1, 4]
            %5 = attend %0, %4, %1, %2, %3 {scale = 0.5, window = 3, softcap = 0.0, page = 8} : f32[n, 2, 4]
            return \"y\" = %5", by: "bits",
    },
    Wrong {
        name: "reshape over a permutation", exact: Exact::Bitwise,
        lhs: "(reshape (permute ?x ?p) ?s)",
        build: |g, b| add(g, Op::Reshape, &[b.id("x")?], vec![attr(g, b, "s")?]),
        decls: N,
        body: "(%0 \"x\": f32[n, 2, 3]) {
            %1 = permute %0 {perm = [0, 2, 1]} : f32[n, 3, 2]
            %2 = reshape %1 {shape = [n, 6]} : f32[n, 6]
            return \"y\" = %2", by: "bits",
    },
    Wrong {
        name: "repeated along the wrong axis", exact: Exact::Bitwise,
        lhs: "(broadcast (reshape ?x ?s) ?t)",
        build: |g, b| {
            let row = add(g, Op::Reshape, &[b.id("x")?], vec![shape(&[1, 4])])?;
            add(g, Op::Broadcast, &[row], vec![attr(g, b, "t")?])
        },
        decls: "",
        body: "(%0 \"x\": f32[4]) {
            %1 = reshape %0 {shape = [4, 1]} : f32[4, 1]
            %2 = broadcast %1 {shape = [4, 4]} : f32[4, 4]
            return \"y\" = %2", by: "bits",
    },
    Wrong {
        name: "gate and up interleaved in the other order", exact: Exact::Bitwise,
        lhs: "(concat_rows ?a ?b 8)",
        build: |g, b| add(g, Op::ConcatRows, &[b.id("b")?, b.id("a")?], vec![Attr::Int(8)]),
        decls: "sym \"n\" in 1..=16\nparam \"a\": f32[8, 16]\nparam \"b\": f32[8, 16]",
        body: "(%0 \"x\": f32[n, 16]) {
            %1 = param {name = \"a\"} : f32[8, 16]
            %2 = param {name = \"b\"} : f32[8, 16]
            %3 = pack %1 {elem = rows8.f32} : rows8.f32[8, 16]
            %4 = pack %2 {elem = rows8.f32} : rows8.f32[8, 16]
            %5 = concat_rows %3, %4 {interleave = 8} : rows8.f32[16, 16]
            %6 = glu_linear %0, %5 {act = 0} : f32[n, 8]
            return \"y\" = %6", by: "bits",
    },
    Wrong {
        name: "a state read before its update", exact: Exact::Bitwise,
        lhs: "(kv_read (kv_append ?s ?k ?v ?i) ?w)",
        build: |g, b| add(g, Op::KvRead, &[b.id("s")?], vec![attr(g, b, "w")?]),
        decls: "sym \"n\" in 1..=16\nstate \"kv\": kv.f32[32, 1, 4]",
        body: "(%0 \"k\": f32[n, 1, 4], %1 \"slot\": i32[n]) {
            %2 = state {name = \"kv\"} : kv.f32[32, 1, 4]
            %3 = kv_append %2, %0, %0, %1 : kv.f32[32, 1, 4]
            %4 = kv_read %3 {which = 0} : f32[32, 1, 4]
            return \"y\" = %4", by: "bits",
    },
    Wrong {
        name: "a reshape forgotten", exact: Exact::Bitwise,
        lhs: "(reshape ?x ?s)",
        build: |_, b| b.id("x"),
        decls: N,
        body: "(%0 \"x\": f32[n, 6]) {
            %1 = reshape %0 {shape = [n, 2, 3]} : f32[n, 2, 3]
            return \"y\" = %1", by: "types",
    },
];

#[test]
fn every_wrong_rule_is_caught() {
    let mut missed = vec![];
    for w in WRONG {
        let body = w.body.replace("MEAN", &format!("(%0 \"x\": f32[n, 8], %1 \"w\": f32[8]) {{\n    {MEAN}"));
        let text = format!("{}\nfunc @f{body}\n}}", w.decls);
        let m = parse_module(&text).unwrap_or_else(|e| panic!("{}: {e}\n{text}", w.name));
        assert_eq!(verify(&m), Vec::<String>::new(), "{}", w.name);
        let rule = Rule {
            name: w.name,
            phase: Phase::Fuse,
            exact: w.exact,
            needs: Needs::Nothing,
            lhs: w.lhs,
            rhs: "",
            build: w.build,
            doc: "",
            guard: "",
        };
        let found = check(&rule, &m, 0..64).err();
        println!("{:<48} {}", w.name, found.as_ref().map_or("MISSED".into(), |f| f.to_string()));
        if found.is_none_or(|f| f.kind() != w.by) {
            missed.push(w.name);
        }
    }
    assert!(WRONG.len() >= 20);
    assert!(missed.is_empty(), "not caught as they should be: {missed:?}");
}

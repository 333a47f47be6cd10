//! The text form reads back what it prints, and refuses everything else with a place.

use marquetry_ir::loops::micro::{self, Attend};
use marquetry_ir::loops::{BinOp, Buf, Expr, Kernel, LoopKind, Micro, MicroOp, Node, Scope, Stmt, UnOp, Var, dim_expr};
use marquetry_ir::program::{Buffer, BufferId, KernelId, Launch, Place, Program, State, Weight};
use marquetry_ir::text::{parse_kernel, parse_program, print_kernel, print_program};
use marquetry_ir::{DType, Dim, Elem, GgufType, Packed, Sym, Syms};
use proptest::prelude::*;

fn syms() -> Syms {
    let mut s = Syms::default();
    s.declare("n", 1, 2048, 1);
    s.declare("nseq", 1, 64, 8);
    s.declare("n", 1, 4, 1);
    s.declare("inf", 1, 4, 1);
    s.declare("a b", 1, 4, 1);
    s
}

fn check_kernel(k: &Kernel, syms: &Syms) {
    let text = print_kernel(k, syms);
    let back = parse_kernel(&text, syms).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(&back, k, "\n{text}");
    assert_eq!(print_kernel(&back, syms), text);
}

fn check_program(p: &Program) {
    let text = print_program(p);
    let back = parse_program(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(&back, p, "\n{text}");
    assert_eq!(print_program(&back), text);
}

/// A quantized product over packed weights.
fn qlinear() -> Kernel {
    let n = Dim::from(Sym(0));
    let mut k = Kernel::new("qlinear_1");
    let x = k.buffer("x", DType::U32, vec![n.clone(), 144.into()], Scope::In);
    let w = k.buffer("w", DType::U32, vec![192.into(), 18.into(), 4.into(), 8.into()], Scope::In);
    let y = k.buffer("y", DType::F32, vec![n.clone() * 2.into() + 1.into(), 1536.into()], Scope::Out);
    let acc = k.buffer("acc", DType::F32, vec![8.into()], Scope::Reg);
    let [i, gone, g, p, t] = ["i", "i", "g", "p", "t"].map(|s| k.fresh(s));
    let at = |v| Expr::var(v);
    let load8 = |b, ix, d| Expr::new(Node::Load(b, ix), d, 8);
    let zero = Expr::int(0, DType::I32).splat(8);
    let t_value = load8(w, vec![at(i), at(g), at(p), Expr::idx(0)], DType::U32);
    let tv = Expr::new(Node::Var(t), DType::U32, 8);
    let low = tv.clone() & 0x0f0f_0f0f;
    let word = k.load(x, vec![Expr::idx(0), at(g) * 8 + at(p)]);
    let dot = Expr::dot4(zero, low, word, 15).cast(DType::F32);
    let total = dot.fma(Expr::float(0.1), load8(acc, vec![Expr::idx(0)], DType::F32));
    let inner =
        vec![Stmt::Let { var: t, value: t_value }, Stmt::Store { buf: acc, index: vec![Expr::idx(0)], value: total }];
    let unroll = Stmt::For { var: p, extent: Expr::idx(4), kind: LoopKind::Unroll, body: inner };
    let groups = Stmt::For { var: g, extent: Expr::idx(18), kind: LoopKind::Serial, body: vec![unroll] };
    let done = load8(acc, vec![Expr::idx(0)], DType::F32);
    let guarded = Stmt::If {
        cond: (at(i) * 8).lt(dim_expr(&(n * 3.into()))),
        then: vec![Stmt::Store { buf: y, index: vec![Expr::idx(0), at(i) * 8], value: done.clone() }],
        other: vec![Stmt::Store { buf: y, index: vec![Expr::idx(0), at(i)], value: done.reduce(BinOp::Add) }],
    };
    k.body = vec![Stmt::For { var: i, extent: Expr::idx(192), kind: LoopKind::Parallel, body: vec![groups, guarded] }];
    k.trace = vec!["split i by 8".into(), "unroll \"p\"".into()];
    assert_eq!(k.vars[gone.0 as usize], "i");
    k
}

#[test]
fn a_kernel_prints_readably() {
    let want = r#"kernel @qlinear_1(%x: u32[n, 144] in, %w: u32[192, 18, 4, 8] in, %y: f32[2*n + 1, 1536] out) {
  reg %acc: f32[8]
  var i.1
  trace "split i by 8"
  trace "unroll \"p\""
  parallel i.0 in 0..192 {
    for g.2 in 0..18 {
      unroll p.3 in 0..4 {
        let t.4 = %w[i.0, g.2, p.3, 0; 8]
        store %acc[0] = fma(cast.f32(dot4.15(splat.8(0:i32), t.4 & splat.8(252645135:u32), splat.8(%x[0, g.2 * 8 + p.3]))), splat.8(0.1), %acc[0; 8])
      }
    }
    if i.0 * 8 < n * 3 {
      store %y[0, i.0 * 8] = %acc[0; 8]
    } else {
      store %y[0, i.0] = reduce.add(%acc[0; 8])
    }
  }
}
"#;
    let k = qlinear();
    assert_eq!(print_kernel(&k, &syms()), want);
    check_kernel(&k, &syms());
}

#[test]
fn programs_read_back() {
    let f32_ = Elem::Scalar(DType::F32);
    let mut p = Program {
        name: "decode step".into(),
        syms: syms(),
        weights: vec![
            Weight {
                sources: vec!["model.q.weight".into(), "model.k.weight".into()],
                interleave: 16,
                from: Elem::Gguf(GgufType::Q4K),
                elem: Elem::Packed(Packed::for_gguf(GgufType::Q4K)),
                shape: vec![1536, 576],
            },
            Weight { sources: vec![], interleave: 0, from: f32_, elem: Elem::Rows8(DType::F16), shape: vec![] },
        ],
        states: vec![State { name: "kv.3.k".into(), dtype: DType::F16, shape: vec![Sym(1).into(), 192.into()] }],
        buffers: vec![],
        kernels: vec![qlinear(), Kernel::new("empty")],
        launches: vec![],
        constants: vec![vec![0x3f80_0000, 0x7fc0_0001]],
        arena_bytes: u64::MAX,
        own_bytes: u64::MAX,
    };
    let places = [
        Place::Input("to\"kens".into()),
        Place::Output("logits".into()),
        Place::State(0),
        Place::Weight(1, 1 << 40),
        Place::Constant(0),
        Place::Arena(64),
        Place::Own(128),
    ];
    for (i, place) in places.into_iter().enumerate() {
        p.buffers.push(Buffer {
            name: format!("b.{i}"),
            dtype: DType::ALL[i],
            shape: vec![Sym(i as u32 % 5).into(); i],
            place,
        });
    }
    let launch =
        |k, args: &[u32], sync| Launch { kernel: KernelId(k), args: args.iter().map(|&a| BufferId(a)).collect(), sync };
    p.launches = vec![launch(1, &[], false), launch(0, &[0, 3, 1], true)];
    check_program(&p);
    let text = print_program(&p);
    assert!(
        text.starts_with("program @\"decode step\" arena 18446744073709551615 own 18446744073709551615 {\n  sym n in 1..=2048 multiple 1\n")
    );
    assert!(text.contains(
        "  weight [\"model.q.weight\", \"model.k.weight\"] interleave 16: gguf.q4_k -> pack.b4g32u8z0mx15[1536, 576]\n"
    ));
    assert!(text.contains("  sync launch @qlinear_1(%b.0, %b.3, %b.1)\n"));
}

#[test]
fn errors_name_place_and_expectation() {
    let cases = [
        ("", "1:1: IR001: expected `kernel`, found the end of the text"),
        (
            "kernel @k() {",
            "1:14: IR001: expected a statement (`for`, `parallel`, `unroll`, `let`, `store`, `if`, `micro`) or `}`, found the end of the text",
        ),
        ("kernel @k(%x: f33 in) {}", "1:15: IR001: expected an element type such as `f32`, found `f33`"),
        ("kernel @k(%x: f32[q] in) {}", "1:19: IR010: symbol `q` is not declared"),
        ("kernel @k(%x: f32 in, %x: f32 in) {}", "1:23: IR010: buffer `x` is declared twice"),
        ("kernel @k() {\n  store %x[0] = 1\n}", "2:9: IR010: buffer `%x` is not declared"),
        (
            "kernel @k() {\n  let a.0 = 1 +\n}",
            "3:1: IR001: expected an expression: a number, variable, size, buffer access, call or `(`, found `}`",
        ),
        ("kernel @k() { let a.0 = frob(1) }", "1:25: IR010: there is no function `frob`"),
        ("kernel @k() { let a.0 = min(1) }", "1:25: IR001: expected 2 operands of `min`, found 1"),
        ("kernel @k() { let a.0 = cast.f33(1) }", "1:25: IR001: expected `cast.TYPE`, found `cast.f33`"),
        ("kernel @k() { let a.0 = 1:f3 }", "1:27: IR001: expected a type such as `f32` or `f32x8`, found `f3`"),
        ("kernel @k() { let a.0 = 1 let b.0 = 2 }", "1:31: IR010: variable number 0 is called both `a` and `b`"),
        (
            "kernel @k() { let a.1 = 1 }",
            "1:28: IR010: variable `a.1` exists but none has the number 0; declare it: `var x.0`",
        ),
        ("kernel @k() { let a = 1 }", "1:19: IR001: expected a variable such as `i.0`, found `a`"),
        ("kernel @k() { let a.0 = 1e99 }", "1:25: IR001: `1e99` is too large a number"),
        ("kernel @k() { let a.0 = 9223372036854775808 }", "1:25: IR001: `9223372036854775808` is too large a number"),
        ("kernel @k() { for i.0 in 1..2 { } }", "1:26: IR001: expected `0..`, found `1`"),
        ("kernel @k() { } }", "1:17: IR001: expected the end of the text, found `}`"),
    ];
    for (text, want) in cases {
        let got = parse_kernel(text, &syms()).unwrap_err().to_string();
        assert!(got.starts_with(want), "{text}: {got}");
    }
    let cases = [
        ("program @p arena 0 { launch @k() }", "1:29: IR010: kernel `@k` is not declared"),
        ("program @p arena 0 { kernel @k() {} launch @k(%b) }", "1:47: IR010: buffer `%b` is not declared"),
        ("program @p arena 0 { kernel @k() {} kernel @k() {} }", "1:37: IR010: kernel `k` is declared twice"),
        (
            "program @p arena 0 { foo }",
            "1:22: IR001: expected `sym`, `weight`, `state`, `buffer`, `kernel`, `launch`, `sync` or `}`, found `foo`",
        ),
        (
            "program @p arena 0 { buffer %x: f32 nowhere }",
            "1:37: IR001: expected a place: `input`, `output`, `state`, `weight`, `constant`, `arena` or `own`, found `nowhere`",
        ),
    ];
    for (text, want) in cases {
        let got = parse_program(text).unwrap_err().to_string();
        assert!(got.starts_with(want), "{text}: {got}");
    }
}

#[test]
fn depth_is_limited() {
    let many = 100_000;
    let texts = [
        format!("kernel @k() {{ {}", "for i.0 in 0..2 { ".repeat(many)),
        format!("kernel @k() {{ {}", "if true { ".repeat(many)),
        format!("kernel @k() {{ let a.0 = {}", "(".repeat(many)),
        format!("kernel @k() {{ let a.0 = {}", "neg(".repeat(many)),
        format!("kernel @k() {{ let a.0 = 1{}", " + 1".repeat(many)),
        format!("kernel @k(%x: f32 in) {{ let a.0 = {}", "%x[".repeat(many)),
        format!("kernel @k(%x: f32[{}", "(".repeat(many)),
    ];
    for text in texts {
        let e = parse_kernel(&text, &syms()).unwrap_err();
        assert_eq!(e.code, "IR002", "{e}");
    }
    let e = parse_kernel("kernel @k() { var a.4294967295 }", &syms()).unwrap_err();
    assert_eq!(e.code, "IR010", "{e}");
}

const BINARY: [BinOp; 15] = [
    BinOp::Add,
    BinOp::Sub,
    BinOp::Mul,
    BinOp::Div,
    BinOp::Rem,
    BinOp::Min,
    BinOp::Max,
    BinOp::And,
    BinOp::Or,
    BinOp::Xor,
    BinOp::Shl,
    BinOp::Shr,
    BinOp::Lt,
    BinOp::Le,
    BinOp::Eq,
];

const UNARY: [UnOp; 12] = [
    UnOp::Neg,
    UnOp::Abs,
    UnOp::Sqrt,
    UnOp::Floor,
    UnOp::Round,
    UnOp::Exp,
    UnOp::Log,
    UnOp::Sin,
    UnOp::Cos,
    UnOp::Tanh,
    UnOp::Erf,
    UnOp::Not,
];

const VARS: [&str; 8] = ["i", "i", "load", "splat", "a b", "", "kv.k", "nan"];
const BUFFERS: [&str; 4] = ["x", "w.scale", "0", "odd name"];

fn dtype() -> impl Strategy<Value = DType> {
    prop::sample::select(DType::ALL.to_vec())
}

fn lanes() -> impl Strategy<Value = u16> {
    prop_oneof![4 => Just(1u16), 2 => Just(8), 1 => any::<u16>()]
}

fn int() -> impl Strategy<Value = i64> {
    prop_oneof![-3..10i64, any::<i64>(), Just(i64::MIN)]
}

/// Any expression, well typed or not.
fn expr() -> impl Strategy<Value = Expr> {
    let leaf = prop_oneof![
        int().prop_map(Expr::idx),
        (int(), dtype(), lanes()).prop_map(|(v, d, l)| Expr::new(Node::Int(v), d, l)),
        any::<u32>().prop_map(|b| Expr::new(Node::Float(b), DType::F32, 1)),
        (any::<u32>(), dtype(), lanes()).prop_map(|(b, d, l)| Expr::new(Node::Float(b), d, l)),
        (0..5u32).prop_map(|s| Expr::size(Sym(s))),
        (0..VARS.len() as u32).prop_map(|v| Expr::var(Var(v))),
        (0..VARS.len() as u32, dtype(), lanes()).prop_map(|(v, d, l)| Expr::new(Node::Var(Var(v)), d, l)),
    ];
    leaf.prop_recursive(5, 40, 3, |e| {
        let e2 = (e.clone(), e.clone());
        let e3 = (e.clone(), e.clone(), e.clone());
        let node = prop_oneof![
            (0..4u32, prop::collection::vec(e.clone(), 0..3)).prop_map(|(b, ix)| Node::Load(Buf(b), ix)),
            (prop::sample::select(UNARY.to_vec()), e.clone()).prop_map(|(op, a)| Node::Unary(op, a)),
            (prop::sample::select(BINARY.to_vec()), e2).prop_map(|(op, (a, b))| Node::Binary(op, a, b)),
            e3.clone().prop_map(|(a, b, c)| Node::Fma(a, b, c)),
            e3.clone().prop_map(|(a, b, c)| Node::Select(a, b, c)),
            e.clone().prop_map(Node::Cast),
            e.clone().prop_map(Node::Bitcast),
            (e3, any::<u8>()).prop_map(|((acc, w, x), w_max)| Node::Dot4 { acc, w, x, w_max }),
            e.clone().prop_map(Node::Splat),
            e.clone().prop_map(Node::Ramp),
            (prop::sample::select(BINARY.to_vec()), e).prop_map(|(op, a)| Node::Reduce(op, a)),
        ];
        // Half of them of the type of their first operand, as real ones mostly are.
        (node, dtype(), lanes(), any::<bool>()).prop_map(|(node, d, l, natural)| {
            let e = Expr::new(node, d, l);
            let first = e.children().first().map(|c| c.ty());
            match first {
                Some(t) if natural => Expr::new(e.node().clone(), t.dtype, t.lanes),
                _ => e,
            }
        })
    })
}

fn stmt() -> impl Strategy<Value = Stmt> {
    let var = 0..VARS.len() as u32;
    let place = (0..4u32, prop::collection::vec(expr(), 0..3)).prop_map(|(b, index)| (Buf(b), index));
    let leaf = prop_oneof![
        (var.clone(), expr()).prop_map(|(v, value)| Stmt::Let { var: Var(v), value }),
        (0..4u32, prop::collection::vec(expr(), 0..3), expr()).prop_map(|(b, index, value)| Stmt::Store {
            buf: Buf(b),
            index,
            value
        }),
        (micro_op(), prop::collection::vec(place, 0..3), prop::collection::vec(expr(), 0..3))
            .prop_map(|(op, args, sizes)| Stmt::Micro(Micro { op, args, sizes })),
    ];
    leaf.prop_recursive(3, 12, 3, move |s| {
        let body = prop::collection::vec(s, 0..3);
        let kind = prop::sample::select(vec![LoopKind::Serial, LoopKind::Parallel, LoopKind::Unroll]);
        prop_oneof![
            (0..VARS.len() as u32, expr(), kind, body.clone()).prop_map(|(v, extent, kind, body)| Stmt::For {
                var: Var(v),
                extent,
                kind,
                body
            }),
            (expr(), body.clone(), body).prop_map(|(cond, then, other)| Stmt::If { cond, then, other }),
        ]
    })
}

fn micro_op() -> impl Strategy<Value = MicroOp> {
    let packed = prop::sample::select(GgufType::ALL.to_vec()).prop_map(Packed::for_gguf);
    let float = prop::sample::select(vec![DType::F32, DType::F16, DType::BF16]);
    prop_oneof![
        packed.clone().prop_map(MicroOp::Dot),
        packed.clone().prop_map(MicroOp::UnpackPairs),
        packed.prop_map(MicroOp::Unpack),
        Just(MicroOp::Pairs),
        (any::<bool>(), float.clone())
            .prop_map(|(silu, d)| MicroOp::Gate(if silu { micro::Act::Silu } else { micro::Act::Gelu }, d)),
        Just(MicroOp::Quantize),
        float.clone().prop_map(MicroOp::Fma),
        (float, any::<u32>(), any::<u32>()).prop_map(|(dtype, scale, cap)| MicroOp::Attend(Attend {
            parts: cap & 1 == 1,
            narrow: cap & 2 == 2,
            dtype,
            scale,
            cap
        })),
    ]
}

fn kernel() -> impl Strategy<Value = Kernel> {
    let scopes = prop::sample::select(vec![Scope::In, Scope::Out, Scope::InOut, Scope::Local, Scope::Reg]);
    let shape = prop::collection::vec((0..5u32, any::<i64>(), any::<i64>()), 0..3);
    let buffers = prop::collection::vec((dtype(), shape, scopes), 4);
    (".*", buffers, prop::collection::vec(stmt(), 0..4), prop::collection::vec(".*", 0..3)).prop_map(
        |(name, buffers, body, trace)| {
            let mut k = Kernel::new(name);
            for (name, (dtype, shape, scope)) in BUFFERS.into_iter().zip(buffers) {
                let dim = |(s, c, d): (u32, i64, i64)| Dim::from(Sym(s)) * Dim::from(c) + Dim::from(d);
                k.buffer(name, dtype, shape.into_iter().map(dim).collect(), scope);
            }
            k.vars = VARS.map(String::from).to_vec();
            k.body = body;
            k.trace = trace;
            k
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_kernels_read_back(k in kernel()) {
        check_kernel(&k, &syms());
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in ".{0,200}") {
        let _ = parse_kernel(&text, &syms());
        let _ = parse_program(&text);
    }

    #[test]
    fn damaged_texts_are_read_or_refused(at in any::<prop::sample::Index>(), len in 0..20usize, with in ".{0,8}") {
        let text = print_kernel(&qlinear(), &syms());
        let start = at.index(text.len());
        let end = (start + len).min(text.len());
        let damaged = format!("{}{with}{}", &text[..start], &text[end..]);
        if let Ok(k) = parse_kernel(&damaged, &syms()) {
            check_kernel(&k, &syms());
        }
    }

    #[test]
    fn shuffled_tokens_are_read_or_refused(picks in prop::collection::vec(any::<prop::sample::Index>(), 0..60)) {
        let text = print_kernel(&qlinear(), &syms());
        let words: Vec<&str> = text.split_inclusive([' ', '(', '[', ',', ')']).collect();
        let mixed: String = picks.iter().map(|p| words[p.index(words.len())]).collect();
        let _ = parse_kernel(&format!("kernel @k(%x: f32 in, %w: u32 in) {{ let a.0 = {mixed}"), &syms());
    }
}

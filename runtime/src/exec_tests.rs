//! Programs over hand-written kernels that stand in for compiled code.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use marquetry_ir::loops::{Expr, Kernel, LoopKind, Scope, Stmt};
use marquetry_ir::program::{Buffer, BufferId, KernelFn, KernelId, Launch, Place, Program, State, Weight};
use marquetry_ir::{DType, Dim, Elem, Sym, Syms};

use crate::{Arena, Code, Function, Pool, RuntimeError, States, WeightData};

const F: usize = 4;

/// `y[i] = x[i] * w[i % 8]`, parallel over i.
unsafe extern "C" fn scale(args: *const *mut u8, _sizes: *const i64, begin: i64, end: i64) {
    // SAFETY: called with the three arguments declared in `program`.
    unsafe {
        let (x, w, y) = ((*args).cast::<f32>(), (*args.add(1)).cast::<f32>(), (*args.add(2)).cast::<f32>());
        for i in begin as usize..end as usize {
            *y.add(i) = *x.add(i) * *w.add(i % 8);
        }
    }
}

/// `total[0] += Σ y[i]`, alone.
unsafe extern "C" fn sum(args: *const *mut u8, sizes: *const i64, begin: i64, end: i64) {
    assert_eq!((begin, end), (0, 1));
    // SAFETY: called with the two arguments declared in `program`.
    unsafe {
        let (y, total) = ((*args).cast::<f32>(), (*args.add(1)).cast::<f32>());
        for i in 0..*sizes as usize {
            *total += *y.add(i);
        }
    }
}

/// `total[0] = Σ y[i]`, by every thread.
unsafe extern "C" fn total(args: *const *mut u8, sizes: *const i64, begin: i64, end: i64) {
    assert_eq!((begin, end), (0, 1));
    // SAFETY: called with the two arguments declared in `program`.
    unsafe {
        let (y, total) = ((*args).cast::<f32>(), (*args.add(1)).cast::<f32>());
        *total = (0..*sizes as usize).map(|i| *y.add(i)).sum();
    }
}

/// `out[i] = y[i] + total[0]`, parallel over i.
unsafe extern "C" fn shift(args: *const *mut u8, _sizes: *const i64, begin: i64, end: i64) {
    // SAFETY: called with the three arguments declared in `program`.
    unsafe {
        let (y, total, out) = ((*args).cast::<f32>(), (*args.add(1)).cast::<f32>(), (*args.add(2)).cast::<f32>());
        for i in begin as usize..end as usize {
            *out.add(i) = *y.add(i) + *total;
        }
    }
}

/// `out[i] += 1`, parallel over i, with the arguments of `shift`.
unsafe extern "C" fn count(args: *const *mut u8, _sizes: *const i64, begin: i64, end: i64) {
    // SAFETY: called with the three arguments declared in `program`.
    unsafe {
        let out = (*args.add(2)).cast::<f32>();
        (begin as usize..end as usize).for_each(|i| *out.add(i) += 1.0);
    }
}

unsafe extern "C" fn nothing(_: *const *mut u8, _: *const i64, _: i64, _: i64) {}

fn kernel(name: &str, args: &[(&str, Vec<Dim>, Scope)], parallel: Option<Expr>) -> Kernel {
    let mut k = Kernel::new(name);
    for (name, shape, scope) in args {
        k.buffer(name, DType::F32, shape.clone(), *scope);
    }
    if let Some(extent) = parallel {
        let var = k.fresh("i");
        k.body = vec![Stmt::For { var, extent, kind: LoopKind::Parallel, body: vec![] }];
    }
    k
}

fn buffer(name: &str, shape: Vec<Dim>, place: Place) -> Buffer {
    Buffer { name: name.into(), dtype: DType::F32, shape, place }
}

fn program() -> Program {
    let mut syms = Syms::default();
    let n = syms.declare("n", 1, 1000, 1);
    let d = || vec![Dim::from(n)];
    let one = || vec![Dim::from(1)];
    let extent = || Some(Expr::size(n));
    use Scope::{In, InOut, Out};
    let launch =
        |k, args: &[u32], sync| Launch { kernel: KernelId(k), args: args.iter().map(|&a| BufferId(a)).collect(), sync };
    Program {
        name: "test".into(),
        weights: vec![Weight {
            sources: vec!["w".into()],
            interleave: 0,
            from: Elem::Scalar(DType::F32),
            elem: Elem::Scalar(DType::F32),
            shape: vec![12],
        }],
        states: vec![State { name: "total".into(), dtype: DType::F32, shape: one() }],
        buffers: vec![
            buffer("x", d(), Place::Input("x".into())),
            buffer("w", vec![8.into()], Place::Weight(0, 16)),
            buffer("y", d(), Place::Arena(64)),
            buffer("total", one(), Place::State(0)),
            buffer("out", d(), Place::Output("out".into())),
        ],
        kernels: vec![
            kernel("scale", &[("x", d(), In), ("w", vec![8.into()], In), ("y", d(), Out)], extent()),
            kernel("sum", &[("y", d(), In), ("t", one(), InOut)], None),
            kernel("shift", &[("y", d(), In), ("t", one(), In), ("o", d(), Out)], extent()),
        ],
        launches: vec![launch(0, &[0, 1, 2], false), launch(1, &[2, 3], true), launch(2, &[2, 3, 4], true)],
        constants: vec![],
        arena_bytes: 64 + 1000 * F as u64,
        own_bytes: 0,
        syms,
    }
}

fn bytes(v: &[f32]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn floats(b: &[u8]) -> Vec<f32> {
    b.chunks_exact(F).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
}

fn weights() -> Vec<Arc<WeightData>> {
    let w: Vec<f32> = (0..12).map(|i| i as f32 - 3.0).collect();
    vec![Arc::new(WeightData::copy(&bytes(&w)).unwrap())]
}

fn code(kernels: &[KernelFn]) -> Code {
    // SAFETY: the kernels do what their declarations in `program` say.
    unsafe { Code::new(kernels.to_vec(), Box::new(())) }
}

fn function(p: Program) -> Result<Function, RuntimeError> {
    Function::new(p, code(&[scale, sum, shift]), weights())
}

#[test]
fn results_are_those_of_the_plain_loop() {
    let f = function(program()).unwrap();
    let mut arena = Arena::default();
    for threads in 1..=4 {
        let pool = Pool::new(threads).unwrap();
        let mut states = States::new(f.states(), &[1]).unwrap();
        let mut total = 0.0f32;
        for (step, n) in [1usize, 7, 1000, 1000, 3, 333].into_iter().enumerate() {
            let x: Vec<f32> = (0..n).map(|i| (i % 13) as f32).collect();
            let y: Vec<f32> = x.iter().enumerate().map(|(i, v)| v * ((i % 8) as f32 + 1.0)).collect();
            total += y.iter().sum::<f32>();
            // Odd steps give memory that is not aligned.
            let pad = step % 2;
            let mut input = vec![0; pad];
            input.extend(bytes(&x));
            let mut out = vec![0xff; n * F + pad];
            let inputs = [("x", &input[pad..])];
            if step % 3 == 2 {
                let outputs = &mut [("out", &mut out[pad..])];
                let t = f.run_profiled(&pool, &mut arena, &mut states, &[n as i64], &inputs, outputs).unwrap();
                assert_eq!((t.kernels.as_slice(), t.threads().count()), (&[0, 1, 2][..], threads));
                for spans in t.threads() {
                    let order: Vec<u64> = spans.iter().flat_map(|s| [s.begin, s.end]).chain([t.total]).collect();
                    assert!(order[0] > 0 && order.is_sorted(), "{order:?}");
                }
                assert!(t.times().iter().sum::<u64>() <= t.total);
            } else {
                let outputs = &mut [("out", &mut out[pad..])];
                f.run(&pool, &mut arena, &mut states, &[n as i64], &inputs, outputs).unwrap();
            }
            assert_eq!(floats(&out[pad..]), y.iter().map(|v| v + total).collect::<Vec<_>>(), "{threads} {n}");
        }
        assert_eq!(floats(states.get("total").unwrap()), [total]);
        states.reset();
        assert_eq!(floats(states.get("total").unwrap()), [0.0]);
    }
}

#[test]
fn wrong_calls_are_refused_with_both_sides() {
    let f = function(program()).unwrap();
    let pool = Pool::new(1).unwrap();
    let mut arena = Arena::default();
    let mut states = States::new(f.states(), &[1]).unwrap();
    let x = vec![0u8; 8];
    let mut call = |sizes: &[i64], inputs: &[(&str, &[u8])], name: &str, len: usize| {
        let mut out = vec![0u8; len];
        let r = f.run(&pool, &mut arena, &mut states, sizes, inputs, &mut [(name, &mut out)]);
        r.err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert_eq!(call(&[2], &[("x", &x)], "out", 8), "");
    assert_eq!(call(&[0], &[("x", &x)], "out", 8), "RUN010: size n = 0, allowed 1..=1000");
    assert_eq!(call(&[1001], &[("x", &x)], "out", 8), "RUN010: size n = 1001, allowed 1..=1000");
    assert_eq!(call(&[], &[("x", &x)], "out", 8), "RUN011: 0 run-time sizes given, the program has 1");
    assert_eq!(call(&[3], &[("x", &x)], "out", 12), "RUN013: input `x` has 8 bytes, 12 are expected at these sizes");
    assert_eq!(call(&[2], &[("x", &x)], "out", 4), "RUN013: output `out` has 4 bytes, 8 are expected at these sizes");
    assert_eq!(call(&[2], &[], "out", 8), "RUN013: input `x` is missing");
    assert_eq!(call(&[2], &[("x", &x), ("x", &x)], "out", 8), "RUN013: input `x` is given twice");
    assert_eq!(call(&[2], &[("x", &x), ("z", &x)], "out", 8), "RUN013: input `z` is not one of the program's");
    assert_eq!(call(&[2], &[("x", &x)], "o", 8), "RUN013: output `out` is missing");
    assert_eq!(call(&[2], &[("x", &x)], "out", 8), "");
    let mut other = States::new(&[], &[1]).unwrap();
    let r = f.run(&pool, &mut Arena::default(), &mut other, &[2], &[("x", &x)], &mut [("out", &mut [0; 8])]);
    assert!(matches!(r, Err(RuntimeError::Binding { .. })));
}

#[test]
fn contradictions_are_found_when_the_function_is_made() {
    type Edit = fn(&mut Program);
    let cases: [(Edit, &str); 22] = [
        (|p| p.launches[0].kernel = KernelId(3), "kernel 3 of 3"),
        (|p| p.launches[0].args[0] = BufferId(5), "is buffer 5 of 5"),
        (|p| p.launches[0].args.truncate(2), "given 2 arguments of 3"),
        (|p| p.buffers[0].dtype = DType::I32, "has element type f32, buffer `x` has i32"),
        (|p| p.buffers[1].place = Place::Weight(1, 0), "weight 1 of 1"),
        (|p| p.buffers[1].place = Place::Weight(0, 32), "takes 32 bytes or more, 16 are left"),
        (|p| p.buffers[1].place = Place::Weight(0, 64), "lies outside its 48 bytes"),
        (|p| p.buffers[1].place = Place::Weight(0, 8), "not aligned"),
        (|p| p.buffers[3].place = Place::State(1), "state 1 of 1"),
        (|p| p.buffers[3].shape = vec![2.into()], "has 2 elements, 1 are there"),
        (|p| p.buffers[3].dtype = DType::U32, "has element type u32, the state has f32"),
        (|p| p.buffers[2].place = Place::Weight(0, 0), "is written, but buffer `y` is read only"),
        (|p| p.buffers[2].place = Place::Input("q".into()), "is written, but buffer `y` is read only"),
        (|p| p.buffers[2].shape = vec![Sym(4).into()], "uses symbol $4, 1 are declared"),
        (|p| p.kernels[0].buffers[1].shape = vec![9.into()], "has 9 elements, 8 are there"),
        (|p| p.arena_bytes = 64, "takes 4 bytes or more, 0 are left"),
        (|p| p.weights.clear(), "1 weights given, program `test` has 0"),
        (|p| drop(p.kernels.pop()), "3 kernels given, program `test` has 2"),
        (|p| p.syms.0[0].multiple = 0, "divisor 0"),
        (|p| own(p, 2), "writes each thread's own memory in a parallel loop"),
        (
            |p| {
                own(p, 3);
                p.kernels[1].buffers[0].scope = Scope::Out;
            },
            "argument `y` of kernel `sum` is written by every thread, but is there once",
        ),
        (
            |p| {
                own(p, 3);
                p.own_bytes = 0;
            },
            "takes 4 bytes or more, 0 are left",
        ),
    ];
    for (edit, message) in cases {
        let mut p = program();
        edit(&mut p);
        match function(p) {
            Ok(_) => panic!("accepted, should say: {message}"),
            Err(e) => assert!(e.to_string().contains(message), "{e} should say: {message}"),
        }
    }
}

#[test]
fn what_can_not_be_proved_is_checked_at_each_size() {
    let mut p = program();
    p.arena_bytes = 64 + 500 * 4;
    let f = function(p).unwrap();
    let pool = Pool::new(2).unwrap();
    let mut states = States::new(f.states(), &[1]).unwrap();
    let mut run = |n: usize| {
        let (x, mut out) = (vec![0; n * F], vec![0; n * F]);
        f.run(&pool, &mut Arena::default(), &mut states, &[n as i64], &[("x", &x)], &mut [("out", &mut out)])
    };
    run(500).unwrap();
    let e = run(501).unwrap_err().to_string();
    assert_eq!(e, "RUN012: buffer `y` at byte 64 of the arena takes 2004 bytes, 2000 are there at sizes [501]");
    run(500).unwrap();

    let mut p = program();
    let m = p.syms.declare("m", 1, 1000, 1);
    p.kernels[0].buffers[0].shape = vec![m.into()];
    let f = function(p).unwrap();
    let mut states = States::new(f.states(), &[1, 1]).unwrap();
    let mut run = |m: i64| {
        let (x, mut out) = (vec![0; 40], vec![0; 40]);
        f.run(&pool, &mut Arena::default(), &mut states, &[10, m], &[("x", &x)], &mut [("out", &mut out)])
    };
    run(10).unwrap();
    assert!(matches!(run(11), Err(RuntimeError::Bounds { .. })));
}

#[test]
fn states_of_other_shapes_are_refused() {
    let mut p = program();
    let slots = p.syms.declare("slots", 1, 64, 1);
    p.states.push(State { name: "kv".into(), dtype: DType::F16, shape: vec![slots.into(), 4.into()] });
    let f = function(p).unwrap();
    let pool = Pool::new(1).unwrap();
    let mut states = States::new(f.states(), &[1, 16]).unwrap();
    assert_eq!(states.bytes(), 4 + 16 * 4 * 2);
    let mut run = |slots| {
        let (x, mut out) = (vec![0; 8], vec![0; 8]);
        f.run(&pool, &mut Arena::default(), &mut states, &[2, slots], &[("x", &x)], &mut [("out", &mut out)])
    };
    run(16).unwrap();
    assert!(run(17).unwrap_err().to_string().contains("state `kv` is f16[16, 4]"));
    run(16).unwrap();
}

/// Gives a buffer to each thread.
fn own(p: &mut Program, buffer: usize) {
    p.buffers[buffer].place = Place::Own(0);
    p.own_bytes = p.arena_bytes;
}

/// Every thread has its own sum, which nothing waits for; memory that inputs, outputs and threads are bound to changes between runs.
#[test]
fn threads_compute_for_themselves() {
    let mut p = program();
    own(&mut p, 3);
    p.kernels[1].buffers[1].scope = Scope::Out;
    p.states.clear();
    p.launches[2].sync = false;
    let f = Function::new(p, code(&[scale, total, shift]), weights()).unwrap();
    let mut arena = Arena::default();
    for threads in (1..=9).chain([3, 1]) {
        let pool = Pool::new(threads).unwrap();
        let mut states = States::new(f.states(), &[1]).unwrap();
        for n in [1000usize, 8, 1] {
            let x: Vec<f32> = (0..n).map(|i| (i % 50 + threads) as f32).collect();
            let y: Vec<f32> = x.iter().enumerate().map(|(i, v)| v * (i % 8 + 1) as f32).collect();
            let mut out = vec![0; n * F];
            f.run(&pool, &mut arena, &mut states, &[n as i64], &[("x", &bytes(&x))], &mut [("out", &mut out)]).unwrap();
            let all: f32 = y.iter().sum();
            let want: Vec<f32> = y.iter().map(|v| v + all).collect();
            assert_eq!(floats(&out), want, "{threads} threads, {n} numbers");
        }
    }
}

/// Iterations of `first_waits` that have run.
static OTHERS: AtomicUsize = AtomicUsize::new(0);

/// `out[i] += 1`, parallel over i, with the arguments of `shift`; iteration 0 waits for all others, for a while.
unsafe extern "C" fn first_waits(args: *const *mut u8, sizes: *const i64, begin: i64, end: i64) {
    // SAFETY: called with the three arguments declared in `program`, and the size.
    unsafe { count(args, sizes, begin, end) };
    OTHERS.fetch_add((end - begin) as usize, Ordering::Relaxed);
    let start = std::time::Instant::now();
    // SAFETY: there is one size.
    let all = unsafe { *sizes } as usize;
    while begin == 0 && OTHERS.load(Ordering::Relaxed) < all && start.elapsed().as_secs() < 20 {
        std::thread::yield_now();
    }
}

#[test]
fn a_thread_that_is_held_up_is_helped() {
    let f = Function::new(program(), code(&[scale, sum, first_waits]), weights()).unwrap().with_chunks(1000);
    for threads in 2..=4 {
        let pool = Pool::new(threads).unwrap();
        let mut states = States::new(f.states(), &[1]).unwrap();
        let (x, mut out) = (vec![0; 1000 * F], vec![0; 1000 * F]);
        for run in 1..=5 {
            OTHERS.store(0, Ordering::Relaxed);
            let start = std::time::Instant::now();
            f.run(&pool, &mut Arena::default(), &mut states, &[1000], &[("x", &x)], &mut [("out", &mut out)]).unwrap();
            assert!(floats(&out).iter().all(|v| *v == run as f32), "{threads} threads, run {run}");
            assert!(start.elapsed().as_secs() < 20, "{threads} threads, run {run}: nobody helped");
        }
    }
}

/// However loops are dealt out, with fewer iterations than threads and in chunks larger than a thread's share too.
#[test]
fn every_iteration_runs_once() {
    for threads in 1..=9 {
        let pool = Pool::new(threads).unwrap();
        for chunks in [1, 4, 64] {
            let f = Function::new(program(), code(&[scale, sum, count]), weights()).unwrap().with_chunks(chunks);
            let mut states = States::new(f.states(), &[1]).unwrap();
            for n in [1usize, 2, 8, 17, 100, 1000] {
                let (x, mut out) = (vec![0; n * F], vec![0; n * F]);
                for _ in 0..3 {
                    let outputs = &mut [("out", &mut out[..])];
                    f.run(&pool, &mut Arena::default(), &mut states, &[n as i64], &[("x", &x)], outputs).unwrap();
                }
                assert!(floats(&out).iter().all(|v| *v == 3.0), "{threads} threads, {chunks} chunks, {n} iterations");
            }
        }
    }
}

#[test]
fn empty_and_negative_extents() {
    let mut p = program();
    if let Stmt::For { extent, .. } = &mut p.kernels[2].body[0] {
        *extent = Expr::size(Sym(0)) - 2;
    }
    let f = function(p).unwrap();
    let pool = Pool::new(3).unwrap();
    let mut states = States::new(f.states(), &[1]).unwrap();
    let mut run = |n: usize, out: &mut [u8]| {
        let x = vec![0; n * F];
        f.run(&pool, &mut Arena::default(), &mut states, &[n as i64], &[("x", &x)], &mut [("out", out)])
    };
    let mut out = [7u8; 8];
    run(2, &mut out).unwrap();
    assert_eq!(out, [7; 8]);
    assert!(
        run(1, &mut [0; 4]).unwrap_err().to_string().contains("parallel extent of kernel `shift` has the value -1")
    );
}

/// Prints the overhead of a step of 300 launches: `cargo test -- --ignored --nocapture launch_cost`.
#[test]
#[ignore = "a measurement"]
fn launch_cost() {
    let mut p = program();
    let launches = p.launches.clone();
    p.launches = (0..300).map(|i| Launch { sync: true, ..launches[[0, 1, 2][i % 3]].clone() }).collect();
    let f = Function::new(p, code(&[nothing as KernelFn; 3]), weights()).unwrap();
    let mut arena = Arena::default();
    for threads in 1..=2 {
        let pool = Pool::new(threads).unwrap();
        let mut states = States::new(f.states(), &[1]).unwrap();
        let (x, mut out) = (vec![0u8; 4000], vec![0u8; 4000]);
        let mut times = vec![];
        let mut changed = vec![];
        for i in 0..4000 {
            let n = if i % 2 == 0 || i < 2000 { 1000 } else { 999 };
            let (x, out) = (&x[..n * F], &mut out[..n * F]);
            let t = std::time::Instant::now();
            f.run(&pool, &mut arena, &mut states, &[n as i64], &[("x", x)], &mut [("out", out)]).unwrap();
            let t = t.elapsed().as_nanos() as f64 / 1000.0;
            if i < 2000 { times.push(t) } else { changed.push(t) }
        }
        times.sort_by(f64::total_cmp);
        changed.sort_by(f64::total_cmp);
        println!(
            "{threads} threads, 300 launches with barriers: median {:.1} us, p90 {:.1} us; sizes changed: median {:.1} us",
            times[1000], times[1800], changed[1000]
        );
    }
}

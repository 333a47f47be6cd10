//! Every routine computes what the loops of its micro-kernel do.

use half::{bf16, f16};
use marquetry_ir::loops::interp::{BufData, Scalar, run};
use marquetry_ir::loops::micro::{Act, Attend};
use marquetry_ir::loops::{Expr, Kernel, Micro, MicroOp, Scope, Stmt};
use marquetry_ir::testing::cases;
use marquetry_ir::{DType, Dim, FACTOR_SPAN, GgufType, Packed};
use marquetry_runtime::micro::Level;

/// Numbers that look random.
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let x = self.0 ^ (self.0 >> 33);
        x.wrapping_mul(0xff51afd7ed558ccd) >> 16
    }

    /// Below `n`.
    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Within 1 of 0.
    fn float(&mut self) -> f32 {
        (self.bits() % 20001) as f32 / 10000.0 - 1.0
    }

    /// Four signed bytes of at most 127.
    fn word(&mut self) -> i64 {
        (0..4).fold(0, |w, _| (w << 8) | ((self.below(255) as i64 - 127) & 0xff))
    }
}

fn floats(dtype: DType, len: usize, noise: &mut Noise, scale: f32) -> BufData {
    let mut data = BufData::zeros(dtype, len);
    (0..len).for_each(|i| data.set(i, number(dtype, noise.float() * scale)));
    data
}

fn number(dtype: DType, v: f32) -> Scalar {
    match dtype {
        DType::F16 => Scalar::I(f16::from_f32(v).to_bits().into()),
        DType::BF16 => Scalar::I(bf16::from_f32(v).to_bits().into()),
        _ => Scalar::F(v),
    }
}

/// bf16 numbers in another type that has them, but for the smallest in f16.
fn converted(from: &BufData, dtype: DType) -> BufData {
    let mut data = BufData::zeros(dtype, from.len());
    for (i, bytes) in from.bytes.as_chunks().0.iter().enumerate() {
        data.set(i, number(dtype, bf16::from_le_bytes(*bytes).to_f32()));
    }
    data
}

fn integers(dtype: DType, len: usize, mut value: impl FnMut() -> i64) -> BufData {
    let mut data = BufData::zeros(dtype, len);
    (0..len).for_each(|i| data.set(i, Scalar::I(value())));
    data
}

/// An argument: extents, contents, and where the micro-kernel begins in it.
struct Arg {
    shape: Vec<usize>,
    data: BufData,
    at: Vec<usize>,
}

impl Arg {
    fn new(shape: &[usize], data: BufData) -> Arg {
        Arg { shape: shape.to_vec(), data, at: vec![0; shape.len()] }
    }

    /// Begins `by` further along the first axis, with as much more there.
    fn moved(mut self, by: usize) -> Arg {
        let inner: usize = self.shape[1..].iter().product::<usize>() * self.data.dtype.size();
        let mut bytes = vec![1; by * inner];
        bytes.append(&mut self.data.bytes);
        self.data.bytes = bytes;
        self.shape[0] += by;
        self.at[0] = by;
        self
    }
}

/// What the loops and what each routine leave in the first argument, for as many comparisons as there are levels.
fn both(op: MicroOp, args: Vec<Arg>, sizes: &[usize]) -> impl Iterator<Item = (Level, Vec<f32>, Vec<f32>)> {
    all(op, args, sizes).map(|(level, expected, found)| (level, expected[0].to_f32(), found[0].to_f32()))
}

/// What the loops and what each routine leave in all arguments.
fn all(op: MicroOp, args: Vec<Arg>, sizes: &[usize]) -> impl Iterator<Item = (Level, Vec<BufData>, Vec<BufData>)> {
    let expected = interpret(op, &args, sizes);
    let sizes: Vec<i64> = sizes.iter().map(|s| *s as i64).collect();
    // What only some levels have is loops elsewhere.
    let some = matches!(op, MicroOp::Pairs | MicroOp::UnpackPairs(_));
    let levels = Level::available().into_iter().filter(move |l| !some || l.routine(&op).is_some());
    levels.map(move |level| {
        let routine = level.routine(&op).unwrap_or_else(|| panic!("no routine of {} for {op}", level.name()));
        let mut found: Vec<BufData> = args.iter().map(|a| a.data.clone()).collect();
        let mut numbers = sizes.clone();
        let mut addresses = vec![];
        for (a, data) in args.iter().zip(&mut found) {
            numbers.push(a.shape[1..].iter().product::<usize>() as i64);
            let flat = a.at.iter().zip(&a.shape).fold(0, |f, (i, n)| f * n + i);
            let offset = flat * data.dtype.size();
            addresses.push(data.bytes[offset..].as_mut_ptr());
        }
        numbers.extend(op.constants());
        // SAFETY: `available` lists what this CPU has; the interpreter has just checked the bounds of the same accesses.
        unsafe { routine(addresses.as_ptr(), numbers.as_ptr()) };
        (level, expected.clone(), found)
    })
}

/// What the loops leave in the arguments.
fn interpret(op: MicroOp, args: &[Arg], sizes: &[usize]) -> Vec<BufData> {
    let mut k = Kernel::new("k");
    let mut call = Micro { op, args: vec![], sizes: sizes.iter().map(|s| Expr::idx(*s as i64)).collect() };
    for (i, a) in args.iter().enumerate() {
        let shape = a.shape.iter().map(|d| Dim::from(*d as i64)).collect();
        let b = k.buffer(
            &format!("a{i}"),
            a.data.dtype,
            shape,
            if op.params()[i].written { Scope::InOut } else { Scope::In },
        );
        call.args.push((b, a.at.iter().map(|i| Expr::idx(*i as i64)).collect()));
    }
    k.body = vec![Stmt::Micro(call)];
    assert_eq!(marquetry_ir::loops::verify::verify(&k, &Default::default()), vec![]);
    let mut expected: Vec<BufData> = args.iter().map(|a| a.data.clone()).collect();
    run(&k, &[], &mut expected).unwrap();
    expected
}

fn close(op: MicroOp, level: Level, (expected, found): (&[f32], &[f32]), relative: f32) {
    let top = expected.iter().fold(0f32, |m, v| if v.is_finite() { m.max(v.abs()) } else { m });
    for (i, (e, f)) in expected.iter().zip(found).enumerate() {
        let near = (e - f).abs() <= relative * top || e.to_bits() == f.to_bits();
        assert!(near, "{op}, {}: element {i} is {f}, should be {e}", level.name());
    }
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

fn planes(p: Packed, blocks: usize, groups: usize, noise: &mut Noise) -> Vec<Arg> {
    let words = usize::from(p.bits);
    let max = if p.bits < 8 { 255 } else { usize::from(p.max) };
    let word = || (0..4).fold(0, |w, _| (w << 8) | noise.below(max + 1) as i64);
    let data = integers(DType::U32, blocks * groups * words * 8, word);
    let shape = [blocks, groups * (32 / usize::from(p.group)), 8];
    let len = shape.iter().product();
    let mut all = vec![Arg::new(&[blocks, groups, words, 8], data)];
    let kinds = 1 + usize::from(p.min);
    for _ in 0..kinds {
        let side = match p.scale.is_float() {
            true => floats(p.scale, len, noise, 1.0),
            false => integers(p.scale, len, || noise.below(256) as i64),
        };
        all.push(Arg::new(&shape, side));
    }
    if p.has_factors() {
        let shape = [blocks, groups.div_ceil(FACTOR_SPAN / 32), kinds, 8];
        all.push(Arg::new(&shape, floats(DType::F16, shape.iter().product(), noise, 0.01)));
    }
    all
}

/// What each half of a group of activations adds up to, by its scale.
fn sums(q: &BufData, scale: &BufData) -> BufData {
    let halves = q.bytes.chunks_exact(16).zip(scale.to_f32().into_iter().flat_map(|s| [s; 2]));
    let total = |(q, scale): (&[u8], f32)| scale * q.iter().map(|&b| f32::from(b as i8)).sum::<f32>();
    BufData { dtype: DType::F32, bytes: halves.flat_map(|half| total(half).to_le_bytes()).collect() }
}

/// Tokens, blocks and groups: edges of the tiles, and some between.
fn sizes() -> Vec<[usize; 3]> {
    let mut noise = Noise(7);
    let edges = [[1, 1, 1], [1, 2, 3], [1, 4, 18], [2, 1, 2], [3, 3, 1], [8, 2, 2], [31, 4, 2], [32, 5, 3]];
    edges.into_iter().chain((0..8).map(|_| [1 + noise.below(20), 1 + noise.below(6), 1 + noise.below(5)])).collect()
}

#[test]
fn quantized_products() {
    let mut noise = Noise(1);
    for p in GgufType::ALL.map(Packed::for_gguf) {
        // Rows of more than a panel.
        for [tokens, blocks, groups] in sizes().into_iter().chain([[9, 2, 70]]) {
            let acc = floats(DType::F32, tokens * blocks * 8, &mut noise, 1.0);
            let mut args = vec![Arg::new(&[tokens * blocks, 8], acc)];
            args.extend(planes(p, blocks, groups, &mut noise));
            let q = integers(DType::U32, tokens * groups * 8, || noise.word());
            let scale = floats(DType::F32, tokens * groups, &mut noise, 1.0);
            let sums = sums(&q, &scale);
            args.push(Arg::new(&[tokens, groups * 8], q));
            args.push(Arg::new(&[tokens, groups], scale));
            args.push(Arg::new(&[tokens, groups * 2], sums));
            let by = noise.below(3);
            let args = args.into_iter().map(|a| a.moved(by)).collect();
            let op = MicroOp::Dot(p);
            for (level, e, f) in both(op, args, &[tokens, blocks, groups]) {
                close(op, level, (&e, &f), 2e-6);
            }
        }
    }
}

#[test]
fn float_products() {
    let mut noise = Noise(2);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for [tokens, blocks, k] in sizes() {
            let acc = floats(DType::F32, tokens * blocks * 8, &mut noise, 1.0);
            let args = [
                Arg::new(&[tokens * blocks, 8], acc),
                Arg::new(&[blocks, k, 8], floats(dtype, blocks * k * 8, &mut noise, 1.0)),
                Arg::new(&[tokens, k], floats(DType::F32, tokens * k, &mut noise, 1.0)),
            ];
            let by = noise.below(3);
            let args = args.into_iter().map(|a| a.moved(by)).collect();
            let op = MicroOp::Fma(dtype);
            for (level, e, f) in both(op, args, &[tokens, blocks, k]) {
                assert_eq!(bits(&e), bits(&f), "{op}, {}: the order of sums is part of the meaning", level.name());
            }
        }
    }
}

#[test]
fn unpacked_weights() {
    let mut noise = Noise(3);
    for p in GgufType::ALL.map(Packed::for_gguf) {
        for [_, blocks, groups] in sizes() {
            let out = BufData::zeros(DType::F32, blocks * groups * 256);
            let mut args = vec![Arg::new(&[blocks, groups * 32, 8], out)];
            args.extend(planes(p, blocks, groups, &mut noise));
            let op = MicroOp::Unpack(p);
            for (level, e, f) in both(op, args, &[blocks, groups]) {
                assert_eq!(e, f, "{op}, {}", level.name());
            }
        }
    }
}

#[test]
fn products_of_pairs() {
    let mut noise = Noise(8);
    let more = [[17, 1, 1], [32, 4, 18], [33, 3, 41], [48, 6, 20], [130, 4, 64]];
    for [tokens, blocks, groups] in sizes().into_iter().chain(more) {
        let acc = floats(DType::F32, tokens * blocks * 8, &mut noise, 1.0);
        let [rows, k] = [blocks * 8, groups * 32];
        // Panels may be wider than what is multiplied.
        let wide = rows + 8 * noise.below(2);
        let args = [
            Arg::new(&[tokens * blocks, 8], acc),
            Arg::new(&[k / 2, wide, 2], floats(DType::BF16, k * wide, &mut noise, 1.0)),
            Arg::new(&[tokens, k], floats(DType::BF16, tokens * k, &mut noise, 1.0)),
        ];
        let by = noise.below(3);
        let args = args.into_iter().map(|a| a.moved(by)).collect();
        for (level, e, f) in both(MicroOp::Pairs, args, &[tokens, blocks, groups]) {
            close(MicroOp::Pairs, level, (&e, &f), 3e-6);
        }
    }
}

#[test]
fn unpacked_pairs() {
    let mut noise = Noise(9);
    for p in GgufType::ALL.map(Packed::for_gguf) {
        for [_, blocks, groups] in sizes() {
            let out = BufData::zeros(DType::BF16, blocks * groups * 256);
            let mut args = vec![Arg::new(&[groups * 16, blocks * 8, 2], out)];
            args.extend(planes(p, blocks, groups, &mut noise));
            let op = MicroOp::UnpackPairs(p);
            for (level, e, f) in all(op, args, &[blocks, groups]) {
                // Zeros may have either sign.
                let [e, f] = [&e[0], &f[0]].map(|d| d.bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)));
                assert!(e.eq(f), "{op}, {}", level.name());
            }
        }
    }
}

#[test]
fn gated_products() {
    let mut noise = Noise(10);
    for (act, dtype) in [Act::Silu, Act::Gelu].into_iter().flat_map(|a| [(a, DType::F32), (a, DType::BF16)]) {
        for [tokens, blocks, _] in sizes() {
            let acc = floats(DType::F32, tokens * blocks * 16, &mut noise, 30.0);
            let out = Arg::new(&[tokens, blocks * 8 + 24], BufData::zeros(dtype, tokens * (blocks * 8 + 24)));
            let args = [out, Arg::new(&[tokens * blocks * 2, 8], acc)];
            let by = noise.below(3);
            let args = args.into_iter().map(|a| a.moved(by)).collect();
            let op = MicroOp::Gate(act, dtype);
            for (level, e, f) in all(op, args, &[tokens, blocks]) {
                let [e, f] = [&e[0], &f[0]].map(values);
                close(op, level, (&e, &f), if dtype == DType::F32 { 1e-6 } else { 4e-3 });
            }
        }
    }
}

/// The numbers of a buffer of f32 or bf16.
fn values(data: &BufData) -> Vec<f32> {
    match data.dtype {
        DType::BF16 => data.bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        _ => data.to_f32(),
    }
}

#[test]
fn attention() {
    let mut noise = Noise(4);
    for (dtype, cap) in [(DType::F32, 0.0f32), (DType::F16, 0.0), (DType::BF16, 0.0), (DType::F32, 2.5)] {
        for case in 0..cases(24) as usize {
            let dim = [16, 64, 80, 128, 24, 256][case % 6];
            let parts = case / 2 % 2 == 1;
            let page = [32, 16, 4][case % 3];
            let rows = [1, 2, 3, 5, 7, 16, 24, 70][noise.below(8)];
            let (heads, seqs, table) = (1 + noise.below(3), 1 + noise.below(3), 1 + noise.below(4));
            let slots = seqs * table * page;
            let mut order: Vec<i64> = (0..(seqs * table) as i64).collect();
            (1..order.len()).for_each(|i| order.swap(i, noise.below(i + 1)));
            let mut meta = vec![];
            for r in 0..rows {
                let (a, b) = (noise.below(table * page), noise.below(table * page));
                // Rows of a sequence follow each other.
                let (first, last) = (a.min(b) as i64, a.max(b) as i64);
                let last = if parts && noise.below(4) == 0 { first - 1 } else { last };
                meta.extend([first, last, (r * seqs / rows) as i64]);
            }
            let (mut order, mut meta) = (order.into_iter(), meta.into_iter());
            let head = noise.below(heads);
            // What is narrow is given as bf16 numbers: levels without products of these do not round.
            let narrow = case % 4 == 1;
            let numbers = |dtype, len, noise: &mut Noise| match narrow {
                true => converted(&floats(DType::BF16, len, noise, 1.0), dtype),
                false => floats(dtype, len, noise, 1.0),
            };
            let mut cache = || {
                let data = numbers(dtype, slots * heads * dim, &mut noise);
                Arg { at: vec![0, head, 0], ..Arg::new(&[slots, heads, dim], data) }
            };
            let (keys, values) = (cache(), cache());
            let width = if parts { dim + 2 } else { dim };
            let queries = numbers(DType::F32, rows * dim, &mut noise);
            let args = vec![
                Arg::new(&[rows, width], BufData::zeros(DType::F32, rows * width)),
                Arg::new(&[rows, dim], queries),
                keys,
                values,
                Arg::new(&[seqs, table], integers(DType::I32, seqs * table, || order.next().unwrap())),
                Arg::new(&[rows, 3], integers(DType::I64, rows * 3, || meta.next().unwrap())),
            ];
            let op = MicroOp::Attend(Attend { dtype, scale: 0.7f32.to_bits(), cap: cap.to_bits(), parts, narrow });
            for (level, mut want, mut got) in both(op, args, &[rows, dim, page]) {
                // The largest score of no positions is far below what tolerances are taken from.
                [&mut want, &mut got].into_iter().flatten().for_each(|v| *v = v.max(-20.0));
                // Weights have 8 bits there.
                close(op, level, (&want, &got), if narrow && level.matrix() { 4e-3 } else { 5e-6 });
            }
        }
    }
}

#[test]
fn quantized_rows() {
    let mut noise = Noise(6);
    for [rows, groups, kind] in [[1, 1, 0], [1, 18, 0], [3, 2, 1], [2, 5, 2], [4, 3, 3], [1, 7, 4]] {
        let mut x = floats(DType::F32, rows * groups * 32, &mut noise, 1.0);
        for i in 0..x.len() {
            let v = match kind {
                // Steps of a half, with ties; large and small next to each other; groups of zeros and of too small numbers.
                1 => ((i * 7) % 255) as f32 * 0.5 - 63.5,
                2 => noise.float() * 10f32.powi((i % 61) as i32 - 30),
                3 if i / 32 % 2 == 0 => [0.0, -0.0][i % 2],
                4 => noise.float() * 1e-31,
                _ => continue,
            };
            x.set(i, Scalar::F(v));
        }
        let out = |dtype, width: usize| Arg::new(&[rows, width], BufData::zeros(dtype, rows * width));
        let planes = [out(DType::I8, 32 * groups), out(DType::F32, groups), out(DType::F32, 2 * groups)];
        let args = planes.into_iter().chain([Arg::new(&[rows, 32 * groups], x)]);
        let by = noise.below(3);
        let args = args.map(|a| a.moved(by)).collect();
        for (level, want, got) in all(MicroOp::Quantize, args, &[rows, groups]) {
            for (want, got) in want.iter().zip(&got) {
                assert!(want.bytes == got.bytes, "{} {rows} {groups} {kind}", level.name());
            }
        }
    }
}

/// Activations whose rows have two axes are read as if they had one.
#[test]
fn rows_of_several_axes() {
    let mut noise = Noise(5);
    let acc = floats(DType::F32, 3 * 16, &mut noise, 1.0);
    let args = vec![
        Arg::new(&[6, 8], acc),
        Arg::new(&[2, 12, 8], floats(DType::F32, 2 * 12 * 8, &mut noise, 1.0)),
        Arg::new(&[3, 2, 3, 2], floats(DType::F32, 36, &mut noise, 1.0)).moved(1),
    ];
    for (level, e, f) in both(MicroOp::Fma(DType::F32), args, &[3, 2, 12]) {
        assert_eq!(bits(&e), bits(&f), "{}", level.name());
    }
}

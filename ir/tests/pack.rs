//! Packing keeps every number: `unpack(pack(x)) == dequantize(x)`, bit for bit.

use half::f16;
use marquetry_ir::loops::interp::{self, BufData};
use marquetry_ir::loops::{Expr, Kernel, Micro, MicroOp, Scope, Stmt, verify};
use marquetry_ir::pack::{PackError, pack, unpack};
use marquetry_ir::{DType, Dim, Elem, GgufType, Packed, plane_offsets, quant};
use proptest::prelude::*;

/// Random blocks whose f16 factors are finite.
fn blocks(t: GgufType, count: usize, seed: &mut u64) -> Vec<u8> {
    let mut next = || {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*seed >> 33) as u32
    };
    let factors: &[usize] = match t {
        GgufType::Q4_0 | GgufType::Q5_0 | GgufType::Q8_0 => &[0],
        GgufType::Q4_1 | GgufType::Q5_1 | GgufType::Q4K | GgufType::Q5K => &[0, 2],
        GgufType::Q2K => &[80, 82],
        GgufType::Q3K => &[108],
        GgufType::Q6K => &[208],
    };
    let mut out = vec![];
    for _ in 0..count {
        let start = out.len();
        out.extend((0..t.block_bytes()).map(|_| next() as u8));
        for at in factors {
            let mut bits = next() as u16;
            while !f16::from_bits(bits).is_finite() {
                bits = next() as u16;
            }
            out[start + at..start + at + 2].copy_from_slice(&bits.to_le_bytes());
        }
    }
    out
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|x| x.to_bits()).collect()
}

/// Rows of several matrices in the order that the packed matrix has them.
fn join(parts: &[Vec<f32>], k: usize, interleave: usize) -> Vec<f32> {
    if interleave == 0 {
        return parts.concat();
    }
    let turn = interleave * k;
    (0..parts[0].len() / turn).flat_map(|i| parts.iter().flat_map(move |p| p[i * turn..][..turn].to_vec())).collect()
}

fn check(t: GgufType, rows: &[usize], blocks_per_row: usize, interleave: usize, mut seed: u64) {
    let k = blocks_per_row * t.block_len();
    let raw: Vec<Vec<u8>> = rows.iter().map(|r| blocks(t, r * blocks_per_row, &mut seed)).collect();
    let parts: Vec<Vec<f32>> = (raw.iter().zip(rows))
        .map(|(raw, rows)| {
            let mut out = vec![0.0; rows * k];
            quant::dequantize(t, raw, &mut out).unwrap();
            out
        })
        .collect();
    let expected = bits(&join(&parts, k, interleave));
    let n: usize = rows.iter().sum();
    let sources: Vec<(&[u8], usize)> = raw.iter().map(Vec::as_slice).zip(rows.iter().copied()).collect();
    let wide = [Elem::Rows8(DType::F32), Elem::Scalar(DType::F32)];
    for elem in [Elem::Packed(Packed::for_gguf(t)), Elem::Gguf(t)].into_iter().chain(wide) {
        let mut out = vec![0xAA; plane_offsets(elem, n, k).1];
        pack(Elem::Gguf(t), elem, interleave, &sources, k, &mut out).unwrap();
        assert_eq!(bits(&unpack(elem, n, k, &out).unwrap()), expected, "{elem}");
        if let Elem::Packed(_) | Elem::Rows8(_) = elem {
            let all = n.next_multiple_of(8);
            let padded = unpack(elem, all, k, &out).unwrap();
            assert!(padded[n * k..].iter().all(|v| *v == 0.0), "{elem}: padding rows are zero");
        }
    }
    let d = [DType::F32, DType::F16, DType::BF16][seed as usize % 3];
    let raw: Vec<Vec<u8>> =
        rows.iter().map(|r| blocks(GgufType::Q8_0, (r * k * d.size()).div_ceil(34), &mut seed)).collect();
    let sources: Vec<(&[u8], usize)> = raw.iter().zip(rows).map(|(b, r)| (&b[..r * k * d.size()], *r)).collect();
    let mut plain = vec![0; plane_offsets(Elem::Scalar(d), n, k).1];
    pack(Elem::Scalar(d), Elem::Scalar(d), interleave, &sources, k, &mut plain).unwrap();
    let expected = unpack(Elem::Scalar(d), n, k, &plain).unwrap();
    for elem in [Elem::Rows8(d)].into_iter().chain(wide) {
        let mut out = vec![0xAA; plane_offsets(elem, n, k).1];
        pack(Elem::Scalar(d), elem, interleave, &sources, k, &mut out).unwrap();
        assert_eq!(bits(&unpack(elem, n, k, &out).unwrap()), bits(&expected), "{d} as {elem}");
    }
    let parts: Vec<Vec<f32>> = (sources.iter())
        .map(|(b, r)| {
            let mut padded = b.to_vec();
            padded.resize(plane_offsets(Elem::Scalar(d), *r, k).1, 0);
            unpack(Elem::Scalar(d), *r, k, &padded).unwrap()
        })
        .collect();
    assert_eq!(bits(&expected), bits(&join(&parts, k, interleave)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn packing_keeps_every_number(
        t in proptest::sample::select(GgufType::ALL.to_vec()),
        rows in proptest::collection::vec(1usize..20, 1..4),
        blocks in 1usize..4,
        turns in 1usize..4,
        interleaved: bool,
        seed: u64,
    ) {
        match interleaved {
            true => check(t, &vec![8 * turns; rows.len()], blocks, 8, seed),
            false => check(t, &rows, blocks, 0, seed),
        }
    }
}

#[test]
fn every_format_alone_joined_and_interleaved() {
    for t in GgufType::ALL {
        check(t, &[8], 1, 0, 1);
        check(t, &[13], 2, 0, 2);
        check(t, &[3, 8, 6], 1, 0, 3);
        check(t, &[16, 16], 2, 8, 4);
        check(t, &[16, 16, 16], 1, 8, 5);
        check(t, &[6, 6], 1, 3, 6);
    }
}

#[test]
fn layout_is_as_documented() {
    // Row 9 of 10, element 37: block 1, lane 1, group 1, word 1, byte 1, low nibble.
    let t = GgufType::Q4_0;
    let (n, k) = (10, 64);
    let mut raw = vec![0u8; n * 2 * 18];
    let block = &mut raw[(9 * 2 + 1) * 18..][..18];
    block[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
    block[2 + 5] = 0xB;
    let elem = Elem::Packed(Packed::for_gguf(t));
    let (at, size) = plane_offsets(elem, n, k);
    let mut out = vec![0; size];
    pack(Elem::Gguf(t), elem, 0, &[(&raw, n)], k, &mut out).unwrap();
    assert_eq!(at, [0, 512, 576, 576]);
    let word = ((2 + 1) * 4 + 1) * 8 + 1;
    assert_eq!(out[word * 4..][..4], [0, 0xB, 0, 0]);
    assert_eq!(out[512 + ((2 + 1) * 8 + 1) * 2..][..2], f16::from_f32(0.5).to_le_bytes());
    assert_eq!(unpack(elem, n, k, &out).unwrap()[9 * 64 + 37], 1.5);
}

#[test]
fn high_bits_are_as_documented() {
    // One row of eight, one group: 8 rows of `bits` words each. Element 29, quad 7, byte 1.
    let place = |t: GgufType, q: u8| {
        let (p, k) = (Packed::for_gguf(t), t.block_len());
        let mut raw = vec![0u8; t.block_bytes()];
        match t {
            GgufType::Q5_0 => {
                raw[2 + 3] = (q >> 4) << 5;
                raw[6 + 13] = (q & 15) << 4;
            }
            _ => {
                raw[29] = q & 15;
                raw[128 + 29] = q >> 4;
            }
        }
        let mut out = vec![0; plane_offsets(Elem::Packed(p), 1, k).1];
        pack(Elem::Gguf(t), Elem::Packed(p), 0, &[(&raw, 1)], k, &mut out).unwrap();
        (0..usize::from(p.bits)).map(|w| out[w * 32..][..4].to_vec()).collect::<Vec<_>>()
    };
    let [low, zero] = [[0, 0xB0, 0, 0], [0; 4]].map(Vec::from);
    assert_eq!(place(GgufType::Q5_0, 0x1B), [&zero, &zero, &zero, &low, &vec![0, 0x80, 0, 0]].map(Clone::clone));
    assert_eq!(place(GgufType::Q6K, 0x2B), [&zero, &zero, &zero, &low, &zero, &vec![0, 0x80, 0, 0]].map(Clone::clone));
}

/// Loops over packed words read what `unpack` reads, whatever the number of bits.
#[test]
fn loops_read_every_number_of_bits() {
    let mut seed = 9u64;
    let mut next = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 40) as u8
    };
    let scales = [DType::F32, DType::F16, DType::U8, DType::I8];
    let all = (1..=8u8).flat_map(|b| scales.map(|s| [(b, s, 16, false), (b, s, 32, true)])).flatten();
    for (bits, scale, group, min) in all {
        let p = Packed { bits, group, scale, zero: u8::from(!min), min, max: u8::MAX >> (8 - bits) };
        let elem = Elem::Packed(p);
        assert_eq!(elem.to_string().parse(), Ok(elem));
        let (n, k) = (16, 64);
        let (at, size) = plane_offsets(elem, n, k);
        let mut bytes: Vec<u8> = (0..size).map(|_| next()).collect();
        let small = |b: u8| i8::try_from(b % 6).unwrap() - if scale == DType::U8 { 0 } else { 3 };
        let (sides, factors) = bytes.split_at_mut(at[3]);
        match scale {
            DType::F32 => {
                sides[at[1]..].as_chunks_mut().0.iter_mut().for_each(|b| *b = f32::from(small(b[0])).to_le_bytes())
            }
            DType::F16 => {
                sides[at[1]..].as_chunks_mut().0.iter_mut().for_each(|b| *b = f16::from(small(b[0])).to_le_bytes())
            }
            _ => sides[at[1]..].iter_mut().for_each(|b| *b = small(*b) as u8),
        }
        factors.as_chunks_mut().0.iter_mut().for_each(|b| *b = f16::from(b[0] % 3).to_le_bytes());
        let planes: Vec<BufData> = (at.iter().zip(p.plane_bytes(n, k)).zip([DType::U32, scale, scale, DType::F16]))
            .filter(|((_, len), _)| *len > 0)
            .map(|((at, len), dtype)| BufData { dtype, bytes: bytes[*at..at + len].to_vec() })
            .collect();
        assert_eq!(planes.len(), p.planes());
        let numbers = unpack(elem, n, k, &bytes).unwrap();
        let rows = loops(MicroOp::Unpack(p), &[2, 64, 8], planes.clone(), &[2, 2]);
        for (i, v) in numbers.iter().enumerate() {
            let (row, col) = (i / k, i % k);
            assert_eq!(rows[(row / 8 * k + col) * 8 + row % 8], *v, "{elem} row {row} column {col}");
        }
        let q: Vec<i8> = (0..k).map(|_| next() as i8).collect();
        let mut args = planes;
        args.push(BufData { dtype: DType::U32, bytes: q.iter().map(|q| *q as u8).collect() });
        args.push(floats([1.0; 2]));
        args.push(floats([0, 1, 2, 3].map(|i| q[i * 16..][..16].iter().map(|q| f32::from(*q)).sum())));
        let products = loops(MicroOp::Dot(p), &[2, 8], args, &[1, 2, 2]);
        for (row, found) in products.iter().enumerate() {
            let expected: f32 = numbers[row * k..][..k].iter().zip(&q).map(|(w, q)| w * f32::from(*q)).sum();
            assert_eq!(*found, expected, "{elem} row {row}: whole numbers have exact sums");
        }
    }
}

fn floats<const N: usize>(v: [f32; N]) -> BufData {
    BufData { dtype: DType::F32, bytes: v.iter().flat_map(|v| v.to_le_bytes()).collect() }
}

/// What the loops of a micro-kernel leave in its first argument.
fn loops(op: MicroOp, out: &[usize], inputs: Vec<BufData>, sizes: &[i64]) -> Vec<f32> {
    let mut data = vec![BufData::zeros(DType::F32, out.iter().product())];
    data.extend(inputs);
    let p = match op {
        MicroOp::Dot(p) | MicroOp::Unpack(p) => p,
        _ => unreachable!(),
    };
    let side = vec![2, 64 / usize::from(p.group), 8];
    let mut shapes = vec![out.to_vec(), vec![2, 2, p.bits.into(), 8], side.clone()];
    shapes.extend(p.min.then_some(side));
    shapes.extend(p.has_factors().then_some(vec![2, 1, 1 + usize::from(p.min), 8]));
    shapes.extend([vec![1, 16], vec![1, 2], vec![1, 4]]);
    let mut k = Kernel::new("k");
    let sizes = sizes.iter().map(|s| Expr::idx(*s)).collect();
    let mut call = Micro { op, args: vec![], sizes };
    for (i, (d, shape)) in data.iter().zip(shapes).enumerate() {
        let scope = if i == 0 { Scope::InOut } else { Scope::In };
        let index = vec![Expr::idx(0); shape.len()];
        let dims = shape.into_iter().map(|d| Dim::from(d as i64)).collect();
        call.args.push((k.buffer(&format!("a{i}"), d.dtype, dims, scope), index));
    }
    k.body = vec![Stmt::Micro(call)];
    assert_eq!(verify::verify(&k, &Default::default()), vec![]);
    interp::run(&k, &[], &mut data).unwrap();
    data[0].to_f32()
}

#[test]
fn wrong_lengths_and_types_are_errors() {
    let q = Elem::Gguf(GgufType::Q4_0);
    let p = Elem::Packed(Packed::for_gguf(GgufType::Q4_0));
    let size = plane_offsets(p, 8, 32).1;
    let raw = [0u8; 8 * 18];
    let mut out = vec![0; size];
    pack(q, p, 0, &[(&raw, 8)], 32, &mut out).unwrap();
    let err = pack(q, p, 0, &[(&raw[..90], 8)], 32, &mut out).unwrap_err();
    assert_eq!(err.to_string(), "source 0 has 90 bytes, expected 144");
    let err = pack(q, p, 0, &[(&raw, 8)], 32, &mut [0; 5]).unwrap_err();
    assert!(matches!(err, PackError::Length { found: 5, .. }));
    let err = pack(q, p, 0, &[(&raw, 8)], 33, &mut out).unwrap_err();
    assert_eq!(err.to_string(), "rows of 33 elements are not whole blocks of gguf.q4_0");
    assert!(matches!(pack(q, p, 8, &[(&raw, 8), (&[], 0)], 32, &mut out), Err(PackError::Interleave { .. })));
    assert!(matches!(pack(q, p, 3, &[(&raw, 8)], 32, &mut out), Err(PackError::Interleave { .. })));
    let other = Elem::Packed(Packed::for_gguf(GgufType::Q8_0));
    let mut out = vec![0; plane_offsets(other, 8, 32).1];
    assert!(matches!(pack(q, other, 0, &[(&raw, 8)], 32, &mut out), Err(PackError::Unsupported { .. })));
    assert!(matches!(pack(p, p, 0, &[(&raw, 8)], 32, &mut out), Err(PackError::Unsupported { .. })));
    let f = Elem::Scalar(DType::F32);
    assert_eq!(pack(f, f, 0, &[(&[], usize::MAX)], 32, &mut []), Err(PackError::Overflow));
    assert_eq!(pack(f, f, 0, &[(&[], 1 << 40)], 0, &mut []), Ok(()));
}

#[test]
fn empty_matrices_pack_to_nothing() {
    for (from, to) in [
        (Elem::Gguf(GgufType::Q6K), Elem::Packed(Packed::for_gguf(GgufType::Q6K))),
        (Elem::Scalar(DType::F16), Elem::Rows8(DType::F16)),
    ] {
        pack(from, to, 0, &[], 256, &mut []).unwrap();
        pack(from, to, 0, &[(&[], 0)], 256, &mut []).unwrap();
        pack(from, to, 8, &[(&[], 0), (&[], 0)], 0, &mut []).unwrap();
        pack(from, to, 0, &[(&[], 5)], 0, &mut []).unwrap();
        pack(from, to, 8, &[(&[], 1 << 50), (&[], 1 << 50)], 0, &mut []).unwrap();
    }
}

/// The embedding and layers of a 135M model in Q4_1, 84 MB, in one piece.
#[test]
#[ignore = "a measurement, not a check"]
fn speed() {
    let t = GgufType::Q4_1;
    let (n, k) = (134_500_000 / 576 / 8 * 8, 576);
    let raw = blocks(t, n * k / 32, &mut 1);
    let elem = Elem::Packed(Packed::for_gguf(t));
    let mut out = vec![0; plane_offsets(elem, n, k).1];
    for _ in 0..3 {
        let start = std::time::Instant::now();
        pack(Elem::Gguf(t), elem, 0, &[(&raw, n)], k, &mut out).unwrap();
        println!("{} bytes in {:?}", raw.len(), start.elapsed());
    }
}

//! One test per kind of malformed GGUF file: the error's code and the words a user needs.

mod common;

use common::{GgufFile, array, string};
use marquetry_frontend::gguf::{Gguf, GgufError};
use proptest::prelude::*;

fn refused(bytes: impl Into<Vec<u8>>) -> GgufError {
    Gguf::parse(bytes).expect_err("the file should be refused")
}

#[track_caller]
fn check(error: &GgufError, code: &str, words: &str) {
    let message = error.to_string();
    assert_eq!(error.code(), code, "{message}");
    assert!(message.contains(words), "{message:?} should contain {words:?}");
}

fn good() -> GgufFile {
    GgufFile::default()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .strs("list", ["a", "b"])
        .raw("nested", 9, &array(9, [array(5, [vec![1, 0, 0, 0]]), array(8, [string("x")])]))
        .ramp("a", &[8, 2])
        .tensor("b", &[32, 3], 2, &[7; 54])
}

#[test]
fn a_good_file_reads_back() {
    let gguf = Gguf::parse(good().build()).unwrap();
    assert_eq!(gguf.str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(gguf.unsigned("llama.block_count").unwrap(), Some(2));
    assert_eq!(gguf.unsigned("absent").unwrap(), None);
    check(&gguf.float("llama.block_count").unwrap_err(), "GGUF025", "`llama.block_count` must be a float, is uint32 2");
    let list: Vec<&str> = gguf.array("list").unwrap().unwrap().iter().filter_map(|v| v.as_str()).collect();
    assert_eq!(list, ["a", "b"]);
    let b = gguf.tensor("b").unwrap();
    assert_eq!((b.shape.as_slice(), b.elem.to_string().as_str()), ([3, 32].as_slice(), "gguf.q4_0"));
    assert_eq!(gguf.data(b), [7; 54]);
    assert_eq!(gguf.data(gguf.tensor("a").unwrap()).len(), 64);
}

#[test]
fn row_01_empty() {
    check(&refused([]), "GGUF001", "file is empty");
}

#[test]
fn row_02_ends_inside_the_header() {
    let words = "ends inside the header at byte 5; a GGUF header is 24 bytes";
    check(&refused(b"GGUF\x03".as_slice()), "GGUF002", words);
    let whole = GgufFile::default().u32("k", 1).build();
    check(&refused(&whole[..38]), "GGUF002", "ends inside the header at byte 38");
}

#[test]
fn row_03_wrong_magic() {
    check(&refused(b"FUGG\x03\0\0\0".as_slice()), "GGUF003", "not a GGUF file (starts with 46 55 47 47)");
}

#[test]
fn row_04_safetensors_renamed() {
    let mut file = 2u64.to_le_bytes().to_vec();
    file.extend(b"{}");
    check(&refused(file), "GGUF003", "this looks like safetensors; rename it or pass --format");
}

#[test]
fn row_05_version() {
    for version in [0, 1, 99] {
        let file = GgufFile { version, ..good() };
        check(&refused(file.build()), "GGUF004", &format!("version {version} is not supported (2 and 3 are)"));
    }
    Gguf::parse(GgufFile { version: 2, ..good() }.build()).unwrap();
}

#[test]
fn row_06_big_endian() {
    let file = GgufFile { version: 3u32.swap_bytes(), ..good() };
    check(&refused(file.build()), "GGUF005", "big-endian file");
}

#[test]
fn row_07_entry_count() {
    let error = refused(good().build_claiming(2, u64::MAX));
    check(&error, "GGUF006", "claims 18446744073709551615 metadata entries at byte 16, the file has room for at most ");
}

#[test]
fn row_08_tensor_count() {
    let error = refused(good().build_claiming(u64::MAX, 3));
    check(&error, "GGUF007", "claims 18446744073709551615 tensors at byte 8, the file has room for at most ");
}

#[test]
fn row_09_key_length() {
    let mut file = GgufFile::default();
    file.entries.push([(1u64 << 63).to_le_bytes().to_vec(), vec![b'k'; 40]].concat());
    check(&refused(file.build()), "GGUF008", "string of 9223372036854775808 bytes at offset 24, only 64 left");
}

#[test]
fn row_10_bad_key() {
    let with = |key: &[u8]| refused(GgufFile::default().raw(key, 4, &[1, 0, 0, 0]).build());
    check(&with(b""), "GGUF009", "bad key at offset 24: it is empty");
    check(&with(&[b'k'; 70_000]), "GGUF009", "bad key at offset 24: it has 70000 bytes");
    check(&with(&[b'k', 0xFF]), "GGUF009", "is not UTF-8");
}

#[test]
fn row_11_duplicate_key() {
    let file = GgufFile::default().u32("k", 1).u32("j", 1).u32("k", 2);
    check(&refused(file.build()), "GGUF010", "key `k` appears twice (offsets 24 and 58)");
}

#[test]
fn row_12_value_type() {
    let file = GgufFile::default().raw("k", 99, &[0; 8]);
    check(&refused(file.build()), "GGUF011", "unknown value type 99 for `k` at offset 33");
}

#[test]
fn row_13_array_length() {
    let payload = [8u32.to_le_bytes().to_vec(), (1u64 << 63).to_le_bytes().to_vec()].concat();
    let mut file = GgufFile::default().raw("k", 9, &payload).build();
    file.truncate(49);
    let error = refused(file);
    check(&error, "GGUF012", "array of 9223372036854775808 elements for `k` at offset 37 cannot fit in 0 bytes");
}

#[test]
fn row_14_nested_arrays() {
    let one = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat();
    let file = GgufFile::default().raw("k", 9, &one.repeat(10_000));
    check(&refused(file.build()), "GGUF013", "arrays nested deeper than 4 for `k`");
}

#[test]
fn row_15_alignment() {
    for bad in [0, 13, 1 << 30] {
        let file = good().u32("general.alignment", bad);
        let words = format!("alignment must be a power of two <= 1 MiB, uint32; `general.alignment` is uint32 {bad}");
        check(&refused(file.build()), "GGUF014", &words);
    }
    check(&refused(good().raw("general.alignment", 5, &[32, 0, 0, 0]).build()), "GGUF014", "is int32 32");
    check(&refused(good().str("general.alignment", "32").build()), "GGUF014", "is string \"32\"");
    let file = GgufFile { alignment: 64, ..GgufFile::default() };
    Gguf::parse(file.u32("general.alignment", 64).ramp("a", &[3]).ramp("b", &[3]).build()).unwrap();
}

#[test]
fn row_16_dimensions() {
    let mut file = GgufFile::default();
    file.tensors.push([string("t"), vec![0xFF; 4], vec![0; 64]].concat());
    check(&refused(file.build()), "GGUF015", "tensor `t` has 4294967295 dimensions at offset 33, at most 8");
}

#[test]
fn row_17_and_18_size_overflows() {
    for dims in [[(1 << 42) + 1, 1152], [(1 << 63) - 1, 2], [1 << 63, 4]] {
        let file = GgufFile::default().describe("t", &dims, 0, 0);
        check(&refused(file.build()), "GGUF016", "tensor `t`: size overflows");
    }
}

#[test]
fn row_19_empty_tensor() {
    let file = GgufFile::default().describe("t", &[4, 0], 0, 0);
    check(&refused(file.build()), "GGUF017", "tensor `t` is empty: its dimensions are [4, 0]");
}

#[test]
fn row_20_block_size() {
    let file = GgufFile::default().describe("t", &[33, 2], 2, 0);
    check(&refused(file.build()), "GGUF018", "33 is not a multiple of the block size 32 of q4_0");
}

#[test]
fn row_21_tensor_type() {
    for (tag, words) in [
        (777, "unknown tensor type 777"),
        (u32::MAX, "unknown tensor type 4294967295"),
        (20, "tensor type iq4_nl (20) is not supported"),
    ] {
        check(&refused(GgufFile::default().describe("t", &[32], tag, 0).build()), "GGUF019", words);
    }
}

#[test]
fn row_22_data_past_the_end() {
    let file = GgufFile::default().describe("t", &[32], 0, 0);
    let words = "data of `t` ends at 192, file has 64 bytes: incomplete download?";
    check(&refused(file.build()), "GGUF020", words);
    let file = GgufFile::default().describe("t", &[32], 0, u64::MAX - 31);
    check(&refused(file.build()), "GGUF020", "incomplete download?");
}

#[test]
fn row_23_overlap() {
    let file = good().describe("c", &[8], 0, 32);
    check(&refused(file.build()), "GGUF021", "`a` and `c` overlap at byte ");
}

#[test]
fn row_24_unaligned() {
    let file = GgufFile { data: vec![0; 128], ..GgufFile::default() }.describe("t", &[8], 0, 4);
    check(&refused(file.build()), "GGUF022", "data of `t` starts at offset 4, not a multiple of the alignment 32");
}

#[test]
fn row_25_tensor_name() {
    check(&refused(good().ramp("a", &[8]).build()), "GGUF023", "`a` appears twice");
    let with = |name: &[u8]| refused(GgufFile::default().describe(name, &[8], 0, 0).build());
    check(&with(&[b'n'; 10_240]), "GGUF023", "bad tensor name at offset 24: it has 10240 bytes");
    check(&with(b"a\x1b[31m"), "GGUF023", "has control characters");
    assert!(!with(b"a\x1b[31m").to_string().contains('\x1b'), "terminal escapes must not reach the terminal");
}

#[test]
fn row_26_running_sum() {
    let file = GgufFile::default().describe("t", &[1 << 45], 0, 0).describe("u", &[1 << 45], 0, 1 << 47);
    let file = file.describe("v", &[1 << 45], 0, 1 << 48);
    check(&refused(file.build()), "GGUF016", "tensor `v`: size overflows: with the tensors before it");
}

#[test]
fn row_36_split_file_missing() {
    let dir = tempfile::tempdir().unwrap();
    let part = |no: u32, tensor: &str| {
        let file = GgufFile::default().raw("split.no", 2, &(no as u16).to_le_bytes());
        let file = file.raw("split.count", 2, &3u16.to_le_bytes()).raw("split.tensors.count", 5, &3i32.to_le_bytes());
        file.ramp(tensor, &[8]).build()
    };
    let path = |no: u32| dir.path().join(format!("m-{no:05}-of-00003.gguf"));
    std::fs::write(path(1), part(0, "a")).unwrap();
    std::fs::write(path(3), part(2, "c")).unwrap();
    let error = Gguf::open(path(1)).unwrap_err();
    check(&error, "GGUF040", "part 2 of 3 not found beside part 1");

    std::fs::write(path(2), part(1, "b")).unwrap();
    for opened in 1..=3 {
        let gguf = Gguf::open(path(opened)).unwrap();
        let names: Vec<&str> = gguf.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert!(gguf.tensors().iter().all(|t| gguf.data(t)[4..8] == 1f32.to_le_bytes()));
    }
    std::fs::write(path(2), part(0, "b")).unwrap();
    check(&Gguf::open(path(1)).unwrap_err(), "GGUF041", "part 2 of a split model");
    std::fs::write(path(2), part(1, "a")).unwrap();
    check(&Gguf::open(path(1)).unwrap_err(), "GGUF041", "a tensor is in two parts");
    let renamed = dir.path().join("renamed.gguf");
    std::fs::copy(path(1), &renamed).unwrap();
    check(&Gguf::open(renamed).unwrap_err(), "GGUF041", "is not named NAME-00001-of-00003.gguf");
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    check(&Gguf::open(dir.path().join("absent.gguf")).unwrap_err(), "GGUF027", "absent.gguf: cannot be read");
    check(&Gguf::open(dir.path()).unwrap_err(), "GGUF027", "not a regular file");
}

#[test]
fn every_prefix_is_refused() {
    let whole = good().build();
    for n in 0..whole.len() {
        Gguf::parse(&whole[..n]).expect_err("a truncated file");
    }
}

/// Reads everything that a file offers.
fn exercise(bytes: Vec<u8>) {
    let Ok(gguf) = Gguf::parse(bytes) else { return };
    for key in gguf.keys() {
        if let Some(value) = gguf.value(key) {
            let _ = value.to_string();
            let _ = value.as_array().map(|a| a.iter().count());
        }
    }
    for tensor in gguf.tensors() {
        let _ = gguf.data(tensor);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = good().build();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        exercise(bytes);
    }

    #[test]
    fn random_words_never_panic(at in any::<prop::sample::Index>(), word in any::<u64>(), shift in 0u32..64) {
        let mut bytes = good().build();
        let at = at.index(bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&(word >> shift).to_le_bytes());
        exercise(bytes);
    }
}

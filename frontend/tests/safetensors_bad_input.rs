//! One test per kind of malformed safetensors file or directory.

use std::path::Path;

use marquetry_frontend::safetensors::{Safetensors, StError};
use proptest::prelude::*;

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(vec![0; data]);
    out
}

const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}}"#;

#[track_caller]
fn check(error: &StError, code: &str, words: &str) {
    let message = error.to_string();
    assert_eq!(error.code(), code, "{message}");
    assert!(message.contains(words), "{message:?} should contain {words:?}");
}

#[track_caller]
fn refused(header: &str, data: usize, code: &str, words: &str) {
    check(&Safetensors::parse(file(header, data)).expect_err("should be refused"), code, words);
}

/// A header of one tensor `a`.
fn one(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
}

#[test]
fn a_good_file_reads_back() {
    let st = Safetensors::parse(file(GOOD, 22)).unwrap();
    let b = st.tensor("b").unwrap();
    assert_eq!((b.shape.as_slice(), b.dtype.name(), st.data(b).len()), ([3].as_slice(), "bf16", 6));
    assert_eq!(st.tensors().len(), 2);
    assert!(st.non_finite().is_empty());
}

#[test]
fn row_37_short() {
    for len in [0, 7] {
        let error = Safetensors::parse(vec![0; len]).unwrap_err();
        check(&error, "ST001", &format!("too short for a header: {len} bytes"));
    }
}

#[test]
fn row_38_header_length() {
    for claimed in [u64::MAX, (100 << 20) + 1, 15] {
        let mut bytes = claimed.to_le_bytes().to_vec();
        bytes.extend(b"{}");
        let error = Safetensors::parse(bytes).unwrap_err();
        check(&error, "ST002", &format!("header claims {claimed} bytes, the limit is 104857600 and the file has 10"));
    }
}

#[test]
fn row_39_header_text() {
    refused(" {}", 0, "ST003", "must start with `{` at header byte 0");
    refused("[1]", 0, "ST003", "must start with `{`");
    refused("{\"a\":", 0, "ST003", "at header byte ");
    refused("{} x", 0, "ST003", "at header byte ");
    let mut bytes = file("{\"aa\":1}", 0);
    bytes[10] = 0xFF;
    check(&Safetensors::parse(bytes).unwrap_err(), "ST003", "it is not UTF-8 at header byte 2");
}

#[test]
fn row_40_duplicate() {
    let a = r#""a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}"#;
    refused(&format!("{{{a},{a}}}"), 2, "ST004", "tensor `a` appears twice");
}

#[test]
fn row_41_layout() {
    let two = |second: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}},"b":{{"dtype":"U8","shape":[2],"data_offsets":{second}}}}}"#
        )
    };
    refused(&two("[1,3]"), 3, "ST005", "`b` overlaps the tensor before it");
    refused(&two("[3,5]"), 5, "ST005", "`b` leaves a hole before it");
    refused(&two("[2,4]"), 9, "ST005", "5 bytes follow the last tensor");
}

#[test]
fn row_42_offsets() {
    refused(&one("U8", "[2]", "[4,2]"), 4, "ST006", "tensor `a` has bytes 4 to 2");
    refused(&one("U8", "[9]", "[0,9]"), 4, "ST006", "the file has 4: incomplete download?");
    refused(&one("U8", "[9]", "[0,18446744073709551615]"), 4, "ST006", "incomplete download?");
}

#[test]
fn row_43_size() {
    refused(&one("F32", "[3]", "[0,8]"), 8, "ST007", "tensor `a` of shape [3] F32 does not take 8 bytes");
    refused(&one("U8", "[4294967296,4294967296,2]", "[0,0]"), 0, "ST007", "does not take 0 bytes");
}

#[test]
fn row_44_shape() {
    refused(&one("U8", "[-1]", "[0,1]"), 1, "ST008", "one is -1");
    refused(&one("U8", "[2.0]", "[0,2]"), 2, "ST008", "one is 2.0");
    refused(&one("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, "ST008", "at most 8");
    refused(&one("U8", "[1]", "[0,1,1]"), 1, "ST008", "`data_offsets` has 3 of them");
}

#[test]
fn row_45_dtype() {
    refused(&one("F128", "[1]", "[0,16]"), 16, "ST009", "type F128 is not supported; known: F32");
}

#[test]
fn row_46_count() {
    let entries: Vec<String> =
        (0..1_000_001).map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#)).collect();
    refused(&format!("{{{}}}", entries.join(",")), 0, "ST010", "more than 1000000 tensors");
}

#[test]
fn row_47_fields_and_names() {
    refused(r#"{"__metadata__":{"a":1}}"#, 0, "ST011", "`__metadata__` must be an object of strings");
    refused(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}"#, 1, "ST011", "field `x`");
    refused(r#"{"a":{"dtype":"U8","shape":[1]}}"#, 1, "ST011", "tensor `a` has no `data_offsets`");
    refused(&one("U8", "[1]", "[0,1]").replace("\"a\"", "\"\""), 1, "ST011", "empty name");
    refused(&one("U8", "[1]", "[0,1]").replace("\"a\"", "\"../x\""), 1, "ST011", "looks like a path");
}

#[test]
fn row_48_not_finite() {
    let mut bytes = file(&one("F32", "[4]", "[0,16]"), 16);
    let at = bytes.len() - 8;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    bytes[at + 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let found = Safetensors::parse(bytes).unwrap().non_finite();
    check(&found[0], "ST012", "tensor `a` has 2 values that are NaN or infinite, the first at index 2");
}

fn write(dir: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(dir.join(name), bytes).unwrap();
}

fn sharded(shard: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "m1.safetensors", &file(&one("U8", "[2]", "[0,2]"), 2));
    let index = format!(r#"{{"metadata":{{"total_size":2}},"weight_map":{{"a":"{shard}"}}}}"#);
    write(dir.path(), "model.safetensors.index.json", index.as_bytes());
    dir
}

#[test]
fn row_49_shard_names() {
    let st = Safetensors::open(sharded("m1.safetensors").path()).unwrap();
    assert!(st.warnings().is_empty());
    for bad in ["../../x.safetensors", "/x.safetensors", "..", "", "a\\\\b.safetensors", "C:x.safetensors"] {
        let dir = sharded(bad);
        check(&Safetensors::open(dir.path()).unwrap_err(), "ST020", "shard name must be a plain file name");
    }
    check(&Safetensors::open(sharded("config.json").path()).unwrap_err(), "ST020", "does not end in .safetensors");
}

#[cfg(unix)]
#[test]
fn row_49_links() {
    use std::os::unix::fs::symlink;
    let dir = sharded("m2.safetensors");
    symlink("/etc/hostname", dir.path().join("m2.safetensors")).unwrap();
    check(&Safetensors::open(dir.path()).unwrap_err(), "ST020", "is a link that leads elsewhere");

    // A download cache: snapshots/REVISION/x -> ../../blobs/HASH.
    let cache = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/1"));
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::copy(dir.path().join("m1.safetensors"), blobs.join("abc")).unwrap();
    std::fs::copy(dir.path().join("model.safetensors.index.json"), snapshot.join("model.safetensors.index.json"))
        .unwrap();
    symlink("../../blobs/abc", snapshot.join("m2.safetensors")).unwrap();
    Safetensors::open(&snapshot).unwrap();
}

#[test]
fn row_50_index() {
    let dir = sharded("m1.safetensors");
    let index = |text: &str| write(dir.path(), "model.safetensors.index.json", text.as_bytes());
    let refused = |words: &str| check(&Safetensors::open(dir.path()).unwrap_err(), "ST021", words);
    index(r#"{"weight_map":{"a":"m1.safetensors","b":"m1.safetensors"}}"#);
    refused("tensor `b` is not in `m1.safetensors`");
    write(dir.path(), "m2.safetensors", &file(&one("U8", "[2]", "[0,2]"), 2));
    index(r#"{"weight_map":{"a":"m1.safetensors","a":"m2.safetensors"}}"#);
    refused("key `a` appears twice");
    let both =
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    write(dir.path(), "m2.safetensors", &file(both, 2));
    index(r#"{"weight_map":{"a":"m1.safetensors","b":"m2.safetensors"}}"#);
    refused("tensor `a` is in two shards");
    index(r#"{"weight_map":[]}"#);
    refused("`weight_map` must be an object");
    index(r#"{"metadata":{"total_size":3},"weight_map":{"a":"m1.safetensors"}}"#);
    let st = Safetensors::open(dir.path()).unwrap();
    check(&st.warnings()[0], "ST021", "`total_size` is 3, the shards hold 2 bytes");
    index(r#"{"weight_map":{"a":"m3.safetensors"}}"#);
    check(&Safetensors::open(dir.path()).unwrap_err(), "ST024", "m3.safetensors: cannot be read");
}

#[test]
fn row_51_git_lfs() {
    let dir = sharded("m1.safetensors");
    write(dir.path(), "m1.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
    check(&Safetensors::open(dir.path()).unwrap_err(), "ST022", "this is a Git-LFS pointer, not the weights");
}

#[test]
fn row_52_pickle() {
    let dir = tempfile::tempdir().unwrap();
    check(&Safetensors::open(dir.path()).unwrap_err(), "ST024", "there is no model.safetensors");
    write(dir.path(), "pytorch_model.bin", b"x");
    let words = "`pytorch_model.bin`: pickle is not read because it can run code; convert";
    check(&Safetensors::open(dir.path()).unwrap_err(), "ST023", words);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = file(GOOD, 22);
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(st) = Safetensors::parse(bytes) {
            let total: usize = st.tensors().iter().map(|t| st.data(t).len()).sum();
            prop_assert_eq!(total, 22);
        }
    }
}

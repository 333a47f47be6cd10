use std::fs;

use super::*;

const ME: Key = [7; 32];

fn weights() -> Vec<(Key, Vec<u8>)> {
    let bytes = |i: usize, n: usize| (0..n).map(|j| (i * 131 + j * 7) as u8).collect();
    [64, 4096, 192, 0, 70].into_iter().enumerate().map(|(i, n)| ([i as u8; 32], bytes(i, n))).collect()
}

/// Writes the weights, each in pieces and from its end.
fn write(path: &Path, all: &[(Key, Vec<u8>)]) -> Result<(), RuntimeError> {
    let places: Vec<(Key, usize)> = all.iter().map(|(k, b)| (*k, b.len())).collect();
    let fill = |sink: &Sink<'_>| {
        for (i, (_, bytes)) in all.iter().enumerate().rev() {
            for (c, piece) in bytes.chunks(64).enumerate().rev() {
                sink.put(i, 64 * c, piece)?;
            }
        }
        Ok(())
    };
    Packs::write(path, &ME, &places, &fill, &|| Ok(()))
}

#[test]
fn weights_come_back_aligned() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pack");
    assert!(Packs::open(&path, &ME).is_none());
    let all = weights();
    write(&path, &all).unwrap();
    let packs = Packs::open(&path, &ME).unwrap();
    assert_eq!((packs.len(), packs.is_empty(), packs.damaged()), (all.len(), false, 0));
    for (key, bytes) in &all {
        let data = packs.get(key).unwrap();
        assert_eq!(&*data, &bytes[..]);
        assert!((data.as_ptr() as usize).is_multiple_of(ALIGN));
    }
    assert!(packs.get(&[9; 32]).is_none());
    assert!(Packs::open(&path, &[8; 32]).is_none());
    write(&path, &[]).unwrap();
    assert!(Packs::open(&path, &ME).unwrap().is_empty());
    // What is mapped outlives its file.
    assert_eq!(packs.damaged(), 0);
}

#[test]
fn pieces_in_any_order_share_huge_pages() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pack");
    let all: Vec<Vec<u8>> = [HUGE + 1000, 40, 2 * HUGE - 8]
        .iter()
        .enumerate()
        .map(|(i, n)| (0..*n).map(|j| (i * 31 + j + j / 251) as u8 | 1).collect())
        .collect();
    let places: Vec<(Key, usize)> = all.iter().enumerate().map(|(i, b)| ([i as u8; 32], b.len())).collect();
    let fill = |sink: &Sink<'_>| {
        // Every other piece, from the end, then those between them.
        for odd in [1, 0] {
            for (i, bytes) in all.iter().enumerate() {
                for (c, piece) in bytes.chunks(99_992).enumerate().rev().filter(|(c, _)| c % 2 == odd) {
                    sink.put(i, 99_992 * c, piece)?;
                }
            }
        }
        Ok(())
    };
    Packs::write(&path, &ME, &places, &fill, &|| Ok(())).unwrap();
    let packs = Packs::open(&path, &ME).unwrap();
    assert_eq!(packs.damaged(), 0);
    for (i, bytes) in all.iter().enumerate() {
        assert!(*packs.get(&[i as u8; 32]).unwrap() == bytes[..], "{i}");
    }
}

#[test]
fn a_file_is_left_only_when_all_went_well() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pack");
    let no = || io::Error::other("no");
    let one = [([1; 32], 64)];
    assert!(Packs::write(&path, &ME, &one, &|_| Err(no()), &|| Ok(())).is_err());
    assert!(Packs::write(&path, &ME, &one, &|_| Ok(()), &|| Err(no())).is_err());
    for (weight, at, len) in [(1, 0, 8), (0, 8, 64), (0, 4, 8), (0, usize::MAX - 7, 16)] {
        assert!(Packs::write(&path, &ME, &one, &|s| s.put(weight, at, &vec![1; len]), &|| Ok(())).is_err());
    }
    assert!(Packs::write(&path, &ME, &[([1; 32], usize::MAX - 7)], &|_| Ok(()), &|| Ok(())).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn damage_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pack");
    let all = weights();
    write(&path, &all).unwrap();
    let good = fs::read(&path).unwrap();
    let data = HEADER + all.len() * ROW;
    let opens = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Packs::open(&path, &ME)
    };
    for len in (0..data).chain([data, data + 1, good.len() / 2, good.len() - 1]) {
        assert!(opens(&good[..len]).is_none(), "{len} bytes");
    }
    assert!(opens(&[&good[..], &[0]].concat()).is_none());
    for bit in 0..8 * data {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(opens(&bad).is_none(), "bit {bit}");
    }
    // Every bit of a weight is seen when weights are read.
    for at in (data..data + 64).chain([good.len() - 1]) {
        let mut bad = good.clone();
        bad[at] ^= 0x80;
        assert_eq!(opens(&bad).unwrap().damaged(), 1, "byte {at}");
    }
}

/// A file whose hash is right may still say anything.
#[test]
fn places_are_checked_whoever_wrote_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pack");
    write(&path, &weights()).unwrap();
    let good = fs::read(&path).unwrap();
    let with = |change: &dyn Fn(&mut [u8])| {
        let mut file = good.clone();
        change(&mut file);
        let count = u32::from_le_bytes(*file[12..].first_chunk().unwrap()) as usize;
        let end = (HEADER + count.min(100) * ROW).min(file.len());
        let hash = hash_of(&file[..HASHED], &file[HEADER..end]);
        file[HASHED..HASHED + 32].copy_from_slice(&hash);
        fs::write(&path, file).unwrap();
        Packs::open(&path, &ME).is_some()
    };
    let set = |at: usize, v: u64| move |f: &mut [u8]| f[at..at + 8].copy_from_slice(&v.to_le_bytes());
    assert!(with(&|_| ()));
    let (start, len) = (HEADER + 32, HEADER + 40);
    for v in [0, 64, 128 + 5 * 64 + 8, good.len() as u64, u64::MAX - 63, 1 << 63] {
        assert!(!with(&set(start, v)), "start {v}");
    }
    for v in [good.len() as u64, u64::MAX, u64::MAX - 1000, 1 << 63] {
        assert!(!with(&set(len, v)), "length {v}");
    }
    for v in [u32::MAX, 1 << 20, 100] {
        assert!(!with(&|f| f[12..16].copy_from_slice(&v.to_le_bytes())), "{v} weights");
    }
    assert!(!with(&set(16, good.len() as u64 + 1)));
    assert!(!with(&|f| f[8] = 2));
}

#[test]
fn two_writers_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pack");
    let all = weights();
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..8 {
                    write(&path, &all).unwrap();
                    let packs = Packs::open(&path, &ME).unwrap();
                    assert_eq!((packs.len(), packs.damaged()), (all.len(), 0));
                }
            });
        }
    });
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

//! Files that survive: a reader sees the old contents or the new ones, never a part, whatever dies in between.
//!
//! Everything is written under a temporary name in the directory where it will live, synced, renamed into place, and the
//! directory synced. Temporary names carry the process id and a counter, so that any number of processes may publish the same
//! thing at once: each writes its own copy and the last rename wins.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use memmap2::Mmap;

use crate::RuntimeError;

/// Temporary files older than this belong to nobody.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);
/// Part of every temporary name.
const PARTIAL: &str = ".partial-";

const MAGIC: [u8; 8] = *b"MARQCACH";
const VERSION: u32 = 1;
/// Magic, version, reserved word, length, key, hash of the contents, hash of the header; padded so that the contents are
/// aligned to 64 bytes.
const HEADER: usize = 192;
const HASHED: usize = 8 + 4 + 4 + 8 + 32 + 32;

fn at<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> RuntimeError + 'a {
    move |source| RuntimeError::File { action, path: path.to_path_buf(), source }
}

/// The directory of `path` and a fresh temporary name in it.
fn temporary(path: &Path) -> Result<(PathBuf, PathBuf), RuntimeError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let dir = match path.parent() {
        Some(d) if !d.as_os_str().is_empty() => d.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let Some(name) = path.file_name() else {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name");
        return Err(at("write", path)(source));
    };
    let mut temp = name.to_os_string();
    temp.push(format!("{PARTIAL}{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let temp = dir.join(temp);
    Ok((dir, temp))
}

/// Makes renames in a directory durable.
fn sync_dir(dir: &Path) -> Result<(), RuntimeError> {
    if cfg!(unix) { File::open(dir).and_then(|d| d.sync_all()).map_err(at("sync", dir)) } else { Ok(()) }
}

/// Writes a file: `fill` gets the temporary file, unbuffered, and what it leaves there is published as `path`.
///
/// On any error the temporary file is removed and a file that was at `path` before is untouched.
pub fn publish_file(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), RuntimeError> {
    let (dir, temp) = temporary(path)?;
    let written = (|| {
        let mut f = OpenOptions::new().write(true).create_new(true).open(&temp).map_err(at("create", &temp))?;
        fill(&mut f).map_err(at("write", &temp))?;
        f.sync_all().map_err(at("sync", &temp))?;
        fs::rename(&temp, path).map_err(at("rename to", path))
    })();
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&temp);
    }
    written?;
    sync_dir(&dir)
}

/// Writes `bytes` as the file `path`; see [`publish_file`].
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), RuntimeError> {
    publish_file(path, |f| f.write_all(bytes))
}

/// Writes a directory: `fill` gets an empty temporary directory, and what it leaves there is published as `path`.
///
/// An existing directory at `path` is replaced: it is moved aside, and moved back when the new one can not take its place. A
/// process that dies between the two renames leaves no directory at `path`; the old one is then kept under its temporary name.
/// On any error the temporary directory is removed.
pub fn publish_dir(path: &Path, fill: impl FnOnce(&Path) -> Result<(), RuntimeError>) -> Result<(), RuntimeError> {
    let (dir, temp) = temporary(path)?;
    let (_, aside) = temporary(path)?;
    let written = (|| {
        fs::create_dir(&temp).map_err(at("create", &temp))?;
        fill(&temp)?;
        sync_tree(&temp, 0)?;
        match fs::rename(&temp, path) {
            Ok(()) => Ok(()),
            Err(_) if path.is_dir() => {
                fs::rename(path, &aside).map_err(at("move aside", path))?;
                fs::rename(&temp, path).map_err(|e| {
                    // The first error is the one to report.
                    let _ = fs::rename(&aside, path);
                    at("rename to", path)(e)
                })
            }
            Err(e) => Err(at("rename to", path)(e)),
        }
    })();
    if written.is_err() {
        let _ = fs::remove_dir_all(&temp);
    }
    written?;
    sync_dir(&dir)?;
    if aside.exists() {
        // The new directory is in place; what is left of the old one is cleaned up as stale later.
        let _ = fs::remove_dir_all(&aside);
    }
    Ok(())
}

fn sync_tree(dir: &Path, depth: u32) -> Result<(), RuntimeError> {
    if depth > 16 {
        return Err(at("sync", dir)(io::Error::other("nested more than 16 directories deep")));
    }
    for entry in fs::read_dir(dir).map_err(at("read", dir))? {
        let path = entry.map_err(at("read", dir))?.path();
        let kind = fs::symlink_metadata(&path).map_err(at("inspect", &path))?.file_type();
        if kind.is_dir() {
            sync_tree(&path, depth + 1)?;
        } else if kind.is_file() {
            File::open(&path).and_then(|f| f.sync_all()).map_err(at("sync", &path))?;
        }
    }
    sync_dir(dir)
}

/// Removes temporary files and directories in `dir` that nobody has changed for 24 hours. Gives their number.
pub fn remove_stale(dir: &Path) -> Result<usize, RuntimeError> {
    remove_older(dir, STALE)
}

fn remove_older(dir: &Path, age: Duration) -> Result<usize, RuntimeError> {
    let mut removed = 0;
    for entry in fs::read_dir(dir).map_err(at("read", dir))? {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        let ours = name.to_string_lossy().rsplit_once(PARTIAL).is_some_and(|(_, id)| {
            id.split_once('-').is_some_and(|(p, n)| p.parse::<u32>().is_ok() && n.parse::<u64>().is_ok())
        });
        // Another process may remove it at the same time; that is as good.
        let Ok(meta) = entry.metadata() else { continue };
        let old = meta.modified().ok().and_then(|t| SystemTime::now().duration_since(t).ok()).is_some_and(|d| d > age);
        if ours && old {
            let gone = if meta.is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
            removed += usize::from(gone.is_ok());
        }
    }
    Ok(removed)
}

/// Maps a regular file for reading.
///
/// The file must not be changed or shortened while it is mapped; files that are only ever replaced by renaming, as everything
/// in this module does, keep that promise.
pub fn map_file(path: &Path) -> Result<Arc<Mmap>, RuntimeError> {
    let meta = fs::metadata(path).map_err(at("open", path))?;
    if !meta.is_file() {
        return Err(at("open", path)(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    let f = File::open(path).map_err(at("open", path))?;
    // SAFETY: the map is read only; that nobody changes the file is the documented condition.
    unsafe { Mmap::map(&f) }.map(Arc::new).map_err(at("map", path))
}

/// The key of a cache entry: a blake3 hash of everything that decides its contents.
pub type Key = [u8; 32];

/// The hash of several parts as a [`Key`]; parts are told apart, `["ab"]` and `["a", "b"]` differ.
pub fn key(parts: &[&[u8]]) -> Key {
    let mut k = KeyOf::default();
    parts.iter().for_each(|p| k.part(p));
    k.finish()
}

/// Makes the [`key`] of parts that come one by one.
#[derive(Default)]
pub struct KeyOf(blake3::Hasher);

impl KeyOf {
    /// Adds a part.
    pub fn part(&mut self, part: &[u8]) {
        self.0.update(&(part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    /// The key of the parts so far.
    pub fn finish(&self) -> Key {
        *self.0.finalize().as_bytes()
    }
}

/// The contents of a cache entry, mapped; aligned to 64 bytes.
#[derive(Clone)]
pub struct Entry {
    map: Arc<Mmap>,
}

impl Entry {
    /// The whole file, and the place of the contents in it, e.g. for [`crate::WeightData::mapped`].
    pub fn parts(&self) -> (&Arc<Mmap>, Range<usize>) {
        (&self.map, HEADER..self.map.len())
    }
}

impl Deref for Entry {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map[HEADER..]
    }
}

/// A directory of entries under their keys. Safe to use from several processes at once, without locks.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Opens a cache directory, makes it if there is none, and removes what dead processes left there.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Cache, RuntimeError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(at("create", &dir))?;
        remove_stale(&dir)?;
        Ok(Cache { dir })
    }

    /// The file of an entry: the key in hexadecimal.
    pub fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(format!("{}.bin", blake3::Hash::from_bytes(*key).to_hex()))
    }

    /// The entry of that key. `None` when there is none or it is damaged or of another format; such a file is removed.
    ///
    /// Every byte is read and hashed.
    pub fn get(&self, key: &Key) -> Option<Entry> {
        let path = self.path(key);
        // A file that can not be opened, such as one without permission, is not known to be bad.
        let map = match map_file(&path) {
            Ok(map) => map,
            Err(_) => {
                let empty = fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() == 0);
                if empty {
                    let _ = fs::remove_file(&path);
                }
                return None;
            }
        };
        if !valid(&map, key) {
            // A good entry renamed here meanwhile is lost with it, and will be made again.
            let _ = fs::remove_file(&path);
            return None;
        }
        Some(Entry { map })
    }

    /// Stores an entry; one of the same key is replaced.
    pub fn put(&self, key: &Key, bytes: &[u8]) -> Result<(), RuntimeError> {
        publish_file(&self.path(key), |f| {
            f.write_all(&header(key, bytes))?;
            f.write_all(bytes)
        })
    }

    /// Removes an entry. Having none is no error.
    pub fn remove(&self, key: &Key) -> Result<(), RuntimeError> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at("remove", &path)(e)),
            _ => Ok(()),
        }
    }
}

fn header(key: &Key, bytes: &[u8]) -> [u8; HEADER] {
    let mut h = Vec::with_capacity(HEADER);
    h.extend(MAGIC);
    h.extend(VERSION.to_le_bytes());
    h.extend(0u32.to_le_bytes());
    h.extend((bytes.len() as u64).to_le_bytes());
    h.extend(key);
    h.extend(blake3::hash(bytes).as_bytes());
    h.extend(*blake3::hash(&h).as_bytes());
    let mut out = [0; HEADER];
    out[..h.len()].copy_from_slice(&h);
    out
}

fn valid(file: &[u8], key: &Key) -> bool {
    // The cheap part first: the header tells length and key apart before the contents are hashed.
    let Some((head, body)) = file.split_at_checked(HEADER) else { return false };
    let length = u64::from_le_bytes([head[16], head[17], head[18], head[19], head[20], head[21], head[22], head[23]]);
    let sound = head[HASHED..HASHED + 32] == *blake3::hash(&head[..HASHED]).as_bytes();
    sound && length == body.len() as u64 && head[..] == header(key, body)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let d = std::env::temp_dir().join(format!("marquetry-files-{}-{name}", process::id()));
            let _ = fs::remove_dir_all(&d);
            fs::create_dir_all(&d).unwrap();
            Dir(d)
        }

        fn names(&self) -> Vec<String> {
            let mut v: Vec<_> =
                fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
            v.sort();
            v
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn files_are_replaced_whole_or_not_at_all() {
        let d = Dir::new("file");
        let path = d.0.join("a.json");
        write_file(&path, b"one").unwrap();
        let e = publish_file(&path, |f| {
            f.write_all(b"tw")?;
            Err(io::Error::other("disk full"))
        });
        assert!(e.unwrap_err().to_string().contains("disk full"));
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write_file(&path, b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(d.names(), ["a.json"]);
        assert!(write_file(&d.0.join("no/such/dir"), b"").is_err());
        assert!(write_file(Path::new("/"), b"").is_err());
    }

    #[test]
    fn directories_are_replaced_whole_or_not_at_all() {
        let d = Dir::new("dir");
        let path = d.0.join("package");
        for text in ["one", "two"] {
            publish_dir(&path, |t| {
                fs::create_dir(t.join("sub")).map_err(at("create", t))?;
                write_file(&t.join("sub/x"), text.as_bytes())
            })
            .unwrap();
            assert_eq!(fs::read(path.join("sub/x")).unwrap(), text.as_bytes());
        }
        let e = publish_dir(&path, |t| {
            write_file(&t.join("y"), b"")?;
            Err(at("convert", t)(io::Error::other("no")))
        });
        assert!(e.is_err());
        assert_eq!(fs::read(path.join("sub/x")).unwrap(), b"two");
        assert_eq!(d.names(), ["package"]);
    }

    #[test]
    fn only_old_temporary_files_are_removed() {
        let d = Dir::new("stale");
        for name in ["a.partial-12-3", "b", "c.partial-x", "d.partial-1-2-3"] {
            fs::write(d.0.join(name), b"").unwrap();
        }
        assert_eq!(remove_stale(&d.0).unwrap(), 0);
        thread::sleep(Duration::from_millis(20));
        assert_eq!(remove_older(&d.0, Duration::from_millis(1)).unwrap(), 1);
        assert_eq!(d.names(), ["b", "c.partial-x", "d.partial-1-2-3"]);
    }

    #[test]
    fn entries_come_back_aligned() {
        let d = Dir::new("cache");
        let cache = Cache::open(d.0.join("x/y")).unwrap();
        let k = key(&[b"module", b"avx2"]);
        assert_ne!(k, key(&[b"modulea", b"vx2"]));
        assert!(cache.get(&k).is_none());
        for bytes in [&b""[..], b"hello", &[7; 10_000]] {
            cache.put(&k, bytes).unwrap();
            let e = cache.get(&k).unwrap();
            assert_eq!(&*e, bytes);
            let (map, range) = e.parts();
            assert!((map.as_ptr() as usize + range.start).is_multiple_of(64));
        }
        // A file under another key is not that key's entry.
        let other = key(&[]);
        fs::copy(cache.path(&k), cache.path(&other)).unwrap();
        assert!(cache.get(&other).is_none());
        assert!(!cache.path(&other).exists());
        cache.remove(&k).unwrap();
        cache.remove(&k).unwrap();
        assert!(cache.get(&k).is_none());
    }

    #[test]
    fn damage_is_found_and_the_entry_removed() {
        let d = Dir::new("damage");
        let cache = Cache::open(&d.0).unwrap();
        let k = key(&[b"k"]);
        let bytes: Vec<u8> = (0..5000u32).map(|i| (i % 251) as u8).collect();
        cache.put(&k, &bytes).unwrap();
        let good = fs::read(cache.path(&k)).unwrap();
        let check = |bad: &[u8], what: String| {
            fs::write(cache.path(&k), bad).unwrap();
            assert!(cache.get(&k).is_none(), "{what}");
            assert!(!cache.path(&k).exists(), "{what}");
        };
        for i in 0..16 {
            check(&good[..good.len() * i / 16], format!("cut to {i}/16"));
        }
        check(&[&good[..], &[0]].concat(), "one byte longer".into());
        for i in (0..HEADER).chain((HEADER..good.len()).step_by(97)) {
            let mut bad = good.clone();
            bad[i] ^= 1 << (i % 8);
            check(&bad, format!("bit flipped in byte {i}"));
        }
        fs::write(cache.path(&k), &good).unwrap();
        assert_eq!(&*cache.get(&k).unwrap(), &bytes[..]);
    }

    #[test]
    fn racing_writers_and_readers_see_whole_entries() {
        let d = Dir::new("race");
        let cache = Cache::open(&d.0).unwrap();
        let k = key(&[b"k"]);
        let values: Vec<Vec<u8>> = (0..2u8).map(|t| vec![t; 3000]).collect();
        cache.put(&k, &values[0]).unwrap();
        thread::scope(|s| {
            for v in &values {
                let cache = &cache;
                s.spawn(move || (0..40).for_each(|_| cache.put(&k, v).unwrap()));
            }
            for _ in 0..200 {
                let e = cache.get(&k).unwrap();
                assert!(values.iter().any(|v| v[..] == *e));
            }
        });
        assert_eq!(d.names().len(), 1);
    }
}

//! The database of tuned parameters: one JSON file per kind of machine, beside the packed weights.
//!
//! `tuning/MACHINE.json` in the cache directory, `MACHINE` being a hash of the CPU's architecture and features. An entry is for one key
//! ([`key`]). The file is read as one that anybody may have written: it is refused as a whole unless its format, length, sum and every value
//! are as they should be, and what is refused is as good as nothing. Two processes that write at once each write a whole file; the last wins.

use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use marquetry_passes::params::{self, Params};
use marquetry_runtime::files;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::engine::cpu_features;

/// Version of the format.
const FORMAT: u32 = 1;
/// Most bytes of a file that is read.
const MAX_BYTES: u64 = 1 << 20;
/// Most entries; the oldest go first.
const MAX_ENTRIES: usize = 512;
/// Where the files are, in the cache directory.
const DIRECTORY: &str = "tuning";

/// Parameters that won.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What they are for; see [`key`].
    pub key: String,
    /// Name of the model's file, for people.
    pub model: String,
    /// Name of the bucket, for people.
    pub bucket: String,
    /// Threads, for people.
    pub threads: usize,
    /// The parameters.
    pub params: Params,
    /// Time of a step with the defaults over that with these, when they were found.
    pub gain: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    format: u32,
    /// Hash of the entries as they are written here.
    sum: String,
    entries: Vec<Entry>,
}

/// Why a file is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not used: {}; remove it, or tune again", self.path.display(), self.why)
    }
}

/// The database of this machine in a cache directory.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
}

/// What tuned parameters depend on: the kernels, by whatever they are made of (`made_of`, such as the text of the model's graph and how it is
/// compiled), the threads that run them, the CPU, and the table of parameters.
pub fn key(made_of: &[&str], threads: usize) -> String {
    let (threads, features, version) = (threads.to_string(), cpu_features().join(" "), params::version());
    let mut parts: Vec<&[u8]> = [std::env::consts::ARCH, &features, &threads, &version].map(str::as_bytes).into();
    parts.extend(made_of.iter().map(|s| s.as_bytes()));
    hex(&files::key(&parts))
}

fn hex(key: &files::Key) -> String {
    key.iter().map(|b| format!("{b:02x}")).collect()
}

fn sum(entries: &[Entry]) -> Result<String, String> {
    Ok(hex(&files::key(&[&serde_json::to_vec(entries).map_err(|e| e.to_string())?])))
}

impl Store {
    /// That of a cache directory; nothing is read or made yet.
    pub fn new(cache: &Path) -> Store {
        let machine = hex(&files::key(&[std::env::consts::ARCH.as_bytes(), cpu_features().join(" ").as_bytes()]));
        Store { path: cache.join(DIRECTORY).join(format!("{}.json", &machine[..16])) }
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All entries; none where there is no file.
    ///
    /// # Errors
    /// A file that can not be read or is not what was written.
    pub fn entries(&self) -> Result<Vec<Entry>, Refused> {
        self.read().map_err(|why| Refused { path: self.path.clone(), why })
    }

    fn read(&self) -> Result<Vec<Entry>, String> {
        match fs::metadata(&self.path) {
            Ok(m) if !m.is_file() => return Err("it is no regular file".into()),
            Ok(m) if m.len() > MAX_BYTES => return Err(format!("it has {} bytes", m.len())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            _ => {}
        }
        let mut text = vec![];
        let file = fs::File::open(&self.path).map_err(|e| e.to_string())?;
        file.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(|e| e.to_string())?;
        let found: Contents = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
        if found.format != FORMAT {
            return Err(format!("its format is {}, not {FORMAT}", found.format));
        }
        if found.entries.len() > MAX_ENTRIES {
            return Err(format!("it has {} entries", found.entries.len()));
        }
        if let Some((name, value)) = found.entries.iter().find_map(|e| e.params.out_of_range()) {
            return Err(format!("`{name}` is {value}, which is none of its values"));
        }
        if sum(&found.entries)? != found.sum {
            return Err("its sum is wrong".into());
        }
        Ok(found.entries)
    }

    /// Sets the entry of a key, or removes it. A file that is refused is replaced.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn put(&self, key: &str, entry: Option<Entry>) -> Result<(), Error> {
        let mut entries = self.entries().unwrap_or_default();
        let before = entries.clone();
        entries.retain(|e| e.key != key);
        entries.extend(entry);
        entries.drain(..entries.len().saturating_sub(MAX_ENTRIES));
        if entries == before {
            return Ok(());
        }
        let wrong = |what: String| Error::Exec { what };
        let contents = Contents { format: FORMAT, sum: sum(&entries).map_err(wrong)?, entries };
        let text = serde_json::to_vec_pretty(&contents).map_err(|e| wrong(e.to_string()))?;
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
            // What can not be removed is no harm here.
            let _ = files::remove_stale(dir);
        }
        Ok(files::write_file(&self.path, &text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, lanes: i64) -> Entry {
        let params = Params { lanes, ..Params::default() };
        Entry { key: key.into(), model: "m".into(), bucket: "decode".into(), threads: 2, params, gain: 1.1 }
    }

    #[test]
    fn entries_come_back_and_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        assert_eq!(store.entries(), Ok(vec![]));
        store.put("a", None).unwrap();
        assert!(!store.path().exists());
        store.put("a", Some(entry("a", 4))).unwrap();
        store.put("b", Some(entry("b", 8))).unwrap();
        assert_eq!(store.entries().unwrap(), [entry("a", 4), entry("b", 8)]);
        store.put("a", Some(entry("a", 8))).unwrap();
        assert_eq!(store.entries().unwrap(), [entry("b", 8), entry("a", 8)]);
        store.put("b", None).unwrap();
        assert_eq!(store.entries().unwrap(), [entry("a", 8)]);
        for i in 0..MAX_ENTRIES {
            let mut all = store.entries().unwrap();
            if all.len() + 1 < MAX_ENTRIES {
                all.extend((all.len()..MAX_ENTRIES).map(|n| entry(&n.to_string(), 4)));
                let contents = Contents { format: FORMAT, sum: sum(&all).unwrap(), entries: all };
                fs::write(store.path(), serde_json::to_vec(&contents).unwrap()).unwrap();
            }
            if i > 2 {
                break;
            }
            store.put(&format!("new{i}"), Some(entry(&format!("new{i}"), 4))).unwrap();
        }
        assert_eq!(store.entries().unwrap().len(), MAX_ENTRIES);
        assert!(store.entries().unwrap().iter().all(|e| e.key != "a"));
    }

    #[test]
    fn what_was_not_written_so_is_refused_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        store.put("a", Some(entry("a", 4))).unwrap();
        let good = fs::read_to_string(store.path()).unwrap();
        let refused = |text: &[u8]| {
            fs::write(store.path(), text).unwrap();
            store.entries().expect_err(&String::from_utf8_lossy(text)).to_string()
        };
        for at in 0..good.len() {
            refused(&good.as_bytes()[..at]);
            let mut bad = good.clone().into_bytes();
            bad[at] ^= 1 << (at % 7);
            // White space may stand for other white space.
            fs::write(store.path(), &bad).unwrap();
            let same = serde_json::from_slice::<serde_json::Value>(&bad).ok() == serde_json::from_str(&good).ok();
            assert!(same || store.entries().is_err(), "{}", String::from_utf8_lossy(&bad));
        }
        for (from, to, why) in [
            ("\"format\": 1", "\"format\": 2", "its format is 2, not 1"),
            ("\"lanes\": 4", "\"lanes\": 5", "`lanes` is 5, which is none of its values"),
            ("\"lanes\": 4", "\"lanes\": 8", "its sum is wrong"),
            ("\"lanes\": 4", "\"lane\": 4", "unknown field `lane`"),
            ("\"gain\": 1.1", "\"gain\": 1e999", "out of range"),
        ] {
            assert!(good.contains(from), "{good}");
            assert!(refused(good.replace(from, to).as_bytes()).contains(why), "{why}");
        }
        refused(&[b'['; 100_000]);
        refused(format!("{{\"entries\": {}", "[".repeat(100_000)).as_bytes());
        assert!(refused(&vec![b' '; MAX_BYTES as usize + 1]).contains("it has 1048577 bytes"));
        store.put("b", Some(entry("b", 4))).unwrap();
        assert_eq!(store.entries().unwrap(), [entry("b", 4)]);
        fs::remove_file(store.path()).unwrap();
        fs::create_dir(store.path()).unwrap();
        assert_eq!(store.entries().unwrap_err().why, "it is no regular file");
        assert!(store.put("b", Some(entry("b", 4))).is_err());
    }

    #[test]
    fn keys_depend_on_the_parts() {
        assert_eq!(key(&["m"], 2), key(&["m"], 2));
        assert_ne!(key(&["m"], 2), key(&["m"], 1));
        assert_ne!(key(&["m", "n"], 2), key(&["mn"], 2));
    }
}

//! Where packed weights are kept between starts: files beside the cached programs, one for each set of weights of a model.
//!
//! A file is `MODEL-SET-BUILD.pack`, hashes of what the names say, in the directory `packs` of the cache:
//! * the model: [`Weights::identify`](marquetry_frontend::weights::Weights::identify), so that a file that was changed, replaced or
//!   copied is another model;
//! * the set: the weights that were missing when it was written, each with how it is made from the model's files;
//! * the build: of this program, since packing is code.
//!
//! All files of a model and build are opened, and each weight is taken from any that has it. So functions share what they have in
//! common, and what a further one needs becomes a further file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use marquetry_ir::program::Weight;
use marquetry_runtime::files::{self, Key, remove_stale};
use marquetry_runtime::packs::{Packs, Sink};
use marquetry_runtime::{RuntimeError, WeightData};

use super::programs::build_identity;
use crate::model::LoadedModel;

/// Bytes that all files together may have. The newest stays whatever its length.
const MAX_BYTES: u64 = 16 << 30;
/// Where the files are, in the cache directory.
const DIRECTORY: &str = "packs";
/// What the names of files end in.
const EXTENSION: &str = "pack";

/// The files of one model.
pub(super) struct Store {
    dir: PathBuf,
    /// Identity of the model's files when the store was opened.
    model: Key,
    build: Key,
    open: Vec<Packs>,
}

impl Store {
    /// Opens the files of a model. `None` where the model is not in files, or the directory can not be made.
    pub fn open(cache: &Path, model: &LoadedModel) -> Option<Store> {
        let dir = cache.join(DIRECTORY);
        std::fs::create_dir_all(&dir).ok()?;
        // What can not be removed is no harm here.
        let _ = remove_stale(&dir);
        let build = files::key(&[build_identity().as_bytes()]);
        let mut store = Store { dir, model: identity(model).ok()?, build, open: vec![] };
        for (path, _) in
            files(&store.dir).filter(|(_, name)| name.model == short(&store.model) && name.build == short(&store.build))
        {
            match Packs::open(&path, &store.owner()) {
                Some(packs) => {
                    touch(&path);
                    store.open.push(packs);
                }
                // Damaged: it will be made again.
                None => drop(std::fs::remove_file(&path)),
            }
        }
        Some(store)
    }

    /// The key of a weight: its description, and how its sources are made from the model's files.
    pub fn key(model: &LoadedModel, w: &Weight) -> Option<Key> {
        let origins = w.sources.iter().map(|s| model.weights.origin(s)).collect::<Option<Vec<_>>>()?;
        Some(files::key(&[format!("{w:?}").as_bytes(), format!("{origins:?}").as_bytes()]))
    }

    /// A weight of that length.
    pub fn get(&self, key: &Key, len: usize) -> Option<Arc<WeightData>> {
        self.open.iter().filter_map(|p| p.get(key)).find(|w| w.len() == len).map(Arc::new)
    }

    /// Writes a file of weights, which [`Store::get`] finds then; `fill` as in [`Packs::write`].
    pub fn add(
        &mut self,
        model: &LoadedModel,
        weights: &[(Key, usize)],
        fill: &dyn Fn(&Sink<'_>) -> io::Result<()>,
    ) -> Result<(), RuntimeError> {
        let mut keys: Vec<&[u8]> = weights.iter().map(|(k, _)| k.as_slice()).collect();
        keys.sort();
        let set = files::key(&keys);
        let name = format!("{}-{}-{}.{EXTENSION}", short(&self.model), short(&set), short(&self.build));
        let path = self.dir.join(name);
        let unchanged = || match identity(model)? == self.model {
            true => Ok(()),
            false => Err(io::Error::other("the model's files changed while they were read")),
        };
        Packs::write(&path, &self.owner(), weights, fill, &unchanged)?;
        self.open.extend(Packs::open(&path, &self.owner()));
        self.trim(&path, &short(&set));
        Ok(())
    }

    fn owner(&self) -> Key {
        files::key(&[&self.model, &self.build])
    }

    /// Removes what other builds made of the same set, but for the one that was used last, and then what was not used for longest
    /// until the rest fits; never `newest`.
    fn trim(&self, newest: &Path, set: &str) {
        let used = |path: &Path| path.metadata().and_then(|m| Ok((m.modified()?, m.len()))).ok();
        let mut all: Vec<_> =
            files(&self.dir).filter_map(|(path, name)| used(&path).map(|u| (u, path, name))).collect();
        all.retain(|(_, path, _)| path != newest);
        all.sort();
        let older = all.iter().filter(|(_, _, n)| n.model == short(&self.model) && n.set == set);
        let mut gone: Vec<PathBuf> = older.rev().skip(1).map(|(_, path, _)| path.clone()).collect();
        all.retain(|(_, path, _)| !gone.contains(path));
        let mut total: u64 = all.iter().map(|((_, len), ..)| len).sum::<u64>() + used(newest).map_or(0, |u| u.1);
        for ((_, len), path, _) in all {
            if total <= MAX_BYTES {
                break;
            }
            total -= len;
            gone.push(path);
        }
        // One that is mapped elsewhere lives on there.
        gone.iter().for_each(|path| drop(std::fs::remove_file(path)));
    }
}

/// What [`verify_packs`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifiedPacks {
    /// Files that are as they were written.
    pub good: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Files that are not, and were removed.
    pub removed: usize,
}

/// Reads all packed weights of a cache directory, and removes files that are not what was written.
pub fn verify_packs(cache: &Path) -> VerifiedPacks {
    let mut found = VerifiedPacks::default();
    for (path, _) in files(&cache.join(DIRECTORY)) {
        match Packs::of_any(&path).filter(|p| p.damaged() == 0) {
            Some(packs) => {
                found.good += 1;
                found.bytes += packs.bytes() as u64;
            }
            None => found.removed += usize::from(std::fs::remove_file(&path).is_ok()),
        }
    }
    found
}

/// The files of a directory that have names of files of weights.
fn files(dir: &Path) -> impl Iterator<Item = (PathBuf, Name)> + use<> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| Some((e.path(), Name::parse(&e.file_name().into_string().ok()?)?)))
}

/// The parts of a file's name.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    model: String,
    set: String,
    build: String,
}

impl Name {
    fn parse(file: &str) -> Option<Name> {
        let mut parts = file.strip_suffix(EXTENSION)?.strip_suffix('.')?.split('-').map(str::to_owned);
        let name = Name { model: parts.next()?, set: parts.next()?, build: parts.next()? };
        parts.next().is_none().then_some(name)
    }
}

/// The first 8 bytes of a hash in hexadecimal: names tell files apart, their headers say what they are.
fn short(key: &Key) -> String {
    key.iter().take(8).map(|b| format!("{b:02x}")).collect()
}

fn identity(model: &LoadedModel) -> io::Result<Key> {
    let mut key = files::KeyOf::default();
    model.weights.identify(&mut |part| key.part(part))?;
    Ok(key.finish())
}

/// Marks a file as used now.
fn touch(path: &Path) {
    // A directory that can only be read is used all the same.
    let _ = std::fs::File::open(path).and_then(|f| f.set_modified(SystemTime::now()));
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use super::*;

    #[test]
    fn other_builds_and_what_is_not_used_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store { dir: dir.path().into(), model: [1; 32], build: [2; 32], open: vec![] };
        let (model, set, build) = (short(&[1; 32]), short(&[3; 32]), short(&[2; 32]));
        let mine = format!("{model}-{set}-{build}.pack");
        let file = |name: &str, used: u64, len: u64| {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_len(len).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(used)).unwrap();
        };
        let old = [1, 2, 3].map(|i| format!("{model}-{set}-{i}.pack"));
        let other = format!("{model}-other-1.pack");
        let large = ["a-b-c.pack", "a-b-d.pack"];
        file("else.bin", 0, 1 << 40);
        file(&other, 5, 10);
        old.iter().zip([7, 9, 8]).for_each(|(name, used)| file(name, used, 10));
        file(large[0], 1, MAX_BYTES / 2);
        file(large[1], 2, MAX_BYTES / 2);
        file(&mine, 3, 10);
        store.trim(&dir.path().join(&mine), &set);
        let there = |name: &str| dir.path().join(name).exists();
        assert_eq!([&old[0], &old[1], &old[2], &other, &mine].map(|n| there(n)), [false, true, false, true, true]);
        assert_eq!([there(large[0]), there(large[1]), there("else.bin")], [false, true, true]);
        // One that is too large by itself stays alone.
        file(&mine, 0, MAX_BYTES + 1);
        store.trim(&dir.path().join(&mine), &set);
        assert_eq!([&old[1], &other, large[1], &mine].map(there), [false, false, false, true]);
    }

    #[test]
    fn names_have_three_parts() {
        for bad in ["a-b.pack", "a-b-c-d.pack", "a-b-c", "a-b-c.pack.partial-1-2", "pack"] {
            assert!(Name::parse(bad).is_none(), "{bad}");
        }
        assert!(Name::parse("a-b-c.pack").is_some());
    }
}

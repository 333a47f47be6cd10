//! File contents as a byte slice: memory-mapped, or owned when they come from a test or a pipe.
//!
//! This is the only module of the readers with unsafe code.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// Read-only bytes of a whole file.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// A private read-only mapping.
    Mapped(Mmap),
    /// Bytes in memory.
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a regular file. An empty file gives empty bytes (the system refuses to map nothing).
    pub(crate) fn open(path: &Path) -> io::Result<Bytes> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        if meta.len() == 0 {
            return Ok(Bytes::Owned(Vec::new()));
        }
        // SAFETY: the mapping is read-only and private, and it is only ever read as plain bytes. What remains is the contract of
        // every mapped file: another process that shortens it while we run can end us with a bus error, which reads no stray
        // memory. Model files are replaced by renaming, which leaves the mapped inode alone.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Bytes::Mapped(map))
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

//! File contents as a byte slice: memory-mapped, or owned when they come from a test or a pipe.
//!
//! This is the only module of the readers with unsafe code.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

/// Read-only bytes of a whole file.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// A private read-only mapping, and its file.
    Mapped(Mmap, File),
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
        Ok(Bytes::Mapped(map, file))
    }
}

impl Bytes {
    /// What tells a file from others, and from itself after a change, as far as the system knows: length, times, and number in its
    /// file system. Fails for bytes that are no file.
    pub(crate) fn stamp(&self) -> io::Result<String> {
        let Bytes::Mapped(_, file) = self else { return Err(io::ErrorKind::Unsupported.into()) };
        let meta = file.metadata()?;
        #[cfg(unix)]
        let more = {
            use std::os::unix::fs::MetadataExt;
            (meta.ino(), meta.ctime(), meta.ctime_nsec())
        };
        #[cfg(not(unix))]
        let more = meta.created().ok();
        Ok(format!("{} {:?} {more:?}", meta.len(), meta.modified()?))
    }

    /// Gives back the memory that reading a range took; it is read from the file again where that is needed.
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(map, _) = self
            && range.start < range.end
            && range.end <= map.len()
        {
            // SAFETY: the pages of a read-only mapping of a file have the file's contents whenever they are read again.
            let done = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
            // Keeping the memory is no harm.
            drop(done);
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map, _) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

//! What can be wrong with safetensors files and directories of them.

use std::path::PathBuf;

/// Why a safetensors file or directory was refused. [`StError::code`] is stable; messages may change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are the values that each message prints")]
pub enum StError {
    /// An error with the file it occurred in.
    #[error("{}: {source}", path.display())]
    InFile { path: PathBuf, source: Box<StError> },
    /// Fewer than 8 bytes.
    #[error("too short for a header: {len} bytes, at least 8 are needed; fetch the file again")]
    Short { len: usize },
    /// A header length past the limit or the file.
    #[error(
        "header claims {claimed} bytes, the limit is {limit} and the file has {len}: incomplete download? fetch it again"
    )]
    HeaderLength { claimed: u64, limit: usize, len: usize },
    /// A header that is not the JSON it should be.
    #[error("not a safetensors header: {what} at header byte {at}; convert the model again")]
    Header { what: String, at: usize },
    /// A tensor name twice.
    #[error("tensor `{name}` appears twice in the header; convert the model again")]
    Duplicate { name: String },
    /// Overlapping tensors, holes or trailing bytes.
    #[error("data not contiguous at byte {at}: {what}; convert the model again")]
    Layout { at: usize, what: String },
    /// Offsets out of order or past the end.
    #[error("tensor `{name}` has bytes {begin} to {end}, the file has {len}: incomplete download? fetch it again")]
    Offsets { name: String, begin: u64, end: u64, len: usize },
    /// A shape that does not match the bytes.
    #[error("tensor `{name}` of shape {shape:?} {dtype} does not take {bytes} bytes; convert the model again")]
    Size { name: String, shape: Vec<u64>, dtype: String, bytes: u64 },
    /// A size that is not a non-negative integer.
    #[error("tensor `{name}`: sizes and offsets must be integers from 0, {what}; convert the model again")]
    Shape { name: String, what: String },
    /// An element type we do not read.
    #[error("tensor `{name}`: type {dtype} is not supported; known: F32, F16, BF16, I64, I32, U32, I16, I8, U8, BOOL")]
    Dtype { name: String, dtype: String },
    /// Too many tensors.
    #[error("more than {limit} tensors; no model has so many, convert it again")]
    Count { limit: usize },
    /// Bad metadata, an unknown field, or a bad name.
    #[error("header: {what}; convert the model again")]
    Field { what: String },
    /// NaN or infinity among the weights.
    #[error("tensor `{name}` has {count} values that are NaN or infinite, the first at index {first}; fetch it again")]
    NonFinite { name: String, count: usize, first: usize },
    /// The reference reader disagrees with ours.
    #[error("refused by the safetensors library: {what}; convert the model again")]
    Library { what: String },
    /// A shard that is not a plain file of the directory.
    #[error("shard name must be a plain file name, `{name}` {why}; correct model.safetensors.index.json")]
    ShardName { name: String, why: &'static str },
    /// The index and the shards disagree, or the index is malformed.
    #[error("model.safetensors.index.json: {what}; fetch the index and all shards again")]
    Index { what: String },
    /// A pointer instead of the file.
    #[error("this is a Git-LFS pointer, not the weights: fetch with `git lfs pull`")]
    LfsPointer,
    /// Only pickle files.
    #[error("`{name}`: pickle is not read because it can run code; convert it to safetensors first")]
    Pickle { name: String },
    /// The file could not be opened, or there are no weights.
    #[error("cannot be read: {0}; check the path and its permissions")]
    Io(#[from] std::io::Error),
}

impl StError {
    /// The stable code of the error, such as `ST003`.
    pub fn code(&self) -> &'static str {
        use StError as E;
        match self {
            E::InFile { source, .. } => source.code(),
            E::Short { .. } => "ST001",
            E::HeaderLength { .. } => "ST002",
            E::Header { .. } => "ST003",
            E::Duplicate { .. } => "ST004",
            E::Layout { .. } => "ST005",
            E::Offsets { .. } => "ST006",
            E::Size { .. } => "ST007",
            E::Shape { .. } => "ST008",
            E::Dtype { .. } => "ST009",
            E::Count { .. } => "ST010",
            E::Field { .. } => "ST011",
            E::NonFinite { .. } => "ST012",
            E::Library { .. } => "ST013",
            E::ShardName { .. } => "ST020",
            E::Index { .. } => "ST021",
            E::LfsPointer => "ST022",
            E::Pickle { .. } => "ST023",
            E::Io(_) => "ST024",
        }
    }
}

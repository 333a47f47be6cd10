//! What can be wrong with a GGUF file.

use std::path::PathBuf;

use super::value::Kind;

/// Why a GGUF file was refused.
///
/// Offsets are in bytes from the start of the file. [`GgufError::code`] is stable; messages may change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are the values that each message prints")]
pub enum GgufError {
    /// An error with the file it occurred in.
    #[error("{}: {source}", path.display())]
    InFile { path: PathBuf, source: Box<GgufError> },
    /// The file could not be opened or mapped.
    #[error("cannot be read: {0}; check the path and its permissions")]
    Io(#[from] std::io::Error),
    /// No bytes at all.
    #[error("file is empty; download it again")]
    Empty,
    /// The file stops before the header does.
    #[error("ends inside the header at byte {at}; {needs}: incomplete download? fetch the file again")]
    Truncated { at: usize, needs: &'static str },
    /// Wrong magic.
    #[error("not a GGUF file (starts with {start}){hint}")]
    Magic { start: String, hint: &'static str },
    /// Unknown version.
    #[error("version {version} is not supported (2 and 3 are); convert the model again with a current converter")]
    Version { version: u32 },
    /// Written for big-endian machines.
    #[error(
        "big-endian file (version bytes are reversed at byte 4); convert it with `gguf-convert-endian FILE little`"
    )]
    BigEndian,
    /// More metadata entries than the file has room for.
    #[error("claims {claimed} metadata entries at byte 16, the file has room for at most {room}; fetch the file again")]
    EntryCount { claimed: u64, room: usize },
    /// More tensors than the file has room for, or than we accept.
    #[error("claims {claimed} tensors at byte 8, the file has room for at most {room}; fetch the file again")]
    TensorCount { claimed: u64, room: usize },
    /// A string that runs past the end or past our limit.
    #[error("string of {len} bytes at offset {at}, only {left} left (limit 16 MiB); fetch the file again")]
    StringLength { len: u64, at: usize, left: usize },
    /// A key that is empty, too long or not UTF-8.
    #[error("bad key at offset {at}: {why}; keys are 1 to 1024 bytes of UTF-8")]
    Key { at: usize, why: String },
    /// A key twice.
    #[error("key `{key}` appears twice (offsets {first} and {second}); convert the model again")]
    DuplicateKey { key: String, first: usize, second: usize },
    /// A value of an unknown type.
    #[error("unknown value type {tag} for `{key}` at offset {at} (0 to 12 are known); convert the model again")]
    ValueType { key: String, tag: u32, at: usize },
    /// An array longer than the rest of the file.
    #[error("array of {len} elements for `{key}` at offset {at} cannot fit in {left} bytes; fetch the file again")]
    ArrayLength { key: String, len: u64, at: usize, left: usize },
    /// Arrays in arrays in arrays.
    #[error("arrays nested deeper than 4 for `{key}` at offset {at}; convert the model again")]
    Nesting { key: String, at: usize },
    /// A bad `general.alignment`.
    #[error(
        "alignment must be a power of two <= 1 MiB, uint32; `general.alignment` is {found}; convert the model again"
    )]
    Alignment { found: String },
    /// Too many dimensions.
    #[error("tensor `{name}` has {dims} dimensions at offset {at}, at most 8; convert the model again")]
    Dimensions { name: String, dims: u32, at: usize },
    /// Sizes beyond 2^48 bytes.
    #[error("tensor `{name}`: size overflows: {what}, the limit is 2^48 bytes; fetch the file again")]
    Size { name: String, what: String },
    /// A zero dimension.
    #[error("tensor `{name}` is empty: its dimensions are {dims:?}; convert the model again")]
    EmptyTensor { name: String, dims: Vec<u64> },
    /// Rows that are not whole blocks.
    #[error("tensor `{name}`: {len} is not a multiple of the block size {block} of {format}; convert the model again")]
    Block { name: String, len: u64, block: usize, format: &'static str },
    /// A tensor type that we do not read.
    #[error(
        "tensor `{name}`: {what} at offset {at}; known: f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k"
    )]
    TensorType { name: String, what: String, at: usize },
    /// Data past the end of the file.
    #[error("data of `{name}` ends at {end}, file has {len} bytes: incomplete download? fetch the file again")]
    DataEnd { name: String, end: u64, len: usize },
    /// Two tensors share bytes.
    #[error("`{first}` and `{second}` overlap at byte {at}; convert the model again")]
    Overlap { first: String, second: String, at: usize },
    /// An offset off the alignment.
    #[error(
        "data of `{name}` starts at offset {offset}, not a multiple of the alignment {alignment}; convert the model again"
    )]
    Unaligned { name: String, offset: u64, alignment: usize },
    /// A bad or repeated tensor name.
    #[error("bad tensor name at offset {at}: {why}; names are unique, 1 to 1024 bytes of printable UTF-8")]
    TensorName { at: usize, why: String },
    /// Text that is not UTF-8.
    #[error("value of `{key}` is not UTF-8 at offset {at}; convert the model again")]
    Text { key: String, at: usize },
    /// A metadata value of another type than needed.
    #[error("`{key}` must be {expected}, is {found}; convert the model again")]
    Type { key: String, expected: &'static str, found: String },
    /// A metadata value that is required and absent.
    #[error("`{key}` is missing; convert the model again with a current converter")]
    Missing { key: String },
    /// A vocabulary array of the wrong element type.
    #[error("`{key}` must be {expected}, is {found}; convert the model again")]
    VocabType { key: &'static str, expected: Kind, found: String },
    /// Vocabulary arrays of different lengths.
    #[error("lengths differ: `tokenizer.ggml.tokens` has {tokens} entries, `{key}` has {len}; convert the model again")]
    VocabLength { key: &'static str, tokens: usize, len: usize },
    /// A token marked as a byte whose text is not one.
    #[error("malformed byte token `{text}` at id {id}; byte tokens are <0x00> to <0xFF>")]
    ByteToken { text: String, id: usize },
    /// A special token id outside the vocabulary.
    #[error("`{key}` is {id}, the vocabulary has {len} tokens; correct it with `gguf-set-metadata`")]
    SpecialToken { key: String, id: u64, len: usize },
    /// An unknown pre-tokenizer or tokenizer model.
    #[error("unknown {what} `{name}`{nearest}; give --tokenizer with a tokenizer.json")]
    PreTokenizer { what: &'static str, name: String, nearest: String },
    /// A merge rule that is not two known tokens.
    #[error("merge #{index} `{text}` {why}; convert the model again")]
    Merge { index: usize, text: String, why: &'static str },
    /// A part of a split model is not there.
    #[error("part {part} of {count} not found beside part {beside} (looked for `{name}`); put all parts in one folder")]
    PartMissing { part: u32, count: u32, beside: u32, name: String },
    /// The parts of a split model disagree.
    #[error("part {part} of a split model: {why}; fetch all parts again, with their original names")]
    PartMismatch { part: u32, why: String },
}

impl GgufError {
    /// The stable code of the error, such as `GGUF012`.
    pub fn code(&self) -> &'static str {
        use GgufError as E;
        match self {
            E::InFile { source, .. } => source.code(),
            E::Empty => "GGUF001",
            E::Truncated { .. } => "GGUF002",
            E::Magic { .. } => "GGUF003",
            E::Version { .. } => "GGUF004",
            E::BigEndian => "GGUF005",
            E::EntryCount { .. } => "GGUF006",
            E::TensorCount { .. } => "GGUF007",
            E::StringLength { .. } => "GGUF008",
            E::Key { .. } => "GGUF009",
            E::DuplicateKey { .. } => "GGUF010",
            E::ValueType { .. } => "GGUF011",
            E::ArrayLength { .. } => "GGUF012",
            E::Nesting { .. } => "GGUF013",
            E::Alignment { .. } => "GGUF014",
            E::Dimensions { .. } => "GGUF015",
            E::Size { .. } => "GGUF016",
            E::EmptyTensor { .. } => "GGUF017",
            E::Block { .. } => "GGUF018",
            E::TensorType { .. } => "GGUF019",
            E::DataEnd { .. } => "GGUF020",
            E::Overlap { .. } => "GGUF021",
            E::Unaligned { .. } => "GGUF022",
            E::TensorName { .. } => "GGUF023",
            E::Text { .. } => "GGUF024",
            E::Type { .. } => "GGUF025",
            E::Missing { .. } => "GGUF026",
            E::Io(_) => "GGUF027",
            E::VocabType { .. } => "GGUF030",
            E::VocabLength { .. } => "GGUF031",
            E::ByteToken { .. } => "GGUF032",
            E::SpecialToken { .. } => "GGUF033",
            E::PreTokenizer { .. } => "GGUF034",
            E::Merge { .. } => "GGUF035",
            E::PartMissing { .. } => "GGUF040",
            E::PartMismatch { .. } => "GGUF041",
        }
    }
}

/// Text from a file for a message: control characters escaped, at most 80 characters.
pub(crate) fn quoted(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text.get(..400).unwrap_or(text));
    let mut out: String = text.chars().take(80).flat_map(|c| c.escape_debug()).collect();
    if text.chars().count() > 80 {
        out.push_str("...");
    }
    out
}

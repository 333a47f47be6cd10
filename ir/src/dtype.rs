//! Element types: plain scalars, the block formats of GGUF files, and the packed formats our kernels read.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A plain scalar element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// Two's complement, 64 bits.
    I64,
    /// Two's complement, 32 bits.
    I32,
    /// Unsigned, 32 bits.
    U32,
    /// Two's complement, 16 bits.
    I16,
    /// Two's complement, 8 bits.
    I8,
    /// Unsigned, 8 bits.
    U8,
    /// Truth value, one byte, 0 or 1.
    Bool,
}

impl DType {
    /// Every scalar type, in the order of the declaration.
    pub const ALL: [DType; 10] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::I64,
        DType::I32,
        DType::U32,
        DType::I16,
        DType::I8,
        DType::U8,
        DType::Bool,
    ];

    /// Size of one element in bytes.
    pub const fn size(self) -> usize {
        match self {
            DType::I64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 | DType::I16 => 2,
            DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }

    /// Is it one of the floating-point types?
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }

    /// Is it one of the integers with a sign?
    pub fn is_signed_int(self) -> bool {
        matches!(self, DType::I64 | DType::I32 | DType::I16 | DType::I8)
    }

    /// Spelling in the text IR.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::U32 => "u32",
            DType::I16 => "i16",
            DType::I8 => "i8",
            DType::U8 => "u8",
            DType::Bool => "bool",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        DType::ALL.into_iter().find(|d| d.name() == s).ok_or(())
    }
}

/// Block-quantized element formats of GGUF files that we execute.
///
/// Layouts are those of ggml (`ggml-common.h`); all integers and floats are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GgufType {
    /// 32 × 4 bits, f16 scale; `w = d * (q - 8)`.
    Q4_0,
    /// 32 × 4 bits, f16 scale and minimum; `w = d * q + m`.
    Q4_1,
    /// 32 × 5 bits, f16 scale; `w = d * (q - 16)`.
    Q5_0,
    /// 32 × 5 bits, f16 scale and minimum; `w = d * q + m`.
    Q5_1,
    /// 32 × 8 bits, f16 scale; `w = d * q`.
    Q8_0,
    /// 256 × 2 bits in 16 groups with 4-bit scales and minima.
    Q2K,
    /// 256 × 3 bits in 16 groups with 6-bit scales.
    Q3K,
    /// 256 × 4 bits in 8 groups with 6-bit scales and minima.
    Q4K,
    /// 256 × 5 bits in 8 groups with 6-bit scales and minima.
    Q5K,
    /// 256 × 6 bits in 16 groups with 8-bit scales.
    Q6K,
}

impl GgufType {
    /// Every block format, in the order of the declaration.
    pub const ALL: [GgufType; 10] = [
        GgufType::Q4_0,
        GgufType::Q4_1,
        GgufType::Q5_0,
        GgufType::Q5_1,
        GgufType::Q8_0,
        GgufType::Q2K,
        GgufType::Q3K,
        GgufType::Q4K,
        GgufType::Q5K,
        GgufType::Q6K,
    ];

    /// Elements in one block, along the last axis.
    pub fn block_len(self) -> usize {
        match self {
            GgufType::Q2K | GgufType::Q3K | GgufType::Q4K | GgufType::Q5K | GgufType::Q6K => 256,
            _ => 32,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            GgufType::Q4_0 => 18,
            GgufType::Q4_1 => 20,
            GgufType::Q5_0 => 22,
            GgufType::Q5_1 => 24,
            GgufType::Q8_0 => 34,
            GgufType::Q2K => 84,
            GgufType::Q3K => 110,
            GgufType::Q4K => 144,
            GgufType::Q5K => 176,
            GgufType::Q6K => 210,
        }
    }

    /// The numeric tag in a GGUF tensor description.
    pub fn tag(self) -> u32 {
        match self {
            GgufType::Q4_0 => 2,
            GgufType::Q4_1 => 3,
            GgufType::Q5_0 => 6,
            GgufType::Q5_1 => 7,
            GgufType::Q8_0 => 8,
            GgufType::Q2K => 10,
            GgufType::Q3K => 11,
            GgufType::Q4K => 12,
            GgufType::Q5K => 13,
            GgufType::Q6K => 14,
        }
    }

    /// Spelling in the text IR, without the `gguf.` prefix.
    pub fn name(self) -> &'static str {
        match self {
            GgufType::Q4_0 => "q4_0",
            GgufType::Q4_1 => "q4_1",
            GgufType::Q5_0 => "q5_0",
            GgufType::Q5_1 => "q5_1",
            GgufType::Q8_0 => "q8_0",
            GgufType::Q2K => "q2_k",
            GgufType::Q3K => "q3_k",
            GgufType::Q4K => "q4_k",
            GgufType::Q5K => "q5_k",
            GgufType::Q6K => "q6_k",
        }
    }
}

/// What scales can be.
const SCALES: [DType; 4] = [DType::F16, DType::F32, DType::U8, DType::I8];
/// Elements along k that share a factor of scales.
pub const FACTOR_SPAN: usize = 256;

/// A layout that quantized kernels read: groups along k, blocks of 8 output rows interleaved by 4-byte words ("r8k4").
///
/// Logical matrix `[n, k]`, `n` padded to a multiple of 8 with zero rows. For row block `b`, group `g` of 32 k and word `p` in
/// `0..bits` the data plane holds 8 consecutive 32-bit words, one per row. Bits are dealt to words by the binary digits of their
/// number, the largest first, each digit a [`Part`]: 5 bits are 4 words with the low 4 bits of all elements and 1 word with bit 4.
/// * 2 bits: word `p` in 0..2, byte `j`: `q[8i + 4p + j]` at bits `2i` and `2i + 1`;
/// * 3 bits: as 2 bits, and byte `j` of word 2 has bit 2 of `q[4i + j]` at bit `i`;
/// * 4 bits: word `p` in 0..4, byte `j`: low nibble `q[4p + j]`, high nibble `q[16 + 4p + j]`;
/// * 5 bits: as 4 bits, and byte `j` of word 4 has bit 4 of `q[4i + j]` at bit `i`;
/// * 6 bits: as 4 bits, and byte `j` of word `4 + p` in 4..6 has bits 4 and 5 of `q[8i + 4p + j]` at bits `2i` and `2i + 1`;
/// * 8 bits: word `p` in 0..8, byte `j`: `q[4p + j]`.
///
/// `q` is unsigned. The value is `scale * (q - zero)`, or `scale * q + min` when there is a minimum plane.
/// The scale plane (and the minimum plane) is `[n / 8, k / group, 8]`. Where it has bytes, they are multiplied by factors, which are
/// exact then: plane `f16[n / 8, k / 256, 1 or 2, 8]` with those of scales, and of minima behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Packed {
    /// Bits per element: 1 to 8.
    pub bits: u8,
    /// Elements that share a scale: 16 or 32.
    pub group: u16,
    /// Type of scales and minima: `F16` or `F32`; or `U8` or `I8` if there are factors.
    pub scale: DType,
    /// Zero point, subtracted from `q`; 0 when `min` is set.
    pub zero: u8,
    /// Is there a plane of minima?
    pub min: bool,
    /// Largest `q` that occurs, an upper bound that kernels may rely on.
    pub max: u8,
}

impl Packed {
    /// The packed layout that holds values of a GGUF block format exactly.
    pub const fn for_gguf(t: GgufType) -> Packed {
        const fn p(bits: u8, group: u16, scale: DType, zero: u8, min: bool, max: u8) -> Packed {
            Packed { bits, group, scale, zero, min, max }
        }
        match t {
            GgufType::Q4_0 => p(4, 32, DType::F16, 8, false, 15),
            GgufType::Q4_1 => p(4, 32, DType::F16, 0, true, 15),
            GgufType::Q5_0 => p(5, 32, DType::F16, 16, false, 31),
            GgufType::Q5_1 => p(5, 32, DType::F16, 0, true, 31),
            GgufType::Q8_0 => p(8, 32, DType::F16, 128, false, 255),
            GgufType::Q2K => p(2, 16, DType::U8, 0, true, 3),
            GgufType::Q3K => p(3, 16, DType::I8, 4, false, 7),
            GgufType::Q4K => p(4, 32, DType::U8, 0, true, 15),
            GgufType::Q5K => p(5, 32, DType::U8, 0, true, 31),
            GgufType::Q6K => p(6, 16, DType::I8, 32, false, 63),
        }
    }

    /// How the bits of an element are spread over data words, the lowest bits first.
    pub fn parts(self) -> impl Iterator<Item = Part> {
        [8, 4, 2, 1].into_iter().filter_map(move |width| Part::of(self.bits, width))
    }

    /// Are scales bytes, with a plane of factors?
    pub const fn has_factors(self) -> bool {
        matches!(self.scale, DType::U8 | DType::I8)
    }

    /// Bytes of an `[n, k]` matrix in the planes of data, scales, minima and factors.
    pub fn plane_bytes(self, n: usize, k: usize) -> [usize; 4] {
        let n = n.next_multiple_of(8);
        let data = n * k * self.bits as usize / 8;
        let scale = n * (k / self.group as usize) * self.scale.size();
        let factors = n * k.div_ceil(FACTOR_SPAN) * (1 + usize::from(self.min)) * DType::F16.size();
        [data, scale, if self.min { scale } else { 0 }, if self.has_factors() { factors } else { 0 }]
    }

    /// The planes there are: data and scales, then minima and factors.
    pub const fn planes(self) -> usize {
        2 + self.min as usize + self.has_factors() as usize
    }
}

/// Bits `from .. from + width` of all elements of a group, in `width` data words of which the first is word `from`.
///
/// Four neighbouring elements, a *quad*, have their bits in the four bytes of one word, `8 / width` quads share a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The lowest bit, and the first word.
    pub from: u8,
    /// Bits of an element, and words: 8, 4, 2 or 1.
    pub width: u8,
}

impl Part {
    /// The part of width 8, 4, 2 or 1 of elements of so many bits, if they have one.
    pub const fn of(bits: u8, width: u8) -> Option<Part> {
        if bits & width == 0 { None } else { Some(Part { from: bits & !(2 * width - 1), width }) }
    }

    /// The data word that has elements `4 * quad ..` of 32.
    pub const fn word(self, quad: usize) -> usize {
        self.from as usize + quad % self.width as usize
    }

    /// The bit of each byte of that word where theirs begin.
    pub const fn bit(self, quad: usize) -> usize {
        self.width as usize * (quad / self.width as usize)
    }

    /// `width` ones.
    pub const fn ones(self) -> u8 {
        u8::MAX >> (8 - self.width)
    }
}

/// Byte offsets of the planes of an `[n, k]` matrix in a packed buffer, and the size of the whole. Planes begin at multiples
/// of 64 bytes: for [`Elem::Packed`] data, scales, minima, factors; one plane for every other type that has a fixed size. A plane that
/// there is not has no bytes.
pub fn plane_offsets(elem: Elem, n: usize, k: usize) -> ([usize; 4], usize) {
    let bytes = match elem {
        Elem::Packed(p) => p.plane_bytes(n, k),
        Elem::Rows8(d) => [n.next_multiple_of(8) * k * d.size(), 0, 0, 0],
        Elem::Scalar(d) => [n * k * d.size(), 0, 0, 0],
        Elem::Gguf(t) => [n * k / t.block_len() * t.block_bytes(), 0, 0, 0],
        Elem::Act8 => [n * k, n * k / 32 * 4, n * k / 16 * 4, 0],
    };
    let mut end = 0;
    let starts = bytes.map(|b| {
        let start = end;
        end += b.next_multiple_of(64);
        start
    });
    (starts, end)
}

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Elem {
    /// One scalar per element, row major.
    Scalar(DType),
    /// GGUF blocks along the last axis, row major; values are f32 after `dequant`.
    Gguf(GgufType),
    /// A quantized kernel layout of a matrix.
    Packed(Packed),
    /// A float matrix in row blocks of 8: `[n / 8, k, 8]`, `n` padded with zero rows.
    Rows8(DType),
    /// Activations `[n, k]` quantized to 8 bits in groups of 32 along k, as three planes: words of four signed bytes
    /// `u32[n, k / 4]`, scales `f32[n, k / 32]`, and `f32[n, k / 16]` holding scale × sum of 16 quantized values.
    Act8,
}

impl From<DType> for Elem {
    fn from(d: DType) -> Elem {
        Elem::Scalar(d)
    }
}

impl Elem {
    /// The scalar type, if elements are plain scalars.
    pub fn scalar(self) -> Option<DType> {
        match self {
            Elem::Scalar(d) => Some(d),
            _ => None,
        }
    }
}

impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Elem::Scalar(d) => write!(f, "{d}"),
            Elem::Gguf(t) => write!(f, "gguf.{}", t.name()),
            Elem::Rows8(d) => write!(f, "rows8.{d}"),
            Elem::Act8 => f.write_str("act8"),
            Elem::Packed(p) => {
                write!(f, "pack.b{}g{}{}z{}", p.bits, p.group, p.scale, p.zero)?;
                write!(f, "{}x{}", if p.min { "m" } else { "" }, p.max)
            }
        }
    }
}

fn parse_packed(s: &str) -> Option<Packed> {
    let s = s.strip_prefix('b')?;
    let (bits, s) = s.split_once('g')?;
    let at = s.find(|c: char| !c.is_ascii_digit())?;
    let (group, s) = s.split_at(at);
    let (scale, s) = s.split_once('z')?;
    let (zero, max) = s.split_once('x')?;
    let (zero, min) = match zero.strip_suffix('m') {
        Some(z) => (z, true),
        None => (zero, false),
    };
    Some(Packed {
        bits: bits.parse().ok().filter(|b| (1..=8).contains(b))?,
        group: group.parse().ok().filter(|g| [16, 32].contains(g))?,
        scale: scale.parse().ok().filter(|d| SCALES.contains(d))?,
        zero: zero.parse().ok()?,
        min,
        max: max.parse().ok()?,
    })
}

impl FromStr for Elem {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        if let Some(name) = s.strip_prefix("gguf.") {
            return GgufType::ALL.into_iter().find(|t| t.name() == name).map(Elem::Gguf).ok_or(());
        }
        if s == "act8" {
            return Ok(Elem::Act8);
        }
        if let Some(name) = s.strip_prefix("rows8.") {
            return name.parse().map(Elem::Rows8);
        }
        match s.strip_prefix("pack.") {
            Some(p) => parse_packed(p).map(Elem::Packed).ok_or(()),
            None => s.parse().map(Elem::Scalar),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_type_reads_back() {
        let mut all: Vec<Elem> = DType::ALL.into_iter().flat_map(|d| [Elem::Scalar(d), Elem::Rows8(d)]).collect();
        all.extend(GgufType::ALL.into_iter().flat_map(|t| [Elem::Gguf(t), Elem::Packed(Packed::for_gguf(t))]));
        all.push(Elem::Act8);
        for e in all {
            assert_eq!(e.to_string().parse(), Ok(e), "{e}");
        }
    }
}

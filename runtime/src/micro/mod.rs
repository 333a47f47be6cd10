//! Routines for micro-kernels, chosen by what the CPU can do.
//!
//! Each computes what [`Micro::define`](marquetry_ir::loops::Micro::define) spells out as loops; `tests/micro.rs` compares the two.

// Other architectures have no routines yet.
#![cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code, unused_imports, unused_macros))]

mod activations;
mod ahead;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attend;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod eight;
mod float;
mod gate;
mod lanes;
mod many;
#[cfg(target_arch = "aarch64")]
mod neon;
mod packed;
mod panel;
mod rows;
mod vector;

pub(crate) use ahead::ask;
#[cfg(target_arch = "x86_64")]
pub(crate) use amx::tile_products;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::sdot;

pub(crate) use ahead::ask_range;
use marquetry_ir::Packed;
use marquetry_ir::loops::{MicroOp, Routine};

/// Instruction sets that routines are written for, of each architecture the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// AMX with bf16, a matrix unit, beside all that AVX-512 stands for.
    Amx,
    /// AVX-512 with VNNI: 512-bit vectors.
    Avx512,
    /// AVX2 with FMA, F16C and AVX-VNNI.
    AvxVnni,
    /// AVX2 with FMA and F16C: 256-bit vectors.
    Avx2,
    /// NEON with the products of bytes of Armv8.2 (dotprod): 128-bit vectors.
    Dotprod,
    /// NEON, which every aarch64 has.
    Neon,
}

impl Level {
    /// Every level that this CPU has, the best one first.
    pub fn available() -> Vec<Level> {
        let mut all = vec![];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            all.extend(amx::available().then_some(Level::Amx));
            all.push(Level::Avx512);
        }
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            all.extend(is_x86_feature_detected!("avxvnni").then_some(Level::AvxVnni));
            all.push(Level::Avx2);
        }
        #[cfg(target_arch = "aarch64")]
        {
            all.extend(std::arch::is_aarch64_feature_detected!("dotprod").then_some(Level::Dotprod));
            all.push(Level::Neon);
        }
        all
    }

    /// Has it products of bf16 by a matrix unit?
    pub fn matrix(self) -> bool {
        self == Level::Amx
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Level::Amx => "AMX",
            Level::Avx512 => "AVX-512",
            Level::AvxVnni => "AVX-VNNI",
            Level::Avx2 => "AVX2",
            Level::Dotprod => "NEON dotprod",
            Level::Neon => "NEON",
        }
    }

    /// The routine of this level. Calling it needs a CPU that has the level.
    pub fn routine(self, op: &MicroOp) -> Option<Routine> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Amx => amx::routine(op),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512::routine(op),
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => avx2::vnni_routine(op),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::routine(op),
            #[cfg(target_arch = "aarch64")]
            Level::Dotprod => neon::dotprod_routine(op),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => neon::routine(op),
            // Those of other architectures.
            _ => None,
        }
    }
}

/// Where the routine for a micro-kernel comes from.
pub type Lookup = fn(&MicroOp) -> Option<Routine>;

/// Which routines code calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Routines {
    /// Those of the best level that this CPU has.
    #[default]
    Best,
    /// Those of a level; none if this CPU lacks it.
    Of(Level),
    /// None: only what the compiler generates.
    None,
}

impl Routines {
    /// Their level, if there are any.
    pub fn level(self) -> Option<Level> {
        static LEVELS: std::sync::LazyLock<Vec<Level>> = std::sync::LazyLock::new(Level::available);
        match self {
            Routines::Best => LEVELS.first().copied(),
            Routines::Of(level) => Some(level).filter(|l| LEVELS.contains(l)),
            Routines::None => None,
        }
    }

    /// Finds them; each can run on this CPU.
    pub fn lookup(self) -> Lookup {
        match self.level() {
            Some(Level::Amx) => |op| Level::Amx.routine(op),
            Some(Level::Avx512) => |op| Level::Avx512.routine(op),
            Some(Level::AvxVnni) => |op| Level::AvxVnni.routine(op),
            Some(Level::Avx2) => |op| Level::Avx2.routine(op),
            Some(Level::Dotprod) => |op| Level::Dotprod.routine(op),
            Some(Level::Neon) => |op| Level::Neon.routine(op),
            None => |_| None,
        }
    }
}

/// Arguments of a call, as generated code passes them.
#[derive(Clone, Copy)]
struct Call {
    args: *const *mut u8,
    sizes: *const i64,
}

impl Call {
    /// Address of an argument.
    ///
    /// # Safety
    /// The call has that many arguments.
    unsafe fn arg<T>(self, i: usize) -> *mut T {
        unsafe { (*self.args.add(i)).cast() }
    }

    /// A size, or after the sizes the stride of an argument.
    ///
    /// # Safety
    /// The call has that many sizes and arguments.
    unsafe fn size(self, i: usize) -> usize {
        unsafe { (*self.sizes.add(i)).max(0) as usize }
    }
}

/// Where a part of a quad is and where it goes.
struct Field {
    /// The data word.
    word: usize,
    /// How far down its bits move; up if negative.
    by: i32,
    /// Those bits of a byte then.
    mask: i8,
}

/// The part of a quad that is `width` bits wide, if there is one.
const fn field(p: Packed, width: u8, quad: usize) -> Option<Field> {
    match marquetry_ir::Part::of(p.bits, width) {
        Some(part) => {
            let by = part.bit(quad) as i32 - part.from as i32;
            Some(Field { word: part.word(quad), by, mask: (part.ones() << part.from) as i8 })
        }
        None => None,
    }
}

/// A layout as a compile-time parameter: every layout of GGUF formats has an instance of the routines.
trait Layout {
    const P: Packed;
}

/// Calls `$f::<Layout>` for the layout that equals `$p`, over the layouts of all GGUF formats.
macro_rules! for_layout {
    ($p:expr, $f:ident) => {{
        macro_rules! one {
            ($t:ident) => {{
                struct L;
                impl $crate::micro::Layout for L {
                    const P: marquetry_ir::Packed = marquetry_ir::Packed::for_gguf(marquetry_ir::GgufType::$t);
                }
                if $p == <L as $crate::micro::Layout>::P {
                    return Some($f::<L>);
                }
            }};
        }
        one!(Q4_0);
        one!(Q4_1);
        one!(Q5_0);
        one!(Q5_1);
        one!(Q8_0);
        one!(Q2K);
        one!(Q3K);
        one!(Q4K);
        one!(Q5K);
        one!(Q6K);
        None
    }};
}
use for_layout;

/// `$f::<D>` for a float type, by the number that routines know it by: 0 for f32, 1 for f16, 2 for bf16.
macro_rules! for_float {
    ($d:expr, $f:ident) => {
        match $d {
            marquetry_ir::DType::F32 => Some($f::<0>),
            marquetry_ir::DType::F16 => Some($f::<1>),
            marquetry_ir::DType::BF16 => Some($f::<2>),
            _ => None,
        }
    };
}
use for_float;

/// `$f::<GELU, D>` for the activation of a gated product and the float type of its results, as [`gate`] has them.
macro_rules! for_gate {
    ($act:expr, $to:expr, $f:ident) => {
        match ($act, $to) {
            (marquetry_ir::loops::micro::Act::Silu, marquetry_ir::DType::F32) => Some($f::<false, 0>),
            (marquetry_ir::loops::micro::Act::Silu, marquetry_ir::DType::BF16) => Some($f::<false, 2>),
            (marquetry_ir::loops::micro::Act::Gelu, marquetry_ir::DType::F32) => Some($f::<true, 0>),
            (marquetry_ir::loops::micro::Act::Gelu, marquetry_ir::DType::BF16) => Some($f::<true, 2>),
            _ => None,
        }
    };
}
use for_gate;

/// Runs a block for every quad of a group, `$i` its number: those that share a word of nibbles follow each other.
macro_rules! quads {
    ($i:ident, $body:block) => {
        $crate::micro::quads!($i, $body, 0 4 1 5 2 6 3 7)
    };
    ($i:ident, $body:block, $($n:literal)*) => {
        $({
            const $i: usize = $n;
            $body
        })*
    };
}
use quads;

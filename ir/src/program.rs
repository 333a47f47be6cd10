//! The module IR: what a compiled function is made of. A straight line of kernel launches over planned buffers.

pub mod interp;
mod verify;

pub use verify::{elements, verify};

use crate::loops::{Kernel, Scope};
use crate::{DType, Dim, Elem, Syms};

/// A kernel of the program, by position in [`Program::kernels`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelId(pub u32);

/// A buffer of the program, by position in [`Program::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

/// Where the bytes of a program buffer come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Given by the caller under this name, read only.
    Input(String),
    /// Handed to the caller under this name.
    Output(String),
    /// A state component, persistent between steps: position in [`Program::states`].
    State(u32),
    /// A plane of a packed weight: position in [`Program::weights`] and byte offset in it.
    Weight(u32, u64),
    /// Constants of the program: position in [`Program::constants`].
    Constant(u32),
    /// The arena, at a byte offset that holds for every admissible size.
    Arena(u64),
    /// Memory that each thread has for itself, at a byte offset: every thread computes the same there and reads only what it has
    /// computed, without waiting for another. A launch that writes such a buffer is run by every thread; its kernel has no parallel
    /// loop, and it writes nothing else.
    Own(u64),
}

/// A buffer of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Name in the text IR, unique in the program.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extent of each axis.
    pub shape: Vec<Dim>,
    /// Where it lives.
    pub place: Place,
}

/// A weight as kernels read it: the rows of one or more model parameters, packed into one layout.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Weight {
    /// Parameters whose rows are joined in order. With `interleave`, block `i` of `interleave` rows is taken from each in turn.
    pub sources: Vec<String>,
    /// Rows per turn when sources are interleaved; 0 joins them one after the other.
    pub interleave: u32,
    /// Element type of every source, as the model file has it.
    pub from: Elem,
    /// Layout that the kernels read.
    pub elem: Elem,
    /// Logical shape after joining; two axes `[n, k]` for matrices, one for vectors.
    pub shape: Vec<usize>,
}

/// A persistent tensor, e.g. the keys of one layer's cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Name, e.g. `kv.3.k`.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extent of each axis.
    pub shape: Vec<Dim>,
}

/// One kernel call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The kernel.
    pub kernel: KernelId,
    /// One buffer per kernel argument.
    pub args: Vec<BufferId>,
    /// All earlier launches must have finished on every thread before this one starts.
    pub sync: bool,
}

impl Launch {
    /// Is it run by every thread, for itself?
    pub fn is_own(&self, p: &Program) -> bool {
        let Some(k) = p.kernels.get(self.kernel.0 as usize) else { return false };
        let place = |b: &BufferId| p.buffers.get(b.0 as usize).map(|b| &b.place);
        self.args.iter().zip(&k.buffers).any(|(b, d)| d.scope != Scope::In && matches!(place(b), Some(Place::Own(_))))
    }
}

/// A compiled function before code generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Name of the function.
    pub name: String,
    /// Run-time sizes, with the bounds this program is valid for.
    pub syms: Syms,
    /// Packed weights.
    pub weights: Vec<Weight>,
    /// Vectors of f32 constants, by their bits.
    pub constants: Vec<Vec<u32>>,
    /// Persistent tensors.
    pub states: Vec<State>,
    /// Buffers.
    pub buffers: Vec<Buffer>,
    /// Kernels.
    pub kernels: Vec<Kernel>,
    /// The calls, in order.
    pub launches: Vec<Launch>,
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// Bytes that each thread has for itself.
    pub own_bytes: u64,
}

/// The calling convention of compiled kernels, shared by every CPU backend and the runtime.
///
/// * `args`: one pointer per kernel argument, in order, each valid for the whole buffer and aligned to 16 bytes or more;
/// * `sizes`: the values of the program's symbols, in declaration order;
/// * `begin..end`: the iterations of the parallel loop to run; ignored by kernels without one.
///
/// # Safety
/// Pointers must be valid for the declared shapes at these sizes, `In` buffers must not be written meanwhile, and ranges run
/// at the same time must not overlap.
pub type KernelFn = unsafe extern "C" fn(args: *const *mut u8, sizes: *const i64, begin: i64, end: i64);

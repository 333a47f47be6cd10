//! The program interpreter: launch by launch with the loop interpreter, over storage in plain bytes.

use std::collections::BTreeMap;

use super::{Buffer, Place, Program};
use crate::loops::Scope;
use crate::loops::interp::{BufData, InterpError, run as run_kernel};

/// Most bytes of one storage.
const MAX_BYTES: u64 = 1 << 36;

/// What a run starts from and leaves behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Inputs by name, row major.
    pub inputs: BTreeMap<String, Vec<u8>>,
    /// Outputs by name; made by the run.
    pub outputs: BTreeMap<String, Vec<u8>>,
    /// States in the order of [`Program::states`], updated in place.
    pub states: Vec<Vec<u8>>,
    /// Packed weights in the order of [`Program::weights`].
    pub weights: Vec<Vec<u8>>,
}

fn wrong<T>(what: String) -> Result<T, InterpError> {
    Err(InterpError::Invalid(what))
}

/// Bytes of an array at these sizes.
///
/// # Errors
/// A negative or absurd extent.
pub fn bytes_at(dtype: crate::DType, shape: &[crate::Dim], sizes: &[i64]) -> Result<usize, InterpError> {
    let extent = |d: &crate::Dim| d.eval(|s| sizes.get(s.0 as usize).copied().unwrap_or(0));
    let all = shape.iter().try_fold(dtype.size() as u64, |n, d| u64::try_from(extent(d)).ok()?.checked_mul(n));
    match all.filter(|n| *n <= MAX_BYTES) {
        Some(n) => Ok(n as usize),
        None => wrong(format!("a buffer with the extents {:?}", shape.iter().map(extent).collect::<Vec<_>>())),
    }
}

struct Machine<'a> {
    p: &'a Program,
    sizes: &'a [i64],
    arena: Vec<u8>,
    own: Vec<u8>,
    constants: Vec<Vec<u8>>,
}

impl Machine<'_> {
    /// The storage of a buffer and where it begins there.
    fn storage<'m>(&'m mut self, m: &'m mut Memory, b: &Buffer) -> Result<(&'m mut Vec<u8>, usize), InterpError> {
        let none = || InterpError::Invalid(format!("buffer `{}` has no storage", b.name));
        Ok(match &b.place {
            Place::Input(n) => (m.inputs.get_mut(n).ok_or_else(none)?, 0),
            Place::Output(n) => (m.outputs.get_mut(n).ok_or_else(none)?, 0),
            Place::State(i) => (m.states.get_mut(*i as usize).ok_or_else(none)?, 0),
            Place::Weight(i, at) => (m.weights.get_mut(*i as usize).ok_or_else(none)?, *at as usize),
            Place::Constant(i) => (self.constants.get_mut(*i as usize).ok_or_else(none)?, 0),
            Place::Arena(at) => (&mut self.arena, *at as usize),
            Place::Own(at) => (&mut self.own, *at as usize),
        })
    }

    fn launch(&mut self, m: &mut Memory, at: usize) -> Result<(), InterpError> {
        let p = self.p;
        let launch = &p.launches[at];
        let Some(kernel) = p.kernels.get(launch.kernel.0 as usize) else {
            return wrong(format!("launch {at} has no kernel"));
        };
        if launch.args.len() != kernel.args() {
            return wrong(format!("launch {at}: {} buffers for {} arguments", launch.args.len(), kernel.args()));
        }
        let mut args = vec![];
        for id in &launch.args {
            let Some(b) = p.buffers.get(id.0 as usize) else { return wrong(format!("launch {at} has no buffer")) };
            let len = bytes_at(b.dtype, &b.shape, self.sizes)?;
            let (store, from) = self.storage(m, b)?;
            let Some(bytes) = from.checked_add(len).and_then(|to| store.get(from..to)) else {
                return wrong(format!("buffer `{}` leaves its storage of {} bytes", b.name, store.len()));
            };
            args.push(BufData { dtype: b.dtype, bytes: bytes.to_vec() });
        }
        run_kernel(kernel, self.sizes, &mut args).map_err(|e| match e {
            InterpError::Invalid(what) => InterpError::Invalid(format!("@{}: {what}", kernel.name)),
            other => other,
        })?;
        for ((id, data), decl) in launch.args.iter().zip(args).zip(&kernel.buffers) {
            if decl.scope != Scope::In {
                let (store, from) = self.storage(m, &p.buffers[id.0 as usize])?;
                store[from..from + data.bytes.len()].copy_from_slice(&data.bytes);
            }
        }
        Ok(())
    }
}

/// Runs a program once. `sizes` are the values of its symbols. The arena starts with bytes that mean nothing, which as floats are NaN.
///
/// # Errors
/// Memory that does not fit the program, or a kernel that leaves its buffers.
pub fn run(p: &Program, sizes: &[i64], memory: &mut Memory) -> Result<(), InterpError> {
    for (what, bytes) in [("an arena", p.arena_bytes), ("own memory", p.own_bytes)] {
        if bytes > MAX_BYTES {
            return wrong(format!("{what} of {bytes} bytes"));
        }
    }
    memory.outputs.clear();
    for b in &p.buffers {
        if let Place::Output(name) = &b.place {
            let len = bytes_at(b.dtype, &b.shape, sizes)?;
            let out = memory.outputs.entry(name.clone()).or_default();
            out.resize(len.max(out.len()), 0);
        }
    }
    let constants = p.constants.iter().map(|c| c.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let [arena, own] = [p.arena_bytes, p.own_bytes].map(|n| vec![0xff; n as usize]);
    let mut machine = Machine { p, sizes, arena, own, constants };
    (0..p.launches.len()).try_for_each(|i| machine.launch(memory, i))
}

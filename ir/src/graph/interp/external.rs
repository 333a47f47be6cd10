//! Functions that are kernels, by the interpreter of the loop IR.

use std::sync::Arc;

use super::{Data, InterpError, Tensor, Val, bad};
use crate::DType;
use crate::graph::{Function, Ty};
use crate::loops::interp::{BufData, Scalar, run as run_kernel};
use crate::loops::{Kernel, Scope};

/// Runs the kernel of a function over its arguments and gives its results.
pub(super) fn run(f: &Function, k: &Kernel, sizes: &[i64], args: Vec<Val>) -> Result<Vec<Val>, InterpError> {
    let extents = |i: usize| -> Vec<usize> {
        let shape = k.buffers.get(i).map(|b| b.shape.as_slice()).unwrap_or_default();
        let eval = |s: crate::Sym| sizes.get(s.0 as usize).copied().unwrap_or(0);
        shape.iter().map(|d| usize::try_from(d.eval(eval)).unwrap_or(0)).collect()
    };
    let mut bufs = args.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
    for (i, b) in k.buffers.iter().enumerate().filter(|(_, b)| b.scope == Scope::Out) {
        bufs.push(BufData::zeros(b.dtype, extents(i).iter().product()));
    }
    run_kernel(k, sizes, &mut bufs).map_err(|e| InterpError(format!("@{}: {e}", f.name)))?;
    let mut states = args.iter().enumerate().filter(|(_, a)| matches!(a, Val::Rows(..))).map(|(i, _)| i);
    let mut outs = args.len()..;
    let result = |ty: &Ty| {
        let at = if ty.is_state() { states.next() } else { outs.next() };
        let (i, b) = match at.and_then(|i| Some((i, bufs.get(i)?))) {
            Some(found) => found,
            None => return bad(format!("@{}: its kernel does not give all results", f.name)),
        };
        let shape = extents(i);
        Ok(match (ty, b.dtype) {
            (Ty::Tensor(_), DType::F32) => Val::Tensor(Tensor::f32(&shape, b.to_f32())),
            (Ty::Tensor(_), d) => Val::Tensor(Tensor { shape, data: Data::Int(d, Arc::new(integers(b))) }),
            _ => Val::Rows(Arc::new(b.to_f32()), shape),
        })
    };
    f.results.iter().map(|(_, v)| f.ty(*v)).map(result).collect()
}

fn integers(b: &BufData) -> Vec<i64> {
    let one = |i: usize| if let Scalar::I(v) = b.get(i) { v } else { 0 };
    (0..b.len()).map(one).collect()
}

fn encode(v: &Val) -> Result<BufData, InterpError> {
    Ok(match v {
        Val::Rows(v, _) => BufData::from_f32(v),
        Val::Kv(..) => return bad("a cache can not be given to a kernel"),
        Val::Tensor(t) => match &t.data {
            Data::Int(d, v) => {
                let mut b = BufData::zeros(*d, v.len());
                v.iter().enumerate().for_each(|(i, x)| b.set(i, Scalar::I(*x)));
                b
            }
            _ => BufData::from_f32(&t.to_f32()?),
        },
    })
}

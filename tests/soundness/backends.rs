//! A planned program as machine code, on the runtime.

use std::sync::Arc;

use marquetry::codegen::{Backend, Options, compile};
use marquetry::ir::graph::Module;
use marquetry::ir::graph::interp::Val;
use marquetry::ir::program::Program;
use marquetry::ir::testing::program::{bytes, outcome, planes, results, weight};
use marquetry::ir::testing::{Inputs, Outcome};
use marquetry::runtime::{Arena, Code, Function, Pool, States, WeightData, micro};

/// Compiles a program, with this CPU's routines for its micro-kernels, and runs it on one thread, then on two.
pub fn native(backend: Backend, m: &Module, p: &Program, i: &Inputs) -> Result<[Outcome; 2], String> {
    let options = Options { verify: true, threads: 1, routines: micro::routine, ..Options::default() };
    let code = compile(backend, &p.kernels, &p.syms, &options).map_err(|e| e.to_string())?;
    let kernels = (0..code.len()).map(|k| code.kernel(k)).collect();
    // SAFETY: the entry points are those of the program's kernels in order, and live as long as the code, which goes along.
    let code = unsafe { Code::new(kernels, Box::new(code)) };
    let pack = |w| WeightData::copy(&weight(w, &i.params)?).map(Arc::new).map_err(|e| e.to_string());
    let weights = p.weights.iter().map(pack).collect::<Result<Vec<_>, String>>()?;
    let f = Function::new(p.clone(), code, weights).map_err(|e| e.to_string())?;
    Ok([once(m, &f, i, 1)?, once(m, &f, i, 2)?])
}

fn once(m: &Module, f: &Function, i: &Inputs, threads: usize) -> Result<Outcome, String> {
    let mut states = States::new(f.states(), &i.sizes).map_err(|e| e.to_string())?;
    for (name, plane) in planes(m, &i.states) {
        if let Some(s) = states.get_mut(&name) {
            s.copy_from_slice(&plane);
        }
    }
    let names = m.entry().map_or(vec![], |f| f.args.clone());
    let mut inputs = vec![];
    for ((name, _), v) in names.iter().zip(&i.args) {
        if let (Val::Tensor(t), true) = (v, f.inputs().any(|(n, ..)| n == name)) {
            inputs.push((name.as_str(), bytes(t)?));
        }
    }
    let inputs: Vec<(&str, &[u8])> = inputs.iter().map(|(n, b)| (*n, b.as_slice())).collect();
    let sized =
        results(m, &i.sizes).into_iter().map(|(n, d, s)| (n, vec![0xffu8; s.iter().product::<usize>() * d.size()]));
    let mut outputs: Vec<(String, Vec<u8>)> = sized.collect();
    let mut views: Vec<(&str, &mut [u8])> = outputs.iter_mut().map(|(n, b)| (n.as_str(), b.as_mut_slice())).collect();
    let pool = Pool::new(threads).map_err(|e| e.to_string())?;
    f.run(&pool, &mut Arena::default(), &mut states, &i.sizes, &inputs, &mut views).map_err(|e| e.to_string())?;
    let output = |name: &str| outputs.iter().find(|(n, _)| n == name).map(|(_, b)| b.clone());
    outcome(m, i, &output, &|name| states.get(name).map(<[u8]>::to_vec))
}

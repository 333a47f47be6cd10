//! A planned program as machine code, on the runtime.

#![allow(dead_code, reason = "each test crate uses a part")]

use std::collections::HashMap;
use std::sync::Arc;

use marquetry::codegen::{Backend, Options, compile};
use marquetry::ir::graph::Module;
use marquetry::ir::graph::interp::{Tensor, Val};
use marquetry::ir::program::Program;
use marquetry::ir::testing::program::{bytes, outcome, planes, results, weight};
use marquetry::ir::testing::{Inputs, Outcome};
use marquetry::runtime::micro::Routines;
use marquetry::runtime::{Arena, Code, Function, Pool, States, WeightData};

/// A compiled program with its weights, and scratch memory that holds what the last run left there.
pub struct Native {
    function: Function,
    arena: Arena,
}

impl Native {
    /// Compiles a program and packs its weights.
    pub fn new(
        backend: Backend,
        options: &Options,
        p: &Program,
        params: &HashMap<String, Tensor>,
    ) -> Result<Native, String> {
        let code = compile(backend, &p.kernels, &p.syms, options).map_err(|e| e.to_string())?;
        let kernels = (0..code.len()).map(|k| code.kernel(k)).collect();
        // SAFETY: the entry points are those of the program's kernels in order, and live as long as the code, which goes along.
        let code = unsafe { Code::new(kernels, Box::new(code)) };
        let pack = |w| WeightData::copy(&weight(w, params)?).map(Arc::new).map_err(|e| e.to_string());
        let weights = p.weights.iter().map(pack).collect::<Result<Vec<_>, String>>()?;
        let function = Function::new(p.clone(), code, weights).map_err(|e| e.to_string())?;
        Ok(Native { function, arena: Arena::default() })
    }

    /// Runs it once, on all threads of the pool if the last run had another number (else some may be left out on a busy machine).
    /// `m` is the module that it was made of.
    pub fn run(&mut self, m: &Module, i: &Inputs, pool: &Pool) -> Result<Outcome, String> {
        let f = &self.function;
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
        let mut made: Vec<(&str, &mut [u8])> =
            outputs.iter_mut().map(|(n, b)| (n.as_str(), b.as_mut_slice())).collect();
        let ran = f.run(pool, &mut self.arena, &mut states, &i.sizes, &inputs, &mut made);
        ran.map_err(|e| e.to_string())?;
        let output = |name: &str| outputs.iter().find(|(n, _)| n == name).map(|(_, b)| b.clone());
        outcome(m, i, &output, &|name| states.get(name).map(<[u8]>::to_vec))
    }
}

/// Compiles a program, with this CPU's routines for its micro-kernels, and runs it on one thread, then on two.
pub fn native(backend: Backend, m: &Module, p: &Program, i: &Inputs) -> Result<[Outcome; 2], String> {
    let options = Options { verify: true, threads: 1, routines: Routines::Best.lookup(), ..Options::default() };
    let mut made = Native::new(backend, &options, p, &i.params)?;
    let mut on = |threads| made.run(m, i, &Pool::new(threads).map_err(|e| e.to_string())?);
    Ok([on(1)?, on(2)?])
}

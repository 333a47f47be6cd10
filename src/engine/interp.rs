//! The graph interpreter as a machine. Weights are decoded once; the cache grows with the sequence.

use std::collections::HashMap;
use std::sync::Arc;

use marquetry_ir::graph::interp::{Data, Tensor, Val, run_function};
use marquetry_ir::graph::{Module, Ty};

use super::record::Timed;
use super::{Bucket, Error, Machine, Stats, StepArgs};
use crate::model::{LoadedModel, PAGE};

/// The interpreter and its memory.
pub(super) struct Interp {
    /// As traced: all parameters are f32.
    module: Module,
    params: HashMap<String, Tensor>,
    states: HashMap<String, Val>,
    pages: usize,
}

impl Interp {
    pub fn new(model: &LoadedModel) -> Result<Interp, Error> {
        let module = model.text.module.clone();
        let mut params = HashMap::new();
        for p in &module.params {
            let Some(view) = model.weights.get(&p.name) else { continue };
            let data = Data::Bytes(view.elem, Arc::new(view.data().into_owned()));
            let decoded = Tensor { shape: view.shape.to_vec(), data }.to_f32()?;
            params.insert(p.name.clone(), Tensor { shape: view.shape.to_vec(), data: Data::F32(decoded) });
        }
        Ok(Interp { module, params, states: HashMap::new(), pages: 0 })
    }

    /// Makes room for this many pages; what is in the cache stays.
    fn grow(&mut self, pages: usize) {
        if pages <= self.pages {
            return;
        }
        self.pages = pages.next_power_of_two();
        for s in &self.module.states {
            if let Ty::Rows(r) = &s.ty {
                // One sequence, one row.
                let shape: Vec<usize> = [1].into_iter().chain(r.shape.iter().copied()).collect();
                let zeros = || Val::Rows(Arc::new(vec![0.0; shape.iter().product()]), shape.clone());
                self.states.entry(s.name.clone()).or_insert_with(zeros);
                continue;
            }
            let Ty::Kv(k) = &s.ty else { continue };
            let dims = [self.pages * PAGE, k.heads, k.dim];
            let len = dims.iter().product();
            let old = self.states.remove(&s.name);
            let [k, v] = match old {
                Some(Val::Kv(kv, _)) => kv.map(|x| {
                    let mut x = Arc::unwrap_or_clone(x);
                    x.resize(len, 0.0);
                    Arc::new(x)
                }),
                _ => [Arc::new(vec![0.0; len]), Arc::new(vec![0.0; len])],
            };
            self.states.insert(s.name.clone(), Val::Kv([k, v], dims));
        }
    }
}

impl Machine for Interp {
    fn step(
        &mut self,
        args: &StepArgs<'_>,
        outputs: &mut [(&str, &mut [u8])],
        _: &mut Stats,
    ) -> Result<Option<Timed>, Error> {
        let page = |slot: &i32| usize::try_from(*slot).unwrap_or(0) / PAGE + 1;
        self.grow(args.kv.slot.iter().map(page).max().unwrap_or(1));
        let Some(f) = self.module.entry() else { return Err(missing("an entry function")) };
        let size = |name: &str| args.size(name, self.pages).ok_or_else(|| missing(&format!("size `{name}`")));
        let sizes = self.module.syms.0.iter().map(|d| size(&d.name)).collect::<Result<Vec<_>, _>>()?;
        let input = |name: &str| {
            let data = args.input(name).ok_or_else(|| missing(&format!("input `{name}`")))?;
            let shape = if name == "pages" { vec![args.kv.nseq, args.kv.max_pages] } else { vec![data.len()] };
            Ok(Val::Tensor(Tensor::i32(&shape, data)))
        };
        let values = f.args.iter().map(|(name, _)| input(name)).collect::<Result<Vec<_>, Error>>()?;
        let states = &mut self.states;
        let results = run_function(&self.module, f, &self.module.syms, &sizes, values, states, &self.params)?;
        for (wanted, out) in outputs {
            let at = f.results.iter().position(|(name, _)| name == wanted);
            let Some(Val::Tensor(t)) = at.and_then(|i| results.get(i)) else {
                return Err(missing(&format!("output `{wanted}`")));
            };
            let values = t.to_f32()?;
            let out: &mut [f32] = bytemuck::cast_slice_mut(out);
            if values.len() != out.len() {
                return Err(missing(&format!("{} numbers of `{wanted}`, {} are there", out.len(), values.len())));
            }
            out.copy_from_slice(&values);
        }
        Ok(None)
    }

    fn state(&self, name: &str) -> Option<Vec<f32>> {
        match self.states.get(name)? {
            Val::Rows(v, _) => Some(v.to_vec()),
            _ => None,
        }
    }

    fn prepare(&mut self, _: Bucket, _: &mut Stats) -> Result<(), Error> {
        Ok(())
    }
}

fn missing(what: &str) -> Error {
    marquetry_ir::graph::interp::InterpError(format!("the step needs {what}")).into()
}

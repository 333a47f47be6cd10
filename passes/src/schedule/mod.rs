//! Schedules: rewrites of loop nests that keep their meaning, recorded in the kernel's trace.
//!
//! A loop is addressed by its variable. Every primitive checks its preconditions; where it can not prove them it returns a
//! [`ScheduleError`] and leaves the kernel as it was. What it did is one line of [`Kernel::trace`]. Buffers of a kernel are
//! taken not to overlap each other.

mod access;
mod lane;
mod linear;
mod nest;
mod registers;
mod replay;
pub mod rules;
mod tree;
mod vector;

pub use nest::{parallel, reorder, split, unroll};
pub use registers::promote;
pub use replay::{PRIMITIVES, Primitive, ReplayError, replay, replay_program, traces};
pub use vector::{vectorize, vectorize_reduce};

use marquetry_ir::loops::{Kernel, Stmt, Var};
use marquetry_ir::program::Program;
use thiserror::Error;

use crate::manager::Rewrites;
use crate::params::Params;
use tree::Loop;

/// Why a primitive was not applied. The kernel is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{primitive} {loop_name}: {why}")]
pub struct ScheduleError {
    /// The primitive.
    pub primitive: &'static str,
    /// The loop it was asked to work on.
    pub loop_name: String,
    /// The precondition that does not hold or could not be proven.
    pub why: String,
}

/// What the default schedule may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Innermost loops become vectors.
    pub vectorize: bool,
    /// Short loops are expanded.
    pub unroll: bool,
    /// Small scratch buffers move into registers.
    pub registers: bool,
    /// Widths of vectors, and what counts as short.
    pub params: Params,
}

impl Default for Config {
    fn default() -> Config {
        Config { vectorize: true, unroll: true, registers: true, params: Params::default() }
    }
}

/// Applies the default schedule to every kernel.
pub fn run(p: &mut Program) {
    run_with(p, &Config::default(), &Rewrites::default());
}

/// As [`run`]; each step asks `rewrites`.
pub fn run_with(p: &mut Program, config: &Config, rewrites: &Rewrites) {
    for k in &mut p.kernels {
        rules::schedule(k, config, rewrites);
        if config.registers {
            registers::promote_where(k, &mut |k, b| {
                rewrites.take(|| format!("schedule @{}: registers %{}", k.name, k.decl(b).name))
            });
        }
    }
}

/// A variable as the text IR writes it.
fn name(k: &Kernel, v: Var) -> String {
    format!("%{}.{}", k.vars.get(v.0 as usize).map_or("?", |n| n), v.0)
}

fn buffer(k: &Kernel, b: marquetry_ir::loops::Buf) -> String {
    format!("`{}`", k.decl(b).name)
}

/// Replaces a loop by what `f` makes of it. When `f` fails nothing changes; on success its text goes to the trace.
fn edit<T>(
    k: &mut Kernel,
    primitive: &'static str,
    var: Var,
    f: impl FnOnce(&mut Kernel, Loop) -> Result<(Vec<Stmt>, String, T), String>,
) -> Result<T, ScheduleError> {
    let loop_name = name(k, var);
    let fail = |why: String| ScheduleError { primitive, loop_name: loop_name.clone(), why };
    let l = tree::find(&k.body, var).ok_or_else(|| fail("no such loop".into()))?;
    let (vars, buffers) = (k.vars.len(), k.buffers.len());
    match f(k, l) {
        Ok((mut new, line, result)) => {
            tree::replace(&mut k.body, var, &mut new);
            let line = if line.is_empty() { String::new() } else { format!(" {line}") };
            k.trace.push(format!("{primitive} {loop_name}{line}"));
            Ok(result)
        }
        Err(why) => {
            k.vars.truncate(vars);
            k.buffers.truncate(buffers);
            Err(fail(why))
        }
    }
}

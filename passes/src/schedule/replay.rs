//! Traces as text that can be edited and applied again.
//!
//! ```text
//! # a comment
//! kernel @NAME
//!   vectorize %r.5 by 8
//!   unroll %t.4
//!   registers %acc
//! ```
//!
//! A step is a line of [`Kernel::trace`]. What it says of names that it makes (`into ..`, `tail ..`) may be left out; where it is there, it
//! has to be what comes out, since later lines use those names.

use marquetry_ir::loops::{Buf, Kernel, Scope, Stmt, Var};
use marquetry_ir::program::Program;
use marquetry_ir::text::suggest;
use thiserror::Error;

use super::tree::{bodies, loops};
use super::{ScheduleError, name, nest, registers, rules, vector};
use crate::manager::Rewrites;

/// A primitive as traces spell it.
#[derive(Clone, Copy, Debug)]
pub struct Primitive {
    /// Its name.
    pub name: &'static str,
    /// The line.
    pub form: &'static str,
    /// What it does.
    pub doc: &'static str,
    /// What has to hold.
    pub needs: &'static str,
}

/// Every primitive.
pub static PRIMITIVES: &[Primitive] = &[
    Primitive {
        name: "split",
        form: "split %LOOP by N [into %OUTER, %INNER[, tail %TAIL]]",
        doc: "A loop becomes a nest of two; iterations that are left over become a loop behind it.",
        needs: "N is at least 1 and at most the extent; the extent loads nothing and is not negative; a parallel loop has a multiple of N \
                iterations.",
    },
    Primitive {
        name: "unroll",
        form: "unroll %LOOP",
        doc: "A loop is expanded when code is generated.",
        needs: "The loop is serial, and has a constant extent of at most 64.",
    },
    Primitive {
        name: "reorder",
        form: "reorder %OUTER and %INNER",
        doc: "Two loops change places.",
        needs: "The inner loop is all there is in the outer one, and its extent does not depend on it nor on what is stored; neither is \
                parallel; no two iterations that differ in both variables touch one element with one of them storing.",
    },
    Primitive {
        name: "parallel",
        form: "parallel %LOOP",
        doc: "A loop is spread over threads.",
        needs: "The loop is serial and all there is in the kernel; different iterations never touch one element of an argument with one of them \
                storing; no iteration reads what an earlier one left in scratch memory.",
    },
    Primitive {
        name: "vectorize",
        form: "vectorize %LOOP by LANES[, tail %TAIL]",
        doc: "LANES iterations run at a time, as vectors.",
        needs: "LANES is a power of two from 4 to 64, at most the extent; the loop is serial or unrolled, its extent loads nothing and is not \
                negative; statements are scalar; the variable is used on last axes, with a factor of 1; different iterations never touch one \
                element with one of them storing; accesses to registers are aligned.",
    },
    Primitive {
        name: "vectorize_reduce",
        form: "vectorize_reduce %LOOP by LANES [in N chains][, tail %TAIL]",
        doc: "LANES iterations of a reduction are combined at a time, in N accumulators. Sums of floats are taken in another order.",
        needs: "As for `vectorize`, with LANES times N at most the extent, and N at most 8; the body is bindings and one store to an element \
                that does not depend on the loop, whose old value is combined once.",
    },
    Primitive {
        name: "registers",
        form: "registers %BUFFER",
        doc: "Scratch memory moves into registers.",
        needs: "The buffer is local, of a constant shape of at most 32 vectors of 128 bits; every access is a vector of one width at constant \
                indices, once unrolled loops are expanded.",
    },
];

/// Most statements that a kernel may get.
const MAX_STATEMENTS: usize = 1 << 13;
/// Most of a number in a step.
const MAX_NUMBER: i64 = 1 << 20;

/// Why a trace was not applied.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: `{text}`: {why}")]
pub struct ReplayError {
    /// Its line, from 1.
    pub line: usize,
    /// The line.
    pub text: String,
    /// What does not hold.
    pub why: String,
}

/// The traces of a program as a file that [`replay_program`] reads.
pub fn traces(p: &Program) -> String {
    let mut out = String::new();
    for k in &p.kernels {
        out += &format!("kernel @{}\n", k.name);
        k.trace.iter().for_each(|line| out += &format!("  {line}\n"));
    }
    out
}

/// Applies traces to the kernels that the text names; the others get the default schedule.
///
/// # Errors
/// The first line that can not be read, names no kernel or loop, or whose preconditions do not hold. The program is then half scheduled.
pub fn replay_program(p: &mut Program, text: &str) -> Result<(), ReplayError> {
    let mut named = vec![false; p.kernels.len()];
    let mut at: Option<usize> = None;
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        let error = |why: String| ReplayError { line: i + 1, text: shown(line), why };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(rest) = line.strip_prefix("kernel ") {
            let wanted = rest.trim().strip_prefix('@').unwrap_or(rest.trim());
            let found = p.kernels.iter().position(|k| k.name == wanted);
            let near = || suggest(wanted, p.kernels.iter().map(|k| k.name.as_str()));
            let found = found.ok_or_else(|| error(format!("no kernel `@{wanted}`{}", near())))?;
            if std::mem::replace(&mut named[found], true) {
                return Err(error(format!("`@{wanted}` has two traces; keep one")));
            }
            at = Some(found);
            continue;
        }
        let kernel = at.ok_or_else(|| error("there is no `kernel @NAME` above it".into()))?;
        apply(&mut p.kernels[kernel], line).map_err(error)?;
    }
    let config = super::Config::default();
    for (k, _) in p.kernels.iter_mut().zip(named).filter(|(_, named)| !named) {
        rules::schedule(k, &config, &Rewrites::default());
        registers::promote(k);
    }
    Ok(())
}

/// Applies the lines of a trace to a kernel.
///
/// # Errors
/// The first line that can not be read or applied; the kernel is as the lines before it left it.
pub fn replay(k: &mut Kernel, trace: &[String]) -> Result<(), ReplayError> {
    let each =
        |(i, line): (usize, &String)| apply(k, line).map_err(|why| ReplayError { line: i + 1, text: shown(line), why });
    trace.iter().enumerate().try_for_each(each)
}

/// A line of somebody's file, for a message.
fn shown(line: &str) -> String {
    line.chars().take(120).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn apply(k: &mut Kernel, line: &str) -> Result<(), String> {
    let words: Vec<&str> = line.split([' ', ',']).filter(|w| !w.is_empty()).collect();
    let (primitive, rest) = words.split_first().ok_or("an empty step")?;
    let Some(p) = PRIMITIVES.iter().find(|p| p.name == *primitive) else {
        return Err(format!("no primitive `{primitive}`{}", suggest(primitive, PRIMITIVES.iter().map(|p| p.name))));
    };
    let form = || format!("not of the form `{}`", p.form);
    let done = |r: Result<(), ScheduleError>| r.map_err(|e| e.why);
    let before = k.trace.len();
    match (*primitive, rest) {
        ("registers", [b]) => return into_registers(k, b),
        ("unroll", [v]) => done(nest::unroll(k, var(k, v)?))?,
        ("parallel", [v]) => done(nest::parallel(k, var(k, v)?, false))?,
        ("parallel", [_, "assuming", ..]) => {
            return Err("nothing vouches for that in a file; leave the assumption away".into());
        }
        ("reorder", [a, "and", b]) => {
            let (a, b) = (var(k, a)?, var(k, b)?);
            done(nest::reorder(k, a, b))?;
        }
        ("split", [v, "by", n, ..]) => {
            let (v, n) = (var(k, v)?, number(n)?);
            done(nest::split(k, v, n, true).map(drop))?;
        }
        ("vectorize", [v, "by", n, ..]) => {
            let (v, n) = (var(k, v)?, lanes(n)?);
            done(vector::vectorize(k, v, n))?;
        }
        ("vectorize_reduce", [v, "by", n, rest @ ..]) => {
            let (v, n) = (var(k, v)?, lanes(n)?);
            let chains = if let ["in", c, "chains", ..] = rest { lanes(c)? } else { 1 };
            done(vector::vectorize_reduce(k, v, n, chains))?;
        }
        _ => return Err(form()),
    }
    if statements(&k.body) > MAX_STATEMENTS {
        return Err(format!("the kernel has more than {MAX_STATEMENTS} statements then"));
    }
    // What is stated of the result has to be what came out.
    let made = k.trace.get(before).cloned().unwrap_or_default();
    let plain = |s: &str| s.split([' ', ',']).filter(|w| !w.is_empty()).map(str::to_string).collect::<Vec<_>>();
    let (made_words, given) = (plain(&made), plain(line));
    let names = |w: &[String]| w.iter().position(|w| w == "into" || w == "tail").unwrap_or(w.len());
    let states = names(&given) < given.len();
    match given == made_words || !states && given == made_words[..names(&made_words)] {
        true => Ok(()),
        false if states => {
            Err(format!("what it makes is `{made}`; correct this line and those below that use the names"))
        }
        false => Err(form()),
    }
}

fn number(text: &str) -> Result<i64, String> {
    let n = text.parse::<i64>().ok().filter(|n| (1..=MAX_NUMBER).contains(n));
    n.ok_or_else(|| format!("`{}` is no number of 1 to {MAX_NUMBER}", shown(text)))
}

fn lanes(text: &str) -> Result<u16, String> {
    number(text).and_then(|n| u16::try_from(n).map_err(|_| format!("{n} is too many")))
}

/// The variable of a loop that a step names.
fn var(k: &Kernel, text: &str) -> Result<Var, String> {
    let all: Vec<(String, Var)> = loops(&k.body)
        .into_iter()
        .filter_map(|s| if let Stmt::For { var, .. } = s { Some((name(k, *var), *var)) } else { None })
        .collect();
    let found = all.iter().find(|(n, _)| n == text).map(|(_, v)| *v);
    found.ok_or_else(|| format!("no loop `{}`{}", shown(text), suggest(text, all.iter().map(|(n, _)| n.as_str()))))
}

/// Moves one buffer.
fn into_registers(k: &mut Kernel, text: &str) -> Result<(), String> {
    let wanted = text.strip_prefix('%').unwrap_or(text);
    let Some(b) = k.buffers.iter().position(|b| b.name == wanted) else {
        let local = k.buffers.iter().filter(|b| b.scope == Scope::Local).map(|b| b.name.as_str());
        return Err(format!("no buffer `{}`{}", shown(wanted), suggest(wanted, local)));
    };
    if k.buffers[b].scope != Scope::Local {
        return Err(format!("`{wanted}` is not local"));
    }
    registers::promote_where(k, &mut |_, x| x == Buf(b as u32));
    match k.buffers[b].scope {
        Scope::Reg => Ok(()),
        _ => Err("it is too large, or not every access is a vector of one width at constant indices".into()),
    }
}

fn statements(body: &[Stmt]) -> usize {
    body.iter().map(|s| 1 + bodies(s).into_iter().map(|b| statements(b)).sum::<usize>()).sum()
}

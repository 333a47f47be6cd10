//! The graph verifier. It reports every violation of:
//!
//! 0. arguments of one function have different names, and so have its results;
//! 1. values are numbered in order of definition, and defined before use, once;
//! 2. operands and attributes fit the operator table;
//! 3. the type of each result is what the operator's rule gives;
//! 4. `param`, `state` and `call` agree with the declarations they name; callees come before callers;
//! 5. the kernel of an external function takes its arguments and results, and is itself valid;
//! 6. states are linear: each version of a state is consumed by at most one update, or call of a function that updates it, and
//!    not read after that.

use std::collections::HashSet;

use super::{Attr, Function, Inst, Kind, Module, Op, Ty};
use crate::Elem;
use crate::loops::{self, Kernel, Scope};
use crate::text::suggest;

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Position of the function.
    pub function: usize,
    /// Position of the operation; none for the signature.
    pub inst: Option<usize>,
    /// Function and operation in words.
    pub place: String,
    /// What is wrong.
    pub message: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Every violation as text, each with function and operation.
pub fn verify(m: &Module) -> Vec<String> {
    violations(m).iter().map(Violation::to_string).collect()
}

/// Every violation.
pub fn violations(m: &Module) -> Vec<Violation> {
    let mut errors = vec![];
    for (i, f) in m.functions.iter().enumerate() {
        let mut v = Verifier { m, f, known: &m.functions[..i], errors: &mut errors };
        v.run();
    }
    errors
}

struct Verifier<'a> {
    m: &'a Module,
    f: &'a Function,
    known: &'a [Function],
    errors: &'a mut Vec<Violation>,
}

impl Verifier<'_> {
    fn error(&mut self, at: Option<usize>, message: String) {
        let place = match at {
            Some(i) => format!("op {i} (`{}`)", self.f.insts[i].op.name()),
            None => "signature".into(),
        };
        let place = format!("@{} {place}", self.f.name);
        self.errors.push(Violation { function: self.known.len(), inst: at, place, message });
    }

    fn names<'n>(&mut self, what: &str, names: impl Iterator<Item = &'n str>) {
        let mut seen = HashSet::new();
        for name in names {
            if !seen.insert(name) {
                self.error(None, format!("two {what} are called `{name}`; rename one"));
            }
        }
    }

    /// The kernel of a function takes what the function does, in the order that [`Kind::Kernel`] says.
    fn external(&mut self, k: &Kernel) {
        let f = self.f;
        let states: Vec<&Ty> = f.args.iter().map(|(_, v)| f.ty(*v)).filter(|t| t.is_state()).collect();
        let back: Vec<&Ty> = f.results.iter().map(|(_, v)| f.ty(*v)).filter(|t| t.is_state()).collect();
        if states != back {
            self.error(None, "states that come in must come out, in the same order".into());
        }
        let results = f.results.iter().filter(|(_, v)| !f.ty(*v).is_state()).map(|r| (r, Scope::Out));
        let args = f.args.iter().map(|a| (a, if f.ty(a.1).is_state() { Scope::InOut } else { Scope::In }));
        let wanted: Vec<_> = args.chain(results).collect();
        if wanted.len() != k.args() {
            self.error(None, format!("its kernel takes {} buffers, {} are due", k.args(), wanted.len()));
        }
        for (((name, v), scope), b) in wanted.into_iter().zip(&k.buffers) {
            let fits = match f.ty(*v) {
                Ty::Tensor(t) => t.elem == Elem::Scalar(b.dtype) && t.shape == b.shape,
                Ty::Rows(r) => r.dtype == b.dtype && r.extents() == b.shape,
                Ty::Kv(_) => false,
            };
            if !fits || b.scope != scope {
                let ty = super::print::ty(&self.m.syms, f.ty(*v));
                self.error(None, format!("buffer `{}` of its kernel does not fit `{name}`: {ty}", b.name));
            }
        }
        for e in loops::verify::verify(k, &self.m.syms) {
            self.error(None, e.to_string());
        }
    }

    fn run(&mut self) {
        let f = self.f;
        self.names("arguments", f.args.iter().map(|a| a.0.as_str()));
        self.names("results", f.results.iter().map(|r| r.0.as_str()));
        match (f.kind, &f.kernel) {
            (Kind::Kernel, Some(k)) if f.insts.is_empty() => return self.external(k),
            (Kind::Kernel, _) => return self.error(None, "it must have a kernel and no operations".into()),
            (_, Some(_)) => return self.error(None, "only an external function has a kernel".into()),
            _ => {}
        }
        let mut next = 0u32;
        for (_, v) in &f.args {
            if v.0 != next {
                self.error(None, format!("argument %{} where %{next} is due", v.0));
            }
            next += 1;
        }
        for (i, inst) in f.insts.iter().enumerate() {
            for v in &inst.operands {
                if v.0 >= next || v.0 as usize >= f.values.len() {
                    self.error(Some(i), format!("%{} is used before it is defined", v.0));
                    return;
                }
            }
            for r in &inst.results {
                if r.0 != next || r.0 as usize >= f.values.len() {
                    self.error(Some(i), format!("result %{} where %{next} is due", r.0));
                    return;
                }
                next += 1;
            }
            self.types(i, inst);
        }
        if next as usize != f.values.len() {
            self.error(None, format!("{} values of which {next} are defined", f.values.len()));
        }
        for (name, v) in &f.results {
            if v.0 >= next {
                self.error(None, format!("result `{name}` is %{}, which is not defined", v.0));
            }
        }
        self.linear();
    }

    fn types(&mut self, i: usize, inst: &Inst) {
        let info = inst.op.info();
        let kinds_fit =
            inst.attrs.len() == info.attrs.len() && inst.attrs.iter().zip(info.attrs).all(|(a, (_, k))| a.kind() == *k);
        let arity_fits =
            if inst.op.is_variadic() { !inst.operands.is_empty() } else { inst.operands.len() == info.operands.len() };
        if !kinds_fit || !(arity_fits || inst.op == Op::Call) {
            let (takes, has) = (info.operands.join(", "), inst.operands.len());
            let attrs = if kinds_fit { "" } else { "; its attributes are not those of the operator table" };
            self.error(Some(i), format!("takes {} operands ({takes}), has {has}{attrs}", info.operands.len()));
            return;
        }
        let name = inst.attrs.first().map_or("", Attr::as_str);
        let expected: Vec<Ty> = match inst.op {
            Op::Param | Op::State => match self.m.declared(inst.op, name) {
                Some(t) => vec![t.clone()],
                None => {
                    let known = if inst.op == Op::Param { &self.m.params } else { &self.m.states };
                    let near = suggest(name, known.iter().map(|d| d.name.as_str()));
                    return self.error(Some(i), format!("`{name}` is not declared{near}"));
                }
            },
            Op::Call => match self.known.iter().find(|c| c.name == name) {
                Some(c) => {
                    let want: Vec<&Ty> = c.args.iter().map(|(_, v)| c.ty(*v)).collect();
                    let got: Vec<&Ty> = inst.operands.iter().map(|v| self.f.ty(*v)).collect();
                    if want != got {
                        let show = |all: &[&Ty]| {
                            let all: Vec<String> = all.iter().map(|t| super::print::ty(&self.m.syms, t)).collect();
                            all.join(", ")
                        };
                        self.error(Some(i), format!("@{name} takes ({}), is given ({})", show(&want), show(&got)));
                    }
                    c.results.iter().map(|(_, v)| c.ty(*v).clone()).collect()
                }
                None => {
                    let near = suggest(name, self.known.iter().map(|f| f.name.as_str()));
                    return self.error(Some(i), format!("@{name} is not defined before this function{near}"));
                }
            },
            _ => {
                let tys: Vec<&Ty> = inst.operands.iter().map(|v| self.f.ty(*v)).collect();
                match (info.infer)(&self.m.syms, &tys, &inst.attrs) {
                    Ok(t) => vec![t],
                    Err(e) => return self.error(Some(i), format!("{}: {}", e.code, e.message)),
                }
            }
        };
        let got: Vec<&Ty> = inst.results.iter().map(|r| self.f.ty(*r)).collect();
        if got.len() != expected.len() || got.iter().zip(&expected).any(|(a, b)| *a != b) {
            let show = |t: &Ty| super::print::ty(&self.m.syms, t);
            let (got, want): (Vec<String>, Vec<String>) =
                (got.iter().map(|t| show(t)).collect(), expected.iter().map(show).collect());
            self.error(Some(i), format!("typed {}, the rule gives {}", got.join(", "), want.join(", ")));
        }
    }

    fn linear(&mut self) {
        let f = self.f;
        let mut consumed: Vec<Option<usize>> = vec![None; f.values.len()];
        for (i, inst) in f.insts.iter().enumerate() {
            for (at, v) in inst.operands.iter().enumerate().filter(|(_, v)| f.ty(**v).is_state()) {
                if let Some(first) = consumed[v.0 as usize] {
                    self.error(Some(i), format!("state %{} was already consumed by op {first}", v.0));
                }
                if consumes(self.known, inst, at) {
                    consumed[v.0 as usize] = Some(i);
                }
            }
        }
    }
}

/// Does an operation make a new version of the state that is this operand? Calls do if their callee does, or returns it.
fn consumes(known: &[Function], inst: &Inst, operand: usize) -> bool {
    if inst.op != Op::Call {
        return inst.op == Op::KvAppend;
    }
    let Some(at) = known.iter().position(|c| c.name == inst.attrs[0].as_str()) else { return true };
    let Some((_, arg)) = known[at].args.get(operand).filter(|_| known[at].kernel.is_none()) else { return true };
    let mut users = known[at].insts.iter().flat_map(|i| i.operands.iter().enumerate().map(move |(n, v)| (i, n, v)));
    known[at].results.iter().any(|(_, r)| r == arg) || users.any(|(i, n, v)| v == arg && consumes(&known[..at], i, n))
}

#[cfg(test)]
mod tests {
    use crate::graph::{parse_module, verify};

    const BODY: &str = "sym \"n\" in 1..=4
        func @f(%0 \"s\": kv.f32[16, 1, 4], %1 \"k\": f32[n, 1, 4], %2 \"slot\": i32[n]) {
          %3 = kv_append %0, %1, %1, %2 : kv.f32[16, 1, 4]
          %4 = kv_read %STATE {which = 0} : f32[16, 1, 4]
          return \"y\" = %4, \"s\" = %3
        }";

    #[test]
    fn an_old_version_of_a_state_can_not_be_read() {
        let errors = |state: &str| verify(&parse_module(&BODY.replace("STATE", state)).unwrap());
        assert_eq!(errors("3"), Vec::<String>::new());
        let old = errors("0");
        assert_eq!(old.len(), 1);
        assert!(old[0].contains("state %0 was already consumed by op 0"), "{old:?}");
    }
}

//! The pass manager: pipelines as text over one table of passes.

use std::collections::HashMap;

use marquetry_ir::graph::{self, Module, TypeError};
use marquetry_ir::program::Program;

use crate::eqsat::{self, cost::Target};
use crate::{Numerics, bind, canon, fuse, lower, outline, plan, schedule};

/// What a pipeline works on: a graph module, or from `lower` on a program.
#[derive(Clone, Debug, PartialEq)]
pub enum Ir {
    /// Graph IR.
    Graph(Module),
    /// Loop IR and module IR.
    Program(Box<Program>),
}

/// Options of a compilation.
#[derive(Clone, Debug)]
pub struct Options {
    /// What may happen to numbers.
    pub numerics: Numerics,
    /// Speeds that rewriting and scheduling decide by.
    pub target: Target,
    /// Sizes to specialise for, by symbol name.
    pub sizes: HashMap<String, bind::Narrow>,
}

impl Default for Options {
    fn default() -> Options {
        Options { numerics: Numerics::Fast, target: Target::CPU, sizes: HashMap::new() }
    }
}

/// Why a pipeline stopped.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The pipeline names a pass that does not exist.
    #[error("no pass `{name}`; passes are {known}")]
    Unknown {
        /// As written.
        name: String,
        /// Names of all passes.
        known: String,
    },
    /// A pass was given the other kind of IR.
    #[error("pass `{pass}` works on {wants}")]
    Level {
        /// The pass.
        pass: &'static str,
        /// The kind it works on.
        wants: &'static str,
    },
    /// A type rule failed inside a pass.
    #[error("pass `{pass}`: {error}")]
    Type {
        /// The pass.
        pass: &'static str,
        /// The rule.
        error: TypeError,
    },
    /// What a pass can not do.
    #[error("pass `{pass}`: {message}")]
    Unsupported {
        /// The pass.
        pass: &'static str,
        /// What, and for which function.
        message: String,
    },
    /// What the pipeline was given breaks the rules of the IR.
    #[error("the module is not valid:\n{}", errors.join("\n"))]
    Input {
        /// Every violation.
        errors: Vec<String>,
    },
    /// A pass left IR that the verifier refuses: a defect of the pass.
    #[error("after pass `{pass}` the module is not valid:\n{}", errors.join("\n"))]
    Invalid {
        /// The pass.
        pass: &'static str,
        /// Every violation.
        errors: Vec<String>,
    },
}

/// What passes report beside their result.
#[derive(Clone, Debug, Default)]
pub struct Reports {
    /// One per function that `eqsat` rewrote.
    pub eqsat: Vec<eqsat::Report>,
    /// Pass and seconds, in order.
    pub seconds: Vec<(&'static str, f64)>,
}

type Run = fn(Ir, &Options, &mut Reports) -> Result<Ir, PassError>;

/// A pass.
pub struct Pass {
    /// Name in pipelines and dumps.
    pub name: &'static str,
    /// One line of documentation.
    pub doc: &'static str,
    run: Run,
}

fn graph_pass(
    ir: Ir,
    pass: &'static str,
    f: impl FnOnce(&Module) -> Result<Module, TypeError>,
) -> Result<Ir, PassError> {
    let Ir::Graph(m) = ir else { return Err(PassError::Level { pass, wants: "graph IR" }) };
    f(&m).map(Ir::Graph).map_err(|error| PassError::Type { pass, error })
}

fn program_pass(ir: Ir, pass: &'static str, f: impl FnOnce(&mut Program)) -> Result<Ir, PassError> {
    let Ir::Program(mut p) = ir else { return Err(PassError::Level { pass, wants: "a program" }) };
    f(&mut p);
    Ok(Ir::Program(p))
}

/// Every pass, in the order of the default pipeline.
pub static PASSES: &[Pass] = &[
    Pass {
        name: "specialize",
        doc: "narrows symbols to the sizes asked for",
        run: |ir, o, _| graph_pass(ir, "specialize", |m| bind::specialize(m, &o.sizes)),
    },
    Pass {
        name: "canon",
        doc: "one spelling for the same thing, computed once; unused operations go away",
        run: |ir, _, _| graph_pass(ir, "canon", canon::run),
    },
    Pass {
        name: "outline",
        doc: "layers of equal structure become one function",
        run: |ir, _, _| graph_pass(ir, "outline", outline::run),
    },
    Pass {
        name: "eqsat",
        doc: "equality saturation: recognition, merges, layouts",
        run: |ir, o, r| {
            graph_pass(ir, "eqsat", |m| {
                let (m, reports) = eqsat::run(m, o.target, o.numerics, eqsat::Limits::default())?;
                r.eqsat = reports;
                Ok(m)
            })
        },
    },
    Pass {
        name: "fuse",
        doc: "operations are grouped into kernels",
        run: |ir, _, _| graph_pass(ir, "fuse", fuse::run),
    },
    Pass {
        name: "lower",
        doc: "groups become loops, calls become launches",
        run: |ir, _, _| match ir {
            Ir::Graph(m) => match lower::lower(&m) {
                Ok(p) => Ok(Ir::Program(Box::new(p))),
                Err(message) => Err(PassError::Unsupported { pass: "lower", message }),
            },
            Ir::Program(_) => Err(PassError::Level { pass: "lower", wants: "graph IR" }),
        },
    },
    Pass {
        name: "schedule",
        doc: "loops are split, vectorized and unrolled",
        run: |ir, _, _| program_pass(ir, "schedule", schedule::run),
    },
    Pass {
        name: "plan",
        doc: "buffers share the arena, launches wait for what they need",
        run: |ir, _, _| program_pass(ir, "plan", plan::run),
    },
];

/// The passes from a traced module to a planned program.
pub fn default_pipeline() -> String {
    PASSES.iter().map(|p| p.name).collect::<Vec<_>>().join(",")
}

/// Runs the passes of a comma-separated pipeline. `observe` sees the result of each.
///
/// # Errors
/// An unknown pass, a pass on the wrong level, or a pass that fails or leaves invalid IR.
pub fn run(
    mut ir: Ir,
    pipeline: &str,
    options: &Options,
    observe: &mut dyn FnMut(&'static str, &Ir),
) -> Result<(Ir, Reports), PassError> {
    let mut reports = Reports::default();
    let names = pipeline.split(',').map(str::trim).filter(|n| !n.is_empty());
    let passes = names.map(|name| {
        let known = || PASSES.iter().map(|p| p.name).collect::<Vec<_>>().join(", ");
        PASSES.iter().find(|p| p.name == name).ok_or_else(|| PassError::Unknown { name: name.into(), known: known() })
    });
    let passes = passes.collect::<Result<Vec<_>, _>>()?;
    let errors = verify(&ir);
    if !errors.is_empty() {
        return Err(PassError::Input { errors });
    }
    for pass in passes {
        let start = std::time::Instant::now();
        ir = (pass.run)(ir, options, &mut reports)?;
        reports.seconds.push((pass.name, start.elapsed().as_secs_f64()));
        let errors = verify(&ir);
        if !errors.is_empty() {
            return Err(PassError::Invalid { pass: pass.name, errors });
        }
        observe(pass.name, &ir);
    }
    Ok((ir, reports))
}

/// Every violation of the rules of the IR.
pub fn verify(ir: &Ir) -> Vec<String> {
    match ir {
        Ir::Graph(m) => graph::verify(m),
        Ir::Program(p) => p
            .kernels
            .iter()
            .flat_map(|k| marquetry_ir::loops::verify::verify(k, &p.syms))
            .map(|e| e.to_string())
            .collect(),
    }
}

/// The text form.
pub fn print(ir: &Ir) -> String {
    match ir {
        Ir::Graph(m) => graph::print_module(m),
        Ir::Program(p) => marquetry_ir::text::print_program(p),
    }
}

/// Reads the text form of either level.
///
/// # Errors
/// A syntax error with its place.
pub fn parse(text: &str) -> Result<Ir, marquetry_ir::text::lexer::ParseError> {
    let code = text.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with("//"));
    if code.is_some_and(|l| l.starts_with("program")) {
        return marquetry_ir::text::parse_program(text).map(|p| Ir::Program(Box::new(p)));
    }
    graph::parse_module(text).map(Ir::Graph)
}

/// Compiles a module whose storage types are bound to a planned program.
///
/// # Errors
/// As [`run`].
pub fn compile(m: &Module, options: &Options) -> Result<(Program, Reports), PassError> {
    match run(Ir::Graph(m.clone()), &default_pipeline(), options, &mut |_, _| {})? {
        (Ir::Program(p), reports) => Ok((*p, reports)),
        (Ir::Graph(_), _) => Err(PassError::Level { pass: "plan", wants: "a lowered program" }),
    }
}

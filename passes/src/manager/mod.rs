//! The pass manager: pipelines as text over one table of passes, each verified, timed, counted and, if asked for, checked
//! by interpretation.

mod pipeline;
mod resume;
mod rewrites;
mod table;

use std::collections::HashMap;

use marquetry_ir::DType;
use marquetry_ir::graph::{self, Module, TypeError};
use marquetry_ir::program::{self, Program};

use crate::check::{Check, Checker};
use crate::eqsat::{self, cost::Target};
use crate::{Numerics, bind};

pub use pipeline::{Names, OptionDecl, OptionKind, PipelineError, Step, parse as parse_pipeline};
pub use resume::{Recorded, bisect, dump, pipeline_between, recorded, stage_name};
pub use rewrites::Rewrites;
pub use table::{Cx, PASSES, Pass, TRACE, documentation};

/// What a pipeline works on: a graph module, or from `lower` on a program.
#[derive(Clone, Debug, PartialEq)]
pub enum Ir {
    /// Graph IR.
    Graph(Module),
    /// Loop IR and module IR.
    Program(Box<Program>),
}

impl Ir {
    /// Operations of a graph; statements and launches of a program.
    pub fn nodes(&self) -> usize {
        match self {
            Ir::Graph(m) => m.functions.iter().map(|f| f.insts.len()).sum(),
            Ir::Program(p) => p.launches.len() + p.kernels.iter().map(|k| statements(&k.body)).sum::<usize>(),
        }
    }
}

fn statements(body: &[marquetry_ir::loops::Stmt]) -> usize {
    use marquetry_ir::loops::Stmt;
    let inside = |s: &Stmt| match s {
        Stmt::For { body, .. } => statements(body),
        Stmt::If { then, other, .. } => statements(then) + statements(other),
        Stmt::Let { .. } | Stmt::Store { .. } | Stmt::Micro(_) => 0,
    };
    body.iter().map(|s| 1 + inside(s)).sum()
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
    /// Element type that keys and values get, if any.
    pub cache_type: Option<DType>,
    /// Are rows that are asked for chosen as early as possible?
    pub trim: bool,
    /// Are activations of results taken in two parts, where they are of 8 bits?
    pub refine: bool,
    /// No more rewrites than this, to find a wrong one.
    pub rewrite_limit: Option<u64>,
    /// Interpret the IR before and after each pass.
    pub check: Option<Check>,
}

impl Default for Options {
    fn default() -> Options {
        let sizes = HashMap::new();
        Options {
            numerics: Numerics::Fast,
            target: Target::CPU,
            sizes,
            cache_type: None,
            trim: false,
            refine: false,
            rewrite_limit: None,
            check: None,
        }
    }
}

/// Why a pipeline stopped.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The text of the pipeline can not be read.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// There is no such stage, or none that can be reached from where the IR is.
    #[error("{what}")]
    Stage {
        /// Which, and those that there are.
        what: String,
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
    /// A file of traces that can not be read or applied.
    #[error("{path}: {what}")]
    Trace {
        /// The file.
        path: String,
        /// Which line, and what does not hold.
        what: String,
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
    /// The IR before and after a pass gives other numbers: a defect of the pass.
    #[error("pass `{pass}` changes results: {what}")]
    Check {
        /// The pass.
        pass: &'static str,
        /// Which result, and by how much.
        what: String,
        /// Against a tolerance that the caller gave, instead of what the pass promises.
        asked: bool,
    },
    /// The IR can not be interpreted, so that nothing could be checked.
    #[error("pass `{pass}` can not be checked: {what}")]
    Unchecked {
        /// The pass.
        pass: &'static str,
        /// What the interpreter met.
        what: String,
    },
}

/// What one pass did.
#[derive(Clone, Debug, PartialEq)]
pub struct PassReport {
    /// Name.
    pub pass: &'static str,
    /// Seconds that it took, verification and checks not included.
    pub seconds: f64,
    /// Nodes before and after; see [`Ir::nodes`].
    pub nodes: (usize, usize),
    /// Rewrites that it counted.
    pub rewrites: u64,
    /// What the check compared, if there was one.
    pub checked: Option<String>,
}

impl std::fmt::Display for PassReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let PassReport { pass, seconds, nodes: (a, b), rewrites, checked } = self;
        write!(f, "{pass:<12} {:9.1} ms  {a:>6} -> {b:<6} nodes  {rewrites:>5} rewrites", seconds * 1e3)?;
        checked.iter().try_for_each(|c| write!(f, "  {c}"))
    }
}

/// What passes report beside their result.
#[derive(Clone, Debug, Default)]
pub struct Reports {
    /// One per function that `eqsat` rewrote.
    pub eqsat: Vec<eqsat::Report>,
    /// The kernels of each function, after `fuse`.
    pub kernels: Vec<crate::fuse::Kernels>,
    /// Where each kernel comes from, after `fuse`.
    pub origins: Vec<crate::fuse::Origin>,
    /// One per pass, in order.
    pub passes: Vec<PassReport>,
    /// All rewrites that were counted.
    pub rewrites: u64,
    /// The rewrite that reached the limit.
    pub last_rewrite: Option<String>,
}

/// The passes from a traced module to a planned program.
pub fn default_pipeline() -> String {
    PASSES.iter().map(|p| p.name).collect::<Vec<_>>().join(",")
}

/// Runs a pipeline. `observe` sees the result of each pass.
///
/// # Errors
/// A text that can not be read, input that is not valid, a pass on the wrong level, or a pass that fails, leaves invalid IR
/// or, where [`Options::check`] is set, changes results.
pub fn run(
    ir: Ir,
    pipeline: &str,
    options: &Options,
    observe: &mut dyn FnMut(&'static str, &Ir),
) -> Result<(Ir, Reports), PassError> {
    run_counted(ir, pipeline, options, &Rewrites::new(options.rewrite_limit), observe)
}

/// As [`run`], with the count of rewrites in the caller's hands: it is there even if a pass fails.
fn run_counted(
    mut ir: Ir,
    pipeline: &str,
    options: &Options,
    rewrites: &Rewrites,
    observe: &mut dyn FnMut(&'static str, &Ir),
) -> Result<(Ir, Reports), PassError> {
    let steps = parse_pipeline(pipeline)?;
    let errors = verify(&ir);
    if !errors.is_empty() {
        return Err(PassError::Input { errors });
    }
    let mut reports = Reports::default();
    let mut checker = options.check.as_ref().map(Checker::new);
    for step in &steps {
        let before = checker.is_some().then(|| ir.clone());
        let (nodes, counted) = (ir.nodes(), rewrites.count());
        let start = std::time::Instant::now();
        ir = (step.pass.run)(ir, &mut Cx { options, step, rewrites, reports: &mut reports })?;
        let seconds = start.elapsed().as_secs_f64();
        let errors = verify(&ir);
        if !errors.is_empty() {
            return Err(PassError::Invalid { pass: step.pass.name, errors });
        }
        let checked = match (&mut checker, before) {
            (Some(c), Some(before)) => Some(c.pass(step.pass, options.numerics, &before, &ir)?),
            _ => None,
        };
        let (nodes, rewrites) = ((nodes, ir.nodes()), rewrites.count() - counted);
        reports.passes.push(PassReport { pass: step.pass.name, seconds, nodes, rewrites, checked });
        observe(step.pass.name, &ir);
    }
    reports.rewrites = rewrites.count();
    reports.last_rewrite = rewrites.last();
    Ok((ir, reports))
}

/// Every violation of the rules of the IR.
pub fn verify(ir: &Ir) -> Vec<String> {
    match ir {
        Ir::Graph(m) => graph::verify(m),
        Ir::Program(p) => program::verify(p),
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
pub fn parse(text: &str) -> Result<Ir, marquetry_ir::text::ParseError> {
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

#[cfg(test)]
mod tests {
    use crate::testing::{data, snapshot};

    /// `docs/passes.md` is the table. `BLESS=1` writes it anew.
    #[test]
    fn the_documented_table_is_up_to_date() {
        snapshot(data("../../../docs/passes.md"), &super::documentation());
    }
}

//! The table of passes: what pipelines, help, documentation and timing know about them.

use std::io::Read;

use marquetry_ir::graph::{Module, TypeError};
use marquetry_ir::program::Program;

use super::pipeline::{OptionDecl, OptionKind, Step};
use super::{Ir, Options, PassError, Reports, Rewrites};
use crate::eqsat::{self, Exact};
use crate::params::{self, Params, Reader};
use crate::{bind, cache, canon, fuse, lower, outline, plan, refine, schedule, trim};

/// What a pass is given beside the IR.
pub struct Cx<'a> {
    /// Options of the whole compilation.
    pub options: &'a Options,
    /// Options of this step.
    pub step: &'a Step,
    /// Asked before each rewrite.
    pub rewrites: &'a Rewrites,
    /// Filled by passes that report.
    pub reports: &'a mut Reports,
}

type Run = fn(Ir, &mut Cx<'_>) -> Result<Ir, PassError>;

/// A pass.
pub struct Pass {
    /// Name in pipelines and dumps.
    pub name: &'static str,
    /// What the IR after it is called.
    pub stage: &'static str,
    /// One line of documentation.
    pub doc: &'static str,
    /// What holds after it.
    pub after: &'static str,
    /// What it may do to numbers, with strict numerics.
    pub numbers: Exact,
    /// Its options.
    pub options: &'static [OptionDecl],
    pub(super) run: Run,
}

/// The stage before the first pass.
pub const TRACE: &str = "trace";

const fn option(name: &'static str, kind: OptionKind, default: &'static str, doc: &'static str) -> OptionDecl {
    OptionDecl { name, kind, default, doc }
}

const fn flag(name: &'static str, doc: &'static str) -> OptionDecl {
    option(name, OptionKind::Flag, "true", doc)
}

fn graph(ir: Ir, cx: &Cx<'_>, f: impl FnOnce(&Module) -> Result<Module, TypeError>) -> Result<Ir, PassError> {
    let pass = cx.step.pass.name;
    let Ir::Graph(m) = ir else { return Err(PassError::Level { pass, wants: "graph IR" }) };
    f(&m).map(Ir::Graph).map_err(|error| PassError::Type { pass, error })
}

/// A pass that does nothing unless it is asked for.
fn if_asked(ir: Ir, cx: &Cx<'_>, asked: bool, f: fn(&Module) -> Result<Module, TypeError>) -> Result<Ir, PassError> {
    graph(ir, cx, |m| if asked { f(m) } else { Ok(m.clone()) })
}

fn program(ir: Ir, cx: &Cx<'_>, f: impl FnOnce(&mut Program)) -> Result<Ir, PassError> {
    let Ir::Program(mut p) = ir else {
        return Err(PassError::Level { pass: cx.step.pass.name, wants: "a program" });
    };
    f(&mut p);
    Ok(Ir::Program(p))
}

const LOWER: [OptionDecl; params::count(Reader::Lower)] = params::options(&[], Reader::Lower);

const SCHEDULE: [OptionDecl; 4 + params::count(Reader::Schedule)] = params::options(
    &[
        flag("vectorize", "innermost loops become vectors"),
        flag("unroll", "short loops are expanded"),
        flag("registers", "small scratch buffers move into registers"),
        option(
            "trace",
            OptionKind::File,
            "",
            "steps to apply instead, for kernels that the file names; see schedules.md",
        ),
    ],
    Reader::Schedule,
);

/// Most bytes of a file of traces.
const MAX_TRACES: u64 = 1 << 20;

/// Applies the traces of a file.
fn replayed(ir: Ir, cx: &Cx<'_>, path: &str) -> Result<Ir, PassError> {
    let refused = |what: String| PassError::Trace { path: path.into(), what };
    let file = std::fs::File::open(path).map_err(|e| refused(e.to_string()))?;
    let mut text = String::new();
    let read = file.take(MAX_TRACES + 1).read_to_string(&mut text).map_err(|e| refused(e.to_string()))?;
    if read as u64 > MAX_TRACES {
        return Err(refused(format!("it has more than {MAX_TRACES} bytes")));
    }
    let mut failed = None;
    let ir = program(ir, cx, |p| failed = schedule::replay_program(p, &text).err())?;
    failed.map_or(Ok(ir), |e| Err(refused(e.to_string())))
}

/// Every pass, in the order of the default pipeline.
pub static PASSES: &[Pass] = &[
    Pass {
        name: "specialize",
        stage: "specialize",
        doc: "narrows symbols to the sizes asked for",
        after: "symbols of one value are gone from types",
        numbers: Exact::Bitwise,
        options: &[option("sizes", OptionKind::Sizes, "", "symbols and their sizes, beside those of the compilation")],
        run: |ir, cx| {
            let mut sizes = cx.options.sizes.clone();
            sizes.extend(cx.step.sizes("sizes").iter().cloned());
            graph(ir, cx, |m| bind::specialize(m, &sizes))
        },
    },
    Pass {
        name: "cache",
        stage: "cache",
        doc: "keys and values are held in the element type asked for, if any",
        after: "if so, every cache has that element type",
        numbers: Exact::Bitwise,
        options: &[option("type", OptionKind::Choice(cache::TYPES), "", "element type, instead of the one asked for")],
        run: |ir, cx| {
            let dtype = cx.step.choice("type").parse().ok().or(cx.options.cache_type);
            graph(ir, cx, |m| dtype.map_or_else(|| Ok(m.clone()), |d| cache::hold(m, d)))
        },
    },
    Pass {
        name: "trim",
        stage: "trim",
        doc: "rows that are asked for are chosen as early as possible, if that is asked for",
        after: "if so, what only rows that are asked for are made of is computed for them only",
        numbers: Exact::Reassociates,
        options: &[option("rows", OptionKind::Flag, "false", "whether it is asked for or not")],
        run: |ir, cx| if_asked(ir, cx, cx.options.trim || cx.step.flag("rows"), trim::rows),
    },
    Pass {
        name: "refine",
        stage: "refine",
        doc: "results that are products with quantized weights take their activations in two parts, if that is asked for",
        after: "if so, such products have twice as many rows, which are added",
        numbers: Exact::Reassociates,
        options: &[option("results", OptionKind::Flag, "false", "whether it is asked for or not")],
        run: |ir, cx| if_asked(ir, cx, cx.options.refine || cx.step.flag("results"), refine::results),
    },
    Pass {
        name: "canon",
        stage: "canon",
        doc: "one spelling for the same thing, computed once; unused operations go away",
        after: "no `rope`, no move that changes nothing, no operation twice, none unused",
        numbers: Exact::Bitwise,
        options: &[],
        run: |ir, cx| graph(ir, cx, canon::run),
    },
    Pass {
        name: "outline",
        stage: "outline",
        doc: "layers of equal structure become one function",
        after: "pieces that occur twice or more are functions, called from the entry",
        numbers: Exact::Bitwise,
        options: &[],
        run: |ir, cx| graph(ir, cx, outline::run),
    },
    Pass {
        name: "eqsat",
        stage: "eqsat",
        doc: "equality saturation: recognition, merges, layouts",
        after: "the cheapest known form of each function by the cost model; types of results as before",
        numbers: Exact::Reassociates,
        options: &[
            option("iterations", OptionKind::Count, "16", "most rounds over the rules of a phase"),
            option("nodes", OptionKind::Count, "20000", "most e-nodes of a function"),
            option("rules", OptionKind::Names(eqsat::rule_names), "", "rules that run, or with `-` that do not"),
        ],
        run: |ir, cx| {
            let limits = eqsat::Limits { nodes: cx.step.count("nodes"), rounds: cx.step.count("iterations") };
            let (target, numerics, rules) = (cx.options.target, cx.options.numerics, cx.step.names("rules"));
            let config = eqsat::Config { target, numerics, limits, rules };
            let mut reports = vec![];
            let ir = graph(ir, cx, |m| {
                let (m, r) = eqsat::run_with(m, &config, cx.rewrites)?;
                reports = r;
                Ok(m)
            })?;
            cx.reports.eqsat = reports;
            Ok(ir)
        },
    },
    Pass {
        name: "fuse",
        stage: "fused",
        doc: "operations are grouped into kernels",
        after: "every computation is in a `fused` function; what is outside are leaves, calls and packing of weights",
        numbers: Exact::Bitwise,
        options: &[],
        run: |ir, cx| {
            let ir = graph(ir, cx, |m| fuse::run_with(m, cx.options.target.micro, cx.rewrites))?;
            if let Ir::Graph(m) = &ir {
                cx.reports.kernels = fuse::kernels(m);
                cx.reports.origins = fuse::origins(m);
            }
            Ok(ir)
        },
    },
    Pass {
        name: "lower",
        stage: "loops",
        doc: "groups become loops, calls become launches",
        after: "a program: one kernel per kind of group, a straight line of launches, each waiting for all before it",
        numbers: Exact::Reassociates,
        options: &LOWER,
        run: |ir, cx| {
            let pass = cx.step.pass.name;
            let Ir::Graph(m) = ir else { return Err(PassError::Level { pass, wants: "graph IR" }) };
            let p = lower::lower(&m, cx.options.target.micro, &Params::of(cx.step))
                .map_err(|message| PassError::Unsupported { pass, message })?;
            Ok(Ir::Program(Box::new(p)))
        },
    },
    Pass {
        name: "schedule",
        stage: "scheduled",
        doc: "loops are split, vectorized and unrolled",
        after: "every step is a line of its kernel's trace; what a backend can not spell is gone",
        numbers: Exact::Reassociates,
        options: &SCHEDULE,
        run: |ir, cx| {
            if let Some(path) = cx.step.file("trace") {
                return replayed(ir, cx, path);
            }
            let (vectorize, unroll, registers) =
                (cx.step.flag("vectorize"), cx.step.flag("unroll"), cx.step.flag("registers"));
            let config = schedule::Config { vectorize, unroll, registers, params: Params::of(cx.step) };
            program(ir, cx, |p| schedule::run_with(p, &config, cx.rewrites))
        },
    },
    Pass {
        name: "plan",
        stage: "plan",
        doc: "buffers share the arena, launches wait for what they need, threads compute small things for themselves",
        after: "buffers that are alive at the same time do not overlap; `sync` only where data flows",
        numbers: Exact::Bitwise,
        options: &[
            flag("own", "every thread computes for itself what one would compute for all"),
            flag("reuse", "buffers share bytes of the arena"),
            flag("relax", "launches wait only for what they depend on"),
        ],
        run: |ir, cx| {
            let config =
                plan::Config { own: cx.step.flag("own"), reuse: cx.step.flag("reuse"), relax: cx.step.flag("relax") };
            program(ir, cx, |p| plan::run_with(p, &config))
        },
    },
];

/// The table as a page of documentation.
pub fn documentation() -> String {
    let mut out = String::from(
        "# Passes\n\nGenerated from the table in `passes/src/manager/table.rs` (`BLESS=1 cargo test -p marquetry-passes`).\n\nA \
         pipeline is text: `canon,outline,eqsat{iterations=8,rules=-swiglu},fuse`. Without one the passes below run in this \
         order.\nLists in options are separated by `;`. IR is verified before and after each pass; `--check-pass` also \
         interprets it.\n\n| pass | stage after it | what it does | what holds after it | numbers |\n| --- | --- | --- | --- | \
         --- |\n",
    );
    for p in PASSES {
        let numbers = format!("{:?}", p.numbers).to_lowercase();
        out.push_str(&format!("| {} | {} | {} | {} | {numbers} |\n", p.name, p.stage, p.doc, p.after));
    }
    out.push_str("\n| pass | option | holds | default | meaning |\n| --- | --- | --- | --- | --- |\n");
    for (p, o) in PASSES.iter().flat_map(|p| p.options.iter().map(move |o| (p, o))) {
        let kind = match o.kind {
            OptionKind::Count => "positive integer",
            OptionKind::OneOf(_) => "a number",
            OptionKind::Flag => "`true`, `false`",
            OptionKind::Names(_) => "names",
            OptionKind::Choice(_) => "a name",
            OptionKind::File => "a file",
            OptionKind::Sizes => "`n:1`, `n:1..=8`",
        };
        let default = if o.default.is_empty() { "none".into() } else { format!("`{}`", o.default) };
        out.push_str(&format!("| {} | {} | {kind} | {default} | {} |\n", p.name, o.name, o.doc));
    }
    out
}

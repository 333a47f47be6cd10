//! The command line: `marquetry VERB ...`. The result goes to stdout, progress and messages to stderr.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}

//! The command line: `marquetry VERB ...`. The result goes to stdout, progress and messages to stderr.

fn main() -> std::process::ExitCode {
    marquetry::cli::main()
}

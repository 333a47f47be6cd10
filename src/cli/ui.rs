//! What the verbs share: output, progress, interruption, the last words of a panic.

use std::cell::RefCell;
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use marquetry::{Error, Exit};
use serde_json::Value;
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use super::Captured;

/// How to talk to the user.
#[derive(Clone, Debug)]
pub struct Ui {
    /// No progress.
    pub quiet: bool,
    /// Where everything goes instead of stdout and stderr.
    pub sink: Option<Rc<RefCell<Captured>>>,
}

impl Ui {
    /// A line of progress.
    pub fn progress(&self, line: &str) {
        if self.quiet {
            return;
        }
        if let Some(sink) = &self.sink {
            sink.borrow_mut().stderr.push_str(&format!("{line}\n"));
        } else {
            // Progress that nobody can read is not worth an error.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    /// A part of the result, as it is.
    pub fn print(&self, text: &str) -> Result<(), Error> {
        if let Some(sink) = &self.sink {
            sink.borrow_mut().stdout.push_str(text);
            return Ok(());
        }
        let mut out = io::stdout().lock();
        let done = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        done.map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe => Error::Closed,
            _ => Error::File { action: "write to", path: "stdout".into(), source },
        })
    }

    /// A line of the result.
    pub fn line(&self, text: &str) -> Result<(), Error> {
        self.print(&format!("{text}\n"))
    }

    /// A result in JSON, on one line.
    pub fn json(&self, value: &Value) -> Result<(), Error> {
        self.line(&value.to_string())
    }
}

/// Prints an error with its code.
pub fn print_error(e: &Error) {
    if matches!(e, Error::Interrupted) {
        return;
    }
    let _ = io::stderr().write_all(rendered(e).as_bytes());
}

/// An error with its code, as it is printed.
pub fn rendered(e: &Error) -> String {
    let bug = if e.exit() == Exit::Bug { format!("\n{OUR_BUG}") } else { String::new() };
    format!("error[{}]: {e}{bug}\n", e.code())
}

const OUR_BUG: &str = "this is our bug; please report it with the command that you ran";

/// The panic hook.
pub fn report_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map_or(String::new(), |l| format!(" at {}:{}", l.file(), l.line()));
    let what = info.payload_as_str().unwrap_or("no message");
    let _ = writeln!(io::stderr(), "error[BUG001]: panic{place}: {what}\n{OUR_BUG}");
}

/// Set while Ctrl-C ends the process.
fn armed() -> &'static Arc<AtomicBool> {
    static ARMED: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    ARMED.get_or_init(|| Arc::new(AtomicBool::new(true)))
}

fn handler(e: io::Error) -> Error {
    Error::File { action: "install the handler of", path: "SIGINT".into(), source: e }
}

/// From now on Ctrl-C ends the process with status 130.
pub fn exit_on_interrupt() -> Result<(), Error> {
    flag::register_conditional_shutdown(SIGINT, Exit::Interrupted as i32, armed().clone()).map_err(handler)?;
    // A second Ctrl-C during an answer finds the process armed again.
    flag::register(SIGINT, armed().clone()).map_err(handler)?;
    Ok(())
}

/// Lets the first Ctrl-C stop an answer instead of the process.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Watches Ctrl-C from now on.
    pub fn watch() -> Result<Interrupt, Error> {
        let pressed = Arc::new(AtomicBool::new(false));
        flag::register(SIGINT, pressed.clone()).map_err(handler)?;
        Ok(Interrupt(pressed))
    }

    /// An answer begins: the next Ctrl-C only stops it.
    pub fn begin(&self) {
        self.0.store(false, Ordering::SeqCst);
        armed().store(false, Ordering::SeqCst);
    }

    /// The answer is over: Ctrl-C ends the process again.
    pub fn end(&self) {
        armed().store(true, Ordering::SeqCst);
    }

    /// Was Ctrl-C pressed since the answer began?
    pub fn pressed(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

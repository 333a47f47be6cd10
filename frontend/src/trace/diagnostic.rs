//! Mistakes found while tracing, at the line of the user who made them.

use std::fmt;
use std::panic::Location;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Stable code, e.g. `E0203`.
    pub code: &'static str,
    /// The operator.
    pub op: String,
    /// What is wrong.
    pub message: String,
    /// Source file of the user's call.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// Operands: type and origin.
    pub notes: Vec<String>,
}

impl Diagnostic {
    pub(super) fn new(code: &'static str, op: &str, message: String, at: &Location<'_>, notes: Vec<String>) -> Self {
        let (file, line, column) = (at.file().to_string(), at.line(), at.column());
        Diagnostic { code, op: op.to_string(), message, file, line, column, notes }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error[{}]: `{}`: {}", self.code, self.op, self.message)?;
        writeln!(f, "  --> {}:{}:{}", self.file, self.line, self.column)?;
        let source = std::fs::read_to_string(&self.file).ok();
        let text = source.as_deref().and_then(|s| s.lines().nth(self.line.saturating_sub(1) as usize));
        if let Some(text) = text {
            let pad = " ".repeat(self.line.to_string().len());
            let caret = " ".repeat(self.column.saturating_sub(1) as usize);
            writeln!(f, "{pad} |\n{} | {text}\n{pad} | {caret}^", self.line)?;
        }
        for note in &self.notes {
            writeln!(f, "   = note: {note}")?;
        }
        Ok(())
    }
}

/// Every mistake of a trace, in order; at most 20 are printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for d in self.0.iter().take(20) {
            writeln!(f, "{d}")?;
        }
        match self.0.len() {
            0..=20 => Ok(()),
            n => writeln!(f, "... and {} more", n - 20),
        }
    }
}

impl std::error::Error for Diagnostics {}

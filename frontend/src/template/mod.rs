//! Chat templates: messages to the text that a model was trained on.
//!
//! Templates come with model files and are Jinja programs. They run in a sandbox: no files, no includes, no host objects, a budget of
//! steps, and limits on sizes. Settings are those of Hugging Face `transformers`, so that texts are the same byte for byte.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

mod functions;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use serde_json::{Map, Value as Json};

use functions::Raised;

/// Steps a template may take.
const FUEL: u64 = 1_000_000;
const MAX_SOURCE: usize = 512 << 10;
/// Bytes that a rendering may give.
const MAX_OUTPUT: usize = 16 << 20;
/// The engine recurses over long chains such as `a + a + ...` and over values nested by a loop. Sources and steps are limited, so
/// this stack is enough for the worst of them; its pages cost nothing until they are used.
const STACK: usize = 512 << 20;
const NAME: &str = "chat";

/// What is wrong with a template or its rendering. [`TemplateError::code`] is stable; messages may change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are the values that each message prints")]
pub enum TemplateError {
    /// It does not parse.
    #[error("chat template {at}: {what}; correct it, or give --chat-template")]
    Syntax { at: String, what: String },
    /// It ran too long.
    #[error("chat template line {line}: stopped after 1,000,000 steps; give another with --chat-template")]
    Fuel { line: usize },
    /// It nests too deep.
    #[error("chat template line {line}: nested too deep; give another with --chat-template")]
    Depth { line: usize },
    /// It uses a name, filter, function or statement that there is not.
    #[error("chat template line {line}: {what}; give another with --chat-template")]
    Unknown { line: usize, what: String },
    /// It, or what it makes, is too large.
    #[error("chat template: {what}; give another with --chat-template")]
    Size { what: String },
    /// It refused the messages, in its own words.
    #[error("the model's chat template refuses these messages: {message}")]
    Raised { message: String },
    /// It failed on these messages.
    #[error("chat template line {line}: {what}; check the messages, or give --chat-template")]
    Failed { line: usize, what: String },
}

impl TemplateError {
    /// The stable code of the error, such as `TPL001`.
    pub fn code(&self) -> &'static str {
        match self {
            TemplateError::Syntax { .. } => "TPL001",
            TemplateError::Fuel { .. } => "TPL002",
            TemplateError::Depth { .. } => "TPL003",
            TemplateError::Unknown { .. } => "TPL004",
            TemplateError::Size { .. } => "TPL005",
            TemplateError::Raised { .. } => "TPL006",
            TemplateError::Failed { .. } => "TPL007",
        }
    }
}

/// What a rendering is given besides the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// Ends with the start of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Text of the token that starts a text.
    pub bos_token: Option<String>,
    /// Text of the token that ends a text.
    pub eos_token: Option<String>,
    /// Tools in the form of the OpenAI interface.
    pub tools: Option<Json>,
    /// The time that `strftime_now` tells, in UTC; the system's if absent.
    pub now: Option<SystemTime>,
    /// More variables, such as `enable_thinking`. None of them replaces the variables above.
    pub extra: Map<String, Json>,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// If it is too large, does not parse, nests too deep or uses statements that are not allowed.
    pub fn new(source: &str) -> Result<ChatTemplate, TemplateError> {
        if source.len() > MAX_SOURCE {
            return Err(TemplateError::Size { what: format!("it has {} bytes, at most {MAX_SOURCE}", source.len()) });
        }
        let source = functions::without_generation_tags(source);
        let text = source.clone();
        let compile = move || {
            let mut env = Environment::new();
            let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
            env.set_syntax(syntax);
            env.set_auto_escape_callback(|_| AutoEscape::None);
            env.set_debug(false);
            env.set_fuel(Some(FUEL));
            env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
            env.add_function("raise_exception", functions::raise_exception);
            env.add_test("iterable", functions::is_iterable);
            env.add_template_owned(NAME, text)?;
            Ok(env)
        };
        let compiled: Result<Environment<'static>, Error> = on_large_stack(compile)?;
        match compiled {
            Ok(environment) => Ok(ChatTemplate { environment, source }),
            Err(e) => Err(explain(&e, &source)),
        }
    }

    /// The text of a conversation: `messages` is a list of objects with `role` and `content`.
    ///
    /// # Errors
    /// If the template refuses the messages ([`TemplateError::Raised`]), runs too long, makes too much text, or fails.
    pub fn render(&self, messages: &Json, options: &RenderOptions) -> Result<String, TemplateError> {
        let mut context = options.extra.clone();
        let mut set = |key: &str, value: Json| drop(context.insert(key.to_owned(), value));
        set("messages", messages.clone());
        set("add_generation_prompt", options.add_generation_prompt.into());
        set("tools", options.tools.clone().unwrap_or(Json::Null));
        for (key, token) in [("bos_token", &options.bos_token), ("eos_token", &options.eos_token)] {
            if let Some(token) = token {
                set(key, token.clone().into());
            }
        }
        let mut env = self.environment.clone();
        let used = Arc::new(AtomicUsize::new(0));
        env.add_filter("tojson", move |value: &Value, args| functions::tojson(value, &args, &used, MAX_OUTPUT));
        let now = options.now.unwrap_or_else(SystemTime::now);
        env.add_function("strftime_now", move |format: &str| functions::strftime(format, now));
        // Errors may hold values of the template, so they too must end on the large stack.
        let run = move || {
            let mut out = Limited(Vec::new());
            let template = env.get_template(NAME);
            let done = template.and_then(|t| t.render_captured_to(Value::from(Serde(&context)), &mut out).map(drop));
            done.map(|()| out.0).map_err(|e| explain(&e, &self.source))
        };
        on_large_stack(run)?.map(|text| String::from_utf8_lossy(&text).into_owned())
    }
}

/// Runs what may recurse deeply. A panic of the engine becomes an error.
fn on_large_stack<T: Send>(run: impl FnOnce() -> T + Send) -> Result<T, TemplateError> {
    let broken = |what: &str| TemplateError::Size { what: what.to_owned() };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, run);
        let thread = thread.map_err(|_| broken("there is not enough address space to run it"))?;
        thread.join().map_err(|_| broken("the template engine failed on it"))
    })
}

/// Collects output up to the limit.
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other("too much output"));
        }
        self.0.extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The innermost error that says more than its wrapper.
fn raised(e: &Error) -> Option<String> {
    let mut source = std::error::Error::source(e);
    while let Some(inner) = source {
        if let Some(Raised(message)) = inner.downcast_ref::<Raised>() {
            return Some(message.clone());
        }
        source = inner.source();
    }
    None
}

fn explain(e: &Error, source: &str) -> TemplateError {
    if let Some(message) = raised(e) {
        return TemplateError::Raised { message };
    }
    let line = e.line().unwrap_or(1);
    let detail = e.detail().unwrap_or_default();
    let what = || match detail {
        "" => e.kind().to_string(),
        detail => detail.chars().take(400).collect(),
    };
    match e.kind() {
        ErrorKind::SyntaxError if detail.contains("recursion") => TemplateError::Depth { line },
        ErrorKind::SyntaxError if detail.contains("unknown statement") => TemplateError::Unknown { line, what: what() },
        ErrorKind::SyntaxError => TemplateError::Syntax { at: caret(e, source, line), what: what() },
        ErrorKind::OutOfFuel => TemplateError::Fuel { line },
        ErrorKind::InvalidOperation if detail.contains("recursion") => TemplateError::Depth { line },
        ErrorKind::InvalidOperation if detail == functions::TOO_LARGE => {
            TemplateError::Size { what: detail.to_owned() }
        }
        ErrorKind::WriteFailure => TemplateError::Size { what: format!("it makes more than {MAX_OUTPUT} bytes") },
        ErrorKind::UnknownFilter
        | ErrorKind::UnknownFunction
        | ErrorKind::UnknownMethod
        | ErrorKind::UnknownTest
        | ErrorKind::TemplateNotFound
        | ErrorKind::BadInclude => TemplateError::Unknown { line, what: what() },
        _ => TemplateError::Failed { line, what: what() },
    }
}

/// `LINE:COLUMN` and the start of the text there.
fn caret(e: &Error, source: &str, line: usize) -> String {
    let at = e.range().map_or(0, |r| r.start).min(source.len());
    let before = source.get(..at).unwrap_or_default();
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    let rest = source.get(at..).unwrap_or_default();
    let there: String = rest.chars().take_while(|c| *c != '\n').take(40).flat_map(char::escape_debug).collect();
    format!("{line}:{column} at `{there}`")
}

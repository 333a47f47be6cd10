//! `chat`: a conversation in the terminal, or over lines of stdin.

use std::io::{self, BufRead, IsTerminal};

use marquetry::Error;
use marquetry::engine::Engine;
use marquetry::frontend::tokenizer::{DecodeStream, Tokenizer};
use marquetry::generate::{Finish, Limits, generate};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Value, json};

use super::generate::{render, stop_tokens};
use super::options::{EngineArgs, ModelArgs, SamplerArgs, stats_text};
use super::ui::{Interrupt, Ui, print_error};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Instructions that come before the conversation.
    #[arg(long)]
    system: Option<String>,
    /// Most tokens of an answer.
    #[arg(short = 'n', long, default_value_t = 2048)]
    max_tokens: usize,
    #[command(flatten)]
    sampler: SamplerArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

const HELP: &str = "\
/help               this
/reset              forget the conversation
/stats              times and counts
/set NAME=VALUE;... temperature, top_k, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty, seed, max_tokens
/exit               leave
Ctrl-C stops an answer; at the prompt it leaves.";

/// What a line asks for.
#[derive(Clone, Debug, PartialEq)]
enum Line<'a> {
    Say(&'a str),
    Help,
    Reset,
    Stats,
    Exit,
    Set(&'a str),
    Unknown(&'a str),
}

fn parse_line(line: &str) -> Line<'_> {
    let line = line.trim();
    match line.split_once(char::is_whitespace).unwrap_or((line, "")) {
        ("/help", _) => Line::Help,
        ("/reset", _) => Line::Reset,
        ("/stats", _) => Line::Stats,
        ("/exit" | "/quit", _) => Line::Exit,
        ("/set", rest) => Line::Set(rest.trim()),
        (word, _) if word.starts_with('/') => Line::Unknown(word),
        _ => Line::Say(line),
    }
}

/// Where lines come from.
enum Input {
    Terminal(Box<DefaultEditor>),
    Pipe,
}

impl Input {
    fn open() -> Result<Input, Error> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Ok(Input::Pipe);
        }
        let editor = DefaultEditor::new().map_err(|e| terminal(&e))?;
        Ok(Input::Terminal(Box::new(editor)))
    }

    /// The next line; none at the end.
    fn next(&mut self) -> Result<Option<String>, Error> {
        let Input::Terminal(editor) = self else {
            let mut line = String::new();
            let n = io::stdin().lock().read_line(&mut line).map_err(Error::file("read", "stdin".as_ref()))?;
            return Ok((n > 0).then_some(line));
        };
        match editor.readline("> ") {
            Ok(line) => {
                // A line that the history refuses is still a line.
                let _ = editor.add_history_entry(&line);
                Ok(Some(line))
            }
            Err(ReadlineError::Eof) => Ok(None),
            Err(ReadlineError::Interrupted) => Err(Error::Interrupted),
            Err(e) => Err(terminal(&e)),
        }
    }
}

fn terminal(e: &ReadlineError) -> Error {
    Error::File { action: "read", path: "the terminal".into(), source: io::Error::other(e.to_string()) }
}

/// A conversation.
struct Chat<'a> {
    engine: Engine,
    messages: Vec<Value>,
    sampler: SamplerArgs,
    limits: Limits,
    interrupt: Interrupt,
    args: &'a Args,
    ui: &'a Ui,
}

pub fn run(args: &Args, ui: &Ui) -> Result<(), Error> {
    args.sampler.params().check()?;
    let mut engine = args.engine.engine(&args.model, ui)?;
    // Fails now rather than after the first question.
    engine.model().chat_template()?;
    engine.prepare()?;
    ui.progress(&format!("{}\n/help for commands", stats_text(&engine)));
    let limits = Limits { tokens: args.max_tokens, stop: stop_tokens(engine.model()) };
    let (sampler, interrupt) = (args.sampler.clone(), Interrupt::watch()?);
    let mut chat = Chat { engine, messages: vec![], sampler, limits, interrupt, args, ui };
    chat.forget()?;
    let mut input = Input::open()?;
    while let Some(line) = input.next()? {
        match parse_line(&line) {
            Line::Exit => break,
            Line::Say("") => {}
            request => match chat.obey(request) {
                Err(e @ (Error::Closed | Error::Interrupted)) => return Err(e),
                // The conversation goes on after anything else.
                Err(e) => print_error(&e),
                Ok(()) => {}
            },
        }
    }
    Ok(())
}

impl Chat<'_> {
    fn obey(&mut self, request: Line<'_>) -> Result<(), Error> {
        match request {
            Line::Say(text) => self.turn(text),
            Line::Help => self.ui.line(HELP),
            Line::Reset => self.forget(),
            Line::Stats => self.ui.line(&format!(
                "{}\n{} of {} positions in use",
                stats_text(&self.engine),
                self.engine.history().len(),
                self.engine.context()
            )),
            Line::Set(settings) => self.set(settings),
            Line::Unknown(word) => Err(Error::usage(format!("no command {word}; /help lists them"))),
            Line::Exit => Ok(()),
        }
    }

    fn forget(&mut self) -> Result<(), Error> {
        self.messages.clear();
        if let Some(text) = &self.args.system {
            self.messages.push(json!({ "role": "system", "content": text }));
        }
        self.engine.reset()
    }

    fn set(&mut self, settings: &str) -> Result<(), Error> {
        let (mut sampler, mut tokens) = (self.sampler.clone(), self.limits.tokens);
        for setting in settings.split(';').map(str::trim).filter(|s| !s.is_empty()) {
            apply(&mut sampler, &mut tokens, setting)?;
        }
        sampler.params().check()?;
        (self.sampler, self.limits.tokens) = (sampler, tokens);
        Ok(())
    }

    /// A question and its answer. A question that can not be answered is forgotten.
    fn turn(&mut self, text: &str) -> Result<(), Error> {
        self.messages.push(json!({ "role": "user", "content": text }));
        self.interrupt.begin();
        let answer = self.answer();
        self.interrupt.end();
        match answer {
            Ok(text) => self.messages.push(json!({ "role": "assistant", "content": text })),
            Err(e) => {
                self.messages.pop();
                return Err(e);
            }
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<String, Error> {
        let model = self.engine.shared_model();
        let prompt = render(&model, &Value::Array(self.messages.clone()))?;
        let mut decoder = model.tokenizer.as_ref().map(Tokenizer::decode_stream);
        let (mut text, mut printed) = (String::new(), Ok(()));
        let out = generate(&mut self.engine, &prompt, self.sampler.params(), &self.limits, &mut |id| {
            let piece = decoder.as_mut().map_or(String::new(), |d| d.push(id));
            text.push_str(&piece);
            printed = self.ui.print(&piece);
            printed.is_ok() && !self.interrupt.pressed()
        })?;
        printed?;
        let rest = decoder.map_or(String::new(), DecodeStream::finish);
        text.push_str(&rest);
        self.ui.line(&rest)?;
        match out.finish {
            Finish::Context => self.ui.progress("(the context is full; /reset starts anew)"),
            Finish::Length => self.ui.progress("(cut at the limit of tokens; /set max_tokens=N raises it)"),
            Finish::Interrupted => self.ui.progress("(stopped)"),
            Finish::Stop => {}
        }
        Ok(text)
    }
}

/// Applies `NAME=VALUE`.
fn apply(s: &mut SamplerArgs, tokens: &mut usize, setting: &str) -> Result<(), Error> {
    let bad = || Error::usage(format!("`{setting}`: write NAME=VALUE with a number; /help lists the names"));
    let (name, value) = setting.split_once('=').map(|(n, v)| (n.trim(), v.trim())).ok_or_else(bad)?;
    let number = || value.parse::<f32>().map_err(|_| bad());
    let count = || value.parse::<usize>().map_err(|_| bad());
    match name {
        "temperature" => s.temperature = number()?,
        "top_k" => s.top_k = count()?,
        "top_p" => s.top_p = number()?,
        "min_p" => s.min_p = number()?,
        "repeat_penalty" => s.repeat_penalty = number()?,
        "presence_penalty" => s.presence_penalty = number()?,
        "frequency_penalty" => s.frequency_penalty = number()?,
        "seed" => s.seed = value.parse().map_err(|_| bad())?,
        "max_tokens" => *tokens = count()?,
        _ => return Err(bad()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        sampler: SamplerArgs,
    }

    #[test]
    fn lines_are_commands_or_words() {
        assert_eq!(parse_line("hello /set\n"), Line::Say("hello /set"));
        assert_eq!(parse_line(" /set  top_k=3 "), Line::Set("top_k=3"));
        assert_eq!(parse_line("/quit"), Line::Exit);
        assert_eq!(parse_line("/sett x"), Line::Unknown("/sett"));
        assert_eq!(parse_line("  "), Line::Say(""));
    }

    #[test]
    fn settings_apply_or_are_refused() {
        let mut s = Only::parse_from(["x"]).sampler;
        let mut tokens = 5;
        apply(&mut s, &mut tokens, "temperature = 0.5").unwrap();
        apply(&mut s, &mut tokens, "max_tokens=9").unwrap();
        assert_eq!((s.temperature, tokens), (0.5, 9));
        for bad in ["x=1", "top_k", "top_k=-1", "seed=a"] {
            assert!(apply(&mut s, &mut tokens, bad).is_err(), "{bad}");
        }
    }
}

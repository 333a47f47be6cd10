//! `tokenize`: text to token ids.

use std::fs;
use std::path::{Path, PathBuf};

use marquetry::Error;
use marquetry::frontend::tokenizer::Tokenizer;
use marquetry::model::Reference;
use serde_json::{Value, json};

use super::options::ModelArgs;
use super::ui::Ui;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("input").required(true).args(["text", "lines"]))]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text.
    #[arg(long)]
    text: Option<String>,
    /// A JSON file with a list of texts.
    #[arg(long)]
    lines: Option<PathBuf>,
    /// Add what the model wants around a text, such as BOS.
    #[arg(long)]
    bos: bool,
    /// Texts that look like special tokens are plain text.
    #[arg(long)]
    no_special: bool,
    /// Print JSON: a list of ids, or a list of lists for --lines.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, ui: &Ui) -> Result<(), Error> {
    let path = Reference::parse(&args.model.model)?.locate(&args.model.options(), &mut |line| ui.progress(line))?;
    let tokenizer = Tokenizer::open(path)?;
    let encode = |text: &str| tokenizer.encode(text, args.bos, !args.no_special);
    let texts = match (&args.lines, &args.text) {
        (Some(file), _) => read_lines(file)?,
        (None, text) => text.iter().cloned().collect(),
    };
    let ids: Vec<Vec<u32>> = texts.iter().map(|t| encode(t)).collect();
    match (args.json, args.lines.is_some()) {
        (true, true) => ui.json(&json!(ids)),
        (true, false) => ui.json(&json!(ids.concat())),
        (false, true) => ids.iter().try_for_each(|line| ui.line(&format!("{line:?}"))),
        (false, false) => ids.concat().iter().try_for_each(|id| {
            let text = tokenizer.token_text(*id).unwrap_or_default();
            ui.line(&format!("{id}\t{}", text.escape_debug()))
        }),
    }
}

fn read_lines(path: &Path) -> Result<Vec<String>, Error> {
    let text = fs::read(path).map_err(Error::file("read", path))?;
    let wrong = || Error::input(path, "it must be a JSON list of strings");
    let value: Value = serde_json::from_slice(&text).map_err(|e| Error::input(path, e.to_string()))?;
    let list = value.as_array().ok_or_else(wrong)?;
    list.iter().map(|v| v.as_str().map(str::to_string).ok_or_else(wrong)).collect()
}

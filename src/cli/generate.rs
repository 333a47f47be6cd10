//! `generate`: a prompt and its continuation.

use std::collections::BTreeSet;

use marquetry::Error;
use marquetry::engine::Engine;
use marquetry::frontend::template::RenderOptions;
use marquetry::frontend::tokenizer::{DecodeStream, Tokenizer};
use marquetry::generate::{Limits, generate};
use marquetry::model::LoadedModel;
use serde_json::{Value, json};

use super::options::{EngineArgs, ModelArgs, SamplerArgs, stats_json, stats_text, with_explanation};
use super::ui::Ui;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("input").required(true).args(["prompt", "tokens"]))]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text to continue.
    #[arg(short, long)]
    prompt: Option<String>,
    /// Token ids to continue, separated by commas.
    #[arg(long, value_delimiter = ',')]
    tokens: Option<Vec<u32>>,
    /// Put the prompt into the model's chat template, as the user's words.
    #[arg(long, requires = "prompt")]
    chat: bool,
    /// Most new tokens.
    #[arg(short = 'n', long, default_value_t = 256)]
    max_tokens: usize,
    /// Go on after tokens that end an answer.
    #[arg(long)]
    ignore_eos: bool,
    /// Print JSON when all is done, instead of the text as it comes.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampler: SamplerArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

pub fn run(args: &Args, ui: &Ui) -> Result<(), Error> {
    args.sampler.params().check()?;
    let mut engine = args.engine.engine(&args.model, ui)?;
    let prompt = prompt(args, engine.model())?;
    let mut limits = Limits::new(args.max_tokens);
    if !args.ignore_eos {
        limits.stop = stop_tokens(engine.model());
    }
    if args.json {
        let out = generate(&mut engine, &prompt, args.sampler.params(), &limits, &mut |_| true)?;
        let text = engine.model().tokenizer.as_ref().map(|t| t.decode(&out.ids));
        let report = json!({
            "ids": out.ids, "text": text, "finish": out.finish.name(), "prompt_tokens": prompt.len(),
            "stats": stats_json(&engine),
        });
        return ui.json(&with_explanation(report, &engine));
    }
    stream(&mut engine, &prompt, args, &limits, ui)?;
    ui.progress(&stats_text(&engine));
    Ok(())
}

fn prompt(args: &Args, model: &LoadedModel) -> Result<Vec<u32>, Error> {
    match (&args.prompt, &args.tokens) {
        (Some(text), _) if args.chat => {
            let messages = json!([{ "role": "user", "content": text }]);
            render(model, &messages)
        }
        (Some(text), _) => Ok(model.tokenizer()?.encode(text, true, true)),
        (None, Some(tokens)) => Ok(tokens.clone()),
        (None, None) => Err(Error::usage("give --prompt or --tokens")),
    }
}

/// Token ids of a conversation, up to where the answer begins.
pub fn render(model: &LoadedModel, messages: &Value) -> Result<Vec<u32>, Error> {
    let tokenizer = model.tokenizer()?;
    let text = |id: Option<u32>| tokenizer.token_text(id?);
    let options = RenderOptions {
        add_generation_prompt: true,
        bos_token: text(tokenizer.bos()),
        eos_token: text(tokenizer.eos()),
        ..RenderOptions::default()
    };
    let mut messages = messages.clone();
    for m in messages.as_array_mut().into_iter().flatten() {
        if let Some(Value::String(content)) = m.get_mut("content") {
            *content = fence(tokenizer, content);
        }
    }
    let text = model.chat_template()?.render(&messages, &options)?;
    Ok(text.split(FENCE).flat_map(|piece| tokenizer.encode(piece, false, true)).collect())
}

/// A noncharacter that no text holds; pieces on its two sides are tokenized apart.
const FENCE: char = '\u{fdd0}';

/// Breaks the texts of control tokens in what a person wrote, so that they are read as text.
fn fence(tokenizer: &Tokenizer, content: &str) -> String {
    let mut pieces: Vec<String> = content.split(FENCE).map(str::to_string).collect();
    let mut done = vec![];
    while let Some(piece) = pieces.pop() {
        let plain: BTreeSet<u32> = tokenizer.encode(&piece, false, false).into_iter().collect();
        let control = tokenizer.encode(&piece, false, true).into_iter().filter(|id| !plain.contains(id));
        let found = control.filter_map(|id| piece.find(&tokenizer.token_text(id)?)).min();
        // After the first character of the first control text.
        let cut = found.and_then(|at| Some(at + piece[at..].chars().next()?.len_utf8()));
        match cut.filter(|cut| *cut < piece.len()) {
            Some(cut) => {
                pieces.push(piece[..cut].to_string());
                pieces.push(piece[cut..].to_string());
            }
            None => done.push(piece),
        }
    }
    done.reverse();
    done.join(&FENCE.to_string())
}

/// Tokens that end an answer, by the configuration and by the tokenizer.
pub fn stop_tokens(model: &LoadedModel) -> BTreeSet<u32> {
    let ends = model.tokenizer.iter().flat_map(Tokenizer::eog);
    ends.chain(&model.text.eos).copied().collect()
}

/// Prints an answer as it comes: text if there is a tokenizer, token ids otherwise.
fn stream(engine: &mut Engine, prompt: &[u32], args: &Args, limits: &Limits, ui: &Ui) -> Result<(), Error> {
    let model = engine.shared_model();
    let mut decoder = model.tokenizer.as_ref().map(Tokenizer::decode_stream);
    let mut printed = Ok(());
    generate(engine, prompt, args.sampler.params(), limits, &mut |id| {
        let piece = match &mut decoder {
            Some(d) => d.push(id),
            None => format!("{id} "),
        };
        printed = ui.print(&piece);
        printed.is_ok()
    })?;
    printed?;
    ui.line(&decoder.map_or(String::new(), DecodeStream::finish))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENIZER: &str = r#"{
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null,
        "added_tokens": [{"id": 4, "content": "<|e|>", "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false}],
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"<": 0, "|": 1, "e": 2, ">": 3}, "merges": []}
    }"#;

    #[test]
    fn control_texts_of_a_person_stay_text() {
        let t = Tokenizer::from_json(TOKENIZER.as_bytes()).unwrap();
        assert_eq!(t.encode("<|e|>", false, true), [4]);
        for words in ["e<|e|>e<|e|>", "<|e|>", "<<|e|>|e|>", "e<|e", ""] {
            let fenced = fence(&t, words);
            let ids: Vec<u32> = fenced.split(FENCE).flat_map(|p| t.encode(p, false, true)).collect();
            assert_eq!(ids, t.encode(words, false, false), "{words}");
        }
    }
}

//! `eval`: logits, or an encoder's vectors, of given tokens.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use marquetry::Error;
use marquetry::engine::{Engine, RecurrentState, Rows};
use marquetry::frontend::safetensors::Safetensors;
use marquetry::ir::DType;
use marquetry::runtime::files;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::json;

use super::encode;
use super::options::{EngineArgs, ModelArgs, stats_text, with_explanation};
use super::ui::Ui;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("input").required(true).args(["inputs", "tokens"]))]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A safetensors file with `input_ids`, i32 or i64, [n] or [1, n]; for encoders also `token_type_ids` and `attention_mask`,
    /// and any number of rows.
    #[arg(long)]
    inputs: Option<PathBuf>,
    /// Token ids, separated by commas.
    #[arg(long, value_delimiter = ',')]
    tokens: Option<Vec<u32>>,
    /// Feed one token at a time through the cache.
    #[arg(long)]
    step: bool,
    /// Write `logits`, f32 [tokens, vocab], and recurrent states `state.*`, f32 [layers, ..], to this safetensors file; without it the best token of each row is printed.
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

pub fn run(args: &Args, ui: &Ui) -> Result<(), Error> {
    let mut engine = args.engine.engine(&args.model, ui)?;
    if engine.model().text.is_encoder() {
        return encoded(&mut engine, args, ui);
    }
    let tokens = match (&args.inputs, &args.tokens) {
        (Some(path), _) => read_ids(path)?,
        (None, Some(tokens)) => tokens.clone(),
        (None, None) => return Err(Error::usage("give --inputs or --tokens")),
    };
    let logits = logits(&mut engine, &tokens, args.step)?;
    ui.progress(&stats_text(&engine));
    let vocab = engine.model().text.vocab;
    match &args.output {
        Some(path) => save(path, &logits, vocab, &engine.recurrent_states()?),
        None => summary(&logits, &engine, args.json, ui),
    }
}

fn encoded(engine: &mut Engine, args: &Args, ui: &Ui) -> Result<(), Error> {
    if args.step {
        return Err(Error::usage("an encoder sees the whole sequence; leave out --step"));
    }
    let batch = match (&args.inputs, &args.tokens) {
        (Some(path), _) => encode::Batch::read(path)?,
        (None, tokens) => encode::Batch::one(tokens.as_deref().unwrap_or_default()),
    };
    let made = encode::run(engine, &batch, args.output.as_deref())?;
    match args.json {
        true => ui.json(&json!({ "outputs": made })),
        false => made.iter().try_for_each(|line| ui.line(line)),
    }
}

fn logits(engine: &mut Engine, tokens: &[u32], step: bool) -> Result<Vec<f32>, Error> {
    if !step {
        return engine.prefill(tokens, Rows::All);
    }
    engine.expect(tokens.len());
    let mut all = vec![];
    for &t in tokens {
        all.extend_from_slice(engine.decode(t)?);
    }
    Ok(all)
}

/// `input_ids` of a file; any other tensor in it is refused, because leaving it out would change what is asked for.
fn read_ids(path: &Path) -> Result<Vec<u32>, Error> {
    let file = Safetensors::open(path)?;
    if let Some(other) = file.tensors().iter().find(|t| t.name != "input_ids") {
        let what = format!("`{}` is not an input of a text model; leave `input_ids` only", other.name);
        return Err(Error::input(path, what));
    }
    let lacks = || Error::input(path, "it has no tensor `input_ids`; add one, i32 or i64, [n] or [1, n]");
    let ids = file.tensor("input_ids").ok_or_else(lacks)?;
    let bytes = file.data(ids);
    let values: Vec<i64> = match (ids.dtype, ids.shape.as_slice()) {
        (DType::I32, [_] | [1, _]) => bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
        (DType::I64, [_] | [1, _]) => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        (dtype, shape) => {
            let what = format!("`input_ids` is {dtype} {shape:?}; it must be i32 or i64, [n] or [1, n]");
            return Err(Error::input(path, what));
        }
    };
    let id = |v: &i64| {
        u32::try_from(*v).map_err(|_| Error::input(path, format!("`input_ids` holds {v}; token ids are not negative")))
    };
    values.iter().map(id).collect()
}

fn save(path: &Path, logits: &[f32], vocab: usize, states: &[RecurrentState]) -> Result<(), Error> {
    let bad = |e: safetensors::SafeTensorError| Error::input(path, e.to_string());
    let shape = vec![logits.len() / vocab.max(1), vocab];
    let view = TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(logits)).map_err(bad)?;
    let mut views = HashMap::from([("logits".to_owned(), view)]);
    for s in states {
        let view = TensorView::new(Dtype::F32, s.shape.clone(), bytemuck::cast_slice(&s.values)).map_err(bad)?;
        views.insert(format!("state.{}", s.name), view);
    }
    let bytes = serialize(views, None).map_err(bad)?;
    Ok(files::write_file(path, &bytes)?)
}

fn summary(logits: &[f32], engine: &Engine, as_json: bool, ui: &Ui) -> Result<(), Error> {
    let vocab = engine.model().text.vocab;
    let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, v)| (i, *v));
    let rows: Vec<(usize, f32)> = logits.chunks(vocab.max(1)).filter_map(best).collect();
    if as_json {
        let best = json!({ "argmax": rows.iter().map(|r| r.0).collect::<Vec<_>>(), "vocab": vocab });
        return ui.json(&with_explanation(best, engine));
    }
    rows.iter().enumerate().try_for_each(|(i, (id, v))| ui.line(&format!("{i}: token {id}, logit {v:.4}")))
}

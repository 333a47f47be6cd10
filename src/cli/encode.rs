//! `eval` of encoders: batches of padded sequences in, vectors out.

use std::collections::HashMap;
use std::path::Path;

use marquetry::Error;
use marquetry::engine::Engine;
use marquetry::frontend::safetensors::Safetensors;
use marquetry::ir::DType;
use marquetry::runtime::files;
use safetensors::tensor::{Dtype, TensorView, serialize};

/// A batch `[rows, columns]`, padded at the right.
pub struct Batch {
    rows: usize,
    columns: usize,
    ids: Vec<i64>,
    types: Vec<i64>,
    /// Tokens of each row.
    lengths: Vec<usize>,
}

impl Batch {
    /// One sequence.
    pub fn one(ids: &[u32]) -> Batch {
        let ids: Vec<i64> = ids.iter().map(|&t| t.into()).collect();
        let columns = ids.len();
        Batch { rows: 1, columns, types: vec![0; columns], ids, lengths: vec![columns] }
    }

    /// `input_ids`, and if there are any `token_type_ids` and `attention_mask`, each `[n]` or `[rows, n]`.
    pub fn read(path: &Path) -> Result<Batch, Error> {
        let file = Safetensors::open(path)?;
        const NAMES: [&str; 3] = ["input_ids", "token_type_ids", "attention_mask"];
        if let Some(other) = file.tensors().iter().find(|t| !NAMES.contains(&t.name.as_str())) {
            let what = format!("`{}` is not an input of an encoder; inputs are {}", other.name, NAMES.join(", "));
            return Err(Error::input(path, what));
        }
        let lacks = || Error::input(path, "it has no tensor `input_ids`; add one, i32 or i64, [n] or [rows, n]");
        let shape = file.tensor("input_ids").ok_or_else(lacks)?.shape.clone();
        let (rows, columns) = match shape.as_slice() {
            [n] => (1, *n),
            [b, n] => (*b, *n),
            other => return Err(Error::input(path, format!("`input_ids` is {other:?}; it must be [n] or [rows, n]"))),
        };
        let get = |name: &str, default: i64| match file.tensor(name) {
            None => Ok(vec![default; rows * columns]),
            Some(t) if t.shape != shape => {
                Err(Error::input(path, format!("`{name}` is {:?}; it must be {shape:?} as `input_ids`", t.shape)))
            }
            Some(t) => integers(file.data(t), t.dtype)
                .ok_or_else(|| Error::input(path, format!("`{name}` is {}; it must be i32 or i64", t.dtype))),
        };
        let (ids, types, mask) = (get(NAMES[0], 0)?, get(NAMES[1], 0)?, get(NAMES[2], 1)?);
        let length = |row: &[i64]| {
            let n = row.iter().take_while(|m| **m != 0).count();
            if row[n..].iter().any(|m| *m != 0) { None } else { Some(n) }
        };
        let lengths = mask.chunks(columns.max(1)).map(length).collect::<Option<Vec<_>>>();
        let padded = || Error::input(path, "`attention_mask` must have ones first, then zeros: padding at the right");
        Ok(Batch { rows, columns, ids, types, lengths: lengths.ok_or_else(padded)? })
    }
}

fn integers(bytes: &[u8], dtype: DType) -> Option<Vec<i64>> {
    match dtype {
        DType::I32 => Some(bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect()),
        DType::I64 => Some(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
        _ => None,
    }
}

/// An output of a batch.
struct Made {
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// Every output of each sequence. `pooler_output` is that of the first token; others are zeros where there is padding.
pub fn run(engine: &mut Engine, batch: &Batch, output: Option<&Path>) -> Result<Vec<String>, Error> {
    let mut all: Vec<(String, Made)> = vec![];
    for (row, &len) in batch.lengths.iter().enumerate() {
        let at = row * batch.columns;
        let id = |v: &i64| u32::try_from(*v).map_err(|_| Error::usage(format!("{v} is not a token id")));
        let ids = batch.ids[at..at + len].iter().map(id).collect::<Result<Vec<_>, _>>()?;
        let types: Vec<i32> = batch.types[at..at + len].iter().map(|t| i32::try_from(*t).unwrap_or(-1)).collect();
        for (name, values) in engine.encode(&ids, &types)? {
            let width = values.len() / len.max(1);
            let per_row = if name == "pooler_output" { 1 } else { batch.columns };
            if !all.iter().any(|(n, _)| *n == name) {
                let shape = if per_row == 1 { vec![batch.rows, width] } else { vec![batch.rows, per_row, width] };
                all.push((name.clone(), Made { values: vec![0.0; shape.iter().product()], shape }));
            }
            let Some((_, made)) = all.iter_mut().find(|(n, _)| *n == name) else { continue };
            let kept = values.len().min(per_row * width);
            made.values[row * per_row * width..][..kept].copy_from_slice(&values[..kept]);
        }
    }
    if let Some(path) = output {
        let bad = |e: safetensors::SafeTensorError| Error::input(path, e.to_string());
        let views = all.iter().map(|(n, m)| {
            Ok((
                n.as_str(),
                TensorView::new(Dtype::F32, m.shape.clone(), bytemuck::cast_slice(&m.values)).map_err(bad)?,
            ))
        });
        let views = views.collect::<Result<HashMap<_, _>, Error>>()?;
        files::write_file(path, &serialize(views, None).map_err(bad)?)?;
    }
    Ok(all.into_iter().map(|(n, m)| format!("{n}: f32 {:?}", m.shape)).collect())
}

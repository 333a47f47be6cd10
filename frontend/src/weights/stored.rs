//! Where a parameter's numbers lie when a file stores them in another arrangement than the model code has.

use std::borrow::Cow;

/// Some of a stored matrix's rows: of every `block` rows, `len` from `start` on.
///
/// A joined projection `[q; k; v]` is one block; one that alternates by head has a block per head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rows {
    /// Blocks that the rows divide into.
    pub blocks: usize,
    /// First row of the part in each block.
    pub start: usize,
    /// Rows of the part in each block.
    pub len: usize,
    /// Rows of each block.
    pub block: usize,
}

impl Rows {
    /// `len` rows from `start` on, of `total`.
    pub fn range(start: usize, len: usize, total: usize) -> Rows {
        Rows { blocks: 1, start, len, block: total }
    }

    /// Of each of `blocks` blocks of `block` rows, `len` from `start` on.
    pub fn each(blocks: usize, block: usize, start: usize, len: usize) -> Rows {
        Rows { blocks, start, len, block }
    }

    /// Rows that the stored matrix must have; none if the numbers make no sense.
    pub fn stored(&self) -> Option<usize> {
        let end = self.start.checked_add(self.len)?;
        if end <= self.block { self.blocks.checked_mul(self.block) } else { None }
    }

    /// The same rows where the blocks were taken apart: first what is first in each, and so on.
    pub fn joined(&self) -> Rows {
        let times = |n: usize| n.saturating_mul(self.blocks);
        Rows::range(times(self.start), times(self.len), times(self.block))
    }

    /// Rows of the part.
    pub fn count(&self) -> usize {
        self.blocks.saturating_mul(self.len)
    }
}

/// How a parameter is stored, where that is not under its own name as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Takes the place of the last but one component of the parameter's name; each `../` before it takes one more.
    pub tensor: Option<String>,
    /// The part of the stored matrix; all of it if absent. Counted after transposition.
    pub rows: Option<Rows>,
    /// The matrix is stored `[in, out]`; of more axes, the last two are exchanged.
    pub transposed: bool,
}

impl Stored {
    /// The name of the stored tensor for a parameter: `a.b.q_proj.weight` with tensor `qkv` is `a.b.qkv.weight`.
    pub fn name(&self, param: &str) -> String {
        let Some(tensor) = &self.tensor else { return param.to_owned() };
        let Some((stem, kind)) = param.rsplit_once('.') else { return tensor.clone() };
        let parent = |path: &str| path.rsplit_once('.').map_or(String::new(), |(parent, _)| parent.to_owned());
        let (mut path, mut tensor) = (parent(stem), tensor.as_str());
        while let Some(rest) = tensor.strip_prefix("../") {
            (path, tensor) = (parent(&path), rest);
        }
        if path.is_empty() { format!("{tensor}.{kind}") } else { format!("{path}.{tensor}.{kind}") }
    }

    /// The shape of the parameter, given the shape that is stored; what does not fit otherwise.
    pub(super) fn shape(&self, stored: &[usize]) -> Result<Vec<usize>, String> {
        let mut shape = stored.to_vec();
        if let (true, [.., n, k]) = (self.transposed, shape.as_mut_slice()) {
            std::mem::swap(n, k);
        }
        if let Some(rows) = &self.rows {
            match (shape.first_mut(), rows.stored()) {
                (Some(n), Some(total)) if *n == total => *n = rows.count(),
                (_, total) => {
                    let total = total.unwrap_or(0);
                    return Err(format!("its shape is {stored:?}; the joined matrix must have {total} rows"));
                }
            }
        }
        Ok(shape)
    }

    /// The bytes of the parameter, from those of a tensor of that shape. Borrowed where they lie together.
    pub(super) fn data<'a>(&self, bytes: Cow<'a, [u8]>, stored: &[usize]) -> Cow<'a, [u8]> {
        let bytes = match stored {
            [outer @ .., n, k] if self.transposed => Cow::Owned(transpose(&bytes, outer.iter().product(), *n, *k)),
            _ => bytes,
        };
        let total = if self.transposed && stored.len() == 2 { stored.last() } else { stored.first() };
        let Some((rows, total)) = self.rows.zip(total.copied()) else { return bytes };
        let Some(row) = bytes.len().checked_div(total) else { return bytes };
        let (start, len) = (rows.start * row, rows.len * row);
        match bytes {
            Cow::Borrowed(b) if rows.blocks == 1 => Cow::Borrowed(b.get(start..start + len).unwrap_or_default()),
            bytes => {
                let blocks = bytes.chunks_exact((rows.block * row).max(1));
                Cow::Owned(blocks.flat_map(|b| b.get(start..start + len).unwrap_or_default()).copied().collect())
            }
        }
    }
}

/// `count` matrices `[n, k]` of elements of any size as `[k, n]`.
fn transpose(bytes: &[u8], count: usize, n: usize, k: usize) -> Vec<u8> {
    let elements = count.saturating_mul(n).saturating_mul(k);
    let Some(size) = bytes.len().checked_div(elements) else { return Vec::new() };
    let mut out = Vec::with_capacity(bytes.len());
    for matrix in bytes.chunks_exact((n * k * size).max(1)) {
        for column in 0..k {
            for row in matrix.chunks_exact((k * size).max(1)) {
                out.extend_from_slice(row.get(column * size..(column + 1) * size).unwrap_or_default());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_siblings() {
        let at = |tensor: &str| Stored { tensor: Some(tensor.into()), ..Stored::default() };
        assert_eq!(at("c_attn").name("h.0.attn.q_proj.bias"), "h.0.attn.c_attn.bias");
        assert_eq!(at("mixer.Wqkv").name("h.0.q_proj.weight"), "h.0.mixer.Wqkv.weight");
        assert_eq!(at("../output.dense").name("a.self.o_proj.weight"), "a.output.dense.weight");
        assert_eq!(Stored::default().name("a.b"), "a.b");
    }

    #[test]
    fn parts_of_matrices() {
        let m: Vec<u8> = (0..12).collect();
        let get = |rows, transposed, shape: &[usize]| {
            let s = Stored { tensor: None, rows, transposed };
            (s.shape(shape).unwrap(), s.data(Cow::Borrowed(&m), shape).into_owned())
        };
        assert_eq!(get(Some(Rows::range(2, 1, 6)), false, &[6, 2]), (vec![1, 2], vec![4, 5]));
        assert_eq!(get(Some(Rows::each(2, 3, 1, 1)), false, &[6, 2]), (vec![2, 2], vec![2, 3, 8, 9]));
        assert_eq!(get(None, true, &[2, 6]).1, [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]);
        assert_eq!(get(None, true, &[2, 2, 3]), (vec![2, 3, 2], vec![0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]));
        assert_eq!(get(Some(Rows::range(0, 2, 6)), true, &[2, 6]), (vec![2, 2], vec![0, 6, 1, 7]));
        assert_eq!(get(Some(Rows::range(3, 3, 12)), false, &[12]), (vec![3], vec![3, 4, 5]));
        assert_eq!(Rows::each(2, 3, 1, 1).joined(), Rows::range(2, 2, 6));
        let wrong = Stored { rows: Some(Rows::range(0, 2, 7)), ..Stored::default() };
        assert!(wrong.shape(&[6, 2]).unwrap_err().contains("7 rows"));
    }
}

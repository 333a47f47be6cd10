//! Detokenizing one token at a time.

use super::{Kind, Tokenizer};

/// Turns tokens into text as they come. Bytes that do not yet make a character are held back; all pieces joined are what
/// [`Tokenizer::decode`] gives for all tokens at once.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Bytes not given out yet (GGUF vocabularies).
    pending: Vec<u8>,
    /// No byte was seen yet, so a leading space may have to go.
    at_start: bool,
    /// Tokens that the next text may depend on, how many of them are given out, and as how many bytes.
    ids: Vec<u32>,
    given: usize,
    given_bytes: usize,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> DecodeStream<'a> {
        DecodeStream { tokenizer, pending: Vec::new(), at_start: true, ids: Vec::new(), given: 0, given_bytes: 0 }
    }

    /// Adds a token; returns the text that is certain now, often a word, sometimes nothing.
    pub fn push(&mut self, id: u32) -> String {
        match &self.tokenizer.kind {
            Kind::Gguf(t) => {
                let piece = t.piece(id, false);
                let strip = self.at_start && t.space_prefix && !piece.is_empty();
                self.at_start &= piece.is_empty();
                let piece = if strip { piece.strip_prefix(b" ").unwrap_or(&piece) } else { &piece };
                self.pending.extend(piece);
                self.take_whole()
            }
            Kind::Json(_) => {
                self.ids.push(id);
                self.library_text(false)
            }
        }
    }

    /// Ends the text: returns what was held back, with U+FFFD for bytes that never became a character.
    pub fn finish(mut self) -> String {
        match &self.tokenizer.kind {
            Kind::Gguf(_) => String::from_utf8_lossy(&self.pending).into_owned(),
            Kind::Json(_) => self.library_text(true),
        }
    }

    /// Whole characters at the front of the pending bytes. Invalid bytes become U+FFFD; an unfinished character stays.
    fn take_whole(&mut self) -> String {
        let mut out = String::new();
        let mut held = 0;
        for chunk in self.pending.utf8_chunks() {
            out.push_str(chunk.valid());
            held = 0;
            if !chunk.invalid().is_empty() {
                let unfinished = std::str::from_utf8(chunk.invalid()).is_err_and(|e| e.error_len().is_none());
                if unfinished {
                    held = chunk.invalid().len();
                }
                out.push('\u{FFFD}');
            }
        }
        if held > 0 {
            out.pop();
        }
        self.pending.drain(..self.pending.len() - held);
        out
    }

    /// What decoding all tokens gives beyond what was given out. Text that ends in U+FFFD may still change.
    fn library_text(&mut self, all: bool) -> String {
        let text = self.tokenizer.decode(&self.ids);
        if !all && text.ends_with('\u{FFFD}') {
            return String::new();
        }
        let new = text.get(self.given_bytes..).unwrap_or_default().to_owned();
        // Keep the last piece as context, for decoders that treat the first token differently.
        if !new.is_empty() {
            self.ids.drain(..self.given);
            self.given = self.ids.len();
            self.given_bytes = self.tokenizer.decode(&self.ids).len();
        }
        new
    }
}

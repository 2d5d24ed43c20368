//! Plain text: every run of bytes between ASCII white space is a record whose key is the word
//! itself. Nothing is folded or stripped: `The` and `the,` are two words.
//!
//! A batch may begin in the middle of a line (a file without newlines is still many words), so
//! everything here is decided word by word.

use super::{BOM, Batch, Sink};

/// Parses a batch.
pub fn parse(batch: &Batch, sink: &mut Sink) {
    let bytes = &batch.bytes[..];
    let mut at = if batch.offset == 0 && bytes.starts_with(BOM) { BOM.len() } else { 0 };
    let mut line = batch.line;
    while let Some(&byte) = bytes.get(at) {
        if byte.is_ascii_whitespace() {
            line += u64::from(byte == b'\n');
            at += 1;
            continue;
        }
        let rest = bytes.get(at..).unwrap_or_default();
        let len = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
        let word = rest.get(..len).unwrap_or_default();
        let taken = match std::str::from_utf8(word) {
            Ok(_) => sink.record(word, &[]),
            Err(_) => Err("the word is not valid UTF-8".into()),
        };
        if let Err(reason) = taken
            && !sink.bad(batch.offset + at as u64, line, reason, word)
        {
            return;
        }
        at += len;
    }
}

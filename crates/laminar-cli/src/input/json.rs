//! A quick walk over one JSON object, for the lines that almost every file consists of.
//!
//! It accepts less than JSON and never anything else: what it takes, `serde_json` takes, and finds the
//! same tokens. Whatever it does not take (names with escapes, deep nesting, anything that is not JSON)
//! it leaves to `serde_json`, which also finds the words for what is wrong. A property test holds the two
//! against each other.

use super::ndjson::Node;
use super::swar::{control, eight, equal, first, word};

/// Arrays and objects within each other; deeper ones are rare, and left to a parser without recursion.
const DEPTH_MAX: usize = 32;

const QUOTES: u64 = eight(b'"');
const BACKSLASHES: u64 = eight(b'\\');

/// Walks over a line, which is one object, and notes the wanted tokens; `null` is noted as none. None if
/// it is for `serde_json` to say; some tokens may be noted then.
pub fn walk<'a>(node: &Node, line: &'a str, tokens: &mut [Option<&'a str>]) -> Option<()> {
    let mut walker = Walker { text: line, bytes: line.as_bytes(), at: 0 };
    walker.blanks();
    walker.object(node, tokens, DEPTH_MAX)?;
    walker.blanks();
    (walker.at == walker.bytes.len()).then_some(())
}

struct Walker<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walker<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn take(&mut self, wanted: u8) -> Option<()> {
        (self.peek()? == wanted).then(|| self.at += 1)
    }

    fn blanks(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
        }
    }

    fn object(&mut self, node: &Node, tokens: &mut [Option<&'a str>], depth: usize) -> Option<()> {
        self.take(b'{')?;
        self.blanks();
        if self.take(b'}').is_some() {
            return Some(());
        }
        loop {
            match node.child(self.name()?) {
                None => self.skip(depth)?,
                Some(child) => self.wanted(child, tokens, depth)?,
            }
            if self.after_value(b'}')? {
                return Some(());
            }
        }
    }

    /// A value that is wanted itself, or something in it.
    fn wanted(&mut self, node: &Node, tokens: &mut [Option<&'a str>], depth: usize) -> Option<()> {
        let start = self.at;
        if self.peek()? == b'{' && node.has_children() {
            self.object(node, tokens, depth.checked_sub(1)?)?;
        } else {
            self.skip(depth)?;
        }
        let token = self.text.get(start..self.at)?;
        for &slot in node.slots() {
            *tokens.get_mut(slot)? = (token != "null").then_some(token);
        }
        Some(())
    }

    /// A name with the colon and the blanks after it. None if it has escapes.
    fn name(&mut self) -> Option<&'a [u8]> {
        self.take(b'"')?;
        let start = self.at;
        self.plain();
        let name = self.bytes.get(start..self.at)?;
        self.take(b'"')?;
        self.blanks();
        self.take(b':')?;
        self.blanks();
        Some(name)
    }

    /// Goes on to the next comma, and past it, or past the end: true if that is it.
    fn after_value(&mut self, end: u8) -> Option<bool> {
        self.blanks();
        let byte = self.peek()?;
        self.at += 1;
        match byte {
            b',' => self.blanks(),
            byte if byte == end => return Some(true),
            _ => return None,
        }
        Some(false)
    }

    fn skip(&mut self, depth: usize) -> Option<()> {
        match self.peek()? {
            b'"' => self.string(),
            b'{' => self.skip_object(depth.checked_sub(1)?),
            b'[' => self.skip_array(depth.checked_sub(1)?),
            b't' => self.literal(b"true"),
            b'f' => self.literal(b"false"),
            b'n' => self.literal(b"null"),
            _ => self.number(),
        }
    }

    fn skip_object(&mut self, depth: usize) -> Option<()> {
        self.at += 1;
        self.blanks();
        if self.take(b'}').is_some() {
            return Some(());
        }
        loop {
            self.name()?;
            self.skip(depth)?;
            if self.after_value(b'}')? {
                return Some(());
            }
        }
    }

    fn skip_array(&mut self, depth: usize) -> Option<()> {
        self.at += 1;
        self.blanks();
        if self.take(b']').is_some() {
            return Some(());
        }
        loop {
            self.skip(depth)?;
            if self.after_value(b']')? {
                return Some(());
            }
        }
    }

    fn literal(&mut self, word: &[u8]) -> Option<()> {
        self.bytes.get(self.at..)?.starts_with(word).then(|| self.at += word.len())
    }

    /// Goes on to the next quote, backslash or control character.
    fn plain(&mut self) {
        while let Some(word) = self.bytes.get(self.at..).and_then(word) {
            let found = equal(word, QUOTES) | equal(word, BACKSLASHES) | control(word);
            if found != 0 {
                self.at += first(found);
                return;
            }
            self.at += 8;
        }
        while self.peek().is_some_and(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
            self.at += 1;
        }
    }

    fn string(&mut self) -> Option<()> {
        self.at += 1;
        loop {
            self.plain();
            let byte = self.peek()?;
            self.at += 1;
            match byte {
                b'"' => return Some(()),
                b'\\' => self.escape()?,
                _ => return None,
            }
        }
    }

    fn escape(&mut self) -> Option<()> {
        let byte = self.peek()?;
        self.at += 1;
        match byte {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
            b'u' => {
                let digits = self.bytes.get(self.at..self.at + 4)?;
                digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
                self.at += 4;
            }
            _ => return None,
        }
        Some(())
    }

    fn number(&mut self) -> Option<()> {
        let _ = self.take(b'-');
        if self.take(b'0').is_none() {
            self.digits()?;
        }
        if self.take(b'.').is_some() {
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(())
    }

    /// One digit at least.
    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }
}

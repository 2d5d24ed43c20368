//! One JSON object per line. The whole line is checked; only the wanted fields are looked at.
//!
//! Fields are named by dotted paths: `user.id` is `id` in the object `user`; a point that belongs
//! to a name is written `\.`. The paths form a tree that is walked along with the object, so a
//! line is read once whatever the number of fields. The quick walk of [`json`] takes almost every line,
//! `serde_json` the rest.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::sink::{Reason, shown};
use super::{BOM, Batch, Sink, json, recycle};
use crate::agg::value::FieldValue;

/// Parser of one thread.
#[derive(Debug)]
pub struct NdjsonParser {
    paths: PathTree,
    key: String,
    /// Kept between batches for its allocation only.
    tokens: Vec<Option<&'static str>>,
    texts: Vec<Cow<'static, [u8]>>,
    values: Vec<FieldValue<'static>>,
}

impl NdjsonParser {
    /// Slot 0 is the key, the plan's fields follow.
    pub fn new(key: &str, fields: &[String]) -> Self {
        let mut paths = PathTree::default();
        for (slot, path) in std::iter::once(key).chain(fields.iter().map(String::as_str)).enumerate() {
            paths.add(path, slot);
        }
        Self { paths, key: key.to_owned(), tokens: Vec::new(), texts: Vec::new(), values: Vec::new() }
    }

    /// Parses a batch.
    pub fn parse(&mut self, batch: &Batch, sink: &mut Sink) {
        let bytes = &batch.bytes[..];
        // One check over the batch is much cheaper than one per line.
        let text = std::str::from_utf8(bytes).ok();
        let mut at = if batch.offset == 0 && bytes.starts_with(BOM) { BOM.len() } else { 0 };
        let mut line_number = batch.line;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let len = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            let line = rest.get(..len).unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let line_text = match text.and_then(|text| text.get(at..at + line.len())) {
                Some(text) => Ok(text),
                None => std::str::from_utf8(line),
            };
            let result = match line_text {
                Ok(text) => self.line(text, sink),
                Err(error) => Err(format!("byte {} is not valid UTF-8", error.valid_up_to() + 1).into()),
            };
            if let Err(reason) = result
                && !sink.bad(batch.offset + at as u64, line_number, reason, line)
            {
                return;
            }
            line_number += 1;
            at += len + 1;
        }
    }

    fn line(&mut self, line: &str, sink: &mut Sink) -> Result<(), Reason> {
        if !line.starts_with('{') && line.trim_ascii().is_empty() {
            return Ok(());
        }
        let mut tokens: Vec<Option<&str>> = recycle(std::mem::take(&mut self.tokens));
        tokens.resize(self.paths.slots, None);
        let result = match self.paths.walk(line, &mut tokens) {
            Ok(()) => self.record(&tokens, sink),
            Err(error) => Err(syntax(line, &error)),
        };
        self.tokens = recycle(tokens);
        result
    }

    fn record(&mut self, tokens: &[Option<&str>], sink: &mut Sink) -> Result<(), Reason> {
        let Some((key, fields)) = tokens.split_first() else { return Ok(()) };
        let key = key.ok_or_else(|| missing(&self.key))?;
        if key.starts_with(['{', '[']) {
            return Err(format!(
                "key `{}` is an object or array; a key is a string, number or boolean",
                self.key
            )
            .into());
        }
        let key = contents(key)?;
        let mut texts: Vec<Cow<'_, [u8]>> = recycle(std::mem::take(&mut self.texts));
        for (slot, token) in fields.iter().enumerate() {
            texts.push(contents(token.ok_or_else(|| missing(sink.field_name(slot)))?)?);
        }
        let mut values: Vec<FieldValue<'_>> = recycle(std::mem::take(&mut self.values));
        for (slot, (text, token)) in texts.iter().zip(fields).enumerate() {
            values.push(sink.field(slot, text, token.unwrap_or_default().as_bytes())?);
        }
        let result = sink.record(&key, &values);
        self.values = recycle(values);
        self.texts = recycle(texts);
        result
    }
}

fn missing(field: &str) -> Reason {
    format!("field `{field}` is missing or null").into()
}

fn syntax(line: &str, error: &serde_json::Error) -> Reason {
    let text = error.to_string();
    // The parser counts lines within what it was given, which is one line: only the column says something.
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("not a JSON object: {what} at column {} of {}", error.column(), shown(line.as_bytes())).into()
}

/// The contents of a scalar token: without quotes and escapes.
fn contents(token: &str) -> Result<Cow<'_, [u8]>, Reason> {
    let Some(inner) = token.strip_prefix('"').and_then(|t| t.strip_suffix('"')) else {
        return Ok(Cow::Borrowed(token.as_bytes()));
    };
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Ok(Cow::Borrowed(inner.as_bytes()));
    }
    match serde_json::from_str::<String>(token) {
        Ok(text) => Ok(Cow::Owned(text.into_bytes())),
        Err(error) => Err(format!("string {} cannot be decoded: {error}", shown(token.as_bytes())).into()),
    }
}

/// The wanted paths as a tree of names.
#[derive(Debug, Default)]
struct PathTree {
    root: Node,
    slots: usize,
}

/// A name within the wanted paths.
#[derive(Debug, Default)]
pub struct Node {
    children: Vec<(String, Node)>,
    /// Slots that want the value at this node.
    slots: Vec<usize>,
}

impl Node {
    /// The node that a name leads to.
    pub fn child(&self, name: &[u8]) -> Option<&Self> {
        self.children.iter().find(|(n, _)| n.as_bytes() == name).map(|(_, node)| node)
    }

    /// Is something within the value wanted?
    pub fn has_children(&self) -> bool {
        !self.children.is_empty()
    }

    /// Slots that want the value.
    pub fn slots(&self) -> &[usize] {
        &self.slots
    }
}

impl PathTree {
    fn add(&mut self, path: &str, slot: usize) {
        let mut node = &mut self.root;
        for name in split_path(path) {
            let index = node.children.iter().position(|(n, _)| *n == name).unwrap_or_else(|| {
                node.children.push((name, Node::default()));
                node.children.len() - 1
            });
            node = &mut node.children[index].1;
        }
        node.slots.push(slot);
        self.slots = self.slots.max(slot + 1);
    }

    /// Checks a line and notes the wanted tokens.
    fn walk<'de>(&self, line: &'de str, tokens: &mut [Option<&'de str>]) -> serde_json::Result<()> {
        if json::walk(&self.root, line, tokens).is_some() {
            return Ok(());
        }
        tokens.fill(None);
        self.walk_any(line, tokens)
    }

    /// The same for everything that is JSON, and with words for what is not.
    fn walk_any<'de>(&self, line: &'de str, tokens: &mut [Option<&'de str>]) -> serde_json::Result<()> {
        let mut deserializer = serde_json::Deserializer::from_str(line);
        deserializer.deserialize_map(ObjectVisitor { node: &self.root, tokens })?;
        deserializer.end()
    }
}

/// Splits at points that are not escaped.
fn split_path(path: &str) -> Vec<String> {
    let mut names = vec![String::new()];
    let mut chars = path.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.peek() == Some(&'.') => {
                chars.next();
                names.last_mut().into_iter().for_each(|n| n.push('.'));
            }
            '.' => names.push(String::new()),
            c => names.last_mut().into_iter().for_each(|n| n.push(c)),
        }
    }
    names
}

struct ObjectVisitor<'t, 'o, 'de> {
    node: &'t Node,
    tokens: &'o mut [Option<&'de str>],
}

impl<'de> Visitor<'de> for ObjectVisitor<'_, '_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(child) = map.next_key_seed(NameSeed(self.node))? {
            let Some(child) = child else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let token = map.next_value::<&RawValue>()?.get();
            for &slot in &child.slots {
                if let Some(place) = self.tokens.get_mut(slot) {
                    *place = (token != "null").then_some(token);
                }
            }
            if child.has_children() && token.starts_with('{') {
                let visitor = ObjectVisitor { node: child, tokens: &mut *self.tokens };
                serde_json::Deserializer::from_str(token)
                    .deserialize_map(visitor)
                    .map_err(de::Error::custom)?;
            }
        }
        Ok(())
    }
}

/// Finds the child that a name leads to, without copying the name.
struct NameSeed<'t>(&'t Node);

impl<'de, 't> DeserializeSeed<'de> for NameSeed<'t> {
    type Value = Option<&'t Node>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'t> Visitor<'_> for NameSeed<'t> {
    type Value = Option<&'t Node>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.child(name.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn points_can_belong_to_names() {
        assert_eq!(split_path("a.b"), ["a", "b"]);
        assert_eq!(split_path(r"a\.b.c"), ["a.b", "c"]);
        assert_eq!(split_path(""), [""]);
    }

    #[test]
    fn paths_share_their_walk() {
        let mut tree = PathTree::default();
        for (slot, path) in ["a.b", "a", "x", "a.c.d", "x"].into_iter().enumerate() {
            tree.add(path, slot);
        }
        let mut tokens = vec![None; 5];
        tree.walk(r#"{"a": {"b": 1, "c": {"d": [1, 2]}}, "q": [{"b": 3}], "x": "y", "x": "z"}"#, &mut tokens)
            .unwrap();
        assert_eq!(tokens[0], Some("1"));
        assert_eq!(tokens[1], Some(r#"{"b": 1, "c": {"d": [1, 2]}}"#));
        assert_eq!(tokens[2], Some(r#""z""#), "the last of two equal names counts");
        assert_eq!(tokens[3], Some("[1, 2]"));
        assert_eq!(tokens[4], Some(r#""z""#));
    }

    #[test]
    fn what_is_not_an_object_is_refused() {
        let mut tree = PathTree::default();
        tree.add("a", 0);
        for bad in [
            "[1]",
            "1",
            "{\"a\":1",
            "{\"a\":1} x",
            "{\"a\":01}",
            "{\"a\":1,}",
            "{\"b\":tru}",
            "{'a':1}",
            "{\"b\":\"\\x\"}",
        ] {
            assert!(tree.walk(bad, &mut [None]).is_err(), "{bad}");
        }
    }

    fn wanted() -> PathTree {
        let mut tree = PathTree::default();
        for (slot, path) in ["a", "b", "a.b", "b.a.c", "c"].into_iter().enumerate() {
            tree.add(path, slot);
        }
        tree
    }

    /// What the quick walk takes, `serde_json` takes, with the same tokens.
    fn check(tree: &PathTree, line: &str) -> bool {
        let mut quick = vec![None; tree.slots];
        let mut slow = vec![None; tree.slots];
        let taken = json::walk(&tree.root, line, &mut quick).is_some();
        if taken {
            assert!(tree.walk_any(line, &mut slow).is_ok(), "not JSON: {line:?}");
            assert_eq!(quick, slow, "{line:?}");
        }
        taken
    }

    #[test]
    fn the_quick_walk_takes_ordinary_lines() {
        let tree = wanted();
        for line in [
            r#"{"ts":"2026-11-22T00:00:00.000Z","a":{"b":"user-0008065"},"page":"/products/2","c":0.00}"#,
            r#" { "a" : [ 1 , -2.5e+10 , {"x":[]} ] , "b" : {"a":{"c":null}} } "#,
            r#"{"c":"\u00e9 \" \\ \n","a":true,"b":false}"#,
            "{\"c\":\"Gr\u{fc}\u{df}e an alle Leser \u{1f600}\"}\r",
            "{}",
            r#"{"a":{},"c":[],"b":0}"#,
        ] {
            assert!(check(&tree, line), "{line}");
        }
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(500), "]".repeat(500));
        assert!(!check(&tree, &deep), "left to a parser without recursion");
        assert!(tree.walk(&deep, &mut vec![None; tree.slots]).is_ok());
    }

    fn value() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            3 => "-?[0-9]{0,3}(\\.[0-9]{0,2})?([eE][+-]?[0-9]{0,2})?",
            3 => "[a-c\\PC]{0,12}".prop_map(|text| format!("\"{text}\"")),
            1 => "\"[a-c]{0,9}\\\\[\"\\\\/bfnrtux0-9a-f]{0,5}[a-c]{0,3}\"",
            1 => "true|false|null|tru|nul|",
            1 => "\"[a-c\u{0}-\u{22}]{0,12}\"",
        ];
        let blank = "[ \t\r]{0,2}";
        leaf.prop_recursive(4, 32, 4, move |inner| {
            prop_oneof![
                proptest::collection::vec((inner.clone(), blank), 0..4).prop_map(|list| {
                    let list: Vec<String> = list.into_iter().map(|(v, b)| format!("{b}{v}{b}")).collect();
                    format!("[{}]", list.join(","))
                }),
                proptest::collection::vec(("[abcx]", inner, blank), 0..4).prop_map(|list| {
                    let pair = |(n, v, b): (String, String, String)| format!("{b}\"{n}\"{b}:{b}{v}{b}");
                    let list: Vec<String> = list.into_iter().map(pair).collect();
                    format!("{{{}}}", list.join(","))
                }),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_quick_walk_agrees_with_serde_json(
            values in proptest::collection::vec(("[abc]", value()), 0..4), cut in 0usize..200, byte in any::<char>(), damaged in any::<bool>(),
        ) {
            let list: Vec<String> = values.into_iter().map(|(n, v)| format!("\"{n}\":{v}")).collect();
            let mut line = format!("{{{}}}", list.join(","));
            if damaged {
                let at = line.char_indices().map(|(at, _)| at).nth(cut).unwrap_or(line.len());
                line.insert(at, byte);
            }
            check(&wanted(), &line);
        }
    }
}

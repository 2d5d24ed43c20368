//! Every error that the command can print is on the operators' page, with its remedy.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;

mod support;

/// The stretches of a message that are always the same, and long enough to be told by.
fn fixed_parts(message: &str) -> Vec<String> {
    let parts = message.split('{').map(|part| part.split_once('}').map_or(part, |(_, rest)| rest));
    let edge = [' ', ':', ',', ';', '\'', '.', '(', ')'];
    let starts = parts.map(|part| part.trim_matches(edge).chars().take(30).collect::<String>());
    let starts = starts.map(|part| part.trim_end_matches(edge).to_owned());
    starts.filter(|part| part.len() > 8).collect()
}

/// The first text after each of the calls that make an error.
fn messages(source: &str) -> Vec<&str> {
    let calls = ["CliError::failure(", "CliError::usage("];
    let found = calls.iter().flat_map(|call| source.split(call).skip(1)).filter_map(|rest| {
        let rest = rest.trim_start();
        let rest = rest.strip_prefix("format!(").unwrap_or(rest).trim_start().strip_prefix('"')?;
        rest.split_once('"').map(|(text, _)| text)
    });
    found.collect()
}

#[test]
fn every_error_of_the_command_is_explained_to_operators() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let plain = |text: &str| text.replace('`', "'");
    let page = plain(&fs::read_to_string(root.join("../../docs/RECOVERY.md")).unwrap());
    let mut seen = 0;
    let mut missing = Vec::new();
    for path in support::files_below(&root.join("src")) {
        let source = fs::read_to_string(&path).unwrap();
        let source = source.split("#[cfg(test)]\nmod tests").next().unwrap();
        for message in messages(source) {
            // Without such a part they are put together from pieces, which are messages themselves.
            let parts = fixed_parts(&plain(message));
            seen += usize::from(!parts.is_empty());
            if !parts.is_empty() && !parts.iter().any(|part| page.contains(part)) {
                missing.push(format!("{}: {message}", path.display()));
            }
        }
    }
    assert!(seen > 50, "{seen}");
    assert!(missing.is_empty(), "not in docs/RECOVERY.md: {missing:#?}");
}

//! Text as a person may see it: nothing that a terminal would act on, nothing that hides what is there.

/// Whether a terminal would act on the character instead of showing it: control characters, and
/// those that turn the direction of the text around them.
pub fn acts(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Any bytes as text that no other bytes have: `\n`, `\u{1b}` and `\xff` are escaped, and so is `\`.
pub fn text(bytes: &[u8]) -> String {
    let mut safe = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => safe.push_str("\\\\"),
                '\0' => safe.push_str("\\0"),
                c if acts(c) => safe.extend(c.escape_default()),
                c => safe.push(c),
            }
        }
        for byte in chunk.invalid() {
            safe.push_str(&format!("\\x{byte:02x}"));
        }
    }
    safe
}

/// Escapes the line of JSON that begins at `start`, so that it still is the same JSON.
pub fn make_json(out: &mut Vec<u8>, start: usize) {
    let line = String::from_utf8_lossy(&out[start..]);
    let mut safe = String::with_capacity(line.len());
    for c in line.trim_end_matches('\n').chars() {
        if !acts(c) {
            safe.push(c);
        } else if c.is_ascii_whitespace() {
            // Outside of strings only, where it means no more than a space.
            safe.push(' ');
        } else {
            // All of these are in the first plane, and stand in strings only.
            safe.push_str(&format!("\\u{:04x}", u32::from(c)));
        }
    }
    safe.push('\n');
    out.truncate(start);
    out.extend_from_slice(safe.as_bytes());
}

/// Escapes the line of CSV that begins at `start`. Not CSV any more where anything was escaped: for
/// looking at only.
pub fn make_csv(out: &mut Vec<u8>, start: usize) {
    let line = out.split_off(start);
    let line = line.strip_suffix(b"\n").unwrap_or(&line);
    out.extend_from_slice(text(line).as_bytes());
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_bytes_look_different() {
        let all: [&[u8]; 8] =
            [b"\xff", b"\\xff", b"\n", b"\\n", b"\0", b"\\0", "\u{1b}".as_bytes(), b"\\u{1b}"];
        let shown: std::collections::BTreeSet<String> = all.iter().map(|b| text(b)).collect();
        assert_eq!(shown.len(), all.len(), "{shown:?}");
        assert!(shown.iter().all(|s| !s.contains(acts)));
        assert_eq!(text("é user-1 日本 \"q\"".as_bytes()), "é user-1 日本 \"q\"");
    }
}

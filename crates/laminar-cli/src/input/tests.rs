//! What the parsers make of the same bytes must not depend on where batches are cut.

use std::sync::Arc;

use proptest::prelude::*;

use super::sink::OnBad;
use super::source::{Next, Source};
use super::*;
use crate::agg::Plan;
use crate::agg::bytes::Cursor;
use crate::engine::Router;
use crate::input::plan::extend;
use crate::job::Job;

/// Everything parsed: keys and what their records contribute, and the bad records.
#[derive(Debug, PartialEq)]
struct All {
    keys: Vec<u8>,
    values: Vec<u8>,
    count: u64,
    bad: Vec<BadRecord>,
    lines: u64,
}

fn parse_all(
    format: Format,
    bytes: &[u8],
    batch_len: usize,
    key: &str,
    aggs: &[&str],
) -> crate::error::Result<All> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("input");
    std::fs::write(&path, bytes).unwrap();
    let plan = Plan::parse(&aggs.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let mut job = Job::new(format, key, &plan, &[path.to_str().unwrap().to_owned()]);
    extend(&mut job, None, false)?;
    let mut source = Source::new(job, dir.path().to_owned(), None, batch_len);
    let mut parser = Parser::new(format, key, &plan.fields);
    let mut sink = Sink::new(Arc::new(plan), Router::new(1, |_| 0), OnBad::Keep);
    let mut all = All { keys: Vec::new(), values: Vec::new(), count: 0, bad: Vec::new(), lines: 0 };
    loop {
        match source.next(Vec::new())? {
            Next::Batch { batch, lines, .. } => {
                sink.start(Vec::new());
                parser.parse(&batch, &mut sink);
                let mut parsed = sink.finish();
                all.keys.append(&mut parsed.parts[0].keys);
                all.values.append(&mut parsed.parts[0].values);
                all.count += parsed.records;
                all.bad.append(&mut parsed.bad);
                all.lines += lines;
            }
            Next::Idle => panic!("nothing is followed"),
            Next::End => return Ok(all),
        }
    }
}

/// Reads back routed records of a plan with one `last` aggregate.
fn pairs(all: &All) -> Vec<(String, String)> {
    let (mut keys, mut values) = (Cursor(&all.keys), Cursor(&all.values));
    let mut pairs = Vec::new();
    while !keys.0.is_empty() {
        let text = |cursor: &mut Cursor<'_>| String::from_utf8(cursor.text().unwrap().to_vec()).unwrap();
        pairs.push((text(&mut keys), text(&mut values)));
    }
    assert!(values.0.is_empty());
    pairs
}

fn reasons(all: &All) -> Vec<(u64, u64, &str)> {
    all.bad.iter().map(|b| (b.line, b.offset, b.reason.as_str())).collect()
}

#[test]
fn ndjson_with_bom_crlf_blank_lines_and_no_last_newline() {
    let text = "\u{feff}{\"k\":\"a\",\"v\":{\"x\":1}}\r\n\r\n  \n{\"k\":7,\"v\":{\"x\":\"\\u00e9\"}}\n{\"v\":{\"x\":[1, 2]},\"k\":true}";
    for size in [1, 7, 1 << 20] {
        let all = parse_all(Format::Ndjson, text.as_bytes(), size, "k", &["last:v.x"]).unwrap();
        let expected = [("a", "1"), ("7", "\"\\u00e9\""), ("true", "[1, 2]")];
        assert_eq!(pairs(&all), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!((all.lines, all.bad.len()), (5, 0));
    }
}

#[test]
fn each_bad_json_line_has_its_place_and_reason() {
    let text = b"{\"k\":\"a\",\"v\":1}\nnonsense\n{\"v\":1}\n{\"k\":\"b\",\"v\":\"x\"}\n{\"k\":{},\"v\":1}\n{\"k\":\"\xff\",\"v\":1}\n{\"k\":\"c\",\"v\":null}\n{\"k\":\"\\ud800\",\"v\":2}\n{\"k\":\"d\",\"v\":\"\"}\n";
    let all = parse_all(Format::Ndjson, text, 16, "k", &["sum:v"]).unwrap();
    assert_eq!(all.count, 1);
    let found = reasons(&all);
    let wanted = [
        "not a JSON object",
        "`k` is missing",
        "`v` is \"x\", which is not a number",
        "is an object",
        "not valid UTF-8",
        "`v` is missing or null",
        "cannot be decoded",
        "is empty",
    ];
    assert_eq!(found.len(), wanted.len(), "{found:?}");
    for ((line, offset, reason), (index, wanted)) in found.iter().zip(wanted.iter().enumerate()) {
        assert!(reason.contains(wanted), "{reason}");
        assert_eq!(*line, index as u64 + 2);
        assert!(*offset == 0 || text[usize::try_from(*offset).unwrap() - 1] == b'\n');
    }
}

#[test]
fn csv_with_quotes_newlines_and_doubled_quotes() {
    let text = "id,name,\"the value\"\r\n1,\"a, b\",x\r\n\r\n2,\"line1\nline2 \"\"q\"\"\",\"\"\n3,5\" pipe,y";
    for size in [1, 3, 9, 1 << 20] {
        let all = parse_all(Format::Csv, text.as_bytes(), size, "name", &["last:the value"]).unwrap();
        let expected = [("a, b", "x"), ("line1\nline2 \"q\"", ""), ("5\" pipe", "y")];
        assert_eq!(pairs(&all), expected.map(|(a, b)| (a.to_owned(), b.to_owned())), "size {size}");
        assert!(all.bad.is_empty());
    }
}

#[test]
fn each_bad_csv_record_has_its_place_and_reason() {
    let text = b"k,v\na,1\nb\nc,1,2\n\"d\"x,1\ne,\"\nf\",1\n\xff,1\ng,x\n\"open,1\n";
    for size in [1, 4, 1 << 20] {
        let all = parse_all(Format::Csv, text, size, "k", &["sum:v"]).unwrap();
        let lines: Vec<u64> = all.bad.iter().map(|b| b.line).collect();
        assert_eq!(lines, [3, 4, 5, 6, 8, 9, 10]);
        assert!(all.bad[0].reason.contains("1 fields, the header 2"));
        assert!(all.bad[2].reason.contains("closing quote"));
        assert!(all.bad[5].reason.contains("not a number"));
        assert!(all.bad[6].reason.contains("not closed"));
    }
}

#[test]
fn a_missing_column_names_those_there_are() {
    let error = parse_all(Format::Csv, b"a,b\n1,2\n", 10, "c", &["count"]).unwrap_err().to_string();
    assert!(error.contains("no column `c`") && error.contains("a, b"), "{error}");
}

#[test]
fn words_are_split_at_white_space_only() {
    let text = b"the cat,\tthe\n\n  hat \xff\xfe x";
    for size in [1, 5, 1 << 20] {
        let all = parse_all(Format::Words, text, size, "", &["count"]).unwrap();
        assert_eq!(all.count, 5);
        assert_eq!(reasons(&all), [(3, 20, "the word is not valid UTF-8")]);
    }
}

#[test]
fn a_record_without_end_is_refused() {
    let text = vec![b'x'; RECORD_LEN_MAX + 100];
    let error = parse_all(Format::Ndjson, &text, 1 << 20, "k", &["count"]).unwrap_err().to_string();
    assert!(error.contains("within 16 MiB"), "{error}");
}

/// The limit must be the same whatever the size of batches, and whether the end of the file is read.
#[test]
fn a_record_may_have_16_mib_and_not_one_byte_more() {
    let line = |len: usize| {
        let mut text = b"{\"k\":1,\"x\":\"".to_vec();
        text.resize(len - 3, b'x');
        text.extend_from_slice(b"\"}\n");
        text
    };
    for size in [100, source::BATCH_LEN, 5 << 20] {
        let mut text = b"{\"k\":1}\n".to_vec();
        text.extend(line(RECORD_LEN_MAX));
        assert_eq!(parse_all(Format::Ndjson, &text, size, "k", &["count"]).unwrap().count, 2);
        text.extend(line(RECORD_LEN_MAX + 1));
        text.extend_from_slice(b"{\"k\":1}\n");
        let error = parse_all(Format::Ndjson, &text, size, "k", &["count"]).unwrap_err().to_string();
        let place = format!("line 3 (byte {})", 8 + RECORD_LEN_MAX);
        assert!(error.contains(&place) && error.contains("Check that the file is text"), "{error}");
    }
    let mut csv = b"k,v\na,1\nb,\"".to_vec();
    csv.resize(RECORD_LEN_MAX + 100, b'\n');
    let error = parse_all(Format::Csv, &csv, 1 << 20, "k", &["count"]).unwrap_err().to_string();
    assert!(error.contains("line 3 (byte 8)") && error.contains("A quote may not be closed"), "{error}");
}

/// A source that reads a file in batches of one line.
fn source_of(path: &Path) -> Source {
    let plan = Plan::parse(&[]).unwrap();
    let mut job = Job::new(Format::Ndjson, "k", &plan, &[path.to_str().unwrap().to_owned()]);
    extend(&mut job, None, false).unwrap();
    Source::new(job, path.parent().unwrap().to_owned(), None, 1)
}

#[test]
fn input_that_is_truncated_while_it_is_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.ndjson");
    std::fs::write(&path, "{\"k\":1}\n{\"k\":2}\n{\"k\":3}\n").unwrap();
    let mut source = source_of(&path);
    assert!(matches!(source.next(Vec::new()).unwrap(), Next::Batch { .. }));
    std::fs::write(&path, "{\"k\":1}\n{\"k").unwrap();
    let error = source.next(Vec::new()).unwrap_err().to_string();
    assert!(error.contains("a.ndjson was truncated while it was read"), "{error}");
    assert!(error.contains("expected at least 24 bytes, found 11"), "{error}");
}

#[test]
fn a_last_record_that_grows_while_it_is_read_is_read_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.ndjson");
    std::fs::write(&path, "{\"k\":1}\n{\"k\":").unwrap();
    let mut source = source_of(&path);
    assert!(matches!(source.next(Vec::new()).unwrap(), Next::Batch { .. }));
    std::fs::write(&path, "{\"k\":1}\n{\"k\":2}\n").unwrap();
    let Next::Batch { batch, end, lines } = source.next(Vec::new()).unwrap() else { panic!("a batch") };
    assert_eq!((&batch.bytes[..], batch.line, end.offset, lines), (&b"{\"k\":2}\n"[..], 2, 16, 1));
    assert!(matches!(source.next(Vec::new()).unwrap(), Next::End));
    // So that a restart agrees.
    let job = Job::load(dir.path()).unwrap().unwrap();
    assert_eq!(job.steps[0].to, Some(16));
}

#[test]
fn formats_are_recognised() {
    assert_eq!(Format::from_extension(Path::new("a/b.JSONL")), Some(Format::Ndjson));
    assert_eq!(Format::from_extension(Path::new("x.txt")), None);
    assert_eq!(Format::from_first_line(b"{\"a\":1}", Some("a")), Some(Format::Ndjson));
    assert_eq!(Format::from_first_line(b"a,\"b\",c", Some("b")), Some(Format::Csv));
    assert_eq!(Format::from_first_line(b"a\tb\tc\r", Some("c")), Some(Format::Tsv));
    assert_eq!(Format::from_first_line(b"Once upon, a time", Some("c")), None);
    assert_eq!(Format::from_first_line(b"Once upon, a time", None), Some(Format::Words));
}

fn json_line() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => ("[a-c]{1,3}", -1000i32..1000).prop_map(|(k, v)| format!("{{\"k\":\"{k}\",\"z\":[{{\"v\":9}}],\"v\":{v}}}")),
        1 => ("[^\"\\\\\\p{C}]{0,8}", any::<bool>()).prop_map(|(k, cr)| format!("{{ \"v\" : 1.5, \"k\":\"{k}\"}}{}", if cr { "\r" } else { "" })),
        1 => Just(String::new()),
        1 => "[ -~]{0,20}",
    ]
}

fn csv_field() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z0-9 ]{0,6}",
        2 => "[a-z,\n\r]{0,6}".prop_map(|s| format!("\"{s}\"")),
        1 => "[a-z]{0,3}".prop_map(|s| format!("\"{s}\"\"{s}\"")),
        1 => "[a-z]{1,3}\"[a-z]{0,2}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn ndjson_does_not_depend_on_batches(lines in proptest::collection::vec(json_line(), 0..30), size in 1usize..200, end in any::<bool>()) {
        let text = lines.join("\n") + if end { "\n" } else { "" };
        let whole = parse_all(Format::Ndjson, text.as_bytes(), 1 << 20, "k", &["count", "sum:v"]).unwrap();
        prop_assert_eq!(whole, parse_all(Format::Ndjson, text.as_bytes(), size, "k", &["count", "sum:v"]).unwrap());
    }

    #[test]
    fn csv_does_not_depend_on_batches_and_agrees_with_the_csv_crate(
        rows in proptest::collection::vec((csv_field(), csv_field(), any::<bool>()), 0..20), size in 1usize..100,
    ) {
        let mut text = "k,v\n".to_owned();
        for (k, v, crlf) in &rows { text.push_str(&format!("{k},{v}{}", if *crlf { "\r\n" } else { "\n" })); }
        let whole = parse_all(Format::Csv, text.as_bytes(), 1 << 20, "k", &["last:v"]).unwrap();
        let mut reader = ::csv::ReaderBuilder::new().from_reader(text.as_bytes());
        let expected: Vec<(String, String)> = reader.records().map(|r| { let r = r.unwrap(); (r[0].to_owned(), r[1].to_owned()) }).collect();
        prop_assert_eq!(pairs(&whole), expected);
        prop_assert_eq!(whole, parse_all(Format::Csv, text.as_bytes(), size, "k", &["last:v"]).unwrap());
    }

    #[test]
    fn batches_of_csv_are_cut_where_records_end(bytes in proptest::collection::vec(prop_oneof![3 => Just(b'"'), 3 => Just(b','), 2 => Just(b'\n'), 1 => Just(b'\r'), 9 => Just(b'x'), 1 => any::<u8>()], 0..120)) {
        let mut fields = Vec::new();
        let mut end = 0;
        while let csv::End::Newline(len) = csv::scan(&bytes[end..], b',', &mut fields).end { end += len; }
        prop_assert_eq!(csv::last_boundary(&bytes, b','), end);
    }

    #[test]
    fn any_bytes_parse_alike_in_any_batches(bytes in proptest::collection::vec(prop_oneof![Just(b'"'), Just(b','), Just(b'\n'), Just(b'\r'), Just(b' '), any::<u8>()], 0..200), size in 1usize..50) {
        for format in [Format::Csv, Format::Ndjson, Format::Words] {
            let text = [if format == Format::Csv { &b"k,v\n"[..] } else { b"" }, &bytes].concat();
            let aggs: &[&str] = if format == Format::Words { &["count"] } else { &["last:v"] };
            let whole = parse_all(format, &text, 1 << 20, "k", aggs).unwrap();
            prop_assert_eq!(whole, parse_all(format, &text, size, "k", aggs).unwrap());
        }
    }
}

/// Not a test: prints how fast one parser thread turns text into routed records.
/// `cargo test --release -p laminar-cli parse_rates -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn parse_rates() {
    use std::fmt::Write;
    const COUNT: usize = 1_000_000;
    let (mut json, mut csv, mut text) =
        (String::new(), "ts,user,type,amount,page\n".to_owned(), String::new());
    for i in 0..COUNT {
        let (user, cents) = (i * 7919 % 100_000, i % 100);
        writeln!(json, "{{\"ts\":\"2026-11-22T08:00:00.123Z\",\"user\":\"user-{user:07}\",\"page\":\"/products/{i}\",\"order\":{{\"amount\":{i}.{cents:02}}},\"session\":\"{i:016x}\"}}").unwrap();
        writeln!(csv, "2026-11-22T08:00:00.123Z,user-{user:07},view,{i}.{cents:02},\"/products/{i}\"")
            .unwrap();
        write!(text, "word{user} ").unwrap();
    }
    for (format, text, key, aggs) in [
        (Format::Ndjson, &json, "user", &["count", "sum:order.amount"][..]),
        (Format::Csv, &csv, "user", &["count", "sum:amount"]),
        (Format::Words, &text, "", &["count"]),
    ] {
        let best = (0..5).map(|_| {
            let start = std::time::Instant::now();
            assert_eq!(
                parse_all(format, text.as_bytes(), source::BATCH_LEN, key, aggs).unwrap().count,
                COUNT as u64
            );
            start.elapsed().as_secs_f64()
        });
        let best = best.fold(f64::MAX, f64::min);
        println!(
            "{format}: {:.2} M records/s, {:.0} MB/s",
            COUNT as f64 / best / 1e6,
            text.len() as f64 / best / 1e6
        );
    }
}

//! Several parsers give what one gives, byte for byte, and nothing that happens to a thread is waited
//! for in vain.

use super::super::threads::tests::refuse_all;
use super::*;

/// Everything that a run leaves.
#[derive(Debug, PartialEq)]
struct Left {
    export: String,
    dead: String,
    told: Option<String>,
    stopped_by: Option<String>,
    after: Committed,
}

/// Lines of every kind: with CRLF, blank, not JSON, not UTF-8, without a key, and no last newline.
fn ndjson() -> Vec<u8> {
    let mut text = b"\xef\xbb\xbf".to_vec();
    for i in 0..300 {
        let line = match i % 10 {
            3 => format!("{{\"k\":\"k{}\",\"v\":{i}.5}}\r\n", i % 7),
            5 => "\r\n".to_owned(),
            6 => format!("not JSON {i}\n"),
            7 => format!("{{\"v\":{i}}}\n"),
            _ => format!("{{\"v\":-{i},\"x\":[\"\\n\",{{\"k\":1}}],\"k\":\"\\u00e9{}\"}}\n", i % 7),
        };
        text.extend_from_slice(line.as_bytes());
        if i % 50 == 8 {
            text.extend_from_slice(b"{\"k\":\"\xff\",\"v\":1}\n");
        }
    }
    text.extend_from_slice(b"{\"k\":\"last\",\"v\":0}");
    text
}

/// Records of every kind: newlines, delimiters and quotes in quotes, CRLF, too many fields, not UTF-8.
fn csv() -> Vec<u8> {
    let mut text = b"\xef\xbb\xbfk,\"v\"\r\n".to_vec();
    for i in 0..300 {
        let record = match i % 10 {
            2 => format!("\"a\n,\"\"{}\"\"\n\",{i}\r\n", i % 7),
            4 => "\n".to_owned(),
            5 => format!("k,{i},too many\n"),
            6 => format!("\"stray\"{i},1\n"),
            7 => format!("k{}\",\"{i}\"\n", i % 7),
            8 => format!("\"not\na\nnumber\",\"x\n{i}\"\n"),
            _ => format!("k{},-{i}.25\n", i % 7),
        };
        text.extend_from_slice(record.as_bytes());
        if i % 50 == 9 {
            text.extend_from_slice(b"\xfe,1\n");
        }
    }
    text.extend_from_slice(b"last,\"1\n");
    text
}

fn words() -> Vec<u8> {
    let mut text = Vec::new();
    for i in 0..400 {
        text.extend_from_slice(format!("w{}{}", i % 9, if i % 6 == 0 { "\n" } else { " " }).as_bytes());
        if i % 40 == 0 {
            text.extend_from_slice(b"\xff\xfe ");
        }
    }
    text
}

fn left(name: &str, bytes: &[u8], on_error: Option<OnError>, parsers: usize, batch_len: usize) -> Left {
    let is_words = name.ends_with("txt");
    let aggs: &[&str] = if is_words { &["count"] } else { &["count", "sum:v", "last:v"] };
    let mut bench = Bench::new(&[(name, "")], (!is_words).then_some("k"), aggs);
    fs::write(bench.path(name), bytes).unwrap();
    let dead = bench.path("dead.ndjson");
    bench.settings.on_error = on_error.unwrap_or_else(|| OnError::DeadLetter(dead.clone()));
    bench.settings.format = is_words.then_some(Format::Words);
    (bench.settings.parsers, bench.settings.batch_len) = (Some(parsers), batch_len);
    let outcome = bench.run().unwrap();
    let place = bench.dir.path().display().to_string();
    let here = |text: String| text.replace(&place, "");
    Left {
        export: bench.export(),
        dead: here(fs::read_to_string(dead).unwrap_or_default()),
        told: outcome.first_bad.map(here),
        stopped_by: outcome.stopped_by.map(|error| here(error.to_string())),
        // Belongs to the job, whose input has another name each time.
        after: Committed { mark: None, ..outcome.after },
    }
}

#[test]
fn dead_letters_lines_and_results_are_those_of_one_parser() {
    for (name, bytes) in [("a.ndjson", ndjson()), ("a.csv", csv()), ("a.txt", words())] {
        let one = left(name, &bytes, None, 1, 1 << 20);
        assert!(one.dead.lines().count() > 5 && one.after.skipped > 5, "{one:?}");
        for (parsers, batch_len) in [(1, 1), (2, 1), (8, 1), (2, 17), (3, 64), (5, 700), (8, 3_000)] {
            let several = left(name, &bytes, None, parsers, batch_len);
            assert_eq!(several, one, "{name} with {parsers} parsers, batches of {batch_len}");
        }
    }
}

#[test]
fn a_bad_record_stops_several_parsers_where_it_stops_one() {
    for (name, bytes) in [("a.ndjson", ndjson()), ("a.csv", csv()), ("a.txt", words())] {
        let one = left(name, &bytes, Some(OnError::Stop), 1, 1 << 20);
        let told = one.stopped_by.clone().unwrap();
        assert!(told.contains(": line ") && told.contains("(byte "), "{told}");
        for (parsers, batch_len) in [(2, 1), (8, 1), (3, 64), (8, 700)] {
            let several = left(name, &bytes, Some(OnError::Stop), parsers, batch_len);
            assert_eq!(several, one, "{name} with {parsers} parsers, batches of {batch_len}");
        }
    }
}

/// Whoever started a job on a system that was out of threads waited for ever.
#[test]
fn a_thread_that_cannot_be_started_is_an_error_or_done_without() {
    let text = events(60);
    for name in ["laminar-parse-0", "laminar-read", "laminar-core-0", "laminar-core-1", "laminar-sequence"] {
        let bench = Bench::new(&[("a.ndjson", &text)], Some("user.id"), AGGS);
        refuse_all(name);
        let told = bench.error();
        refuse_all("");
        assert!(told.contains("could not start a thread") && told.contains("ulimit -u"), "{name}: {told}");
        assert!(bench.run().unwrap().finished, "{name}: the same command goes on");
    }
    let bench = Bench::new(&[("a.ndjson", &text)], Some("user.id"), AGGS);
    refuse_all("laminar-parse-1");
    let outcome = bench.run().unwrap();
    refuse_all("");
    assert_eq!((outcome.finished, outcome.after.records), (true, 60), "one parser is enough");
}

#[test]
fn a_parser_that_panics_is_reported_with_its_place_and_not_waited_for() {
    let text = format!("{}{{\"k\":\"{}\"}}\n", "{\"k\":1}\n".repeat(100), crate::input::sink::PANICS);
    for parsers in [1, 2, 8] {
        let mut bench =
            Bench::new(&[("a.ndjson", &(text.clone() + &"{\"k\":2}\n".repeat(50)))], Some("k"), &["count"]);
        bench.settings.parsers = Some(parsers);
        let outcome = bench.run().unwrap();
        let told = outcome.stopped_by.unwrap().to_string();
        assert!(told.contains("a parser panicked in ") && told.contains("a.ndjson between byte"), "{told}");
        assert!(!outcome.finished && outcome.after.records >= 90, "what precedes the batch is sealed");
    }
}

/// A followed file may end in the middle of a record only for now; it was waited for whatever its length.
#[test]
fn a_followed_record_without_end_is_refused_at_the_limit() {
    for (name, start, wanted) in
        [("a.ndjson", "{\"k\":1}\n", "line 2 (byte 8)"), ("a.csv", "k\na\n\"", "line 3 (byte 4)")]
    {
        let long = "x".repeat(crate::input::RECORD_LEN_MAX + 10);
        let mut bench = Bench::new(&[(name, &format!("{start}{long}"))], Some("k"), &["count"]);
        bench.settings.follow = true;
        bench.settings.batch_len = crate::input::source::BATCH_LEN;
        let outcome = bench.run().unwrap();
        let told = outcome.stopped_by.unwrap().to_string();
        assert!(told.contains(wanted) && told.contains("no end of the record within 16 MiB"), "{told}");
        assert!(told.contains(name) && told.contains("--format"), "{told}");
        assert_eq!(outcome.after.records, 1);
    }
}

#[test]
fn a_job_that_is_told_to_stop_at_once_loses_nothing() {
    let text = events(200);
    let bench = Bench::new(&[("a.ndjson", &text)], Some("user.id"), AGGS);
    let outcome =
        super::super::run::<FakeEngine>(&bench.settings, &AtomicBool::new(true), &mut Silent).unwrap();
    assert!(!outcome.finished && outcome.stopped_by.is_none());
    let outcome = bench.run().unwrap();
    assert_eq!((outcome.finished, outcome.after.records), (true, 200));
}

//! The job over a store in memory: whatever epoch a crash leaves, with whatever cores, batches and
//! epochs it goes on, the result is the same bytes.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::args::ExportFormat;
use crate::engine::StateView;
use crate::engine::fake::{FakeEngine, FakeView, disk};
use crate::export::{Meaning, Reader, write_all};

mod parallel;

struct Silent;

impl Observer for Silent {
    fn opened(&mut self, _: &Report, _: &Committed) {}
    fn note(&mut self, _: &str) {}
    fn tick(&mut self, _: &Snapshot) {}
    fn closing(&mut self) {}
}

struct Bench {
    dir: tempfile::TempDir,
    settings: Settings,
}

impl Bench {
    /// A job over files with these names and contents.
    fn new(files: &[(&str, &str)], key: Option<&str>, aggs: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut inputs = Vec::new();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            inputs.push(path.to_str().unwrap().to_owned());
        }
        let plan = Plan::parse(&aggs.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        let settings = Settings {
            inputs,
            format: None,
            key: key.map(str::to_owned),
            plan,
            state: dir.path().join("state"),
            cores: 2,
            epoch: Duration::ZERO,
            checkpoint_interval: None,
            recovery_objective: None,
            #[cfg(feature = "object-store")]
            backups: None,
            opening: crate::opening::Watched::No,
            on_error: OnError::Stop,
            follow: false,
            batch_len: 64,
            parsers: Some(3),
        };
        Self { dir, settings }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn append(&self, name: &str, text: &str) {
        use std::io::Write;
        fs::OpenOptions::new()
            .append(true)
            .open(self.path(name))
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    fn run(&self) -> Result<Outcome> {
        super::run::<FakeEngine>(&self.settings, &AtomicBool::new(false), &mut Silent)
    }

    fn error(&self) -> String {
        match self.run() {
            Err(error) => error.to_string(),
            Ok(outcome) => outcome.stopped_by.expect("an error").to_string(),
        }
    }

    fn export(&self) -> String {
        let view = FakeView::open(&self.settings.state).unwrap();
        let meaning = Meaning::of(&self.settings.state, false, view.report()).unwrap();
        let mut out = Vec::new();
        write_all(&view, &meaning, ExportFormat::Ndjson, &mut out, Reader::Program, &CliError::stdout)
            .unwrap();
        String::from_utf8(out).unwrap()
    }

    fn epochs(&self) -> Vec<u64> {
        disk(&self.settings.state).lock().unwrap().epochs()
    }

    /// Makes another directory with the same state, as a crash with this recovery point leaves it.
    fn crashed_at(&self, epoch: u64) -> Self {
        let state = self.path(&format!("crashed-{epoch}"));
        fs::create_dir(&state).unwrap();
        fs::copy(self.settings.state.join("job.json"), state.join("job.json")).unwrap();
        let mut image = disk(&self.settings.state).lock().unwrap().clone();
        image.cut(epoch);
        *disk(&state).lock().unwrap() = image;
        Self { dir: tempfile::tempdir().unwrap(), settings: Settings { state, ..self.settings.clone() } }
    }
}

fn events(count: usize) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for i in 0..count {
        let n = i * 7919 % 1000;
        let tail = if i % 13 == 0 { "\r\n\n" } else { "\n" };
        write!(
            text,
            "{{\"user\":{{\"id\":\"u{}\"}},\"amount\":{}.{:02},\"page\":\"p{i}\"}}{tail}",
            n % 17,
            n as i64 - 500,
            n % 100
        )
        .unwrap();
    }
    text
}

fn csv_rows(count: usize) -> String {
    let row = |i: usize| format!("\"u {}\n,\"\"{}\"\"\",{},x{}\n", i % 5, i % 3, i as f64 / 4.0, i);
    std::iter::once("who,amount,\"note\"\r\n".to_owned()).chain((0..count).map(row)).collect()
}

const AGGS: &[&str] = &["count", "sum:amount", "min:amount", "max:amount", "last:page"];

#[test]
fn resuming_at_any_epoch_gives_the_same_bytes() {
    let text = events(120);
    let bench = Bench::new(
        &[("a.ndjson", &text), ("empty.ndjson", ""), ("b.ndjson", text.trim_end())],
        Some("user.id"),
        AGGS,
    );
    let outcome = bench.run().unwrap();
    assert!(outcome.finished && outcome.after.records == 240, "{outcome:?}");
    let expected = bench.export();
    assert_eq!(expected.lines().count(), 17);
    let epochs = bench.epochs();
    assert!(epochs.len() > 20, "small batches make many epochs");
    for (index, epoch) in std::iter::once(0).chain(epochs).enumerate() {
        let mut again = bench.crashed_at(epoch);
        again.settings.cores = 1 + index % 4;
        again.settings.parsers = Some([2, 1, 8, 3][index % 4]);
        again.settings.batch_len = [1, 50, 1000, 1 << 18][index % 4];
        let resumed = again.run().unwrap();
        assert_eq!(again.export(), expected, "resumed at epoch {epoch}");
        assert_eq!(resumed.after.records, 240);
        assert_eq!(
            (resumed.after.lines, resumed.after.position),
            (outcome.after.lines, outcome.after.position)
        );
        assert_eq!(resumed.last.bytes, outcome.last.bytes);
    }
}

#[test]
fn csv_with_embedded_newlines_resumes_anywhere() {
    let text = csv_rows(60);
    let bench =
        Bench::new(&[("a.csv", &text), ("b.csv", &text)], Some("who"), &["count", "sum:amount", "last:note"]);
    bench.run().unwrap();
    let expected = bench.export();
    assert!(expected.contains(r#""key":"u 0\n,\"0\"""#), "{expected}");
    for (index, epoch) in bench.epochs().into_iter().enumerate() {
        let mut again = bench.crashed_at(epoch);
        again.settings.parsers = Some([1, 2, 8][index % 3]);
        again.run().unwrap();
        assert_eq!(again.export(), expected, "resumed at epoch {epoch}");
    }
}

#[test]
fn words_and_a_second_run_without_news() {
    let bench = Bench::new(&[("a.txt", "to be or\nnot to be")], None, &["count"]);
    assert_eq!(bench.run().unwrap().after.lines, 1, "the last line has no newline");
    assert_eq!(
        bench.export(),
        "{\"key\":\"be\",\"count\":2}\n{\"key\":\"not\",\"count\":1}\n{\"key\":\"or\",\"count\":1}\n{\"key\":\"to\",\"count\":2}\n"
    );
    let again = bench.run().unwrap();
    assert_eq!((again.last.records, again.after.records, again.finished), (0, 6, true));
}

#[test]
fn what_is_appended_is_read_next_time() {
    let mut bench = Bench::new(&[("a.csv", "k,v\na,1\n"), ("b.csv", "k,v\nb,1")], Some("k"), &["sum:v"]);
    bench.settings.inputs = vec![bench.path("*.csv").to_str().unwrap().to_owned()];
    bench.run().unwrap();
    bench.append("a.csv", "a,10\nc,5");
    bench.append("b.csv", "\nb,20\n");
    fs::write(bench.path("c.csv"), "v,k\n7,d\n").unwrap();
    bench.run().unwrap();
    assert_eq!(
        bench.export(),
        "{\"key\":\"a\",\"sum:v\":11}\n{\"key\":\"b\",\"sum:v\":21}\n{\"key\":\"c\",\"sum:v\":5}\n{\"key\":\"d\",\"sum:v\":7}\n"
    );
    bench.append("a.csv", "00\n");
    let error = bench.error();
    assert!(error.contains("incomplete line") && error.contains("a.csv"), "{error}");
    fs::remove_file(bench.path("b.csv")).unwrap();
    fs::write(bench.path("a.csv"), "k,v\na,1\na,10\nc,5").unwrap();
    bench.run().expect("a file found by a pattern may go once it is read");
}

#[test]
fn changed_and_truncated_input_is_refused() {
    let bench = Bench::new(&[("a.csv", "k,v\na,1\nb,2\n")], Some("k"), &["count"]);
    bench.run().unwrap();
    fs::write(bench.path("a.csv"), "k,v\na,1\n").unwrap();
    let error = bench.error();
    assert!(error.contains("truncated: 12 bytes of it were read before, now it has 8"), "{error}");
    fs::write(bench.path("a.csv"), "k,v\nX,1\nb,2\nc,3\n").unwrap();
    assert!(bench.error().contains("changed since it was first read"));
    fs::remove_file(bench.path("a.csv")).unwrap();
    assert!(bench.error().contains("could not open the input file"));
}

#[test]
fn a_bad_record_stops_before_itself_and_can_be_skipped_later() {
    let mut bench = Bench::new(
        &[("a.ndjson", "{\"k\":1}\n{\"k\":2}\n{oops\n{\"k\":1}\n{}\n{\"k\":1}\n")],
        Some("k"),
        &["count"],
    );
    for _ in 0..2 {
        let outcome = bench.run().unwrap();
        assert!(!outcome.finished);
        let error = outcome.stopped_by.unwrap().to_string();
        assert!(
            error.contains("a.ndjson: line 3 (byte 16): not a JSON object")
                && error.contains("--on-error skip"),
            "{error}"
        );
        assert_eq!((outcome.after.records, outcome.after.lines), (2, 2));
    }
    bench.settings.on_error = OnError::Skip;
    let outcome = bench.run().unwrap();
    assert_eq!((outcome.after.records, outcome.after.skipped, outcome.after.lines), (4, 2, 6));
    assert!(outcome.first_bad.unwrap().contains("line 3"));
    assert_eq!(bench.export(), "{\"key\":\"1\",\"count\":3}\n{\"key\":\"2\",\"count\":1}\n");
}

#[test]
fn a_bad_record_can_be_repaired_but_what_precedes_it_not_changed() {
    let bench =
        Bench::new(&[("a.csv", "k,v\na,1\nb,x\na,100\n"), ("b.csv", "k,v\nb,x\n")], Some("k"), &["sum:v"]);
    for repaired in ["k,v\na,1\nb,y\na,100\n", "k,v\na,1\n", "k,v\na,1\nb,2\na,100\nc,z\n"] {
        let outcome = bench.run().unwrap();
        let error = outcome.stopped_by.map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("line ") && error.contains("Repair the input from this record on"), "{error}");
        fs::write(bench.path("a.csv"), "k,v\na,2\nb,2\na,100\n").unwrap();
        assert!(bench.error().contains("changed since it was first read"));
        fs::write(bench.path("a.csv"), repaired).unwrap();
    }
    assert!(bench.error().contains("b.csv: line 2"));
    fs::write(bench.path("a.csv"), "k,v\na,1\nb,2\na,100\n").unwrap();
    fs::write(bench.path("b.csv"), "k,v\nb,5\n").unwrap();
    assert!(bench.run().unwrap().finished);
    assert_eq!(bench.export(), "{\"key\":\"a\",\"sum:v\":101}\n{\"key\":\"b\",\"sum:v\":7}\n");
}

#[test]
fn dead_letters_stand_in_their_file_once() {
    let text: String = (0..100)
        .map(|i| if i % 7 == 3 { format!("bad {i}\n") } else { format!("{{\"k\":{}}}\n", i % 3) })
        .collect();
    let mut bench = Bench::new(&[("a.ndjson", &text)], Some("k"), &["count"]);
    let file = bench.path("dead.ndjson");
    bench.settings.on_error = OnError::DeadLetter(file.clone());
    assert_eq!(bench.run().unwrap().after.skipped, 14);
    let expected = fs::read_to_string(&file).unwrap();
    assert_eq!(expected.lines().count(), 14);
    assert!(
        expected.starts_with("{\"file\":")
            && expected.contains("\"line\":4,\"offset\":24,")
            && expected.contains("\"text\":\"bad 3\""),
        "{expected}"
    );
    for epoch in std::iter::once(0).chain(bench.epochs()) {
        // The crash may have left more in the file than the epoch has.
        fs::write(&file, &expected).unwrap();
        let outcome = bench.crashed_at(epoch).run().unwrap();
        assert_eq!(outcome.after.skipped, 14);
        assert_eq!(fs::read_to_string(&file).unwrap(), expected, "epoch {epoch}");
    }
    fs::write(&file, "").unwrap();
    assert!(bench.error().contains("but"), "a dead-letter file that lost records is noticed");
    bench.settings.on_error = OnError::DeadLetter(bench.path("a.ndjson"));
    assert!(bench.error().contains("a.ndjson exists already"));
}

#[test]
fn the_dead_letters_of_another_job_are_not_cut_off() {
    let mut bench = Bench::new(&[("a.ndjson", "bad\n{\"k\":1}\n")], Some("k"), &["count"]);
    let file = bench.path("dead.ndjson");
    bench.settings.on_error = OnError::DeadLetter(file.clone());
    bench.run().unwrap();
    let first = fs::read_to_string(&file).unwrap();
    bench.settings.state = bench.path("state2");
    assert!(bench.error().contains("dead.ndjson exists already"));
    assert_eq!((fs::read_to_string(&file).unwrap(), first.lines().count()), (first, 1));
}

/// A first command with a mistyped --key failed at its first record and left a state behind; the
/// corrected command was refused because the state belonged to the mistyped one.
#[test]
fn a_state_without_any_record_belongs_to_the_next_command() {
    for (wrong, text) in [
        ("a.ndjson", "\n\n{\"x\":0}\n{\"k\":1,\"v\":2}\n"),
        // The position of the failure is behind the whole second file.
        ("a.csv", "a long header that nobody reads,oops\n1,x\n"),
    ] {
        let mut bench = Bench::new(&[(wrong, text), ("b.csv", "k,v\na,1\nb,2\n")], Some("oops"), &["count"]);
        let all = bench.settings.inputs.clone();
        bench.settings.inputs = vec![all[0].clone()];
        bench.settings.plan = Plan::parse(&["sum:x".to_owned()]).unwrap();
        bench.settings.format = wrong.ends_with("csv").then_some(Format::Csv);
        bench.error();
        bench.settings.inputs = vec![all[1].clone()];
        bench.settings.key = Some("k".to_owned());
        bench.settings.format = None;
        bench.settings.plan = Plan::parse(&["sum:v".to_owned()]).unwrap();
        // A command that makes no sense itself changes nothing.
        let before = fs::read(Job::path(&bench.settings.state)).unwrap();
        let key = bench.settings.key.take();
        assert!(bench.error().contains("--key is missing"));
        assert_eq!(fs::read(Job::path(&bench.settings.state)).unwrap(), before);
        bench.settings.key = key;
        let outcome = bench.run().unwrap();
        assert!(outcome.finished && outcome.after.records == 2 && outcome.after.lines == 2, "{outcome:?}");
        assert_eq!(bench.export(), "{\"key\":\"a\",\"sum:v\":1}\n{\"key\":\"b\",\"sum:v\":2}\n");
        for epoch in bench.epochs() {
            let again = bench.crashed_at(epoch);
            again.run().unwrap();
            assert_eq!(again.export(), bench.export(), "resumed at epoch {epoch}");
        }
        let report = <FakeEngine as Engine>::look(&bench.settings.state).unwrap();
        let mark = Committed::from_offsets(&report.source_offsets).mark.unwrap();
        let job = Job::load(&bench.settings.state).unwrap().unwrap();
        assert_eq!(mark.job, job.marker(), "the marker changes with the owner");
        bench.settings.key = Some("v".to_owned());
        assert!(bench.error().contains("belongs to another job"), "now it has records");
    }
}

/// Of a file with nothing but blank lines a step is done, and no record applied; when it has grown,
/// its input is planned anew and must not be read twice.
#[test]
fn a_file_that_was_blank_at_first_is_read_once() {
    let bench = Bench::new(&[("a.ndjson", "\n\n")], Some("k"), &["count"]);
    assert!(bench.run().unwrap().finished);
    for count in 1..4 {
        bench.append("a.ndjson", "{\"k\":1}\n");
        assert_eq!(bench.run().unwrap().after.records, count);
    }
    assert_eq!(bench.export(), "{\"key\":\"1\",\"count\":3}\n");
}

/// Its job was read before the store was locked: another run may have changed it since.
#[test]
fn a_state_used_meanwhile_is_not_planned_from_an_old_job() {
    let bench = Bench::new(&[("a.csv", "k,v\na,1\n")], Some("k"), &["count"]);
    let claim = Claim::make::<FakeEngine>(&bench.settings).unwrap();
    let mut job = Job::load(&bench.settings.state).unwrap().unwrap();
    job.dead_letter("x");
    job.save(&bench.settings.state).unwrap();
    let error = claim.settle(&bench.settings, &Report::default()).err().unwrap().to_string();
    assert!(error.contains("just now"), "{error}");
}

#[test]
fn another_command_line_and_missing_options_are_refused() {
    let mut bench = Bench::new(&[("a.csv", "k,v\na,1\n")], None, &["count"]);
    assert!(bench.error().contains("--key is missing"));
    assert!(!bench.settings.state.exists(), "nothing is made for a command line that makes no sense");
    bench.settings.key = Some("nope".to_owned());
    assert!(bench.error().contains("no column `nope`"));
    bench.settings.state = bench.path("state2");
    bench.settings.key = Some("k".to_owned());
    bench.run().unwrap();
    bench.settings.key = Some("v".to_owned());
    assert!(bench.error().contains("--key was `k`, now it is `v`"));
}

#[test]
fn a_sum_that_overflows_stops_the_job_unsealed() {
    let max = i128::MAX;
    let bench = Bench::new(&[("a.csv", &format!("k,v\na,{max}\nb,1\na,1\n"))], Some("k"), &["sum:v"]);
    let error = bench.error();
    assert!(error.contains("\"a\" (sum:v) does not fit"), "{error}");
}

#[test]
fn a_followed_file_is_read_to_its_last_newline() {
    let mut bench = Bench::new(&[("a.csv", "")], Some("k"), &["count"]);
    bench.settings.follow = true;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (bench, stop) = (&bench, &stop);
        let job = scope.spawn(move || super::run::<FakeEngine>(&bench.settings, stop, &mut Silent).unwrap());
        for text in ["k,", "v\na", ",1\nb,2\n", "c,3"] {
            bench.append("a.csv", text);
            std::thread::sleep(Duration::from_millis(60));
        }
        stop.store(true, Ordering::Release);
        let outcome = job.join().unwrap();
        assert_eq!((outcome.after.records, outcome.finished), (2, false));
    });
    assert_eq!(bench.export().lines().count(), 2);
    bench.settings.follow = false;
    let outcome = bench.run().unwrap();
    assert_eq!((outcome.after.records, outcome.finished), (3, true), "without --follow the last line counts");
}

/// A followed file that was renamed and made anew was waited for without a word.
#[test]
fn a_followed_file_that_is_rotated_stops_the_job_with_what_it_had() {
    type Rotate = fn(&Bench);
    let rotations: [(Rotate, &str); 5] = [
        (|b| fs::rename(b.path("a.csv"), b.path("a.csv.1")).unwrap(), "was rotated"),
        (|b| fs::remove_file(b.path("a.csv")).unwrap(), "was rotated"),
        (
            |b| {
                fs::rename(b.path("a.csv"), b.path("a.csv.1")).unwrap();
                fs::write(b.path("a.csv"), "k,v\nnew,1\nnew,2\nnew,3\n").unwrap();
            },
            "was rotated",
        ),
        (|b| fs::write(b.path("a.csv"), "k,v\n").unwrap(), "was truncated"),
        (
            |b| {
                let file = fs::OpenOptions::new().write(true).open(b.path("a.csv")).unwrap();
                // In one step, so that the job cannot see it empty.
                std::os::unix::fs::FileExt::write_all_at(&file, b"k,v\nA,1\nB,2\nC,3\n", 0).unwrap();
            },
            "was changed while it was followed",
        ),
    ];
    for (rotate, wanted) in rotations {
        let mut bench = Bench::new(&[("a.csv", "k,v\na,1\nb,2\n")], Some("k"), &["count"]);
        bench.settings.follow = true;
        let outcome = std::thread::scope(|scope| {
            let job = scope.spawn(|| bench.run().unwrap());
            // All of it is read once two epochs' worth of records are there.
            while !job.is_finished() && disk(&bench.settings.state).lock().unwrap().records() < 2 {
                std::thread::yield_now();
            }
            rotate(&bench);
            job.join().unwrap()
        });
        let error = outcome.stopped_by.unwrap().to_string();
        assert!(error.contains(wanted), "{error}");
        assert_eq!((outcome.after.records, outcome.finished), (2, false));
        assert_eq!(bench.export(), "{\"key\":\"a\",\"count\":1}\n{\"key\":\"b\",\"count\":1}\n");
    }
}

/// Nothing of a file that is empty at first can be hashed; it used to be taken for the same file
/// after a restart, whatever it had then.
#[test]
fn a_followed_file_that_was_empty_at_first_is_known_again() {
    let mut bench = Bench::new(&[("a.csv", "")], Some("k"), &["count"]);
    bench.settings.follow = true;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (bench, stop) = (&bench, &stop);
        let job = scope.spawn(move || super::run::<FakeEngine>(&bench.settings, stop, &mut Silent).unwrap());
        bench.append("a.csv", "k,v\na,1\nb,2\n");
        // What a killed job would find in job.json.
        let known =
            || Job::load(&bench.settings.state).unwrap().is_some_and(|job| job.files[0].head_len == 12);
        let read = || disk(&bench.settings.state).lock().unwrap().records() == 2;
        while !(job.is_finished() || read() && known()) {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Release);
        assert_eq!(job.join().unwrap().after.records, 2);
    });
    fs::write(bench.path("a.csv"), "k,v\nX,1\nY,2\nZ,3\n").unwrap();
    assert!(bench.error().contains("changed since it was first read"));
}

//! Several inputs on a worker: how far event time is, in which order they are sealed, and what is said of sources; and rows that
//! nobody takes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

mod support;

use std::fmt::Write;
use std::path::Path;
use std::process::exit;
use std::time::Duration;

use laminar_storage::Epoch;
use laminar_timely::timely::container::CapacityContainerBuilder;
use laminar_timely::timely::dataflow::StreamVec;
use laminar_timely::timely::dataflow::channels::pact::Pipeline;
use laminar_timely::timely::dataflow::operators::vec::Map;
use laminar_timely::timely::dataflow::operators::{Concat, Operator, ToStream};
use laminar_timely::{Cluster, Config, EXIT_FAILED, EpochInput, Error, FileSink, Job, run};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use support::{asked, line, process, process_within, said, write, written};

/// How a process ends that stops in the middle.
const STOPPED: i32 = 7;

type Timed = (String, i64, ());

/// Counts in windows what comes from two inputs.
fn two_inputs(job: &mut Job, dir: &Path) -> Result<[EpochInput<Timed>; 2], Error> {
    job.dataflow(|flow| {
        let (a, of_a) = flow.input::<Timed>("a")?;
        let (b, of_b) = flow.input::<Timed>("b")?;
        let windows = flow.tumbling(of_a.concat(of_b), "windows", 10, |count: &mut u64, ()| *count += 1)?;
        write(flow, windows.map(line), dir)?;
        Ok([a, b])
    })
}

fn one_of_two(dir: &Path) -> Result<(), Error> {
    let config = Config::new(dir.join("state"), "job");
    let dir = dir.to_owned();
    run(&Cluster::single(2), &config, move |job| {
        let [mut a, mut b] = two_inputs(job, &dir)?;
        if job.index() == 1 {
            // This worker has nothing of a. Its b comes a little later than that of the other.
            a.finish()?;
            (0..3).try_for_each(|_| b.seal().map(drop))?;
            b.send(("slow".to_owned(), 5, ()));
            b.set_watermark(100);
            b.seal()?;
            return b.finish();
        }
        for _ in 0..3 {
            for input in [&mut a, &mut b] {
                input.set_watermark(100);
                input.seal()?;
            }
        }
        for input in [&mut a, &mut b] {
            input.seal()?;
        }
        a.finish()?;
        b.finish()
    })
}

/// A worker that had finished one of them counted as one that had said something.
#[test]
fn a_worker_that_finished_one_of_two_inputs_holds_windows_open_with_the_other() {
    if let Some((dir, _)) = asked() {
        return one_of_two(&dir).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let test = "a_worker_that_finished_one_of_two_inputs_holds_windows_open_with_the_other";
    let output = process(test, dir.path(), 0);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(written(dir.path()), ["to 10: slow 1"]);
}

const EPOCHS: u64 = 40;

/// Something that looks random.
fn random(seed: u64, epoch: u64, place: u64, what: u64) -> u64 {
    let mut hash = (seed << 32 | epoch << 16 | place << 8 | what).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for _ in 0..3 {
        hash ^= hash >> 29;
        hash = hash.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    hash >> 8
}

/// What an input has and says in an epoch. Each is behind by as much as it likes, and often says nothing.
fn script(input: &mut EpochInput<Timed>, seed: u64, epoch: u64, place: u64) {
    let now = i64::try_from(5 * epoch).unwrap();
    for row in 0..random(seed, epoch, place, 0) % 3 {
        let back = i64::try_from(random(seed, epoch, place, 1 + row) % 60).unwrap();
        input.send((format!("k{}", random(seed, epoch, place, 10 + row) % 5), now - back, ()));
    }
    if random(seed, epoch, place, 20).is_multiple_of(3) {
        input.set_watermark(now - i64::try_from(random(seed, epoch, place, 21) % 40).unwrap());
    }
}

/// Goes on with the script of a seed, and stops after so many epochs, unless these are all.
fn scripted(dir: &Path, number: u64) -> Result<(), Error> {
    let (seed, until) = (number / 100, number % 100);
    let config = Config::new(dir.join("state"), "job");
    let dir = dir.to_owned();
    run(&Cluster::single(2), &config, move |job| {
        let mut inputs = two_inputs(job, &dir)?.map(Some);
        let mut sealed = Epoch::ZERO;
        for epoch in job.source_offset("script").unwrap_or(0)..until {
            for (place, input) in (2 * job.index() as u64..).zip(&mut inputs) {
                // One of the four comes to its end early.
                let ends = place == 1 + seed % 3 && epoch >= EPOCHS / 2;
                if let Some(input) = input.take_if(|_| ends) {
                    input.finish()?;
                }
                let Some(input) = input else { continue };
                script(input, seed, epoch, place);
                if place == 0 {
                    input.set_source_offset("script", epoch + 1);
                }
                sealed = input.seal()?;
            }
        }
        if until == EPOCHS {
            return inputs.into_iter().flatten().try_for_each(EpochInput::finish);
        }
        while job.index() > 0 || (until.is_multiple_of(2) && job.committed_epoch() < sealed) {
            job.idle(Duration::from_millis(100));
        }
        exit(STOPPED)
    })
}

/// An input that had said nothing since the restart did not hold windows open, whatever it had said before: a crash changed the
/// result.
#[test]
fn windows_close_the_same_over_restarts_whichever_input_said_what_when() {
    if let Some((dir, number)) = asked() {
        return scripted(&dir, number).unwrap();
    }
    let test = "windows_close_the_same_over_restarts_whichever_input_said_what_when";
    for seed in 0..6 {
        let [without, with] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let output = process(test, without.path(), 100 * seed + EPOCHS);
        assert!(output.status.success(), "{}", said(&output));
        let mut until = 0;
        loop {
            until = EPOCHS.min(until + 1 + random(seed, until, 9, 9) % 6);
            let output = process(test, with.path(), 100 * seed + until);
            let code = if until == EPOCHS { 0 } else { STOPPED };
            assert_eq!(output.status.code(), Some(code), "{}", said(&output));
            if until == EPOCHS {
                break;
            }
        }
        let lines = written(without.path());
        assert_eq!(written(with.path()), lines, "seed {seed}");
        assert!(lines.iter().any(|line| line.starts_with("to")), "{lines:?}");
        assert!(lines.iter().any(|line| line.starts_with("late")), "{lines:?}");
    }
}

fn out_of_step(dir: &Path) -> Result<(), Error> {
    let config = Config::new(dir.join("state"), "job").max_ahead_epochs(3);
    let dir = dir.to_owned();
    run(&Cluster::single(1), &config, move |job| {
        let [mut a, mut b] = two_inputs(job, &dir)?;
        // As far as that they may be out of step.
        for input in [&mut a, &mut b] {
            (0..3).try_for_each(|_| input.seal().map(drop))?;
        }
        for input in [&mut a, &mut b] {
            (0..4).try_for_each(|_| input.seal().map(drop))?;
        }
        a.finish()?;
        b.finish()
    })
}

/// It waited until the watchdog ended it, and told of devices and other processes.
#[test]
fn an_input_that_would_wait_for_another_one_of_its_worker_says_so() {
    if let Some((dir, _)) = asked() {
        return out_of_step(&dir).unwrap();
    }
    let test = "an_input_that_would_wait_for_another_one_of_its_worker_says_so";
    let dir = tempfile::tempdir().unwrap();
    let output = process(test, dir.path(), 0);
    assert_eq!(output.status.code(), Some(EXIT_FAILED));
    let told = said(&output);
    assert!(told.contains(r#"the input "b" of the same worker still in epoch 4"#), "{told}");
    assert!(told.contains("in turns"), "{told}");
}

/// Gives each row on in the next epoch.
fn later<'scope>(rows: StreamVec<'scope, u64, u64>) -> StreamVec<'scope, u64, u64> {
    rows.unary::<CapacityContainerBuilder<Vec<u64>>, _, _, _>(Pipeline, "later", |_, _| {
        |input, output| {
            input.for_each_stamp(|epoch, data| {
                let next = epoch.delayed(&(epoch.least().unwrap() + 1), 0);
                let mut session = output.session(&next);
                data.for_each(|rows| session.give_iterator(rows.drain(..)));
            });
        }
    })
}

fn delayed(dir: &Path) -> Result<(), Error> {
    let config = Config::new(dir.join("state"), "job");
    let dir = dir.to_owned();
    run(&Cluster::single(1), &config, move |job| {
        let mut input = job.dataflow(|flow| {
            let (input, rows) = flow.input::<u64>("rows")?;
            write(flow, later(rows).map(|n| n.to_string()), &dir)?;
            Ok(input)
        })?;
        for n in 0..3 {
            input.send(n);
            input.seal()?;
        }
        input.finish()
    })
}

/// They were gone without a word. A crash would lose them as well: what holds them back keeps no state.
#[test]
fn rows_of_an_epoch_behind_the_last_end_the_job_and_are_not_dropped() {
    if let Some((dir, _)) = asked() {
        return delayed(&dir).unwrap();
    }
    let test = "rows_of_an_epoch_behind_the_last_end_the_job_and_are_not_dropped";
    let dir = tempfile::tempdir().unwrap();
    let output = process(test, dir.path(), 0);
    assert_eq!(output.status.code(), Some(EXIT_FAILED));
    let told = said(&output);
    assert!(
        told.contains(r#"the job ends with epoch 3, and 1 rows for "out" belong to epoch 4 and are lost"#),
        "{told}"
    );
}

/// A table that is there from the beginning, beside what comes.
fn fixed(dir: &Path) -> Result<(), Error> {
    let config = Config::new(dir.join("state"), "job");
    let dir = dir.to_owned();
    run(&Cluster::single(1), &config, move |job| {
        let mut input = job.dataflow(|flow| {
            let (input, rows) = flow.input::<u64>("rows")?;
            let table = vec![100_u64, 200].to_stream(flow.scope());
            write(flow, rows.concat(table).map(|n| n.to_string()), &dir)?;
            Ok(input)
        })?;
        input.send(1);
        let sealed = input.seal()?;
        while job.committed_epoch() < sealed {
            job.idle(Duration::from_millis(10));
        }
        input.finish()
    })
}

/// They were not there while the job ran, and it could never end.
#[test]
fn rows_of_an_epoch_before_the_first_end_the_job_at_once() {
    if let Some((dir, _)) = asked() {
        return fixed(&dir).unwrap();
    }
    let test = "rows_of_an_epoch_before_the_first_end_the_job_at_once";
    let dir = tempfile::tempdir().unwrap();
    let output = process(test, dir.path(), 0);
    assert_eq!(output.status.code(), Some(EXIT_FAILED));
    let told = said(&output);
    assert!(told.contains(r#"rows of epoch 0 came to "out", which is in epoch 1"#), "{told}");
    assert!(written(dir.path()).is_empty());
}

/// Lines of a file go to two inputs by their kind: three epochs of one, then the same of the other.
fn one_source(dir: &Path) -> Result<(), Error> {
    let config = Config::new(dir.join("state"), "job");
    let dir = dir.to_owned();
    run(&Cluster::single(1), &config, move |job| {
        let mut inputs = two_inputs(job, &dir)?;
        for input in &mut inputs {
            for epoch in 1..=3 {
                input.set_source_offset("file", 10 * epoch);
                input.seal()?;
            }
        }
        inputs.into_iter().try_for_each(EpochInput::finish)
    })
}

/// Offsets were compared in the order in which they were said, and the second input's first one seemed to go back.
#[test]
fn a_source_of_two_inputs_out_of_step_does_not_go_back() {
    if let Some((dir, _)) = asked() {
        return one_source(&dir).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let output = process("a_source_of_two_inputs_out_of_step_does_not_go_back", dir.path(), 0);
    assert!(output.status.success(), "{}", said(&output));
}

/// The first worker reads up to an offset, then the other one; the number has both.
fn read_in_turn(dir: &Path, number: u64) -> Result<(), Error> {
    let config = Config::new(dir.join("state"), "job");
    run(&Cluster::single(2), &config, move |job| {
        let mut input = job.dataflow(|flow| {
            let (input, rows) = flow.input::<(u64, u64)>("rows")?;
            flow.fold(rows, "sums", |sum: &mut u64, n| *sum += n)?;
            Ok(input)
        })?;
        let (reads, offset) = (number % 2, number / 2);
        if job.index() as u64 == reads {
            input.send((1, 1));
            input.set_source_offset("numbers", offset);
            input.seal()?;
        }
        input.finish()
    })
}

/// The largest counted after a crash, so that what was read from an earlier one was missing.
#[test]
fn an_offset_that_goes_back_is_refused_whoever_read_the_source_before() {
    if let Some((dir, number)) = asked() {
        return read_in_turn(&dir, number).unwrap();
    }
    let test = "an_offset_that_goes_back_is_refused_whoever_read_the_source_before";
    let dir = tempfile::tempdir().unwrap();
    let read = |reads: u64, offset: u64| process(test, dir.path(), 2 * offset + reads);
    for (reads, offset) in [(0, 10), (1, 10), (1, 20)] {
        let output = read(reads, offset);
        assert!(output.status.success(), "{}", said(&output));
    }
    for reads in [0, 1] {
        let output = read(reads, 19);
        assert_eq!(output.status.code(), Some(EXIT_FAILED));
        let told = said(&output);
        assert!(told.contains(r#"the offset of the source "numbers" went back from 20 to 19"#), "{told}");
    }
}

/// Writes what the library warns of to standard error.
struct Told;

impl Visit for Told {
    fn record_debug(&mut self, _: &Field, value: &dyn std::fmt::Debug) {
        let mut line = String::new();
        writeln!(line, "warned: {value:?}").unwrap();
        eprint!("{line}");
    }
}

impl Subscriber for Told {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        event.record(&mut Self);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// A job whose sink has this name, and which is stopped with a row still in its state, or comes to its end.
fn named(dir: &Path, name: &str, ends: bool) -> Result<(), Error> {
    tracing::subscriber::set_global_default(Told).unwrap();
    let config = Config::new(dir.join("state"), "job");
    let (dir, name) = (dir.to_owned(), name.to_owned());
    run(&Cluster::single(1), &config, move |job| {
        let mut input = job.dataflow(|flow| {
            let (input, rows) = flow.input::<String>("rows")?;
            let format = |row: &String, file: &mut Vec<u8>| file.extend_from_slice(row.as_bytes());
            flow.sink(rows, &name, |part| FileSink::open(dir.join("out"), "job", part, format))?;
            Ok(input)
        })?;
        if ends {
            return input.finish();
        }
        input.send("row\n".to_owned());
        let sealed = input.seal()?;
        while job.committed_epoch() < sealed {
            input.idle(Duration::from_millis(10));
        }
        exit(STOPPED)
    })
}

/// They stayed in the state, and nobody was told.
#[test]
fn rows_that_wait_for_a_sink_which_is_gone_are_told_of() {
    if let Some((dir, number)) = asked() {
        return named(&dir, if number == 1 { "new" } else { "old" }, number > 0).unwrap();
    }
    let test = "rows_that_wait_for_a_sink_which_is_gone_are_told_of";
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(process(test, dir.path(), 0).status.code(), Some(STOPPED));
    let output = process(test, dir.path(), 1);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("rows for sinks that this program does not have"), "{}", said(&output));
    // They are there still.
    let output = process(test, dir.path(), 2);
    assert!(output.status.success() && !said(&output).contains("warned"), "{}", said(&output));
    assert_eq!(written(dir.path()), ["row"]);
}

/// Every input is there on every worker, also where it is never touched.
#[test]
fn a_job_of_inputs_that_say_nothing_ends() {
    if let Some((dir, _)) = asked() {
        let config = Config::new(dir.join("state"), "job");
        let job = move |job: &mut Job| two_inputs(job, &dir)?.into_iter().try_for_each(EpochInput::finish);
        return run(&Cluster::single(2), &config, job).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let test = "a_job_of_inputs_that_say_nothing_ends";
    assert_eq!(process_within(test, dir.path(), 0, Duration::from_secs(120)), Some(0));
}

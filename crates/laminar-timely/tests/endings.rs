//! How a job ends: with everything that was said before its inputs were finished, and when it cannot go on, whoever hears why.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]

mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use laminar_storage::Epoch;
use laminar_timely::timely::dataflow::operators::vec::Map;
use laminar_timely::{Cluster, Config, EXIT_FAILED, EpochSink, Error, run};

use support::{asked, command, line, process, process_within, said, write, written};

fn last_watermark(dir: &Path, sealed: bool) -> Result<(), Error> {
    let config = Config::new(dir.join("state"), "job");
    let dir = dir.to_owned();
    run(&Cluster::single(1), &config, move |job| {
        let mut input = job.dataflow(|flow| {
            let (input, rows) = flow.input::<(String, i64, ())>("rows")?;
            let windows = flow.tumbling(rows, "windows", 10, |count: &mut u64, ()| *count += 1)?;
            write(flow, windows.map(line), &dir)?;
            Ok(input)
        })?;
        input.send(("x".to_owned(), 5, ()));
        input.seal()?;
        input.set_watermark(i64::MAX);
        if sealed {
            input.seal()?;
        }
        input.finish()
    })
}

#[test]
fn a_watermark_that_was_said_before_the_end_counts() {
    if let Some((dir, sealed)) = asked() {
        return last_watermark(&dir, sealed > 0).unwrap();
    }
    let test = "a_watermark_that_was_said_before_the_end_counts";
    for sealed in [1, 0] {
        let dir = tempfile::tempdir().unwrap();
        let output = process(test, dir.path(), sealed);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(written(dir.path()), ["to 10: x 1"], "sealed before finish: {sealed}");
    }
}

fn nothing_rows(dir: &Path, sealed: bool) -> Result<(), Error> {
    let config = Config::new(dir.join("state"), "job");
    let dir = dir.to_owned();
    run(&Cluster::single(1), &config, move |job| {
        let mut input = job.dataflow(|flow| {
            let (input, rows) = flow.input::<()>("ticks")?;
            write(flow, rows.map(|()| "tick".to_owned()), &dir)?;
            Ok(input)
        })?;
        input.send(());
        if sealed {
            input.seal()?;
        }
        input.finish()
    })
}

#[test]
fn rows_without_bytes_are_sealed_by_finish() {
    if let Some((dir, sealed)) = asked() {
        return nothing_rows(&dir, sealed > 0).unwrap();
    }
    let test = "rows_without_bytes_are_sealed_by_finish";
    for sealed in [1, 0] {
        let dir = tempfile::tempdir().unwrap();
        let output = process(test, dir.path(), sealed);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(written(dir.path()), ["tick"], "sealed before finish: {sealed}");
    }
}

/// A sink that does not close.
struct Stuck(Epoch);

impl EpochSink<u64> for Stuck {
    fn committed(&self) -> Epoch {
        self.0
    }

    fn commit(&mut self, epochs: &[(Epoch, Vec<u64>)]) -> io::Result<()> {
        self.0 = epochs.last().unwrap().0;
        Ok(())
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_secs(600));
    }
}

fn stuck(dir: &Path, workers: u64) -> Result<(), Error> {
    let config = Config::new(dir.join("state"), "job").stall_timeout(Some(Duration::from_secs(1)));
    run(&Cluster::single(usize::try_from(workers).unwrap()), &config, move |job| {
        let mut input = job.dataflow(|flow| {
            let (input, rows) = flow.input::<u64>("rows")?;
            flow.sink(rows, "out", |_| Ok(Stuck(Epoch(0))))?;
            Ok(input)
        })?;
        input.send(1);
        input.seal()?;
        input.finish()
    })
}

#[test]
fn a_sink_that_does_not_close_is_noticed() {
    if let Some((dir, workers)) = asked() {
        return stuck(&dir, workers).unwrap();
    }
    let test = "a_sink_that_does_not_close_is_noticed";
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(process_within(test, dir.path(), 1, Duration::from_secs(15)), Some(EXIT_FAILED));
}

fn fails(dir: &Path, number: u64) -> Result<(), Error> {
    let config = Config::new(dir.join("state"), "job").stall_timeout(Some(Duration::from_secs(1)));
    let dir = dir.to_owned();
    run(&Cluster::single(1), &config, move |job| {
        let input = job.dataflow(|flow| {
            let (input, rows) = flow.input::<(u64, u64)>("a")?;
            flow.fold(rows, "sums", |sum: &mut u64, n| *sum += n)?;
            Ok(input)
        })?;
        // The program tells something, as programs do.
        let told = vec![b'x'; usize::try_from(number).unwrap()];
        let _ = std::io::stderr().write_all(&told);
        fs::write(dir.join("told"), "").unwrap();
        drop(input);
        Err(Error::program("the source failed", "look at it"))
    })
}

/// Nobody reads what it says: a log collector that hangs. The pipe holds 64 KiB.
#[test]
fn a_process_that_cannot_say_why_ends_all_the_same() {
    if let Some((dir, number)) = asked() {
        return fails(&dir, number).unwrap();
    }
    let test = "a_process_that_cannot_say_why_ends_all_the_same";
    for full in [0, (64 << 10) - 10] {
        let dir = tempfile::tempdir().unwrap();
        let mut child =
            command(test, dir.path(), full).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let started = Instant::now();
        let mut code = None;
        while code.is_none() && started.elapsed() < Duration::from_secs(15) {
            code = child.try_wait().unwrap().map(|status| status.code());
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill().unwrap();
        assert!(dir.path().join("told").exists());
        let mut said = String::new();
        let _ = child.stderr.take().unwrap().read_to_string(&mut said);
        child.wait().unwrap();
        assert_eq!(code, Some(Some(EXIT_FAILED)), "{full} bytes were said before");
    }
}

/// Nobody is there to hear why: the other end of standard error is closed.
#[test]
fn the_exit_code_is_the_same_when_nobody_hears_why() {
    if let Some((dir, number)) = asked() {
        // Wait until the other end is closed.
        std::thread::sleep(Duration::from_millis(300));
        return fails(&dir, number).unwrap();
    }
    let test = "the_exit_code_is_the_same_when_nobody_hears_why";
    let dir = tempfile::tempdir().unwrap();
    let mut child =
        command(test, dir.path(), 0).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(EXIT_FAILED), "{status:?}");
}

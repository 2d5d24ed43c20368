//! What a program relies on, also when it is started again in between: how far ahead it may be, when windows close and what is
//! late, and what is kept for a key.
//!
//! Each job runs in processes of its own: one that cannot go on, or is stopped, ends its process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

mod support;

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::process::exit;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use laminar_storage::Epoch;
use laminar_timely::timely::container::CapacityContainerBuilder;
use laminar_timely::timely::dataflow::StreamVec;
use laminar_timely::timely::dataflow::channels::pact::Pipeline;
use laminar_timely::timely::dataflow::operators::vec::Map;
use laminar_timely::timely::dataflow::operators::{CapabilitySet, Operator};
use laminar_timely::{Cluster, Config, EXIT_FAILED, EpochInput, EpochSink, Error, Flow, Job, JobReader, run};

use support::{asked, line, process, said, write, written};

/// How a process ends that stops in the middle.
const STOPPED: i32 = 7;

/// Goes on with a script of so many epochs, and stops after `until` of them unless that is the end: mostly when everything
/// is committed, and sometimes at once.
fn go_on<D: Clone + 'static>(
    job: &mut Job,
    mut input: EpochInput<D>,
    [until, all]: [u64; 2],
    mut send: impl FnMut(&mut EpochInput<D>, u64),
) -> Result<(), Error> {
    let begin = job.source_offset("script").unwrap_or(0);
    let mut sealed = Epoch::ZERO;
    for epoch in begin..until {
        send(&mut input, epoch);
        if job.index() == 0 {
            input.set_source_offset("script", epoch + 1);
        }
        sealed = input.seal()?;
    }
    if until == all {
        return input.finish();
    }
    while job.index() > 0 || (is_waited_for(until) && job.committed_epoch() < sealed) {
        input.idle(Duration::from_millis(100));
    }
    exit(STOPPED)
}

/// Is everything committed before a job stops after so many epochs?
fn is_waited_for(until: u64) -> bool {
    !until.is_multiple_of(3)
}

/// Runs the script of a test with a stop after every epoch; looks at what there is where that is certain.
fn with_stops(test: &str, dir: &Path, all: u64, mut look: impl FnMut(u64)) {
    for until in 1..=all {
        let output = process(test, dir, until);
        let code = if until == all { 0 } else { STOPPED };
        assert_eq!(output.status.code(), Some(code), "{until} of {all}: {}", said(&output));
        if is_waited_for(until) || until == all {
            look(until);
        }
    }
}

/// What a sink has, and how many commits it may still make.
#[derive(Debug, Default)]
struct Target {
    allowed: Mutex<u64>,
    more: Condvar,
    rows: AtomicU64,
}

impl Target {
    fn allow(&self, commits: u64) {
        *self.allowed.lock().unwrap() += commits;
        self.more.notify_all();
    }
}

struct Held(Arc<Target>, Epoch);

impl EpochSink<u64> for Held {
    fn committed(&self) -> Epoch {
        self.1
    }

    fn commit(&mut self, epochs: &[(Epoch, Vec<u64>)]) -> io::Result<()> {
        let wait = |allowed: &mut u64| *allowed == 0;
        *self.0.more.wait_while(self.0.allowed.lock().unwrap(), wait).unwrap() -= 1;
        for (epoch, rows) in epochs {
            for row in rows {
                // Every row once and in order.
                assert_eq!(self.0.rows.fetch_add(1, Ordering::SeqCst), *row);
            }
            self.1 = *epoch;
        }
        Ok(())
    }
}

const ROW_BYTES: u64 = 1000;
/// So many rows may be ahead, one in an epoch.
const ROWS_AHEAD: u64 = 5;
const ROWS: u64 = 40;
/// A seal that makes so many turns of the dataflow waits.
const TURNS: u64 = 50;

fn send(input: &mut EpochInput<u64>, row: u64, bytes: u64) {
    input.send_sized(row, bytes - size_of::<u64>() as u64);
}

/// Counts the turns of the dataflow, and allows the sink a commit when a seal has made many: by time nobody could tell whether it
/// waits.
fn count_turns<'scope>(
    flow: &Flow<'scope>,
    rows: StreamVec<'scope, u64, u64>,
    turns: &Rc<Cell<u64>>,
    target: &Arc<Target>,
) -> StreamVec<'scope, u64, u64> {
    let (scope, turns, target) = (flow.scope(), Rc::clone(turns), Arc::clone(target));
    rows.unary_frontier::<CapacityContainerBuilder<Vec<u64>>, _, _, _>(
        Pipeline,
        "turns",
        |capability, info| {
            drop(capability);
            let activator = scope.activator_for(Rc::clone(&info.address));
            let mut begun = false;
            move |(input, frontier), output| {
                input.for_each_stamp(|stamp, data| {
                    begun = true;
                    let capability = stamp.retain_least(0).unwrap();
                    data.for_each(|rows| output.session(&capability).give_iterator(rows.drain(..)));
                });
                // Not those before the first row, when workers wait for each other.
                turns.set(turns.get() + u64::from(begun));
                if begun && turns.get().is_multiple_of(TURNS) {
                    target.allow(1);
                }
                if !frontier.is_empty() {
                    activator.activate();
                }
            }
        },
    )
}

/// With rows of so many bytes, and limits that `ROWS_AHEAD` of them reach.
fn too_fast(config: &Config, bytes: u64) -> Result<(), Error> {
    let target = Arc::new(Target::default());
    run(&Cluster::single(1), config, move |job| {
        let turns = Rc::new(Cell::new(0));
        let mut input = job.dataflow(|flow| {
            let (input, rows) = flow.input::<u64>("rows")?;
            let rows = count_turns(flow, rows, &turns, &target);
            flow.sink(rows, "target", |_| Ok(Held(Arc::clone(&target), Epoch::ZERO)))?;
            Ok(input)
        })?;
        let mut held = Vec::new();
        for row in 0..ROWS {
            send(&mut input, row, bytes);
            turns.set(0);
            let sealed = input.seal()?;
            let ahead = row + 1 - target.rows.load(Ordering::SeqCst);
            assert!(ahead <= ROWS_AHEAD, "{ahead} rows are ahead after row {row}");
            let ahead = sealed.0 - job.committed_epoch().0;
            assert!(ahead <= ROWS_AHEAD, "{ahead} epochs are ahead after row {row}");
            if turns.get() >= TURNS {
                held.push(row);
            }
        }
        // The first one beyond waits, and none before.
        assert_eq!(held.first(), Some(&ROWS_AHEAD), "{held:?}");
        target.allow(ROWS);
        let last = input.seal()?;
        while job.committed_epoch() < last {
            input.idle(Duration::from_millis(100));
        }
        assert_eq!(target.rows.load(Ordering::SeqCst), ROWS);
        input.finish()
    })
}

#[test]
fn a_program_waits_where_more_bytes_would_be_ahead_than_may_be_and_then_goes_on() {
    if let Some((dir, _)) = asked() {
        let config = Config::new(dir.join("state"), "job").max_ahead_epochs(1000);
        return too_fast(&config.max_ahead_bytes(ROWS_AHEAD * ROW_BYTES), ROW_BYTES).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let test = "a_program_waits_where_more_bytes_would_be_ahead_than_may_be_and_then_goes_on";
    let output = process(test, dir.path(), 0);
    assert!(output.status.success(), "{}", said(&output));
}

/// The limit of bytes is far away: rows are as small as they can be.
#[test]
fn a_program_waits_where_more_epochs_would_be_ahead_than_may_be_and_then_goes_on() {
    if let Some((dir, _)) = asked() {
        let config = Config::new(dir.join("state"), "job").max_ahead_epochs(ROWS_AHEAD);
        return too_fast(&config, size_of::<u64>() as u64).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let test = "a_program_waits_where_more_epochs_would_be_ahead_than_may_be_and_then_goes_on";
    let output = process(test, dir.path(), 0);
    assert!(output.status.success(), "{}", said(&output));
}

/// This row alone is larger than what may be ahead at first.
const LARGE_ROW: u64 = 7;

fn one_large(dir: &Path, limit: u64) -> Result<(), Error> {
    let config = Config::new(dir.join("state"), "job").max_ahead_bytes(limit);
    let dir = dir.to_owned();
    run(&Cluster::single(1), &config, move |job| {
        let input = job.dataflow(|flow| {
            let (input, rows) = flow.input::<u64>("rows")?;
            write(flow, rows.map(|row| format!("{row:02}")), &dir)?;
            Ok(input)
        })?;
        go_on(job, input, [10, 10], |input, row| {
            send(input, row, if row == LARGE_ROW { 6 * ROW_BYTES } else { ROW_BYTES });
        })
    })
}

#[test]
fn an_epoch_larger_than_what_may_be_ahead_is_refused_and_nothing_is_lost() {
    if let Some((dir, limit)) = asked() {
        return one_large(&dir, limit).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let test = "an_epoch_larger_than_what_may_be_ahead_is_refused_and_nothing_is_lost";
    let all: Vec<_> = (0..10).map(|row| format!("{row:02}")).collect();
    let output = process(test, dir.path(), 5 * ROW_BYTES);
    let said_why = said(&output);
    assert_eq!(output.status.code(), Some(EXIT_FAILED), "{said_why}");
    let why = "the input \"rows\" has 6000 bytes in one epoch, max_ahead_bytes is 5000. Seal more often, or allow more bytes.";
    assert!(said_why.contains(why), "{said_why}");
    let before = written(dir.path());
    assert!(before.len() as u64 <= LARGE_ROW && all.starts_with(&before), "{before:?}");
    let output = process(test, dir.path(), 6 * ROW_BYTES);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(written(dir.path()), all);
}

/// Sends rows on without an epoch: under no capability at all, which timely allows.
fn without_an_epoch<'scope>(
    rows: StreamVec<'scope, u64, (String, i64, ())>,
) -> StreamVec<'scope, u64, (String, i64, ())> {
    rows.unary::<CapacityContainerBuilder<Vec<_>>, _, _, _>(Pipeline, "without an epoch", |capability, _| {
        drop(capability);
        move |input, output| {
            input.for_each_stamp(|_, data| {
                data.for_each(|rows| {
                    output.session(&CapabilitySet::new()).give_iterator(rows.drain(..));
                });
            });
        }
    })
}

/// What is given rows without an epoch, and what it is called.
const WITHOUT: [&str; 3] = ["counts", "windows", "out"];

/// A job in which the operator of this name is given a row without an epoch, or all rows with one.
fn lost_epochs(dir: &Path, without: Option<&str>) -> Result<(), Error> {
    let config = Config::new(dir.join("state"), "job");
    let (dir, without) = (dir.to_owned(), without.map(str::to_owned));
    run(&Cluster::single(1), &config, move |job| {
        let mut input = job.dataflow(|flow| {
            let (input, rows) = flow.input::<(String, i64, ())>("rows")?;
            let given = |name: &str| {
                let with = rows.clone();
                if without.as_deref() == Some(name) { without_an_epoch(with) } else { with }
            };
            let (counted, windowed, written) = (given("counts"), given("windows"), given("out"));
            let counted = counted.map(|(key, time, ())| (key, time));
            flow.fold(counted, "counts", |count: &mut u64, _| *count += 1)?;
            flow.tumbling(windowed, "windows", 10, |count: &mut u64, ()| *count += 1)?;
            write(flow, written.map(|(key, ..)| key), &dir)?;
            Ok(input)
        })?;
        input.send(("a".to_owned(), 1, ()));
        let mut sealed = input.seal()?;
        // Time enough for whoever takes the row all the same: all is committed, and another epoch after it.
        for _ in 0..2 {
            while job.committed_epoch() < sealed {
                input.idle(Duration::from_millis(100));
            }
            sealed = input.seal()?;
        }
        input.finish()
    })
}

/// No epoch would hold such rows: they would be in the state, or in the output, of any, or of none when the job ends.
#[test]
fn rows_that_come_without_an_epoch_end_the_process_whatever_they_come_to() {
    if let Some((dir, without)) = asked() {
        let without = WITHOUT.get(usize::try_from(without).unwrap());
        return lost_epochs(&dir, without.copied()).unwrap();
    }
    let test = "rows_that_come_without_an_epoch_end_the_process_whatever_they_come_to";
    for (number, name) in (0..).zip(WITHOUT) {
        let dir = tempfile::tempdir().unwrap();
        let output = process(test, dir.path(), number);
        let said_why = said(&output);
        assert_eq!(output.status.code(), Some(EXIT_FAILED), "{said_why}");
        let why = format!(
            "records came to the operator {name:?} without an epoch. Send records only under capabilities of the epoch they belong to."
        );
        assert!(said_why.contains(&why), "{said_why}");
        // Nothing of that row was durable anywhere: the same program without the mistake writes it once.
        let output = process(test, dir.path(), WITHOUT.len() as u64);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(written(dir.path()), ["a"], "{name}");
    }
}

/// In each epoch: rows of the first worker by key and time, the watermarks of both, and the lines that come of it.
type Windows = (&'static [(&'static str, i64)], [i64; 2], &'static [&'static str]);
const WINDOWS: [Windows; 8] = [
    (&[("a", 1), ("b", 4), ("a", 9)], [5, 5], &[]),
    // Earlier than the watermark, and its window is open.
    (&[("a", 12), ("b", 3)], [15, 8], &[]),
    (&[("b", 9)], [15, 20], &["to 10: a 2", "to 10: b 3"]),
    (&[("a", 2), ("c", 9), ("b", 13)], [20, 20], &["late 10: a", "late 10: c", "to 20: a 1", "to 20: b 1"]),
    (&[("a", 19), ("a", 19), ("a", 25), ("c", -3)], [20, 20], &["late 0: c", "late 20: a", "late 20: a"]),
    (&[("c", 29)], [30, 29], &[]),
    (&[("a", 28), ("b", 19)], [30, 30], &["late 20: b", "to 30: a 2", "to 30: c 1"]),
    // What is open at the end stays open.
    (&[("d", 41), ("b", 29)], [30, 30], &["late 30: b"]),
];

fn windows(dir: &Path, until: u64) -> Result<(), Error> {
    let config = Config::new(dir.join("state"), "job");
    let dir = dir.to_owned();
    run(&Cluster::single(2), &config, move |job| {
        let input = job.dataflow(|flow| {
            let (input, rows) = flow.input::<(String, i64, ())>("rows")?;
            let windows = flow.tumbling(rows, "windows", 10, |count: &mut u64, ()| *count += 1)?;
            write(flow, windows.map(line), &dir)?;
            Ok(input)
        })?;
        let worker = job.index();
        go_on(job, input, [until, WINDOWS.len() as u64], |input, epoch| {
            let (rows, watermarks, _) = WINDOWS[usize::try_from(epoch).unwrap()];
            for (key, time) in rows.iter().filter(|_| worker == 0) {
                input.send(((*key).to_owned(), *time, ()));
            }
            input.set_watermark(watermarks[worker]);
        })
    })
}

#[test]
fn windows_close_at_the_watermark_and_what_is_late_comes_out_once_over_restarts() {
    if let Some((dir, until)) = asked() {
        return windows(&dir, until).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let test = "windows_close_at_the_watermark_and_what_is_late_comes_out_once_over_restarts";
    with_stops(test, dir.path(), WINDOWS.len() as u64, |until| {
        let epochs = WINDOWS.iter().take(usize::try_from(until).unwrap());
        let mut lines: Vec<_> = epochs.flat_map(|(_, _, lines)| *lines).collect();
        lines.sort();
        assert_eq!(
            written(dir.path()),
            lines.into_iter().copied().collect::<Vec<_>>(),
            "after {until} epochs"
        );
    });
}

/// What a worker sends of a key: which one it is, how many values the key has had of it since it was forgotten, and whether it
/// is to be forgotten now.
type Sent = (u64, u64, bool);
const EPOCHS: u64 = 6;
/// Keys that both workers send.
const SHARED: u64 = 3;
/// The first worker's own; the other's is the next.
const OWN: u64 = 10;
const FLEETING: u64 = 20;

/// The values of a worker in an epoch.
fn values(worker: u64, epoch: u64) -> Vec<(u64, Sent)> {
    let numbers = (4 * epoch..4 * epoch + 4).flat_map(|n| (0..SHARED).map(move |key| (key, n, false)));
    // Every second epoch leaves the key forgotten.
    let own: &[_] = if epoch.is_multiple_of(2) {
        &[(0, false), (1, false), (2, true), (0, false)]
    } else {
        &[(1, false), (2, true)]
    };
    let own = own.iter().map(|(n, forget)| (OWN + worker, *n, *forget));
    let fleeting = [(FLEETING + worker, 0, false), (FLEETING + worker, 1, true)];
    numbers.chain(own).chain(fleeting).map(|(key, n, forget)| (key, (worker, n, forget))).collect()
}

/// What a value makes of what is kept for its key, of each worker, and says.
fn map(key: &u64, (worker, n, forget): Sent, kept: &mut Option<(u64, u64)>, out: &mut Vec<String>) {
    let mut counts = kept.unwrap_or_default();
    let count = if worker == 0 { &mut counts.0 } else { &mut counts.1 };
    out.push(format!("{key} of {worker}: {n} after {count}"));
    *count += 1;
    *kept = Some(counts).filter(|_| !forget);
}

fn kept(dir: &Path, until: u64) -> Result<(), Error> {
    let config = Config::new(dir.join("state"), "job");
    let dir = dir.to_owned();
    run(&Cluster::single(2), &config, move |job| {
        let input = job.dataflow(|flow| {
            let (input, rows) = flow.input::<(u64, Sent)>("rows")?;
            let lines = flow.map_with_state(rows, "kept", map)?;
            write(flow, lines, &dir)?;
            Ok(input)
        })?;
        let worker = job.index() as u64;
        go_on(job, input, [until, EPOCHS], |input, epoch| {
            values(worker, epoch).into_iter().for_each(|row| input.send(row));
        })
    })
}

#[test]
fn what_is_kept_for_a_key_is_changed_in_order_and_forgotten_over_restarts() {
    if let Some((dir, until)) = asked() {
        return kept(&dir, until).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let test = "what_is_kept_for_a_key_is_changed_in_order_and_forgotten_over_restarts";
    with_stops(test, dir.path(), EPOCHS, |until| {
        let sent = (0..until).flat_map(|epoch| [values(0, epoch), values(1, epoch)].concat());
        let mut lines: Vec<_> =
            sent.map(|(key, (worker, n, _))| format!("{key} of {worker}: {n} after {n}")).collect();
        lines.sort();
        assert_eq!(written(dir.path()), lines, "after {until} epochs");
        let state = JobReader::open(dir.path().join("state")).unwrap().state("kept");
        let keys: Vec<_> = state.keys().map(|key| key[0]).collect();
        let own: &[u8] = if until.is_multiple_of(2) { &[] } else { &[10, 11] };
        assert_eq!(keys, [&[0, 1, 2][..], own].concat(), "after {until} epochs");
    });
}

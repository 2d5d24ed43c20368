//! `laminar demo`: shows, on this machine and in half a minute, that killing a job changes nothing.
//!
//! Writes an event file, runs the job in a child process, kills it with SIGKILL several times at
//! random moments (once while it is starting), lets it continue, and compares the final export
//! with a truth computed by other code.

mod child;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount};
use serde_json::Value;

use crate::args::{DemoArgs, ExportFormat};
use crate::error::{CliError, Result};
use crate::generate::events::Events;
use crate::generate::random::Random;
use crate::generate::truth;
use crate::summary::table;
use child::{Job, Kill, Life};

/// Prints a line at once, with the time since the start.
struct Teller {
    start: Instant,
}

impl Teller {
    fn say(&self, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{:>6.2} s  {text}", self.start.elapsed().as_secs_f64())
            .and_then(|()| out.flush())
            .map_err(|e| CliError::stdout(&e))
    }
}

/// What the lives of the job had in common.
#[derive(Default)]
struct Story {
    kills: u32,
    recoveries_ms: Vec<f64>,
    replayed: u64,
}

impl Story {
    /// How often it was killed, and how often it was to be.
    fn kills_of(&self, planned: u32) -> String {
        if self.kills == planned {
            format!("{} times", self.kills)
        } else {
            format!("{} times; {planned} were asked for", self.kills)
        }
    }

    fn recovery_time(&self) -> String {
        let mut recoveries = self.recoveries_ms.clone();
        recoveries.sort_by(f64::total_cmp);
        match (recoveries.first(), recoveries.get(recoveries.len() / 2), recoveries.last()) {
            (Some(least), Some(middle), Some(most)) => {
                let number = recoveries.len();
                format!("{least:.1} / {middle:.1} / {most:.1} ms (least / median / most of {number})")
            }
            _ => "none".to_owned(),
        }
    }
}

/// Runs the demo.
pub fn run(args: &DemoArgs) -> Result<()> {
    let teller = Teller { start: Instant::now() };
    let temporary = tempfile::Builder::new()
        .prefix("laminar-demo-")
        .tempdir()
        .map_err(|e| CliError::io("create a directory in", &std::env::temp_dir(), &e))?;
    let dir = match &args.keep {
        Some(dir) => {
            std::fs::create_dir(dir).map_err(|e| CliError::io("create the new directory", dir, &e))?;
            dir.clone()
        }
        None => temporary.path().to_owned(),
    };
    let events = dir.join("events.ndjson");
    let state = dir.join("state");
    let plan = planned_events(args);
    teller.say(&format!(
        "writing {} events of up to {} users to {}",
        HumanCount(plan.count),
        HumanCount(plan.keys),
        events.display()
    ))?;
    let bytes = plan.write(&events)?;
    teller.say(&format!(
        "{} written; starting `laminar run` on it, {} cores",
        HumanBytes(bytes),
        args.cores
    ))?;
    let job = Job { events: &events, state: &state, cores: args.cores };
    let mut random = Random::new(args.seed ^ 0x6b69_6c6c);
    let (story, summary) = live_through(args, &job, &teller, &mut random)?;

    teller.say("computing the truth from the file: one thread, one map, other code")?;
    let truth = truth::compute(&events, plan.format)?;
    let export = dir.join("result.ndjson");
    export_state(&state, &export)?;
    truth::compare(&truth, &export)?;
    let is_identical = truth::is_identical(&truth, &export)?;
    let agreement = if is_identical {
        "identical to the truth, byte for byte"
    } else {
        "the truth's in every value, but not in the same bytes"
    };
    teller.say(&format!(
        "the result is EXACT: all {} keys agree in every value; {agreement}",
        HumanCount(truth.len() as u64)
    ))?;

    let rows = rows(args, bytes, &story, &summary, agreement);
    let mut text = format!("\n{}\n", table(&rows));
    if args.keep.is_some() {
        let show = |path: &Path| path.display().to_string();
        text.push_str(&format!(
            "\nLook around:\n  laminar top 5 --by sum:amount --state {state}\n  laminar get user-0000000 --state {state}\n  \
             laminar run {}   # finished: says so\n",
            job.arguments()[1..].iter().filter(|a| *a != "--json-stream").cloned().collect::<Vec<_>>().join(" "),
            state = show(&state),
        ));
    } else {
        text.push_str("\nAgain, and keep everything to look at:  laminar demo --keep ./laminar-demo\nYour own data:  laminar run --help\n");
    }
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| CliError::stdout(&e))
}

/// What a killed life had come to.
fn told_kill(number: u32, life: &Life) -> String {
    let ms = life.took.as_secs_f64() * 1e3;
    if life.opened.is_none() {
        // It told of no epoch; that is not epoch 0.
        return format!("  SIGKILL no. {number} after {ms:.0} ms, before it had opened its state");
    }
    format!(
        "  SIGKILL no. {number} after {ms:.0} ms, at about {} records, epoch {} durable",
        HumanCount(life.records),
        life.durable
    )
}

fn planned_events(args: &DemoArgs) -> Events {
    Events {
        count: args.events,
        // As many users as make most of them return.
        keys: args.keys.map_or((args.events / 8).max(100), Into::into),
        seed: args.seed,
        zipf: args.zipf,
        format: ExportFormat::Ndjson,
    }
}

/// Starts the job again and again until it ends by itself.
fn live_through(
    args: &DemoArgs,
    job: &Job<'_>,
    teller: &Teller,
    random: &mut Random,
) -> Result<(Story, Value)> {
    let mut story = Story::default();
    for number in 0..=args.kills {
        let kill = plan_kill(number, args.kills, random);
        let life = job.live(kill)?;
        tell_start(&life, teller, &mut story)?;
        match life.summary {
            Some(summary) => {
                if number < args.kills {
                    teller
                        .say("  it was finished before it could be killed; more --events give more time")?;
                }
                teller.say(&format!("  finished after {:.2} s", life.took.as_secs_f64()))?;
                return Ok((story, summary));
            }
            None => {
                story.kills += 1;
                teller.say(&told_kill(story.kills, &life))?;
            }
        }
    }
    Err(CliError::failure("the job ended without a summary although nobody killed it"))
}

/// Kills are spread over the input, one of them early in a start, while the store recovers, and one
/// after a checkpoint: lives that are all cut short before their first one would never have any.
fn plan_kill(number: u32, kills: u32, random: &mut Random) -> Kill {
    if number == kills {
        return Kill::Never;
    }
    if number == 1 && kills > 2 {
        return Kill::AfterStart(Duration::from_micros(random.below(40_000)));
    }
    let fraction = (f64::from(number) + random.unit()) / f64::from(kills.max(1)) * 0.9;
    let wait = Duration::from_micros(random.below(30_000));
    Kill::AtFraction { fraction, checkpoint: number == 2, wait }
}

fn tell_start(life: &Life, teller: &Teller, story: &mut Story) -> Result<()> {
    let Some(opened) = &life.opened else {
        return teller.say("started");
    };
    let number = |name: &str| opened.get(name).and_then(Value::as_u64).unwrap_or(0);
    if number("epoch") == 0 {
        return teller.say("started with an empty state");
    }
    let ms = opened.get("recovery_ms").and_then(Value::as_f64).unwrap_or(0.0);
    story.recoveries_ms.push(ms);
    story.replayed += number("replayed");
    let base = opened.get("checkpoint").and_then(Value::as_u64);
    let base = base.map_or_else(|| "no checkpoint".to_owned(), |id| format!("checkpoint {id}"));
    teller.say(&format!(
        "started again: recovered epoch {} in {ms:.1} ms ({base} + {} log records), continues after {} records",
        number("epoch"),
        HumanCount(number("replayed")),
        HumanCount(number("records"))
    ))
}

/// Exports in another process, as anybody would, from what is on disk.
fn export_state(state: &Path, export: &PathBuf) -> Result<()> {
    let program =
        std::env::current_exe().map_err(|e| CliError::failure(format!("cannot find this program: {e}")))?;
    let output = std::process::Command::new(&program)
        .args(["export", "--state"])
        .arg(state)
        .arg("--output")
        .arg(export)
        .output()
        .map_err(|e| CliError::io("start", &program, &e))?;
    if output.status.success() {
        return Ok(());
    }
    Err(CliError::failure(format!("the export failed: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

fn rows(
    args: &DemoArgs,
    bytes: u64,
    story: &Story,
    summary: &Value,
    agreement: &str,
) -> Vec<(&'static str, String)> {
    let at = |path: &str| summary.pointer(path).and_then(Value::as_f64);
    let count = |path: &str| summary.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let mut rows = vec![
        ("events", format!("{} in {}", HumanCount(args.events), HumanBytes(bytes))),
        ("keys", HumanCount(count("/keys")).to_string()),
        ("killed (SIGKILL)", story.kills_of(args.kills)),
        ("recovery time", story.recovery_time()),
        ("log records replayed", HumanCount(story.replayed).to_string()),
    ];
    // The last life may have had nothing left to read.
    if count("/run/records") > 0 {
        let rate = at("/run/events_per_second").unwrap_or(0.0) / 1e6;
        rows.push(("rate, last life", format!("{rate:.2} M events/s")));
    }
    if count("/put_ns/samples") > 0 {
        rows.push((
            "update latency",
            format!(
                "p50 {} ns, p99 {} ns, p99.9 {} ns, max {:.1} us (1 in 64 timed)",
                count("/put_ns/p50"),
                count("/put_ns/p99"),
                count("/put_ns/p999"),
                count("/put_ns/max") as f64 / 1e3
            ),
        ));
    }
    if let Some(each) = at("/wal_bytes_per_record") {
        rows.push(("log bytes per put", format!("{each:.1}")));
    }
    rows.push((
        "checkpoints, last life",
        format!(
            "{}; the last: {} in {:.1} ms",
            count("/checkpoints"),
            HumanBytes(count("/last_checkpoint/bytes")),
            at("/last_checkpoint/ms").unwrap_or(0.0)
        ),
    ));
    rows.push(("result", agreement.to_owned()));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It said "epoch 0 durable" of a life that had not looked at its state yet, after one of epoch 4.
    #[test]
    fn a_life_that_did_not_open_its_state_is_not_said_to_be_at_epoch_0() {
        let mut life = Life { opened: None, records: 0, durable: 0, summary: None, took: Duration::ZERO };
        let told = told_kill(2, &life);
        assert!(told.contains("before it had opened its state") && !told.contains("epoch"), "{told}");
        life.opened = Some(Value::Null);
        life.durable = 4;
        assert!(told_kill(3, &life).contains("epoch 4 durable"));
    }
}

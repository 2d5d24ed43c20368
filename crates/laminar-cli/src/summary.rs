//! What a run ends with: a table for people, one JSON object for programs.

use std::path::Path;

use comfy_table::{Table, presets};
use indicatif::{HumanBytes, HumanCount};
use serde_json::{Value, json};

use crate::pipeline::{Outcome, file_at};
use crate::progress::millis;

/// Records per second of reading; 0 when nothing was read.
fn rate(outcome: &Outcome) -> f64 {
    let seconds = outcome.last.elapsed.as_secs_f64();
    if seconds > 0.0 { outcome.last.records as f64 / seconds } else { 0.0 }
}

/// Log bytes per record of this run.
fn bytes_per_record(outcome: &Outcome) -> Option<f64> {
    (outcome.last.records > 0).then(|| outcome.last.stats.wal_bytes as f64 / outcome.last.records as f64)
}

/// The summary as JSON; `event` is there so that the stream of lines has one shape.
pub fn json(outcome: &Outcome, state: &Path) -> Value {
    let put = &outcome.put_ns;
    #[cfg(feature = "object-store")]
    let backups = outcome.backed_up.as_ref().map(crate::backup::running::BackedUp::json);
    #[cfg(not(feature = "object-store"))]
    let backups = Value::Null;
    json!({
        "event": "summary",
        "finished": outcome.finished,
        "error": outcome.stopped_by.as_ref().map(ToString::to_string),
        "state": state.display().to_string(),
        "keys": outcome.keys,
        "epoch": outcome.epoch,
        "total": {
            "records": outcome.after.records,
            "skipped": outcome.after.skipped,
            "lines": outcome.after.lines,
            "bytes": outcome.last.bytes,
            "files": outcome.job.files.len(),
        },
        "run": {
            "records": outcome.last.records,
            "skipped": outcome.last.skipped,
            "seconds": millis(outcome.last.elapsed) / 1e3,
            "events_per_second": rate(outcome).round(),
            "closing_ms": millis(outcome.closing),
            "resumed_at_record": outcome.before.records,
        },
        "recovery": {
            "epoch": outcome.report.epoch,
            "checkpoint": outcome.report.checkpoint,
            "checkpoints_skipped": outcome.report.checkpoints_skipped,
            "replayed": outcome.report.replayed,
            "ms": millis(outcome.report.took),
        },
        "put_ns": {
            "p50": put.value_at_quantile(0.5),
            "p99": put.value_at_quantile(0.99),
            "p999": put.value_at_quantile(0.999),
            "max": put.max(),
            "samples": put.len(),
        },
        "wal_bytes": outcome.last.stats.wal_bytes,
        "wal_bytes_per_record": bytes_per_record(outcome),
        "checkpoints": outcome.last.stats.checkpoints,
        "last_checkpoint": {
            "id": outcome.checkpoint.id,
            "epoch": outcome.checkpoint.epoch,
            "bytes": outcome.checkpoint.bytes,
            "ms": millis(outcome.checkpoint.took),
        },
        "estimated_recovery_seconds": outcome.last.stats.estimated_recovery.as_secs_f64(),
        "backups": backups,
        "first_skipped": outcome.first_bad,
    })
}

/// A table with two columns and no noise.
pub fn table(rows: &[(&str, String)]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    for (name, value) in rows {
        table.add_row([*name, value.as_str()]);
    }
    table
}

fn checkpoint(outcome: &Outcome) -> String {
    let checkpoint = &outcome.checkpoint;
    if outcome.last.stats.checkpoints == 0 {
        return "none in this run".to_owned();
    }
    format!(
        "{} of this run; last: {} in {:.1} ms",
        outcome.last.stats.checkpoints,
        HumanBytes(checkpoint.bytes),
        millis(checkpoint.took)
    )
}

/// The summary as text.
pub fn text(outcome: &Outcome, state: &Path) -> String {
    let last = &outcome.last;
    let put = &outcome.put_ns;
    let mut rows = vec![
        (
            "records",
            format!("{} ({} in this run)", HumanCount(outcome.after.records), HumanCount(last.records)),
        ),
        ("keys", HumanCount(outcome.keys).to_string()),
        ("input", format!("{} in {} lines", HumanBytes(last.bytes), HumanCount(outcome.after.lines))),
    ];
    if outcome.after.skipped > 0 {
        rows.push(("skipped", HumanCount(outcome.after.skipped).to_string()));
    }
    if last.records > 0 {
        rows.push((
            "rate",
            format!("{:.2} M events/s over {:.2} s", rate(outcome) / 1e6, last.elapsed.as_secs_f64()),
        ));
        if !put.is_empty() {
            rows.push((
                "update",
                format!(
                    "p50 {} ns, p99 {} ns, p99.9 {} ns (1 in 64 timed)",
                    put.value_at_quantile(0.5),
                    put.value_at_quantile(0.99),
                    put.value_at_quantile(0.999)
                ),
            ));
        }
        let each = bytes_per_record(outcome).unwrap_or(0.0);
        rows.push(("log", format!("{}, {each:.1} bytes per record", HumanBytes(last.stats.wal_bytes))));
    }
    if outcome.report.epoch > 0 {
        rows.push((
            "recovery",
            format!("epoch {} in {:.1} ms", outcome.report.epoch, millis(outcome.report.took)),
        ));
    }
    rows.push(("checkpoint", checkpoint(outcome)));
    #[cfg(feature = "object-store")]
    if let Some(backed_up) = &outcome.backed_up {
        rows.push(("backup", backed_up.text()));
    }
    rows.push(("next recovery", format!("about {:.1} ms", millis(last.stats.estimated_recovery))));
    let durable = if outcome.epoch == 0 {
        format!("nothing yet, in {}", state.display())
    } else {
        format!("epoch {} in {}", outcome.epoch, state.display())
    };
    rows.push(("durable", durable));
    let mut text = table(&rows).to_string();
    if let Some(bad) = &outcome.first_bad {
        text.push_str(&format!("\nFirst record skipped: {bad}"));
    }
    if !outcome.finished && outcome.stopped_by.is_none() {
        let place = outcome.after.position.map_or_else(String::new, |position| {
            format!(" at line {} of {}", position.line, file_at(&outcome.job, position).display())
        });
        text.push_str(&format!(
            "\nStopped{place}; everything before it is durable. Run the same command again to continue."
        ));
    } else if outcome.finished {
        text.push_str(&format!(
            "\nNext: laminar top --state {0}    laminar export --state {0}",
            state.display()
        ));
    }
    text
}

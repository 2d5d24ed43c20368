//! What is seen while a job runs: a bar for people, lines of JSON for programs, or nothing.

use std::io::Write;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use serde_json::json;

use crate::engine::Report;
use crate::pipeline::committed::Committed;
use crate::pipeline::{Observer, Snapshot};

/// Milliseconds with a fraction.
pub fn millis(duration: Duration) -> f64 {
    // Three places are enough for anybody, and keep the output readable.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// What must be seen even where nothing else is shown.
fn warn(report: &Report) {
    if let Some(warning) = report.warning() {
        let _ = writeln!(std::io::stderr(), "{warning}");
    }
}

/// What is told on standard error, so that standard output stays for the results.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "laminar: {text}");
}

/// Shows nothing but warnings and notes.
pub struct Silent;

impl Observer for Silent {
    fn opened(&mut self, report: &Report, _: &Committed) {
        warn(report);
    }

    fn note(&mut self, text: &str) {
        note(text);
    }

    fn tick(&mut self, _: &Snapshot) {}
    fn closing(&mut self) {}
}

/// A bar with live figures on standard error; hides itself when that is not a terminal.
pub struct Bar {
    bar: ProgressBar,
    last: (Duration, u64),
    rate: f64,
}

impl Bar {
    /// A bar that has not started.
    pub fn new() -> Self {
        Self { bar: ProgressBar::no_length(), last: (Duration::ZERO, 0), rate: 0.0 }
    }

    fn style(&self, known_length: bool) {
        let template = if known_length {
            "{bar:28.cyan/blue} {percent:>3}%  {msg}  ETA {eta}"
        } else {
            "{spinner}  {msg}"
        };
        // The templates are constants; a mistake in one would only cost its looks.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar.set_style(style);
    }
}

impl Observer for Bar {
    fn opened(&mut self, report: &Report, resumed: &Committed) {
        if report.epoch > 0 {
            let took = HumanDuration(report.took);
            let took = if report.took.as_secs() > 0 {
                took.to_string()
            } else {
                format!("{:.0} ms", millis(report.took))
            };
            self.bar.println(format!(
                "Recovered epoch {} in {took}: {} keys, {} log records replayed; continuing after {} records.",
                report.epoch,
                HumanCount(report.keys),
                HumanCount(report.replayed),
                HumanCount(resumed.records)
            ));
        }
        for line in report.cuts.iter().cloned().chain(report.warning()) {
            self.bar.println(line);
        }
    }

    fn note(&mut self, text: &str) {
        self.bar.suspend(|| note(text));
    }

    fn tick(&mut self, s: &Snapshot) {
        if self.bar.length() != s.bytes_total || s.records == 0 {
            // The style first: a change of length draws the bar.
            self.style(s.bytes_total.is_some());
            match s.bytes_total {
                Some(total) => self.bar.set_length(total),
                None => self.bar.unset_length(),
            }
            self.bar.reset_eta();
        }
        let (since, before) = self.last;
        let step = s.elapsed.saturating_sub(since).as_secs_f64();
        if step > 0.2 {
            self.rate = (s.records.saturating_sub(before)) as f64 / step;
            self.last = (s.elapsed, s.records);
        }
        self.bar.set_position(s.bytes);
        let skipped =
            if s.skipped > 0 { format!("  {} skipped", HumanCount(s.skipped)) } else { String::new() };
        self.bar.set_message(format!(
            "{}  {:.2} M events/s  lag {} epochs / {:.0} ms  {} checkpoints{skipped}",
            HumanBytes(s.bytes),
            self.rate / 1e6,
            s.lag.0,
            millis(s.lag.1),
            s.stats.checkpoints
        ));
    }

    fn closing(&mut self) {
        self.bar.set_message(
            "making everything durable, writing a checkpoint (Ctrl-C: stop without it, also safe)",
        );
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// One JSON object per line on standard output.
pub struct JsonStream;

impl JsonStream {
    /// Writes one line; nobody reading is not a reason to stop the job.
    fn line(value: &serde_json::Value) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{value}").and_then(|()| out.flush());
    }
}

impl Observer for JsonStream {
    fn opened(&mut self, report: &Report, resumed: &Committed) {
        warn(report);
        Self::line(&json!({
            "event": "opened",
            "epoch": report.epoch,
            "checkpoint": report.checkpoint,
            "checkpoints_skipped": report.checkpoints_skipped,
            "replayed": report.replayed,
            "keys": report.keys,
            "recovery_ms": millis(report.took),
            "cuts": report.cuts,
            "records": resumed.records,
        }));
    }

    fn note(&mut self, text: &str) {
        note(text);
    }

    fn tick(&mut self, s: &Snapshot) {
        #[cfg(feature = "object-store")]
        let backup_behind = serde_json::Value::from(s.stats.backup_checkpoints_behind);
        #[cfg(not(feature = "object-store"))]
        let backup_behind = serde_json::Value::Null;
        Self::line(&json!({
            "event": "progress",
            "records": s.records,
            "skipped": s.skipped,
            "bytes": s.bytes,
            "bytes_total": s.bytes_total,
            "durable_epoch": s.durable,
            "lag_epochs": s.lag.0,
            "lag_ms": millis(s.lag.1),
            "checkpoints": s.stats.checkpoints,
            "estimated_recovery_seconds": s.stats.estimated_recovery.as_secs_f64(),
            "backup_checkpoints_behind": backup_behind,
        }));
    }

    fn closing(&mut self) {}
}

//! One life of the job: a child process running `laminar run`, watched and perhaps killed.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::{CliError, Result};

/// When to kill.
#[derive(Clone, Copy, Debug)]
pub enum Kill {
    /// So long after the process was started, wherever it is then.
    AfterStart(Duration),
    /// So long after this fraction of the input was read, and, if asked for, a checkpoint was made;
    /// but not so late that the job could end before.
    AtFraction { fraction: f64, checkpoint: bool, wait: Duration },
    /// Not at all.
    Never,
}

/// No kill waits for a checkpoint once this fraction of the input was read.
const LATEST: f64 = 0.85;

/// How it ended.
#[derive(Debug)]
pub struct Life {
    /// The line about recovery, if it came so far.
    pub opened: Option<Value>,
    /// Records handed to the cores when the last progress line was written, earlier lives included.
    pub records: u64,
    /// The last durable epoch it told of.
    pub durable: u64,
    /// The summary; none if it was killed.
    pub summary: Option<Value>,
    /// From start to end of the process.
    pub took: Duration,
}

/// What a job is started with.
pub struct Job<'a> {
    pub events: &'a Path,
    pub state: &'a Path,
    pub cores: u16,
}

impl Job<'_> {
    /// The command, as a user would give it.
    pub fn arguments(&self) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        [
            "run",
            &text(self.events),
            "--key",
            "user.id",
            "--agg",
            "count,sum:amount,min:amount,max:amount,last:page",
            "--cores",
            &self.cores.to_string(),
            "--state",
            &text(self.state),
            "--checkpoint-interval",
            "100ms",
            "--json-stream",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// Starts the job and sees it to its end, natural or not.
    pub fn live(&self, kill: Kill) -> Result<Life> {
        let program = std::env::current_exe()
            .map_err(|e| CliError::failure(format!("cannot find this program: {e}")))?;
        let start = Instant::now();
        let mut child = Command::new(&program)
            .args(self.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| CliError::io("start", &program, &e))?;
        let stdout = child.stdout.take();
        let mut life = Life { opened: None, records: 0, durable: 0, summary: None, took: Duration::ZERO };
        let mut ended = false;
        if let Kill::AfterStart(wait) = kill {
            thread::sleep(wait);
            end(&mut child)?;
            ended = true;
        }
        if let Some(stdout) = stdout {
            ended |= watch(&mut child, stdout, kill, &mut life)?;
        }
        let status =
            child.wait().map_err(|e| CliError::failure(format!("could not wait for the job: {e}")))?;
        life.took = start.elapsed();
        let killed = ended && status.code().is_none() && life.summary.is_none();
        if !status.success() && !killed {
            let mut message = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                let _ = stderr.read_to_string(&mut message);
            }
            return Err(CliError::failure(format!("the job failed with {status}: {}", message.trim())));
        }
        Ok(life)
    }
}

fn end(child: &mut Child) -> Result<()> {
    // SIGKILL: the process gets no chance to do anything.
    child.kill().map_err(|e| CliError::failure(format!("could not kill the job: {e}")))
}

/// Reads the lines of the job until it ends; whether it was killed here.
fn watch(child: &mut Child, stdout: ChildStdout, kill: Kill, life: &mut Life) -> Result<bool> {
    let mut resumed = 0;
    let mut killed = false;
    for line in BufReader::new(stdout).lines() {
        // A line cut off by the kill is not JSON, and the last one.
        let Ok(line) = line else { break };
        let Ok(value) = serde_json::from_str::<Value>(&line) else { break };
        let number = |name: &str| value.get(name).and_then(Value::as_u64).unwrap_or(0);
        match value.get("event").and_then(Value::as_str) {
            Some("opened") => {
                resumed = number("records");
                life.records = resumed;
                life.durable = number("epoch");
                life.opened = Some(value);
            }
            Some("progress") => {
                life.records = resumed + number("records");
                life.durable = number("durable_epoch");
                let read = number("bytes") as f64 / (number("bytes_total") as f64).max(1.0);
                if let Kill::AtFraction { fraction, checkpoint, wait } = kill
                    && read >= fraction
                    && (!checkpoint || number("checkpoints") > 0 || read >= LATEST)
                    && !killed
                {
                    thread::sleep(wait);
                    end(child)?;
                    killed = true;
                }
            }
            _ => life.summary = Some(value),
        }
    }
    Ok(killed)
}

//! Jobs of `laminar run --workers`, on one process and on several.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub fn laminar(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_laminar"));
    command.current_dir(dir).args(line.split_whitespace()).stdin(Stdio::null());
    command
}

pub fn succeeds(dir: &Path, line: &str) -> String {
    let output = laminar(dir, line).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "laminar {line}: {told}");
    String::from_utf8(output.stdout).unwrap()
}

/// A directory with events, and the results of a run on one process without `--workers`.
pub fn prepared(events: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    succeeds(dir.path(), &format!("generate events.ndjson --events {events} --keys 1000"));
    succeeds(dir.path(), &format!("{JOB} --cores 2 --state alone --quiet"));
    succeeds(dir.path(), "export --state alone --output alone.ndjson");
    dir
}

pub const JOB: &str = "run events.ndjson --key user.id --agg count,sum:amount,last:amount";

/// Starts all processes of the job.
pub fn start(dir: &Path, processes: usize, workers: usize, more: &str) -> Vec<Child> {
    let listeners: Vec<_> = (0..processes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let hosts: String = listeners.iter().map(|l| format!("{}\n", l.local_addr().unwrap())).collect();
    fs::write(dir.join("hosts"), hosts).unwrap();
    drop(listeners);
    let start = |process| {
        let job = format!(
            "{JOB} --state together --workers {workers} --processes {processes} --process {process} --hosts hosts --json {more}"
        );
        laminar(dir, &job).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    (0..processes).map(start).collect()
}

/// Runs the job to its end; a port that somebody else took in between is no reason to fail.
pub fn run_to_end(dir: &Path, processes: usize, workers: usize, more: &str) {
    for _ in 0..5 {
        let ended: Vec<_> =
            start(dir, processes, workers, more).iter_mut().map(|child| child.wait().unwrap()).collect();
        if ended.iter().all(std::process::ExitStatus::success) {
            return;
        }
    }
    panic!("the job did not end well five times");
}

/// The file `hosts` for two processes, and what is in it.
pub fn two_hosts(dir: &Path) -> String {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let hosts: String = listeners.iter().map(|l| format!("{}\n", l.local_addr().unwrap())).collect();
    fs::write(dir.join("hosts"), &hosts).unwrap();
    hosts
}

/// Waits until this process listens: it minds signals then, and has found its job.
pub fn listens(hosts: &str, process: usize) {
    let address = hosts.lines().nth(process).unwrap();
    while std::net::TcpStream::connect(address).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn same_as_alone(dir: &Path) {
    succeeds(dir, "export --state together --output together.ndjson");
    let [alone, together] =
        ["alone", "together"].map(|name| fs::read(dir.join(format!("{name}.ndjson"))).unwrap());
    assert!(!alone.is_empty() && alone == together, "{} bytes, {} bytes", alone.len(), together.len());
}

//! The processes of one run of the job: started, killed, waited for.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use laminar_timely::EXIT_FAILED;

use crate::drive::Tally;
use crate::failing::Failing;
use crate::network::Network;
use crate::output::written;
use crate::{ENDED, Options};

/// The longest that anything may take before it counts as hung. Far more than it takes.
const HUNG: Duration = Duration::from_secs(300);

/// When a process is killed.
#[derive(Clone, Copy, Debug)]
pub enum Moment {
    /// So long after the start, most likely before the recovery is over.
    Early(Duration),
    /// When there are so many bytes of output. Time would not do: one machine has written everything before another has begun.
    Output(u64),
    /// When a process has said this, or there are so many bytes of output.
    Says(&'static str, u64),
    Never,
}

/// The processes of one run.
pub struct Processes {
    children: Vec<Child>,
    logs: Vec<PathBuf>,
}

impl Processes {
    pub fn start(
        options: &Options,
        network: Option<&Network>,
        failing: Option<(usize, Failing)>,
        tally: &mut Tally,
    ) -> Result<Self, String> {
        let failed = |e: std::io::Error| format!("a process could not be started: {e}");
        let program = std::env::current_exe().map_err(failed)?;
        tally.may_lose_power(options)?;
        // Free now; whoever takes one in between makes a process end, which is noticed.
        let listeners: Result<Vec<_>, _> =
            (0..options.processes).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
        let addresses: Result<Vec<_>, _> =
            listeners.map_err(failed)?.iter().map(TcpListener::local_addr).collect();
        let addresses = addresses.map_err(failed)?;
        let addresses = match network {
            Some(network) => network.addresses(),
            None => addresses.iter().map(ToString::to_string).collect(),
        };
        let mut all = Self { children: Vec::new(), logs: Vec::new() };
        for process in 0..options.processes {
            let log = options.dir.join(format!("process-{process}.log"));
            let file = File::create(&log).map_err(failed)?;
            let numbers = [
                ("--process", process as u64),
                ("--processes", options.processes as u64),
                ("--workers", options.workers as u64),
                ("--seed", options.seed),
                ("--events", options.events),
                ("--keys", options.keys),
                ("--ahead", options.ahead),
                ("--until", options.until),
                ("--stall-ms", options.stall_ms),
                ("--opening-ms", options.opening_ms),
                ("--pause-us", options.pause_us),
                ("--lose", options.lose),
                ("--backup-ms", options.backup_ms),
            ];
            let mut command =
                network.map_or_else(|| Command::new(&program), |network| network.command(process, &program));
            command.arg("worker").arg("--dir").arg(&options.dir).args(["--addresses", &addresses.join(",")]);
            command.args(["--directories", &options.directories]);
            #[cfg(feature = "object-store")]
            command.args(["--takes-over", if tally.losses.takes_over { "1" } else { "0" }]);
            command.args(numbers.iter().flat_map(|(name, value)| [(*name).to_owned(), value.to_string()]));
            if !options.mistake.is_empty() {
                command.args(["--mistake", &options.mistake]);
            }
            if let Some((_, failing)) = failing.filter(|(victim, _)| *victim == process) {
                command.args(["--failing", &failing.to_string()]);
            }
            let errors = file.try_clone().map_err(failed)?;
            command.stdin(Stdio::null()).stdout(file).stderr(errors);
            all.children.push(command.spawn().map_err(failed)?);
            all.logs.push(log);
            tally.starts += 1;
        }
        Ok(all)
    }

    pub fn said(&self) -> String {
        let each = self.each_said().into_iter().enumerate();
        each.map(|(process, said)| format!("-- process {process} --\n{said}")).collect()
    }

    /// What each of them said.
    pub fn each_said(&self) -> Vec<String> {
        (0..self.logs.len()).map(|process| self.said_of(process)).collect()
    }

    pub fn said_of(&self, process: usize) -> String {
        self.logs.get(process).and_then(|log| fs::read_to_string(log).ok()).unwrap_or_default()
    }

    /// Did they only not find each other? Not more than a few times.
    pub fn not_connected(&self, ended: &[ExitStatus], tally: &mut Tally) -> bool {
        let said = self.said();
        let unreached = said.contains("could not be reached in time") || said.contains("could not listen");
        let alone = unreached && ended.iter().any(|status| status.code() == Some(i32::from(ENDED)));
        tally.alone += u32::from(alone);
        alone && tally.alone <= 5
    }

    /// Did each of them end by itself, with success or because its part could not go on, but for one that was killed?
    pub fn ended_in_order(&self, ended: &[ExitStatus], killed: Option<usize>) -> Result<(), String> {
        for (process, status) in ended.iter().enumerate() {
            let fine = killed == Some(process)
                || status.success()
                || [Some(EXIT_FAILED), Some(i32::from(ENDED))].contains(&status.code());
            if !fine {
                return Err(format!("process {process} ended with {status}\n{}", self.said()));
            }
        }
        Ok(())
    }

    pub fn kill(&mut self, process: usize) -> Result<(), String> {
        let child = self.children.get_mut(process).ok_or("no such process")?;
        child.kill().map_err(|e| format!("process {process} could not be killed: {e}"))
    }

    pub fn signal(&mut self, process: usize, signal: &str) -> Result<(), String> {
        let child = self.children.get_mut(process).ok_or("no such process")?;
        if child.try_wait().map_err(|e| e.to_string())?.is_some() {
            return Ok(());
        }
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status();
        match sent {
            Ok(status) if status.success() => Ok(()),
            other => Err(format!("process {process} did not get SIG{signal}: {other:?}")),
        }
    }

    /// Until all but this one have ended.
    pub fn wait_for_others(&mut self, process: usize) -> Result<(), String> {
        let started = Instant::now();
        loop {
            let mut running = 0;
            for (other, child) in self.children.iter_mut().enumerate() {
                let runs = child.try_wait().map_err(|e| e.to_string())?.is_none();
                running += usize::from(runs && other != process);
            }
            if running == 0 {
                return Ok(());
            }
            if started.elapsed() >= HUNG {
                self.kill_all();
                return Err(format!(
                    "a process went on for {HUNG:?} without process {process}\n{}",
                    self.said()
                ));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn kill_all(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// How all of them ended; none when the moment came before. An error when neither happens.
    pub fn wait_until(&mut self, moment: &Moment, dir: &Path) -> Result<Option<Vec<ExitStatus>>, String> {
        let started = Instant::now();
        loop {
            let mut ended = Vec::new();
            for child in &mut self.children {
                ended.extend(child.try_wait().map_err(|e| e.to_string())?);
            }
            if ended.len() == self.children.len() {
                return Ok(Some(ended));
            }
            let has_come = match moment {
                Moment::Early(after) => started.elapsed() >= *after,
                Moment::Output(bytes) => written(dir) >= *bytes,
                Moment::Says(what, bytes) => self.said().contains(*what) || written(dir) >= *bytes,
                Moment::Never => false,
            };
            if has_come {
                return Ok(None);
            }
            if started.elapsed() >= HUNG {
                self.kill_all();
                return Err(format!("a process went on for {HUNG:?}\n{}", self.said()));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.kill_all();
    }
}

//! Starting the two processes of the job, and what comes of them.

use std::env;
use std::error::Error;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio, exit};
use std::thread;
use std::time::{Duration, Instant};

use super::job::{GOES_ON, Plan, Task, half_of_first_rows, process};
use super::output::rows;

/// The hidden argument in front of what a process is told.
const PROCESS: &str = "process-of-the-job";
/// Longer than anything takes here.
const LIMIT: Duration = Duration::from_secs(60);

/// In a process of the job: runs it, and ends.
pub fn be_one_if_told() {
    let Some(task) = env::args().skip_while(|argument| argument != PROCESS).nth(1) else { return };
    let ended = serde_json::from_str(&task).map_err(Into::into).and_then(process);
    if let Err(error) = &ended {
        eprintln!("{error}");
    }
    exit(i32::from(ended.is_err()))
}

/// Where a failure is shown.
#[derive(Clone, Copy, Debug)]
pub struct Stage<'a> {
    /// A directory of its own.
    pub dir: &'a Path,
    /// What makes this program run a process of the job, in front of the hidden argument.
    pub arguments: &'a [&'a str],
}

impl Stage<'_> {
    /// Starts both processes.
    pub fn start(&self, plan: &Plan) -> Result<Processes, Box<dyn Error>> {
        let addresses = free_addresses()?;
        self.start_at(plan, [addresses.clone(), addresses])
    }

    /// Starts both, each with a list of addresses of its own.
    pub fn start_at(&self, plan: &Plan, addresses: [Vec<String>; 2]) -> Result<Processes, Box<dyn Error>> {
        let mut processes = Processes { dir: self.dir.to_owned(), children: Vec::new() };
        for (process, addresses) in addresses.into_iter().enumerate() {
            let task = Task { dir: self.dir.to_owned(), process, addresses, plan: plan.clone() };
            let [says, complains] = processes.files(process);
            let child = Command::new(env::current_exe()?)
                .args(self.arguments)
                .args([PROCESS, &serde_json::to_string(&task)?])
                .env("RUST_BACKTRACE", "0")
                // Kept open until this program ends: a process that reads its end ends too.
                .stdin(Stdio::piped())
                .stdout(File::create(says)?)
                .stderr(File::create(complains)?)
                .spawn()?;
            processes.children.push(child);
        }
        Ok(processes)
    }

    /// Starts both, lets the job come to its end, and says so.
    pub fn finish(&self, plan: &Plan) -> Result<(), Box<dyn Error>> {
        let ended = self.start(plan)?.ended()?;
        ended.report();
        ended.expect([Some(0); 2])
    }
}

/// Ports that are free now.
pub fn free_addresses() -> io::Result<Vec<String>> {
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    listeners.iter().map(|listener| Ok(listener.local_addr()?.to_string())).collect()
}

/// The processes that run; killed when this is dropped.
#[derive(Debug)]
pub struct Processes {
    dir: PathBuf,
    children: Vec<Child>,
}

impl Processes {
    /// What a process says, and what it says on standard error.
    fn files(&self, process: usize) -> [PathBuf; 2] {
        ["out", "err"].map(|what| self.dir.join(format!("process-{process}.{what}")))
    }

    /// Waits until the job is in the middle, as its output shows.
    pub fn wait_for_the_middle(&mut self) -> Result<(), Box<dyn Error>> {
        let half = half_of_first_rows();
        self.wait_until(|dir| Ok(rows(dir)?.len() >= half))?;
        println!("- The job runs, and its output has {} rows.", rows(&self.dir)?.len());
        Ok(())
    }

    /// Waits until it is so, which needs the processes to run.
    pub fn wait_until(
        &mut self,
        is_so: impl Fn(&Path) -> Result<bool, Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        let begin = Instant::now();
        while !is_so(&self.dir)? {
            let ended = self.children.iter_mut().any(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || begin.elapsed() > LIMIT {
                let ended = Ended::of(self)?;
                return Err(format!("the job did not come so far:\n{ended}").into());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// As `kill -9`.
    pub fn kill(&mut self, process: usize) -> io::Result<()> {
        self.children.get_mut(process).map_or(Ok(()), Child::kill)
    }

    /// Waits until both have ended by themselves.
    pub fn ended(mut self) -> Result<Ended, Box<dyn Error>> {
        let begin = Instant::now();
        while begin.elapsed() < LIMIT {
            let ended: Vec<_> = self.children.iter_mut().map(Child::try_wait).collect::<Result<_, _>>()?;
            if ended.iter().all(Option::is_some) {
                return Ended::of(&mut self);
            }
            thread::sleep(Duration::from_millis(5));
        }
        let ended = Ended::of(&mut self)?;
        Err(format!("a process did not end, and was killed:\n{ended}").into())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.children {
            // One that has ended already cannot be killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How the processes ended.
#[derive(Debug)]
pub struct Ended {
    /// The line at which the job went on.
    from_line: Option<u64>,
    codes: Vec<Option<i32>>,
    reasons: Vec<String>,
}

impl Ended {
    /// Whatever runs still is killed.
    fn of(processes: &mut Processes) -> Result<Self, Box<dyn Error>> {
        let [says, _] = processes.files(0);
        let says = fs::read_to_string(says)?;
        let from_line = says.split_once(GOES_ON).and_then(|(_, line)| line.lines().next()?.parse().ok());
        let mut ended = Self { from_line, codes: Vec::new(), reasons: Vec::new() };
        for child in &mut processes.children {
            child.kill()?;
            ended.codes.push(child.wait()?.code());
        }
        for process in 0..processes.children.len() {
            let [_, complains] = processes.files(process);
            ended.reasons.push(reason(&fs::read_to_string(complains)?));
        }
        Ok(ended)
    }

    /// Tells it.
    pub fn report(&self) {
        println!("{self}");
    }

    /// It must have been so.
    pub fn expect(&self, codes: [Option<i32>; 2]) -> Result<(), Box<dyn Error>> {
        if self.codes == codes {
            return Ok(());
        }
        Err(format!("the processes should have ended with {codes:?}:\n{self}").into())
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Vec::new();
        if let Some(line) = self.from_line.filter(|line| *line > 0) {
            lines.push(format!("- The job went on behind line {line} of its source."));
        }
        for (process, (code, reason)) in self.codes.iter().zip(&self.reasons).enumerate() {
            let how = code.map_or("was killed".to_owned(), |code| format!("ended with code {code}"));
            let said = if reason.is_empty() { String::new() } else { format!(" and said:\n    {reason}") };
            lines.push(format!("- Process {process} {how}{said}"));
        }
        f.write_str(&lines.join("\n"))
    }
}

/// The first line that a process said on standard error and that says why it ends: of a panic, its message, and not where it was.
fn reason(said: &str) -> String {
    let mut lines = said.lines().filter(|line| !line.is_empty() && !line.starts_with("thread '"));
    let first = lines.clone().next();
    let own = lines.find(|line| line.starts_with("laminar-timely: ") && !line.ends_with("a thread panicked"));
    own.or(first).unwrap_or_default().to_owned()
}

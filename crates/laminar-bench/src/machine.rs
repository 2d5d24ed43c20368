//! The machine a run happens on: what it is, which threads run where, and how often it stops them.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// Nanoseconds in a histogram with three digits.
pub type Nanos = Histogram<u64>;

pub fn histogram() -> Result<Nanos, crate::Error> {
    Ok(Histogram::new_with_bounds(1, 60_000_000_000, 3)?)
}

/// Date, cores, kernel, processor, the commit that this program was built from; no names of hosts or users.
pub fn about(quick: bool, pinned: bool) -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let meminfo = read("/proc/meminfo");
    let memory = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let pages = read("/sys/kernel/mm/transparent_hugepage/enabled");
    json!({
        "date": output("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
        "commit": env!("LAMINAR_COMMIT"),
        "cpu": cpu.map(|(_, name)| name.trim()),
        "cores": cores(),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "memory": memory.map(str::trim),
        "huge_pages": pages.trim(),
        "load_at_start": read("/proc/loadavg").split(' ').next(),
        "quick": quick,
        "pinned": pinned,
        "debug_build": cfg!(debug_assertions),
    })
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// CPUs this process may use. The first call tells for all: a thread that is kept on one CPU would know of no other.
pub fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

/// Which CPU a thread is kept on.
#[derive(Clone, Debug)]
pub struct Pins {
    /// Empty: no pinning.
    cpus: Vec<usize>,
}

impl Pins {
    pub fn new(wanted: bool) -> Result<Self, crate::Error> {
        if !wanted {
            return Ok(Self { cpus: Vec::new() });
        }
        let allowed = sched_getaffinity(None)?;
        Ok(Self { cpus: (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect() })
    }

    pub fn wanted(&self) -> bool {
        !self.cpus.is_empty()
    }

    /// Keeps the calling thread, one of those that change state, on its own CPU: the first ones.
    pub fn hot(&self, index: usize) -> Result<(), crate::Error> {
        self.keep(index % self.cpus.len().max(1))
    }

    /// Keeps the calling thread, and those it starts from here on, on the last CPU.
    pub fn background(&self) -> Result<(), crate::Error> {
        self.keep(self.cpus.len().saturating_sub(1))
    }

    /// Lets the calling thread, and what it starts from here on, run everywhere again.
    pub fn none(&self) -> Result<(), crate::Error> {
        let mut set = CpuSet::new();
        self.cpus.iter().for_each(|cpu| set.set(*cpu));
        if self.wanted() { Ok(sched_setaffinity(None, &set)?) } else { Ok(()) }
    }

    fn keep(&self, index: usize) -> Result<(), crate::Error> {
        let Some(cpu) = self.cpus.get(index) else { return Ok(()) };
        let mut set = CpuSet::new();
        set.set(*cpu);
        Ok(sched_setaffinity(None, &set)?)
    }
}

/// What a reading of the clock costs, as the mean distance of two readings.
pub fn clock_cost() -> f64 {
    let rounds = 2_000_000_u32;
    let started = Instant::now();
    for _ in 0..rounds {
        std::hint::black_box(Instant::now());
    }
    started.elapsed().as_nanos() as f64 / f64::from(rounds)
}

/// Time that all threads of this process have had a processor.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Time that the threads of this process with a name have had a processor, as far as the system tells.
pub fn cpu_time_of(name: &str) -> Duration {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten().map(|task| task.path());
    let named = tasks.filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|is| is.trim() == name));
    let nanos = named.filter_map(|task| {
        let times = fs::read_to_string(task.join("schedstat")).ok()?;
        times.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// How often, and for how long, something else held a thread up.
#[derive(Clone, Copy, Debug)]
pub struct Gaps {
    pub per_second_over_1us: f64,
    pub per_second_over_10us: f64,
    pub per_second_over_100us: f64,
    pub longest: Duration,
}

/// Watches the clock in an idle loop: what it sees, no program can avoid.
pub fn idle_gaps(time: Duration) -> Gaps {
    let (mut over, mut longest) = ([0_u64; 3], Duration::ZERO);
    let started = Instant::now();
    let mut last = started;
    while last - started < time {
        let now = Instant::now();
        let gap = now - last;
        last = now;
        if gap > Duration::from_micros(1) {
            over[0] += 1;
            over[1] += u64::from(gap > Duration::from_micros(10));
            over[2] += u64::from(gap > Duration::from_micros(100));
            longest = longest.max(gap);
        }
    }
    let per_second = |count: u64| count as f64 / time.as_secs_f64();
    Gaps {
        per_second_over_1us: per_second(over[0]),
        per_second_over_10us: per_second(over[1]),
        per_second_over_100us: per_second(over[2]),
        longest,
    }
}

/// Memory of this process in bytes: now, and at most since [`reset_peak`].
pub fn memory() -> (u64, u64) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()
    };
    (field("VmRSS:").unwrap_or(0) << 10, field("VmHWM:").unwrap_or(0) << 10)
}

/// Forgets the largest memory so far, where the system allows it.
pub fn reset_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

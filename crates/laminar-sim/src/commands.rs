//! The commands that need more than a simulated disk's crashes: kills and fuzzing.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use laminar_sim::dice::{Dice, mixed};
use laminar_sim::flags::Flags;
use laminar_sim::fuzz::{mutate, seeds, target};
use laminar_sim::torture::{Amount, Torture, child_main, torture as kill_all};

/// How they are called.
pub const USAGE: &str = "\
  laminar-sim fuzz TARGET [--execs N] [--seed N] [--threads N]
  laminar-sim fuzz TARGET --input FILE
  laminar-sim fuzz TARGET --write-seeds DIR
  laminar-sim torture [--kills N | --for MINUTES] [--cores A..B] [--dir DIR] [--workers N] [--seed N]
fuzz: mutates parts of the reference stores; small, frame, record, manifest, segment, directory or ops.
torture: processes on real files below DIR, each killed at a random moment; what they acknowledged must be there.
--for: as many as there is time for, a soak.
power-cut: only with --features power-cut; cuts the power of real file systems, says more with --help.";

/// Kills processes; whether nothing was lost.
pub fn torture(arguments: &[String]) -> Result<bool, String> {
    let flags = Flags::parse(
        arguments,
        &["--kills=", "--for=", "--cores=", "--dir=", "--workers=", "--seed="],
        USAGE,
    )?;
    let amount = match (flags.text("--kills"), flags.text("--for")) {
        (Some(_), Some(_)) => return Err("either --kills or --for".into()),
        (_, None) => Amount::Kills(flags.number("--kills", 1000)?),
        (None, Some("0")) => return Err("--for: at least a minute".into()),
        (None, Some(_)) => Amount::Time(Duration::from_secs(flags.number("--for", 0)?.saturating_mul(60))),
    };
    let cores = flags.text("--cores").unwrap_or("1..4");
    let bounds = cores.split_once("..").map(|(a, b)| (a.parse(), b.trim_start_matches('=').parse()));
    let Some((Ok(from), Ok(to))) = bounds else { return Err(format!("--cores {cores}: not as in 1..4")) };
    let default = std::env::temp_dir().join(format!("laminar-torture-{}", std::process::id()));
    let plan = Torture {
        program: std::env::current_exe().map_err(|e| e.to_string())?,
        dir: flags.text("--dir").map_or(default, Into::into),
        amount,
        cores: from..=to,
        workers: flags.number("--workers", 2)?,
        seed: flags.number("--seed", 1)?,
        progress_every: Some(Duration::from_secs(20)),
    };
    let start = Instant::now();
    let report = kill_all(&plan);
    let seconds = start.elapsed().as_secs_f64();
    println!("{report}\n{seconds:.1} s");
    report.findings.iter().for_each(|finding| println!("  {finding}"));
    Ok(report.findings.is_empty())
}

/// What `torture` starts and kills.
pub fn torture_child(arguments: &[String]) -> Result<bool, String> {
    child_main(arguments).map(|()| true)
}

/// Feeds a target; whether it never panicked.
pub fn fuzz(arguments: &[String]) -> Result<bool, String> {
    let (name, rest) = arguments.split_first().ok_or(USAGE)?;
    let flags =
        Flags::parse(rest, &["--execs=", "--seed=", "--threads=", "--input=", "--write-seeds="], USAGE)?;
    let (name, run) = target(name)?;
    if let Some(input) = flags.text("--input") {
        run(&std::fs::read(input).map_err(|e| format!("{input}: {e}"))?);
        return Ok(true);
    }
    if let Some(dir) = flags.text("--write-seeds") {
        for (n, bytes) in seeds(name).iter().enumerate() {
            let path = Path::new(dir).join(format!("seed-{n}"));
            std::fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        return Ok(true);
    }
    let (execs, seed, threads) =
        (flags.number("--execs", 100_000)?, flags.number("--seed", 1)?, flags.threads()?);
    let (start, begin, done) = (Instant::now(), seeds(name), AtomicU64::new(0));
    let share = execs / threads.max(1) as u64;
    let work = &|thread: u64| {
        let mut said = start;
        for n in thread * share..(thread + 1) * share {
            let all = done.fetch_add(1, Ordering::Relaxed);
            if thread == 0 && said.elapsed() >= Duration::from_secs(20) {
                said = Instant::now();
                eprintln!("  {name}: {all} of {execs} executions after {} s", start.elapsed().as_secs());
            }
            let mut dice = Dice::new(mixed(seed, n));
            let mut bytes = begin.get(dice.index(begin.len())).cloned().unwrap_or_default();
            mutate(&mut bytes, &mut dice);
            if std::panic::catch_unwind(|| run(&bytes)).is_err() {
                let file = format!("fuzz-{name}-{seed}-{n}");
                let kept = std::fs::write(&file, &bytes).map_or_else(|e| e.to_string(), |()| file);
                println!("laminar-sim fuzz {name} --input {kept}");
                return false;
            }
        }
        true
    };
    let sound = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads as u64).map(|thread| scope.spawn(move || work(thread))).collect();
        all.into_iter().all(|thread| thread.join().unwrap_or(false))
    });
    let (done, seconds) = (share * threads as u64, start.elapsed().as_secs_f64());
    println!(
        "{name}: {done} executions from seed {seed}, {seconds:.1} s, {}",
        if sound { "0 findings" } else { "stopped at a finding" }
    );
    Ok(sound)
}

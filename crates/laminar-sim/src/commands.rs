//! The commands that need more than a simulated disk's crashes: damage, kills, fuzzing.

use std::path::Path;
use std::time::{Duration, Instant};

use laminar_sim::damage::stores::{reference_store, reference_stores};
use laminar_sim::damage::sweep::{Extent, damage_all};
use laminar_sim::damage::{Damage, Subject, Table};

use laminar_sim::dice::{Dice, mixed};
use laminar_sim::fuzz::{mutate, seeds, target};
use laminar_sim::torture::{Torture, child_main, torture as kill_all};

use crate::allocator::METER;

/// How they are called.
pub const USAGE: &str = "\
  laminar-sim damage [--store NAME] [--long] [--stride N] [--seed N] [--threads N]
  laminar-sim damage --store NAME --file PATH --damage WHAT
  laminar-sim fuzz TARGET [--execs N] [--seed N] [--threads N]
  laminar-sim fuzz TARGET --input FILE
  laminar-sim fuzz TARGET --write-seeds DIR
  laminar-sim torture [--kills N] [--cores A..B] [--dir DIR] [--workers N] [--seed N]
damage: of six reference stores, every 61st bit and length of every file, or all of them with --long.
fuzz: mutates parts of the reference stores; small, frame, record, manifest, segment, directory or ops.
torture: processes on real files below DIR, each killed at a random moment; what they acknowledged must be there.
power-cut: only with --features power-cut; cuts the power of real file systems, says more with --help.";

/// Values of `--flags`, in any order.
pub struct Flags<'a>(&'a [String]);

impl<'a> Flags<'a> {
    /// Refuses what is not in `known`; those ending in `=` have a value.
    pub fn parse(arguments: &'a [String], known: &[&str]) -> Result<Self, String> {
        let mut rest = arguments.iter();
        while let Some(flag) = rest.next() {
            if known.contains(&format!("{flag}=").as_str()) {
                rest.next().ok_or(format!("{flag} needs a value"))?;
            } else if !known.contains(&flag.as_str()) {
                return Err(format!("{flag} is not known here; usage:\n{USAGE}"));
            }
        }
        Ok(Self(arguments))
    }

    pub fn is_set(&self, flag: &str) -> bool {
        self.0.iter().any(|argument| argument == flag)
    }

    pub fn text(&self, flag: &str) -> Option<&'a str> {
        let at = self.0.iter().position(|argument| argument == flag)?;
        self.0.get(at + 1).map(String::as_str)
    }

    pub fn number(&self, flag: &str, default: u64) -> Result<u64, String> {
        self.text(flag).map_or(Ok(default), |text| text.parse().map_err(|e| format!("{flag} {text}: {e}")))
    }
}

fn threads(flags: &Flags<'_>) -> Result<usize, String> {
    let all = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    usize::try_from(flags.number("--threads", all)?).map_err(|e| e.to_string())
}

/// Damages reference stores; whether nothing was found.
pub fn damage(arguments: &[String]) -> Result<bool, String> {
    let known = ["--store=", "--file=", "--damage=", "--long", "--stride=", "--seed=", "--threads="];
    let flags = Flags::parse(arguments, &known)?;
    let stores = match flags.text("--store") {
        Some(name) => vec![reference_store(name)?],
        None => reference_stores(),
    };
    let extent = Extent {
        stride: flags.number("--stride", if flags.is_set("--long") { 1 } else { 61 })?,
        seed: flags.number("--seed", 0)?,
        threads: threads(&flags)?,
        progress_every: Some(Duration::from_secs(20)),
    };
    let start = Instant::now();
    let mut all = Table::default();
    for reference in stores {
        let subject = Subject::new(&reference)?;
        let began = Instant::now();
        let table = match (flags.text("--file"), flags.text("--damage")) {
            (Some(file), Some(damage)) => {
                let (mut table, damage) = (Table::default(), damage.parse::<Damage>()?);
                subject.try_one(Path::new(file), damage, METER, &mut table)?;
                table
            }
            _ => damage_all(&subject, &extent, METER),
        };
        let (name, files, bytes) = (subject.name(), subject.contents().len(), subject.total_len());
        println!("== {name}: {files} files, {bytes} bytes\n{table}");
        println!("{name} took {:.1} s", began.elapsed().as_secs_f64());
        table.findings.iter().take(20).for_each(|finding| println!("  {finding}"));
        all.add(table);
    }
    let (bits, cuts) = (all.count_class("bit flipped"), all.count_class("cut"));
    println!("\n== all\n{all}\n{bits} bits flipped, {cuts} lengths, {} other", all.cases - bits - cuts);
    println!("{:.1} s", start.elapsed().as_secs_f64());
    Ok(all.findings.is_empty())
}

/// Kills processes; whether nothing was lost.
pub fn torture(arguments: &[String]) -> Result<bool, String> {
    let flags = Flags::parse(arguments, &["--kills=", "--cores=", "--dir=", "--workers=", "--seed="])?;
    let cores = flags.text("--cores").unwrap_or("1..4");
    let bounds = cores.split_once("..").map(|(a, b)| (a.parse(), b.trim_start_matches('=').parse()));
    let Some((Ok(from), Ok(to))) = bounds else { return Err(format!("--cores {cores}: not as in 1..4")) };
    let default = std::env::temp_dir().join(format!("laminar-torture-{}", std::process::id()));
    let plan = Torture {
        program: std::env::current_exe().map_err(|e| e.to_string())?,
        dir: flags.text("--dir").map_or(default, Into::into),
        kills: flags.number("--kills", 1000)?,
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
    let flags = Flags::parse(rest, &["--execs=", "--seed=", "--threads=", "--input=", "--write-seeds="])?;
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
        (flags.number("--execs", 100_000)?, flags.number("--seed", 1)?, threads(&flags)?);
    let (start, begin) = (Instant::now(), seeds(name));
    let share = execs / threads.max(1) as u64;
    let work = &|thread: u64| {
        for n in thread * share..(thread + 1) * share {
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

//! The command `power-cut`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use laminar_sim::flags::Flags;
use laminar_sim::power::run::{Again, Plan, again, power_cut as run};

const USAGE: &str = "usage:
  laminar-sim power-cut [--mounts N] [--jobs N] [--seed N] [--per-recording N] [--fs ext4|xfs]
                        [--mount-options TEXT] [--mkfs-options TEXT] [--dir DIR] [--keep DIR]
  laminar-sim power-cut --replay FILE --position N --choice N [--dir DIR]
Lets stores work on a real file system on a disk that records, and mounts what power cuts leave of it. Needs
Linux, root, /dev/fuse and loop devices. --dir: an existing directory that each job covers with a file system
in memory, seen by nobody else; /mnt if not given. --keep: where the recording of a finding is written; the
directory for temporary files if not given. Everything is unmounted when it ends, however it ends.";

/// Cuts the power; whether nothing was lost.
pub fn power_cut(arguments: &[String]) -> Result<bool, String> {
    if arguments.iter().any(|argument| argument == "--help") {
        println!("{USAGE}");
        return Ok(true);
    }
    let known = [
        "--mounts=",
        "--jobs=",
        "--seed=",
        "--per-recording=",
        "--fs=",
        "--mount-options=",
        "--mkfs-options=",
        "--dir=",
        "--keep=",
        "--replay=",
        "--position=",
        "--choice=",
    ];
    let flags = Flags::parse(arguments, &known, USAGE)?;
    let dir = PathBuf::from(flags.text("--dir").unwrap_or("/mnt"));
    if let Some(recording) = flags.text("--replay") {
        let position = usize::try_from(flags.number("--position", 0)?).map_err(|e| e.to_string())?;
        let found = again(
            &dir,
            &Again { recording: recording.into(), position, choice: flags.number("--choice", 0)? },
        )?;
        found.iter().for_each(|found| println!("{found}"));
        return Ok(found.is_none());
    }
    let plan = Plan {
        dir,
        mounts: flags.number("--mounts", 1000)?,
        per_recording: flags.number("--per-recording", 400)?,
        jobs: flags.number("--jobs", 4)?,
        seed: flags.number("--seed", 1)?,
        kind: flags.text("--fs").unwrap_or("ext4").into(),
        options: flags.text("--mount-options").map(Into::into),
        make: flags.text("--mkfs-options").unwrap_or_default().into(),
        keep: flags.text("--keep").map_or_else(std::env::temp_dir, Into::into),
        progress_every: Duration::from_secs(20),
    };
    let start = Instant::now();
    let (tally, findings) = run(&plan)?;
    println!("{}: {tally}\n{:.1} s", plan.kind, start.elapsed().as_secs_f64());
    findings.iter().for_each(|finding| println!("  {finding}"));
    Ok(findings.is_empty())
}

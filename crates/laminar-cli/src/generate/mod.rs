//! `laminar generate`: an event file to try the command on, and the result that must come out.
//!
//! The demo writes its events and computes its truth with the same code.

pub mod events;
pub mod random;
pub mod truth;

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use indicatif::{HumanBytes, HumanCount};

use crate::args::GenerateArgs;
use crate::error::{CliError, Result};
use crate::export;
use crate::output::whole_file;
use events::Events;

/// Runs the command.
pub fn run(args: &GenerateArgs, out: &mut dyn Write) -> Result<()> {
    if args.truth.as_deref() == Some(args.file.as_path()) {
        return Err(CliError::usage("the events and --truth cannot go to one file").remedy("Name two files."));
    }
    for path in std::iter::once(&args.file).chain(&args.truth) {
        check(path, args.force)?;
    }
    let format = args.format.unwrap_or_else(|| export::format_of(&args.file));
    let events =
        Events { count: args.events, keys: args.keys.get(), seed: args.seed, zipf: args.zipf, format };
    let start = Instant::now();
    let bytes = events.write(&args.file)?;
    let seconds = start.elapsed().as_secs_f64();
    let mut text = format!(
        "{} events, {} {} keys: {} written to {} in {seconds:.1} s\n",
        HumanCount(args.events),
        if args.zipf { "by Zipf's law over" } else { "uniform over" },
        HumanCount(args.keys.get()),
        HumanBytes(bytes),
        args.file.display()
    );
    if let Some(path) = &args.truth {
        let truth = truth::compute(&args.file, format)?;
        whole_file(path, |out| {
            truth::write(&truth, out).map_err(|e| CliError::io("write the truth to", path, &e))
        })?;
        text.push_str(&format!(
            "the result for {} keys, computed by other code: {}\n",
            HumanCount(truth.len() as u64),
            path.display()
        ));
    }
    text.push_str(&next(args));
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| CliError::stdout(&e))
}

/// Refuses what must not be replaced, before anything is done.
fn check(path: &Path, force: bool) -> Result<()> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    let shown = path.display();
    if !metadata.is_file() {
        return Err(
            CliError::usage(format!("{shown} exists and is no regular file")).remedy("Name another file.")
        );
    }
    if !force {
        return Err(CliError::usage(format!("{shown} exists already"))
            .remedy("Name another file, or replace it with --force."));
    }
    Ok(())
}

/// The commands to go on with.
fn next(args: &GenerateArgs) -> String {
    let file = args.file.display();
    let mut text =
        format!("Next:\n  laminar run {file} --key user.id --agg count,sum:amount --state ./state\n");
    if let Some(truth) = &args.truth {
        text.push_str(&format!(
            "  laminar export --state ./state --output result.ndjson && cmp result.ndjson {}\n",
            truth.display()
        ));
    }
    text
}

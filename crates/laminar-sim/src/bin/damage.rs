//! `damage`: damages reference stores at rest in every way, and judges what opening them gives.
//!
//! A program of its own, because counting memory takes another allocator than the other commands have.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use laminar_sim::damage::stores::{reference_store, reference_stores};
use laminar_sim::damage::sweep::{Extent, damage_all};
use laminar_sim::damage::{Damage, Subject, Table};
use laminar_sim::flags::Flags;

const USAGE: &str = "\
  damage [--store NAME] [--long] [--stride N] [--seed N] [--threads N]
  damage --store NAME --file PATH --damage WHAT
of seven reference stores, every 61st bit and length of every file, or all of them with --long.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match damage(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("damage: {error}");
            ExitCode::from(2)
        }
    }
}

fn counted(work: &mut dyn FnMut()) -> u64 {
    allocation_counter::measure(work).bytes_max
}

/// Damages reference stores; whether nothing was found.
fn damage(arguments: &[String]) -> Result<bool, String> {
    let known = ["--store=", "--file=", "--damage=", "--long", "--stride=", "--seed=", "--threads="];
    let flags = Flags::parse(arguments, &known, USAGE)?;
    let stores = match flags.text("--store") {
        Some(name) => vec![reference_store(name)?],
        None => reference_stores(),
    };
    let extent = Extent {
        stride: flags.number("--stride", if flags.is_set("--long") { 1 } else { 61 })?,
        seed: flags.number("--seed", 0)?,
        threads: flags.threads()?,
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
                subject.try_one(Path::new(file), damage, counted, &mut table)?;
                table
            }
            _ => damage_all(&subject, &extent, counted),
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

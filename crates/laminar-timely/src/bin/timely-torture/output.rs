//! What the job has written, and what it must be.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Options;
use crate::drive::{Tally, run_stage};
use crate::model::lines;

/// The directories of output, with the names of their sinks: one, or one for each process that there ever was.
fn output_dirs(dir: &Path) -> Vec<(&'static str, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let machine = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("machine-");
    let machines = entries.filter(machine).map(|entry| entry.path());
    let all: Vec<_> = machines.chain([dir.to_path_buf()]).collect();
    let names = ["rows", "digits", "windows"];
    let dirs = names.into_iter().flat_map(|name| all.iter().map(move |at| (name, at.join("out").join(name))));
    dirs.filter(|(_, dir)| dir.is_dir()).collect()
}

/// Bytes of output that are there.
pub fn written(dir: &Path) -> u64 {
    let files = output_dirs(dir).into_iter().filter_map(|(_, dir)| fs::read_dir(dir).ok()).flatten();
    files.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
}

/// All files of rows below the output, by name. Those of several directories have different parts in their names.
fn outputs(dir: &Path) -> Result<BTreeMap<String, String>, String> {
    let mut files = BTreeMap::new();
    for (name, dir) in output_dirs(dir) {
        for entry in fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))? {
            let path = entry.map_err(|e| e.to_string())?.path();
            if path.extension().is_some_and(|extension| extension == "rows") {
                let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                let key = format!("{name}/{}", path.file_name().unwrap_or_default().display());
                if files.insert(key.clone(), text).is_some() {
                    return Err(format!("there are two files {key}"));
                }
            }
        }
    }
    Ok(files)
}

/// Compares all lines with those of the model; returns how many there are.
pub fn compare(options: &Options) -> Result<usize, String> {
    let files = outputs(&options.dir)?;
    let mut found: Vec<_> = files.values().flat_map(|text| text.split_inclusive('\n')).collect();
    found.sort_unstable();
    let expected = lines(options.seed, options.epochs, options.events, options.keys);
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    expected.iter().for_each(|line| *counts.entry(line).or_default() -= 1);
    found.iter().for_each(|line| *counts.entry(line).or_default() += 1);
    let missing: i64 = counts.values().filter(|count| **count < 0).sum();
    let known: std::collections::BTreeSet<_> = expected.iter().map(String::as_str).collect();
    let more = counts.iter().filter(|(_, count)| **count > 0);
    let (twice, besides): (Vec<_>, Vec<_>) = more.partition(|(line, _)| known.contains(**line));
    if missing == 0 && twice.is_empty() && besides.is_empty() {
        return Ok(found.len());
    }
    let example = |lines: &[(&&str, &i64)]| lines.first().map(|(line, _)| line.trim_end().to_owned());
    Err(format!(
        "{} lines missing, {} twice (such as {:?}), {} besides (such as {:?}), of {}",
        -missing,
        twice.len(),
        example(&twice),
        besides.len(),
        example(&besides),
        expected.len()
    ))
}

/// Runs the job once more, elsewhere and without kills: every file must have the same bytes.
pub fn compare_uninterrupted(options: &Options) -> Result<(), String> {
    let dir = options.dir.join("uninterrupted");
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let quiet = Options {
        dir: dir.clone(),
        until: options.epochs,
        pause_us: 0,
        mistake: String::new(),
        lose: 0,
        ..options.clone()
    };
    run_stage(&quiet, 0, &mut Tally::default(), &mut 0)?;
    let (killed, quiet) = (outputs(&options.dir)?, outputs(&dir)?);
    let differ: Vec<_> =
        quiet.iter().filter(|(name, text)| killed.get(*name) != Some(text)).map(|(name, _)| name).collect();
    if differ.is_empty() && killed.len() == quiet.len() {
        return Ok(());
    }
    Err(format!("these files differ from those of a run without kills: {differ:?}"))
}

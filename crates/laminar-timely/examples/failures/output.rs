//! The output of the job, and what it should be.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

use super::job::all_rows;

/// All rows that were written, by all workers.
pub fn rows(dir: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let mut rows = Vec::new();
    let out = dir.join("out");
    if !out.exists() {
        return Ok(rows);
    }
    for entry in fs::read_dir(out)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rows") {
            rows.extend(fs::read_to_string(path)?.lines().map(str::to_owned));
        }
    }
    Ok(rows)
}

/// Compares the output with the truth.
pub fn compare(dir: &Path) -> Result<(), Box<dyn Error>> {
    let (mut there, mut wrong) = (BTreeMap::new(), Vec::new());
    for row in rows(dir)? {
        *there.entry(row).or_insert(0_usize) += 1;
    }
    let mut total = 0;
    for (row, times) in all_rows() {
        total += times;
        let found = there.remove(&row).unwrap_or(0);
        if found != times {
            wrong.push(format!("{row:?} is there {found} times and not {times}"));
        }
    }
    wrong.extend(there.keys().map(|row| format!("{row:?} should not be there")));
    if wrong.is_empty() {
        println!("- {total} rows: nothing missing, nothing twice");
        return Ok(());
    }
    let shown: Vec<_> = wrong.iter().take(10).cloned().collect();
    Err(format!("{} rows are not as they should be:\n{}", wrong.len(), shown.join("\n")).into())
}

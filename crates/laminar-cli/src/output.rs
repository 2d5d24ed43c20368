//! Where results may be written: never over what they are made from, and as a whole.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};

use crate::error::{CliError, Result};
use crate::input::plan::{expand, is_literal};
use crate::job::Job;

/// Refuses an output path that cannot be written, or must not be: an input file, a file that an
/// input pattern would find at the next run, a dead-letter file, or anything in the state
/// directory. Called before any work is done.
pub fn check<'a>(
    output: &Path,
    inputs: &[String],
    keep: impl IntoIterator<Item = &'a Path>,
    state: &Path,
) -> Result<()> {
    let refused = |why: String| {
        Err(CliError::usage(format!("--output {} {why}", output.display())).remedy("Name another file."))
    };
    if output.file_name().is_none() || output.is_dir() {
        return refused("is a directory".to_owned());
    }
    if fs::metadata(output).is_ok_and(|m| !m.is_file()) {
        return refused("is not a regular file".to_owned());
    }
    if !directory(output).is_dir() {
        return refused("is in a directory that does not exist".to_owned());
    }
    let place = resolve(output);
    if is_inside(output, state) {
        return refused(format!("is inside the state directory {}", state.display()));
    }
    for input in inputs {
        if is_literal(input) {
            if same_file(output, Path::new(input)) {
                return refused(format!("is the input file {input}"));
            }
            continue;
        }
        if pattern_finds(input, &place) {
            return refused(format!(
                "matches the input pattern {input}; the next run would read it as input"
            ));
        }
        // A pattern that finds nothing is told where the input is planned.
        let found = expand(std::slice::from_ref(input)).unwrap_or_default();
        if let Some(path) = found.iter().find(|path| same_file(output, Path::new(path))) {
            return refused(format!("is the input file {path}"));
        }
    }
    if let Some(path) = keep.into_iter().find(|path| same_file(output, path)) {
        return refused(format!("is {}, a file of this job", path.display()));
    }
    Ok(())
}

/// As [`check`], with what the job of the state directory reads and writes.
pub fn check_with_job(output: &Path, job: Option<&Job>, state: &Path) -> Result<()> {
    let Some(job) = job else { return check(output, &[], [], state) };
    let files = job.files.iter().map(|f| &f.path).chain(&job.dead_letters).map(Path::new);
    check(output, &job.inputs, files, state)
}

/// Writes a file that appears complete and durable, or not at all.
pub fn whole_file<T>(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<T>) -> Result<T> {
    let describe = |e: &std::io::Error| CliError::io("write", path, e);
    let directory = directory(path);
    let temporary = tempfile::Builder::new()
        .prefix(".laminar-output")
        .tempfile_in(directory)
        .map_err(|e| describe(&e))?;
    let mut out = BufWriter::new(temporary.as_file());
    let written = write(&mut out)?;
    out.flush().map_err(|e| describe(&e))?;
    drop(out);
    temporary.as_file().sync_all().map_err(|e| describe(&e))?;
    set_usual_permissions(temporary.as_file()).map_err(|e| describe(&e))?;
    temporary.persist(path).map_err(|e| describe(&e.error))?;
    sync_directory_of(path)?;
    Ok(written)
}

/// Makes the name of a file durable.
pub fn sync_directory_of(path: &Path) -> Result<()> {
    let directory = directory(path);
    File::open(directory).and_then(|d| d.sync_all()).map_err(|e| CliError::io("sync", directory, &e))
}

/// Temporary files are private; what a user asked to be written is not.
fn set_usual_permissions(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

/// Whether a path is the directory or something in it, by its name or by where that leads.
pub fn is_inside(path: &Path, dir: &Path) -> bool {
    let led = |path: &Path| path.canonicalize().unwrap_or_else(|_| resolve(path));
    let dir = led(dir);
    resolve(path).starts_with(&dir) || led(path).starts_with(&dir)
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The path without links in the directories that exist; the last name is kept as it is.
fn resolve(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else { return absolute };
    parent.canonicalize().unwrap_or_else(|_| resolve(parent)).join(name)
}

/// Whether both are one file: by place, whether or not it exists, or by device and inode.
fn same_file(a: &Path, b: &Path) -> bool {
    let inode = |path| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    resolve(a) == resolve(b) || inode(a).is_some_and(|a| inode(b) == Some(a))
}

/// Whether the pattern would find a file at `place`, which is a resolved path.
fn pattern_finds(pattern: &str, place: &Path) -> bool {
    let is_plain = |part: &&str| !part.contains(['*', '?', '[']);
    let parts: Vec<&str> = pattern.split('/').collect();
    let plain = parts.iter().take_while(|part| is_plain(part)).count();
    let mut base = parts[..plain].join("/");
    if pattern.starts_with('/') {
        base.push('/');
    } else if base.is_empty() {
        ".".clone_into(&mut base);
    }
    let Ok(base) = Path::new(&base).canonicalize() else { return false };
    let base = base.to_string_lossy();
    let whole = format!("{}/{}", Pattern::escape(base.trim_end_matches('/')), parts[plain..].join("/"));
    let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
    Pattern::new(&whole).is_ok_and(|p| p.matches_path_with(place, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_job_may_be_the_output() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let text = |name: &str| at(name).to_str().unwrap().to_owned();
        fs::create_dir_all(at("logs/deep")).unwrap();
        fs::create_dir(at("state")).unwrap();
        for name in ["a.csv", "logs/1.csv", "dead"] {
            fs::write(at(name), "x").unwrap();
        }
        fs::hard_link(at("a.csv"), at("hard.csv")).unwrap();
        std::os::unix::fs::symlink(at("a.csv"), at("soft.csv")).unwrap();
        std::os::unix::fs::symlink(at("logs"), at("link")).unwrap();
        let inputs = [text("a.csv"), text("logs/*.csv")];
        let dead = at("dead");
        let told =
            |output: &Path| check(output, &inputs, [dead.as_path()], &at("state")).map_err(|e| e.to_string());
        for (name, wanted) in [
            ("a.csv", "is the input file"),
            ("logs/../a.csv", "is the input file"),
            ("hard.csv", "is the input file"),
            ("soft.csv", "is the input file"),
            ("logs/1.csv", "matches the input pattern"),
            ("logs/new.csv", "matches the input pattern"),
            ("link/new.csv", "matches the input pattern"),
            ("dead", "a file of this job"),
            ("state/job.json", "inside the state directory"),
            ("state", "is a directory"),
            ("missing/x.csv", "does not exist"),
        ] {
            let error = told(&at(name)).unwrap_err();
            assert!(error.contains(wanted), "{name}: {error}");
        }
        assert!(told(Path::new("/dev/null")).unwrap_err().contains("not a regular file"));
        for name in ["b.csv", "logs/x.ndjson", "logs/deep/x.csv", "state2"] {
            assert_eq!(told(&at(name)), Ok(()), "{name}");
        }
        assert!(check(&at("new/x"), &[], [], &at("new")).is_err());
        assert!(check(&at("new"), &[], [], &at("new")).unwrap_err().to_string().contains("inside"));
    }
}

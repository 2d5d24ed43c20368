//! `job.json`: what a state directory was made by, and how far its input is planned.
//!
//! Written before the store is created, and again whenever input is added, always as a whole:
//! temporary file, fsync, rename, fsync of the directory. It has two halves:
//!
//! * The *fingerprint*: format, key, aggregates and inputs as on the command line. A command with
//!   another fingerprint is refused, naming the option. The number of cores, the epoch length and
//!   the treatment of bad records are free to change.
//! * The *steps*: which bytes of which file are read, one after the other. A position in the input
//!   is a step and a file offset; steps are only ever added, or lengthened before their old end
//!   was passed, so positions only grow. A file that grew after its step was done gets a new step.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use laminar_storage::vfs::{OsVfs, create_dir_durably};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::agg::{Plan, value::VALUE_FORMAT};
use crate::error::{CliError, Result};
use crate::input::Format;
use crate::input::identity::FileIdentity;

/// Version of the file.
const JOB_VERSION: u32 = 1;
/// What to do when the file is damaged, missing, or that of another state.
pub const REMEDY: &str = "The results themselves are not touched: `laminar export --raw` still reads them. To run the job \
                          again, restore this file from a copy, or start over with a new --state directory.";

/// A stretch of one input file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Place in [`Job::files`].
    pub file: usize,
    /// First byte.
    pub from: u64,
    /// Number of the line there, counted from 1.
    pub from_line: u64,
    /// One past the last byte; none while the file is followed.
    pub to: Option<u64>,
}

/// What a state directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    version: u32,
    value_format: u32,
    /// Format of all inputs.
    pub format: Format,
    /// Key field; empty for words.
    pub key: String,
    /// Aggregates in the order given.
    pub aggs: Vec<String>,
    /// Files and patterns in the order given.
    pub inputs: Vec<String>,
    /// Every file met so far.
    pub files: Vec<FileIdentity>,
    /// What is read, in order.
    pub steps: Vec<Step>,
    /// Dead-letter files used so far; offset `dead-letter.N` is the length of the N-th.
    pub dead_letters: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    job: Job,
    /// Of the compact JSON text of `job`.
    xxh3: String,
}

impl Job {
    /// Its file in a state directory.
    pub const FILE_NAME: &str = "job.json";

    /// A job that has not read anything.
    pub fn new(format: Format, key: &str, plan: &Plan, inputs: &[String]) -> Self {
        Self {
            version: JOB_VERSION,
            value_format: VALUE_FORMAT,
            format,
            key: key.to_owned(),
            aggs: plan.specs(),
            inputs: inputs.to_vec(),
            files: Vec::new(),
            steps: Vec::new(),
            dead_letters: Vec::new(),
        }
    }

    /// What tells this job from all others whose values mean something else, or come from elsewhere:
    /// the fingerprint's hash. It does not change while a job goes on.
    pub fn marker(&self) -> u64 {
        // The length before each part keeps `["a", "b"]` and `["ab"]` apart.
        let mut text = format!("{};{};", self.value_format, self.format).into_bytes();
        for list in [std::slice::from_ref(&self.key), &self.aggs, &self.inputs] {
            text.extend_from_slice(format!("{};", list.len()).as_bytes());
            for part in list {
                text.extend_from_slice(format!("{}:{part}", part.len()).as_bytes());
            }
        }
        xxh3_64(&text)
    }

    /// Where the file is in a state directory.
    pub fn path(state: &Path) -> PathBuf {
        state.join(Self::FILE_NAME)
    }

    /// Reads the job of a state directory; `None` if there is none.
    pub fn load(state: &Path) -> Result<Option<Self>> {
        let path = Self::path(state);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e)
                if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
            {
                return Ok(None);
            }
            Err(e) => return Err(CliError::io("read", &path, &e)),
        };
        Self::decode(&text, &path).map(Some)
    }

    /// Reads a job from any file.
    pub fn load_file(path: &Path) -> Result<Self> {
        let text = fs::read(path).map_err(|e| CliError::io("read", path, &e))?;
        Self::decode(&text, path)
    }

    fn decode(text: &[u8], path: &Path) -> Result<Self> {
        let damaged =
            |why: String| CliError::failure(format!("{} is damaged: {why}", path.display())).remedy(REMEDY);
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        #[derive(Deserialize)]
        struct Outer {
            job: Version,
        }
        let outer: Outer = serde_json::from_slice(text).map_err(|e| damaged(e.to_string()))?;
        if outer.job.version > JOB_VERSION {
            return Err(CliError::failure(format!(
                "{} was written by a newer laminar: version {}, this one knows {JOB_VERSION}",
                path.display(),
                outer.job.version
            ))
            .remedy("Use the newer program."));
        }
        let envelope: Envelope = serde_json::from_slice(text).map_err(|e| damaged(e.to_string()))?;
        // Encoding again must give the same bytes, so that any changed byte is seen.
        if envelope.job.encode()? != text {
            return Err(damaged("its checksum does not match".to_owned()));
        }
        let job = envelope.job;
        if job.value_format != VALUE_FORMAT || job.steps.iter().any(|s| s.file >= job.files.len()) {
            return Err(damaged("its fields contradict each other".to_owned()));
        }
        Ok(job)
    }

    /// The text of the file.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let inner = serde_json::to_vec(self).map_err(CliError::internal)?;
        let envelope = Envelope { job: self.clone(), xxh3: format!("{:016x}", xxh3_64(&inner)) };
        let mut text = serde_json::to_vec(&envelope).map_err(CliError::internal)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Writes the job so that a crash leaves the old or the new one, and it is on disk afterwards.
    pub fn save(&self, state: &Path) -> Result<()> {
        let path = Self::path(state);
        let temporary = state.join(format!("{}.tmp", Self::FILE_NAME));
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(&self.encode().map_err(|e| std::io::Error::other(e.to_string()))?)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(state)?.sync_all()
        };
        write().map_err(|e| CliError::io("write", &path, &e))
    }

    /// Makes the state directory for a first run, durably, with all directories above it that are missing. A directory that has something else in
    /// it is refused.
    pub fn prepare_dir(state: &Path) -> Result<()> {
        create_dir_durably(&OsVfs::new(), state)
            .map_err(|e| CliError::io("create the state directory", state, &e))?;
        let entries = fs::read_dir(state).map_err(|e| CliError::io("read the state directory", state, &e))?;
        for entry in entries {
            let name = entry.map_err(|e| CliError::io("read the state directory", state, &e))?.file_name();
            // A crash while the very first job.json was written leaves its temporary file.
            let name_text = name.to_string_lossy();
            // Another process of a job of several may have been faster.
            let of_process = name_text.starts_with("process-") && name_text.ends_with(".lock");
            if !of_process && name_text != format!("{}.tmp", Self::FILE_NAME) {
                return Err(CliError::failure(format!(
                    "{} is not empty and was not made by `laminar run`: it has {:?} but no {}",
                    state.display(),
                    name,
                    Self::FILE_NAME
                ))
                .remedy("Name another directory with --state."));
            }
        }
        Ok(())
    }

    /// What is different in this command line, if anything is.
    pub fn difference(
        &self,
        format: Option<Format>,
        key: &str,
        plan: &Plan,
        inputs: &[String],
    ) -> Option<String> {
        let differs =
            |option: &str, was: &str, is: &str| Some(format!("{option} was `{was}`, now it is `{is}`"));
        if let Some(format) = format.filter(|f| *f != self.format) {
            return differs("--format", &self.format.to_string(), &format.to_string());
        }
        if self.key != key {
            return differs("--key", &self.key, key);
        }
        if self.aggs != plan.specs() {
            return differs("--agg", &self.aggs.join(","), &plan.specs().join(","));
        }
        if self.inputs != inputs {
            return differs("the input", &self.inputs.join(" "), &inputs.join(" "));
        }
        None
    }

    /// The aggregates.
    pub fn plan(&self) -> Result<Plan> {
        Plan::parse(&self.aggs)
    }

    /// Gives up the dead-letter files, which go on being those of the state that this one is a fork of: were
    /// they cut back to where the fork begins, that state would miss records. Their places stay taken.
    pub fn forget_dead_letters(&mut self) {
        for path in &mut self.dead_letters {
            path.push_str(" (before the fork)");
        }
    }

    /// Place of a dead-letter file in the list, where it is added if it is new.
    pub fn dead_letter(&mut self, path: &str) -> usize {
        self.dead_letters.iter().position(|p| p == path).unwrap_or_else(|| {
            self.dead_letters.push(path.to_owned());
            self.dead_letters.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        let plan = Plan::parse(&["count".to_owned(), "sum:x".to_owned()]).unwrap();
        Job::new(Format::Csv, "user", &plan, &["a.csv".to_owned()])
    }

    #[test]
    fn saved_and_loaded_and_every_changed_byte_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Job::load(dir.path()).unwrap(), None);
        job().save(dir.path()).unwrap();
        assert_eq!(Job::load(dir.path()).unwrap(), Some(job()));
        let text = fs::read(Job::path(dir.path())).unwrap();
        for at in 0..text.len() {
            for bit in [1, 0x20] {
                let mut bad = text.clone();
                bad[at] ^= bit;
                let error = Job::decode(&bad, Path::new("job.json")).unwrap_err().to_string();
                assert!(error.contains("damaged") || error.contains("newer"), "{error}");
            }
            assert!(Job::decode(&text[..at], Path::new("job.json")).is_err());
        }
    }

    #[test]
    fn another_command_line_is_named() {
        let j = job();
        let plan = j.plan().unwrap();
        let a = ["a.csv".to_owned()];
        assert_eq!(j.difference(None, "user", &plan, &a), None);
        assert_eq!(
            j.difference(Some(Format::Tsv), "user", &plan, &a).unwrap(),
            "--format was `csv`, now it is `tsv`"
        );
        assert_eq!(j.difference(None, "id", &plan, &a).unwrap(), "--key was `user`, now it is `id`");
        assert_eq!(
            j.difference(None, "user", &Plan::parse(&[]).unwrap(), &a).unwrap(),
            "--agg was `count,sum:x`, now it is `count`"
        );
        assert_eq!(
            j.difference(None, "user", &plan, &["b".to_owned()]).unwrap(),
            "the input was `a.csv`, now it is `b`"
        );
    }

    #[test]
    fn a_directory_with_other_things_in_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("new/state");
        Job::prepare_dir(&state).unwrap();
        fs::write(state.join("job.json.tmp"), b"{").unwrap();
        Job::prepare_dir(&state).unwrap();
        fs::write(state.join("photo.jpg"), b"x").unwrap();
        assert!(Job::prepare_dir(&state).unwrap_err().to_string().contains("photo.jpg"));
    }
}

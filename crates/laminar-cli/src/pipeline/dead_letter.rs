//! The file that takes the records a job could not use.
//!
//! Its length is committed with every epoch, after its bytes are on disk; at a restart it is cut
//! back to the committed length. So each bad record stands in it once, however often the job was
//! killed.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{CliError, Result};
use crate::input::BadRecord;
use crate::output::sync_directory_of;

/// One line of the file.
#[derive(Serialize)]
struct Entry<'a> {
    file: &'a str,
    line: u64,
    offset: u64,
    reason: &'a str,
    text: &'a str,
}

/// An open dead-letter file.
#[derive(Debug)]
pub struct DeadLetter {
    path: PathBuf,
    file: File,
    len: u64,
    buffer: Vec<u8>,
}

impl DeadLetter {
    /// Refuses a file that this job has not named so far and that has something in it: records of
    /// another job, or something else altogether.
    pub fn check_new(path: &Path) -> Result<()> {
        match path.metadata() {
            Ok(metadata) if metadata.len() > 0 || !metadata.is_file() => {
                Err(CliError::usage(format!("the dead-letter file {} exists already", path.display()))
                    .remedy("Name a new file; nothing was written to this one."))
            }
            _ => Ok(()),
        }
    }

    /// Opens the file and cuts it back to what is committed. Only for a file that is named in
    /// `job.json`: what stands behind the committed length was written by a run that was killed.
    pub fn open(path: &Path, committed: u64) -> Result<Self> {
        let io = |action: &'static str| move |e: std::io::Error| CliError::io(action, path, &e);
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path)
            .map_err(io("open the dead-letter file"))?;
        let len = file.metadata().map_err(io("read the length of"))?.len();
        if len < committed {
            return Err(CliError::failure(format!(
                "the dead-letter file {} has {len} bytes, but {committed} were committed",
                path.display()
            ))
            .remedy("Restore it, or name a new file with --on-error dead-letter FILE."));
        }
        // Before anything in it is committed, so that a power cut cannot take the file with what was.
        sync_directory_of(path)?;
        file.set_len(committed).map_err(io("cut back the dead-letter file"))?;
        file.seek(SeekFrom::Start(committed)).map_err(io("seek in the dead-letter file"))?;
        Ok(Self { path: path.to_owned(), file, len: committed, buffer: Vec::new() })
    }

    /// Adds a record; on disk after the next [`DeadLetter::sync`].
    pub fn add(&mut self, file: &str, bad: &BadRecord) -> Result<()> {
        let text = String::from_utf8_lossy(&bad.text);
        let entry = Entry { file, line: bad.line, offset: bad.offset, reason: &bad.reason, text: &text };
        serde_json::to_writer(&mut self.buffer, &entry).map_err(CliError::internal)?;
        self.buffer.push(b'\n');
        Ok(())
    }

    /// Makes everything added durable; gives the length to commit.
    pub fn sync(&mut self) -> Result<u64> {
        if !self.buffer.is_empty() {
            let result = self.file.write_all(&self.buffer).and_then(|()| self.file.sync_data());
            result.map_err(|e| CliError::io("write the dead-letter file", &self.path, &e))?;
            self.len += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(self.len)
    }
}

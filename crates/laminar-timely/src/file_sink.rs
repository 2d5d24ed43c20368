//! Rows as lines of files, exactly once.
//!
//! ```text
//! DIR/JOB.lock                       (one lock for each part: PART.lock)
//!     g0001-w0000.rows               rows, one after the other, nothing else
//!     g0001-w0000.commits            whose file it is, then one record for each commit: epoch, length, checksum
//! ```
//! A commit writes rows, syncs them, then writes and syncs a record that says how long the file is now. Opening takes the
//! last record that is whole, checks that the rows are as long, and cuts off what is behind: that was never committed, and
//! the job gives it again. All operations go through the same interface to the file system as the state.

use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use laminar_storage::Epoch;
use laminar_storage::error::Detail;
use laminar_storage::vfs::{
    Access, OsVfs, Vfs, VfsFile, absolute, create_dir_durably, read_small_file, replace_file_durably,
    write_all_at,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::Error;
use crate::sink::{CutBack, EpochSink, SinkPart};

const MAGIC: [u8; 8] = *b"lamrows1";
const HEADER: usize = 24;
const RECORD: usize = 24;
/// Records of old commits are forgotten when there are so many bytes of them.
const COMPACT: u64 = 1 << 20;

/// How a row becomes a line.
type Format<D> = Box<dyn Fn(&D, &mut Vec<u8>) + Send>;

/// A sink that appends to one file for each worker.
///
/// In its directory there are, for worker 3 in the first size of the job, `g0001-w0003.rows` with the rows, beside it what was
/// committed, and a lock. All files that end in `.rows`, of all sizes that the job had, together are the output; what stands in one of
/// them is in the order of its commits.
pub struct FileSink<D> {
    part: SinkPart,
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    rows: Arc<dyn VfsFile>,
    commits: Arc<dyn VfsFile>,
    owner: u64,
    epoch: Epoch,
    /// Bytes of rows that are committed, and of records.
    len: u64,
    commits_len: u64,
    format: Format<D>,
    buffer: Vec<u8>,
    _lock: Box<dyn std::fmt::Debug + Send + Sync>,
    row: PhantomData<fn(D)>,
}

impl<D> std::fmt::Debug for FileSink<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { part, epoch, len, .. } = self;
        f.debug_struct("FileSink")
            .field("part", part)
            .field("epoch", epoch)
            .field("len", len)
            .finish_non_exhaustive()
    }
}

impl<D> FileSink<D> {
    /// Opens the file of a part in `dir`, which is created when missing, and cuts off what was not committed. `job` marks
    /// whose files they are; `format` appends what a row looks like, with its end.
    ///
    /// # Errors
    /// `Io`; `Sink` when somebody else has it open, when the files are another job's, or when committed rows are missing.
    pub fn open(
        dir: impl AsRef<Path>,
        job: &str,
        part: SinkPart,
        format: impl Fn(&D, &mut Vec<u8>) + Send + 'static,
    ) -> Result<Self, Error> {
        Self::open_with(dir, job, part, format, Arc::new(OsVfs::new()))
    }

    /// As [`Self::open`], on another file system.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(
        dir: impl AsRef<Path>,
        job: &str,
        part: SinkPart,
        format: impl Fn(&D, &mut Vec<u8>) + Send + 'static,
        vfs: Arc<dyn Vfs>,
    ) -> Result<Self, Error> {
        let dir = absolute(dir.as_ref());
        create_dir_durably(vfs.as_ref(), &dir)
            .map_err(|e| Error::io("could not create the sink's directory", &dir, e))?;
        let lock_path = dir.join(format!("{part}.lock"));
        let lock = vfs.lock(&lock_path).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => Error::sink(
                Detail::new("this part of the output is being written already")
                    .at_path(&lock_path)
                    .remedy("End the process that has it; two jobs must not share a directory of output."),
            ),
            _ => Error::io("could not lock the sink", &lock_path, e),
        })?;
        let owner = xxh3_64(job.as_bytes());
        let [rows_path, commits_path] = paths(&dir, part);
        let existing =
            |path: &Path| vfs.kind(path).map_err(|e| Error::io("could not look at the sink's file", path, e));
        if existing(&commits_path)?.is_none() {
            if existing(&rows_path)?.is_some() {
                return Err(foreign(&rows_path, "the file does not say whose it is"));
            }
            let failed = |e| Error::io("could not create the sink's file", &commits_path, e);
            // That nothing is committed is a commit too, so that a sink can be cut back to it.
            let begin = [header(owner).as_slice(), &encode_record(owner, Epoch::ZERO, 0)].concat();
            replace_file_durably(vfs.as_ref(), &dir, &file_name(part, "commits"), &begin).map_err(failed)?;
        }
        let (epoch, len, commits_len) = last_commit(vfs.as_ref(), &commits_path, owner)?;
        let rows = open_rows(vfs.as_ref(), &dir, &rows_path, len)?;
        let failed = |e| Error::io("could not open the sink's file", &commits_path, e);
        // Whoever wrote the last record may have ended because its sync failed: it can be read then, and is not on the disk, and no
        // later sync would know. So all of them are written again, into another file. That also makes the names here durable.
        let mut bytes = read_small_file(vfs.as_ref(), &commits_path, 4 * COMPACT).map_err(failed)?;
        bytes.truncate(usize::try_from(commits_len).unwrap_or(usize::MAX));
        replace_file_durably(vfs.as_ref(), &dir, &file_name(part, "commits"), &bytes).map_err(failed)?;
        let commits = vfs.open(&commits_path, Access::ReadWrite).map_err(failed)?;
        let format: Format<D> = Box::new(format);
        let (buffer, row) = (Vec::new(), PhantomData);
        Ok(Self {
            part,
            vfs,
            dir,
            rows,
            commits,
            owner,
            epoch,
            len,
            commits_len,
            format,
            buffer,
            _lock: lock,
            row,
        })
    }

    /// The file that rows go to.
    #[must_use]
    pub fn path(dir: &Path, part: SinkPart) -> PathBuf {
        dir.join(file_name(part, "rows"))
    }

    fn record(&mut self, epoch: Epoch) -> io::Result<()> {
        let record = encode_record(self.owner, epoch, self.len);
        if self.commits_len > COMPACT {
            // All or nothing: the old file stays until the new one is durable. The newer half stays, to be cut back to.
            let [_, path] = paths(&self.dir, self.part);
            let old = read_small_file(self.vfs.as_ref(), &path, 4 * COMPACT)?;
            let newer = old.len().saturating_sub(HEADER) / RECORD / 2 * RECORD;
            let kept = old.get(old.len().saturating_sub(newer)..).unwrap_or_default();
            let bytes = [header(self.owner).as_slice(), kept, &record].concat();
            replace_file_durably(self.vfs.as_ref(), &self.dir, &file_name(self.part, "commits"), &bytes)?;
            self.commits = self.vfs.open(&path, Access::ReadWrite)?;
            self.commits_len = bytes.len() as u64;
            return Ok(());
        }
        write_all_at(self.commits.as_ref(), &record, self.commits_len)?;
        self.commits.sync_data()?;
        self.commits_len += RECORD as u64;
        Ok(())
    }

    /// Cuts everything off behind the commit of `epoch`: rows after so many bytes, and records.
    fn cut(&mut self, epoch: Epoch, len: u64, commits_len: u64) -> io::Result<()> {
        // First what counts, then the rows: were this interrupted, opening would cut them off.
        self.commits.set_len(commits_len)?;
        self.commits.sync_data()?;
        (self.epoch, self.len, self.commits_len) = (epoch, len, commits_len);
        self.rows.set_len(len)?;
        self.rows.sync_data()
    }
}

impl<D> EpochSink<D> for FileSink<D> {
    fn committed(&self) -> Epoch {
        self.epoch
    }

    fn commit(&mut self, epochs: &[(Epoch, Vec<D>)]) -> io::Result<()> {
        let Some((last, _)) = epochs.last() else { return Ok(()) };
        self.buffer.clear();
        for row in epochs.iter().flat_map(|(_, rows)| rows) {
            (self.format)(row, &mut self.buffer);
        }
        write_all_at(self.rows.as_ref(), &self.buffer, self.len)?;
        self.rows.sync_data()?;
        self.len += self.buffer.len() as u64;
        self.record(*last)?;
        self.epoch = *last;
        Ok(())
    }

    fn prepare_cut_back(&mut self, epoch: Epoch) -> io::Result<CutBack<Self>> {
        let [_, path] = paths(&self.dir, self.part);
        let bytes = read_small_file(self.vfs.as_ref(), &path, 4 * COMPACT)?;
        let (mut last, mut end) = (None, HEADER);
        for record in bytes.get(HEADER..).unwrap_or_default().chunks(RECORD) {
            let Some(found) = decode_record(self.owner, record).filter(|(found, _)| *found <= epoch) else {
                break;
            };
            (last, end) = (Some(found), end + RECORD);
        }
        let Some((found, len)) = last else {
            let what =
                format!("what was committed up to epoch {epoch} is not noted in {} any more", path.display());
            return Err(io::Error::other(what));
        };
        Ok(CutBack::new(found, move |sink: &mut Self| sink.cut(found, len, end as u64)))
    }
}

fn file_name(part: SinkPart, what: &str) -> String {
    format!("{part}.{what}")
}

fn paths(dir: &Path, part: SinkPart) -> [PathBuf; 2] {
    ["rows", "commits"].map(|what| dir.join(file_name(part, what)))
}

fn foreign(path: &Path, what: &'static str) -> Error {
    Error::sink(
        Detail::new(what)
            .at_path(path)
            .remedy("Name another directory for the output, or remove what is there."),
    )
}

fn header(owner: u64) -> Vec<u8> {
    let mut bytes = [MAGIC, owner.to_le_bytes()].concat();
    let sum = xxh3_64(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

/// Epoch, length, and a checksum that starts from the owner.
fn encode_record(owner: u64, epoch: Epoch, len: u64) -> Vec<u8> {
    let mut bytes = [epoch.0.to_le_bytes(), len.to_le_bytes()].concat();
    let sum = xxh3_64(&[owner.to_le_bytes().as_slice(), &bytes].concat());
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

/// What [`encode_record`] made, if it is whole.
fn decode_record(owner: u64, record: &[u8]) -> Option<(Epoch, u64)> {
    let number =
        |at: usize| record.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let (epoch, len) = (Epoch(number(0)?), number(8)?);
    (encode_record(owner, epoch, len) == record).then_some((epoch, len))
}

/// The last commit: its epoch, how many bytes of rows there are, and of records.
fn last_commit(vfs: &dyn Vfs, path: &Path, owner: u64) -> Result<(Epoch, u64, u64), Error> {
    let bytes = read_small_file(vfs, path, 4 * COMPACT)
        .map_err(|e| Error::io("could not read what the sink committed", path, e))?;
    let Some((found, records)) =
        bytes.split_at_checked(HEADER).filter(|(found, _)| found.starts_with(&MAGIC))
    else {
        return Err(foreign(path, "this is no file of a sink, or not a whole one"));
    };
    if found != header(owner) {
        return Err(foreign(path, "the output belongs to another job"));
    }
    let (mut last, mut len) = ((Epoch::ZERO, 0), HEADER as u64);
    for record in records.chunks(RECORD) {
        // What is behind the first one that is not whole was never confirmed.
        let Some(found) = decode_record(owner, record) else { break };
        last = found;
        len += RECORD as u64;
    }
    Ok((last.0, last.1, len))
}

/// Opens the rows, as long as they are committed.
fn open_rows(vfs: &dyn Vfs, dir: &Path, path: &Path, len: u64) -> Result<Arc<dyn VfsFile>, Error> {
    let failed = |e| Error::io("could not open the sink's rows", path, e);
    let rows = if vfs.kind(path).map_err(failed)?.is_some() {
        vfs.open(path, Access::ReadWrite).map_err(failed)?
    } else {
        let rows = vfs.create_new(path).map_err(failed)?;
        vfs.sync_dir(dir).map_err(failed)?;
        rows
    };
    let size = rows.size().map_err(failed)?;
    if size < len {
        return Err(Error::sink(
            Detail::new(format!("{len} bytes of rows were committed, and {size} are there"))
                .at_path(path)
                .remedy("The file was cut or replaced by an older copy; restore it."),
        ));
    }
    if size > len {
        tracing::info!(path = %path.display(), bytes = size - len, "rows that were not committed are cut off");
        rows.set_len(len).and_then(|()| rows.sync_data()).map_err(failed)?;
    }
    Ok(rows)
}

#[cfg(test)]
mod tests;

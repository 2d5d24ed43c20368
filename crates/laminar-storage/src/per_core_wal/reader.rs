//! Reading one segment, record by record, without changing anything.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::entry::{PerCoreWalEntry, Stamp, View};
use super::error::PerCoreWalError;
use super::frames::{FrameReader, Rest, Step};
use super::segment::SegmentName;
use crate::error::{Detail, io_detail};
use crate::format::fields::Fields;
use crate::format::frame::{FrameFault, FrameHeader};
use crate::format::record::Record;
use crate::format::segment_header::{HeaderFault, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::ids::CoreId;
use crate::vfs::{Access, OsVfs, Vfs, VfsFile, read_up_to_at};

/// What [`PerCoreWalReader::read_next`] found. Positions are byte offsets in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WalReadResult {
    /// A valid record.
    Entry(PerCoreWalEntry),
    /// The end of the segment; nothing but zeros written ahead follows, or zeros and then what an earlier use of the
    /// file left.
    Eof,
    /// The file ends inside a frame.
    TornWrite {
        /// Where the frame begins.
        position: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A frame's bytes do not match their checksum.
    ChecksumMismatch {
        /// Where the frame begins.
        position: u64,
        /// Checksum in the file.
        expected: u32,
        /// Checksum of the bytes.
        actual: u32,
    },
    /// A checksum fits, but the bytes make no sense; or a later frame proves that these bytes were
    /// valid once.
    Corrupted {
        /// Where the frame begins.
        position: u64,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads one segment from its beginning or from the start of a frame. As an iterator it yields the
/// valid records and ends at the first place that is not one, or behind an error.
///
/// A log that is cut by checkpoints uses the files of obsolete segments again. Whoever reads one of those at that time is told.
#[derive(Debug)]
pub struct PerCoreWalReader {
    path: PathBuf,
    header: SegmentHeader,
    file: Arc<dyn VfsFile>,
    file_len: u64,
    frames: FrameReader,
    /// The frame in hand, and how far its records were read.
    frame: Option<OpenFrame>,
    /// As an iterator it has yielded an error, which is the last.
    failed: bool,
}

#[derive(Debug)]
struct OpenFrame {
    header: FrameHeader,
    at: u64,
    payload: Vec<u8>,
    read: usize,
    next: u32,
    timestamp: u64,
}

impl PerCoreWalReader {
    /// Opens a segment of `core`.
    ///
    /// # Errors
    /// `SegmentNotFound` when the file is missing, `Corrupted` when its header is not one,
    /// `NewerFormat` when a later version wrote it, `InvalidCore` when it is another core's.
    pub fn open(core: usize, path: &Path) -> Result<Self, PerCoreWalError> {
        Self::open_from(core, path, SEGMENT_HEADER_LEN as u64)
    }

    /// Opens a segment of `core` at the offset of a frame, as [`Self::position`] gave it. An offset
    /// inside the header means the first frame.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_from(core: usize, path: &Path, position: u64) -> Result<Self, PerCoreWalError> {
        Self::open_with(&OsVfs::new(), core, path, position)
    }

    /// As [`Self::open_from`], on another outside world.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(
        vfs: &dyn Vfs,
        core: usize,
        path: &Path,
        position: u64,
    ) -> Result<Self, PerCoreWalError> {
        let header = read_header(vfs, path)?.map_err(|fault| header_error(path, fault))?;
        if header.core.index() != core {
            return Err(PerCoreWalError::InvalidCore(Box::new(
                Detail::new(format!("a segment of core {} was opened for core {core}", header.core))
                    .at_path(path)
                    .remedy("Open it for its own core."),
            )));
        }
        let file = vfs.open(path, Access::Read).map_err(|e| open_error(path, e))?;
        let file_len = file.size().map_err(|e| PerCoreWalError::io("could not read the length", path, e))?;
        let start = position.max(SEGMENT_HEADER_LEN as u64);
        Ok(Self {
            path: path.to_path_buf(),
            frames: FrameReader::new(Arc::clone(&file), header.salt(), header.core, start, file_len),
            header,
            file,
            file_len,
            frame: None,
            failed: false,
        })
    }

    /// The next record, or why there is none. After anything but an entry it stays where it is.
    ///
    /// # Errors
    /// Only when the file cannot be read at all, or is another segment by now.
    pub fn read_next(&mut self) -> Result<WalReadResult, PerCoreWalError> {
        loop {
            if let Some(result) = self.next_in_frame() {
                return Ok(result);
            }
            if let Some(end) = self.next_frame()? {
                return Ok(end);
            }
        }
    }

    /// Every valid record up to the end or the first place that is not one.
    ///
    /// # Errors
    /// As [`Self::read_next`].
    pub fn read_all(&mut self) -> Result<Vec<PerCoreWalEntry>, PerCoreWalError> {
        self.read_up_to_epoch(u64::MAX)
    }

    /// Every valid record of epochs up to and including `epoch`; stops at the first later one.
    ///
    /// # Errors
    /// As [`Self::read_next`].
    pub fn read_up_to_epoch(&mut self, epoch: u64) -> Result<Vec<PerCoreWalEntry>, PerCoreWalError> {
        let mut entries = Vec::new();
        while let WalReadResult::Entry(entry) = self.read_next()? {
            if entry.epoch > epoch {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Reads to the end of the valid frames; returns that offset.
    ///
    /// # Errors
    /// As [`Self::read_next`].
    pub fn find_valid_end(&mut self) -> Result<u64, PerCoreWalError> {
        while let WalReadResult::Entry(_) = self.read_next()? {}
        // `Iterator::position` would win over ours on `&mut self`.
        Ok(Self::position(self))
    }

    /// Offset of the frame that the next record is in, or of the next frame.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.frame.as_ref().map_or(self.frames.offset(), |frame| frame.at)
    }

    /// Length of the file when it was opened.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    fn next_in_frame(&mut self) -> Option<WalReadResult> {
        let core_id = self.header.core.index();
        let frame = self.frame.as_mut()?;
        while frame.next < frame.header.records {
            let mut fields = Fields::new(frame.payload.get(frame.read..).unwrap_or_default());
            let Some((record, after_ns)) = Record::decode(&mut fields) else {
                return Some(senseless(frame.at));
            };
            if frame.next > 0 {
                frame.timestamp = frame.timestamp.saturating_add(u64::from(after_ns));
            }
            let at = Stamp {
                core_id,
                epoch: frame.header.epoch.0,
                sequence: frame.header.first_sequence.0.saturating_add(u64::from(frame.next)),
                timestamp_ns: frame.timestamp,
            };
            let view = View::of(&record, at);
            frame.next += 1;
            frame.read = frame.payload.len() - fields.remaining();
            match view {
                View::Entry(entry) => return Some(WalReadResult::Entry(entry)),
                View::Hidden => {}
                View::Senseless => return Some(senseless(frame.at)),
            }
        }
        self.frame = None;
        None
    }

    /// Whether the file is still this segment. A log that goes on may have been cut meanwhile, and use the file for another.
    fn check_is_still_it(&self) -> Result<(), PerCoreWalError> {
        let mut bytes = [0; SEGMENT_HEADER_LEN];
        let got = read_up_to_at(self.file.as_ref(), &mut bytes, 0)
            .map_err(|e| PerCoreWalError::io("could not read the segment header", &self.path, e))?;
        match SegmentHeader::decode(bytes.get(..got).unwrap_or_default()) {
            Ok(header) if header == self.header => Ok(()),
            Ok(_) => {
                let gone = io::Error::new(
                    io::ErrorKind::NotFound,
                    "the segment was removed while it was read, and its file is used for another",
                );
                let detail = io_detail("could not go on reading the segment", &self.path, gone);
                let remedy = "A checkpoint has what was in it: read that, and the segments that are there.";
                Err(PerCoreWalError::Io(Box::new(detail.remedy(remedy))))
            }
            Err(fault) => Err(header_error(&self.path, fault)),
        }
    }

    /// Takes the next frame in hand; or says why there is none.
    fn next_frame(&mut self) -> Result<Option<WalReadResult>, PerCoreWalError> {
        let at = self.frames.offset();
        // Beside a log that goes on, what was read ahead may be older than what stands there: at a fault it is read again,
        // and once more when a later frame proves that there was something.
        let mut looks = 0;
        loop {
            looks += 1;
            let fault = match self.take_frame(at)? {
                Taken::Frame => return Ok(None),
                Taken::End => return Ok(Some(WalReadResult::Eof)),
                Taken::Fault(fault) => fault,
            };
            self.frames.forget();
            if looks == 1 {
                continue;
            }
            let rest = self
                .frames
                .examine_rest(self.header.last_sequence)
                .map_err(|e| PerCoreWalError::io("could not read the segment", &self.path, e))?;
            if rest.witness.is_some() && looks == 2 {
                continue;
            }
            self.check_is_still_it()?;
            return Ok(Some(self.end(fault, &rest)));
        }
    }

    /// Takes the frame that begins at `at` in hand.
    fn take_frame(&mut self, at: u64) -> Result<Taken, PerCoreWalError> {
        let read = |e| PerCoreWalError::io("could not read the segment", &self.path, e);
        Ok(match self.frames.step().map_err(read)? {
            Step::Frame(header, payload) => {
                self.frame = Some(OpenFrame {
                    header,
                    at,
                    payload: payload.to_vec(),
                    read: 0,
                    next: 0,
                    timestamp: header.first_timestamp.0,
                });
                Taken::Frame
            }
            Step::End => Taken::End,
            Step::Fault(fault) => Taken::Fault(fault),
        })
    }

    /// What it means that there is no frame.
    fn end(&self, fault: FrameFault, rest: &Rest) -> WalReadResult {
        let position = self.frames.offset();
        if let Some(witness) = rest.witness {
            let reason =
                format!("{fault}, but the frame at {witness} was written after these bytes were durable");
            return WalReadResult::Corrupted { position, reason };
        }
        match fault {
            FrameFault::Zero | FrameFault::Short if rest.is_unused(fault, self.header.reused) => {
                WalReadResult::Eof
            }
            FrameFault::HeaderChecksum { stored, computed }
            | FrameFault::PayloadChecksum { stored, computed } => {
                WalReadResult::ChecksumMismatch { position, expected: stored, actual: computed }
            }
            FrameFault::Field => WalReadResult::Corrupted { position, reason: fault.to_string() },
            FrameFault::Zero | FrameFault::Short => {
                WalReadResult::TornWrite { position, reason: fault.to_string() }
            }
        }
    }
}

/// What stands where a frame should begin.
enum Taken {
    Frame,
    End,
    Fault(FrameFault),
}

impl Iterator for PerCoreWalReader {
    type Item = Result<PerCoreWalEntry, PerCoreWalError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        match self.read_next() {
            Ok(WalReadResult::Entry(entry)) => Some(Ok(entry)),
            Ok(_) => None,
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }
}

fn senseless(position: u64) -> WalReadResult {
    WalReadResult::Corrupted { position, reason: "a record in a valid frame makes no sense".to_owned() }
}

fn open_error(path: &Path, error: io::Error) -> PerCoreWalError {
    if error.kind() == io::ErrorKind::NotFound {
        PerCoreWalError::SegmentNotFound(Box::new(
            Detail::new("the segment is missing")
                .at_path(path)
                .remedy("Restore the file, or check the path."),
        ))
    } else {
        PerCoreWalError::io("could not open the segment", path, error)
    }
}

/// Reads a segment's header; the outer error is for files that cannot be read at all.
pub(crate) fn read_header(
    vfs: &dyn Vfs,
    path: &Path,
) -> Result<Result<SegmentHeader, HeaderFault>, PerCoreWalError> {
    let file = vfs.open(path, Access::Read).map_err(|e| open_error(path, e))?;
    let mut bytes = [0; SEGMENT_HEADER_LEN];
    let got = read_up_to_at(file.as_ref(), &mut bytes, 0)
        .map_err(|e| PerCoreWalError::io("could not read the segment header", path, e))?;
    let header = SegmentHeader::decode(bytes.get(..got).unwrap_or_default());
    // A sound header under another segment's name is that segment, misplaced.
    let name = path.file_name().and_then(|n| n.to_str()).and_then(SegmentName::parse);
    match (header, name) {
        (Ok(header), Some(name)) if SegmentName::of(&header) != name => Err(misplaced(path, &header)),
        _ => Ok(header),
    }
}

fn misplaced(path: &Path, header: &SegmentHeader) -> PerCoreWalError {
    PerCoreWalError::corrupted(
        Detail::new(format!("this file is the segment {}", SegmentName::of(header).file_name()))
            .at_path(path)
            .at_offset(0)
            .on_core(header.core)
            .remedy("Put every segment back under its own name."),
    )
}

/// The error for a header that is not one.
pub(crate) fn header_error(path: &Path, fault: HeaderFault) -> PerCoreWalError {
    let detail = |what: String| Detail::new(what).at_path(path).at_offset(0);
    match fault {
        HeaderFault::Newer { version } => PerCoreWalError::NewerFormat(Box::new(
            detail(format!(
                "written in format version {version}, this program reads up to {}",
                crate::format::FORMAT_VERSION
            ))
            .remedy("Use a newer version of laminar-storage; nothing was changed."),
        )),
        HeaderFault::Blank => PerCoreWalError::corrupted(
            detail("the segment header is missing".to_owned()).remedy("Restore the file from a copy."),
        ),
        HeaderFault::Checksum | HeaderFault::Field => PerCoreWalError::corrupted(
            detail("the segment header is damaged".to_owned()).remedy("Restore the file from a copy."),
        ),
    }
}

/// Header of every frame and its decoded records, for readers inside the crate.
pub(crate) fn for_each_record(
    header: &FrameHeader,
    payload: &[u8],
    mut each: impl FnMut(Record<'_>, Stamp) -> Result<(), PerCoreWalError>,
    senseless: impl Fn() -> PerCoreWalError,
) -> Result<(), PerCoreWalError> {
    let mut fields = Fields::new(payload);
    let mut timestamp = header.first_timestamp.0;
    let core: CoreId = header.core;
    for index in 0..header.records {
        let Some((record, after_ns)) = Record::decode(&mut fields) else { return Err(senseless()) };
        if index > 0 {
            timestamp = timestamp.saturating_add(u64::from(after_ns));
        }
        let stamp = Stamp {
            core_id: core.index(),
            epoch: header.epoch.0,
            sequence: header.first_sequence.0.saturating_add(u64::from(index)),
            timestamp_ns: timestamp,
        };
        each(record, stamp)?;
    }
    if fields.remaining() == 0 { Ok(()) } else { Err(senseless()) }
}

/// Opens a segment for reading inside the crate.
pub(crate) fn open_segment(vfs: &dyn Vfs, path: &Path) -> Result<Arc<dyn VfsFile>, PerCoreWalError> {
    vfs.open(path, Access::Read).map_err(|e| open_error(path, e))
}

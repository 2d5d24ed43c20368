//! Hands out a region from its beginning to its end, keeping some of it committed in reserve.

use std::sync::Arc;

use super::Ring0Error;
use super::prefault::Prefaulter;
use super::region::{Base, HUGE_PAGE, Region};

/// The next free byte of a region, held by its only user.
#[derive(Debug)]
pub(super) struct Bump {
    region: Arc<Region>,
    helper: Arc<Prefaulter>,
    /// Everything before is handed out.
    next: usize,
    /// Handing out past this looks at the reserve first; `next..=hard`.
    soft: usize,
    /// What was committed when last looked; at most `region.committed()`.
    hard: usize,
}

impl Bump {
    pub(super) fn new(region: Arc<Region>, helper: Arc<Prefaulter>) -> Self {
        helper.look_after(&region);
        let hard = region.committed();
        // A store that never fills half of its first huge page never gets a second one.
        Self { region, helper, next: 0, soft: hard.min(HUGE_PAGE / 2), hard }
    }

    pub(super) fn base(&self) -> Base {
        self.region.base()
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Bytes handed out.
    pub(super) fn used(&self) -> usize {
        self.next
    }

    /// The offset of `bytes` fresh, zeroed bytes that belong to the caller alone.
    #[inline]
    pub(super) fn take(&mut self, bytes: usize) -> Result<usize, Ring0Error> {
        let start = self.next;
        let end = start + bytes;
        if end > self.soft {
            self.look_ahead(end)?;
        }
        self.next = end;
        Ok(start)
    }

    /// Sees to it that the next `bytes` bytes can be taken.
    #[inline]
    pub(super) fn reserve(&mut self, bytes: usize) -> Result<(), Ring0Error> {
        let end = self.next + bytes;
        if end > self.hard { self.look_ahead(end) } else { Ok(()) }
    }

    /// Whether `bytes` more can be had without committing anything now.
    pub(super) fn has_ready(&self, bytes: usize) -> bool {
        self.next + bytes <= self.hard || self.next + bytes <= self.region.committed()
    }

    #[cold]
    fn look_ahead(&mut self, end: usize) -> Result<(), Ring0Error> {
        self.hard = self.region.committed();
        if end > self.hard {
            if end > self.region.len() {
                return Err(Ring0Error::StateFull { limit_bytes: self.region.len() as u64 });
            }
            self.region.commit(end).map_err(Ring0Error::Memory)?;
            self.hard = self.region.committed();
        }
        let (chunk, ahead) = (self.region.chunk(), self.region.ahead(self.hard));
        if end + ahead > self.hard {
            // One chunk more, so that there is no waking for each few bytes; and no other look before that much is used.
            self.region.want(end + ahead + chunk);
            self.helper.wake();
            self.soft = self.hard.min(end + chunk);
        } else {
            self.soft = self.hard - ahead;
        }
        Ok(())
    }
}

impl Drop for Bump {
    fn drop(&mut self) {
        self.region.note_used(self.next);
    }
}

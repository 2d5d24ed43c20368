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
    /// Handing out, or promising, past this looks at the reserve first; `next..=hard`.
    soft: usize,
    /// What was committed when last looked; at most `region.committed()`.
    hard: usize,
    /// No memory is asked for ahead of need from here on.
    most: usize,
    /// As little is asked for ahead as can be.
    in_small_steps: bool,
}

impl Bump {
    /// Whoever uses it seldom needs more than the first `most` bytes.
    pub(super) fn new(region: Arc<Region>, helper: Arc<Prefaulter>, most: usize) -> Self {
        helper.look_after(&region);
        let hard = region.committed();
        // A store that never fills half of its first huge page never gets a second one.
        let soft = hard.min(HUGE_PAGE / 2);
        Self { region, helper, next: 0, soft, hard, most, in_small_steps: false }
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

    /// Whether to grow by little at a time: whoever fills a state at once can wait for memory now and then, and
    /// what is given ahead of need would be filled for nothing.
    pub(super) fn grow_in_small_steps(&mut self, small: bool) {
        self.in_small_steps = small;
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
        if end > self.soft { self.look_ahead(end) } else { Ok(()) }
    }

    /// Whether `bytes` more can be had without asking for memory.
    pub(super) fn has_plenty(&self, bytes: usize) -> bool {
        self.next + bytes <= self.soft
    }

    /// Where memory has to be given, by the helper or at once. On success `soft` is `end` at least.
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
        let chunk = self.region.chunk();
        let ahead = if self.in_small_steps { chunk } else { self.region.ahead(self.hard) };
        if end + ahead <= self.hard {
            self.soft = self.hard - ahead;
            return Ok(());
        }
        // By steps, because waking the helper is a call of the system's: there is no other look before one is used up.
        let step = (ahead / 4).max(chunk);
        let wanted = (end + ahead + step).min(self.most.max(end));
        if wanted > self.hard {
            self.region.want(wanted);
            self.helper.wake();
        }
        self.soft = self.hard.min(end + step);
        Ok(())
    }
}

impl Drop for Bump {
    fn drop(&mut self) {
        self.region.note_used(self.next);
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::super::segment::SEGMENT;
    use super::*;

    const MIB: usize = 1 << 20;

    /// A helper that nobody wakes: what it would do is done by hand.
    fn bump(len: usize, most: usize) -> Bump {
        Bump::new(Arc::new(Region::reserve(len as u64).unwrap()), Prefaulter::without_thread(), most)
    }

    /// Whether Ring 0 had to get memory by itself; the helper does all that is wanted behind it.
    fn waited(bump: &mut Bump, change: impl FnOnce(&mut Bump)) -> bool {
        let before = bump.region.committed();
        change(bump);
        let waited = bump.region.committed() > before;
        while bump.region.commit_wanted() {}
        waited
    }

    fn taking_waited(bump: &mut Bump, bytes: usize) -> bool {
        waited(bump, |bump| {
            bump.take(bytes).unwrap();
        })
    }

    /// An index promises eighteen segments with every put, which is more than a small region has ahead.
    #[test]
    fn with_a_prompt_helper_what_is_promised_is_there() {
        for (len, chunk) in [(20 * MIB, 128 << 10), (64 * MIB, HUGE_PAGE)] {
            let mut bump = bump(len, len);
            assert_eq!(bump.region.chunk(), chunk);
            waited(&mut bump, |bump| bump.reserve(18 * SEGMENT).unwrap());
            for taken in 0..200 {
                assert!(!waited(&mut bump, |bump| bump.reserve(18 * SEGMENT).unwrap()), "{taken} of {len}");
                assert!(!taking_waited(&mut bump, SEGMENT), "{taken} of {len}");
            }
        }
    }

    #[test]
    fn with_a_prompt_helper_nothing_waits_up_to_the_end_and_then_it_is_full() {
        let mut bump = bump(64 * MIB, 64 * MIB);
        while bump.used() < 64 * MIB {
            assert!(!taking_waited(&mut bump, MIB / 4));
        }
        assert!(matches!(bump.take(16), Err(Ring0Error::StateFull { .. })));
    }

    /// Without a helper everything is as it should be, and slower.
    #[test]
    fn without_a_helper_ring_0_gets_what_it_needs() {
        let mut bump = bump(64 * MIB, 64 * MIB);
        for at in (0..64 * MIB).step_by(MIB) {
            assert_eq!(bump.take(MIB).unwrap(), at);
            assert!(bump.region.committed() >= at + MIB);
            assert!(bump.soft <= bump.hard && bump.next <= bump.soft);
        }
    }

    /// A state that is nearly as large as it may become wants no memory that it cannot use.
    #[test]
    fn nothing_is_wanted_beyond_what_is_seldom_needed() {
        let mut bump = bump(64 * MIB, 32 * MIB);
        while bump.used() < 32 * MIB {
            taking_waited(&mut bump, MIB);
        }
        assert_eq!(bump.region.committed(), 32 * MIB);
        assert_eq!(bump.take(MIB).unwrap(), 32 * MIB);
    }

    #[test]
    fn in_small_steps_little_is_there_ahead() {
        let ahead = |small| {
            let mut bump = bump(64 * MIB, 64 * MIB);
            bump.grow_in_small_steps(small);
            while bump.used() < 32 * MIB {
                taking_waited(&mut bump, MIB / 4);
            }
            (bump.region.committed() - bump.used()) / MIB
        };
        assert!(ahead(true) <= 6 && ahead(false) >= 8, "{} and {}", ahead(true), ahead(false));
    }
}

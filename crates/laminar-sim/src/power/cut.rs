//! What a power cut may leave of a recording.

use laminar_storage::ids::Epoch;

use super::SECTOR;
use super::disk::Disk;
use super::recording::{Record, Recording};
use crate::dice::{Dice, mixed};

/// A stretch of a recording between two flushes; the power fails at its end, when the second flush has
/// been asked for and not been answered.
///
/// A cut anywhere within leaves a state that one at the end may leave, too, and at the end most epochs
/// have been acknowledged. So nothing is lost by looking at the ends alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Records before it; the last one is a flush, if there is one.
    pub begin: usize,
    /// Records before the flush that ends it.
    pub end: usize,
    /// Writes within.
    pub writes: usize,
    /// The newest epoch acknowledged before the end.
    pub acknowledged: Epoch,
}

/// All stretches of a recording, in order.
#[must_use]
pub fn stretches(recording: &Recording) -> Vec<Stretch> {
    let mut all = Vec::new();
    let mut now = Stretch { begin: 0, end: 0, writes: 0, acknowledged: recording.floor };
    for (at, record) in recording.records.iter().enumerate() {
        match record {
            Record::Write { .. } => now.writes += 1,
            Record::Acknowledged(epoch) => now.acknowledged = now.acknowledged.max(*epoch),
            Record::Flush => {
                all.push(Stretch { end: at, ..now });
                now = Stretch { begin: at + 1, writes: 0, ..now };
            }
        }
    }
    all.push(Stretch { end: recording.records.len(), ..now });
    all
}

/// A disk that is carried along a recording.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    recording: &'a Recording,
    at: usize,
    disk: Disk,
}

impl<'a> Cursor<'a> {
    /// At the beginning.
    #[must_use]
    pub fn new(recording: &'a Recording) -> Self {
        Self { recording, at: 0, disk: recording.base.clone() }
    }

    /// Everything before the beginning of a stretch; never goes back.
    pub fn forward(&mut self, begin: usize) -> &Disk {
        for record in self.recording.records.get(self.at..begin).unwrap_or_default() {
            if let Record::Write { offset, bytes } = record {
                self.disk.write(*offset, bytes);
            }
        }
        self.at = self.at.max(begin);
        &self.disk
    }

    /// What is on the disk after a power cut at the end of a stretch. Choice 0 is nothing of what the
    /// stretch wrote, 1 is all of it; every other number decides for something between.
    #[must_use]
    pub fn image(&mut self, stretch: &Stretch, choice: u64) -> Disk {
        let mut disk = self.forward(stretch.begin).clone();
        let records = self.recording.records.get(stretch.begin..stretch.end).unwrap_or_default();
        let writes: Vec<(u64, &[u8])> = records
            .iter()
            .filter_map(|record| match record {
                Record::Write { offset, bytes } => Some((*offset, bytes.as_slice())),
                _ => None,
            })
            .collect();
        let seed = mixed(mixed(self.recording.truth, stretch.begin as u64), choice);
        let mut dice = Dice::new(seed);
        for (write, fate) in writes.iter().zip(fates(choice, writes.len(), &mut dice)) {
            apply(&mut disk, *write, fate, &mut dice);
        }
        disk
    }
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Lost,
    Kept,
    /// Its first sectors are kept.
    Begun,
    /// Some of its sectors are kept.
    Torn,
}

fn fates(choice: u64, writes: usize, dice: &mut Dice) -> Vec<Fate> {
    use Fate::{Begun, Kept, Lost, Torn};
    let (some, one) = (dice.index(writes.max(1)), dice.roll(3) + 2);
    (0..writes)
        .map(|n| match choice {
            0 => Lost,
            1 => Kept,
            _ => match choice % 6 {
                // In order up to some write, which may be torn.
                2 if n == some => Begun,
                2 | 3 => {
                    if n < some {
                        Kept
                    } else {
                        Lost
                    }
                }
                // In any order: a few, or most.
                4 => {
                    if dice.one_in(one) {
                        Kept
                    } else {
                        Lost
                    }
                }
                5 => {
                    if dice.one_in(one) {
                        Lost
                    } else {
                        Kept
                    }
                }
                // Only one, or all but one.
                0 => {
                    if (n == some) == (one % 2 == 0) {
                        Kept
                    } else {
                        Lost
                    }
                }
                // By sectors.
                _ => [Lost, Kept, Torn, Begun].get(dice.index(4)).copied().unwrap_or(Torn),
            },
        })
        .collect()
}

fn apply(disk: &mut Disk, (offset, bytes): (u64, &[u8]), fate: Fate, dice: &mut Dice) {
    // A file system writes its superblock in place, under one checksum, and needs it whole. Disks with sectors of
    // 4 KiB write it whole, and ext4 counts on that.
    let whole = offset < 4096;
    match fate {
        Fate::Lost => {}
        Fate::Kept => disk.write(offset, bytes),
        Fate::Begun | Fate::Torn if whole => disk.write(offset, bytes),
        Fate::Begun => {
            let sectors = dice.index(bytes.len().div_ceil(SECTOR) + 1);
            disk.write(offset, bytes.get(..sectors * SECTOR).unwrap_or(bytes));
        }
        Fate::Torn => {
            let mut at = offset;
            for sector in bytes.chunks(SECTOR) {
                if dice.one_in(2) {
                    disk.write(at, sector);
                }
                at += sector.len() as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests say so by failing")]
    use std::collections::BTreeSet;

    use super::*;

    const BEGIN: u64 = 1 << 16;

    /// Three writes of two sectors, the second flushed; each writes its own number.
    fn recording() -> Recording {
        let write = |n: u64| Record::Write { offset: BEGIN + n * 1024, bytes: vec![n as u8 + 1; 1024] };
        let ack = |epoch| Record::Acknowledged(Epoch(epoch));
        let records = vec![
            write(0),
            Record::Flush,
            ack(4),
            write(1),
            ack(5),
            write(2),
            Record::Flush,
            ack(6),
            write(3),
        ];
        Recording { truth: 11, floor: Epoch(1), base: Disk::new(1 << 20), records, ..Recording::default() }
    }

    /// What became of each sector.
    fn sectors(disk: &Disk) -> Vec<u8> {
        (0..8).map(|n| disk.read(BEGIN + n * 512, 1)[0]).collect()
    }

    #[test]
    fn a_stretch_lies_between_two_flushes_and_counts_every_earlier_acknowledgement() {
        let all = stretches(&recording());
        let stretch = |begin, end, writes, epoch| Stretch { begin, end, writes, acknowledged: Epoch(epoch) };
        assert_eq!(all, [stretch(0, 1, 1, 1), stretch(2, 6, 2, 5), stretch(7, 9, 1, 6)]);
    }

    #[test]
    fn what_was_flushed_is_always_there_and_what_came_later_in_every_combination() {
        let recording = recording();
        let all = stretches(&recording);
        let mut cursor = Cursor::new(&recording);
        let mut seen = BTreeSet::new();
        for choice in 0..12_000 {
            let image = sectors(&cursor.image(&all[1], choice));
            assert_eq!(image[..2], [1, 1], "it was flushed");
            assert_eq!(image[6..], [0, 0], "it had not been written");
            assert!(image[2..4].iter().all(|byte| [0, 2].contains(byte)), "{image:?}");
            assert!(image[4..6].iter().all(|byte| [0, 3].contains(byte)), "{image:?}");
            match choice {
                0 => assert_eq!(image[2..6], [0; 4]),
                1 => assert_eq!(image[2..6], [2, 2, 3, 3]),
                _ => {}
            }
            seen.insert(image[2..6].to_vec());
        }
        assert_eq!(seen.len(), 16, "every combination of four sectors");
    }

    #[test]
    fn a_choice_is_the_same_each_time_and_from_anywhere() {
        let recording = recording();
        let all = stretches(&recording);
        let mut walked = Cursor::new(&recording);
        for stretch in &all {
            for choice in 0..20 {
                let image = walked.image(stretch, choice);
                assert_eq!(image, Cursor::new(&recording).image(stretch, choice));
            }
        }
        assert_eq!(sectors(&walked.image(&all[2], 1)), [1, 1, 2, 2, 3, 3, 4, 4]);
    }

    #[test]
    fn of_two_writes_to_one_place_the_later_one_stays() {
        let mut recording = recording();
        let write = |byte| Record::Write { offset: BEGIN, bytes: vec![byte; 512] };
        recording.records = vec![write(1), write(2)];
        let stretch = stretches(&recording)[0];
        let mut cursor = Cursor::new(&recording);
        let seen: BTreeSet<u8> = (0..100).map(|n| cursor.image(&stretch, n).read(BEGIN, 1)[0]).collect();
        assert_eq!(seen, BTreeSet::from([0, 1, 2]));
        assert_eq!(cursor.image(&stretch, 1).read(BEGIN, 1), [2]);
    }

    #[test]
    fn a_superblock_is_never_torn() {
        let mut recording = recording();
        recording.records = vec![Record::Write { offset: 1024, bytes: vec![5; 1024] }];
        let stretch = stretches(&recording)[0];
        let mut cursor = Cursor::new(&recording);
        for choice in 0..100 {
            let disk = cursor.image(&stretch, choice);
            assert_eq!(disk.read(1024, 512), disk.read(1536, 512));
        }
    }
}

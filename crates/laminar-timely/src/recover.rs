//! What all processes agree on before the dataflow is built: whose state it is, how large the job was, and where it goes on.
//!
//! Every process says what it has, and each decides for itself; as all hear the same, all decide the same. No minimum is
//! ever taken over those that happened to answer: a part that is missing is an error, not an empty one.

use laminar_storage::error::Detail;
use serde::{Deserialize, Serialize};

use laminar_storage::Epoch;

use crate::config::OtherSize;
use crate::error::Error;
use crate::layout::{Generation, Part, Restored, Size, Stage};

/// What a process has, before it opens anything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Has {
    pub(crate) process: u32,
    pub(crate) job: String,
    pub(crate) size: Size,
    pub(crate) parts: Vec<Part>,
    /// Where it backs the job up, if it does.
    pub(crate) backups: Option<String>,
    /// The latest generation that there are backups of, as far as that could be seen.
    pub(crate) backed_up: u32,
    /// It has no part, and there is a backup that could be restored, as far as that could be seen.
    pub(crate) restorable: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Every process opens its own part of this generation. Some may not have begun theirs yet; then nobody has sealed
    /// anything.
    Open { generation: Generation, begun: bool },
    /// The parts of one generation are distributed to those of a later one.
    Rescale {
        from: Generation,
        size: Size,
        /// Which process reads which part.
        readers: Vec<(u32, u32)>,
        to: Generation,
    },
}

/// Decides what to do with what all processes have.
pub(crate) fn decide(all: &[Has], other_size: OtherSize) -> Result<Decision, Error> {
    let Some(first) = all.first() else { return Err(senseless("no process said what it has".into())) };
    for has in all {
        if (&has.job, has.size) != (&first.job, first.size) {
            let what =
                format!("process {} runs another job or size than process {}", has.process, first.process);
            return Err(senseless(what));
        }
        if has.backups != first.backups {
            let place = |has: &Has| has.backups.clone().unwrap_or_else(|| "nowhere".to_owned());
            let what = format!(
                "process {} backs the job up to {}, and process {} to {}",
                has.process,
                place(has),
                first.process,
                place(first)
            );
            let remedy =
                "Name the same place in all processes (`--backup`, Config::backup_to); nothing was changed.";
            return Err(Error::disagreement(Detail::new(what).remedy(remedy)));
        }
        if let Some(foreign) = has.parts.iter().find(|part| part.job != first.job) {
            let what = format!(
                "process {} has state of the job {:?}, and this is the job {:?}",
                has.process, foreign.job, first.job
            );
            return Err(senseless(what));
        }
    }
    let mut generations: Vec<_> = all.iter().flat_map(|has| &has.parts).map(|part| part.generation).collect();
    generations.sort_unstable();
    generations.dedup();
    for generation in generations.iter().rev() {
        let found = Found::of(all, *generation)?;
        if found.counts() {
            let taken = all.iter().map(|has| has.backed_up).max().unwrap_or_default();
            return found.open_or_rescale(first.size, &generations, taken, other_size);
        }
        if found.needed() {
            return Err(found.incomplete());
        }
        // It was never finished: the one before has everything.
    }
    if generations.iter().any(|generation| generation.0 > 1) {
        let what = "there are parts that were being filled, and none that they could be filled from";
        return Err(senseless(what.to_owned()));
    }
    if generations.is_empty() && all.iter().any(|has| has.restorable) {
        return Err(Error::disagreement(
            Detail::new("no process has anything of the job, and there are backups of it: its state is lost").remedy(
                "Restore it from its newest backup; or name another place for the backups of a new job, and an empty output.",
            ),
        ));
    }
    Ok(Decision::Open { generation: Generation(1), begun: false })
}

/// One generation, as all processes see it.
struct Found {
    generation: Generation,
    size: Size,
    /// Which processes see which part, and how far it got.
    parts: Vec<Vec<(u32, Stage)>>,
}

impl Found {
    fn of(all: &[Has], generation: Generation) -> Result<Self, Error> {
        let mut found: Option<Self> = None;
        let of_it = |part: &&Part| part.generation == generation;
        // One that nobody began to use may have been left behind by a try in another size.
        let furthest = all.iter().flat_map(|has| &has.parts).filter(of_it).max_by_key(|part| part.stage);
        let size = furthest.map(|part| part.size);
        let counts = |part: &&Part| of_it(part) && (part.stage > Stage::Filling || Some(part.size) == size);
        for has in all {
            for part in has.parts.iter().filter(counts) {
                let found = found.get_or_insert_with(|| Self {
                    generation,
                    size: part.size,
                    parts: vec![Vec::new(); part.size.processes as usize],
                });
                if found.size != part.size {
                    let what = format!("parts of generation {} are of different sizes", generation.0);
                    return Err(senseless(what));
                }
                let Some(seen) = found.parts.get_mut(part.part as usize) else {
                    return Err(senseless(format!(
                        "part {} of generation {} is one too many",
                        part.part, generation.0
                    )));
                };
                seen.push((has.process, part.stage));
            }
        }
        found.ok_or_else(|| senseless(format!("generation {} has no part", generation.0)))
    }

    /// All parts have everything.
    fn complete(&self) -> bool {
        self.parts.iter().all(|seen| seen.iter().any(|(_, stage)| *stage >= Stage::Ready))
    }

    /// Some part knows that all have everything, so that an earlier generation does not count.
    fn needed(&self) -> bool {
        self.parts.iter().flatten().any(|(_, stage)| *stage == Stage::Current)
    }

    /// The state is that of this generation. The very first one is begun by each process for itself.
    fn counts(&self) -> bool {
        self.complete() || (self.generation == Generation(1) && self.needed())
    }

    /// A part that its process does not see, and one that does.
    fn stray(&self) -> Option<(u32, u32)> {
        (0..).zip(&self.parts).find_map(|(part, seen)| {
            let (process, _) = seen.first()?;
            seen.iter().all(|(process, _)| *process != part).then_some((part, *process))
        })
    }

    fn incomplete(&self) -> Error {
        let whole = |seen: &Vec<(u32, Stage)>| seen.iter().any(|(_, stage)| *stage >= Stage::Ready);
        let missing = (0..).zip(&self.parts).filter(|(_, seen)| !whole(seen));
        let missing: Vec<_> = missing.map(|(part, _): (u32, _)| part.to_string()).collect();
        senseless(format!(
            "no process has all of part {} of generation {}, which is one of {}",
            missing.join(", "),
            self.generation.0,
            self.size
        ))
    }

    fn open_or_rescale(
        &self,
        wanted: Size,
        generations: &[Generation],
        taken: u32,
        other_size: OtherSize,
    ) -> Result<Decision, Error> {
        let own = |(part, seen): (u32, &Vec<(u32, Stage)>)| seen.iter().any(|(process, _)| *process == part);
        let mut numbered = (0..).zip(&self.parts);
        if self.size == wanted {
            let begun = self.complete();
            let at_home = numbered.all(|(part, seen)| (!begun && seen.is_empty()) || own((part, seen)));
            if at_home {
                return Ok(Decision::Open { generation: self.generation, begun });
            }
        }
        if !self.complete() {
            return Err(self.incomplete());
        }
        if other_size == OtherSize::Refuse {
            return Err(senseless(match self.stray() {
                Some((part, process)) if self.size == wanted => {
                    format!("part {part} is with process {process}, and process {part} does not see it")
                }
                _ => format!("the state is that of {}, and this is a job of {wanted}", self.size),
            }));
        }
        // Whose part it is reads it, if it sees it: others may have a copy of what it was once.
        let readers = (0..).zip(&self.parts).filter_map(|(part, seen)| {
            let own = seen.iter().map(|(process, _)| *process).find(|process| *process == part);
            Some((part, own.or(seen.iter().map(|(process, _)| *process).min())?))
        });
        let newest = generations.iter().max().map_or(self.generation.0, |newest| newest.0).max(taken);
        Ok(Decision::Rescale {
            from: self.generation,
            size: self.size,
            readers: readers.collect(),
            to: Generation(newest.saturating_add(1)),
        })
    }
}

/// The backups that the parts of a generation came from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origins(Vec<Restored>);

impl Origins {
    pub(crate) fn of(all: &[Has], generation: Generation) -> Self {
        let parts = all.iter().flat_map(|has| &has.parts).filter(|part| part.generation == generation);
        Self(parts.filter_map(|part| part.restored).collect())
    }

    /// Machines that restored their parts at different times saw more or fewer backups beside theirs; the job goes on above all
    /// that any of them saw.
    pub(crate) fn newest(&self) -> Option<Restored> {
        self.0.iter().copied().max_by_key(|restored| restored.used)
    }

    /// Parts that are still those of backups when `point` is what all can recover to are of the same one: a restored job that has
    /// done nothing comes to the epoch of a newer backup, with the state of an older one.
    pub(crate) fn check(&self, point: Epoch) -> Result<(), Error> {
        let still =
            || self.0.iter().filter(|restored| restored.is_still(point)).map(|restored| restored.epoch);
        match (still().min(), still().max()) {
            (Some(one), Some(other)) if one != other => Err(Error::disagreement(
                Detail::new(format!(
                    "a part is that of a backup of epoch {one}, and another that of a backup of epoch {other}"
                ))
                .remedy("Restore all parts, from the same backup; nothing was changed."),
            )),
            _ => Ok(()),
        }
    }
}

fn senseless(what: String) -> Error {
    Error::disagreement(Detail::new(what).remedy(
        "Start the job with the processes, workers and directories that it had, or allow another size \
         (`--rescale`, OtherSize::Rescale) with every part reachable; nothing was changed.",
    ))
}

/// What a process has, once its log is surveyed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Recoverable {
    pub(crate) process: u32,
    /// Its recovery point, the smallest of all its parts.
    pub(crate) epoch: u64,
    /// It has no part yet.
    pub(crate) new: bool,
}

/// The epoch that all have.
pub(crate) fn agree(all: &[Recoverable]) -> Result<u64, Error> {
    let new = all.iter().find(|one| one.new);
    let old = all.iter().find(|one| !one.new && one.epoch > 0);
    if let (Some(new), Some(old)) = (new, old) {
        let what = format!(
            "process {} has no state, and process {} has epoch {}: what the first had is lost",
            new.process, old.process, old.epoch
        );
        return Err(Error::disagreement(Detail::new(what).remedy(
            "Give it back the directory that it had; or remove those of all processes and restore all parts from one backup of the \
             job. Nothing was changed.",
        )));
    }
    all.iter()
        .map(|one| one.epoch)
        .min()
        .ok_or_else(|| senseless("no process said which epoch it has".to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]
    use super::*;

    const SIZE: Size = Size { processes: 2, workers: 1 };

    fn part(generation: u32, part: u32, size: Size, stage: Stage) -> Part {
        Part::new("job", Generation(generation), part, size, stage)
    }

    fn all(parts: [Vec<Part>; 2]) -> Vec<Has> {
        let has = |(process, parts)| Has {
            process,
            job: "job".into(),
            size: SIZE,
            parts,
            backups: None,
            backed_up: 0,
            restorable: false,
        };
        (0..).zip(parts).map(has).collect()
    }

    fn refused(parts: [Vec<Part>; 2], other_size: OtherSize) -> String {
        decide(&all(parts), other_size).unwrap_err().to_string()
    }

    #[test]
    fn a_new_job_begins_and_an_interrupted_beginning_goes_on() {
        let open = |begun| Decision::Open { generation: Generation(1), begun };
        assert_eq!(decide(&all([vec![], vec![]]), OtherSize::Refuse).unwrap(), open(false));
        let one = part(1, 0, SIZE, Stage::Current);
        assert_eq!(decide(&all([vec![one.clone()], vec![]]), OtherSize::Refuse).unwrap(), open(false));
        let two = part(1, 1, SIZE, Stage::Current);
        assert_eq!(
            decide(&all([vec![one.clone()], vec![two.clone()]]), OtherSize::Refuse).unwrap(),
            open(true)
        );
        // A directory that both share.
        let both = vec![one, two];
        assert_eq!(decide(&all([both.clone(), both]), OtherSize::Refuse).unwrap(), open(true));
    }

    #[test]
    fn a_lost_part_is_an_error_and_not_an_empty_one() {
        let lost = [
            Recoverable { process: 0, epoch: 9, new: false },
            Recoverable { process: 1, epoch: 0, new: true },
        ];
        let error = agree(&lost).unwrap_err().to_string();
        assert!(error.contains("process 1 has no state") && error.contains("epoch 9"), "{error}");
        let begun = [Recoverable { epoch: 0, ..lost[0] }, lost[1]];
        assert_eq!(agree(&begun).unwrap(), 0);
        let both = [lost[0], Recoverable { process: 1, epoch: 7, new: false }];
        assert_eq!(agree(&both).unwrap(), 7);
        assert!(agree(&[]).is_err());
        let current = part(2, 0, SIZE, Stage::Current);
        let error = refused([vec![current], vec![]], OtherSize::Rescale);
        assert!(error.contains("part 1 of generation 2"), "{error}");
        let filling = part(2, 0, SIZE, Stage::Filling);
        assert!(
            refused([vec![filling], vec![]], OtherSize::Rescale)
                .contains("none that they could be filled from")
        );
    }

    #[test]
    fn another_size_is_refused_or_rescaled_from_the_newest_complete_generation() {
        let old = Size { processes: 3, workers: 1 };
        let parts = |stage| (0..3).map(|number| part(4, number, old, stage)).collect::<Vec<_>>();
        let there = [parts(Stage::Current), vec![]];
        assert!(refused(there.clone(), OtherSize::Refuse).contains("3 processes"), "{there:?}");
        let expected = Decision::Rescale {
            from: Generation(4),
            size: old,
            readers: vec![(0, 0), (1, 0), (2, 0)],
            to: Generation(5),
        };
        assert_eq!(decide(&all(there.clone()), OtherSize::Rescale).unwrap(), expected);
        // One that there are backups of is another life's.
        let mut taken = all(there.clone());
        taken[1].backed_up = 8;
        let Decision::Rescale { to, .. } = decide(&taken, OtherSize::Rescale).unwrap() else {
            panic!("not rescaled")
        };
        assert_eq!(to, Generation(9));
        // A rescaling that was interrupted is begun again, under a new number.
        let mut again = there.clone();
        again[1].push(part(5, 1, SIZE, Stage::Ready));
        let Decision::Rescale { from, to, .. } = decide(&all(again.clone()), OtherSize::Rescale).unwrap()
        else {
            panic!("not rescaled")
        };
        assert_eq!((from, to), (Generation(4), Generation(6)));
        // One that all parts finished counts, whether or not anybody noticed.
        again[0].push(part(5, 0, SIZE, Stage::Ready));
        let open = Decision::Open { generation: Generation(5), begun: true };
        assert_eq!(decide(&all(again), OtherSize::Refuse).unwrap(), open);
        let mut lost = there;
        lost[0].pop();
        assert!(refused(lost, OtherSize::Rescale).contains("part 2 of generation 4"));
    }

    /// A machine was restored first, and the life of the job that should be dead made one more backup before the second was: by the
    /// first one's note the epochs of that backup would have been used again.
    #[test]
    fn machines_restored_at_different_times_go_on_above_the_newest_backup_that_any_saw() {
        let seen = |number, used| {
            let mut part = part(1, number, SIZE, Stage::Current);
            let (epoch, at, used) = (Epoch(7), Epoch(7), Epoch(used));
            part.restored = Some(Restored { epoch, generation: Generation(1), size: SIZE, at, used });
            vec![part]
        };
        let used = |parts| Origins::of(&all(parts), Generation(1)).newest().map(|restored| restored.used);
        assert_eq!(used([seen(0, 9), seen(1, 12)]), Some(Epoch(12)));
        assert_eq!(used([seen(0, 12), seen(1, 9)]), Some(Epoch(12)));
        // Whose disk was not lost says nothing.
        assert_eq!(used([vec![part(1, 0, SIZE, Stage::Current)], seen(1, 9)]), Some(Epoch(9)));
        assert_eq!(Origins::of(&all([seen(0, 9), vec![]]), Generation(2)).newest(), None);
    }

    /// One machine was killed when it alone had begun its part of a new size; the job went on without it in another size, under the
    /// same number, and now it is there again.
    #[test]
    fn a_part_that_was_never_filled_stands_in_nobodys_way() {
        let other = Size { processes: 3, workers: 1 };
        let current = |number| vec![part(5, number, SIZE, Stage::Current)];
        let mut there = all([current(0), current(1)]);
        there[1].parts.push(part(5, 2, other, Stage::Filling));
        let open = Decision::Open { generation: Generation(5), begun: true };
        assert_eq!(decide(&there, OtherSize::Refuse).unwrap(), open);
    }

    /// A supervisor starts the same command again on empty disks.
    #[test]
    fn a_job_that_has_lost_everything_does_not_begin_anew_beside_its_backups() {
        let mut lost = all([vec![], vec![]]);
        lost[1].restorable = true;
        let error = decide(&lost, OtherSize::Rescale).unwrap_err().to_string();
        assert!(error.contains("its state is lost") && error.contains("newest backup"), "{error}");
    }

    #[test]
    fn parts_of_two_backups_do_not_go_together() {
        let of = |number, epoch| {
            let mut part = part(1, number, SIZE, Stage::Current);
            let (epoch, at, used) = (Epoch(epoch), Epoch(epoch), Epoch(18));
            part.restored = Some(Restored { epoch, generation: Generation(1), size: SIZE, at, used });
            vec![part]
        };
        let origins = Origins::of(&all([of(0, 10), of(1, 18)]), Generation(1));
        let error = origins.check(Epoch(18)).unwrap_err().to_string();
        assert!(error.contains("epoch 10") && error.contains("epoch 18"), "{error}");
        // Past both, they are of one life again: who lost its part could only restore what all had.
        assert!(origins.check(Epoch(19)).is_ok());
        assert!(Origins::of(&all([of(0, 18), of(1, 18)]), Generation(1)).check(Epoch(18)).is_ok());
    }

    #[test]
    fn what_belongs_to_another_job_is_refused() {
        let mut foreign = all([vec![part(1, 0, SIZE, Stage::Current)], vec![]]);
        foreign[0].parts[0].job = "other".into();
        assert!(decide(&foreign, OtherSize::Refuse).unwrap_err().to_string().contains("other"));
        let mut size = all([vec![], vec![]]);
        size[1].size.workers = 2;
        assert!(decide(&size, OtherSize::Refuse).is_err());
        let mut places = all([vec![], vec![]]);
        places[1].backups = Some("s3://bucket/job".into());
        let error = decide(&places, OtherSize::Refuse).unwrap_err().to_string();
        assert!(
            error.contains("process 1 backs the job up to s3://bucket/job") && error.contains("nowhere"),
            "{error}"
        );
    }
}

//! Which of the pending items arrive: every legal selection when they are few, the telling ones and
//! random ones when they are many.

use std::collections::HashSet;

use xxhash_rust::xxh3::{Xxh3DefaultBuilder, xxh3_64_with_seed};

use super::image::{Image, Survey, What};
use super::image_id::{ImageId, Picks, Torn};
use super::tree::DataChange;

/// What the file system promises beyond POSIX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Nothing: every combination the module documentation allows.
    PosixMinimal,
    /// Changes of sizes and entries arrive in the order they were made, a grown size only after the
    /// bytes it shows, and any sync that needs the journal writes out all of it.
    Ext4Ordered,
}

/// How many images of a snapshot are made.
#[derive(Clone, Debug)]
pub struct ImagePolicy {
    /// What the file system promises.
    pub profile: Profile,
    /// All selections are made when there are at most two to the power of this many; else structured
    /// and random ones.
    pub exhaustive_bits: u32,
    /// How many random selections are added when not all are made.
    pub random: u32,
    /// At how many byte positions the last atom of each selection is torn.
    pub torn_cuts: u32,
    /// Whether bytes that a size shows but that never arrived may be garbage as well as zeros.
    pub garbage: bool,
    /// Of all these images one in so many is made.
    pub one_in: u64,
    /// Decides random selections and cuts.
    pub seed: u64,
}

impl Default for ImagePolicy {
    fn default() -> Self {
        Self {
            profile: Profile::PosixMinimal,
            exhaustive_bits: 12,
            random: 256,
            torn_cuts: 2,
            garbage: true,
            one_in: 1,
            seed: 1,
        }
    }
}

/// The images of one snapshot, each different content once.
#[derive(Debug)]
pub struct Images {
    survey: Survey,
    policy: ImagePolicy,
    selections: Selections,
    variants: Vec<ImageId>,
    seen: HashSet<u64, Xxh3DefaultBuilder>,
    duplicates: u64,
    exhaustive: bool,
    newer_than: Option<u64>,
}

impl Images {
    pub(super) fn new(survey: Survey, policy: &ImagePolicy) -> Self {
        let needs = Needs::new(&survey, policy.profile);
        let all = needs.every(1 << policy.exhaustive_bits.min(24));
        let exhaustive = all.is_some();
        let telling = |needs| Telling { needs, next: 0, seen: HashSet::default() };
        let selections =
            all.map_or_else(|| Selections::Telling(telling(needs)), |all| Selections::All(all.into_iter()));
        Self {
            survey,
            policy: policy.clone(),
            selections,
            variants: Vec::new(),
            seen: HashSet::default(),
            duplicates: 0,
            exhaustive,
            newer_than: None,
        }
    }

    /// Without those in which nothing of what a later operation than number `op` did has arrived. Where every image
    /// of the snapshot after that operation was made, they are all among those; but for other places where an atom is
    /// torn.
    #[must_use]
    pub fn newer_than(self, op: u64) -> Self {
        Self { newer_than: Some(op), ..self }
    }

    /// How many images were made and found to be the same as an earlier one, so far.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Whether every legal selection of pending items is among them.
    #[must_use]
    pub fn is_exhaustive(&self) -> bool {
        self.exhaustive
    }

    /// Decided before an image is put together, which is what costs.
    fn is_chosen(&self, id: &ImageId) -> bool {
        self.policy.one_in <= 1
            || id.draw(self.policy.seed ^ self.survey.op()).is_multiple_of(self.policy.one_in)
    }

    fn add_variants(&mut self, picks: Picks) {
        let survey = &self.survey;
        let mut last_atom = None;
        let (mut sized, mut dropped) = (false, false);
        let mut is_new = self.newer_than.is_none();
        for (number, item) in survey.items.iter().enumerate() {
            is_new |= picks.has(number) && self.newer_than.is_some_and(|op| item.op > op);
            match (item.what, picks.has(number)) {
                (What::Atom { file, index }, true) => last_atom = Some((number, file, index)),
                (What::Atom { .. }, false) => dropped = true,
                (What::Size { .. }, picked) => sized |= picked,
                (What::Entry { .. }, _) => {}
            }
        }
        let plain = ImageId { picks, ..ImageId::default() };
        // What has not arrived may be garbage, and there is more of that now.
        let garbage = self.policy.garbage && sized && (dropped || !survey.files.is_empty());
        if garbage {
            self.variants.push(ImageId { garbage, ..plain.clone() });
        }
        if !is_new {
            return;
        }
        if let Some((item, file, index)) = last_atom
            && let DataChange::Atom { len, .. } = survey.files[file].node().pending[index].change
            && len > 1
        {
            for cut in 0..self.policy.torn_cuts {
                let random = draw(self.policy.seed, item as u64, u64::from(cut));
                let torn = if cut == 0 {
                    (len / 2, true)
                } else {
                    (1 + below(random >> 1, len - 1), random & 1 == 0)
                };
                self.variants
                    .push(ImageId { torn: Some(Torn { item, cut: torn.0, head: torn.1 }), ..plain.clone() });
            }
        }
        self.variants.push(plain);
    }
}

impl Iterator for Images {
    type Item = Image;

    fn next(&mut self) -> Option<Image> {
        loop {
            let Some(id) = self.variants.pop() else {
                let picks = match &mut self.selections {
                    Selections::All(all) => all.next(),
                    Selections::Telling(telling) => telling.next(&self.survey, &self.policy),
                }?;
                self.add_variants(picks);
                continue;
            };
            if !self.is_chosen(&id) {
                continue;
            }
            let image = self.survey.image(id);
            if self.seen.insert(image.hash()) {
                return Some(image);
            }
            self.duplicates += 1;
        }
    }
}

fn draw(seed: u64, a: u64, b: u64) -> u64 {
    xxh3_64_with_seed(&b.to_le_bytes(), xxh3_64_with_seed(&a.to_le_bytes(), seed))
}

fn below(random: u64, bound: usize) -> usize {
    usize::try_from(random % bound.max(1) as u64).unwrap_or_default()
}

/// The selections of a snapshot's items.
#[derive(Debug)]
enum Selections {
    All(std::vec::IntoIter<Picks>),
    Telling(Telling),
}

/// The telling selections, each made when it is its turn: of thousands of items often only the first few are wanted.
///
/// None, all, each item alone, all but one, every prefix and suffix; each file, all sizes, all bytes and all entries
/// alone or missing; and random ones of every density.
#[derive(Debug)]
struct Telling {
    needs: Needs,
    next: usize,
    seen: HashSet<Picks>,
}

impl Telling {
    fn next(&mut self, survey: &Survey, policy: &ImagePolicy) -> Option<Picks> {
        loop {
            let picks = self.nth(self.next, survey, policy)?;
            self.next += 1;
            if self.seen.insert(picks.clone()) {
                return Some(picks);
            }
        }
    }

    fn nth(&self, number: usize, survey: &Survey, policy: &ImagePolicy) -> Option<Picks> {
        let (needs, items, files) = (&self.needs, self.needs.len(), survey.files.len());
        let what = |item: usize| survey.items[item].what;
        let Some(number) = number.checked_sub(2) else {
            return Some(needs.closed(|_| number == 1));
        };
        // Each group of items alone, and then missing.
        let (group, missing) = (number / 2, number % 2 == 1);
        let of_group = |chosen: &dyn Fn(usize) -> bool| {
            Some(if missing { needs.opened(|item| !chosen(item)) } else { needs.closed(chosen) })
        };
        if group < 2 * items {
            let this = group / 2;
            return if group.is_multiple_of(2) {
                of_group(&|item| item == this)
            } else {
                of_group(&|item| item < this)
            };
        }
        let group = group - 2 * items;
        if group < files {
            return of_group(&|item| match what(item) {
                What::Atom { file, .. } | What::Size { file, .. } => file == group,
                What::Entry { .. } => false,
            });
        }
        match group - files {
            0 => of_group(&|item| matches!(what(item), What::Atom { .. })),
            1 => of_group(&|item| matches!(what(item), What::Size { .. })),
            2 => of_group(&|item| matches!(what(item), What::Entry { .. })),
            _ => {
                let round = number - 2 * (2 * items + files + 3);
                (round < policy.random as usize).then(|| self.random(round, policy.seed))
            }
        }
    }

    fn random(&self, round: usize, seed: u64) -> Picks {
        let seed = draw(seed, self.needs.len() as u64, round as u64);
        let density = [16, 64, 128, 192, 240][below(seed, 5)];
        let hit = |item: usize| draw(seed, item as u64, 0) % 256 < density;
        // Closing makes them fuller and opening emptier, so do each in turn.
        if round.is_multiple_of(2) { self.needs.closed(hit) } else { self.needs.opened(hit) }
    }
}

/// Which items each item needs, always earlier ones; and which have arrived for certain.
#[derive(Debug)]
struct Needs {
    direct: Vec<Vec<usize>>,
    certain: Vec<bool>,
}

impl Needs {
    fn new(survey: &Survey, profile: Profile) -> Self {
        let mut needs =
            Self { direct: vec![Vec::new(); survey.items.len()], certain: vec![false; survey.items.len()] };
        match profile {
            Profile::PosixMinimal => needs.posix(survey),
            Profile::Ext4Ordered => needs.ext4(survey),
        }
        needs
    }

    fn posix(&mut self, survey: &Survey) {
        let dirents = &survey.tree.dirents;
        let mut entries: Vec<(usize, usize)> = Vec::new();
        let mut last_size = vec![None; survey.files.len()];
        for (number, item) in survey.items.iter().enumerate() {
            match item.what {
                What::Atom { .. } => {}
                // A size that follows another one covers it; only the last one picked counts.
                What::Size { file, .. } => {
                    self.direct[number].extend(last_size[file].replace(number));
                }
                What::Entry { index } => {
                    for (earlier, at) in &entries {
                        if dirents[index].needs(&dirents[*at]) {
                            self.direct[number].push(*earlier);
                        }
                    }
                    entries.push((number, index));
                }
            }
        }
    }

    fn ext4(&mut self, survey: &Survey) {
        let mut atoms = vec![Vec::new(); survey.files.len()];
        let mut last = None;
        for (number, item) in survey.items.iter().enumerate() {
            match item.what {
                What::Atom { file, index } => {
                    let file_node = survey.files[file].node();
                    if let DataChange::Atom { offset, len, .. } = file_node.pending[index].change
                        && offset + len as u64 > file_node.durable.len()
                    {
                        atoms[file].push(number);
                    }
                    continue;
                }
                What::Size { file, .. } => self.direct[number].append(&mut atoms[file]),
                What::Entry { .. } => {}
            }
            self.direct[number].extend(last.replace(number));
            self.certain[number] = item.op <= survey.tree.journaled;
        }
        for number in (0..self.direct.len()).rev() {
            if self.certain[number] {
                for earlier in &self.direct[number] {
                    self.certain[*earlier] = true;
                }
            }
        }
    }

    fn len(&self) -> usize {
        self.direct.len()
    }

    fn met(&self, picks: &Picks, item: usize) -> bool {
        self.direct[item].iter().all(|earlier| picks.has(*earlier))
    }

    /// Every legal selection; `None` when there are more than `max`.
    fn every(&self, max: usize) -> Option<Vec<Picks>> {
        let mut found = vec![Picks::none(self.len())];
        for item in 0..self.len() {
            for i in 0..found.len() {
                if !self.met(&found[i], item) {
                    continue;
                }
                if self.certain[item] {
                    found[i].set(item, true);
                    continue;
                }
                let mut with = found[i].clone();
                with.set(item, true);
                found.push(with);
            }
            if found.len() > max {
                return None;
            }
        }
        Some(found)
    }

    /// Adds what is certain and what the chosen items need.
    fn closed(&self, chosen: impl Fn(usize) -> bool) -> Picks {
        let mut picks = Picks::none(self.len());
        for item in (0..self.len()).rev() {
            if chosen(item) || self.certain[item] || picks.has(item) {
                picks.set(item, true);
                for earlier in &self.direct[item] {
                    picks.set(*earlier, true);
                }
            }
        }
        picks
    }

    /// Leaves out what is not chosen and what needs it, except for what is certain.
    fn opened(&self, chosen: impl Fn(usize) -> bool) -> Picks {
        let mut picks = Picks::none(self.len());
        for item in 0..self.len() {
            let wanted = self.certain[item] || chosen(item);
            if wanted && self.met(&picks, item) {
                picks.set(item, true);
            }
        }
        picks
    }
}

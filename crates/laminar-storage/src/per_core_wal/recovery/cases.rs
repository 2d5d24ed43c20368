//! The truth table of recovery: what the bytes of a segment can look like, and what is done about it.
//!
//! The table is data. A test walks every combination of facts and checks that exactly one case fits, another one
//! opens logs with every combination that files can have. `docs/RECOVERY.md` explains each case to an operator,
//! and its letter appears in reports, errors and test names.
//!
//! | case | header | required | frames | successor | end | announced | verdict |
//! |---|---|---|---|---|---|---|---|
//! | A | sound | – | – | yes | clean | – | use |
//! | B | sound | – | – | no | clean | no | use |
//! | C | sound | – | – | no | torn | no | cut |
//! | D | sound | – | – | yes | torn, damaged | – | refuse |
//! | E | sound | – | – | no | damaged | – | refuse |
//! | F | sound | – | – | no | clean, torn | yes | refuse |
//! | G | unreadable | no | no | no | – | – | ignore |
//! | H | unreadable | no | no | yes | – | – | refuse |
//! | I | unreadable | no | yes | – | – | – | refuse |
//! | J | unreadable | yes | – | – | – | – | refuse |

/// How the frames of a segment end, within the bytes that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// At the end of those bytes, in zeros written ahead, or in zeros that cut off what an earlier segment left in the file.
    Clean,
    /// In bytes that are no frame and that nothing proves to have been durable.
    Torn,
    /// In bytes that are no frame although a later frame proves that they were durable, or in a frame
    /// header whose checksum is right and whose fields have no meaning, which no torn write leaves.
    Damaged,
}

/// Everything about a segment that the verdict depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The header can be read.
    pub(crate) header_sound: bool,
    /// It is the first segment of an incarnation that was completely established.
    pub(crate) required: bool,
    /// There are frames in it that carry its salt.
    pub(crate) frames: bool,
    /// A later segment names it as its predecessor.
    pub(crate) successor: bool,
    /// How its frames end. Without a readable header nothing is known, which counts as clean.
    pub(crate) end: End,
    /// Its last frame announces a successor.
    pub(crate) announced: bool,
}

/// What to do with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Everything in it counts.
    Use,
    /// Everything up to the end of its frames counts; the rest was never acknowledged.
    Cut,
    /// It was being created and never took a record.
    Ignore,
    /// Something acknowledged may be missing.
    Refuse,
}

/// One row of the table. `None` and the empty list mean "whatever".
pub(crate) struct Case {
    /// The row's letter.
    pub(crate) label: char,
    header_sound: bool,
    required: Option<bool>,
    frames: Option<bool>,
    successor: Option<bool>,
    ends: &'static [End],
    announced: Option<bool>,
    /// What to do.
    pub(crate) verdict: Verdict,
    /// What it means, for reports and errors.
    pub(crate) meaning: &'static str,
}

const fn sound(
    label: char,
    successor: bool,
    ends: &'static [End],
    announced: Option<bool>,
    verdict: Verdict,
    meaning: &'static str,
) -> Case {
    let successor = Some(successor);
    Case {
        label,
        header_sound: true,
        required: None,
        frames: None,
        successor,
        ends,
        announced,
        verdict,
        meaning,
    }
}

const fn unreadable(
    label: char,
    required: bool,
    frames: Option<bool>,
    successor: Option<bool>,
    verdict: Verdict,
    meaning: &'static str,
) -> Case {
    let required = Some(required);
    Case {
        label,
        header_sound: false,
        required,
        frames,
        successor,
        ends: &[],
        announced: None,
        verdict,
        meaning,
    }
}

/// The table.
pub(crate) const CASES: [Case; 10] = [
    sound('A', true, &[End::Clean], None, Verdict::Use, "a closed segment, whole"),
    sound('B', false, &[End::Clean], Some(false), Verdict::Use, "the last segment, ending cleanly"),
    sound(
        'C',
        false,
        &[End::Torn],
        Some(false),
        Verdict::Cut,
        "the last segment ends in a write that a crash tore",
    ),
    sound(
        'D',
        true,
        &[End::Torn, End::Damaged],
        None,
        Verdict::Refuse,
        "a closed segment does not reach the length that its successor recorded",
    ),
    sound(
        'E',
        false,
        &[End::Damaged],
        None,
        Verdict::Refuse,
        "bytes that were durable do not validate any more",
    ),
    sound(
        'F',
        false,
        &[End::Clean, End::Torn],
        Some(true),
        Verdict::Refuse,
        "the segment that follows is missing",
    ),
    unreadable(
        'G',
        false,
        Some(false),
        Some(false),
        Verdict::Ignore,
        "a segment whose creation a crash interrupted",
    ),
    unreadable(
        'H',
        false,
        Some(false),
        Some(true),
        Verdict::Refuse,
        "the header of a closed segment is damaged",
    ),
    unreadable(
        'I',
        false,
        Some(true),
        None,
        Verdict::Refuse,
        "the header of a segment with records is damaged",
    ),
    unreadable(
        'J',
        true,
        None,
        None,
        Verdict::Refuse,
        "the first segment of an established incarnation is damaged",
    ),
];

impl Case {
    fn fits(&self, facts: &Facts) -> bool {
        let same = |wanted: Option<bool>, is: bool| wanted.is_none_or(|wanted| wanted == is);
        self.header_sound == facts.header_sound
            && same(self.required, facts.required)
            && same(self.frames, facts.frames)
            && same(self.successor, facts.successor)
            && (self.ends.is_empty() || self.ends.contains(&facts.end))
            && same(self.announced, facts.announced)
    }

    /// The row that fits. Should the table ever have a hole, damage is assumed.
    pub(crate) fn of(facts: &Facts) -> &'static Self {
        const J: &Case = &CASES[9];
        #[cfg(test)]
        #[cfg(not(any(loom, shuttle)))]
        on_files::note(*facts);
        CASES.iter().find(|case| case.fits(facts)).unwrap_or(J)
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod on_files;

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    pub(super) fn all_facts() -> Vec<Facts> {
        let flags = [false, true];
        let mut all = Vec::new();
        for header_sound in flags {
            for required in flags {
                for frames in flags {
                    for successor in flags {
                        for end in [End::Clean, End::Torn, End::Damaged] {
                            for announced in flags {
                                all.push(Facts { header_sound, required, frames, successor, end, announced });
                            }
                        }
                    }
                }
            }
        }
        all
    }

    #[test]
    fn exactly_one_case_fits_every_combination() {
        for facts in all_facts() {
            let fitting: Vec<_> = CASES.iter().filter(|c| c.fits(&facts)).map(|c| c.label).collect();
            assert_eq!(fitting.len(), 1, "{facts:?} fits {fitting:?}");
        }
    }

    #[test]
    fn every_case_is_reachable_and_labels_are_in_order() {
        for (case, label) in CASES.iter().zip('A'..) {
            assert_eq!(case.label, label);
            assert!(all_facts().iter().any(|facts| Case::of(facts).label == label), "case {label}");
        }
    }

    #[test]
    fn only_a_torn_tail_or_an_unborn_segment_is_given_up() {
        for facts in all_facts() {
            match Case::of(&facts).verdict {
                Verdict::Cut => assert!(facts.end == End::Torn && !facts.successor && !facts.announced),
                Verdict::Ignore => assert!(!facts.header_sound && !facts.frames && !facts.required),
                Verdict::Use => assert!(facts.header_sound && facts.end == End::Clean),
                Verdict::Refuse => {}
            }
        }
    }
}

//! One log and one seal per worker and epoch, for everything on the worker that has state.
//!
//! A worker's [`CoreStore`] takes changes of one epoch at a time. So its stateful operators go through the epochs in step:
//! each may change the state in the current epoch only, and says when it is done with it. When all of them are, the epoch is
//! sealed with the source offsets of the worker's inputs, once, and the next one begins.
//! However many operators there are, an epoch is one barrier in one log and takes part in one sync.

use std::collections::{BTreeMap, VecDeque};

use laminar_storage::error::Detail;
use laminar_storage::{CoreStore, Epoch};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::codec::Codec;
use crate::error::Error;

/// What a key of the store belongs to: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The state of a key, of an operator.
    State = 1,
    /// Rows that wait for their sink.
    Waiting = 2,
    /// What an operator notes for itself, the same on all workers.
    Note = 3,
    /// The state of a key in a window, of an operator: the window's end, then the key.
    Window = 4,
    /// Up to which epoch rows for a part of a sink are not in the state any more, because they were committed.
    Committed = 5,
}

/// Tells inputs, operators and sinks apart, on disk and between workers: a hash of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct OperatorId(u32);

impl OperatorId {
    pub(crate) fn of(name: &str) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "half of a hash is a hash")]
        Self(xxh3_64(name.as_bytes()) as u32)
    }
}

impl Codec for OperatorId {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        u32::decode(bytes).map(Self)
    }
}

/// Bytes of every key before what the operator puts there.
pub(crate) const PREFIX_LEN: usize = 5;

/// Begins a key.
pub(crate) fn prefix(kind: Kind, operator: OperatorId, key: &mut Vec<u8>) {
    key.clear();
    key.push(kind as u8);
    operator.encode(key);
}

/// What a key begins with, and the rest of it.
pub(crate) fn split_key(key: &[u8]) -> Option<(Kind, OperatorId, &[u8])> {
    let (head, rest) = key.split_first_chunk::<PREFIX_LEN>()?;
    let kind = match head[0] {
        1 => Kind::State,
        2 => Kind::Waiting,
        3 => Kind::Note,
        4 => Kind::Window,
        5 => Kind::Committed,
        _ => return None,
    };
    let (_, operator) = head.split_first()?;
    Some((kind, OperatorId::decode_all(operator)?, rest))
}

/// Takes the oldest entry off a queue, if it is of `up_to` or before.
pub(crate) fn pop_up_to<T>(queue: &mut VecDeque<(Epoch, T)>, up_to: Epoch) -> Option<(Epoch, T)> {
    let due = queue.front().is_some_and(|(epoch, _)| *epoch <= up_to);
    if due { queue.pop_front() } else { None }
}

/// Somebody who is asked before an epoch is sealed.
struct Participant {
    /// Done with everything up to this epoch.
    done: Epoch,
    /// Called when it waits and may go on.
    wake: Box<dyn Fn()>,
    waits: bool,
}

/// A participant, for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seat(usize);

/// A worker's state and how far it is sealed.
pub(crate) struct Ledger {
    pub(crate) core: CoreStore,
    /// Changes belong to this epoch; all before are sealed.
    current: Epoch,
    participants: Vec<Participant>,
    /// Source offsets of epochs that are not sealed yet, oldest first.
    offsets: VecDeque<(Epoch, Vec<(String, u64)>)>,
    /// How far each source is, as far as it is known here.
    read: BTreeMap<String, u64>,
    /// The last epoch of the job, once all workers said theirs.
    last: Option<Epoch>,
}

impl Ledger {
    /// Begins with epoch `first`; what is before is sealed, as an empty epoch. Sources were `read` so far, by any worker.
    pub(crate) fn new(mut core: CoreStore, first: Epoch, read: BTreeMap<String, u64>) -> Result<Self, Error> {
        let before = Epoch(first.0.saturating_sub(1));
        if core.epoch() <= before {
            core.seal_epoch_to(before)?;
        }
        let (participants, offsets) = (Vec::new(), VecDeque::new());
        Ok(Self { core, current: first, participants, offsets, read, last: None })
    }

    /// The epoch that changes belong to.
    pub(crate) fn current(&self) -> Epoch {
        self.current
    }

    /// The last epoch of the job, once it is known.
    pub(crate) fn last(&self) -> Option<Epoch> {
        self.last
    }

    /// Everything is sealed up to here.
    pub(crate) fn sealed(&self) -> Epoch {
        Epoch(self.current.0.saturating_sub(1))
    }

    /// Takes part from the current epoch on.
    pub(crate) fn take_part(&mut self, wake: impl Fn() + 'static) -> Seat {
        self.participants.push(Participant { done: self.sealed(), wake: Box::new(wake), waits: false });
        Seat(self.participants.len() - 1)
    }

    /// May this participant change the state in `epoch` now? If not, it is woken when it may.
    pub(crate) fn may(&mut self, seat: Seat, epoch: Epoch) -> bool {
        let may = epoch == self.current;
        if let (false, Some(participant)) = (may, self.participants.get_mut(seat.0)) {
            participant.waits = true;
        }
        may
    }

    /// This participant is done with everything up to `epoch`.
    pub(crate) fn done(&mut self, seat: Seat, epoch: Epoch) -> Result<(), Error> {
        if let Some(participant) = self.participants.get_mut(seat.0) {
            participant.done = participant.done.max(epoch);
        }
        self.seal_what_is_done()
    }

    /// Source offsets at the end of `epoch`, to be sealed with it.
    pub(crate) fn offsets(&mut self, epoch: Epoch, offsets: Vec<(String, u64)>) {
        let at = self.offsets.partition_point(|(other, _)| *other <= epoch);
        self.offsets.insert(at, (epoch, offsets));
    }

    /// Puts an offset into the current epoch. None may go back: where a source is read by several workers in turn, the largest counts
    /// after a crash, and what was read again from an earlier one would be missing.
    fn put_offset(&mut self, source: &str, offset: u64) -> Result<(), Error> {
        let known = self.read.get(source).copied().unwrap_or_default();
        if offset < known {
            let what = format!("the offset of the source {source:?} went back from {known} to {offset}");
            return Err(Error::config(Detail::new(what).in_epoch(self.current).remedy(
                "Begin where `Job::source_offset` says, and give what is read again from its beginning another name.",
            )));
        }
        self.read.insert(source.to_owned(), offset);
        self.core.set_source_offset(source, offset);
        Ok(())
    }

    /// The last epoch of all workers is this; whoever waits for it is woken.
    pub(crate) fn ends_with(&mut self, last: Epoch) {
        self.last = Some(last);
        for participant in &mut self.participants {
            participant.waits = false;
            (participant.wake)();
        }
    }

    fn seal_what_is_done(&mut self) -> Result<(), Error> {
        let mut sealed = false;
        while self.participants.iter().all(|participant| participant.done >= self.current) {
            while let Some((_, offsets)) = pop_up_to(&mut self.offsets, self.current) {
                for (source, offset) in offsets {
                    self.put_offset(&source, offset)?;
                }
            }
            self.core.seal_epoch_to(self.current)?;
            self.current = self.current.next();
            sealed = true;
        }
        if sealed {
            for participant in self.participants.iter_mut().filter(|participant| participant.waits) {
                participant.waits = false;
                (participant.wake)();
            }
        }
        Ok(())
    }
}

/// So many keys are looked up or written together.
const AT_ONCE: usize = 64;
/// Fewer values are written together when they have so many bytes.
const BYTES_AT_ONCE: usize = 1 << 20;

/// The state of one operator on one worker.
pub(crate) struct State<'a> {
    pub(crate) core: &'a mut CoreStore,
    pub(crate) operator: OperatorId,
    pub(crate) key: &'a mut Vec<u8>,
}

impl State<'_> {
    fn begin(&mut self, key: &impl Codec) {
        prefix(Kind::State, self.operator, self.key);
        key.encode(self.key);
    }

    /// What belongs to `key`.
    pub(crate) fn get<S: Codec>(&mut self, key: &impl Codec) -> Result<Option<S>, Error> {
        self.begin(key);
        let Some(bytes) = self.core.get(self.key) else { return Ok(None) };
        S::decode_all(bytes).map(Some).ok_or_else(|| undecodable("what belongs to a key"))
    }

    /// Gives out what belongs to each of these keys. Memory is fetched ahead, so that many keys take less than each by itself.
    pub(crate) fn get_all<S: Codec>(
        &mut self,
        keys: &[impl Codec],
        mut give: impl FnMut(Option<S>),
    ) -> Result<(), Error> {
        let mut ends = [0; AT_ONCE];
        for keys in keys.chunks(AT_ONCE) {
            self.encode_all(keys.iter(), &mut ends);
            let mut encoded = [&[][..]; AT_ONCE];
            split_at_ends(self.key, &ends, &mut encoded);
            for value in self.core.get_batch(encoded.get(..keys.len()).unwrap_or_default()) {
                let decode = |bytes| S::decode_all(bytes).ok_or_else(|| undecodable("what belongs to a key"));
                give(value.map(decode).transpose()?);
            }
        }
        Ok(())
    }

    /// Replaces what belongs to these keys.
    pub(crate) fn put_all<K: Codec, S: Codec>(&mut self, pairs: &[(K, S)]) -> Result<(), Error> {
        let (mut key_ends, mut value_ends, mut values) = ([0; AT_ONCE], [0; AT_ONCE], Vec::new());
        let mut rest = pairs;
        while !rest.is_empty() {
            values.clear();
            let mut count = 0;
            for ((_, value), end) in rest.iter().zip(&mut value_ends) {
                value.encode(&mut values);
                *end = values.len();
                count += 1;
                if values.len() >= BYTES_AT_ONCE {
                    break;
                }
            }
            let (pairs, after) = rest.split_at(count);
            rest = after;
            self.encode_all(pairs.iter().map(|(key, _)| key), &mut key_ends);
            let mut encoded = [(&[][..], &[][..]); AT_ONCE];
            split_at_ends(self.key, &key_ends, encoded.iter_mut().map(|(key, _)| key));
            split_at_ends(&values, &value_ends, encoded.iter_mut().map(|(_, value)| value));
            self.core.put_batch(encoded.get(..pairs.len()).unwrap_or_default())?;
        }
        Ok(())
    }

    /// Puts keys one after the other, and notes where each ends.
    fn encode_all<'k, K: Codec + 'k>(
        &mut self,
        keys: impl Iterator<Item = &'k K>,
        ends: &mut [usize; AT_ONCE],
    ) {
        self.key.clear();
        for (key, end) in keys.zip(ends) {
            self.key.push(Kind::State as u8);
            self.operator.encode(self.key);
            key.encode(self.key);
            *end = self.key.len();
        }
    }

    /// Replaces what belongs to `key`.
    pub(crate) fn put(
        &mut self,
        key: &impl Codec,
        value: &impl Codec,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Error> {
        self.begin(key);
        bytes.clear();
        value.encode(bytes);
        Ok(self.core.put(self.key, bytes)?)
    }

    /// Forgets `key`.
    pub(crate) fn delete(&mut self, key: &impl Codec) -> Result<(), Error> {
        self.begin(key);
        self.core.delete(self.key)?;
        Ok(())
    }
}

/// Cuts bytes where each piece ends.
fn split_at_ends<'p, 'b: 'p>(
    bytes: &'b [u8],
    ends: &[usize; AT_ONCE],
    pieces: impl IntoIterator<Item = &'p mut &'b [u8]>,
) {
    let mut begin = 0;
    for (piece, end) in pieces.into_iter().zip(ends) {
        *piece = bytes.get(begin..*end).unwrap_or_default();
        begin = *end;
    }
}

/// Bytes of the state are not what the program's types encode to.
pub(crate) fn undecodable(what: &str) -> Error {
    Error::decode(Detail::new(format!("{what} cannot be decoded")).remedy(
        "Use the program that wrote it, or give an operator whose types changed another name; nothing was changed.",
    ))
}

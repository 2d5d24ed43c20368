//! Windows by event time, closed by watermarks.
//!
//! Every input says how far its event time has come ([`crate::EpochInput::set_watermark`]); that goes to all workers with the
//! epoch it was said in. So all of them have the same watermark at the end of an epoch ([`Watermarks`]), and close the same windows
//! in it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use laminar_storage::Epoch;
use laminar_storage::error::Detail;
use timely::ExchangeData;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::vec::Broadcast;
use timely::dataflow::operators::{Capability, Operator};

use super::job::Flow;
use super::keyed::{Key, owner_of};
use super::watermarks::{Says, Watermarks};
use super::{Stash, check_stash, or_end, stash_of, upper};
use crate::codec::Codec;
use crate::error::Error;
use crate::ledger::{Kind, Ledger, OperatorId, Seat, prefix, split_key, undecodable};

/// What comes out of [`Flow::tumbling`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Windowed<K, S> {
    /// A window has closed: nothing more of it will come.
    Closed {
        /// The first instant after the window.
        end: i64,
        /// The key.
        key: K,
        /// What became of its values.
        value: S,
    },
    /// A value came after its window had closed, and was left out.
    Late {
        /// The end of its window.
        end: i64,
        /// Its key.
        key: K,
    },
}

/// The end of the window of `size` that an instant lies in.
fn end_of(time: i64, size: i64) -> i64 {
    time.div_euclid(size).saturating_add(1).saturating_mul(size)
}

impl<'scope> Flow<'scope> {
    /// Folds the values of each key and window of `size` units of event time, and gives each out once, when the watermark
    /// has reached its end, in the order of ends and keys. Values with an earlier time than an open window's come out as
    /// [`Windowed::Late`].
    ///
    /// # Errors
    /// `Config` for a name that is used already, or a size below 1.
    pub fn tumbling<K, V, S>(
        &mut self,
        stream: StreamVec<'scope, u64, (K, i64, V)>,
        name: &str,
        size: i64,
        fold: impl Fn(&mut S, V) + 'static,
    ) -> Result<StreamVec<'scope, u64, Windowed<K, S>>, Error>
    where
        K: Key,
        V: ExchangeData,
        S: Codec + Default + Clone + 'static,
    {
        let operator = self.claim(name)?;
        if size < 1 {
            let detail =
                Detail::new(format!("the windows of {name:?} have a size of {size}, must be 1 or more"));
            return Err(Error::config(detail.remedy("Name how long a window is, in units of event time.")));
        }
        let (open, watermarks) = self.open_windows::<K>(operator)?;
        let (ledger, title, scope) = (Rc::clone(&self.parts.ledger), name.to_owned(), self.scope);
        let encoded = RefCell::new(Vec::new());
        let route = Exchange::new(move |(key, _, _): &(K, i64, V)| {
            let mut encoded = encoded.borrow_mut();
            encoded.clear();
            key.encode(&mut encoded);
            owner_of(&encoded)
        });
        let (first, says) = (self.recovered.first, self.says.clone().broadcast());
        Ok(stream.binary_frontier::<Vec<Says>, CapacityContainerBuilder<Vec<Windowed<K, S>>>, _, _, _, _>(
            says,
            route,
            Pipeline,
            name,
            move |capability, info| {
                let activator = scope.activator_for(Rc::clone(&info.address));
                let seat = ledger.borrow_mut().take_part(move || activator.activate());
                let held = Some(capability.delayed(&first.0));
                drop(capability);
                let mut turn = Turn {
                    windows: Windows {
                        operator,
                        size,
                        open,
                        watermarks,
                        fold,
                        key: Vec::new(),
                        bytes: Vec::new(),
                    },
                    seat,
                    ledger,
                    title,
                    rows: BTreeMap::new(),
                    says: BTreeMap::new(),
                    next: first,
                    held,
                };
                move |(rows, before), (says, said), output| {
                    rows.for_each_stamp(|capability, data| {
                        let stash = stash_of(&mut turn.rows, &capability, &turn.title, turn.next);
                        data.for_each(|rows| stash.append(rows));
                    });
                    says.for_each_stamp(|capability, data| {
                        let stash = stash_of(&mut turn.says, &capability, &turn.title, turn.next);
                        data.for_each(|says| stash.append(says));
                    });
                    let upper = match (upper(before), upper(said)) {
                        (Some(rows), Some(says)) => Some(rows.min(says)),
                        (rows, says) => rows.or(says),
                    };
                    or_end(turn.go_on(upper, |held, out| {
                        output.session(held).give_iterator(out.drain(..));
                    }));
                }
            },
        ))
    }

    /// What the state has of an operator's windows: their ends and keys, and how far event time is.
    fn open_windows<K: Key>(
        &self,
        operator: OperatorId,
    ) -> Result<(BTreeMap<i64, BTreeSet<K>>, Watermarks), Error> {
        let generation = self.recovered.generation;
        let (mut open, mut watermarks) = (BTreeMap::<i64, BTreeSet<K>>::new(), Watermarks::new(generation));
        let ledger = self.parts.ledger.borrow();
        for (key, value) in &ledger.core {
            match split_key(key) {
                Some((Kind::Window, of, mut rest)) if of == operator => {
                    let end = i64::decode(&mut rest).zip(K::decode_all(rest));
                    let (end, key) = end.ok_or_else(|| undecodable("the key of a window"))?;
                    open.entry(end).or_default().insert(key);
                }
                Some((Kind::Note, of, _)) if of == operator => {
                    let known = Watermarks::decode_all(value).ok_or_else(|| undecodable("a watermark"))?;
                    watermarks = known.in_generation(generation);
                }
                _ => {}
            }
        }
        Ok((open, watermarks))
    }
}

/// The windows of one worker.
struct Windows<K, F> {
    operator: OperatorId,
    size: i64,
    open: BTreeMap<i64, BTreeSet<K>>,
    watermarks: Watermarks,
    fold: F,
    key: Vec<u8>,
    bytes: Vec<u8>,
}

impl<K: Key, F> Windows<K, F> {
    fn begin(&mut self, end: i64, key: &K) {
        prefix(Kind::Window, self.operator, &mut self.key);
        end.encode(&mut self.key);
        key.encode(&mut self.key);
    }

    /// Folds the rows of an epoch into their windows.
    fn rows<V, S: Codec + Default>(
        &mut self,
        ledger: &mut Ledger,
        rows: Vec<(K, i64, V)>,
        out: &mut Vec<Windowed<K, S>>,
    ) -> Result<(), Error>
    where
        F: Fn(&mut S, V),
    {
        let mut changed = BTreeMap::<(i64, K), S>::new();
        for (key, time, value) in rows {
            let end = end_of(time, self.size);
            if end <= self.watermarks.least() {
                out.push(Windowed::Late { end, key });
                continue;
            }
            let place = (end, key);
            if !changed.contains_key(&place) {
                self.begin(end, &place.1);
                let stored = ledger.core.get(&self.key).map(S::decode_all);
                let stored =
                    stored.map(|stored| stored.ok_or_else(|| undecodable("a window"))).transpose()?;
                changed.insert(place.clone(), stored.unwrap_or_default());
            }
            if let Some(known) = changed.get_mut(&place) {
                (self.fold)(known, value);
            }
        }
        out.sort_unstable_by(|one, other| late(one).cmp(&late(other)));
        for ((end, key), value) in changed {
            self.begin(end, &key);
            self.bytes.clear();
            value.encode(&mut self.bytes);
            ledger.core.put(&self.key, &self.bytes)?;
            self.open.entry(end).or_default().insert(key);
        }
        Ok(())
    }

    /// Takes note of what inputs said, and closes what event time has reached.
    fn says<S: Codec>(
        &mut self,
        ledger: &mut Ledger,
        says: Vec<Says>,
        out: &mut Vec<Windowed<K, S>>,
    ) -> Result<(), Error> {
        if !self.watermarks.hear(&says) {
            return Ok(());
        }
        prefix(Kind::Note, self.operator, &mut self.key);
        self.bytes.clear();
        self.watermarks.encode(&mut self.bytes);
        ledger.core.put(&self.key, &self.bytes)?;
        let watermark = self.watermarks.least();
        while let Some(window) = self.open.first_entry().filter(|window| *window.key() <= watermark) {
            let (end, keys) = window.remove_entry();
            for key in keys {
                self.begin(end, &key);
                let stored = ledger.core.get(&self.key).and_then(S::decode_all);
                let value = stored.ok_or_else(|| undecodable("a window"))?;
                ledger.core.delete(&self.key)?;
                out.push(Windowed::Closed { end, key, value });
            }
        }
        Ok(())
    }
}

/// The place of a late value, to sort by.
fn late<K, S>(row: &Windowed<K, S>) -> (i64, &K) {
    match row {
        Windowed::Closed { end, key, .. } | Windowed::Late { end, key } => (*end, key),
    }
}

/// The operator between two turns.
struct Turn<K, V, F> {
    windows: Windows<K, F>,
    seat: Seat,
    ledger: Rc<RefCell<Ledger>>,
    /// The name of the operator.
    title: String,
    rows: Stash<(K, i64, V)>,
    says: Stash<Says>,
    next: Epoch,
    held: Option<Capability<u64>>,
}

impl<K: Key, V, F> Turn<K, V, F> {
    fn go_on<S: Codec + Default>(
        &mut self,
        before: Option<Epoch>,
        mut give: impl FnMut(&Capability<u64>, &mut Vec<Windowed<K, S>>),
    ) -> Result<(), Error>
    where
        F: Fn(&mut S, V),
    {
        let mut ledger = self.ledger.borrow_mut();
        let last = ledger.last();
        let upper = before.or(last.map(Epoch::next)).unwrap_or_default();
        while self.next < upper && ledger.may(self.seat, self.next) {
            let mut out = Vec::new();
            if let Some(rows) = self.rows.remove(&self.next) {
                self.windows.rows(&mut ledger, rows, &mut out)?;
            }
            if let Some(says) = self.says.remove(&self.next) {
                self.windows.says(&mut ledger, says, &mut out)?;
            }
            if let Some(held) = &self.held {
                give(held, &mut out);
            }
            ledger.done(self.seat, self.next)?;
            self.next = self.next.next();
            if let Some(held) = &mut self.held {
                held.downgrade(&self.next.0);
            }
        }
        if let Some(last) = last.filter(|last| before.is_none() && self.next > *last) {
            check_stash(&self.title, last, &self.rows)?;
            self.held = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::end_of;

    #[test]
    fn windows_do_not_overlap_also_before_time_zero() {
        let ends = [-11, -10, -1, 0, 9, 10].map(|time| end_of(time, 10));
        assert_eq!(ends, [-10, 0, 0, 10, 10, 20]);
        assert_eq!(end_of(i64::MAX, 10), i64::MAX);
    }
}

//! Operators with state by key.
//!
//! Records go to the worker that owns their key: a hash of the key's bytes in the state, which any later size of the job can
//! compute from the state alone. An operator works on an epoch when everything of it has come, from all workers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::Hash;
use std::rc::Rc;

use laminar_storage::Epoch;
use laminar_storage::format::MAX_KEY_LEN;
use timely::ExchangeData;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::{Capability, Operator};
use xxhash_rust::xxh3::xxh3_64;

use super::groups::Groups;
use super::job::Flow;
use super::{Stash, check_stash, or_end, stash_of, upper};
use crate::codec::Codec;
use crate::error::Error;
use crate::ledger::{Kind, Ledger, OperatorId, PREFIX_LEN, Seat, State, prefix};

/// Which worker owns a key, as bytes: this number modulo the number of workers.
#[must_use]
pub fn owner_of(encoded: &[u8]) -> u64 {
    xxh3_64(encoded)
}

/// What can be a key: it goes to its owner over the network, and into the state.
pub trait Key: Codec + ExchangeData + Clone + Ord + Hash {}
impl<K: Codec + ExchangeData + Clone + Ord + Hash> Key for K {}

impl<'scope> Flow<'scope> {
    /// Keeps an `S` for every key, changed by every value, and gives out the key with its new `S` once per epoch in which it
    /// changed, in the order of keys.
    ///
    /// Values that one worker sent come in the order they were sent, those of different workers in any: let `fold` not
    /// depend on it.
    ///
    /// # Errors
    /// `Config` for a name that is used already.
    pub fn fold<K, V, S>(
        &mut self,
        stream: StreamVec<'scope, u64, (K, V)>,
        name: &str,
        fold: impl Fn(&mut S, V) + 'static,
    ) -> Result<StreamVec<'scope, u64, (K, S)>, Error>
    where
        K: Key,
        V: ExchangeData,
        S: Codec + Default + Clone + 'static,
    {
        let mut groups = Groups::default();
        self.keyed(stream, name, move |rows, state, out| {
            groups.fill(rows);
            let mut stored = Vec::with_capacity(groups.keys.len());
            state.get_all(&groups.keys, |known| stored.push(known.unwrap_or_default()))?;
            groups.rows().for_each(|(place, value)| fold(&mut stored[place], value));
            out.extend(groups.keys.drain(..).zip(stored));
            state.put_all(out)
        })
    }

    /// Combines all values of a key into one, and gives out the key with it once per epoch in which it changed, in the order
    /// of keys. `combine` should not depend on the order of values.
    ///
    /// # Errors
    /// `Config` for a name that is used already.
    pub fn reduce<K, V>(
        &mut self,
        stream: StreamVec<'scope, u64, (K, V)>,
        name: &str,
        combine: impl Fn(V, V) -> V + 'static,
    ) -> Result<StreamVec<'scope, u64, (K, V)>, Error>
    where
        K: Key,
        V: Codec + ExchangeData + Clone,
    {
        let mut groups = Groups::default();
        self.keyed(stream, name, move |rows, state, out| {
            groups.fill(rows);
            let mut stored = Vec::with_capacity(groups.keys.len());
            state.get_all(&groups.keys, |known| stored.push(known))?;
            for (place, value) in groups.rows() {
                let known = &mut stored[place];
                *known = Some(match known.take() {
                    Some(known) => combine(known, value),
                    None => value,
                });
            }
            out.extend(groups.keys.drain(..).zip(stored).filter_map(|(key, known)| Some((key, known?))));
            state.put_all(out)
        })
    }

    /// Gives every value to `map` with what is kept for its key, which it may change or forget, and which is kept from then
    /// on. Values that one worker sent come in the order they were sent, those of different workers in any.
    ///
    /// # Errors
    /// `Config` for a name that is used already.
    pub fn map_with_state<K, V, S, O>(
        &mut self,
        stream: StreamVec<'scope, u64, (K, V)>,
        name: &str,
        map: impl Fn(&K, V, &mut Option<S>, &mut Vec<O>) + 'static,
    ) -> Result<StreamVec<'scope, u64, O>, Error>
    where
        K: Key,
        V: ExchangeData,
        S: Codec + 'static,
        O: Clone + 'static,
    {
        let mut bytes = Vec::new();
        self.keyed(stream, name, move |rows, state, out| {
            let mut touched = BTreeMap::<K, Option<S>>::new();
            for (key, value) in rows.drain(..) {
                if !touched.contains_key(&key) {
                    touched.insert(key.clone(), state.get(&key)?);
                }
                if let Some(kept) = touched.get_mut(&key) {
                    map(&key, value, kept, out);
                }
            }
            for (key, kept) in touched {
                match kept {
                    Some(kept) => state.put(&key, &kept, &mut bytes)?,
                    None => state.delete(&key)?,
                }
            }
            Ok(())
        })
    }

    /// Gives all rows of an epoch that belong to a worker to `work`, with the state of the keys that it owns, as bytes. The
    /// number before each row is [`owner_of`] the keys that `work` will touch for it, modulo the number of workers or not. For
    /// programs that have keys and values as bytes already, many in a row.
    ///
    /// Rows that one worker sent come in the order they were sent.
    ///
    /// # Errors
    /// `Config` for a name that is used already.
    pub fn routed<V, O>(
        &mut self,
        stream: StreamVec<'scope, u64, (u64, V)>,
        name: &str,
        mut work: impl FnMut(&mut Vec<(u64, V)>, &mut KeyedState<'_>, &mut Vec<O>) -> Result<(), Error> + 'static,
    ) -> Result<StreamVec<'scope, u64, O>, Error>
    where
        V: ExchangeData,
        O: Clone + 'static,
    {
        let route = |(owner, _): &(u64, V)| *owner;
        self.stateful(stream, name, route, move |rows, state, out| {
            let State { core, operator, key } = state;
            work(rows, &mut KeyedState(State { core, operator: *operator, key }), out)
        })
    }

    /// An operator that is given all rows of an epoch and the state of its keys.
    fn keyed<K, V, O, L>(
        &mut self,
        stream: StreamVec<'scope, u64, (K, V)>,
        name: &str,
        logic: L,
    ) -> Result<StreamVec<'scope, u64, O>, Error>
    where
        K: Key,
        V: ExchangeData,
        O: Clone + 'static,
        L: FnMut(&mut Vec<(K, V)>, &mut State<'_>, &mut Vec<O>) -> Result<(), Error> + 'static,
    {
        let encoded = RefCell::new(Vec::new());
        let route = move |(key, _): &(K, V)| {
            let mut encoded = encoded.borrow_mut();
            encoded.clear();
            key.encode(&mut encoded);
            owner_of(&encoded)
        };
        self.stateful(stream, name, route, logic)
    }

    fn stateful<R, O, L>(
        &mut self,
        stream: StreamVec<'scope, u64, R>,
        name: &str,
        route: impl Fn(&R) -> u64 + 'static,
        logic: L,
    ) -> Result<StreamVec<'scope, u64, O>, Error>
    where
        R: ExchangeData,
        O: Clone + 'static,
        L: FnMut(&mut Vec<R>, &mut State<'_>, &mut Vec<O>) -> Result<(), Error> + 'static,
    {
        let operator = self.claim(name)?;
        let (ledger, title, scope) = (Rc::clone(&self.parts.ledger), name.to_owned(), self.scope);
        let (route, first) = (Exchange::new(route), self.recovered.first);
        Ok(stream.unary_frontier::<CapacityContainerBuilder<Vec<O>>, _, _, _>(
            route,
            name,
            move |capability, info| {
                let activator = scope.activator_for(Rc::clone(&info.address));
                let seat = ledger.borrow_mut().take_part(move || activator.activate());
                let held = Some(capability.delayed(&first.0));
                drop(capability);
                let (stash, key, out) = (BTreeMap::new(), Vec::new(), Vec::new());
                let mut turn =
                    Turn { operator, title, seat, ledger, logic, stash, next: first, held, key, out };
                move |(input, frontier), output| {
                    input.for_each_stamp(|capability, data| {
                        let stash = stash_of(&mut turn.stash, &capability, &turn.title, turn.next);
                        data.for_each(|rows| stash.append(rows));
                    });
                    or_end(turn.go_on(upper(frontier), |held, out| {
                        output.session(held).give_iterator(out.drain(..));
                    }));
                }
            },
        ))
    }
}

/// The state of the keys that a worker owns, of one operator; given to what [`Flow::routed`] runs.
pub struct KeyedState<'a>(State<'a>);

impl KeyedState<'_> {
    /// The longest key, in bytes: in the store, something stands before it.
    pub const KEY_LEN_MAX: usize = MAX_KEY_LEN - PREFIX_LEN;

    fn begin(&mut self, key: &[u8]) {
        prefix(Kind::State, self.0.operator, self.0.key);
        self.0.key.extend_from_slice(key);
    }

    /// What belongs to `key`.
    pub fn get(&mut self, key: &[u8]) -> Option<&[u8]> {
        self.begin(key);
        self.0.core.get(self.0.key)
    }

    /// Replaces what belongs to `key` by what `change` makes of it; `None` forgets the key.
    ///
    /// # Errors
    /// `Store`, as [`laminar_storage::CoreStore::update`].
    pub fn update<'v>(
        &mut self,
        key: &[u8],
        change: impl FnOnce(Option<&[u8]>) -> Option<&'v [u8]>,
    ) -> Result<(), Error> {
        self.begin(key);
        Ok(self.0.core.update(self.0.key, change)?)
    }
}

impl std::fmt::Debug for KeyedState<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KeyedState").field(&self.0.operator).finish()
    }
}

/// A keyed operator between two turns.
struct Turn<R, O, L> {
    operator: OperatorId,
    /// The name of the operator.
    title: String,
    seat: Seat,
    ledger: Rc<RefCell<Ledger>>,
    logic: L,
    stash: Stash<R>,
    /// The first epoch that it has not worked on.
    next: Epoch,
    held: Option<Capability<u64>>,
    key: Vec<u8>,
    out: Vec<O>,
}

impl<R, O, L> Turn<R, O, L>
where
    L: FnMut(&mut Vec<R>, &mut State<'_>, &mut Vec<O>) -> Result<(), Error>,
{
    /// Works on epochs of which everything has come, as far as the ledger lets it.
    fn go_on(
        &mut self,
        before: Option<Epoch>,
        mut give: impl FnMut(&Capability<u64>, &mut Vec<O>),
    ) -> Result<(), Error> {
        let mut ledger = self.ledger.borrow_mut();
        let last = ledger.last();
        let upper = before.or(last.map(Epoch::next)).unwrap_or_default();
        while self.next < upper && ledger.may(self.seat, self.next) {
            if let (Some(mut rows), Some(held)) = (self.stash.remove(&self.next), &self.held) {
                let Ledger { core, .. } = &mut *ledger;
                let mut state = State { core, operator: self.operator, key: &mut self.key };
                (self.logic)(&mut rows, &mut state, &mut self.out)?;
                give(held, &mut self.out);
                self.out.clear();
            }
            ledger.done(self.seat, self.next)?;
            self.next = self.next.next();
            if let Some(held) = &mut self.held {
                held.downgrade(&self.next.0);
            }
        }
        if let Some(last) = last.filter(|last| before.is_none() && self.next > *last) {
            check_stash(&self.title, last, &self.stash)?;
            self.held = None;
        }
        Ok(())
    }
}

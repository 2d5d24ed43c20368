//! Random operations against a map, with the drain making progress at random points.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::*;
use super::small;
use crate::format::digest::StateDigest;
use crate::incremental::changelog::StateOp;

#[derive(Clone, Debug)]
enum Op {
    Put(u8, Vec<u8>),
    Update(u8, u8),
    UpdateAway(u8),
    Delete(u8),
    Batch(Vec<(u8, u8)>),
    Seal(Option<u8>),
    Flush,
    Drain(usize),
    Release,
}

fn op() -> impl Strategy<Value = Op> {
    let value = prop_oneof![4 => 0..80_usize, 1 => 0..3000_usize]
        .prop_flat_map(|len| any::<u8>().prop_map(move |byte| vec![byte; len]));
    prop_oneof![
        6 => (0..40_u8, value).prop_map(|(k, v)| Op::Put(k, v)),
        2 => (0..40_u8, any::<u8>()).prop_map(|(k, v)| Op::Update(k, v)),
        1 => (0..40_u8).prop_map(Op::UpdateAway),
        3 => (0..40_u8).prop_map(Op::Delete),
        1 => prop::collection::vec((0..40_u8, any::<u8>()), 0..40).prop_map(Op::Batch),
        1 => prop::option::of(any::<u8>()).prop_map(Op::Seal),
        1 => Just(Op::Flush),
        3 => (0..30_usize).prop_map(Op::Drain),
        2 => Just(Op::Release),
    ]
}

/// Keys of many lengths, on both sides of what the index holds inline.
fn name(k: u8) -> Vec<u8> {
    (0..k).map(|i| i ^ k).collect()
}

/// What must come out of the drain, in order.
#[derive(Clone, Debug, PartialEq)]
enum Event {
    Change(StateOp, Vec<u8>, Vec<u8>),
    Seal(u64, Option<Vec<u8>>),
}

#[derive(Default)]
struct Model {
    live: HashMap<Vec<u8>, Vec<u8>>,
    drained: HashMap<Vec<u8>, Vec<u8>>,
    events: std::collections::VecDeque<Event>,
    /// What the drain handed out and has not released.
    unreleased: Vec<(usize, Event)>,
}

impl Model {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.events.push_back(Event::Change(StateOp::Put, key.clone(), value.clone()));
        self.live.insert(key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        if self.live.remove(key).is_some() {
            self.events.push_back(Event::Change(StateOp::Delete, key.to_vec(), Vec::new()));
        }
    }

    fn drain(&mut self, drain: &mut CoreDrain, max: usize) {
        // Now and then it ends by its bytes.
        let bytes = if max.is_multiple_of(3) { 8 * max } else { usize::MAX };
        let batch = drain.drain(max, bytes);
        let changes = batch.entries.clone().map(|i| drain.record(i).unwrap());
        let changes: Vec<_> = changes.map(|record| (record.op, record.key.to_vec())).collect();
        for ((i, (op, key)), nth) in batch.entries.clone().zip(&changes).zip(1..) {
            // What comes after a delete does not know of it.
            let later = changes[nth..].iter().any(|(_, other)| other == key);
            assert_eq!(drain.is_superseded(i), later && *op == StateOp::Put, "{changes:?}, {i}");
        }
        for i in batch.entries {
            let event = self.events.pop_front().unwrap();
            let Event::Change(_, key, value) = &event else { panic!("{event:?} instead of a change") };
            if drain.entry(i).unwrap().is_put() {
                self.drained.insert(key.clone(), value.clone());
            } else {
                self.drained.remove(key);
            }
            self.unreleased.push((i, event));
        }
        if let Some(seal) = batch.seal {
            let event = Event::Seal(seal.epoch.get(), seal.commit.map(Vec::from));
            assert_eq!(self.events.pop_front(), Some(event));
        }
        let digest = self
            .drained
            .iter()
            .fold(0_u64, |sum, (k, v)| sum.wrapping_add(crate::format::digest::record_digest(k, v)));
        let live_keys = self.drained.len() as u64;
        assert_eq!(drain.digest(), crate::format::digest::StateDigest { digest, live_keys });
    }

    fn check(&self, state: &CoreState, drain: &CoreDrain) {
        for k in 0..40 {
            assert_eq!(state.get(&name(k)), self.live.get(&name(k)).map(|v| &v[..]));
        }
        let all: HashMap<_, _> = state.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        assert_eq!(all, self.live);
        assert_eq!(state.len(), self.live.len() as u64);
        assert!(drain.pending() <= self.events.len() && self.events.len() <= drain.pending() + 16);
        for (i, event) in &self.unreleased {
            let record = drain.record(*i).unwrap();
            assert_eq!(*event, Event::Change(record.op, record.key.to_vec(), record.value.to_vec()));
        }
    }
}

fn apply(op: Op, model: &mut Model, state: &mut CoreState, drain: &mut CoreDrain) {
    match op {
        Op::Put(k, v) => match state.try_put(&name(k), &v) {
            Ok(()) => model.put(name(k), v),
            Err(error) => assert!(matches!(error, Ring0Error::RingFull)),
        },
        Op::Update(k, v) => {
            match state.try_update(&name(k), |old| Some([old.unwrap_or_default(), &[v]].concat())) {
                Ok(()) => {
                    let old = model.live.get(&name(k)).cloned().unwrap_or_default();
                    model.put(name(k), [old, vec![v]].concat());
                }
                Err(error) => assert!(matches!(error, Ring0Error::RingFull)),
            }
        }
        Op::UpdateAway(k) => {
            if state.try_update(&name(k), |_| None::<Vec<u8>>).is_ok() {
                model.delete(&name(k));
            }
        }
        Op::Delete(k) => {
            if let Ok(was) = state.try_delete(&name(k)) {
                assert_eq!(was, model.live.contains_key(&name(k)));
                model.delete(&name(k));
            }
        }
        Op::Batch(pairs) => {
            let pairs: Vec<_> = pairs.into_iter().map(|(k, v)| (name(k), vec![v; 20])).collect();
            let applied = match state.try_put_batch(&pairs) {
                Ok(()) => pairs.len(),
                Err((applied, _)) => applied,
            };
            for (k, v) in pairs.into_iter().take(applied) {
                model.put(k, v);
            }
        }
        Op::Seal(commit) => {
            let commit = commit.map(|byte| vec![byte; usize::from(byte)]);
            if let Ok(epoch) = state.seal(commit.as_deref()) {
                model.events.push_back(Event::Seal(epoch.get(), commit));
            }
        }
        Op::Flush => state.flush().unwrap(),
        Op::Drain(max) => model.drain(drain, max),
        Op::Release => {
            drain.release();
            model.unreleased.clear();
        }
    }
    model.check(state, drain);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 300 }))]

    #[test]
    fn agrees_with_a_map(ops in prop::collection::vec(op(), 0..if cfg!(miri) { 60 } else { 400 })) {
        let (mut state, mut drain) = small(32);
        let mut model = Model::default();
        for op in ops {
            apply(op, &mut model, &mut state, &mut drain);
        }
        state.flush().unwrap();
        prop_assert_eq!(drain.pending(), model.events.len());
        while !drain.is_empty() {
            model.drain(&mut drain, 7);
        }
        prop_assert_eq!(drain.digest(), state.digest());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 }))]

    /// Few keys, so that many are written again while the record before still waits for the index, and
    /// colliding ones, so that long keys have to be compared.
    #[test]
    fn loading_agrees_with_a_map(
        changes in prop::collection::vec((0..40_u8, prop::option::of(0..60_usize)), 0..400),
        keep in prop_oneof![Just(u64::MAX), Just(0xffff), Just(0)],
    ) {
        let config = StateConfig {
            core: CoreId(0), ring_capacity: 64, limit_bytes: 2 << 20, first_epoch: Epoch(1),
        };
        let mut hasher = KeyHasher::of_process();
        hasher.keep = keep;
        let (mut state, mut drain) = new_state_with(config, hasher).unwrap();
        let empty = state.memory().live_bytes;
        let mut map = HashMap::new();
        let mut loader = state.loader().unwrap();
        for ((k, len), nth) in changes.iter().zip(0_u32..) {
            let value = len.map(|len| [nth.to_le_bytes().as_slice(), &vec![7; len]].concat());
            match value {
                Some(value) => {
                    loader.put(&name(*k), &value).unwrap();
                    map.insert(name(*k), value);
                }
                None => {
                    loader.delete(&name(*k)).unwrap();
                    map.remove(&name(*k));
                }
            }
        }
        let digest = StateDigest { digest: loader.finish().unwrap(), live_keys: map.len() as u64 };
        prop_assert_eq!(digest, state.digest());
        for k in 0..40 {
            prop_assert_eq!(state.get(&name(k)), map.get(&name(k)).map(Vec::as_slice));
        }
        // Every slot is live or free: nothing that was replaced or deleted is lost.
        let slot = |(key, value): (&Vec<u8>, &Vec<u8>)| (24 + key.len() + value.len()).next_multiple_of(16) as u64;
        prop_assert_eq!(state.memory().live_bytes - empty, map.iter().map(slot).sum::<u64>());
        // The store goes on from here.
        drain.set_digest(digest);
        for k in 0..40 {
            state.try_put(&name(k), b"new").unwrap();
        }
        state.flush().unwrap();
        drain.drain(usize::MAX, usize::MAX);
        prop_assert_eq!(drain.digest(), state.digest());
    }
}

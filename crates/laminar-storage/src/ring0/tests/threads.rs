//! The two halves on two threads.

use std::collections::HashMap;
use std::thread;

use super::super::*;
use super::{key, small};

/// A value that tells whether it was read whole: the version, repeated.
fn value(version: u64, len: usize) -> Vec<u8> {
    version.to_le_bytes().into_iter().cycle().take(len).collect()
}

#[test]
fn what_is_drained_on_another_thread_is_whole_and_in_order() {
    let (writes, keys) = if cfg!(miri) { (400, 10) } else { (600_000, 500) };
    let (mut state, mut drain) = small(if cfg!(miri) { 32 } else { 1024 });
    let background = thread::spawn(move || {
        let mut seen: HashMap<[u8; 16], u64> = HashMap::new();
        let mut epochs = 0;
        loop {
            let last = drain.producer_gone();
            let batch = drain.drain(300, usize::MAX);
            for i in batch.entries.clone() {
                let record = drain.record(i).unwrap();
                let key = <[u8; 16]>::try_from(record.key).unwrap();
                if record.value.is_empty() {
                    assert!(seen.remove(&key).is_some());
                    continue;
                }
                let version = u64::from_le_bytes(*record.value.first_chunk().unwrap());
                assert_eq!(record.value, value(version, record.value.len()));
                let before = seen.insert(key, version);
                assert!(before.is_none_or(|before| before < version));
            }
            if let Some(seal) = &batch.seal {
                epochs += 1;
                assert_eq!(
                    (seal.epoch, seal.commit.as_deref()),
                    (Epoch(epochs), Some(&epochs.to_le_bytes()[..]))
                );
            }
            // Not after every batch, so that records of several are held at once.
            if batch.entries.len() < 100 || epochs % 2 == 0 {
                drain.release();
            }
            if batch.entries.is_empty() && batch.seal.is_none() {
                if last {
                    return (drain, epochs);
                }
                thread::yield_now();
            }
        }
    });
    let mut random = 1_u64;
    for version in 1..=writes {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let key = key((random >> 33) % keys);
        let len = 8 + usize::try_from((random >> 20) % 200).unwrap();
        loop {
            let done = match version % 97 {
                0 => state.seal(Some(&state.epoch().get().to_le_bytes())).map(|_| ()),
                1..10 => state.try_delete(&key).map(|_| ()),
                _ => state.try_put(&key, &value(version, len)),
            };
            match done {
                Ok(()) => break,
                Err(Ring0Error::RingFull) => thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    }
    let digest = state.digest();
    let sealed = state.epoch().get() - 1;
    drop(state);
    let (drain, epochs) = background.join().unwrap();
    assert_eq!((drain.digest(), epochs), (digest, sealed));
}

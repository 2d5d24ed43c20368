//! Two threads, each the owner of one core: words are sent to the core that owns them, counted there,
//! and become durable on both cores together.
//!
//! `cargo run --example two_cores -p laminar-storage [DIRECTORY]`

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use laminar_storage::{CoreStore, Epoch, Opened, Router, StateReader, Store, StoreError};

const TEXT: &str = "the store keeps what the core owns and the core owns what the router says";

/// What the reading thread tells a core's thread.
enum Message {
    Word(&'static str),
    /// Close the epoch: everything before belongs to it.
    Seal,
}

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let dir = std::env::args().nth(1).map_or_else(|| temporary.path().join("state"), PathBuf::from);
    let rounds = 1_000;

    let Opened { store, cores, report } = Store::builder(&dir).cores(2).open()?;
    let known = report.keys;
    let router = Router::default();
    let (mut senders, mut threads) = (Vec::new(), Vec::new());
    for core in cores {
        let (sender, receiver) = channel();
        senders.push(sender);
        threads.push(thread::spawn(move || count_words(core, &receiver)));
    }

    for _ in 0..rounds {
        for word in TEXT.split(' ') {
            senders[router.route(word.as_bytes(), 2)].send(Message::Word(word))?;
        }
        for sender in &senders {
            sender.send(Message::Seal)?;
        }
    }
    // Without a sender the threads end. An epoch is durable once *both* cores have sealed it.
    drop(senders);
    let mut last = Epoch::ZERO;
    let mut kept = Vec::new();
    for thread in threads {
        let (core, sealed) = thread.join().map_err(|_| "a core's thread panicked")??;
        last = last.max(sealed);
        kept.push(core);
    }
    store.wait_durable(last)?;
    println!("{rounds} epochs are durable, the last is {}", store.durable_epoch());
    drop(kept);
    store.close()?;

    // A reader takes no lock and changes nothing.
    let state = StateReader::open(&dir)?;
    let mut expected = BTreeMap::new();
    for word in TEXT.split(' ') {
        *expected.entry(word).or_insert(0_u64) += rounds;
    }
    for (word, times) in &expected {
        let stored = number(state.get(word.as_bytes()));
        println!("{word:>8} {stored}");
        assert!(stored == *times || known > 0, "{word}: {stored}, not {times}");
    }
    Ok(())
}

/// The thread of one core: nobody else touches its keys, so there is no lock.
fn count_words(mut core: CoreStore, messages: &Receiver<Message>) -> Result<(CoreStore, Epoch), StoreError> {
    let mut sealed = Epoch::ZERO;
    for message in messages {
        match message {
            Message::Word(word) => {
                core.update(word.as_bytes(), |old| Some((number(old) + 1).to_le_bytes()))?;
            }
            Message::Seal => sealed = core.seal_epoch()?,
        }
    }
    Ok((core, sealed))
}

fn number(value: Option<&[u8]>) -> u64 {
    value.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

//! In steady state Ring 0 calls the operating system not once.
//!
//! The thread that owns the core puts itself under the kernel's strict secure computing mode, in
//! which any call but `read`, `write` and `exit` kills it, and then puts, updates, deletes and
//! gets. Whoever is still alive at the end has made none. It happens in a child process, because the
//! mode cannot be left again; the child is this test binary itself.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use laminar_storage::{CoreStore, Opened, Settings, Store};
use rustix::thread::{SecureComputingMode, gettid, set_secure_computing_mode};

const ROLE: &str = "LAMINAR_TEST_STRICT";
/// Exit codes of the child.
const ALL_DONE: i32 = 10;
const KILLED: i32 = 11;
const KEYS: u32 = 2_000;
const WARM_ROUNDS: u32 = 20;

/// Not a test of its own: the entry of the child process.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { ring_capacity: 1 << 20, preallocate_bytes: 0, ..Settings::default() };
    let Opened { store, mut cores, .. } = Store::builder(dir.path()).settings(settings).open().unwrap();
    let mut core = cores.pop().unwrap();
    // Warm: as many changes as will come later, while Ring 1 is kept from taking any of them. Once it
    // has taken them, their memory is there to be used again.
    let gate = Arc::new(Mutex::new(()));
    let held = Arc::clone(&gate);
    store.on_durable(move |_| drop(held.lock().unwrap()));
    let closed = gate.lock().unwrap();
    let epoch = core.seal_epoch().unwrap();
    store.wait_durable(epoch).unwrap();
    for round in 0..WARM_ROUNDS {
        work(&mut core, round);
    }
    drop(closed);
    let epoch = core.seal_epoch().unwrap();
    store.wait_durable(epoch).unwrap();
    let done = Arc::new(AtomicU64::new(0));
    let thread_id = Arc::new(AtomicU64::new(0));
    let (told, id) = (Arc::clone(&done), Arc::clone(&thread_id));
    let syscall_first = role == "guilty";
    std::thread::spawn(move || {
        id.store(u64::from(gettid().as_raw_nonzero().get().unsigned_abs()), Ordering::SeqCst);
        set_secure_computing_mode(SecureComputingMode::Strict).unwrap();
        if syscall_first {
            std::thread::yield_now();
        }
        for round in 0..WARM_ROUNDS / 2 {
            work(&mut core, round);
        }
        told.store(1, Ordering::SeqCst);
        // Ending a thread takes system calls, and so does dropping the core.
        loop {
            std::hint::spin_loop();
        }
    });
    let code = loop {
        if done.load(Ordering::SeqCst) == 1 {
            break ALL_DONE;
        }
        let id = thread_id.load(Ordering::SeqCst);
        if id != 0 && !std::path::Path::new(&format!("/proc/self/task/{id}")).exists() {
            break KILLED;
        }
        std::thread::yield_now();
    };
    dir.close().unwrap();
    std::process::exit(code);
}

/// Every operation of a core but sealing, which may wake Ring 1.
fn work(core: &mut CoreStore, round: u32) {
    let value = [round.to_le_bytes()[0]; 100];
    for i in 0..KEYS {
        let key = u128::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        match i % 8 {
            0 => drop(core.delete(&key).unwrap()),
            1 => core.update(&key, |old| old.is_none().then_some(value)).unwrap(),
            2 => core.try_put(&key, &value).unwrap(),
            3 => core.put_batch(&[(key, value), (key, value)]).unwrap(),
            _ => core.put(&key, &value).unwrap(),
        }
        assert_eq!(core.contains(&key), core.get(&key).is_some());
        assert!(core.get_batch(&[key, key]).all(|value| value == core.get(&key)));
    }
}

fn run(role: &str) -> Option<i32> {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--test-threads=1"])
        .env(ROLE, role)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    child.unwrap().code()
}

#[test]
fn ring_0_makes_no_system_call_in_steady_state() {
    assert_eq!(run("innocent"), Some(ALL_DONE));
}

#[test]
fn the_measure_itself_notices_a_system_call() {
    assert_eq!(run("guilty"), Some(KILLED));
}

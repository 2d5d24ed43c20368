//! Damage to the files of a store at rest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use laminar_sim::damage::{Subject, Table, damage_all};
use laminar_sim::store::{Do, StoreScenario, small_settings};

fn subject(close: bool) -> Subject {
    let mut script = Vec::new();
    for round in 0..4 {
        script.extend([Do::Put(round, round + 5, 40), Do::Delete(round), Do::Offset(1, 7), Do::SealAll]);
        script.extend([Do::Ack, Do::Idle, Do::Checkpoint]);
    }
    script.extend([Do::Put(0, 5, 30), Do::SealAll, Do::Ack]);
    script.extend([Do::Put(2, 7, 30), Do::SealAll, Do::Ack, Do::Idle]);
    let earlier = script.len() - 9;
    if close {
        script.push(Do::Close);
    }
    let scenario = StoreScenario {
        name: "damage",
        cores: 2,
        recover_cores: None,
        recover_checkpoint: false,
        settings: small_settings(),
        script,
    };
    Subject::new(&scenario, earlier).unwrap()
}

fn run(close: bool) -> Table {
    let table = damage_all(&subject(close), 7);
    println!("{table}");
    for violation in table.violations.iter().take(40) {
        println!("  {violation}");
    }
    table
}

#[test]
fn damage_to_a_closed_store_is_an_error_or_harmless() {
    let table = run(true);
    assert!(table.cases > 3_000, "{}", table.cases);
    assert!(table.violations.is_empty(), "{} violations", table.violations.len());
}

#[test]
fn damage_to_a_killed_store_is_an_error_or_harmless() {
    let table = run(false);
    assert!(table.cases > 3_000, "{}", table.cases);
    assert!(table.violations.is_empty(), "{} violations", table.violations.len());
}

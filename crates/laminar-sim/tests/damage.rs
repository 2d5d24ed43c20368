//! Damage to the files of a store at rest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use laminar_sim::damage::{Subject, Table, damage_all};
use laminar_sim::store::{Do, StoreScenario, small_settings};

fn subject(cores: u16, last: &[Do]) -> Subject {
    let mut script = Vec::new();
    for round in 0..4 {
        script.extend([Do::Put(round, round + 5, 40), Do::Delete(round), Do::Offset(0, 7), Do::SealAll]);
        script.extend([Do::Ack, Do::Idle, Do::Checkpoint]);
    }
    script.extend([Do::Put(0, 5, 30), Do::SealAll, Do::Ack]);
    script.extend([Do::Put(2, 7, 30), Do::SealAll, Do::Ack]);
    let earlier = script.len() - 8;
    script.extend_from_slice(last);
    let scenario = StoreScenario {
        name: "damage",
        cores,
        recover_cores: None,
        recover_checkpoint: false,
        settings: small_settings(),
        script,
    };
    Subject::new(&scenario, earlier).unwrap()
}

fn run(cores: u16, last: &[Do]) -> Table {
    let table = damage_all(&subject(cores, last), 13);
    println!("{table}");
    for violation in table.violations.iter().take(40) {
        println!("  {violation}");
    }
    table
}

#[test]
fn damage_to_a_closed_store_is_an_error_or_harmless() {
    let table = run(2, &[Do::Close]);
    assert!(table.cases > 5_000, "{}", table.cases);
    assert!(table.violations.is_empty(), "{} violations", table.violations.len());
}

#[test]
fn damage_to_a_killed_store_is_an_error_or_harmless() {
    let table = run(2, &[Do::Idle]);
    assert!(table.cases > 5_000, "{}", table.cases);
    assert!(table.violations.is_empty(), "{} violations", table.violations.len());
}

#[test]
fn probe_one_core_closed() {
    run(1, &[Do::Close]);
}

#[test]
fn probe_one_core_killed() {
    run(1, &[]);
}

#[test]
fn probe_two_core_killed() {
    run(2, &[]);
}

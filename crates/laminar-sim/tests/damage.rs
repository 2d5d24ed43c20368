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
        name: "damage".to_owned(),
        cores,
        recover_cores: None,
        recover_checkpoint: false,
        settings: small_settings(),
        router: None,
        script,
    };
    Subject::new(&scenario, earlier).unwrap()
}

fn run(cores: u16, last: &[Do]) -> Table {
    let table = damage_all(&subject(cores, last), 29);
    println!("{table}");
    for violation in table.violations.iter().take(40) {
        println!("  {violation}");
    }
    table
}

#[test]
fn damage_to_a_closed_store_is_an_error_or_harmless() {
    let table = run(2, &[Do::Close]);
    assert!(table.cases > 2_500, "{}", table.cases);
    assert!(table.violations.is_empty(), "{} violations", table.violations.len());
}

#[test]
fn damage_to_a_killed_store_is_an_error_or_harmless() {
    let table = run(2, &[Do::Idle]);
    assert!(table.cases > 2_500, "{}", table.cases);
    assert!(table.violations.is_empty(), "{} violations", table.violations.len());
}

/// Regression: nothing but its own end testifies to the end of a log of one core. Cut off, or replaced by
/// an older copy, it was taken for a log that never got further, and acknowledged epochs were gone
/// without a word. An orderly end now leaves the last epoch in `CLOSED`.
#[test]
fn a_closed_store_of_one_core_knows_how_far_it_got() {
    let table = run(1, &[Do::Close]);
    assert!(table.cases > 1_800, "{}", table.cases);
    assert!(table.violations.is_empty(), "{} violations", table.violations.len());
}

/// The limit: a store that was killed before anything testified to its last sync. Damage to that last
/// frame cannot be told from a torn write; cutting a log of one core takes the evidence with it. Even
/// then the state is exactly that of an earlier epoch, and no other file can cause it.
#[test]
fn without_evidence_only_the_end_of_a_log_can_be_lost() {
    for cores in [1, 2] {
        let table = run(cores, &[]);
        assert!(table.cases > 1_800, "{}", table.cases);
        for violation in &table.violations {
            assert!(violation.contains(".log ") && violation.contains("LOST"), "{violation}");
        }
        let flips = table.violations.iter().filter(|violation| violation.contains(" Bit("));
        assert!(flips.clone().all(|violation| violation.contains("epoch 5, 6 was")), "one epoch at most");
    }
}

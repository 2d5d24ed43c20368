//! Every scenario is crashed after each of its operations, in every way the plan knows, and so are its
//! recoveries, three deep; the oracle judges every image. `laminar-sim run --all --long` goes further.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use laminar_sim::registry::real;
use laminar_sim::{Distinct, Plan};

mod support;

use support::{explored, ordered, short};

macro_rules! scenarios {
    ($($test:ident $name:literal)*) => {
        const NAMES: &[&str] = &[$($name),*];
        $(
            #[test]
            fn $test() {
                counted($name);
            }
        )*
    };
}

/// An image counts once, in whichever scenario it comes first.
static DISTINCT: LazyLock<Arc<Distinct>> = LazyLock::new(Arc::default);

/// Explores a scenario; whoever is the last of all looks whether there were enough images.
fn counted(name: &str) {
    static DONE: AtomicUsize = AtomicUsize::new(0);
    let distinct = Arc::clone(&DISTINCT);
    explored(name, &Plan { distinct: Some(distinct), ..short() }, 5_000);
    if DONE.fetch_add(1, Ordering::SeqCst) + 1 == NAMES.len() {
        println!("all scenarios: {}", *DISTINCT);
        assert!(DISTINCT.all() >= 1_000_000, "{}", *DISTINCT);
    }
}

scenarios! {
    store_one_core "store-one-core"
    store_two_cores "store-two-cores"
    store_four_cores "store-four-cores"
    store_tails "store-tails"
    store_jumps "store-jumps"
    store_idle "store-idle"
    store_reopen "store-reopen"
    store_roll "store-roll"
    store_full_ring "store-full-ring"
    store_reinsert "store-reinsert"
    store_atoms "store-atoms"
    store_big_values "store-big-values"
    store_empty_epochs "store-empty-epochs"
    store_positions "store-positions"
    store_batches "store-batches"
    store_close_each "store-close-each"
    store_drop_each "store-drop-each"
    store_preallocated "store-preallocated"
    store_checkpoints "store-checkpoints"
    store_compressed "store-compressed"
    store_retain_one "store-retain-one"
    store_retain_three "store-retain-three"
    store_merging "store-merging"
    store_cut_many "store-cut-many"
    store_reused "store-reused"
    store_cut_departed "store-cut-departed"
    store_checkpoint_nothing "store-checkpoint-nothing"
    store_savepoints "store-savepoints"
    store_forks "store-forks"
    store_reshard "store-reshard"
    store_reshard_up "store-reshard-up"
    store_reshard_down "store-reshard-down"
    store_recover_resharded "store-recover-resharded"
    store_recover_one_core "store-recover-one-core"
    store_recover_four_cores "store-recover-four-cores"
    store_routed "store-routed"
    store_recover_routed "store-recover-routed"
    store_poisoned_sync "store-poisoned-sync"
    store_poisoned_half "store-poisoned-half"
    store_poisoned_reads_old "store-poisoned-reads-old"
    store_poisoned_write "store-poisoned-write"
    store_disk_full "store-disk-full"
    store_random_1 "store-random-1"
    store_random_2 "store-random-2"
    store_random_3 "store-random-3"
    store_random_4 "store-random-4"
    store_random_5 "store-random-5"
    store_random_6 "store-random-6"
    store_random_7 "store-random-7"
    store_random_8 "store-random-8"
    store_random_9 "store-random-9"
    store_random_10 "store-random-10"
    store_ranges "store-ranges"
    store_ranges_reshard "store-ranges-reshard"
    store_ranges_recover_resharded "store-ranges-recover-resharded"
    store_spilling "store-spilling"
    store_part "store-part"
    store_part_reserved "store-part-reserved"
    store_part_rolls "store-part-rolls"
    store_part_recover_resharded "store-part-recover-resharded"
    store_part_never_agreed "store-part-never-agreed"
    wal_plain "wal-plain"
    wal_four_cores "wal-four-cores"
    wal_roll "wal-roll"
    wal_preallocated "wal-preallocated"
    wal_repaired "wal-repaired"
    wal_reset "wal-reset"
    wal_positions "wal-positions"
    wal_checkpoints "wal-checkpoints"
    wal_checkpoints_kept "wal-checkpoints-kept"
    wal_reused "wal-reused"
    wal_checkpoints_repaired "wal-checkpoints-repaired"
    checkpoints_ranges "checkpoints-ranges"
    checkpoints_retain_one "checkpoints-retain-one"
    checkpoints_retain_two "checkpoints-retain-two"
    checkpoints_in_full "checkpoints-in-full"
    checkpoints_removed "checkpoints-removed"
    checkpoints_cleaned "checkpoints-cleaned"
    checkpoints_reopened "checkpoints-reopened"
}

#[test]
fn every_scenario_is_here() {
    let mut all: Vec<_> = real().iter().map(|scenario| scenario.name()).collect();
    let mut here = NAMES.to_vec();
    all.sort();
    here.sort_unstable();
    assert_eq!(all, here);
    assert!(here.len() >= 40);
}

/// A disk that keeps more in order must not be worse.
#[test]
fn a_journal_in_ordered_mode() {
    let images = |name: &&str| explored(name, &ordered(), 20).images_total();
    let total: u64 = NAMES.iter().step_by(3).map(images).sum();
    assert!(total > 10_000, "{total}");
}

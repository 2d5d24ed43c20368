//! What a seed decides, it decides every time: without that no failure could be run again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use laminar_sim::registry::real;

#[test]
fn every_scenario_does_the_same_operations_again_and_so_does_its_recovery() {
    let mut differ = 0;
    for scenario in real() {
        let name = scenario.name();
        let hashes =
            [1, 1, 2].map(|seed| scenario.trace_hash(seed).unwrap_or_else(|e| panic!("{name}: {e}")));
        let [first, again, other] = hashes;
        assert_eq!(first, again, "{name}");
        differ += usize::from(first != other);
    }
    // Another seed is another run, or the comparison would say nothing.
    assert!(differ > 40, "{differ}");
}

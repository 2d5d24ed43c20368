//! What is left of a job that has ended in order.
#![allow(clippy::unwrap_used, reason = "tests say so by failing")]

use laminar_storage::{Epoch, Store};
use laminar_timely::{Cluster, Config, run};

/// The last epochs of a job that ended were durable everywhere, and its stores were never told so: had one process come back with
/// less, the others would have gone back with it, behind what sinks had committed. Found by reading.
#[test]
fn what_a_job_ended_with_is_not_given_up_again() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    run(&Cluster::single(1), &Config::new(&state, "sums"), |job| {
        let mut input = job.dataflow(|flow| {
            let (input, stream) = flow.input::<(u64, u64)>("numbers")?;
            flow.fold(stream, "sums", |sum: &mut u64, n| *sum += n)?;
            Ok(input)
        })?;
        for n in 0..5 {
            input.send((n, n));
            input.seal()?;
        }
        input.finish()
    })
    .unwrap();
    let store = state.join("generation-00000001/part-0000/store");
    let mut last = Epoch::ZERO;
    let opened = Store::builder(store).open_as_part(|found| {
        last = found;
        Ok(Epoch(found.get() - 1))
    });
    assert!(last.get() >= 5, "{last}");
    let refused = opened.err().unwrap().to_string();
    assert!(refused.contains("was settled"), "{refused}");
}

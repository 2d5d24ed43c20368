//! Counts events of each user in windows of ten seconds of event time; a window comes out when all inputs are past its end.
//!
//! ```text
//! cargo run -p laminar-timely --example windows
//! ```
#![allow(clippy::print_stdout, reason = "an example that shows what it does")]

use laminar_timely::timely::dataflow::operators::vec::Map;
use laminar_timely::{Cluster, Config, FileSink, Windowed, run};

/// User, and event time in milliseconds. The last one of `ann` comes late.
const EVENTS: [(&str, i64); 6] =
    [("ann", 1_000), ("bob", 4_000), ("ann", 9_000), ("bob", 12_000), ("ann", 31_000), ("ann", 2_000)];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("laminar-windows-{}", std::process::id()));
    let out = dir.join("out");
    run(&Cluster::single(1), &Config::new(dir.join("state"), "windows"), {
        let out = out.clone();
        move |job| {
            let mut input = job.dataflow(|flow| {
                let (input, events) = flow.input::<(String, i64, ())>("events")?;
                let counts = flow.tumbling(events, "counts", 10_000, |count: &mut u64, ()| *count += 1)?;
                let lines = counts.map(|windowed| match windowed {
                    Windowed::Closed { key, end, value } => format!("{key}: {value} up to {end} ms\n"),
                    Windowed::Late { key, end } => format!("{key}: too late for the window up to {end} ms\n"),
                });
                flow.sink(lines, "lines", |part| {
                    FileSink::open(&out, "windows", part, |line: &String, file| {
                        file.extend_from_slice(line.as_bytes());
                    })
                })?;
                Ok(input)
            })?;
            for (user, time) in EVENTS {
                input.send((user.to_owned(), time, ()));
                // Nothing earlier than five seconds before is expected any more.
                input.set_watermark(time - 5_000);
                input.seal()?;
            }
            input.finish()
        }
    })?;
    for entry in std::fs::read_dir(&out)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rows") {
            print!("{}", std::fs::read_to_string(path)?);
        }
    }
    Ok(std::fs::remove_dir_all(dir)?)
}

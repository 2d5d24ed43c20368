//! Counts words, exactly once, on one process or several: every count that changes is a row of output.
//!
//! ```text
//! cargo run -p laminar-timely --example word_count -- DIRECTORY
//! cargo run -p laminar-timely --example word_count -- DIRECTORY 0 127.0.0.1:7101 127.0.0.1:7102    # and the same with 1
//! ```
//! Interrupt it and start it again: it goes on where it was, and no row is there twice. Rows are in `DIRECTORY/out`.
#![allow(clippy::print_stdout, reason = "an example that shows what it does")]

use std::path::PathBuf;
use std::time::Duration;

use laminar_timely::{Cluster, Config, FileSink, run};

/// Stands for a source that can go back to an offset: a file, a log, a queue that keeps what it gave.
const TEXT: &str = "to be or not to be that is the question";
const REPEATS: u64 = 200;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("name a directory")?);
    let process = arguments.next().map_or(Ok(0), |number| number.parse())?;
    let cluster = Cluster { process, workers: 2, addresses: arguments.collect() };
    let out = dir.join("out");
    run(&cluster, &Config::new(dir.join("state"), "word_count"), move |job| {
        let mut input = job.dataflow(|flow| {
            let (input, words) = flow.input::<(String, u64)>("words")?;
            let counts = flow.fold(words, "counts", |count: &mut u64, one| *count += one)?;
            flow.sink(counts, "rows", |part| {
                FileSink::open(&out, "word_count", part, |(word, count), line| {
                    line.extend_from_slice(format!("{word} {count}\n").as_bytes());
                })
            })?;
            Ok(input)
        })?;
        // One worker of all reads; the others finish at once, and take part in the work until the job is done.
        if job.index() == 0 {
            let words: Vec<_> = TEXT.split(' ').collect();
            let all = words.len() as u64 * REPEATS;
            let mut position = job.source_offset("text").unwrap_or(0);
            println!("begins with word {position} of {all}");
            for word in words.iter().cycle().skip(usize::try_from(position % words.len() as u64).unwrap_or(0))
            {
                if position == all {
                    break;
                }
                input.send(((*word).to_owned(), 1));
                position += 1;
                if position % words.len() as u64 == 0 {
                    // The position and everything that came of it are durable together, or neither is.
                    input.set_source_offset("text", position);
                    input.seal()?;
                    job.idle(Duration::from_millis(5));
                }
            }
        }
        input.finish()
    })?;
    println!("done; rows are in {}", dir.join("out").display());
    Ok(())
}

//! Counts words of a file, and keeps how each count grew in a table of PostgreSQL; started again, it goes on.
//!
//! ```text
//! cargo run --release -p laminar-timely-postgres --bin words-to-postgres -- FILE STATE_DIRECTORY "host=/run/postgresql user=me dbname=words"
//! ```
//! One row for each word and each ten lines of the file in which it came: `SELECT word, max(count) FROM counts GROUP BY word`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::process::ExitCode;
use std::time::Duration;

use laminar_timely::{Cluster, Config, Error, Job, run};
use laminar_timely_postgres::PostgresSink;
use postgres::{Client, NoTls};

/// Lines of an epoch.
const TOGETHER: usize = 10;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, state, server] = &*arguments else {
        eprintln!("usage: words-to-postgres FILE STATE_DIRECTORY SERVER");
        return ExitCode::from(2);
    };
    match count(file, state, server) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("words-to-postgres: {error}");
            ExitCode::FAILURE
        }
    }
}

fn count(file: &str, state: &str, server: &str) -> Result<(), Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(file)?;
    Client::connect(server, NoTls)?
        .batch_execute("CREATE TABLE IF NOT EXISTS counts (word text NOT NULL, count bigint NOT NULL)")?;
    let config = Config::new(state, "words");
    let server = server.to_owned();
    run(&Cluster::single(2), &config, move |job| on_worker(job, &text, &server))?;
    Ok(())
}

fn on_worker(job: &mut Job, text: &str, server: &str) -> Result<(), Error> {
    let mut input = job.dataflow(|flow| {
        let (input, stream) = flow.input::<(String, u64)>("lines")?;
        let counts = flow.fold(stream, "counts", |count: &mut u64, one| *count += one)?;
        flow.sink(counts, "postgres", |part| {
            PostgresSink::open(server, "words/counts", part, |to, (word, count): &(String, u64)| {
                let count = i64::try_from(*count).unwrap_or(i64::MAX);
                to.execute("INSERT INTO counts VALUES ($1, $2)", &[word, &count]).map(drop)
            })
        })?;
        Ok(input)
    })?;
    // The first worker reads; the others fold what is theirs.
    let mut done = usize::try_from(job.source_offset("lines").unwrap_or(0)).unwrap_or(usize::MAX);
    let lines: Vec<&str> = text.lines().skip(done).collect();
    for lines in lines.chunks(TOGETHER).filter(|_| job.index() == 0) {
        for word in lines.iter().flat_map(|line| line.split_whitespace()) {
            input.send((word.to_owned(), 1));
        }
        done += lines.len();
        input.set_source_offset("lines", done as u64);
        let epoch = input.seal()?;
        input.idle(Duration::ZERO);
        println!("sealed {} committed {}", epoch.0, job.committed_epoch().0);
    }
    input.finish()
}

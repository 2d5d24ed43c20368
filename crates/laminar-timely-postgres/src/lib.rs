//! A transactional sink, as an example: rows of a job into PostgreSQL, exactly once.
//!
//! ```no_run
//! use laminar_timely::{Cluster, Config, run};
//! use laminar_timely_postgres::PostgresSink;
//!
//! run(&Cluster::single(2), &Config::new("state", "words"), |job| {
//!     let mut input = job.dataflow(|flow| {
//!         let (input, stream) = flow.input::<(String, u64)>("words")?;
//!         let counts = flow.fold(stream, "counts", |count: &mut u64, one| *count += one)?;
//!         flow.sink(counts, "out", |part| {
//!             PostgresSink::open("host=/run/postgresql user=me dbname=words", "words/out", part, |to, row: &(String, u64)| {
//!                 let count = i64::try_from(row.1).unwrap_or(i64::MAX);
//!                 to.execute("INSERT INTO counts VALUES ($1, $2)", &[&row.0, &count]).map(drop)
//!             })
//!         })?;
//!         Ok(input)
//!     })?;
//!     // ... read the source, as with any sink, then:
//!     input.finish()
//! })?;
//! # Ok::<(), laminar_timely::Error>(())
//! ```
//!
//! # How it is exact
//! The rows of some epochs and a row that says which epoch was the last go into **one transaction**. So the database knows
//! what it has, and says so when the job asks after a crash: [`EpochSink::committed`]. Two things are easy to get wrong:
//!
//! - *The transaction that a dead process left under way.* Its `COMMIT` may have reached the server, which is still working on
//!   it while the next process asks how far it is. A session takes a lock of its part before it asks, and keeps it until the
//!   server has ended the session: whoever has the lock sees everything that the one before did.
//! - *A process that was thought dead and is not.* Each transaction moves the epoch on from the one that this process saw
//!   last. If it is another one, somebody else writes this part, and nothing of the transaction stays.
//!
//! The server must be durable itself: `fsync` on, as it is by default. This sink asks for `synchronous_commit` by itself. A
//! database that comes back older than it was, from a backup or a standby that was behind, is refused by the job: what it lost is
//! not in the state any more.
//!
//! So is a job that is restored from a backup older than the database: which rows came after an epoch, only the tables of the user
//! could say, and this sink takes nothing back. No other sink of the job is changed then. A sink whose rows carry their epoch can
//! delete them: see [`EpochSink::prepare_cut_back`], in which it may look but not write, and do it in the transaction that sets the
//! epoch back.
//!
//! # What it asks of the user
//! - A connection of its own to the server, without a pooler that gives sessions to several clients in turns.
//! - A `write` that takes every row. One that the database refuses (text with a NUL) ends the process at every start.
//! - A `stall_timeout` of the job that is longer than the longest transaction. Rows go one statement at a time here; where that is
//!   too slow, put many into one statement.
#![deny(missing_docs)]

use std::fmt;
use std::io;
use std::time::Duration;

use laminar_storage::Epoch;
use laminar_timely::{EpochSink, Error, SinkPart};
use postgres::{Client, Config, NoTls, Transaction};

/// How long a new session waits for the one before, which a server ends when it notices that its process is gone: less than a job
/// waits before it calls that a stall.
const WAIT_FOR_PREDECESSOR: &str = "SET lock_timeout = '40s'";

/// How soon the server notices that the machine of a process is gone, and with it the session: after some 25 seconds, in place of
/// hours. Nothing of it applies to a local socket.
const NOTICE_THE_DEAD: &str = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; \
     SET tcp_user_timeout = 25000";

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(20);

/// Serializes the creation of the table, which `IF NOT EXISTS` does not. A number of this program's own.
const CREATING: i64 = 0x6c61_6d69_6e61;

/// How a row is written, within a transaction.
type Write<D> = Box<dyn FnMut(&mut Transaction<'_>, &D) -> Result<(), postgres::Error> + Send>;

/// Puts the rows of one part of a job's output into a database.
///
/// It keeps a table `laminar_sinks` there, with a row for each sink and part: the last epoch that is in the database.
pub struct PostgresSink<D> {
    client: Client,
    name: String,
    part: String,
    epoch: Epoch,
    write: Write<D>,
}

impl<D> fmt::Debug for PostgresSink<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, part, epoch, .. } = self;
        f.debug_struct("PostgresSink")
            .field("name", name)
            .field("part", part)
            .field("epoch", epoch)
            .finish_non_exhaustive()
    }
}

impl<D> PostgresSink<D> {
    /// Connects, waits until no earlier session writes this part any more, and finds out what it left. `server` is what
    /// [`postgres::Config`] takes, `name` tells sinks in one database apart: each sink of each job has its own. `write` puts
    /// one row into a transaction.
    ///
    /// # Errors
    /// `Program`, when the server cannot be reached or refuses, or when another session has kept this part for 40 seconds.
    pub fn open(
        server: &str,
        name: &str,
        part: SinkPart,
        write: impl FnMut(&mut Transaction<'_>, &D) -> Result<(), postgres::Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let refused = |error: postgres::Error| {
            Error::program(
                format!("PostgreSQL, part {part} of the sink {name:?}: {}", said(&error)),
                "Look at the server. If it waited for a lock: end the other process that has this part, or give every sink a \
                 name of its own. Then start again: nothing was written.",
            )
        };
        let mut config: Config = server.parse().map_err(refused)?;
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT);
        }
        let mut client = config.connect(NoTls).map_err(refused)?;
        let epoch = begin(&mut client, name, &part.to_string()).map_err(refused)?;
        // Epochs are positive there too: nobody else writes the table.
        let epoch = Epoch(u64::try_from(epoch).unwrap_or_default());
        Ok(Self { client, name: name.to_owned(), part: part.to_string(), epoch, write: Box::new(write) })
    }

    fn transact(&mut self, epochs: &[(Epoch, Vec<D>)], last: Epoch) -> Result<bool, postgres::Error> {
        let mut transaction = self.client.transaction()?;
        for row in epochs.iter().flat_map(|(_, rows)| rows) {
            (self.write)(&mut transaction, row)?;
        }
        let moved = transaction.execute(
            "UPDATE laminar_sinks SET epoch = $3 WHERE sink = $1 AND part = $2 AND epoch = $4",
            &[&self.name, &self.part, &number(last), &number(self.epoch)],
        )?;
        if moved == 1 {
            transaction.commit()?;
        }
        // Otherwise dropping it rolls it back.
        Ok(moved == 1)
    }
}

/// Takes the lock of a part, and says which epoch is its last.
fn begin(client: &mut Client, name: &str, part: &str) -> Result<i64, postgres::Error> {
    client.batch_execute(NOTICE_THE_DEAD)?;
    client.batch_execute(WAIT_FOR_PREDECESSOR)?;
    client.batch_execute("SET synchronous_commit = on")?;
    client.execute("SELECT pg_advisory_lock(hashtextextended($1 || ' ' || $2, 0))", &[&name, &part])?;
    // How long `write` may wait for others is the server's matter again.
    client.batch_execute("RESET lock_timeout")?;
    let mut transaction = client.transaction()?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&CREATING])?;
    // Wherever the search path finds it: another role, with a schema of its own, must not begin anew.
    let there = transaction.query_one("SELECT to_regclass('laminar_sinks') IS NOT NULL", &[])?;
    if !there.try_get::<_, bool>(0)? {
        transaction.batch_execute(
            "CREATE TABLE laminar_sinks (sink text, part text, epoch bigint NOT NULL, PRIMARY KEY (sink, part))",
        )?;
    }
    transaction
        .execute("INSERT INTO laminar_sinks VALUES ($1, $2, 0) ON CONFLICT DO NOTHING", &[&name, &part])?;
    let row = transaction
        .query_one("SELECT epoch FROM laminar_sinks WHERE sink = $1 AND part = $2", &[&name, &part])?;
    transaction.commit()?;
    row.try_get(0)
}

/// An epoch as the database has it.
fn number(epoch: Epoch) -> i64 {
    i64::try_from(epoch.0).unwrap_or(i64::MAX)
}

/// What the server says, or what is known without it, with the causes.
fn said(error: &postgres::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl<D: Send> EpochSink<D> for PostgresSink<D> {
    fn committed(&self) -> Epoch {
        self.epoch
    }

    fn commit(&mut self, epochs: &[(Epoch, Vec<D>)]) -> io::Result<()> {
        let Some((last, _)) = epochs.last() else { return Ok(()) };
        match self.transact(epochs, *last) {
            Ok(true) => {
                self.epoch = *last;
                Ok(())
            }
            Ok(false) => Err(io::Error::other(format!(
                "part {} of the sink {:?} is not at epoch {} any more: another process writes it, or a commit of this one \
                 came through that was believed to have failed; open it again, and let one process write it",
                self.part, self.name, self.epoch
            ))),
            // It may be in the database nevertheless. Whoever asks next will see.
            Err(error) => {
                let first = epochs.first().map_or(*last, |(epoch, _)| *epoch);
                Err(io::Error::other(format!("PostgreSQL, epochs {first} to {last}: {}", said(&error))))
            }
        }
    }
}

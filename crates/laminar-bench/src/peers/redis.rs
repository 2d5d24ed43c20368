//! Redis: a server beside the program and not a library in it, so that all it is asked goes through a socket.
//!
//! It makes durable what it has in two ways, which are two rows: a snapshot of everything, which a forked process writes,
//! and a file to which it appends what it is told.

use std::cell::RefCell;
use std::fs::File;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use redis::{Client, Connection, Pipeline};

use super::Peer;
use super::stall::{Stall, Writer};
use crate::bytes::written_bytes_of;
use crate::keys::{key, value};
use crate::{Error, interrupt};

const PROGRAM: &str = "redis-server";

/// Puts in a request, and keys asked for at once.
const BATCH: usize = 1024;

/// From one look at whether the server has finished something to the next.
const LOOK: Duration = Duration::from_micros(500);

/// Longer than it takes to read any state of ours.
const PATIENCE: Duration = Duration::from_secs(300);

/// Whether it is on this machine.
pub fn is_there() -> bool {
    Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// A server with a directory of its own. It goes away with this.
struct Server {
    _on_signal: interrupt::Killed,
    process: Child,
    client: Client,
    connection: RefCell<Connection>,
}

impl Server {
    /// Starts it, and waits until it has read what is in its directory.
    fn start(dir: &Path, append: bool) -> Result<Self, Error> {
        let socket = dir.join("socket");
        let log = File::create(dir.join("log"))?;
        let process = Command::new(PROGRAM)
            // It looks after a snapshot that has ended only so often a second, and 10 times unless told.
            .args(["--hz", "500", "--port", "0", "--save", "", "--auto-aof-rewrite-percentage", "0"])
            .args(["--appendonly", if append { "yes" } else { "no" }, "--appendfsync", "always"])
            .arg("--unixsocket")
            .arg(&socket)
            .arg("--dir")
            .arg(dir)
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log)
            .spawn()?;
        let on_signal = interrupt::Killed::new(process.id());
        let mut waiting = Waiting { process: Some(process), log: dir.join("log") };
        let client = Client::open(format!("unix://{}", socket.display()))?;
        let connection = waiting.until_it_answers(&client)?;
        let process = waiting.process.take().ok_or("no server")?;
        Ok(Self { _on_signal: on_signal, process, client, connection: RefCell::new(connection) })
    }

    fn put(&mut self, numbers: &mut dyn Iterator<Item = u64>, version: u32) -> Result<(), Error> {
        let numbers: Vec<u64> = numbers.collect();
        for part in numbers.chunks(BATCH) {
            let mut set = redis::cmd("MSET");
            for number in part {
                set.arg(key(*number).as_slice()).arg(value(*number, version).as_slice());
            }
            let () = set.query(self.connection.get_mut())?;
        }
        Ok(())
    }

    /// Has a snapshot written, and waits for it.
    fn snapshot(connection: &mut Connection) -> Result<(), Error> {
        let _: String = redis::cmd("BGSAVE").query(connection)?;
        loop {
            let about: String = redis::cmd("INFO").arg("persistence").query(connection)?;
            if about.contains("rdb_bgsave_in_progress:0") {
                let well = about.contains("rdb_last_bgsave_status:ok");
                return if well { Ok(()) } else { Err("Redis could not write its snapshot".into()) };
            }
            std::thread::sleep(LOOK);
        }
    }

    fn get(&self, number: u64) -> Result<bool, Error> {
        let found: Option<Vec<u8>> =
            redis::cmd("GET").arg(key(number).as_slice()).query(&mut self.connection.borrow_mut())?;
        Ok(found.is_some())
    }

    fn scan(&self) -> Result<u64, Error> {
        let mut connection = self.connection.borrow_mut();
        let (mut there, mut cursor) = (0, 0_u64);
        loop {
            let (next, keys): (u64, Vec<Vec<u8>>) =
                redis::cmd("SCAN").arg(cursor).arg("COUNT").arg(BATCH).query(&mut connection)?;
            if !keys.is_empty() {
                let values: Vec<Vec<u8>> = redis::cmd("MGET").arg(keys).query(&mut connection)?;
                there += values.iter().filter(|value| !value.is_empty()).count() as u64;
            }
            if next == 0 {
                return Ok(there);
            }
            cursor = next;
        }
    }

    /// Ends it in order. What it was told is in its files by then, as far as it ever will be.
    fn close(mut self) -> Result<(), Error> {
        // It hangs up in place of an answer.
        let asked: redis::RedisResult<()> =
            redis::cmd("SHUTDOWN").arg("NOSAVE").query(self.connection.get_mut());
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            match self.process.try_wait()? {
                Some(ended) if ended.success() => return Ok(()),
                Some(ended) => return Err(format!("Redis ended with {ended}").into()),
                None => std::thread::sleep(LOOK),
            }
        }
        Err(format!("Redis does not end: {:?}", asked.err()).into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

/// Leaves no server behind. One that has ended already is no news.
fn end(process: &mut Child) {
    let _ = process.kill();
    let _ = process.wait();
}

/// A server that does not answer yet.
struct Waiting {
    process: Option<Child>,
    log: PathBuf,
}

impl Waiting {
    fn until_it_answers(&mut self, client: &Client) -> Result<Connection, Error> {
        let started = Instant::now();
        loop {
            let answer = client.get_connection().and_then(|mut connection| {
                let _: String = redis::cmd("PING").query(&mut connection)?;
                Ok(connection)
            });
            let ended = self.process.as_mut().map_or(Ok(None), Child::try_wait)?;
            match (answer, ended) {
                (Ok(connection), _) => return Ok(connection),
                (Err(_), Some(ended)) => return Err(self.why(ended)),
                (Err(error), None) if started.elapsed() > PATIENCE => return Err(error.into()),
                // It has no socket yet, or says that it is loading.
                (Err(_), None) => std::thread::sleep(LOOK),
            }
        }
    }
}

impl Waiting {
    fn why(&self, ended: ExitStatus) -> Error {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        format!("Redis ended with {ended}: {}", log.lines().last().unwrap_or_default()).into()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            end(process);
        }
    }
}

/// How it makes durable what it has.
pub trait Way {
    const NAME: &'static str;
    /// What a snapshot is called, if it makes any.
    const SNAPSHOT: Option<&'static str>;
}

/// By snapshots only.
pub struct Snapshots;

impl Way for Snapshots {
    const NAME: &'static str = "Redis";
    const SNAPSHOT: Option<&'static str> = Some("BGSAVE, a snapshot of everything");
}

/// By a file that it appends to, which is synced before it answers. Writing that file anew is writing everything, as a
/// snapshot is.
pub struct Appending;

impl Way for Appending {
    const NAME: &'static str = "Redis, its append-only file";
    const SNAPSHOT: Option<&'static str> = None;
}

pub struct Redis<W> {
    server: Server,
    way: PhantomData<W>,
}

impl<W: Way> Peer for Redis<W> {
    const NAME: &'static str = W::NAME;
    const CHECKPOINT: Option<&'static str> = W::SNAPSHOT;
    const LOG: Option<&'static str> = None;

    fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Self { server: Server::start(dir, W::SNAPSHOT.is_none())?, way: PhantomData })
    }

    fn put(&mut self, numbers: &mut dyn Iterator<Item = u64>, version: u32) -> Result<(), Error> {
        self.server.put(numbers, version)
    }

    fn checkpoint(&mut self, _: &Path) -> Result<(), Error> {
        if W::SNAPSHOT.is_none() {
            return Ok(());
        }
        Server::snapshot(self.server.connection.get_mut())
    }

    fn written(&self) -> Result<u64, Error> {
        written_bytes_of(self.server.process.id())
    }

    fn stall(&mut self, _: &Path, writer: &mut Writer, quiet: Duration) -> Result<Option<Stall>, Error> {
        if W::SNAPSHOT.is_none() {
            return Ok(None);
        }
        let mut connection = self.server.client.get_connection()?;
        let put = |number| {
            let mut set = Pipeline::new();
            set.set(key(number).as_slice(), value(number, 0).as_slice()).ignore();
            Ok(set.exec(&mut connection)?)
        };
        let asking = self.server.connection.get_mut();
        writer.beside(quiet, put, || Server::snapshot(asking)).map(Some)
    }

    fn get(&self, number: u64) -> Result<bool, Error> {
        self.server.get(number)
    }

    fn scan(&self) -> Result<u64, Error> {
        self.server.scan()
    }

    fn close(self) -> Result<(), Error> {
        self.server.close()
    }
}

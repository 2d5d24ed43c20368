//! The checkpoint and the opening of other stores, with the same keys and values, beside ours and a floor in
//! the same run. What each calls a checkpoint is not the same thing: the notes say what it is.

mod floor;
#[cfg(feature = "peers")]
pub mod lmdb;
#[cfg(feature = "peers")]
pub mod others;
mod ours;
pub mod predecessor;
#[cfg(feature = "peers")]
mod redis;
#[cfg(feature = "peer-rocksdb")]
pub mod rocks;
mod stall;

use std::path::Path;
use std::time::{Duration, Instant};

use self::floor::Floors;
use self::stall::{Stall, Writer};
use crate::bytes::{disk_bytes, written_bytes};
use crate::keys::{CHANGED_ONE_IN, PAYLOAD, changed};
use crate::place::clear;
use crate::progress::progress;
use crate::table::{Cell, Report, Table};
use crate::{Error, Run};

/// A store that is filled, changed, checkpointed, and opened again.
pub trait Peer: Sized {
    /// What it is called.
    const NAME: &'static str;
    /// What its checkpoint is, if it has such a thing.
    const CHECKPOINT: Option<&'static str>;

    /// What it opens from when no checkpoint was made of it, if that is a log that is replayed.
    const LOG: Option<&'static str>;

    /// Opens it in an empty directory, or again in its own.
    fn open(dir: &Path) -> Result<Self, Error>;

    /// Gives keys a value of this version, durably.
    fn put(&mut self, numbers: &mut dyn Iterator<Item = u64>, version: u32) -> Result<(), Error>;

    /// Makes its state as it is now one that opening need not replay, or that can be kept.
    fn checkpoint(&mut self, dir: &Path) -> Result<(), Error>;

    /// Bytes that were given to the system to write so far.
    fn written(&self) -> Result<u64, Error> {
        written_bytes()
    }

    /// What a checkpoint of changes that were put does to a writer, who puts for some time without one before.
    /// Nothing, if it has no such thing.
    fn stall(&mut self, dir: &Path, writer: &mut Writer, quiet: Duration) -> Result<Option<Stall>, Error>;

    /// Reads one value.
    fn get(&self, number: u64) -> Result<bool, Error>;

    /// Reads all, and counts them.
    fn scan(&self) -> Result<u64, Error>;

    /// Lets go of it in order.
    fn close(self) -> Result<(), Error>;
}

/// The rows of one store.
struct Rows<'a> {
    run: &'a Run,
    keys: u64,
    checkpoints: Table,
    openings: Table,
    floors: Floors,
}

/// What a checkpoint of a store comes to.
struct Costs {
    time: Duration,
    written: u64,
    on_disk: u64,
}

fn changed_bytes(keys: u64) -> u64 {
    changed(keys).count() as u64 * PAYLOAD as u64
}

pub fn run(run: &Run, report: &mut Report) -> Result<(), Error> {
    // Servers and programs that are started get the CPUs of this thread.
    run.pins.none()?;
    let sizes =
        run.keys.map_or_else(|| run.size(vec![200_000], vec![1_000_000, 5_000_000]), |keys| vec![keys]);
    sizes.into_iter().try_for_each(|keys| all(run, keys, report))
}

fn all(run: &Run, keys: u64, report: &mut Report) -> Result<(), Error> {
    progress!("peers: {keys} keys");
    let checkpoints = Table::new(
        "peer-checkpoints",
        format!("A checkpoint after one in {CHANGED_ONE_IN} of {keys} keys changed, 16 B / 100 B"),
        &[
            "store",
            "time, median",
            "/ floor",
            "written",
            "/ changed",
            "on disk / live",
            "longest put meanwhile",
            "without",
        ],
    );
    let openings = Table::new(
        "peer-openings",
        format!("Opening with {keys} keys, page cache warm"),
        &["store", "until the first get", "and until all is read", "/ floor"],
    );
    let floors = Floors::measure(run, keys)?;
    let mut rows = Rows { run, keys, checkpoints, openings, floors };
    rows.floor_rows();
    rows.add::<ours::Laminar>()?;
    #[cfg(feature = "peers")]
    {
        rows.add::<lmdb::Lmdb>()?;
        rows.add::<others::Redb>()?;
        rows.add::<others::Fjall>()?;
        if redis::is_there() {
            rows.add::<redis::Redis<redis::Snapshots>>()?;
            rows.add::<redis::Redis<redis::Appending>>()?;
        }
    }
    #[cfg(feature = "peer-rocksdb")]
    rows.add::<rocks::Rocks>()?;
    for program in &run.program.predecessors {
        rows.add_predecessor(program)?;
    }
    let Rows { mut checkpoints, mut openings, .. } = rows;
    checkpoints.note(crate::floor::NOTE);
    checkpoints.note("written: what the process gave the system to write in the checkpoint of the median time, with what a server answers meanwhile; of the floor, what its files hold; on disk: everything under the directory, hard links once, over keys and values");
    checkpoints.note(stall::NOTE);
    checkpoints.note("LMDB and redb have one writer at a time: meanwhile is the commit at the end of its transaction, without are puts into a transaction that is given up; another writer waits for the whole of it, which is the time");
    checkpoints.note("LMDB and redb write whole pages of their trees, and have no log: what the others had synced before the checkpoint is part of their time");
    openings.note("floor: read one sequential file, check CRCs, fill a presized table, one thread");
    #[cfg(feature = "peer-rocksdb")]
    openings.note(rocks::NOTE);
    openings.note("a store that reads lazily has its first get early; ours has everything in memory then");
    if !cfg!(feature = "peers") {
        checkpoints
            .note("other stores: laminar-bench of the repository, built with --features peers (LMDB, redb, fjall, Redis) or peer-rocksdb");
    }
    checkpoints.note("Redis is a server beside the program: every put waits for its answer over a socket, and reading all asks it for batches; only its snapshots make anything durable there, or its append-only file, which then grows; told to look after its snapshot's end 500 times a second; not measured where there is no redis-server");
    checkpoints.note(if run.program.predecessors.is_empty() {
        predecessor::NOT_MEASURED
    } else {
        predecessor::NOTE
    });
    report.add(checkpoints);
    report.add(openings);
    Ok(())
}

impl Rows<'_> {
    fn floor_rows(&mut self) {
        let Self { keys, floors, checkpoints, openings, .. } = self;
        checkpoints.row(vec![
            Cell::text("floor"),
            Cell::time(floors.checkpoint.time),
            Cell::Number(1.0, 2),
            Cell::Bytes(floors.checkpoint.bytes),
            Cell::Number(floors.checkpoint.bytes as f64 / changed_bytes(*keys) as f64, 2),
            Cell::None,
            Cell::None,
            Cell::None,
        ]);
        openings.row(vec![Cell::text("floor"), Cell::None, Cell::time(floors.opening), Cell::Number(1.0, 2)]);
    }

    fn add<P: Peer>(&mut self) -> Result<(), Error> {
        let dir = self.run.place.fresh("peer")?;
        let mut peer = self.filled::<P>(&dir)?;
        peer.checkpoint(&dir)?;
        let costs = match P::CHECKPOINT {
            Some(what) => Some((what, self.costs(&mut peer, &dir)?)),
            None => {
                peer.put(&mut changed(self.keys), 1)?;
                None
            }
        };
        peer.close()?;
        let mut opened = Vec::new();
        for _ in 0..self.run.size(3, 5) {
            opened.push(self.opening::<P>(&dir)?);
        }
        let from = if costs.is_some() { "after its last checkpoint" } else { "as it is" };
        self.opening_row(format!("{}: {from}", P::NAME), opened);
        // Last, because it changes more than what the other figures are about.
        if let Some((what, costs)) = costs {
            let stall = self.worst_stall::<P>(&dir)?;
            self.checkpoint_row(format!("{}: {what}", P::NAME), &costs, stall);
        }
        clear(&dir)?;
        let Some(log) = P::LOG else { return Ok(()) };
        let mut opened = Vec::new();
        // Some make more than a log of it as soon as they open it, so that each opening needs a new one.
        for _ in 0..3 {
            let dir = self.run.place.fresh("peer")?;
            self.filled::<P>(&dir)?.close()?;
            opened.push(self.opening::<P>(&dir)?);
            clear(&dir)?;
        }
        self.opening_row(format!("{}: {log}", P::NAME), opened);
        Ok(())
    }

    /// A new store with all keys.
    fn filled<P: Peer>(&self, dir: &Path) -> Result<P, Error> {
        std::fs::create_dir_all(dir)?;
        let mut peer = P::open(dir)?;
        peer.put(&mut (0..self.keys), 0)?;
        Ok(peer)
    }

    fn opening_row(&mut self, name: String, mut opened: Vec<(Duration, Duration)>) {
        opened.sort_unstable_by_key(|(_, all)| *all);
        let (first, all) = opened.get(opened.len() / 2).copied().unwrap_or_default();
        self.openings.row(vec![
            Cell::Text(name),
            Cell::time(first),
            Cell::time(all),
            Cell::Number(all.as_secs_f64() / self.floors.opening.as_secs_f64(), 2),
        ]);
    }

    /// What checkpoints come to that nothing is put beside.
    fn costs<P: Peer>(&self, peer: &mut P, dir: &Path) -> Result<Costs, Error> {
        let mut taken = Vec::new();
        for round in 1..=self.run.size(3, 7) {
            peer.put(&mut changed(self.keys), round)?;
            let (started, before) = (Instant::now(), peer.written()?);
            peer.checkpoint(dir)?;
            taken.push((started.elapsed(), peer.written()? - before));
        }
        taken.sort_unstable();
        let (time, written) = taken.get(taken.len() / 2).copied().unwrap_or_default();
        Ok(Costs { time, written, on_disk: disk_bytes(dir) })
    }

    /// The longest puts beside several checkpoints, and beside none.
    fn worst_stall<P: Peer>(&self, dir: &Path) -> Result<Option<Stall>, Error> {
        let (mut peer, mut writer) = (P::open(dir)?, Writer::new(self.keys));
        let (mut worst, mut quiet) = (None::<Stall>, Duration::ZERO);
        for round in 0..=self.run.size(3, 7) {
            peer.put(&mut changed(self.keys), round)?;
            let Some(stall) = peer.stall(dir, &mut writer, quiet)? else { break };
            quiet = stall.time;
            // The first tells only how long one takes, which is how long the next has none before.
            if round > 0 {
                worst = Some(worst.map_or(stall, |worst| worst.or_worse(stall)));
            }
        }
        peer.close()?;
        Ok(worst)
    }

    fn checkpoint_row(&mut self, name: String, costs: &Costs, stall: Option<Stall>) {
        let live = self.keys * PAYLOAD as u64;
        self.checkpoints.row(vec![
            Cell::Text(name),
            Cell::time(costs.time),
            Cell::Number(costs.time.as_secs_f64() / self.floors.checkpoint.time.as_secs_f64(), 2),
            Cell::Bytes(costs.written),
            Cell::Number(costs.written as f64 / changed_bytes(self.keys) as f64, 2),
            Cell::Number(costs.on_disk as f64 / live as f64, 2),
            stall.map_or(Cell::None, |stall| Cell::time(stall.beside)),
            stall.map_or(Cell::None, |stall| Cell::time(stall.alone)),
        ]);
    }

    /// Until the first value is read, and until all are.
    fn opening<P: Peer>(&self, dir: &Path) -> Result<(Duration, Duration), Error> {
        let started = Instant::now();
        let peer = P::open(dir)?;
        if !peer.get(self.keys / 2)? {
            return Err(format!("{}: a key is not there", P::NAME).into());
        }
        let first = started.elapsed();
        let there = peer.scan()?;
        let all = started.elapsed();
        if there != self.keys {
            return Err(format!("{}: {there} keys, not {}", P::NAME, self.keys).into());
        }
        peer.close()?;
        Ok((first, all))
    }
}

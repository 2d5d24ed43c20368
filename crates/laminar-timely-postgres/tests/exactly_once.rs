//! The example against a real server that the test starts: processes are killed, and so is the server; what is in the table
//! at the end is what a run without any of that would have put there.
//!
//! It needs PostgreSQL (`initdb` and `postgres` on the path, or where Debian puts them).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests say so by failing")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::chown;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use laminar_storage::Epoch;
use laminar_timely::{EpochSink, SinkPart};
use laminar_timely_postgres::PostgresSink;
use postgres::{Client, NoTls};
use rustix::process::{Pid, Signal, geteuid, kill_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_words-to-postgres");
/// Whom a server runs as when the test is root, which it refuses: nobody.
const NOBODY: u32 = 65_534;

/// A server, with a directory of its own, reached by a socket in it. Stopped when dropped.
struct Server {
    dir: tempfile::TempDir,
    postgres: Option<Child>,
}

/// Where a program of the server is.
fn program(name: &str) -> PathBuf {
    let of_debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut places: Vec<_> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    places.extend(of_debian.map(|version| version.path().join("bin")));
    let found = places.into_iter().map(|place| place.join(name)).find(|path| path.is_file());
    // Links lead to where the rest of the server is.
    fs::canonicalize(found.unwrap_or_else(|| panic!("there is no {name}: install PostgreSQL"))).unwrap()
}

/// A program of the server, run by somebody it accepts.
fn by_nobody(name: &str) -> Command {
    let mut command = Command::new(program(name));
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.stdin(Stdio::null());
    command
}

impl Server {
    fn start() -> Self {
        // A path to a socket is at most a hundred bytes long, so not below whatever TMPDIR is.
        let dir = tempfile::Builder::new().prefix("laminar-pg-").tempdir_in("/tmp").unwrap();
        if geteuid().is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let made = by_nobody("initdb")
            .args(["-U", "laminar", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(dir.path().join("data"))
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut server = Self { dir, postgres: None };
        server.restart();
        server
    }

    fn address(&self) -> String {
        format!("host={} user=laminar dbname=postgres", self.dir.path().display())
    }

    /// Starts the server on its data, and waits until it answers.
    fn restart(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let child = by_nobody("postgres")
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .arg("-k")
            .arg(self.dir.path())
            .args(["-c", "listen_addresses=", "-c", "max_connections=20"])
            .current_dir(self.dir.path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.postgres = Some(child);
        for _ in 0..600 {
            if Client::connect(&self.address(), NoTls).is_ok() {
                return;
            }
            assert!(self.postgres.as_mut().unwrap().try_wait().unwrap().is_none(), "{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the server does not answer: {}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.postgres.as_ref().unwrap())
    }

    /// Until it has ended.
    fn wait(&mut self) {
        self.postgres.take().unwrap().wait().unwrap();
    }

    fn client(&self) -> Client {
        Client::connect(&self.address(), NoTls).unwrap()
    }

    /// What is in the table, sorted.
    fn rows(&self) -> Vec<(String, i64)> {
        let rows =
            self.client().query("SELECT word, count FROM counts ORDER BY word COLLATE \"C\", count", &[]);
        rows.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.postgres.is_some() {
            quit(self.pid());
            self.wait();
        }
    }
}

/// As `pg_ctl stop -m immediate`: the server writes nothing down, and ends all sessions at once.
fn quit(pid: Pid) {
    kill_process(pid, Signal::QUIT).unwrap();
}

/// Lines of words, more of some than of others.
fn lines(count: u64) -> Vec<String> {
    let word = |n: u64| format!("w{}", (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) % 50);
    (0..count).map(|n| format!("{} {}", word(2 * n), word(2 * n + 1))).collect()
}

/// What the table must have after the lines.
fn truth(lines: &[String]) -> Vec<(String, i64)> {
    let (mut counts, mut rows) = (BTreeMap::<&str, i64>::new(), Vec::new());
    for together in lines.chunks(10) {
        let mut changed = BTreeMap::new();
        for word in together.iter().flat_map(|line| line.split_whitespace()) {
            let count = counts.entry(word).or_default();
            *count += 1;
            changed.insert(word, *count);
        }
        rows.extend(changed.into_iter().map(|(word, count)| (word.to_owned(), count)));
    }
    rows.sort();
    rows
}

/// Runs the program, and `disturbs` it when it has said so many lines.
fn run(server: &Server, root: &Path, said: usize, disturb: impl FnOnce(&mut Child)) -> std::process::Output {
    let mut child = Command::new(PROGRAM)
        .arg(root.join("words"))
        .arg(root.join("state"))
        .arg(server.address())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let there = out.by_ref().take(said).count();
    if there == said {
        disturb(&mut child);
    }
    out.for_each(drop);
    child.wait_with_output().unwrap()
}

#[test]
fn killed_processes_and_a_crashing_server_leave_every_row_once() {
    let mut server = Server::start();
    let root = tempfile::tempdir().unwrap();
    let lines = lines(6_000);
    fs::write(root.path().join("words"), lines.join("\n")).unwrap();
    for said in [1, 20, 3, 35, 8, 27, 14] {
        let done = run(&server, root.path(), said, |child| child.kill().unwrap());
        let told = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.signal(), Some(9), "ended by itself, before or after the kill: {told}");
    }
    let done = run(&server, root.path(), usize::MAX, |_| ());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(server.rows(), truth(&lines));

    // With as many lines more, the server dies below the program, which must end, and say so.
    let lines = [lines.clone(), lines].concat();
    fs::write(root.path().join("words"), lines.join("\n")).unwrap();
    let pid = server.pid();
    let done = run(&server, root.path(), 10, |_| quit(pid));
    server.wait();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && said.contains("PostgreSQL"), "{said}");
    server.restart();
    let done = run(&server, root.path(), usize::MAX, |_| ());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(server.rows(), truth(&lines));

    // The database comes back as it was some time ago: what it lost is nowhere, and the job does not go on as if it were.
    server.client().execute("UPDATE laminar_sinks SET epoch = epoch - 50 WHERE epoch > 50", &[]).unwrap();
    let done = run(&server, root.path(), usize::MAX, |_| ());
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && said.contains("but had committed them up to"), "{said}");
}

/// Its last transaction may still be under way: whoever comes next waits until the server has ended its session.
#[test]
fn a_new_writer_waits_for_the_session_of_the_one_before() {
    let server = Server::start();
    let part = SinkPart { generation: 1, worker: 0 };
    let mut before = server.client();
    before.execute("SELECT pg_advisory_lock(hashtextextended('sink g0001-w0000', 0))", &[]).unwrap();
    std::thread::scope(|scope| {
        let after = scope.spawn(|| {
            let sink = PostgresSink::open(&server.address(), "sink", part, |_, (): &()| Ok(()));
            sink.unwrap().committed()
        });
        // It is seen to wait, then the one before writes and goes.
        let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        while server.client().query_one(waits, &[]).unwrap().get::<_, i64>(0) == 0 {
            assert!(!after.is_finished(), "it did not wait");
            std::thread::sleep(Duration::from_millis(5));
        }
        before
            .batch_execute(
                "CREATE TABLE laminar_sinks (sink text, part text, epoch bigint NOT NULL, PRIMARY KEY (sink, part));
                 INSERT INTO laminar_sinks VALUES ('sink', 'g0001-w0000', 7)",
            )
            .unwrap();
        drop(before);
        assert_eq!(after.join().unwrap(), Epoch(7));
    });
}

#[test]
fn a_writer_that_was_thought_dead_writes_nothing_more() {
    let server = Server::start();
    server.client().batch_execute("CREATE TABLE numbers (n bigint)").unwrap();
    let part = SinkPart { generation: 1, worker: 0 };
    let open = || {
        PostgresSink::open(&server.address(), "job", part, |to, n: &i64| {
            to.execute("INSERT INTO numbers VALUES ($1)", &[n]).map(drop)
        })
    };
    let mut one = open().unwrap();
    assert_eq!(one.committed(), Epoch(0));
    one.commit(&[(Epoch(3), vec![1, 2]), (Epoch(5), vec![3])]).unwrap();
    assert_eq!(one.committed(), Epoch(5));
    // As when its lock was lost with a connection that an administrator ended, while another process went on.
    server.client().execute("UPDATE laminar_sinks SET epoch = 8", &[]).unwrap();
    let error = one.commit(&[(Epoch(6), vec![4])]).unwrap_err();
    assert!(error.to_string().contains("another process writes it"), "{error}");
    assert_eq!(one.committed(), Epoch(5));
    drop(one);
    let other = open().unwrap();
    assert_eq!(other.committed(), Epoch(8));
    let there = server.client().query_one("SELECT count(*) FROM numbers", &[]).unwrap();
    assert_eq!(there.get::<_, i64>(0), 3);
}

//! How the processes of a job find each other.
//!
//! Timely's own way has no end when a process is missing, and knows nothing of whom it talks to. Here both sides say which
//! job they belong to, how large it is and which process they are, before anything else, and there is a time limit.
//!
//! ```text
//! caller ──connects──▶ answerer      the one of the higher number calls
//!        ◀───hello───▶
//!        ───confirms─▶               a call counts only now: one whose caller was gone by then, or says nothing, does not
//! ```

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use laminar_storage::error::Detail;
use xxhash_rust::xxh3::xxh3_64;

use crate::config::Cluster;
use crate::error::Error;

const MAGIC: [u8; 8] = *b"lamtime2";
const HELLO_LEN: usize = 28;
const CONFIRMED: [u8; 1] = *b"!";
const PAUSE: Duration = Duration::from_millis(20);
/// How long a connection may take.
const REACH: Duration = Duration::from_secs(2);
/// How long the answer to a call may take: a process that was stopped for a moment, or has much to do, answers late.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a call may take until it is confirmed; longer than its caller waits for the answer, so that none is given up here that
/// counts there.
const CALL: Duration = Duration::from_secs(30);
/// For ever.
const LONG: Duration = Duration::from_secs(3600 * 24 * 365);

/// What a process says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hello {
    job: u64,
    process: u32,
    processes: u32,
    workers: u32,
}

impl Hello {
    fn encode(self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        let fields: [&[u8]; 5] = [
            &MAGIC,
            &self.job.to_le_bytes(),
            &self.process.to_le_bytes(),
            &self.processes.to_le_bytes(),
            &self.workers.to_le_bytes(),
        ];
        for (byte, value) in bytes.iter_mut().zip(fields.concat()) {
            *byte = value;
        }
        bytes
    }

    fn decode(bytes: &[u8; HELLO_LEN]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let (job, rest) = rest.split_first_chunk()?;
        let (process, rest) = rest.split_first_chunk()?;
        let (processes, rest) = rest.split_first_chunk()?;
        let (workers, _) = rest.split_first_chunk()?;
        Some(Self {
            job: u64::from_le_bytes(*job),
            process: u32::from_le_bytes(*process),
            processes: u32::from_le_bytes(*processes),
            workers: u32::from_le_bytes(*workers),
        })
    }

    /// Says hello and hears the other one.
    fn exchange(self, stream: &mut TcpStream, until: Instant) -> io::Result<Option<Self>> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.write_all(&self.encode())?;
        let mut bytes = [0; HELLO_LEN];
        read_until(stream, &mut bytes, until)?;
        Ok(Self::decode(&bytes))
    }

    /// Is the other one of the same job?
    fn fits(self, other: Self) -> bool {
        Self { process: 0, ..self } == Self { process: 0, ..other }
    }
}

/// Connects this process with all others; one stream for each of them, none for itself.
pub(crate) fn connect(
    cluster: &Cluster,
    says: &str,
    timeout: Duration,
) -> Result<Vec<Option<TcpStream>>, Error> {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let hello = Hello {
        job: xxh3_64(says.as_bytes()),
        process: number(cluster.process),
        processes: number(cluster.processes()),
        workers: number(cluster.workers),
    };
    let now = Instant::now();
    let until =
        Until { deadline: now.checked_add(timeout).unwrap_or(now + LONG), ended: AtomicBool::new(false) };
    let own = cluster.addresses.get(cluster.process).map_or("", String::as_str);
    let calls = Calls::listen(own)?;
    let mut streams: Vec<_> = (0..cluster.processes()).map(|_| None).collect();
    loop {
        connect_missing(hello, cluster, &calls, &until, &mut streams)?;
        // Whoever was there first may have ended since, while others were waited for: with what it left here this process would end
        // too, and if each is started again by itself, so would one after the other for ever.
        for stream in &mut streams {
            stream.take_if(|stream| !is_there(stream));
        }
        if streams.iter().filter(|stream| stream.is_none()).count() == 1 {
            return Ok(streams);
        }
    }
}

/// Calls the processes of lower numbers and waits for calls of those of higher ones, as far as there is no stream yet.
fn connect_missing(
    hello: Hello,
    cluster: &Cluster,
    calls: &Calls,
    until: &Until,
    streams: &mut [Option<TcpStream>],
) -> Result<(), Error> {
    let (lower, higher) = streams.split_at_mut(cluster.process);
    let higher = higher.get_mut(1..).unwrap_or_default();
    let mut failed = thread::scope(|scope| {
        let missing =
            lower.iter_mut().zip(&cluster.addresses).enumerate().filter(|(_, (stream, _))| stream.is_none());
        let threads: Vec<_> = missing
            .map(|(peer, (stream, address))| {
                scope.spawn(move || {
                    *stream = Some(until.end_with(call(hello, peer, address, until))?);
                    Ok(())
                })
            })
            .collect();
        let answered = until.end_with(answer(hello, cluster, calls, until, higher));
        let panicked = |_| {
            let detail = Detail::new("a thread that connects panicked");
            Err(Failed::Missing(Error::worker(detail.remedy("Report this; start again."))))
        };
        let called = threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked));
        let all: Vec<_> = called.chain([answered]).filter_map(Result::err).collect();
        all
    });
    // One that does not belong here is why others were not waited for.
    failed.sort_by_key(|failed| matches!(failed, Failed::Missing(_)));
    failed.into_iter().next().map_or(Ok(()), |failed| Err(failed.into()))
}

/// Is the other end still there, as far as can be seen?
fn is_there(stream: &TcpStream) -> bool {
    let seen = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let blocks = stream.set_nonblocking(false).is_ok();
    let is_there = match seen {
        Ok(bytes) => bytes > 0,
        Err(e) => e.kind() == io::ErrorKind::WouldBlock,
    };
    blocks && is_there
}

/// Why a process is not connected.
#[derive(Debug)]
enum Failed {
    /// It is another one than it should be; nobody else needs to be waited for.
    Stranger(Error),
    /// It could not be reached.
    Missing(Error),
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Stranger(error) | Failed::Missing(error) => error,
        }
    }
}

/// How long the processes are waited for.
struct Until {
    deadline: Instant,
    /// The job cannot begin.
    ended: AtomicBool,
}

impl Until {
    fn is_over(&self) -> bool {
        Instant::now() >= self.deadline || self.ended.load(Ordering::Acquire)
    }

    /// Lets nobody wait any longer when a stranger was met.
    fn end_with<T>(&self, result: Result<T, Failed>) -> Result<T, Failed> {
        if let Err(Failed::Stranger(_)) = &result {
            self.ended.store(true, Ordering::Release);
        }
        result
    }
}

/// Fills `bytes`, all of them until then.
fn read_until(stream: &mut TcpStream, mut bytes: &mut [u8], until: Instant) -> io::Result<()> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "it does not answer");
    while !bytes.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => bytes = bytes.get_mut(read..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(late());
            }
            Err(e) => return Err(e),
        }
    }
    stream.set_read_timeout(None)
}

/// Calls a process of a lower number until it answers.
fn call(hello: Hello, peer: usize, address: &str, until: &Until) -> Result<TcpStream, Failed> {
    let mut last = String::from("it does not answer");
    while !until.is_over() {
        let answer_by = until.deadline.min(Instant::now() + ANSWER);
        let heard =
            reach(address).and_then(|mut stream| Ok((hello.exchange(&mut stream, answer_by)?, stream)));
        match heard {
            Ok((Some(other), mut stream)) if hello.fits(other) && other.process as usize == peer => {
                match stream.write_all(&CONFIRMED) {
                    Ok(()) => return Ok(stream),
                    Err(e) => last = e.to_string(),
                }
            }
            // A port that nobody listens on may connect to itself.
            Ok((Some(other), _)) if other == hello => {}
            Ok((Some(other), _)) => return Err(Failed::Stranger(stranger(hello, other, address))),
            Ok((None, _)) => last = "what answers is no process of such a job".to_owned(),
            Err(e) => last = e.to_string(),
        }
        thread::sleep(PAUSE);
    }
    Err(Failed::Missing(missing(&format!("process {peer} at {address}"), &last)))
}

/// A connection to the first of the addresses that a name has which takes one.
fn reach(address: &str) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for at in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&at, REACH) {
            Ok(stream) => return Ok(stream),
            Err(e) => failed = e,
        }
    }
    Err(failed)
}

/// Waits until all processes of higher numbers have called.
fn answer(
    hello: Hello,
    cluster: &Cluster,
    calls: &Calls,
    until: &Until,
    streams: &mut [Option<TcpStream>],
) -> Result<(), Failed> {
    let first = cluster.process + 1;
    while streams.iter().any(Option::is_none) {
        match calls.next(hello) {
            Some((_, Ok((Some(other), stream)))) if hello.fits(other) => {
                let place = (other.process as usize).checked_sub(first).and_then(|at| streams.get_mut(at));
                // Whoever calls again was started again since.
                if let Some(place) = place {
                    *place = Some(stream);
                }
            }
            Some((from, Ok((Some(other), _)))) => {
                return Err(Failed::Stranger(stranger(hello, other, &from.to_string())));
            }
            Some((from, other)) => {
                let said = other.err();
                tracing::warn!(%from, error = ?said, "what called is no process of this job, or gave up");
            }
            None => {}
        }
        if until.is_over() {
            let absent = streams.iter().zip(first..).filter(|(stream, _)| stream.is_none());
            let absent: Vec<_> = absent.map(|(_, process)| process.to_string()).collect();
            let absent = format!("process {}", absent.join(", process "));
            return Err(Failed::Missing(missing(&absent, "it did not call")));
        }
    }
    Ok(())
}

/// Who called, what it said, and the connection if it is one that counts.
type Call = (SocketAddr, io::Result<(Option<Hello>, TcpStream)>);

/// Those who call this process.
struct Calls {
    listener: TcpListener,
    said: Sender<Call>,
    heard: Receiver<Call>,
}

impl Calls {
    fn listen(own: &str) -> Result<Self, Error> {
        let listener =
            TcpListener::bind(own).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        let listener = listener.map_err(|e| {
            Error::connect(Detail::new(format!("could not listen on {own}: {e}")).caused_by(e).remedy(
                "The address of each process must be one of its own machine, with a port that is free.",
            ))
        })?;
        Ok(Self::of(listener))
    }

    fn of(listener: TcpListener) -> Self {
        let (said, heard) = channel();
        Self { listener, said, heard }
    }

    /// Lets a call be answered that waits, and gives one that was; none in a moment without.
    fn next(&self, hello: Hello) -> Option<Call> {
        let mut pause = PAUSE;
        match self.listener.accept() {
            Ok((stream, from)) => {
                pause = Duration::ZERO;
                let said = self.said.clone();
                // On a thread of its own: whoever says nothing keeps nobody else waiting. It ends with its call.
                let hears = move || drop(said.send((from, hear(hello, stream))));
                if let Err(e) = thread::Builder::new().name("laminar-hello".to_owned()).spawn(hears) {
                    tracing::warn!(%from, error = %e, "a call could not be answered");
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => tracing::warn!(error = %e, "a call could not be taken"),
        }
        self.heard.recv_timeout(pause).ok()
    }
}

/// Answers a call. One of this job has to be confirmed; another is told at once.
fn hear(hello: Hello, mut stream: TcpStream) -> io::Result<(Option<Hello>, TcpStream)> {
    let until = Instant::now() + CALL;
    let other = hello.exchange(&mut stream, until)?;
    if other.is_some_and(|other| hello.fits(other)) {
        let mut byte = [0];
        read_until(&mut stream, &mut byte, until)?;
        if byte != CONFIRMED {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it did not confirm"));
        }
    }
    Ok((other, stream))
}

fn missing(who: &str, why: &str) -> Error {
    Error::connect(
        Detail::new(format!("{who} could not be reached in time: {why}"))
            .remedy("Start all processes of the job, with the same list of addresses."),
    )
}

fn stranger(hello: Hello, other: Hello, address: &str) -> Error {
    let what = if hello.fits(other) {
        format!(
            "process {} is at {address}, where another number was expected: the addresses are in another order there",
            other.process
        )
    } else if hello.job == other.job {
        format!(
            "process {} at {address} belongs to a job of {} processes with {} workers each, this one to {} with {}",
            other.process, other.processes, other.workers, hello.processes, hello.workers
        )
    } else {
        format!("what is at {address} belongs to another job, or one with other options")
    };
    Error::connect(
        Detail::new(what)
            .remedy("Start all processes with the same job, options, workers and list of addresses."),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests say so by failing")]
    use super::*;

    /// Addresses that are free now.
    fn addresses(count: usize) -> Vec<String> {
        let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
    }

    #[test]
    fn three_processes_find_each_other_in_any_order() {
        let addresses = addresses(3);
        let starts = |process| {
            let addresses = addresses.clone();
            thread::spawn(move || {
                let cluster = Cluster { process, workers: 2, addresses };
                connect(&cluster, "job", Duration::from_secs(60)).unwrap()
            })
        };
        let mut threads: Vec<_> = [2, 0, 1].map(|process| (process, starts(process))).into();
        threads.sort_by_key(|(process, _)| *process);
        let streams: Vec<_> = threads.into_iter().map(|(_, thread)| thread.join().unwrap()).collect();
        for (process, streams) in streams.iter().enumerate() {
            let there: Vec<_> = streams.iter().map(Option::is_some).collect();
            assert_eq!(there, [0, 1, 2].map(|peer| peer != process));
        }
        // Each stream ends where it says.
        streams[0][2].as_ref().unwrap().write_all(b"x").unwrap();
        let mut byte = [0];
        streams[2][0].as_ref().unwrap().read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn a_process_that_is_missing_is_named() {
        let cluster = Cluster { process: 0, workers: 1, addresses: addresses(2) };
        let error = connect(&cluster, "job", Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("process 1"), "{error}");
        let cluster = Cluster { process: 1, ..cluster };
        let error = connect(&cluster, "job", Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("process 0"), "{error}");
    }

    #[test]
    fn processes_of_another_job_or_size_are_refused() {
        let addresses = addresses(2);
        for (job, workers) in [("another", 1), ("job", 2)] {
            let start = |process, job: &'static str, workers| {
                let cluster = Cluster { process, workers, addresses: addresses.clone() };
                thread::spawn(move || connect(&cluster, job, Duration::from_secs(5)))
            };
            let (one, two) = (start(0, "job", 1), start(1, job, workers));
            let errors = [one.join().unwrap(), two.join().unwrap()];
            assert!(errors.iter().any(Result::is_err));
            let refused = errors.iter().filter_map(|error| error.as_ref().err());
            assert!(
                refused.map(ToString::to_string).any(|e| e.contains("another job") || e.contains("workers"))
            );
        }
    }

    const HELLO: Hello = Hello { job: 7, process: 0, processes: 2, workers: 1 };

    fn within_a_minute() -> Until {
        Until { deadline: Instant::now() + Duration::from_secs(60), ended: AtomicBool::new(false) }
    }

    fn calls(from: Hello, peer: usize, address: &str) -> TcpStream {
        call(from, peer, address, &within_a_minute()).map_err(Error::from).unwrap()
    }

    fn hear_each_other(one: &mut TcpStream, other: &mut TcpStream) {
        one.write_all(b"x").unwrap();
        other.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut byte = [0];
        other.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    /// Process 0 answers what waits in `listener`, and process 1 calls it; whether they hear each other then.
    fn meet(listener: TcpListener) {
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let cluster =
            Cluster { process: 0, workers: 1, addresses: vec![address.clone(), "127.0.0.1:1".into()] };
        let one = thread::spawn(move || calls(Hello { process: 1, ..HELLO }, 0, &address));
        let mut streams = [None, None];
        connect_missing(HELLO, &cluster, &Calls::of(listener), &within_a_minute(), &mut streams).unwrap();
        hear_each_other(&mut one.join().unwrap(), streams[1].as_mut().unwrap());
    }

    /// The others began with what was left of it, ended because of that, and left the same to the next: each started again by itself
    /// after a second, they never began.
    #[test]
    fn a_process_that_ends_while_others_are_waited_for_is_waited_for_again() {
        let addresses = addresses(3);
        let address = addresses[0].clone();
        let zero = thread::spawn(move || {
            let cluster = Cluster { process: 0, workers: 1, addresses };
            connect(&cluster, "job", Duration::from_secs(60)).unwrap()
        });
        let hello = Hello { job: xxh3_64(b"job"), process: 1, processes: 3, workers: 1 };
        drop(calls(hello, 0, &address));
        let mut two = calls(Hello { process: 2, ..hello }, 0, &address);
        let mut one = calls(hello, 0, &address);
        let mut zero = zero.join().unwrap();
        hear_each_other(&mut one, zero[1].as_mut().unwrap());
        hear_each_other(&mut two, zero[2].as_mut().unwrap());
    }

    /// It was said that the other one, which is missing, could not be reached, and only after the whole time.
    #[test]
    fn one_of_another_job_is_told_of_also_when_others_are_missing() {
        let addresses = addresses(3);
        let start = |process, job: &'static str| {
            let cluster = Cluster { process, workers: 1, addresses: addresses.clone() };
            thread::spawn(move || connect(&cluster, job, Duration::MAX).unwrap_err().to_string())
        };
        for told in [start(1, "job"), start(2, "another")] {
            let told = told.join().unwrap();
            assert!(told.contains("another job"), "{told}");
        }
    }

    /// Process 0 took it for process 1, and panicked when it spoke to it.
    #[test]
    fn a_call_that_was_given_up_is_not_taken_for_its_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut given_up = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        given_up.write_all(&Hello { process: 1, ..HELLO }.encode()).unwrap();
        drop(given_up);
        meet(listener);
    }

    /// As a monitor makes them that looks whether a port is open.
    #[test]
    fn calls_that_say_nothing_keep_nobody_from_being_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let silent: Vec<_> = (0..5).map(|_| TcpStream::connect(address).unwrap()).collect();
        meet(listener);
        drop(silent);
    }

    #[test]
    fn a_list_of_addresses_in_another_order_is_told_as_such() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let is_one = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream.write_all(&Hello { process: 1, processes: 3, ..HELLO }.encode()).unwrap();
            stream.read_exact(&mut [0; HELLO_LEN]).unwrap();
        });
        let two = Hello { process: 2, processes: 3, ..HELLO };
        let error = Error::from(call(two, 0, &address, &within_a_minute()).unwrap_err()).to_string();
        is_one.join().unwrap();
        assert!(error.contains("process 1 is at") && error.contains("in another order"), "{error}");
    }

    #[test]
    fn a_hello_comes_back() {
        let hello = Hello { job: 1, process: 2, processes: 3, workers: 4 };
        assert_eq!(Hello::decode(&hello.encode()), Some(hello));
        assert_eq!(Hello::decode(&[0; HELLO_LEN]), None);
    }
}

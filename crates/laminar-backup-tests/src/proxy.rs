//! Stands between a client and a server, and does to requests what networks and servers do to them.
//!
//! Every connection carries one request: it is read whole, and the server is asked to close when it has answered. What happens to
//! a request is told by what it is and how often it came, not by when, so that the same plan does the same to the same requests
//! in whatever order they arrive.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::faults::mix;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cut {
    /// It goes through.
    None,
    /// The connection breaks before the server has seen anything.
    BeforeRequest,
    /// The connections break when the server has half of it.
    InRequest,
    /// The server has answered, and the connection breaks before the client has any of it.
    BeforeReply,
    /// The connection breaks when the client has half of the answer.
    InReply,
    /// The connection breaks, and the server gets the request when it has answered the next one.
    CarriedOutLater,
    /// The server does not see it, and the client is told this instead.
    Answer(u16),
    /// The answer comes after those of others.
    Late,
}

impl Cut {
    /// All that goes wrong.
    pub const ALL: [Self; 8] = [
        Self::BeforeRequest,
        Self::InRequest,
        Self::BeforeReply,
        Self::InReply,
        Self::CarriedOutLater,
        Self::Answer(500),
        Self::Answer(503),
        Self::Late,
    ];
}

/// Decides what happens to a request, by its first line without the version, and how often the same came before.
pub type Plan = dyn Fn(&str, usize) -> Cut + Send + Sync;

/// The proxy; it ends when this is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    server: SocketAddr,
    plan: Box<Plan>,
    stop: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seen: HashMap<String, usize>,
    told: Vec<(String, Cut)>,
    /// Requests that the server is still to get.
    later: Vec<Vec<u8>>,
    open: Vec<TcpStream>,
}

impl Proxy {
    /// One in front of a server of this address.
    pub fn start(server: SocketAddr, plan: impl Fn(&str, usize) -> Cut + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server,
            plan: Box::new(plan),
            stop: AtomicBool::new(false),
            state: Mutex::default(),
        });
        let all = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let mut connections = Vec::new();
            while let Ok((client, _)) = listener.accept() {
                if all.stop.load(Ordering::SeqCst) {
                    break;
                }
                all.state.lock().unwrap().open.push(client.try_clone().unwrap());
                let all = Arc::clone(&all);
                connections.push(thread::spawn(move || {
                    // Whichever end breaks off, the other one is to notice.
                    let _ = all.serve(&client);
                    let _ = client.shutdown(Shutdown::Both);
                }));
            }
            connections.into_iter().for_each(|connection| connection.join().unwrap());
        });
        Self { address, shared, thread: Some(thread) }
    }

    /// Where clients find it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All requests so far, and what happened to them.
    pub fn told(&self) -> Vec<(String, Cut)> {
        self.shared.state.lock().unwrap().told.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for socket in &self.shared.state.lock().unwrap().open {
            // The other end may have done it already.
            let _ = socket.shutdown(Shutdown::Both);
        }
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        let Some((what, request)) = read_request(client)? else { return Ok(()) };
        let (cut, later) = {
            let mut state = self.state.lock().unwrap();
            let count = state.seen.entry(what.clone()).or_default();
            let cut = (self.plan)(&what, *count);
            *count += 1;
            state.told.push((what, cut));
            (cut, std::mem::take(&mut state.later))
        };
        let done = self.answer(client, &request, cut);
        for request in later {
            self.ask(&request)?;
        }
        done
    }

    fn answer(&self, mut client: &TcpStream, request: &[u8], cut: Cut) -> io::Result<()> {
        match cut {
            Cut::BeforeRequest => Ok(()),
            Cut::InRequest => TcpStream::connect(self.server)?.write_all(&request[..request.len() / 2]),
            Cut::BeforeReply => self.ask(request).map(drop),
            Cut::InReply => {
                let reply = self.ask(request)?;
                client.write_all(&reply[..reply.len() / 2])
            }
            Cut::CarriedOutLater => {
                self.state.lock().unwrap().later.push(request.to_vec());
                Ok(())
            }
            Cut::Answer(code) => {
                write!(client, "HTTP/1.1 {code} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            }
            Cut::None | Cut::Late => {
                let reply = self.ask(request)?;
                if cut == Cut::Late {
                    thread::sleep(Duration::from_millis(5));
                }
                client.write_all(&reply)
            }
        }
    }

    /// The server's answer, all of it.
    fn ask(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        let mut server = TcpStream::connect(self.server)?;
        server.write_all(request)?;
        let mut reply = Vec::new();
        server.read_to_end(&mut reply)?;
        Ok(reply)
    }
}

/// What is asked for, and the whole request as the server is to get it; none when there comes none.
fn read_request(mut client: &TcpStream) -> io::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 << 10];
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        let read = client.read(&mut buffer)?;
        if read == 0 {
            return Ok(None);
        }
        bytes.extend_from_slice(&buffer[..read]);
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let (first, rest) = head.split_once("\r\n").unwrap();
    let lengths = rest.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        assert!(!name.eq_ignore_ascii_case("transfer-encoding"), "not understood here: {line}");
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
    });
    let length = lengths.sum::<usize>();
    let mut body = bytes.split_off(end);
    let there = body.len();
    body.resize(length, 0);
    client.read_exact(&mut body[there..])?;
    let what = first.rsplit_once(' ').unwrap().0.to_owned();
    let mut request = format!("{first}\r\nConnection: close\r\n{rest}").into_bytes();
    request.extend_from_slice(&body);
    Ok(Some((what, request)))
}

/// A plan by seed: of a hundred requests so many go wrong, in all ways, and the same at most `most` times.
pub fn seeded(seed: u64, percent: u64, most: usize) -> impl Fn(&str, usize) -> Cut + Send + Sync {
    move |what, before| {
        let mixed = what.bytes().fold(mix(seed), |sum, byte| mix(sum ^ u64::from(byte)));
        let mixed = mix(mixed ^ before as u64);
        if before >= most || mixed % 100 >= percent {
            return Cut::None;
        }
        Cut::ALL[usize::try_from(mixed / 100).unwrap() % Cut::ALL.len()]
    }
}

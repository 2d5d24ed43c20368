//! The connection between the processes is cut, and nobody is told: packets are lost, and no socket is closed.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::Duration;

use laminar_timely::EXIT_FAILED;

use super::job::{Plan, more};
use super::output::rows;
use super::processes::{Stage, free_addresses};

/// Whoever writes here has cut the link.
type Link = Arc<RwLock<()>>;

/// Cuts the connection.
pub fn network(stage: Stage<'_>) -> Result<(), Box<dyn Error>> {
    let plan = Plan { stall_timeout: Duration::from_secs(2), ..Plan::default() };
    println!("- Two processes start. Process 1 calls process 0, through a proxy in between.");
    let own = free_addresses()?;
    let mut through_proxy = own.clone();
    let link = Link::default();
    if let Some(first) = through_proxy.first_mut() {
        *first = forward(first.clone(), &link)?;
    }
    let mut processes = stage.start_at(&plan, [own, through_proxy])?;
    processes.wait_for_the_middle()?;
    println!("- The proxy forwards nothing any more, and keeps its connections open.");
    let cut = link.write().map_err(|_| "the proxy panicked")?;
    let ended = processes.ended()?;
    drop(cut);
    ended.report();
    ended.expect([Some(EXIT_FAILED); 2])?;
    println!("- The output has {} rows: nothing became durable any more.", rows(stage.dir)?.len());
    println!("- Both are started again, with a connection that is whole.");
    more(stage.dir)?;
    stage.finish(&Plan::default())
}

/// Forwards whatever calls the returned address, until this program ends.
fn forward(to: String, link: &Link) -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let link = Arc::clone(link);
    thread::Builder::new().spawn(move || {
        for call in listener.incoming().flatten() {
            // Where nobody listens yet, the call ends, and is made again.
            let _ = TcpStream::connect(&to).and_then(|answer| join(&call, &answer, &link));
        }
    })?;
    Ok(address)
}

/// Forwards in both directions, on a thread for each.
fn join(call: &TcpStream, answer: &TcpStream, link: &Link) -> io::Result<()> {
    for [from, to] in [[call, answer], [answer, call]] {
        let (from, to, link) = (from.try_clone()?, to.try_clone()?, Arc::clone(link));
        to.set_nodelay(true)?;
        thread::Builder::new().spawn(move || copy(from, to, &link))?;
    }
    Ok(())
}

/// Forwards in one direction while the link is there.
fn copy(mut from: TcpStream, mut to: TcpStream, link: &Link) -> io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let read = from.read(&mut bytes)?;
        let _is_there = link.read();
        if read == 0 {
            return to.shutdown(Shutdown::Write);
        }
        to.write_all(bytes.get(..read).unwrap_or_default())?;
    }
}

//! Running a job: connecting the processes, starting the workers, and ending as a whole.

use std::sync::{Arc, Mutex, PoisonError};

use laminar_storage::error::Detail;
use timely::WorkerConfig;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};

use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::{Config as Communication, Hooks};
use timely::execute::execute_from;

use super::job::Job;
use super::start::{Process, start};
use crate::config::{Cluster, Config};
use crate::connect::connect;
use crate::error::Error;
use crate::fail::{Patience, Pulse, fail_stop, panics_end_the_process};
use crate::layout::Layout;

/// Runs `program` on every worker of this process, as a part of the job that the processes of `cluster` run together.
///
/// It returns when the job is done on all workers of all processes and everything is durable and committed. Until then it
/// is **fail-stop**: when `program` returns an error, or returns before its inputs are finished; when any thread panics, a
/// disk fails or nothing makes progress for [`Config::stall_timeout`] (before the job begins, [`Config::start_timeout`]), the
/// process ends with exit code [`crate::EXIT_FAILED`] and says why. The other processes end then too. Start all of them again,
/// and the job goes on where it was durable.
///
/// Panics of threads that have nothing to do with the job end the process too. One job at a time runs in a process.
///
/// # Errors
/// What can be said before a worker was started: a configuration that makes no sense, a process that cannot be reached.
pub fn run<F>(cluster: &Cluster, config: &Config, program: F) -> Result<(), Error>
where
    F: Fn(&mut Job) -> Result<(), Error> + Send + Sync + 'static,
{
    cluster.validate()?;
    config.validate()?;
    // Before anything is said to others: two processes of one number never talk to them at the same time.
    let lock = Layout::new(&config.dir, &config.vfs).lock(cluster.process, config.connect_timeout)?;
    let (builders, guard) = communication(cluster, config)?;
    let pulse = Arc::new(Pulse::default());
    let process = Arc::new(Process::new(cluster.clone(), config.clone(), Arc::clone(&pulse)));
    panics_end_the_process();
    let patience = Patience { start: config.start_timeout, stall: config.stall_timeout };
    let watchdog = pulse.watch(patience, process.store_slot());
    let watchdog = watchdog.map_err(|e| thread_failed(&e))?;
    let workers = Arc::clone(&process);
    let guards = execute_from(builders, guard, WorkerConfig::default(), move |worker| {
        let ended = start(worker, &workers).and_then(|mut job| {
            program(&mut job)?;
            job.complete()
        });
        if let Err(error) = ended {
            fail_stop(&format!("worker {}: {error}", worker.index()));
        }
        // What is left is timely's, whose threads end with those of the other processes: one that hangs is noticed then, too.
        workers.pulse.waits().until_the_end();
    });
    let guards = guards.map_err(|what| {
        Error::worker(Detail::new(format!("the workers could not be started: {what}")).remedy("Start again."))
    })?;
    for ended in guards.join() {
        if let Err(what) = ended {
            fail_stop(&format!("a worker did not end in order: {what}"));
        }
    }
    pulse.end();
    // The hook that ends the process goes; the one before it is not known any more, so that it is the default one.
    drop(std::panic::take_hook());
    if watchdog.join().is_err() {
        fail_stop(&"the watchdog panicked");
    }
    process.close()?;
    drop(lock);
    Ok(())
}

fn thread_failed(error: &std::io::Error) -> Error {
    let what = format!("a thread could not be started: {error}");
    Error::worker(Detail::new(what).remedy("Raise the limit of threads (`ulimit -u`), then start again."))
}

type Communicates = (Vec<AllocatorBuilder>, Box<dyn std::any::Any + Send>);

/// How workers talk to each other.
fn communication(cluster: &Cluster, config: &Config) -> Result<Communicates, Error> {
    let failed = |what: String| {
        Error::connect(Detail::new(format!("the network could not be set up: {what}")).remedy("Start again."))
    };
    if cluster.processes() == 1 {
        let built = if cluster.workers == 1 {
            Communication::Thread
        } else {
            Communication::Process(cluster.workers)
        };
        return built.try_build().map_err(failed);
    }
    let streams = connect(cluster, &config.says(), config.connect_timeout)?;
    let hooks = Hooks::default();
    let process = ProcessBuilder::new_typed_vector(cluster.workers, hooks.refill.clone(), None);
    let (builders, guard) =
        initialize_networking_from_sockets(process, streams, cluster.process, cluster.workers, hooks)
            .map_err(|e| failed(e.to_string()))?;
    Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Box::new(guard)))
}

/// Takes a lock whoever panicked with it: a panic has ended the process then.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

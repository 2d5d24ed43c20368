//! A worker panics; a process is killed.

use std::error::Error;

use laminar_timely::EXIT_FAILED;

use super::job::{Plan, more};
use super::processes::Stage;

/// A worker panics in an operator.
pub fn worker(stage: Stage<'_>) -> Result<(), Box<dyn Error>> {
    println!("- Two processes start; a worker of one panics when it counts a question too many.");
    let ended = stage.start(&Plan { panics: true, ..Plan::default() })?.ended()?;
    ended.report();
    ended.expect([Some(EXIT_FAILED); 2])?;
    println!("- Both are started again, without that mistake.");
    more(stage.dir)?;
    stage.finish(&Plan::default())
}

/// A process is killed.
pub fn process(stage: Stage<'_>) -> Result<(), Box<dyn Error>> {
    let mut processes = stage.start(&Plan::default())?;
    processes.wait_for_the_middle()?;
    println!("- Process 1 is killed, as with kill -9.");
    processes.kill(1)?;
    let ended = processes.ended()?;
    ended.report();
    ended.expect([Some(EXIT_FAILED), None])?;
    println!("- Both are started again.");
    more(stage.dir)?;
    stage.finish(&Plan::default())
}

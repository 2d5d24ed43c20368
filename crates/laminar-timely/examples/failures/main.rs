//! Shows what happens when something fails, each kind of failure of the table in `docs/DISTRIBUTED.md`: a job of two processes
//! counts words, something fails in the middle, both are started again, and the output is compared with what it should be.
//!
//! ```text
//! cargo run -p laminar-timely --features object-store --example failures -- worker|process|machine|network|bucket|all
//! ```
//! The processes are this program, started by itself. To change a failure, begin at its own file.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example that shows what it does")]

mod bucket;
mod crash;
mod job;
mod machine;
mod network;
mod output;
mod processes;

use std::error::Error;
use std::process::ExitCode;

use processes::Stage;
pub use processes::be_one_if_told;

type Scene = fn(Stage<'_>) -> Result<(), Box<dyn Error>>;

/// What can fail.
const SCENES: [(&str, &str, Scene); 5] = [
    ("worker", "A worker panics", crash::worker),
    ("process", "A process is killed", crash::process),
    ("machine", "A machine is lost with its disk", machine::machine),
    ("network", "The connection between the processes is cut", network::network),
    ("bucket", "The bucket of the backups is away", bucket::bucket),
];

fn main() -> ExitCode {
    be_one_if_told();
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let known = |name: &str| name == "all" || SCENES.iter().any(|(scene, ..)| *scene == name);
    match arguments.as_slice() {
        [name] if known(name) => match show(name, &[]) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("Usage: failures {}|all", SCENES.map(|(name, ..)| name).join("|"));
            ExitCode::from(2)
        }
    }
}

/// Shows the failures of this name. `arguments` come first when this program is started again as a process of the job.
pub fn show(name: &str, arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    for (_, title, scene) in SCENES.iter().filter(|(scene, ..)| [scene, "all"].contains(&name)) {
        let mut shown = show_once(title, *scene, arguments);
        for _ in 0..4 {
            match &shown {
                // A port that was free is another program's now, which says nothing about the job.
                Err(error) if error.to_string().contains("could not listen") => {}
                _ => break,
            }
            shown = show_once(title, *scene, arguments);
        }
        shown?;
    }
    Ok(())
}

/// In a directory of its own, which goes again.
fn show_once(title: &str, scene: Scene, arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    println!("\n{title}");
    let dir = tempfile::tempdir()?;
    scene(Stage { dir: dir.path(), arguments })?;
    output::compare(dir.path())
}

//! Checks the protocol in every state within some bounds: `cargo run --release -p laminar-model -- help`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use laminar_model::{Bounds, Protocol, worlds};
use stateright::{Checker, HasDiscoveries, Model};

const HELP: &str = "usage: laminar-model [small|large|NAME...]
Checks every state of the protocol within the named bounds; without a name, all the large ones.";

/// How often it says how far it is.
const PROGRESS: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let large = || worlds::LARGE.into_iter();
    let chosen: Vec<(&str, Bounds)> = match wanted.first().map(String::as_str) {
        None | Some("large") => large().collect(),
        Some("small") => worlds::SMALL.to_vec(),
        Some(_) => large().filter(|(name, _)| wanted.iter().any(|wanted| wanted == name)).collect(),
    };
    if chosen.is_empty() {
        eprintln!("{HELP}");
        for (name, bounds) in worlds::LARGE {
            eprintln!("  {name}: {bounds:?}");
        }
        return ExitCode::from(2);
    }
    let (mut states, mut good) = (0, true);
    for (name, bounds) in chosen {
        let (found, holds) = check(name, bounds);
        states += found;
        good &= holds;
    }
    println!("{states} states in all, {}", if good { "0 violations" } else { "VIOLATIONS" });
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Number of different states, and whether everything held.
fn check(name: &str, bounds: Bounds) -> (usize, bool) {
    println!("{name}: {bounds:?}");
    let started = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker =
        Protocol::new(bounds).checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_bfs();
    let mut shown = Instant::now();
    while !checker.is_done() {
        std::thread::sleep(Duration::from_millis(50));
        if shown.elapsed() >= PROGRESS {
            shown = Instant::now();
            println!("  {} different states so far", checker.unique_state_count());
        }
    }
    let checker = checker.join();
    let mut good = true;
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        let fails = property.expectation.discovery_is_failure();
        if found.is_some() == fails {
            good = false;
            println!("  FAILED: {}", property.name);
            for step in found.iter().flat_map(|path| path.clone().into_actions()) {
                println!("    {step:?}");
            }
        }
    }
    println!(
        "  {} different states, {} reached, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        started.elapsed().as_secs_f64()
    );
    (checker.unique_state_count(), good)
}

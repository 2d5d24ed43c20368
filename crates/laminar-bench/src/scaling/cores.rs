//! How checkpoints and opening of one state grow with the cores that it is spread over.

use super::FEWEST;
use super::fit::{self, model, time};
use super::states::{self, ROUNDS, Times};
use crate::machine::cores as cpus;
use crate::plot::{Axis, Line, lines};
use crate::table::{Cell, Report, Table};
use crate::{Error, Run};

const COLUMNS: &[&str] = &["state", "cores", "first checkpoint", "1 % changed, checkpoint", "opening"];

const CORES: [usize; 4] = [1, 2, 4, 8];

/// A time by its name.
type Figure = (&'static str, fn(&Times) -> f64);

const GROWS: [Figure; 3] = [
    ("first checkpoint", |times| times.first.as_nanos() as f64),
    ("1 % changed, checkpoint", |times| times.change.as_nanos() as f64),
    ("opening", |times| times.opening.as_nanos() as f64),
];

pub fn run(run: &Run, report: &mut Report) -> Result<(), Error> {
    let keys = run.keys_or(FEWEST, 1_000_000);
    let mut table = Table::new(
        "scaling_cores",
        "How checkpoints and opening grow with the cores of one state, 16 B / 100 B",
        COLUMNS,
    );
    let mut all = Vec::new();
    for cores in CORES {
        let times = states::measure(run, keys, cores)?;
        table.row(vec![
            Cell::text(format!("{} keys", Cell::Count(keys).shown())),
            Cell::Count(cores as u64),
            Cell::time(times.first),
            Cell::time(times.change),
            Cell::time(times.opening),
        ]);
        all.push((cores as f64, times));
    }
    table.note(format!("on {} CPUs; one thread puts on all cores before; 1 % changed: the median of {ROUNDS}; opening: page cache warm", cpus()));
    let all = GROWS.map(|(name, of)| {
        let points: Vec<_> = all.iter().map(|(cores, times)| (*cores, of(times))).collect();
        (model(&mut table, name, "core", time, &points), points)
    });
    table.note(fit::NOTE);
    report.add(table);
    draw(run, &format!("{} keys", Cell::Count(keys).shown()), &all)
}

/// Draws times as multiples of those of one core, as they differ too much to be seen on one axis.
fn draw(run: &Run, state: &str, all: &[(String, Vec<(f64, f64)>)]) -> Result<(), Error> {
    let Some(dir) = &run.beside_json else { return Ok(()) };
    let drawn = all.iter().map(|(name, points)| {
        let one = points.first().map_or(1.0, |(_, time)| *time);
        Line::new(name, points.iter().map(|(cores, time)| (*cores, time / one)))
    });
    lines(
        &dir.join("scaling-cores.svg"),
        &format!("Checkpoints and opening of {state}, 16 B / 100 B, by cores, on {} CPUs", cpus()),
        Axis::Doublings("cores"),
        "times what it takes with one core",
        &drawn.collect::<Vec<_>>(),
    )
}

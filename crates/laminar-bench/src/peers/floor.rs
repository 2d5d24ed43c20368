//! What the rows of the stores are measured against.

use std::time::Duration;

use super::changed;
use crate::floor::{Floor, Made};
use crate::{Error, Run, recovery};

pub struct Floors {
    /// The median of several.
    pub checkpoint: Made,
    pub opening: Duration,
}

impl Floors {
    pub fn measure(run: &Run, keys: u64) -> Result<Self, Error> {
        let opening = recovery::plain_floor(run, keys)?;
        let changed: Vec<u64> = changed(keys).collect();
        let mut floor = Floor::new(run, keys)?;
        let mut made = Vec::new();
        for _ in 0..run.size(3, 7) {
            made.push(floor.checkpoint(&changed)?);
        }
        floor.clear()?;
        made.sort_unstable();
        let checkpoint = made.get(made.len() / 2).copied().unwrap_or_default();
        Ok(Self { checkpoint, opening })
    }
}

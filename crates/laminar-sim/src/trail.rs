//! The name of one exploration: where it crashed, what was left, and so on into the recoveries.

use std::fmt;
use std::str::FromStr;

use laminar_storage::vfs::sim::ImageId;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Crash {
    /// The process was killed; the machine ran on.
    Kill,
    /// The power went; this image was left.
    Power(ImageId),
}

/// One crash: after which operation, and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// Number of the last operation done.
    pub op: u64,
    /// How it ended.
    pub crash: Crash,
}

/// The crashes that led somewhere, first the one of the scenario, then those of recoveries.
/// Written `op/kill` or `op/<image>`, joined by `+`; `-` without a crash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Trail(pub Vec<Step>);

impl Trail {
    /// This trail and one step more.
    #[must_use]
    pub fn then(&self, op: u64, crash: Crash) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step { op, crash });
        Self(steps)
    }
}

impl fmt::Display for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("-");
        }
        for (i, step) in self.0.iter().enumerate() {
            let join = if i == 0 { "" } else { "+" };
            match &step.crash {
                Crash::Kill => write!(f, "{join}{}/kill", step.op)?,
                Crash::Power(image) => write!(f, "{join}{}/{image}", step.op)?,
            }
        }
        Ok(())
    }
}

impl FromStr for Trail {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let step = |part: &str| {
            let bad = || format!("cannot read step `{part}` of trail `{text}`");
            let (op, crash) = part.split_once('/').ok_or_else(bad)?;
            Ok(Step {
                op: op.parse().map_err(|_| bad())?,
                crash: match crash {
                    "kill" => Crash::Kill,
                    image => Crash::Power(image.parse()?),
                },
            })
        };
        if text == "-" {
            return Ok(Self::default());
        }
        text.split('+').map(step).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_without_a_crash_too() {
        for text in ["-", "12/kill", "3/kill+4/kill"] {
            assert_eq!(text.parse::<Trail>().unwrap().to_string(), text);
        }
        assert_eq!("-".parse(), Ok(Trail::default()));
        for bad in ["", "x", "1", "-/kill", "+"] {
            assert!(bad.parse::<Trail>().is_err(), "{bad}");
        }
    }
}

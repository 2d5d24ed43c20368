//! What is computed per key: the aggregates named by `--agg`, and the plan made from them.
//!
//! To add an aggregate, also touch [`value`] (its state), the help text in `args.rs`, and
//! [`value::VALUE_FORMAT`] if the bytes of existing aggregates change.

pub mod bytes;
pub mod decimal;
pub mod value;

use std::fmt;

use crate::error::{CliError, Result};

/// What to do with the values of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// How many records the key has.
    Count,
    /// Exact sum.
    Sum,
    /// Smallest number, as written in the input.
    Min,
    /// Largest number, as written in the input.
    Max,
    /// Value of the last record in input order, as written in the input.
    Last,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Sum => "sum",
            Self::Min => "min",
            Self::Max => "max",
            Self::Last => "last",
        }
    }

    /// Whether the field must be a number.
    pub fn is_numeric(self) -> bool {
        matches!(self, Self::Sum | Self::Min | Self::Max)
    }
}

/// One aggregate, as in `--agg sum:amount`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aggregate {
    /// What is done.
    pub kind: Kind,
    /// To which field; empty for `count`.
    pub field: String,
    /// Place of the field in [`Plan::fields`]; 0 for `count`, which reads none.
    pub slot: usize,
}

impl fmt::Display for Aggregate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Count => f.write_str("count"),
            kind => write!(f, "{}:{}", kind.word(), self.field),
        }
    }
}

/// All aggregates of a job, and the distinct fields they read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In the order of the command line; also the order of the columns in exports.
    pub aggregates: Vec<Aggregate>,
    /// Distinct field names.
    pub fields: Vec<String>,
}

impl Plan {
    /// Reads the values of `--agg`.
    pub fn parse(specs: &[String]) -> Result<Self> {
        let mut plan = Self { aggregates: Vec::new(), fields: Vec::new() };
        for spec in specs {
            let aggregate = plan.parse_one(spec.trim())?;
            if plan.aggregates.contains(&aggregate) {
                return Err(CliError::usage(format!("--agg {spec} is given twice"))
                    .remedy("Each aggregate becomes one column; name it once."));
            }
            plan.aggregates.push(aggregate);
        }
        if plan.aggregates.is_empty() {
            plan.aggregates.push(Aggregate { kind: Kind::Count, field: String::new(), slot: 0 });
        }
        Ok(plan)
    }

    fn parse_one(&mut self, spec: &str) -> Result<Aggregate> {
        let unknown = || {
            CliError::usage(format!("--agg {spec:?} is not an aggregate"))
                .remedy("Use count, sum:FIELD, min:FIELD, max:FIELD or last:FIELD, for example --agg count,sum:amount.")
        };
        let (word, field) = spec.split_once(':').unwrap_or((spec, ""));
        let kind = match word {
            "count" if spec == "count" => {
                return Ok(Aggregate { kind: Kind::Count, field: String::new(), slot: 0 });
            }
            "sum" => Kind::Sum,
            "min" => Kind::Min,
            "max" => Kind::Max,
            "last" => Kind::Last,
            _ => return Err(unknown()),
        };
        if field.is_empty() {
            return Err(unknown());
        }
        let slot = self.fields.iter().position(|f| f == field).unwrap_or_else(|| {
            self.fields.push(field.to_owned());
            self.fields.len() - 1
        });
        Ok(Aggregate { kind, field: field.to_owned(), slot })
    }

    /// The aggregates as on the command line.
    pub fn specs(&self) -> Vec<String> {
        self.aggregates.iter().map(ToString::to_string).collect()
    }

    /// Place of the aggregate with this spec.
    pub fn position(&self, spec: &str) -> Option<usize> {
        self.aggregates.iter().position(|a| a.to_string() == spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn fields_are_shared_and_order_is_kept() {
        let plan = Plan::parse(&specs(&["sum:a.b", "count", "max:a.b", "last:c"])).unwrap();
        assert_eq!(plan.fields, ["a.b", "c"]);
        assert_eq!(plan.specs(), ["sum:a.b", "count", "max:a.b", "last:c"]);
        assert_eq!(plan.aggregates.iter().map(|a| a.slot).collect::<Vec<_>>(), [0, 0, 0, 1]);
        assert_eq!(plan.position("max:a.b"), Some(2));
    }

    #[test]
    fn count_is_the_default_and_nonsense_is_refused() {
        assert_eq!(Plan::parse(&[]).unwrap().specs(), ["count"]);
        for bad in ["", "sum", "sum:", "count:x", "avg:x"] {
            assert!(Plan::parse(&specs(&[bad])).is_err(), "{bad}");
        }
        assert!(Plan::parse(&specs(&["count", "count"])).is_err());
    }
}

//! Lines, distributions and bars, drawn as SVG.

use std::ops::Range;
use std::path::Path;

use plotters::coord::ranged1d::{BoldPoints, DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::Error;
use crate::machine::Nanos;
use crate::table::shown_nanos;

/// One line: its name, and its points, places on the horizontal axis first.
#[derive(Debug)]
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

impl Line {
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self { name: name.into(), points: points.into_iter().collect() }
    }

    /// Values at the places from 1 on.
    pub fn from_one(name: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        Self::new(name, (1_u32..).map(f64::from).zip(values))
    }
}

/// The horizontal axis of lines, by what it shows.
#[derive(Clone, Copy, Debug)]
pub enum Axis<'a> {
    /// Equal differences are equally far apart; from 0 on.
    Linear(&'a str),
    /// Doublings are equally far apart; from the first point on, which is 1 or more.
    Doublings(&'a str),
}

impl<'a> From<&'a str> for Axis<'a> {
    fn from(name: &'a str) -> Self {
        Self::Linear(name)
    }
}

impl<'a> Axis<'a> {
    fn name(self) -> &'a str {
        let (Self::Linear(name) | Self::Doublings(name)) = self;
        name
    }

    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear(_) => value,
            Self::Doublings(_) => value.max(1.0).log2(),
        }
    }

    /// The value at a place, as its label.
    fn shown(self, place: f64) -> String {
        match self {
            Self::Linear(_) => shown_round(place),
            Self::Doublings(_) => shown_round(place.exp2()),
        }
    }

    /// From where to where it goes, for points at these places, of which the first is the lowest.
    fn range(self, places: &[f64]) -> Range<f64> {
        let from = match self {
            Self::Linear(_) => 0.0,
            Self::Doublings(_) => places.first().copied().unwrap_or(0.0),
        };
        from..places.last().copied().unwrap_or(0.0).max(from + 1.0)
    }
}

/// With so few points an axis has a label at each.
const MOST_LABELS: usize = 12;

/// An axis with labels where they are wanted.
struct Labelled {
    places: RangedCoordf64,
    labels: Vec<f64>,
}

impl Ranged for Labelled {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, limit: (i32, i32)) -> i32 {
        self.places.map(place, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.labels.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.places.range()
    }
}

const SIZE: (u32, u32) = (900, 420);
const TALL: (u32, u32) = (900, 560);
const COLOURS: [RGBColor; 10] = [
    RGBColor(0, 90, 170),
    RGBColor(200, 80, 0),
    RGBColor(0, 130, 90),
    RGBColor(120, 120, 120),
    RGBColor(150, 60, 150),
    RGBColor(190, 150, 0),
    RGBColor(90, 190, 230),
    RGBColor(230, 120, 150),
    RGBColor(90, 60, 30),
    RGBColor(0, 0, 0),
];

/// Latencies with what they are of.
#[derive(Clone, Debug)]
pub struct Distribution {
    pub name: String,
    pub latencies: Nanos,
}

/// Whose figure a bar shows, which its colour tells.
#[derive(Clone, Copy, Debug)]
pub enum Of {
    /// What the others are measured against.
    Floor,
    Ours,
    Others,
}

/// A bar with what it is of.
#[derive(Clone, Debug)]
pub struct Bar {
    pub name: String,
    pub value: f64,
    pub of: Of,
}

/// Draws lines that share both axes, the vertical one from 0 upwards.
pub fn lines<'a>(
    path: &Path,
    title: &str,
    x: impl Into<Axis<'a>>,
    y: &str,
    lines: &[Line],
) -> Result<(), Error> {
    let axis = x.into();
    let all = || lines.iter().flat_map(|line| &line.points).copied();
    let mut places: Vec<f64> = all().map(|(at, _)| axis.place(at)).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let few = places.len() <= MOST_LABELS;
    let range = RangedCoordf64::from(axis.range(&places));
    let labels = if few { places } else { range.key_points(BoldPoints(MOST_LABELS)) };
    let highest = all().map(|(_, value)| value).fold(f64::MIN_POSITIVE, f64::max);
    // The names are above the lines.
    let top = highest * (1.1 + 0.07 * lines.len() as f64);
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::new(path, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(38)
            .y_label_area_size(64)
            .build_cartesian_2d(Labelled { places: range, labels }, 0_f64..top)?;
        chart
            .configure_mesh()
            .x_desc(axis.name())
            .y_desc(y)
            .x_label_formatter(&|place| axis.shown(*place))
            .light_line_style(WHITE)
            .draw()?;
        for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
            let sample = move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2));
            let points = line.points.iter().map(|(at, value)| (axis.place(*at), *value));
            let series = LineSeries::new(points, colour.stroke_width(1)).point_size(if few { 2 } else { 0 });
            chart.draw_series(series)?.label(&line.name).legend(sample);
        }
        let mut names = chart.configure_series_labels();
        names.position(SeriesLabelPosition::UpperLeft).background_style(WHITE).border_style(BLACK).draw()?;
        area.present()?;
        Ok(())
    };
    draw().map_err(|e| format!("could not draw {}: {e}", path.display()).into())
}

/// Where a distribution ends: behind so many nines there is only what the machine does.
const MOST_NINES: f64 = 6.0;

/// The part of operations that took at most as long, and how long: points from none to all but the last few.
fn quantiles(latencies: &Nanos) -> impl Iterator<Item = (f64, f64)> {
    let nines = (latencies.len().max(1) as f64).log10().min(MOST_NINES);
    let steps = (nines * 20.0) as u32;
    (0..=steps).map(move |step| {
        let nines = f64::from(step) / 20.0;
        let nanos = latencies.value_at_quantile(1.0 - 10_f64.powf(-nines));
        (nines, nanos.max(1) as f64)
    })
}

fn shown_nines(nines: &f64) -> String {
    // Between whole numbers of nines there are no figures that anybody knows.
    if (nines - nines.round()).abs() > 0.01 {
        return String::new();
    }
    match nines.round() as i32 {
        0 => "0 %".into(),
        1 => "90 %".into(),
        2 => "99 %".into(),
        more => format!("99.{} %", "9".repeat(usize::try_from(more - 2).unwrap_or(0))),
    }
}

/// Draws how long how many of the operations took, both axes so that rare and long ones can be seen.
pub fn distributions(path: &Path, title: &str, distributions: &[Distribution]) -> Result<(), Error> {
    let lines: Vec<(&str, Vec<_>)> =
        distributions.iter().map(|one| (one.name.as_str(), quantiles(&one.latencies).collect())).collect();
    let all = || lines.iter().flat_map(|(_, points)| points).copied();
    let widest = all().map(|(nines, _)| nines).fold(1.0, f64::max);
    let lowest = all().map(|(_, nanos)| nanos).fold(f64::MAX, f64::min).min(1e9);
    let highest = all().map(|(_, nanos)| nanos).fold(lowest, f64::max);
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::new(path, TALL).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(38)
            .y_label_area_size(72)
            .build_cartesian_2d(0_f64..widest, (lowest / 1.5..highest * 30.0).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("of the operations take at most")
            .x_labels(MOST_NINES as usize + 1)
            .x_label_formatter(&shown_nines)
            .y_label_formatter(&|nanos: &f64| shown_nanos(*nanos))
            .light_line_style(WHITE)
            .draw()?;
        for ((name, points), colour) in lines.iter().zip(COLOURS.iter().cycle()) {
            let sample = move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2));
            chart
                .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
                .label(*name)
                .legend(sample);
        }
        let mut names = chart.configure_series_labels();
        names.position(SeriesLabelPosition::UpperLeft).background_style(WHITE).border_style(BLACK).draw()?;
        area.present()?;
        Ok(())
    };
    draw().map_err(|e| format!("could not draw {}: {e}", path.display()).into())
}

/// Draws values as bars below each other, from 0, the name and the value beside each.
pub fn bars(path: &Path, title: &str, x: &str, bars: &[Bar]) -> Result<(), Error> {
    let most = bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
    let height = 90 + 22 * u32::try_from(bars.len())?;
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::new(path, (SIZE.0, height)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(38)
            .build_cartesian_2d(0_f64..most * 1.8, 0_f64..bars.len() as f64)?;
        let whole = |at: &f64| shown_count(*at);
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(x).x_label_formatter(&whole).disable_y_mesh().disable_y_axis().light_line_style(WHITE);
        mesh.draw()?;
        for (bar, below) in bars.iter().rev().zip(0_u32..) {
            let below = f64::from(below);
            let area = [(0.0, below + 0.15), (bar.value, below + 0.85)];
            let colour = match bar.of {
                Of::Floor => COLOURS[3],
                Of::Ours => COLOURS[0],
                Of::Others => COLOURS[1],
            };
            chart.draw_series([Rectangle::new(area, colour.filled())])?;
            let name = format!("{}  {}", shown_count(bar.value), bar.name);
            let at = (bar.value + most * 0.01, below + 0.75);
            chart.draw_series([Text::new(name, at, ("sans-serif", 13))])?;
        }
        area.present()?;
        Ok(())
    };
    draw().map_err(|e| format!("could not draw {}: {e}", path.display()).into())
}

fn shown_count(n: f64) -> String {
    match n {
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n if n >= 1e3 => format!("{:.1} k", n / 1e3),
        n => format!("{n:.0}"),
    }
}

/// A value that is usually round, such as a number of keys, in as few digits as tell it.
fn shown_round(n: f64) -> String {
    let in_units = |unit: f64| (n / unit * 100.0).round() / 100.0;
    match n {
        n if n >= 999_995.0 => format!("{} M", in_units(1e6)),
        n if n >= 10_000.0 => format!("{} k", in_units(1e3)),
        _ => in_units(1.0).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_drawn_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plot.svg");
        let first = Line::from_one("first", [1.0, 2.0, 1.5]);
        let second = Line::new("second", [(1.0, 0.0), (2.5, 0.0)]);
        lines(&path, "Two lines", "x", "y", &[first, second]).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        for wanted in ["<svg", "Two lines", "first", "second"] {
            assert!(svg.contains(wanted), "{wanted}");
        }
        assert!(svg.matches("<polyline").count() >= 2, "{svg}");
    }

    #[test]
    fn the_axis_has_the_true_values() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plot.svg");
        let keys = [250_000.0, 1e6, 16e6, 20e6];
        let line = Line::new("put", keys.map(|keys| (keys, 1.0)));
        lines(&path, "By keys", Axis::Doublings("keys"), "ns", &[line]).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for wanted in ["\n250 k\n", "\n1 M\n", "\n16 M\n", "\n20 M\n"] {
            assert!(svg.contains(wanted), "{wanted}: {svg}");
        }
        let many = Line::from_one("many", (0..=1000).map(f64::from));
        lines(&path, "Many", "checkpoint", "MB", &[many]).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.contains("\n500\n") && !svg.contains("\n501\n"), "{svg}");
    }

    #[test]
    fn values_are_shown_in_few_digits() {
        let shown = [8.0, 1000.0, 250_000.0, 999_999.0, 1_500_000.0, 0.25].map(shown_round);
        assert_eq!(shown, ["8", "1000", "250 k", "1 M", "1.5 M", "0.25"]);
    }

    #[test]
    fn distributions_and_bars_are_drawn_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut latencies = crate::machine::histogram().unwrap();
        (1..=100_000_u64).for_each(|nanos| latencies.saturating_record(nanos));
        let path = dir.path().join("latency.svg");
        let distribution = Distribution { name: "put".into(), latencies };
        distributions(&path, "How long", std::slice::from_ref(&distribution)).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        for wanted in ["<svg", "How long", "put", "99.9 %", "<polyline"] {
            assert!(svg.contains(wanted), "{wanted}: {svg}");
        }
        assert_eq!(svg.matches("\n90 %").count(), 1, "{svg}");
        let median = quantiles(&distribution.latencies).find(|(nines, _)| *nines >= 0.3).unwrap().1;
        assert!((49_000.0..51_000.0).contains(&median), "{median}");

        let path = dir.path().join("bars.svg");
        let bar = |name: &str, value| Bar { name: name.into(), value, of: Of::Ours };
        bars(&path, "How many", "puts/s", &[bar("ours", 2.5e6), bar("raw", 0.0)]).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        for wanted in ["How many", "2.5 M  ours", "0  raw"] {
            assert!(svg.contains(wanted), "{wanted}: {svg}");
        }
    }

    #[test]
    fn nothing_measured_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let latencies = crate::machine::histogram().unwrap();
        let none = [Distribution { name: "none".into(), latencies }];
        distributions(&dir.path().join("a.svg"), "", &none).unwrap();
        distributions(&dir.path().join("b.svg"), "", &[]).unwrap();
        bars(&dir.path().join("c.svg"), "", "", &[]).unwrap();
        lines(&dir.path().join("d.svg"), "", Axis::Doublings(""), "", &[]).unwrap();
        lines(&dir.path().join("e.svg"), "", "", "", &[Line::from_one("one", [1.0])]).unwrap();
    }
}

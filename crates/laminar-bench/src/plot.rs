//! Lines, drawn as SVG.

use std::path::Path;

use plotters::prelude::*;

use crate::Error;

/// One line: its name, and a value for each place on the horizontal axis, from 1.
#[derive(Debug)]
pub struct Line<'a> {
    pub name: &'a str,
    pub values: Vec<f64>,
}

const SIZE: (u32, u32) = (900, 420);
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 90, 170),
    RGBColor(200, 80, 0),
    RGBColor(0, 130, 90),
    RGBColor(120, 120, 120),
    RGBColor(150, 60, 150),
];

/// Draws lines that share both axes, from 0 upwards.
pub fn lines(path: &Path, title: &str, x: &str, y: &str, lines: &[Line<'_>]) -> Result<(), Error> {
    let longest = lines.iter().map(|line| line.values.len()).max().unwrap_or(0);
    let highest = lines.iter().flat_map(|line| &line.values).copied().fold(0.0, f64::max);
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::new(path, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(38)
            .y_label_area_size(64)
            .build_cartesian_2d(0_f64..longest.max(1) as f64, 0_f64..highest.max(f64::MIN_POSITIVE) * 1.3)?;
        let whole = |at: &f64| format!("{at:.0}");
        chart
            .configure_mesh()
            .x_desc(x)
            .y_desc(y)
            .x_label_formatter(&whole)
            .light_line_style(WHITE)
            .draw()?;
        for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
            let points = line.values.iter().zip(1_u32..).map(|(value, at)| (f64::from(at), *value));
            let sample = move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2));
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(1)))?
                .label(line.name)
                .legend(sample);
        }
        let mut names = chart.configure_series_labels();
        names.position(SeriesLabelPosition::UpperLeft).background_style(WHITE).border_style(BLACK).draw()?;
        area.present()?;
        Ok(())
    };
    draw().map_err(|e| format!("could not draw {}: {e}", path.display()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_drawn_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plot.svg");
        let first = Line { name: "first", values: vec![1.0, 2.0, 1.5] };
        let second = Line { name: "second", values: vec![0.0; 3] };
        lines(&path, "Two lines", "x", "y", &[first, second]).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        for wanted in ["<svg", "Two lines", "first", "second"] {
            assert!(svg.contains(wanted), "{wanted}");
        }
        assert!(svg.matches("<polyline").count() >= 2, "{svg}");
    }
}
